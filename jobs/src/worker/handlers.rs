//! Handlers by job name, and what a run of one ends in.

use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use jobs_core::{Error, ErrorKind, Outcome, Problem, Result};
use tokio::time::Instant;
use tracing::Instrument;
use tracing::field::Empty;

use super::policy::Policies;
use super::{Context, Failure, HandlerError, Inline, Payload, Policy};

/// Async functions by the name of the jobs they run, and what becomes of jobs that fail. Cheap to
/// clone.
///
/// For [`Worker::handlers`](crate::Worker::handlers), and [`inline`](Self::inline) for tests.
#[derive(Clone, Default)]
pub struct Handlers {
    by_name: HashMap<Arc<str>, Handler>,
    fallback: Option<Handler>,
    policies: Policies,
    problems: Vec<Problem>,
}

/// Decodes and starts; fails if the payload is not what the handler takes.
type Handler = Arc<dyn Fn(&Bytes, Context) -> Result<Handling> + Send + Sync>;
type Handling = BoxFuture<'static, Result<(), HandlerError>>;

/// What a run ended in.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    /// None if the job is done.
    pub(super) failure: Option<Failure>,
}

impl Handlers {
    /// No handlers.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs jobs called `name` with `handler`: `Ok` acknowledges the job. A name given twice is
    /// refused when the handlers are used.
    ///
    /// A handler should not block its thread for long; use `tokio::task::spawn_blocking`.
    #[must_use]
    pub fn handle<P, F, R>(mut self, name: impl Into<Arc<str>>, handler: F) -> Self
    where
        P: Payload,
        F: Fn(P, Context) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let name = name.into();
        let problem = |message| {
            let path = format!("handlers.{name}");
            Problem::new(path, message).with_kind(ErrorKind::InvalidState)
        };
        if name.is_empty() {
            self.problems.push(problem("expected a name, found empty text"));
        } else if self.by_name.contains_key(&name) {
            self.problems.push(problem("is registered twice"));
        }
        self.by_name.entry(name).or_insert_with(|| erased(handler));
        self
    }

    /// Runs jobs whose name no handler has. The last one given counts.
    #[must_use]
    pub fn fallback<P, F, R>(mut self, handler: F) -> Self
    where
        P: Payload,
        F: Fn(P, Context) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.fallback = Some(erased(handler));
        self
    }

    /// Sets what becomes of a job after a failure. Default: [`Policy::default`], retry from 1 s to
    /// 10 min. Where the pipeline cannot delay, the job runs again at once, with a warning.
    #[must_use]
    pub fn on_failure(mut self, failure: Failure, policy: Policy) -> Self {
        self.policies.set(failure, policy);
        self
    }

    /// The registered names, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<_> = self.by_name.keys().cloned().collect();
        names.sort();
        names
    }

    /// Runs these handlers in the caller's task, without a broker.
    ///
    /// # Errors
    /// `InvalidState` naming all handlers registered twice.
    pub fn inline(self) -> Result<Inline> {
        self.check()?;
        Ok(Inline::new(self))
    }

    pub(super) fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn check(&self) -> Result<()> {
        match self.problems.as_slice() {
            [] => Ok(()),
            problems => Err(Error::from_problems("register handlers", problems.to_vec())),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty() && self.fallback.is_none()
    }

    /// Runs the job to its end, in its span. Panics are contained; dropping the future ends the
    /// handler.
    pub(super) async fn run(&self, context: Context) -> Ended {
        let span = tracing::info_span!(
            "job",
            job.id = %context.id(),
            job.name = context.name(),
            job.attempt = context.attempt(),
            job.pipeline = context.pipeline(),
            outcome = Empty,
            elapsed_ms = Empty,
        );
        let begin = Instant::now();
        let ended = self.run_handler(context).instrument(span.clone()).await;
        let elapsed = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        span.record("outcome", ended.outcome.name()).record("elapsed_ms", elapsed);
        ended
    }

    async fn run_handler(&self, context: Context) -> Ended {
        let attempt = context.attempt();
        let Some(handler) = self.by_name.get(context.name()).or(self.fallback.as_ref()) else {
            tracing::warn!("no handler has this name");
            return self.failed(Failure::Unknown, attempt);
        };
        let payload = context.message().payload().clone();
        // Decoding and the handler's first step are user code too, and may panic.
        let run = async move { Ok::<_, Error>(handler(&payload, context)?.await) };
        match AssertUnwindSafe(run).catch_unwind().await {
            Ok(Ok(Ok(()))) => Ended { outcome: Outcome::Ack, failure: None },
            Ok(Ok(Err(error))) => {
                tracing::warn!(%error, "handler failed");
                let outcome = self.policies.outcome_of(&error, attempt);
                Ended { outcome, failure: Some(Failure::Error) }
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "payload cannot be decoded");
                self.failed(Failure::Undecodable, attempt)
            }
            Err(_) => {
                tracing::error!("handler panicked");
                self.failed(Failure::Panic, attempt)
            }
        }
    }

    fn failed(&self, failure: Failure, attempt: u32) -> Ended {
        Ended { outcome: self.policies.outcome(failure, attempt), failure: Some(failure) }
    }
}

fn erased<P, F, R>(handler: F) -> Handler
where
    P: Payload,
    F: Fn(P, Context) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    Arc::new(move |payload, context| Ok(handler(P::decode(payload)?, context).boxed()))
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers")
            .field("names", &self.names())
            .field("fallback", &self.fallback.is_some())
            .field("policies", &self.policies)
            .finish_non_exhaustive()
    }
}
