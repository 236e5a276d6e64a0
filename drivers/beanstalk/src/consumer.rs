//! Consuming: each thread reserves, settles and renews on its own connection.
//!
//! A reservation belongs to the connection that made it, and while a request for a job waits the
//! server reads nothing else from that connection. So a thread that holds jobs asks only for what is
//! ready now, and only one that holds none waits at the server.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jobs_core::{Capabilities, Credit, Delivery, Error, ErrorKind, Inlet, Message, Result, Token};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use crate::codec::{self, Decoded, Terms};
use crate::config::{A_YEAR, BeanstalkConfig, whole_seconds};
use crate::connection::{Answer, Client, Connector, Put, Reserved};
use crate::epoch::{Ending, Epoch, Epochs, Order, Reply, Role};
use crate::error::{Failure, Reply as ServerReply, timed_out};
use crate::freshness::Freshness;
use crate::health::Health;
use crate::pool::{Crew, Duty, Losses, Post, lock};
use crate::reservations::{Due, Reservation};

/// Between questions for a job when every connection holds some, from and to.
const PACE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// A thread that leaves the waiting to others looks after so long whether they still do.
const TRUST: Duration = Duration::from_secs(1);

/// A pipeline that consumes.
pub(crate) struct Consumer {
    floor: Arc<Floor>,
    crew: Arc<Crew>,
}

/// What its threads share.
struct Floor {
    config: Arc<BeanstalkConfig>,
    /// The pipeline's.
    priority: i64,
    capabilities: Arc<Capabilities>,
    health: Arc<Health>,
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
    /// Returns when it consumes on one connection at least.
    pub(crate) async fn run(
        config: &Arc<BeanstalkConfig>,
        priority: i64,
        capabilities: &Arc<Capabilities>,
        connector: Connector,
        losses: Arc<Losses>,
        health: &Arc<Health>,
        inlet: Inlet,
    ) -> Result<Self> {
        let deadline = tokio::time::Instant::now() + connector.timeout;
        let (begun, answer) = oneshot::channel();
        let floor = Arc::new(Floor {
            config: Arc::clone(config),
            priority,
            capabilities: Arc::clone(capabilities),
            health: Arc::clone(health),
            tokens: AtomicU64::new(1),
            freshness: Mutex::default(),
            epochs: Arc::default(),
            serving: Mutex::default(),
            fetching: AtomicUsize::new(0),
            gate: Mutex::new(Gate { running: true, closing: false, inlet: Some(Arc::new(inlet)) }),
            begun: Mutex::new(Some(begun)),
        });
        let duty = Arc::clone(&floor) as Arc<dyn Duty>;
        let crew = Crew::new(duty, connector, config.push_timeout, losses, Arc::clone(health));
        let consumer = Self { floor, crew };
        for _ in 0..config.consumers() {
            consumer.crew.hire(usize::MAX).map_err(no_thread)?;
        }
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer?,
            Ok(Err(_)) => return Err(crate::error::closed("run")),
            Err(_) => return Err(timed_out("run")),
        }
        Ok(consumer)
    }

    pub(crate) fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }

    /// Jobs in this process.
    pub(crate) fn active(&self) -> usize {
        let inlet = lock(&self.floor.gate).inlet.clone();
        let active = inlet.map_or(0, |inlet| inlet.active());
        active.saturating_sub(self.floor.fetching.load(Ordering::Acquire))
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

/// A thread with its connection.
struct Hand<'a> {
    floor: &'a Floor,
    post: &'a Post,
    client: &'a mut Client,
    epoch: Arc<Epoch>,
    /// When to ask for a job next, and how long to wait after that.
    next: Instant,
    pace: Duration,
    /// What had come before the job that is asked for.
    before: Freshness,
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
        let (next, pace, before) = (Instant::now(), PACE.0, Freshness::default());
        Hand { floor: self, post, client, epoch, next, pace, before }.serve()
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

    /// True if a thread has this role.
    fn is_any(&self, role: Role) -> bool {
        lock(&self.serving).iter().any(|(_, epoch)| epoch.is(role))
    }

    fn is_closing(&self) -> bool {
        lock(&self.gate).closing
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

    fn put(&self, message: &Message, delay: Duration, terms: Terms) -> Put {
        Put {
            body: codec::encode(message, self.priority, terms),
            priority: terms.priority,
            delay: whole_seconds(delay),
            time_to_run: terms.time_to_run,
        }
    }
}

impl Hand<'_> {
    fn serve(mut self) -> Result<()> {
        loop {
            while let Some(order) = self.epoch.order() {
                self.carry_out(order)?;
            }
            while let Some(due) = self.epoch.due(Instant::now()) {
                self.look_after(due)?;
            }
            if self.post.is_relieved() || self.epoch.is_dead() {
                return Err(Error::new(ErrorKind::Connection, "serve")
                    .with_driver(crate::NAME)
                    .with_context("it was given up meanwhile")
                    .transient());
            }
            if self.floor.is_closing() && self.epoch.kill_if_idle() {
                return Ok(());
            }
            self.fetch()?;
        }
    }

    fn ask<T>(&mut self, what: impl FnOnce(&mut Client) -> Answer<T>) -> Answer<T> {
        let client = &mut *self.client;
        self.post.during(self.floor.config.push_timeout, || what(client))
    }

    /// Asks for a job if there is a credit for it, or waits for something to do.
    fn fetch(&mut self) -> Result<()> {
        let holds_none = self.epoch.is_empty();
        let Some(credit) = self.floor.credit() else {
            let role = if holds_none { Role::Free } else { Role::Busy };
            self.epoch.as_role(role, || self.epoch.wait(None));
            return Ok(());
        };
        if Instant::now() < self.next {
            self.floor.unused(credit);
            self.epoch.wait(Some(self.next));
            return Ok(());
        }
        if holds_none {
            let (epoch, wait) = (Arc::clone(&self.epoch), self.floor.config.reserve());
            return epoch.as_role(Role::Waiting, || self.reserve(wait, credit)).map(drop);
        }
        if self.floor.is_any(Role::Waiting) {
            // What becomes ready goes to them.
            self.floor.unused(credit);
            self.epoch.wait(Some(Instant::now() + TRUST));
            return Ok(());
        }
        if self.reserve(Duration::ZERO, credit)? {
            self.pace = PACE.0;
            return Ok(());
        }
        self.next = Instant::now() + self.pace;
        self.pace = (self.pace * 2).min(PACE.1);
        if self.floor.is_any(Role::Free) {
            // They can wait at the server, with the credit that is free now.
            self.floor.epochs.ring();
        }
        Ok(())
    }

    /// Asks for a job, and delivers it. False if there is none.
    fn reserve(&mut self, wait: Duration, credit: Credit) -> Result<bool> {
        let floor = self.floor;
        self.before.clone_from(&lock(&floor.freshness));
        if let Some(credit) = self.epoch.keep(credit) {
            floor.unused(credit);
            return Ok(false);
        }
        let asked = Instant::now();
        let client = &mut *self.client;
        let allowance = floor.config.push_timeout + wait;
        let fetched = match self.post.during(allowance, || client.reserve(wait)) {
            Ok(reserved) => self.examine(reserved, asked),
            Err(failure) => match failure.reply {
                // It means: renew what you hold, which is looked after before the next question.
                ServerReply::TimedOut | ServerReply::DeadlineSoon => Ok(None),
                _ => Err(failure),
            },
        };
        // None: the thread was given up. Closing the connection gives the job back.
        let Some(credit) = self.epoch.credit() else { return Ok(false) };
        match fetched {
            Ok(Some(reservation)) => {
                self.deliver(reservation, credit)?;
                Ok(true)
            }
            Ok(None) => {
                floor.unused(credit);
                Ok(false)
            }
            Err(failure) => {
                floor.unused(credit);
                Err(failure.error("reserve"))
            }
        }
    }

    /// Finds out what a job is. None if it was ours for a moment only.
    fn examine(&mut self, reserved: Reserved, asked: Instant) -> Answer<Option<Reservation>> {
        let Reserved { id, body } = reserved;
        let Decoded { message, terms } = codec::decode(&body);
        let ours = terms.is_some();
        let terms = match terms {
            Some(terms) if self.is_fresh(terms.priority, id) => terms,
            _ => match self.ask_about(id, terms)? {
                Some((terms, 0)) => terms,
                Some((terms, lost)) => {
                    let counted = Terms { attempt: terms.attempt.saturating_add(lost), ..terms };
                    if self.write_down(id, &message, counted)? {
                        return Ok(None);
                    }
                    terms
                }
                None => return Ok(None),
            },
        };
        let time_to_run = Duration::from_secs(terms.time_to_run.max(1).into());
        let mut renewed = asked;
        if asked.elapsed() > time_to_run / 4 {
            // It may have come at any moment since.
            renewed = Instant::now();
            if !found(self.ask(|client| client.touch(id)))? {
                return Ok(None);
            }
        }
        let ends = self.floor.config.max_lease.map(|most| Instant::now() + most);
        let (priority, attempt) = (terms.priority, terms.attempt);
        Ok(Some(Reservation { id, priority, time_to_run, message, attempt, ours, renewed, ends }))
    }

    /// True if a job surely comes for the first time. Judged by what had come before it was asked for,
    /// as those that are asked for at once arrive in any order; and by what has come since, for a request
    /// that waited for long.
    fn is_fresh(&self, priority: u32, id: u64) -> bool {
        let mut now = lock(&self.floor.freshness);
        let fresh = self.before.is_fresh(priority, id) || now.is_fresh(priority, id);
        if fresh {
            now.came(priority, id);
        }
        fresh
    }

    /// What the server knows of a job: its terms, and how many deliveries ended without a word that
    /// the body does not know of. None if it is gone.
    fn ask_about(&mut self, id: u64, terms: Option<Terms>) -> Answer<Option<(Terms, u32)>> {
        let stats = match self.ask(|client| client.stats_job(id)) {
            Ok(stats) => stats,
            Err(failure) if failure.reply == ServerReply::NotFound => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let reserves: u32 = stats.number("reserves").unwrap_or(1).max(1);
        let Some(terms) = terms else {
            let priority = stats.number("pri").unwrap_or_default();
            let time_to_run = stats.number("ttr").unwrap_or(1);
            return Ok(Some((Terms { attempt: reserves, priority, time_to_run }, 0)));
        };
        if reserves == 1 {
            lock(&self.floor.freshness).came(terms.priority, id);
        }
        let releases: u32 = stats.number("releases").unwrap_or_default();
        Ok(Some((terms, reserves.saturating_sub(releases.saturating_add(1)))))
    }

    /// Replaces a job by a copy that knows its attempt, so that no later consumer counts less. False
    /// if the server takes no copy.
    fn write_down(&mut self, id: u64, message: &Message, terms: Terms) -> Answer<bool> {
        let put = self.floor.put(message, Duration::ZERO, terms);
        match self.ask(|client| client.put(&put)) {
            Ok(()) => {}
            Err(failure) if failure.is_lost() => return Err(failure),
            Err(failure) => {
                self.floor.health.met(&failure.error("reserve"));
                return Ok(false);
            }
        }
        // If it is not there any more, somebody has it: a duplicate, but no loss.
        found(self.ask(|client| client.delete(id)))?;
        Ok(true)
    }

    fn deliver(&mut self, reservation: Reservation, credit: Credit) -> Result<()> {
        let floor = self.floor;
        let token = floor.tokens.fetch_add(1, Ordering::Relaxed);
        let Reservation { id, attempt, .. } = reservation;
        let message = reservation.message.clone();
        let Ok(before) = self.epoch.hold(token, reservation) else {
            floor.unused(credit);
            // Given up meanwhile: closing the connection gives the job back.
            return Ok(());
        };
        if let Some(before) = before {
            floor.withdraw(&[before]);
        }
        let acknowledger = Arc::clone(&self.epoch) as Arc<dyn jobs_core::Acknowledger>;
        let delivery = Delivery::new(message, token, acknowledger);
        let delivery = delivery.with_attempt(attempt).with_position(id);
        let gate = lock(&floor.gate);
        floor.fetching.fetch_sub(1, Ordering::AcqRel);
        if let Some(inlet) = gate.inlet.as_ref().filter(|_| gate.running) {
            let wakeup = inlet.deliver(credit, delivery);
            drop(gate);
            self.post.done();
            drop(wakeup);
            return Ok(());
        }
        drop(gate);
        drop(credit);
        self.give_back(token, false)
    }

    fn look_after(&mut self, due: Due) -> Result<()> {
        match due {
            Due::Renew(token) => self.renew(token).map(drop),
            Due::End(token) => {
                // What nobody has popped was not started.
                let started = self.floor.withdraw(&[token]).is_empty();
                self.give_back(token, started)?;
                if started {
                    self.floor.health.note("a job was not settled within `max_lease`".to_owned());
                }
                Ok(())
            }
        }
    }

    /// False if the reservation is over.
    fn renew(&mut self, token: Token) -> Result<bool> {
        let asked = Instant::now();
        // Looking at it forgets it if its time is over.
        let reservation = self.epoch.reservation(token);
        let renewed = match reservation {
            Some(Reservation { id, .. }) => self.ask(|client| client.touch(id)),
            None => {
                self.lapsed(token);
                return Ok(false);
            }
        };
        match found(renewed) {
            Ok(true) => {
                self.epoch.renew(token, asked);
                Ok(true)
            }
            Ok(false) => {
                self.epoch.forget(token);
                self.lapsed(token);
                Ok(false)
            }
            // Another answer makes no sense: the jobs come back, as from a connection that is lost.
            Err(failure) => Err(failure.error("extend")),
        }
    }

    fn lapsed(&self, token: Token) {
        self.floor.withdraw(&[token]);
        let trouble = "the server ended a reservation: its time to run was over";
        tracing::warn!(job.pipeline = %self.floor.health.pipeline, trouble, "a lease is lost");
        self.floor.health.note(trouble.to_owned());
    }

    /// Ends a reservation without a receipt's doing.
    fn give_back(&mut self, token: Token, started: bool) -> Result<()> {
        let Some(reservation) = self.epoch.reservation(token) else { return Ok(()) };
        self.epoch.forget(token);
        let ended = match started {
            true => self.again(&reservation, &reservation.message, Duration::ZERO, false),
            false => self.release(&reservation, Duration::ZERO),
        };
        match found(ended) {
            Err(failure) if failure.is_lost() => Err(failure.error("release")),
            // It comes back when its time to run is over.
            Err(failure) => {
                self.floor.health.met(&failure.error("release"));
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    fn carry_out(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Settle(token, ending) => self.settle(token, &ending),
            Order::Extend(token, by) => self.extend(token, by),
        }
    }

    fn extend(&mut self, token: Token, by: Duration) -> Result<()> {
        let renewed = self.renew(token);
        let reply = self.epoch.reply();
        if renewed? {
            self.epoch.extend_to(token, Instant::now() + by.min(A_YEAR));
            reply.done();
        }
        Ok(())
    }

    fn settle(&mut self, token: Token, ending: &Ending) -> Result<()> {
        // Looked at again: its time may have ended while it waited here.
        let Some(reservation) = self.epoch.reservation(token) else {
            drop(self.epoch.reply());
            return Ok(());
        };
        let (id, priority) = (reservation.id, reservation.priority);
        let settled = match ending {
            Ending::Ack => self.ask(|client| client.delete(id)),
            Ending::Reject => self.ask(|client| client.bury(id, priority)),
            Ending::Release => self.release(&reservation, Duration::ZERO),
            Ending::Abandon => {
                self.again(&reservation, &reservation.message, Duration::ZERO, false)
            }
            Ending::Requeue { message, delay, changed } => {
                self.again(&reservation, message, *delay, *changed)
            }
        };
        let reply = self.epoch.reply();
        // Something changed, so that the tube may have a job.
        (self.next, self.pace) = (Instant::now(), PACE.0);
        match found(settled) {
            Ok(settled) => {
                self.epoch.forget(token);
                if settled {
                    reply.done();
                }
                Ok(())
            }
            Err(failure) if failure.is_lost() => {
                // Whether it was settled nobody knows; the receipt is over.
                self.epoch.forget(token);
                Err(failure.error("settle"))
            }
            Err(failure) => {
                self.refuse(token, ending, reply, &failure);
                Ok(())
            }
        }
    }

    fn refuse(&mut self, token: Token, ending: &Ending, reply: Reply, failure: &Failure) {
        let error = failure.error("settle");
        self.floor.health.met(&error);
        if matches!(ending, Ending::Abandon) {
            // It comes back when its time to run is over.
            self.epoch.forget(token);
            return;
        }
        self.epoch.reopen(token);
        if let Some(job) = reply.refuse(error) {
            jobs_core::Acknowledger::abandon(&*self.epoch, job);
        }
    }

    fn release(&mut self, reservation: &Reservation, delay: Duration) -> Answer<()> {
        let Reservation { id, priority, .. } = *reservation;
        self.ask(|client| client.release(id, priority, whole_seconds(delay)))
    }

    /// Lets a job run again, with the attempt counted: as a copy that knows it, stored before the
    /// original is deleted. A body that is not of this suite stays as it is, as long as it can; the
    /// server counts for it.
    fn again(
        &mut self,
        reservation: &Reservation,
        message: &Message,
        delay: Duration,
        changed: bool,
    ) -> Answer<()> {
        if !reservation.ours && !changed {
            return self.release(reservation, delay);
        }
        let terms = Terms {
            attempt: reservation.attempt.saturating_add(1),
            priority: reservation.priority,
            time_to_run: whole_seconds(reservation.time_to_run),
        };
        let put = self.floor.put(message, delay, terms);
        match self.ask(|client| client.put(&put)) {
            Ok(()) => self.ask(|client| client.delete(reservation.id)),
            // The server takes no copy now, or one this large. Better uncounted than not at all.
            Err(failure)
                if !changed && !failure.is_lost() && failure.reply != ServerReply::Buried =>
            {
                self.floor.health.met(&failure.error("settle"));
                self.release(reservation, delay)
            }
            Err(failure) => Err(failure),
        }
    }
}

/// False if the server does not know the job, or not as one of this connection.
fn found(answer: Answer<()>) -> Answer<bool> {
    match answer {
        Ok(()) => Ok(true),
        Err(failure) if failure.reply == ServerReply::NotFound => Ok(false),
        Err(failure) => Err(failure),
    }
}
