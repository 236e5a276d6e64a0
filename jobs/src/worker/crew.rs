//! The running half of a worker.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{join, join_all};
use jobs_core::{Job, Outcome};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::policy::fitted;
use super::report::{Counters, Report, add};
use super::settlements::Settlements;
use super::{Context, Handlers};
use crate::control::Served;
use crate::{Jobs, PipelineHandle};

/// How long answers to settlements are waited for once the last handler ended.
const SETTLING: Duration = Duration::from_secs(5);

/// What all loops of a worker share. Each loop takes a job, runs it, and hands its outcome over.
#[derive(Debug)]
pub(super) struct Crew {
    jobs: Jobs,
    handlers: Handlers,
    pipelines: Served,
    /// Nothing new is started.
    shutdown: CancellationToken,
    /// Handlers are dropped.
    cancel: CancellationToken,
    settlements: Settlements,
    counters: Arc<Counters>,
}

impl Crew {
    pub(super) fn new(jobs: Jobs, handlers: Handlers, pipelines: Served) -> Arc<Self> {
        let counters = Arc::<Counters>::default();
        Arc::new(Self {
            jobs,
            handlers,
            pipelines,
            shutdown: CancellationToken::new(),
            cancel: CancellationToken::new(),
            settlements: Settlements::new(Arc::clone(&counters)),
            counters,
        })
    }

    /// Works with `concurrency` loops until `shutdown`, then ends within about `deadline`.
    pub(super) async fn work(
        self: Arc<Self>,
        concurrency: usize,
        shutdown: impl Future<Output = ()>,
        deadline: Duration,
    ) -> Report {
        let present = Present::new(&self);
        let mut loops = JoinSet::new();
        for _ in 0..concurrency {
            let crew = Arc::clone(&self);
            loops.spawn(async move { crew.take_jobs().await });
        }
        tokio::select! {
            () = shutdown => {}
            () = ended(&mut loops) => {}
        }
        self.finish(loops, deadline).await;
        let shutdown_error = match present.leave() {
            true => self.jobs.shutdown().await.err(),
            false => None,
        };
        self.counters.report(shutdown_error)
    }

    async fn finish(&self, mut loops: JoinSet<()>, deadline: Duration) {
        self.shutdown.cancel();
        let deserted = self.jobs.stop_serving(&self.pipelines);
        if timeout(deadline, join(self.pause(deserted), ended(&mut loops))).await.is_err() {
            tracing::warn!("handlers still ran at the shutdown deadline and are dropped");
            self.cancel.cancel();
        }
        let settled = async {
            ended(&mut loops).await;
            self.settlements.wait().await;
        };
        if timeout(SETTLING, settled).await.is_err() {
            // Also a handler that blocks its thread: it cannot be dropped, and must not hold up
            // the rest.
            tracing::warn!("jobs were not settled in time and may run again");
            loops.abort_all();
            self.settlements.give_up();
            self.settlements.wait().await;
        }
    }

    async fn pause(&self, pipelines: Vec<PipelineHandle>) {
        join_all(pipelines.iter().map(|pipeline| async move {
            pipeline.log_failure(pipeline.pause().await);
        }))
        .await;
    }

    async fn take_jobs(&self) {
        while let Some(job) = self.next().await {
            self.run(job).await;
        }
    }

    async fn next(&self) -> Option<Job> {
        let queue = self.jobs.queue();
        let pop = match &self.pipelines {
            None => queue.pop(),
            Some(names) => queue.pop_from(names),
        };
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => None,
            job = pop => job,
        }
    }

    async fn run(&self, job: Job) {
        add(&self.counters.started);
        let running = Running::new(self, job);
        let ended = tokio::select! {
            biased;
            ended = self.handlers.run(running.context.clone()) => ended,
            () = self.cancel.cancelled() => return,
        };
        if let Some(failure) = ended.failure {
            self.counters.failure(failure);
        }
        if let Some(job) = running.context.take() {
            let outcome = self.fit(&job, ended.outcome);
            self.settlements.settle(job, outcome).await;
        }
    }

    fn fit(&self, job: &Job, outcome: Outcome) -> Outcome {
        if job.message().auto_ack() {
            return Outcome::Ack;
        }
        match (&outcome, self.jobs.pipeline(job.pipeline())) {
            (Outcome::Requeue { .. }, Ok(pipeline)) => fitted(outcome, &pipeline.capabilities()),
            _ => outcome,
        }
    }
}

async fn ended(loops: &mut JoinSet<()>) {
    while let Some(answer) = loops.join_next().await {
        if let Err(error) = answer {
            tracing::error!(%error, "a handler's value panicked when it was dropped");
        }
    }
}

/// A job with its handler. Dropped before the handler ended, it gives the job back, also if the
/// handler has left clones of its context behind.
struct Running<'a> {
    context: Context,
    crew: &'a Crew,
}

impl<'a> Running<'a> {
    fn new(crew: &'a Crew, job: Job) -> Self {
        Self { context: Context::of_job(job, crew.shutdown.clone()), crew }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(job) = self.context.take() {
            add(&self.crew.counters.cancelled);
            drop(job);
        }
    }
}

/// A worker that runs. Dropped before it left, its settlements end.
struct Present<'a> {
    crew: &'a Crew,
    left: bool,
}

impl<'a> Present<'a> {
    fn new(crew: &'a Crew) -> Self {
        crew.jobs.worker_started(&crew.pipelines);
        Self { crew, left: false }
    }

    /// True if it was the last one.
    fn leave(mut self) -> bool {
        self.left = true;
        self.crew.jobs.worker_ended()
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        if !self.left {
            self.crew.settlements.give_up();
            self.crew.jobs.stop_serving(&self.crew.pipelines);
            self.crew.jobs.worker_ended();
        }
    }
}
