//! A pipeline under test, with its queue.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Driver, Job, JobId, Message, Pipeline, Queue, Result, State};

use crate::wait::Unexpected;
use crate::{Fixture, wait};

/// A connected pipeline. Clones are the same pipeline.
#[derive(Clone, Debug)]
pub struct TestPipeline {
    fixture: Fixture,
    config: Pipeline,
    driver: Arc<dyn Driver>,
    queue: Queue,
}

impl TestPipeline {
    pub(crate) fn new(
        fixture: Fixture,
        config: Pipeline,
        driver: Arc<dyn Driver>,
        queue: Queue,
    ) -> Self {
        Self { fixture, config, driver, queue }
    }

    /// Its configuration.
    #[must_use]
    pub fn config(&self) -> &Pipeline {
        &self.config
    }

    /// Its driver.
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// The queue its jobs arrive in.
    #[must_use]
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Another consumer of the same queue at the broker, already consuming, with a lane of its own.
    ///
    /// # Errors
    /// As connecting and [`Driver::run`].
    pub async fn second(&self) -> Result<Self> {
        self.fixture.start(self.config.clone()).await
    }

    /// Opens a lane and starts consuming.
    ///
    /// # Errors
    /// The driver's.
    pub async fn run(&self) -> Result<()> {
        self.driver.run(self.queue.open_lane(&self.config)).await
    }

    /// Pushes a message.
    ///
    /// # Errors
    /// The driver's.
    pub async fn push(&self, message: Message) -> Result<()> {
        self.driver.push(message).await
    }

    /// Pushes messages with the payloads `0`, `1`, … one after another, and returns their ids.
    ///
    /// # Errors
    /// The driver's.
    pub async fn push_numbered(&self, count: usize) -> Result<Vec<JobId>> {
        let mut ids = Vec::with_capacity(count);
        for number in 0..count {
            let message = self.fixture.message(number.to_string());
            ids.push(message.id().clone());
            self.push(message).await?;
        }
        Ok(ids)
    }

    /// As [`push_numbered`](Self::push_numbered) when the broker was away a moment ago: a message
    /// that fails is pushed again, so that it may be stored twice.
    ///
    /// # Errors
    /// If one does not succeed within the deadline.
    pub async fn push_eventually(&self, count: usize) -> Result<Vec<JobId>, Unexpected> {
        let mut ids = Vec::with_capacity(count);
        for number in 0..count {
            let message = self.fixture.message(number.to_string());
            ids.push(message.id().clone());
            self.eventually("push", async || self.push(message.clone()).await).await?;
        }
        Ok(ids)
    }

    /// As [`run`](Self::run) when the broker was away a moment ago.
    ///
    /// # Errors
    /// If it does not succeed within the deadline.
    pub async fn run_eventually(&self) -> Result<(), Unexpected> {
        self.eventually("run", async || self.run().await).await
    }

    /// As [`resume`](Self::resume) when the broker was away a moment ago.
    ///
    /// # Errors
    /// If it does not succeed within the deadline.
    pub async fn resume_eventually(&self) -> Result<(), Unexpected> {
        self.eventually("resume", async || self.resume().await).await
    }

    async fn eventually<T>(
        &self,
        what: &str,
        mut call: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T, Unexpected> {
        let answer = async || call().await.map_err(|error| format!("{error:?}"));
        self.fixture.eventually(what, answer).await
    }

    /// Pushes messages at once.
    pub async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        self.driver.push_batch(messages).await
    }

    /// Pauses.
    ///
    /// # Errors
    /// The driver's.
    pub async fn pause(&self) -> Result<()> {
        self.driver.pause().await
    }

    /// Resumes.
    ///
    /// # Errors
    /// The driver's.
    pub async fn resume(&self) -> Result<()> {
        self.driver.resume().await
    }

    /// Stops.
    ///
    /// # Errors
    /// The driver's.
    pub async fn stop(&self) -> Result<()> {
        self.driver.stop().await
    }

    /// Asks for the figures.
    ///
    /// # Errors
    /// The driver's.
    pub async fn state(&self) -> Result<State> {
        self.driver.state().await
    }

    /// The next job.
    ///
    /// # Errors
    /// If none arrives within the deadline.
    pub async fn next(&self) -> Result<Job, Unexpected> {
        let job = self.fixture.within("waiting for a job", self.queue.pop()).await?;
        job.ok_or_else(|| Unexpected::new("the queue was closed"))
    }

    /// The next `count` jobs, held all at once.
    ///
    /// # Errors
    /// If one does not arrive within the deadline.
    pub async fn take(&self, count: usize) -> Result<Vec<Job>, Unexpected> {
        let mut jobs = Vec::with_capacity(count);
        while jobs.len() < count {
            let job = self.next().await;
            jobs.push(job.map_err(|error| {
                Unexpected::new(format!("job {} of {count}: {error}", jobs.len() + 1))
            })?);
        }
        Ok(jobs)
    }

    /// Acknowledges the next `count` jobs one after another and returns their ids.
    ///
    /// # Errors
    /// If one does not arrive or is not settled.
    pub async fn ack_next(&self, count: usize) -> Result<Vec<JobId>, Unexpected> {
        let mut ids = Vec::with_capacity(count);
        for _ in 0..count {
            let job = self.next().await?;
            ids.push(job.id().clone());
            job.ack().await.map_err(|error| Unexpected::new(format!("ack: {error:?}")))?;
        }
        Ok(ids)
    }

    /// As [`ack_next`](Self::ack_next), and goes on until nothing arrives any more.
    ///
    /// # Errors
    /// If fewer than `at_least` arrive, or one is not settled.
    pub async fn drain(&self, at_least: usize) -> Result<Vec<JobId>, Unexpected> {
        let mut ids = self.ack_next(at_least).await?;
        let quiet = self.fixture.harness().quiet();
        while let Ok(Some(job)) = wait::within(quiet, "quiet", self.queue.pop()).await {
            ids.push(job.id().clone());
            job.ack().await.map_err(|error| Unexpected::new(format!("ack: {error:?}")))?;
        }
        Ok(ids)
    }

    /// Waits until the process holds at least `count` jobs that nobody popped.
    ///
    /// # Errors
    /// If it does not within the deadline.
    pub async fn expect_unpopped(&self, count: usize) -> Result<(), Unexpected> {
        let enough = async || match self.queue.len() {
            found if found >= count => Ok(()),
            found => Err(format!("{found}, not {count}")),
        };
        self.fixture.eventually("jobs in the lane", enough).await
    }

    /// Demands that no job arrives for a while, see [`Harness::quiet`](crate::Harness::quiet).
    ///
    /// # Errors
    /// If one does.
    pub async fn expect_quiet(&self) -> Result<(), Unexpected> {
        self.expect_quiet_for(self.fixture.harness().quiet()).await
    }

    /// Demands that no job arrives for `quiet`.
    ///
    /// # Errors
    /// If one does.
    pub async fn expect_quiet_for(&self, quiet: Duration) -> Result<(), Unexpected> {
        match wait::within(quiet, "quiet", self.queue.pop()).await {
            Err(_) | Ok(None) => Ok(()),
            Ok(Some(job)) => Err(Unexpected::new(format!("no job was expected, found {job:?}"))),
        }
    }

    /// Demands that no job arrives, and that the broker holds none as far as it can tell.
    ///
    /// # Errors
    /// If there is one.
    pub async fn expect_empty(&self) -> Result<(), Unexpected> {
        self.expect_quiet().await?;
        let zero = |figure: Option<u64>| figure.is_none_or(|figure| figure == 0);
        let empty = |state: &State| {
            let known = [state.reserved, state.delayed, state.in_flight];
            state.active == 0 && known.into_iter().all(zero)
        };
        self.expect_state("an empty pipeline", empty).await.map(drop)
    }

    /// Waits for a state of which `condition` is true.
    ///
    /// # Errors
    /// If there is none within the deadline; with the last one.
    pub async fn expect_state(
        &self,
        what: &str,
        condition: impl Fn(&State) -> bool,
    ) -> Result<State, Unexpected> {
        self.fixture
            .eventually(what, async || match self.state().await {
                Ok(state) if condition(&state) => Ok(state),
                Ok(state) => Err(format!("{state:?}")),
                Err(error) => Err(format!("{error:?}")),
            })
            .await
    }
}
