//! One pipeline of an application: its driver, and where it stands.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Capabilities, Driver, Error, ErrorKind, Message, Pipeline, Queue, Result, State};
use tokio::sync::Mutex;

/// A pipeline by name, to push to and to control. Cheap to clone.
///
/// After its pipeline was [destroyed](crate::Jobs::destroy) every call answers `Closed`.
#[derive(Clone, Debug)]
pub struct PipelineHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pipeline: Pipeline,
    driver: Arc<dyn Driver>,
    queue: Queue,
    timeout: Duration,
    /// Held through each call that changes it, so that these follow one another.
    consuming: Mutex<Consuming>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Consuming {
    /// The driver was never run.
    Idle,
    /// It is being run; found like this by a later call if the one before was dropped.
    Starting,
    /// It was run: paused or not.
    Started,
}

impl PipelineHandle {
    pub(crate) fn new(
        pipeline: Pipeline,
        driver: Arc<dyn Driver>,
        queue: Queue,
        timeout: Duration,
    ) -> Self {
        let consuming = Mutex::new(Consuming::Idle);
        Self { shared: Arc::new(Shared { pipeline, driver, queue, timeout, consuming }) }
    }

    /// The pipeline's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared.pipeline.name()
    }

    /// The name of its driver.
    #[must_use]
    pub fn driver(&self) -> &str {
        self.shared.pipeline.driver()
    }

    /// What it can do, known since it was connected.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.shared.driver.capabilities()
    }

    /// Hands a message to the broker and waits until the broker has taken responsibility for it.
    ///
    /// See [`Driver::push`] for what `Ok` means, the errors and what happens when dropped.
    ///
    /// # Errors
    /// `InvalidMessage`, `PayloadTooLarge` and `Unsupported` before any I/O; `NotFound`,
    /// `InvalidState`, `Denied`; `Closed` once the pipeline is stopped; `Broker` for the rest. `Full`,
    /// `Throttled`, `Connection` and `Timeout` are transient.
    pub async fn push(&self, message: Message) -> Result<()> {
        // For the log only: a clone shares its content.
        let pushed = message.clone();
        let answer = self.shared.driver.push(message).await;
        answer.map_err(|error| {
            let error = error.with_pipeline(self.shared.pipeline.shared_name());
            tracing::warn!(
                job.id = %pushed.id(), job.name = pushed.name(), job.pipeline = self.name(), %error, "push failed"
            );
            error
        })
    }

    /// Pushes many messages: one result each, in the order given. A bad message fails alone.
    ///
    /// # Errors
    /// Per message as for [`push`](Self::push).
    pub async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        let pushed = messages.len();
        let mut answers = self.shared.driver.push_batch(messages).await;
        let failed = answers.iter().filter(|answer| answer.is_err()).count();
        if failed > 0 {
            tracing::warn!(job.pipeline = self.name(), pushed, failed, "push of a batch failed");
        }
        for answer in &mut answers {
            *answer = std::mem::replace(answer, Ok(())).map_err(|error| self.named(error));
        }
        answers
    }

    /// Stops consuming until [`resume`](Self::resume): fetches nothing, hands out nothing, gives
    /// back what nobody took. Pushing and settling go on. Idempotent.
    ///
    /// # Errors
    /// `Closed`; `Timeout` (transient) after the configured time; `Unsupported` where pausing would
    /// destroy the queue.
    pub async fn pause(&self) -> Result<()> {
        let _consuming = self.shared.consuming.lock().await;
        self.within("pause", self.shared.driver.pause()).await
    }

    /// Goes on consuming, or starts if the pipeline never has. Idempotent.
    ///
    /// # Errors
    /// `Closed`; `Connection` and `Timeout` (transient). If the broker does not let it start within
    /// the configured time the pipeline is stopped, and has to be destroyed and declared again.
    ///
    /// # Cancel safety
    /// Not cancel safe when it starts: then the pipeline answers `InvalidState` from now on, and has
    /// to be destroyed.
    pub async fn resume(&self) -> Result<()> {
        let mut consuming = self.shared.consuming.lock().await;
        match *consuming {
            Consuming::Started => self.within("resume", self.shared.driver.resume()).await,
            Consuming::Idle => self.start(&mut consuming).await,
            Consuming::Starting => Err(self.named(
                Error::new(ErrorKind::InvalidState, "resume")
                    .with_context("an earlier start was interrupted, destroy the pipeline"),
            )),
        }
    }

    async fn start(&self, consuming: &mut Consuming) -> Result<()> {
        *consuming = Consuming::Starting;
        let inlet = self.shared.queue.open_lane(&self.shared.pipeline);
        let answer = self.within("run", self.shared.driver.run(inlet)).await;
        *consuming = match &answer {
            Ok(()) => Consuming::Started,
            Err(error) if error.kind() == ErrorKind::Timeout => {
                // The call was dropped half-way: the driver may be consuming.
                self.log_failure(self.within("stop", self.shared.driver.stop()).await);
                Consuming::Starting
            }
            Err(_) => Consuming::Idle,
        };
        answer
    }

    /// The pipeline's figures.
    ///
    /// # Errors
    /// `Connection` and `Timeout` (transient), `Denied`, `NotFound`, `Closed`.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn state(&self) -> Result<State> {
        self.within("state", self.shared.driver.state()).await
    }

    /// Stops the driver for good, after any other call that changes it.
    pub(crate) async fn stop(&self) -> Result<()> {
        let _consuming = self.shared.consuming.lock().await;
        self.within("stop", self.shared.driver.stop()).await
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        self.shared.pipeline.shared_name()
    }

    /// True for clones of one handle, false for two pipelines that bore the same name.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(crate) fn log_failure(&self, answer: Result<()>) {
        if let Err(error) = answer {
            tracing::warn!(job.pipeline = self.name(), %error, "pipeline call failed");
        }
    }

    async fn within<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let answer = within(self.shared.timeout, operation, call).await;
        answer.map_err(|error| self.named(error))
    }

    fn named(&self, error: Error) -> Error {
        error.with_pipeline(self.shared.pipeline.shared_name())
    }
}

/// Bounds a call that could wait for a broker for ever.
pub(crate) async fn within<T>(
    limit: Duration,
    operation: &'static str,
    call: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        let context = format!("no answer within {limit:?}");
        Err(Error::new(ErrorKind::Timeout, operation).with_context(context).transient())
    })
}
