//! What a case is given: fresh pipelines, deadlines, and an end that leaves nothing behind.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jobs_core::{Bytes, Driver, Error, ErrorKind, JobId, Message, Pipeline, Plan, Queue, Result};
use tokio::runtime::Handle;

use crate::wait::{eventually, within};
use crate::{Fault, Harness, TestPipeline, Unexpected, poll_times};

/// The world of one case. Clones are the same world.
#[derive(Clone)]
pub struct Fixture {
    inner: Arc<Inner>,
}

struct Inner {
    harness: Arc<dyn Harness>,
    messages: AtomicU64,
    connections: AtomicUsize,
    /// Tasks that were alive before the first pipeline was connected.
    tasks: OnceLock<usize>,
    configured: Mutex<Vec<Pipeline>>,
    opened: Mutex<Vec<Arc<dyn Driver>>>,
    /// Faults that were begun and not ended.
    faults: Mutex<Vec<Fault>>,
}

impl Fixture {
    pub(crate) fn new(harness: Arc<dyn Harness>) -> Self {
        Self {
            inner: Arc::new(Inner {
                harness,
                messages: AtomicU64::new(0),
                connections: AtomicUsize::new(0),
                tasks: OnceLock::new(),
                configured: Mutex::default(),
                opened: Mutex::default(),
                faults: Mutex::default(),
            }),
        }
    }

    /// The harness of this configuration.
    #[must_use]
    pub fn harness(&self) -> &dyn Harness {
        &*self.inner.harness
    }

    /// How long the kit waits for what must happen.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.harness().deadline()
    }

    /// A message with a fresh id, told apart by its payload.
    pub fn message(&self, payload: impl Into<Bytes>) -> Message {
        let number = self.inner.messages.fetch_add(1, Ordering::Relaxed);
        Message::new("kit.case", payload).with_header("kit-number", number.to_string())
    }

    /// The configuration of a pipeline on a queue of its own.
    ///
    /// # Errors
    /// The harness's.
    pub async fn configure(&self) -> Result<Pipeline> {
        let config = self.harness().pipeline(&format!("kit-{}", JobId::random())).await?;
        self.inner.tasks.get_or_init(alive_tasks);
        lock(&self.inner.configured).push(config.clone());
        Ok(config)
    }

    /// As [`configure`](Self::configure), with a prefetch.
    ///
    /// # Errors
    /// The harness's.
    pub async fn configure_prefetch(&self, prefetch: u32) -> Result<Pipeline> {
        Ok(self.harness().with_prefetch(self.configure().await?, prefetch))
    }

    /// As [`configure`](Self::configure), with leases that end after
    /// [`Harness::max_lease`]. For cases that need [`Feature::MaxLease`](crate::Feature).
    ///
    /// # Errors
    /// The harness's, or that it has no such leases.
    pub async fn configure_lease(&self) -> Result<Pipeline> {
        let harness = self.harness();
        let config = harness.with_max_lease(self.configure().await?, harness.max_lease());
        config.ok_or_else(|| unavailable("a lease that ends"))
    }

    /// As [`configure`](Self::configure), with room for `capacity` jobs. For cases that need
    /// [`Feature::Capacity`](crate::Feature).
    ///
    /// # Errors
    /// The harness's, or that it has no such queues.
    pub async fn configure_capacity(
        &self,
        capacity: u32,
        push_timeout: Duration,
    ) -> Result<Pipeline> {
        // No more jobs than that exist, so that the prefetch limits nothing.
        let config = self.configure_prefetch(capacity).await?;
        let config = self.harness().with_capacity(config, capacity, push_timeout);
        config.ok_or_else(|| unavailable("a queue that fills"))
    }

    /// Checks a configuration without connecting.
    ///
    /// # Errors
    /// All problems.
    pub fn plan(&self, config: Pipeline) -> Result<Box<dyn Plan>> {
        let harness = self.harness();
        let plan = harness.registry().plan(&harness.shared_options(), config);
        plan.map_err(|problems| Error::from_problems("plan", problems))
    }

    /// Connects a pipeline that does not consume yet. Its driver is stopped when the case ends.
    ///
    /// # Errors
    /// As planning and connecting.
    pub async fn connect(&self, config: Pipeline) -> Result<TestPipeline> {
        self.connect_to(config, Queue::new()).await
    }

    /// As [`connect`](Self::connect), with a queue that may serve several pipelines.
    ///
    /// # Errors
    /// As planning and connecting.
    pub async fn connect_to(&self, config: Pipeline, queue: Queue) -> Result<TestPipeline> {
        let number = self.inner.connections.fetch_add(1, Ordering::Relaxed);
        let connection = self.harness().connection(config.clone(), number);
        let driver = self.plan(connection)?.connect().await?;
        lock(&self.inner.opened).push(Arc::clone(&driver));
        Ok(TestPipeline::new(self.clone(), config, driver, queue))
    }

    /// Connects a pipeline and starts consuming.
    ///
    /// # Errors
    /// As connecting and [`Driver::run`].
    pub async fn start(&self, config: Pipeline) -> Result<TestPipeline> {
        let pipeline = self.connect(config).await?;
        pipeline.run().await?;
        Ok(pipeline)
    }

    /// A fresh pipeline that consumes.
    ///
    /// # Errors
    /// As [`configure`](Self::configure) and [`start`](Self::start).
    pub async fn pipeline(&self) -> Result<TestPipeline> {
        self.start(self.configure().await?).await
    }

    /// A fresh pipeline that consumes, with room for `jobs` in the process.
    ///
    /// # Errors
    /// As [`pipeline`](Self::pipeline).
    pub async fn pipeline_of(&self, jobs: usize) -> Result<TestPipeline> {
        let prefetch = u32::try_from(jobs).unwrap_or(u32::MAX);
        self.start(self.configure_prefetch(prefetch).await?).await
    }

    /// Makes the broker fit to suffer this fault, after what is declared was declared. See
    /// [`Harness::sync`].
    ///
    /// # Errors
    /// The harness's.
    pub async fn prepare(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill => self.harness().sync().await,
            _ => Ok(()),
        }
    }

    /// Begins a fault. What a case does not [`end`](Self::end) ends with the case.
    ///
    /// # Errors
    /// The harness's.
    pub async fn begin(&self, fault: Fault) -> Result<()> {
        lock(&self.inner.faults).push(fault);
        self.harness().begin(fault).await
    }

    /// Ends a fault.
    ///
    /// # Errors
    /// The harness's.
    pub async fn end(&self, fault: Fault) -> Result<()> {
        self.harness().end(fault).await?;
        lock(&self.inner.faults).retain(|begun| *begun != fault);
        Ok(())
    }

    /// Begins a fault and ends it: at once, or after [`Harness::silence`] if it is a stall.
    ///
    /// # Errors
    /// The harness's.
    pub async fn inject(&self, fault: Fault) -> Result<()> {
        self.begin(fault).await?;
        if fault == Fault::Stall {
            tokio::time::sleep(self.harness().silence()).await;
        }
        self.end(fault).await
    }

    /// Awaits what must happen.
    ///
    /// # Errors
    /// If it does not within the deadline.
    pub async fn within<T>(
        &self,
        what: &str,
        future: impl Future<Output = T>,
    ) -> Result<T, Unexpected> {
        within(self.deadline(), what, future).await
    }

    /// Asks until the answer is `Ok`.
    ///
    /// # Errors
    /// If it is not within the deadline; with the last answer.
    pub async fn eventually<T>(
        &self,
        what: &str,
        condition: impl AsyncFnMut() -> Result<T, String>,
    ) -> Result<T, Unexpected> {
        eventually(self.deadline(), what, condition).await
    }

    /// Polls a future some times and drops it, see [`poll_times`].
    pub async fn cancel_after<F: Future>(&self, polls: usize, future: F) -> Option<F::Output> {
        poll_times(future, polls, self.harness().quiet()).await
    }

    /// Demands that a call was refused for good, with nothing stored.
    ///
    /// # Errors
    /// If it was not.
    pub fn expect_refused<T>(&self, answer: Result<T>, kind: ErrorKind) -> Result<(), Unexpected> {
        let error = match answer {
            Ok(_) => return Err(Unexpected::new(format!("expected {kind:?}, found success"))),
            Err(error) => error,
        };
        if error.kind() != kind || error.is_retryable() || error.may_be_stored() {
            let message = format!("expected {kind:?}, final and not stored, found {error:?}");
            return Err(Unexpected::new(message));
        }
        Ok(())
    }

    /// Waits until no more tasks are alive than before the first pipeline was connected. All
    /// drivers must have been stopped.
    ///
    /// # Errors
    /// If some stay alive.
    pub async fn expect_no_tasks(&self) -> Result<(), Unexpected> {
        let before = *self.inner.tasks.get_or_init(alive_tasks);
        self.eventually("tasks alive after stop", async || match alive_tasks() {
            now if now <= before => Ok(()),
            now => Err(format!("{now}, with {before} before the first pipeline")),
        })
        .await
    }

    /// Ends faults, stops every driver, looks for what is left, and cleans up. The first failure
    /// counts; the rest is done all the same.
    pub(crate) async fn close(&self) -> Result<(), Unexpected> {
        // Held until the end: it is the stop that must end their tasks, not the drop.
        let opened = lock(&self.inner.opened).clone();
        let configured = lock(&self.inner.configured).clone();
        let faults = lock(&self.inner.faults).clone();
        let mut answer = Ok(());
        for fault in faults.into_iter().rev() {
            let ended = self.end(fault).await;
            answer = answer
                .and(ended.map_err(|error| Unexpected::new(format!("end `{fault}`: {error:?}"))));
        }
        for driver in &opened {
            answer = answer.and(self.stop(driver).await);
        }
        if answer.is_ok() {
            answer = self.expect_no_tasks().await;
        }
        for config in &configured {
            let cleaned = self.harness().clean_up(config).await;
            answer = answer
                .and(cleaned.map_err(|error| Unexpected::new(format!("clean-up: {error:?}"))));
        }
        answer
    }

    async fn stop(&self, driver: &Arc<dyn Driver>) -> Result<(), Unexpected> {
        let stopped = self.within("stop at the end of the case", driver.stop()).await?;
        stopped.map_err(|error| Unexpected::new(format!("stop at the end of the case: {error:?}")))
    }
}

fn lock<T>(values: &Mutex<T>) -> MutexGuard<'_, T> {
    values.lock().unwrap_or_else(PoisonError::into_inner)
}

fn alive_tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn unavailable(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, "configure")
        .with_context(format!("the harness has no {what}"))
}

impl fmt::Debug for Fixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fixture").finish_non_exhaustive()
    }
}
