//! A complete driver in one file. `cargo run -p jobs-kit --example custom_driver` proves it.
//!
//! A driver is four traits of `jobs-core`. Read their docs first; the sections follow them:
//! 1. [`Constructor`] checks a pipeline's options without I/O, and owns what pipelines share.
//! 2. [`Plan`] tells what the pipeline will be able to do, and connects it.
//! 3. [`Driver`] pushes, and consumes into an [`Inlet`]: one credit per job in this process.
//! 4. [`Acknowledger`] takes back each job with the [`Outcome`] of its delivery.
//!
//! Section 5 stands for a broker's client: queues in this process. Section 6 is the proof.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use jobs_core::{
    Acknowledger, Attempts, Capabilities, Constructor, Delivery, Driver, Error, ErrorKind,
    Extending, Inlet, Message, Options, Outcome, Pipeline, Plan, Problem, Refusal, Registry,
    Result, Settling, State, Support, Token, Unsettled, async_trait,
};
use tokio::{sync::watch, task::JoinSet};

const NAME: &str = "fifo";
const UNPOISONED: &str = "nothing panics under this lock";

// ---- 1. Constructor: a value of the application. Two of them share nothing. ----
#[derive(Default)]
struct FifoConstructor(Queues);

/// The options of a pipeline. `deny_unknown_fields` makes a typo a problem.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Pipelines that name the same queue share it.
    queue: String,
    /// Most jobs in this process, 100 by default. Not zero: that would deliver nothing.
    prefetch: Option<std::num::NonZeroU16>,
}

impl Constructor for FifoConstructor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, shared: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>> {
        Ok(Box::new(FifoPlan(Arc::clone(&self.0), pipeline.parse(shared)?, pipeline)))
    }
}

// ---- 2. Plan: a configuration that is known to be good. ----
struct FifoPlan(Queues, Settings, Pipeline);

/// Claims what is kept and no more: the kit tries what is claimed, and what is not.
fn capabilities() -> Capabilities {
    let mut capabilities = Capabilities::default();
    // With changed headers. A delay is refused all the same, because `delay` is not offered.
    capabilities.requeue = Support::Native;
    capabilities.acks_confirmed = true;
    capabilities.attempts = Attempts::Exact;
    capabilities.uncounted_release = true;
    capabilities
}

#[async_trait]
impl Plan for FifoPlan {
    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn connect(self: Box<Self>) -> Result<Arc<dyn Driver>> {
        let Self(queues, settings, pipeline) = *self;
        let mut queues = queues.lock().expect(UNPOISONED);
        let queue = queues.entry(settings.queue.clone()).or_default().clone();
        let session = Arc::new(Session { queue, ..Session::default() });
        Ok(Arc::new(FifoDriver { pipeline, settings, session, consuming: Default::default() }))
    }
}

// ---- 3. Driver: one pipeline on one broker. ----
#[derive(Debug)]
struct FifoDriver {
    pipeline: Pipeline,
    settings: Settings,
    session: Arc<Session>,
    /// Serialises run, pause, resume and stop. None while idle or stopped.
    consuming: tokio::sync::Mutex<Option<Consuming>>,
}

#[derive(Debug)]
struct Consuming {
    inlet: Arc<Inlet>,
    paused: bool,
    /// At most one. A set, because its shutdown is cancel safe and dropping it aborts.
    task: JoinSet<()>,
}

async fn consume(session: Arc<Session>, inlet: Arc<Inlet>) {
    loop {
        // The credit first: a job that has no place in this process stays at the broker.
        let credit = inlet.credit().await;
        let (message, attempt) = fetch(&session.queue).await;
        // No await from here to the delivery: a pause in between would forget the job.
        let token = session.tokens.fetch_add(1, Ordering::Relaxed);
        session.unsettled.lock().expect(UNPOISONED).insert(token, (message.clone(), attempt));
        let acknowledger = Arc::<Session>::clone(&session);
        inlet.deliver(credit, Delivery::new(message, token, acknowledger).with_attempt(attempt));
    }
}

impl FifoDriver {
    /// Every error says on which driver and pipeline it was met.
    fn named(&self, error: Error) -> Error {
        error.with_driver(NAME).with_pipeline(self.pipeline.shared_name())
    }

    fn expect_open(&self, operation: &'static str) -> Result<()> {
        let closed = || self.named(Error::new(ErrorKind::Closed, operation));
        if self.session.stopped.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }

    /// In this order: hold the lane, end the task that fills it, give back what is in it.
    async fn end_consuming(&self) -> Result<()> {
        let mut consuming = self.consuming.lock().await;
        let Some(Consuming { inlet, paused, task }) = &mut *consuming else { return Ok(()) };
        *paused = true;
        inlet.hold();
        task.shutdown().await;
        inlet.hold_and_release().await
    }
}

#[async_trait]
impl Driver for FifoDriver {
    fn capabilities(&self) -> Capabilities {
        capabilities()
    }

    async fn push(&self, message: Message) -> Result<()> {
        self.expect_open("push")?;
        capabilities().admit(&message).map_err(|error| self.named(error))?;
        self.session.queue.send_modify(|q| q.push_back((message, 1)));
        Ok(())
    }

    async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        let mut answers = Vec::with_capacity(messages.len());
        for message in messages {
            answers.push(self.push(message).await);
        }
        answers
    }

    async fn run(&self, inlet: Inlet) -> Result<()> {
        let mut consuming = self.consuming.lock().await;
        self.expect_open("run")?;
        if consuming.is_some() {
            return Err(self.named(Error::new(ErrorKind::InvalidState, "run")));
        }
        inlet.grant(self.settings.prefetch.map_or(100, |most| most.get().into()));
        *consuming = Some(Consuming { inlet: inlet.into(), paused: true, task: JoinSet::new() });
        drop(consuming);
        self.resume().await
    }

    async fn pause(&self) -> Result<()> {
        self.expect_open("pause")?;
        self.end_consuming().await
    }

    async fn resume(&self) -> Result<()> {
        let mut consuming = self.consuming.lock().await;
        self.expect_open("resume")?;
        let never_run = || self.named(Error::new(ErrorKind::InvalidState, "resume"));
        let Consuming { inlet, paused, task } = consuming.as_mut().ok_or_else(never_run)?;
        if *paused {
            // A pause that was cancelled half-way has left its task.
            task.shutdown().await;
            inlet.open();
            task.spawn(consume(Arc::clone(&self.session), Arc::clone(inlet)));
            *paused = false;
        }
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        self.session.stopped.store(true, Ordering::Release);
        let answer = self.end_consuming().await;
        // What workers still hold runs elsewhere: from here on their receipts are refused.
        let held = std::mem::take(&mut *self.session.unsettled.lock().expect(UNPOISONED));
        let held = held.into_values().rev().map(|(message, attempt)| (message, attempt + 1));
        self.session.queue.send_modify(|q| held.for_each(|entry| q.push_front(entry)));
        // Last, so that a stop that was cancelled goes on when it is called again.
        *self.consuming.lock().await = None;
        answer
    }

    async fn state(&self) -> Result<State> {
        self.expect_open("state")?;
        let mut state = State::new(self.pipeline.shared_name(), NAME);
        state.queue = self.settings.queue.as_str().into();
        state.priority = self.pipeline.priority();
        state.ready = self.consuming.lock().await.as_ref().is_some_and(|c| !c.paused);
        // Not `inlet.active()`, which counts the credit that waits in `consume`.
        state.active = self.session.unsettled.lock().expect(UNPOISONED).len() as u64;
        state.reserved = Some(self.session.queue.borrow().len() as u64);
        Ok(state)
    }
}

// ---- 4. Acknowledger: one per connection, or whatever else a token is only valid on. ----
#[derive(Debug, Default)]
struct Session {
    queue: Queue,
    stopped: AtomicBool,
    /// Never used twice, so that a receipt that is out of date finds nothing.
    tokens: AtomicU64,
    unsettled: Mutex<BTreeMap<Token, Entry>>,
}

impl Session {
    /// Ends a delivery, and puts its job where it belongs now.
    fn end(&self, token: Token, place: impl FnOnce(&mut VecDeque<Entry>)) -> Settling {
        if self.unsettled.lock().expect(UNPOISONED).remove(&token).is_none() {
            return Settling::refused(Refusal::lease_lost(NAME));
        }
        self.queue.send_modify(place);
        Settling::done()
    }
}

impl Acknowledger for Session {
    /// Takes effect at once. A refused job goes back to its worker; any other frees its credit.
    fn settle(&self, job: Unsettled, outcome: Outcome) -> Settling {
        let (token, message, attempt) = (job.token, job.message.clone(), job.attempt);
        let settling = match outcome {
            // There are no dead letters: what is rejected is discarded.
            Outcome::Ack | Outcome::Reject => Ok(self.end(token, |_| {})),
            Outcome::Release => Ok(self.end(token, |q| q.push_front((message, attempt)))),
            Outcome::Requeue { delay, headers } => {
                let again = capabilities().admit_requeue(&message, delay, headers);
                again.map(|again| self.end(token, |q| q.push_back((again, attempt + 1))))
            }
        };
        let refusal = |error: Error| Refusal { error: error.with_driver(NAME), job: Some(job) };
        settling.unwrap_or_else(|error| Settling::refused(refusal(error)))
    }

    fn extend(&self, _: Token, _: std::time::Duration) -> Extending {
        Extending::ready(Err(Error::new(ErrorKind::Unsupported, "extend").with_driver(NAME)))
    }

    /// As a release, but it counts: somebody may have begun.
    fn abandon(&self, job: Unsettled) {
        self.end(job.token, |q| q.push_front((job.message, job.attempt + 1)));
    }
}

// ---- 5. The broker: queues by name. ----
type Queues = Arc<Mutex<BTreeMap<String, Queue>>>;
/// What is ready, and a wake-up for those who wait for it.
type Queue = watch::Sender<VecDeque<Entry>>;
/// A message, and the attempt it will be delivered as.
type Entry = (Message, u32);

async fn fetch(queue: &Queue) -> Entry {
    let mut first = None;
    while first.is_none() {
        // Again and again: another consumer may be faster.
        queue.subscribe().wait_for(|q| !q.is_empty()).await.expect("`queue` is the sender");
        queue.send_modify(|q| first = q.pop_front());
    }
    first.expect("the loop ends with one")
}

// ---- 6. The proof: all the kit needs is how to make a pipeline on an empty queue. ----
struct Harness(Registry);

#[async_trait]
impl jobs_kit::Harness for Harness {
    fn registry(&self) -> &Registry {
        &self.0
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        Ok(Pipeline::new(name, NAME).with_option("queue", name))
    }
}

/// In a crate of your own this is a test with `harness = false`.
fn main() -> std::process::ExitCode {
    let harness = || {
        let mut registry = Registry::new();
        registry.register(FifoConstructor::default()).expect("the only driver");
        Harness(registry)
    };
    jobs_kit::Suite::new().configuration("default", harness).run()
}
