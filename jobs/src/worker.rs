//! Running jobs: handlers by name, so many at once, until told to stop.

mod context;
mod crew;
mod error;
mod handlers;
mod inline;
mod payload;
mod policy;
mod report;
mod settlements;
mod signal;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use jobs_core::{Error, ErrorKind, Problem, Result};

use crate::Jobs;
use crew::Crew;

pub use context::Context;
pub use error::HandlerError;
pub use handlers::Handlers;
pub use inline::Inline;
pub use payload::{Json, Payload};
pub use policy::{Failure, Policy};
pub use report::Report;
pub use signal::shutdown_signal;

/// Takes jobs and runs their handlers, a number of them at once.
///
/// A job is taken only when a handler can start at once; settling one keeps no handler from
/// starting. What is not done (an error, a panic, an undecodable payload, an unknown name) runs
/// again later, unless [`Handlers::on_failure`] says otherwise.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> jobs::Result<()> {
/// use jobs::{Context, HandlerError, Jobs, Json, Payload, Pipeline, Worker};
///
/// async fn greet(Json(name): Json<String>, context: Context) -> Result<(), HandlerError> {
///     println!("hello {name}, attempt {}", context.attempt());
///     Ok(())
/// }
///
/// let mail = Pipeline::new("mail", "memory");
/// let jobs = Jobs::builder().pipeline(mail).consume(["mail"]).connect().await?;
/// jobs.pipeline("mail")?.push(Json("Ann".to_owned()).message("greet")?).await?;
///
/// let (done, wait) = tokio::sync::oneshot::channel::<()>();
/// # drop(done);
/// let worker = Worker::new(&jobs).handle("greet", greet).concurrency(16);
/// let report = worker.run_until(async { drop(wait.await) }).await?;
/// # assert_eq!(report.started, report.acked);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a worker does nothing until it is run"]
pub struct Worker {
    jobs: Jobs,
    handlers: Handlers,
    pipelines: Option<Vec<String>>,
    concurrency: usize,
    shutdown_deadline: Duration,
}

impl Worker {
    /// How long handlers may go on after a shutdown began, if nothing else is said.
    pub const DEFAULT_SHUTDOWN_DEADLINE: Duration = Duration::from_secs(30);

    /// Handlers at once per processor, if nothing else is said: most wait for others.
    pub const DEFAULT_CONCURRENCY_PER_CPU: usize = 16;

    /// A worker for all pipelines of `jobs`, those declared later included.
    pub fn new(jobs: &Jobs) -> Self {
        let cpus = available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            jobs: jobs.clone(),
            handlers: Handlers::new(),
            pipelines: None,
            concurrency: cpus * Self::DEFAULT_CONCURRENCY_PER_CPU,
            shutdown_deadline: Self::DEFAULT_SHUTDOWN_DEADLINE,
        }
    }

    /// As [`Handlers::handle`].
    pub fn handle<P, F, R>(mut self, name: impl Into<Arc<str>>, handler: F) -> Self
    where
        P: Payload,
        F: Fn(P, Context) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.handlers = self.handlers.handle(name, handler);
        self
    }

    /// As [`Handlers::fallback`].
    pub fn fallback<P, F, R>(mut self, handler: F) -> Self
    where
        P: Payload,
        F: Fn(P, Context) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.handlers = self.handlers.fallback(handler);
        self
    }

    /// As [`Handlers::on_failure`].
    pub fn on_failure(mut self, failure: Failure, policy: Policy) -> Self {
        self.handlers = self.handlers.on_failure(failure, policy);
        self
    }

    /// Replaces all handlers and policies.
    pub fn handlers(mut self, handlers: Handlers) -> Self {
        self.handlers = handlers;
        self
    }

    /// The registered names, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        self.handlers.names()
    }

    /// Takes jobs of these pipelines only.
    pub fn pipelines(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.pipelines = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// How many handlers run at once, at least 1. Default: 16 per processor. A pipeline's
    /// `max_running` bounds its own share of them.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers;
        self
    }

    /// How long handlers may go on after a shutdown began. Default: 30 s.
    pub fn shutdown_deadline(mut self, deadline: Duration) -> Self {
        self.shutdown_deadline = deadline;
        self
    }

    /// Runs jobs until `shutdown` is ready, for instance [`shutdown_signal`], or until
    /// [`Jobs::shutdown`] was called.
    ///
    /// Then it pauses those of its pipelines that no other worker serves, and lets running handlers
    /// end. Those that have not by the
    /// deadline are dropped at their next await, and their jobs go back to the broker. At most 5 s
    /// more are spent on settlements under way. The last worker of these [`Jobs`] then shuts them
    /// down.
    ///
    /// # Errors
    /// Before anything runs, all that is wrong: names registered twice, no handler at all,
    /// concurrency 0 (`InvalidState`), unknown pipelines (`NotFound`). `Closed` after
    /// [`Jobs::shutdown`].
    ///
    /// # Cancel safety
    /// Dropping it drops the handlers; their jobs go back to the broker. The pipelines go on.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<Report> {
        let pipelines = self.check()?;
        let crew = Crew::new(self.jobs, self.handlers, pipelines);
        Ok(crew.work(self.concurrency, shutdown, self.shutdown_deadline).await)
    }

    /// The chosen pipelines, none if all.
    fn check(&self) -> Result<Option<Arc<[Arc<str>]>>> {
        self.jobs.open()?;
        let mut problems = self.handlers.problems().to_vec();
        let mut wrong = |path, message, kind| {
            problems.push(Problem::new(path, message).with_kind(kind));
        };
        if self.concurrency == 0 {
            let message = "expected at least 1, found 0".to_owned();
            wrong("worker.concurrency", message, ErrorKind::InvalidState);
        }
        if self.handlers.is_empty() {
            let message = "there is no handler and no fallback".to_owned();
            wrong("worker.handlers", message, ErrorKind::InvalidState);
        }
        let known = self.jobs.list();
        for name in self.pipelines.iter().flatten() {
            if !known.iter().any(|known| **known == **name) {
                let message = format!("no pipeline is named `{name}`, there are {known:?}");
                wrong("worker.pipelines", message, ErrorKind::NotFound);
            }
        }
        if !problems.is_empty() {
            return Err(Error::from_problems("run worker", problems));
        }
        let chosen = self.pipelines.as_ref();
        Ok(chosen.map(|names| names.iter().map(|name| Arc::from(name.as_str())).collect()))
    }
}
