//! What a handler knows of the job it runs.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jobs_core::{Error, ErrorKind, Headers, Job, JobId, Message, Result};
use tokio_util::sync::CancellationToken;

/// The job a handler runs: its message, attempt and pipeline, and whether the worker is shutting
/// down. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    message: Message,
    attempt: u32,
    pipeline: Arc<str>,
    delivery: Delivery,
    shutdown: CancellationToken,
}

#[derive(Clone)]
enum Delivery {
    /// Empty once the handler ended, however long its context lives.
    Job(Arc<Mutex<Option<Job>>>),
    /// Run inline: there is no broker.
    Inline,
}

impl Context {
    pub(super) fn of_job(job: Job, shutdown: CancellationToken) -> Self {
        Self {
            message: job.message().clone(),
            attempt: job.attempt(),
            pipeline: job.pipeline().into(),
            delivery: Delivery::Job(Arc::new(Mutex::new(Some(job)))),
            shutdown,
        }
    }

    pub(super) fn inline(message: Message, attempt: u32) -> Self {
        Self {
            message,
            attempt,
            pipeline: "inline".into(),
            delivery: Delivery::Inline,
            shutdown: CancellationToken::new(),
        }
    }

    /// The message as it was delivered.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The job's id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        self.message.id()
    }

    /// The job's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.message.name()
    }

    /// The job's headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        self.message.headers()
    }

    /// Which attempt this is, counted from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The pipeline the job came from; `inline` in [`Inline`](crate::Inline) runs.
    #[must_use]
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// Asks that the job stay ours for at least `by` from now: for work that may take longer than
    /// the pipeline's `max_lease`.
    ///
    /// # Errors
    /// `LeaseLost`: stop working, the job may run elsewhere. `Unsupported` where leases cannot be
    /// extended. Others are transient.
    ///
    /// # Cancel safety
    /// Cancel safe: only the answer is lost.
    pub async fn extend(&self, by: Duration) -> Result<()> {
        let extending = match &self.delivery {
            Delivery::Inline => return Ok(()),
            Delivery::Job(job) => {
                let job = job.lock().unwrap_or_else(PoisonError::into_inner);
                job.as_ref().map(|job| job.extend(by))
            }
        };
        match extending {
            Some(extending) => extending.await,
            None => Err(Error::new(ErrorKind::LeaseLost, "extend")
                .with_pipeline(Arc::clone(&self.pipeline))
                .with_context("the handler has ended")),
        }
    }

    /// True once the worker is shutting down: long work should come to an end.
    #[must_use]
    pub fn is_shutting_down(&self) -> bool {
        self.shutdown.is_cancelled()
    }

    /// Waits until the worker is shutting down. The handler is dropped when the worker's
    /// `shutdown_deadline` has passed.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn shutting_down(&self) {
        self.shutdown.cancelled().await;
    }

    /// Takes the job out, to settle or to drop it.
    pub(super) fn take(&self) -> Option<Job> {
        match &self.delivery {
            Delivery::Inline => None,
            Delivery::Job(job) => job.lock().unwrap_or_else(PoisonError::into_inner).take(),
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("message", &self.message)
            .field("attempt", &self.attempt)
            .field("pipeline", &self.pipeline)
            .field("shutting_down", &self.is_shutting_down())
            .finish_non_exhaustive()
    }
}
