//! Producers and workers that keep books while faults happen.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{ErrorKind, Job, Message, SettleError};
use tokio::task::JoinSet;

use crate::{CaseResult, Fixture, Ledger, TestPipeline, Totals, Unexpected};

/// The books of one pipeline. Tasks end when they are dropped.
pub(super) struct Books {
    fx: Fixture,
    pipeline: TestPipeline,
    ledger: Arc<Ledger>,
    producers: JoinSet<()>,
    workers: JoinSet<()>,
}

impl Books {
    pub(super) fn open(fx: &Fixture, pipeline: &TestPipeline) -> Self {
        let confirmed = pipeline.driver().capabilities().acks_confirmed;
        Self {
            fx: fx.clone(),
            pipeline: pipeline.clone(),
            ledger: Arc::new(if confirmed { Ledger::new() } else { Ledger::unconfirmed() }),
            producers: JoinSet::new(),
            workers: JoinSet::new(),
        }
    }

    /// Lets so many producers push `each` messages, one after another; `delay` is given the number
    /// of the message.
    pub(super) fn push(&mut self, producers: usize, each: usize, delay: fn(usize) -> Duration) {
        for producer in 0..producers {
            let (fx, pipeline) = (self.fx.clone(), self.pipeline.clone());
            let ledger = Arc::clone(&self.ledger);
            self.producers.spawn(async move {
                for number in 0..each {
                    let message = fx.message(format!("{producer}/{number}"));
                    push(&pipeline, &ledger, message.with_delay(delay(number))).await;
                }
            });
        }
    }

    /// Lets so many workers acknowledge what comes.
    pub(super) fn work(&mut self, workers: usize) {
        for _ in 0..workers {
            let (queue, ledger) = (self.pipeline.queue().clone(), Arc::clone(&self.ledger));
            self.workers.spawn(async move {
                while let Some(job) = queue.pop().await {
                    ledger.delivered(job.id());
                    let id = job.id().clone();
                    if let Err(refused) = ack(&ledger, job).await
                        && refused.error().kind() == ErrorKind::LeaseLost
                    {
                        // A fault may have come between the ack and its answer.
                        ledger.unanswered(&id);
                    }
                }
            });
        }
    }

    /// Takes jobs to hold for a while.
    pub(super) async fn take(&self, count: usize) -> Result<Vec<Job>, Unexpected> {
        let jobs = self.pipeline.take(count).await?;
        jobs.iter().for_each(|job| self.ledger.delivered(job.id()));
        Ok(jobs)
    }

    /// Acknowledges jobs that were held through a fault: those that are refused must come again.
    pub(super) async fn ack(&self, jobs: Vec<Job>) {
        for job in jobs {
            drop(ack(&self.ledger, job).await);
        }
    }

    /// Waits until `condition` is true of the totals.
    pub(super) async fn until(
        &self,
        what: &str,
        condition: impl Fn(&Totals) -> bool,
    ) -> Result<(), Unexpected> {
        self.fx
            .eventually(what, async || match self.ledger.totals(0) {
                totals if condition(&totals) => Ok(()),
                totals => Err(totals.to_string()),
            })
            .await
    }

    /// Waits until the producers are done.
    pub(super) async fn pushed(&mut self) -> CaseResult {
        while let Some(producer) = self.fx.within("producers", self.producers.join_next()).await? {
            producer?;
        }
        Ok(())
    }

    /// Waits until the producers are done and every accepted job has ended.
    pub(super) async fn close(mut self) -> CaseResult {
        self.pushed().await?;
        self.until("every accepted job acknowledged", |totals| totals.lost == 0).await?;
        self.pipeline.queue().close();
        while let Some(worker) = self.fx.within("workers", self.workers.join_next()).await? {
            worker?;
        }
        let totals = self.ledger.totals(0);
        assert!(totals.is_sound(), "{totals}");
        assert!(totals.accepted > 0, "nothing was accepted: {totals}");
        Ok(())
    }
}

async fn push(pipeline: &TestPipeline, ledger: &Ledger, message: Message) {
    let id = message.id().clone();
    ledger.pushing(&id);
    match pipeline.push(message).await {
        Ok(()) => ledger.accepted(&id),
        Err(error) => {
            assert!(error.is_retryable(), "an outage passes: {error:?}");
            if error.may_be_stored() {
                ledger.uncertain(&id);
            }
        }
    }
}

/// If its connection is gone the job comes again.
async fn ack(ledger: &Ledger, job: Job) -> Result<(), SettleError> {
    let (id, position) = (job.id().clone(), job.position());
    ledger.returning(&id);
    job.ack().await?;
    ledger.done_at(&id, position);
    Ok(())
}
