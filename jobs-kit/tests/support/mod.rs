//! A complete driver for a queue in this process, honest unless it is given a defect.

mod harness;
mod link;
mod storage;

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{
    Acknowledger, Attempts, Capabilities, Driver, Error, ErrorKind, Extending, Inlet, Lease,
    Message, Outcome, Pipeline, Refusal, Result, Settling, State, Support, Token, Unsettled,
    async_trait,
};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

pub(crate) use harness::Small;
use storage::Storage;

const NAME: &str = "small";
/// How long calls other than a push wait for the broker.
const PATIENCE: Duration = Duration::from_millis(300);
const MAX_DELAY: Duration = Duration::from_secs(24 * 3600);

/// What a broken driver does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "the honest driver is tested without them")]
pub(crate) enum Defect {
    LosesJobOnRequeue,
    DeliversWhilePaused,
    ExceedsPrefetch,
    AcksNeighbours,
    LosesWakeUpAtPrefetchOne,
    ForgetsAttempt,
    LeaksTask,
    LiesInState,
    AcceptsStaleReceipt,
    StaleReceiptSettlesTheNext,
    SwallowsFailedSettle,
    HandsJobOverTwice,
    IgnoresDelay,
    LosesDroppedJob,
    CountsReleases,
    DropsChangedHeaders,
    KeepsJobsAfterStop,
    StoresBadMessages,
    PushesAfterStop,
    IgnoresPriority,
    LosesJobsOnPause,
    LosesNewestAtKill,
    LosesUnsettledAtKill,
    LosesDelayedAtKill,
    ForgetsToSubscribeAgain,
    ForgetsPauseAtCut,
    SettlesBeforeItStores,
    LeavesConsumerBehind,
    FailsPushesAtOnce,
    DeniesWhatItStored,
    LiesInStateWhileAway,
    WaitsInStopForEver,
}

/// What the options of a pipeline come to.
#[derive(Clone, Debug)]
struct Config {
    pipeline: Pipeline,
    prefetch: usize,
    max_lease: Option<Duration>,
    push_timeout: Duration,
}

impl Config {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.delay = Support::Native;
        capabilities.priority = Support::Native;
        capabilities.reject = Support::Native;
        capabilities.requeue = Support::Native;
        capabilities.durable = true;
        capabilities.acks_confirmed = true;
        capabilities.attempts = Attempts::Exact;
        capabilities.uncounted_release = true;
        capabilities.max_delay = Some(MAX_DELAY);
        capabilities.max_payload = Some(1 << 16);
        capabilities.lease = self.max_lease.map_or(Lease::Connection, |_| Lease::Fixed);
        capabilities
    }
}

#[derive(Debug)]
struct SmallDriver {
    config: Config,
    storage: Arc<Storage>,
    id: u64,
    closed: watch::Sender<bool>,
    consumer: Mutex<Option<Consumer>>,
}

#[derive(Debug)]
struct Consumer {
    inlet: Arc<Inlet>,
    task: JoinHandle<()>,
}

impl SmallDriver {
    fn new(config: Config, storage: Arc<Storage>) -> Self {
        let id = storage.next_consumer();
        Self { config, storage, id, closed: watch::Sender::new(false), consumer: Mutex::default() }
    }

    fn has(&self, defect: Defect) -> bool {
        self.storage.has(defect)
    }

    fn named(&self, error: Error) -> Error {
        error.with_driver(NAME).with_pipeline(self.config.pipeline.shared_name())
    }

    fn open(&self, operation: &'static str) -> Result<()> {
        match *self.closed.borrow() {
            true => Err(self.named(Error::new(ErrorKind::Closed, operation))),
            false => Ok(()),
        }
    }

    /// The connection, waiting for it a little.
    async fn connected(&self, operation: &'static str) -> Result<u64> {
        let connected = self.storage.link().up_within(PATIENCE).await;
        connected.ok_or_else(|| self.away(operation))
    }

    fn away(&self, operation: &'static str) -> Error {
        self.named(Error::new(ErrorKind::Connection, operation).transient())
    }

    /// Waits for the broker, at most for `push_timeout`, or until the driver is stopped.
    async fn sendable(&self) -> Result<u64> {
        let mut closed = self.closed.subscribe();
        if self.has(Defect::FailsPushesAtOnce) || *closed.borrow_and_update() {
            return self.storage.link().epoch().ok_or_else(|| self.away("push"));
        }
        tokio::select! {
            up = self.storage.link().up_within(self.config.push_timeout) => {
                up.ok_or_else(|| self.away("push"))
            }
            _ = closed.changed() => self.open("push").map(|()| 0),
        }
    }

    async fn store(&self, message: Message) -> Result<()> {
        if !self.has(Defect::PushesAfterStop) {
            self.open("push")?;
        }
        if !self.has(Defect::StoresBadMessages) {
            self.capabilities().admit(&message).map_err(|error| self.named(error))?;
        }
        let epoch = match self.sendable().await {
            Err(error) if self.has(Defect::DeniesWhatItStored) => {
                self.storage.push(message, self.config.pipeline.priority(), 0);
                return Err(error);
            }
            answer => answer?,
        };
        if !self.storage.push(message, self.config.pipeline.priority(), epoch) {
            return Err(self.away("push"));
        }
        // The confirmation is a turn later, and may not come any more.
        tokio::task::yield_now().await;
        match self.storage.link().is(epoch) {
            true => Ok(()),
            false => Err(self.away("push").maybe_stored()),
        }
    }

    async fn hold(&self, inlet: &Inlet) -> Result<()> {
        self.storage.pause(self.id, true);
        if self.has(Defect::LosesJobsOnPause) {
            inlet.hold();
            inlet.take_back().into_iter().for_each(|job| drop(job.ack()));
        }
        inlet.hold_and_release().await
    }
}

#[async_trait]
impl Driver for SmallDriver {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities()
    }

    async fn push(&self, message: Message) -> Result<()> {
        self.store(message).await
    }

    async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        let mut answers = Vec::with_capacity(messages.len());
        for message in messages {
            answers.push(self.store(message).await);
        }
        answers
    }

    async fn run(&self, inlet: Inlet) -> Result<()> {
        let mut consumer = self.consumer.lock().await;
        self.open("run")?;
        if consumer.is_some() {
            return Err(self.named(Error::new(ErrorKind::InvalidState, "run")));
        }
        self.connected("run").await?;
        let prefetch = self.config.prefetch;
        inlet.grant(prefetch + usize::from(self.has(Defect::ExceedsPrefetch)));
        if self.has(Defect::LeaksTask) {
            tokio::spawn(std::future::pending::<()>());
        }
        let inlet = Arc::new(inlet);
        let receipts = Arc::new(Receipts {
            storage: Arc::clone(&self.storage),
            capabilities: self.capabilities(),
            quiet: prefetch == 1 && self.has(Defect::LosesWakeUpAtPrefetchOne),
        });
        let (storage, id, max_lease) = (Arc::clone(&self.storage), self.id, self.config.max_lease);
        let lane = Arc::clone(&inlet);
        let task =
            tokio::spawn(async move { storage.consume(id, &lane, receipts, max_lease).await });
        *consumer = Some(Consumer { inlet, task });
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        let consumer = self.consumer.lock().await;
        self.open("pause")?;
        match &*consumer {
            Some(_) if self.has(Defect::DeliversWhilePaused) => Ok(()),
            Some(consumer) => self.hold(&consumer.inlet).await,
            None => Ok(()),
        }
    }

    async fn resume(&self) -> Result<()> {
        let consumer = self.consumer.lock().await;
        self.open("resume")?;
        let Some(consumer) = &*consumer else {
            return Err(self.named(Error::new(ErrorKind::InvalidState, "resume")));
        };
        consumer.inlet.open();
        self.storage.pause(self.id, false);
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        let mut consumer = self.consumer.lock().await;
        self.closed.send_replace(true);
        if self.has(Defect::WaitsInStopForEver) {
            self.storage.link().up().await;
        }
        let away = self.storage.link().epoch().is_none();
        if away && self.has(Defect::LeavesConsumerBehind) {
            consumer.take().into_iter().for_each(std::mem::forget);
        }
        if let Some(Consumer { inlet, task }) = &mut *consumer {
            let released = self.hold(inlet).await;
            self.storage.detach(self.id);
            task.abort();
            // A task that was aborted has nothing else to say.
            let _ = task.await;
            *consumer = None;
            return released;
        }
        Ok(())
    }

    async fn state(&self) -> Result<State> {
        self.open("state")?;
        let link = self.storage.link();
        if link.is_silent() {
            let answer = link.up_within(PATIENCE).await;
            answer
                .ok_or_else(|| self.named(Error::new(ErrorKind::Timeout, "state").transient()))?;
        } else if link.epoch().is_none() && !self.has(Defect::LiesInStateWhileAway) {
            return Err(self.away("state"));
        }
        let consumer = self.consumer.lock().await;
        let mut state = State::new(self.config.pipeline.shared_name(), NAME);
        state.priority = self.config.pipeline.priority();
        state.ready = consumer.is_some() && !self.storage.is_paused(self.id);
        state.active = consumer.as_ref().map_or(0, |consumer| consumer.inlet.active() as u64);
        self.storage.fill_in(&mut state);
        Ok(state)
    }
}

/// Settles the jobs of one consumer.
struct Receipts {
    storage: Arc<Storage>,
    capabilities: Capabilities,
    /// The defect: settling wakes nobody.
    quiet: bool,
}

impl Receipts {
    fn admit(&self, job: &Unsettled, outcome: &Outcome) -> Result<()> {
        let Outcome::Requeue { delay, headers } = outcome else { return Ok(()) };
        self.capabilities.admit_requeue(&job.message, *delay, headers.clone()).map(drop)
    }

    fn wake(&self) {
        if !self.quiet {
            self.storage.wake();
        }
    }
}

impl Acknowledger for Receipts {
    fn settle(&self, job: Unsettled, outcome: Outcome) -> Settling {
        let outcome = match self.admit(&job, &outcome) {
            Ok(()) => outcome,
            Err(_) if self.storage.has(Defect::SwallowsFailedSettle) => Outcome::Ack,
            Err(error) => return Settling::refused(Refusal { error, job: Some(job) }),
        };
        let settled = self.storage.settle(job.token, outcome);
        drop(job.credit);
        self.wake();
        match settled || self.storage.has(Defect::AcceptsStaleReceipt) {
            true => Settling::done(),
            false => Settling::refused(Refusal::lease_lost(NAME)),
        }
    }

    fn extend(&self, _: Token, _: Duration) -> Extending {
        Extending::ready(Err(Error::new(ErrorKind::Unsupported, "extend").with_driver(NAME)))
    }

    fn abandon(&self, job: Unsettled) {
        if self.storage.has(Defect::LosesDroppedJob) {
            self.storage.settle(job.token, Outcome::Ack);
        } else {
            self.storage.give_back(job.token);
        }
        drop(job.credit);
        self.wake();
    }
}
