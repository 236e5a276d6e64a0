//! Consuming: what the threads share that reserve and settle, and how they begin and end.

mod examine;
mod hand;
mod settle;

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jobs_core::{Capabilities, Credit, Error, ErrorKind, Inlet, Message, Result, Token};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::codec::{self, Terms};
use crate::config::{BeanstalkConfig, whole_seconds};
use crate::connection::{Answer, Client, Put};
use crate::epoch::{Epoch, Epochs, Role};
use crate::error::{Failure, Reply, closed, timed_out};
use crate::freshness::Freshness;
use crate::pool::{Company, Crew, Duty, Post, lock};
use hand::Hand;

/// A pipeline that consumes.
pub(crate) struct Consumer {
    floor: Arc<Floor>,
    crew: Arc<Crew>,
    answer: Option<oneshot::Receiver<Result<()>>>,
}

/// What its threads share.
struct Floor {
    config: Arc<BeanstalkConfig>,
    /// The pipeline's.
    priority: i64,
    /// The largest body.
    largest: usize,
    capabilities: Arc<Capabilities>,
    company: Arc<Company>,
    tokens: AtomicU64,
    freshness: Mutex<Freshness>,
    epochs: Arc<Epochs>,
    /// By the number of their thread's post.
    serving: Mutex<Vec<(u64, Arc<Epoch>)>>,
    /// Credits that are out for jobs that are not there yet.
    fetching: AtomicUsize,
    /// Held through a delivery, so that none comes after a pause.
    gate: Mutex<Gate>,
    /// Told when the first connection stands, or cannot be had.
    begun: Mutex<Option<oneshot::Sender<Result<()>>>>,
}

struct Gate {
    running: bool,
    closing: bool,
    /// Taken out by the stop, which closes the lane.
    inlet: Option<Arc<Inlet>>,
}

impl Consumer {
    /// Sets its threads to work. [`begun`](Self::begun) tells whether they can.
    pub(crate) fn new(
        config: &Arc<BeanstalkConfig>,
        priority: i64,
        largest: usize,
        capabilities: &Arc<Capabilities>,
        company: &Arc<Company>,
        inlet: Inlet,
    ) -> Result<Self> {
        let (begun, answer) = oneshot::channel();
        let floor = Arc::new(Floor {
            config: Arc::clone(config),
            priority,
            largest,
            capabilities: Arc::clone(capabilities),
            company: Arc::clone(company),
            tokens: AtomicU64::new(1),
            freshness: Mutex::default(),
            epochs: Arc::default(),
            serving: Mutex::default(),
            fetching: AtomicUsize::new(0),
            gate: Mutex::new(Gate { running: true, closing: false, inlet: Some(Arc::new(inlet)) }),
            begun: Mutex::new(Some(begun)),
        });
        let crew = Crew::new(Arc::clone(&floor) as Arc<dyn Duty>, company);
        let consumer = Self { floor, crew, answer: Some(answer) };
        for _ in 0..config.consumers() {
            consumer.crew.hire(usize::MAX).map_err(no_thread)?;
        }
        Ok(consumer)
    }

    /// Returns when it consumes on one connection at least.
    pub(crate) async fn begun(&mut self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + self.floor.config.timeout;
        let Some(answer) = self.answer.take() else { return Ok(()) };
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(closed("run")),
            Err(_) => Err(timed_out("run")),
        }
    }

    pub(crate) fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }

    /// Jobs in this process.
    pub(crate) fn active(&self) -> usize {
        self.floor.active()
    }

    /// Lets no more jobs in, and gives back what nobody popped. A request for a job that waits at the
    /// server goes on for a moment: what it brings goes back at once.
    pub(crate) async fn pause(&self) -> Result<()> {
        let inlet = {
            let mut gate = lock(&self.floor.gate);
            gate.running = false;
            gate.inlet.clone()
        };
        match inlet {
            Some(inlet) => inlet.hold_and_release().await,
            None => Ok(()),
        }
    }

    pub(crate) fn resume(&self) {
        let inlet = {
            let mut gate = lock(&self.floor.gate);
            gate.running = !gate.closing;
            gate.inlet.clone()
        };
        inlet.iter().for_each(|inlet| inlet.open());
        self.floor.epochs.ring();
    }

    /// Lets the threads end when they have settled what was handed over. Jobs that are still with
    /// workers go back to the server, which sees their connection closed.
    pub(crate) fn close(&self) {
        self.floor.close();
        self.crew.dismiss();
    }

    /// Pauses, closes and waits until the deadline.
    pub(crate) async fn stop(&self, deadline: tokio::time::Instant) -> Result<()> {
        let paused = timeout_at(deadline, self.pause()).await;
        self.close();
        self.crew.ended(deadline).await;
        for (_, epoch) in std::mem::take(&mut *lock(&self.floor.serving)) {
            // Of a thread that is stuck: its answers will not come.
            self.floor.end(&epoch);
        }
        // The lane is closed here, which calls back.
        let inlet = lock(&self.floor.gate).inlet.take();
        drop(inlet);
        match paused.unwrap_or(Ok(())) {
            // What could not be given back to a server that is away comes back by itself.
            Err(error) if error.is_retryable() || error.kind() == ErrorKind::Closed => Ok(()),
            answer => answer,
        }
    }
}

fn no_thread(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Broker, "run")
        .with_driver(crate::NAME)
        .with_context("the system allows no more threads")
        .with_source(error)
        .transient()
}

/// A consumer that is dropped is one that died: its jobs go back.
impl Drop for Consumer {
    fn drop(&mut self) {
        self.close();
        let inlet = lock(&self.floor.gate).inlet.take();
        drop(inlet);
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("crew", &self.crew).finish_non_exhaustive()
    }
}

impl Duty for Floor {
    fn name(&self) -> &'static str {
        "beanstalk-pop"
    }

    fn serve(&self, post: &Post, client: &mut Client) -> Result<()> {
        let watching = post.during(self.config.push_timeout, || client.watch(&self.config.tube));
        watching.map_err(|failure| failure.error("run"))?;
        let epoch = Epoch::begin(&self.capabilities, &self.epochs);
        lock(&self.serving).push((post.number, Arc::clone(&epoch)));
        self.begin(Ok(()));
        // Also if the client panics.
        let _serving = Serving { floor: self, number: post.number };
        Hand::new(self, post, client, epoch).serve()
    }

    fn failed(&self, error: Error) {
        self.begin(Err(error));
    }

    fn stuck(&self, post: &Post) {
        self.leave(post.number);
    }
}

struct Serving<'a> {
    floor: &'a Floor,
    number: u64,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.floor.leave(self.number);
    }
}

impl Floor {
    /// Tells whoever runs the pipeline, once.
    fn begin(&self, answer: Result<()>) {
        let begun = lock(&self.begun).take();
        if let Some(begun) = begun {
            // Whoever runs it may be gone.
            let _ = begun.send(answer);
        }
    }

    /// Ends the epoch of a thread.
    fn leave(&self, number: u64) {
        let mut serving = lock(&self.serving);
        let index = serving.iter().position(|(other, _)| *other == number);
        let epoch = index.map(|index| serving.swap_remove(index).1);
        drop(serving);
        epoch.iter().for_each(|epoch| self.end(epoch));
    }

    fn end(&self, epoch: &Epoch) {
        let over = epoch.kill();
        lock(&self.freshness).forget();
        epoch.credit().into_iter().for_each(|credit| self.unused(credit));
        self.withdraw(&over);
        // Others may have to wait for jobs in its place.
        self.epochs.ring();
    }

    /// Takes jobs out of the lane whose reservation is over. Returns those that were there.
    fn withdraw(&self, over: &[Token]) -> Vec<Token> {
        let inlet = lock(&self.gate).inlet.clone();
        match inlet {
            Some(inlet) if !over.is_empty() => inlet.withdraw(|token| over.contains(&token)),
            _ => Vec::new(),
        }
    }

    fn close(&self) {
        let mut gate = lock(&self.gate);
        gate.running = false;
        gate.closing = true;
        drop(gate);
        self.epochs.ring();
    }

    /// True if the request of a thread waits at a server that is not silent.
    fn is_any_waiting(&self) -> bool {
        let now = Instant::now();
        self.is_any(|role| matches!(role, Role::Waiting(until) if now < until))
    }

    fn is_any_free(&self) -> bool {
        self.is_any(|role| matches!(role, Role::Free))
    }

    fn is_any(&self, is_it: impl Fn(Role) -> bool) -> bool {
        lock(&self.serving).iter().any(|(_, epoch)| is_it(epoch.role()))
    }

    fn is_closing(&self) -> bool {
        lock(&self.gate).closing
    }

    /// Jobs in this process.
    fn active(&self) -> usize {
        let active = lock(&self.gate).inlet.as_ref().map_or(0, |inlet| inlet.active());
        active.saturating_sub(self.fetching.load(Ordering::Acquire))
    }

    /// A credit to fetch a job with.
    fn credit(&self) -> Option<Credit> {
        let gate = lock(&self.gate);
        let credit = gate.inlet.as_ref().filter(|_| gate.running)?.try_credit()?;
        self.fetching.fetch_add(1, Ordering::AcqRel);
        Some(credit)
    }

    /// Gives back a credit that brought no job.
    fn unused(&self, credit: Credit) {
        drop(credit);
        self.fetching.fetch_sub(1, Ordering::AcqRel);
    }

    /// A copy of a job, if the server takes one of that size.
    fn copy(&self, message: &Message, delay: Duration, terms: Terms) -> Answer<Put> {
        let body = codec::encode(message, self.priority, terms);
        if body.len() > self.largest {
            return Err(Failure::too_big());
        }
        let delay = whole_seconds(delay);
        Ok(Put { body, priority: terms.priority, delay, time_to_run: terms.time_to_run })
    }
}

/// False if the server does not know the job, or not as one of this connection.
fn found(answer: Answer<()>) -> Answer<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(failure) if failure.reply == Reply::NotFound => Ok(false),
        Err(failure) => Err(failure),
    }
}
