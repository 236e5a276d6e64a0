//! Settlements that are under way, out of the handlers' way.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::Either;
use jobs_core::{Backoff, Error, ErrorKind, Job, Outcome, SettleError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::policy::instead_of;
use super::report::{Counters, add};

/// More than any broker needs to keep busy; when as many answers are missing handlers wait.
const AT_ONCE: usize = 1024;
/// A settlement that fails in a way that may pass is tried so often, over about 3 s.
const TRIES: u32 = 6;
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));

#[derive(Clone, Debug)]
pub(super) struct Settlements {
    slots: Arc<Semaphore>,
    under_way: TaskTracker,
    give_up: CancellationToken,
    counters: Arc<Counters>,
}

type Answer = Result<(), SettleError>;

impl Settlements {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        Self { slots, under_way: TaskTracker::new(), give_up: CancellationToken::new(), counters }
    }

    /// Hands the outcome over, and leaves awaiting the answer to a task if it is not there at once.
    pub(super) async fn settle(&self, job: Job, outcome: Outcome) {
        let mut settle = job.settle(outcome.clone()).unhurried();
        let answer = match (&mut settle).now_or_never() {
            Some(Ok(())) => return self.counters.settled(&outcome),
            Some(Err(error)) => Either::Left(ready(Err(error))),
            None => Either::Right(settle),
        };
        let slot = Arc::clone(&self.slots).acquire_owned().await.expect("never closed");
        let this = self.clone();
        self.under_way.spawn(async move {
            let _slot = slot;
            tokio::select! {
                () = this.attend(answer, outcome) => {}
                () = this.give_up.cancelled() => {}
            }
        });
    }

    /// Waits until no answer is missing.
    pub(super) async fn wait(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }

    /// Ends all waiting for answers. The outcomes were handed over and may still take effect.
    pub(super) fn give_up(&self) {
        self.give_up.cancel();
    }

    async fn attend(&self, answer: impl Future<Output = Answer>, mut outcome: Outcome) {
        let mut failures = 0;
        let mut answer = answer.await;
        while let Err(error) = answer {
            failures += 1;
            let (error, job) = error.into_parts();
            match self.next(&error, &outcome, failures).await {
                Some(next) => outcome = next,
                None => return self.failed(&error, &job, &outcome),
            }
            answer = job.settle(outcome.clone()).await;
        }
        self.counters.settled(&outcome);
    }

    /// What to settle with next, after waiting; none to give up.
    async fn next(&self, error: &Error, outcome: &Outcome, failures: u32) -> Option<Outcome> {
        if error.kind() == ErrorKind::Unsupported {
            return instead_of(outcome);
        }
        if !error.is_retryable() || failures == TRIES {
            return None;
        }
        tokio::time::sleep(BACKOFF.delay(failures)).await;
        Some(outcome.clone())
    }

    fn failed(&self, error: &Error, job: &Job, outcome: &Outcome) {
        if error.kind() == ErrorKind::LeaseLost {
            add(&self.counters.leases_lost);
        }
        tracing::error!(
            job.id = %job.id(), job.name = job.name(), job.attempt = job.attempt(),
            job.pipeline = job.pipeline(), outcome = outcome.name(), %error,
            "job ended, but could not be settled"
        );
    }
}
