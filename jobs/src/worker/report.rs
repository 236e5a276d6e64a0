//! What a worker did.

use std::sync::atomic::{AtomicU64, Ordering};

use jobs_core::{Error, Outcome};

use super::Failure;

/// What a worker did from its start to its end.
///
/// Every job that was started is counted once more, by how it ended: `started` is the sum of
/// `acked`, `rejected`, `requeued`, `released`, `unsettled` and `cancelled`.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// Jobs taken.
    pub started: u64,
    /// Done, also jobs that were settled when they were handed out
    /// ([`Message::with_auto_ack`](crate::Message::with_auto_ack)).
    pub acked: u64,
    /// Never to run again.
    pub rejected: u64,
    /// To run again.
    pub requeued: u64,
    /// Given back as not started.
    pub released: u64,
    /// Ended, but the outcome could not be settled: they may run again.
    pub unsettled: u64,
    /// Still running at the shutdown deadline: dropped, they run again.
    pub cancelled: u64,
    /// Of `unsettled`: somebody else had the job by then.
    pub leases_lost: u64,
    /// Handlers that answered an error.
    pub failed: u64,
    /// Handlers that panicked.
    pub panicked: u64,
    /// Jobs whose payload was not what their handler takes.
    pub undecodable: u64,
    /// Jobs whose name no handler has.
    pub unknown: u64,
    /// What went wrong when the pipelines were stopped, if this worker stopped them.
    pub shutdown_error: Option<Error>,
}

/// The report while it grows.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) started: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) leases_lost: AtomicU64,
    acked: AtomicU64,
    rejected: AtomicU64,
    requeued: AtomicU64,
    released: AtomicU64,
    failed: AtomicU64,
    panicked: AtomicU64,
    undecodable: AtomicU64,
    unknown: AtomicU64,
}

impl Counters {
    pub(super) fn failure(&self, failure: Failure) {
        add(match failure {
            Failure::Error => &self.failed,
            Failure::Panic => &self.panicked,
            Failure::Undecodable => &self.undecodable,
            Failure::Unknown => &self.unknown,
        });
    }

    pub(super) fn settled(&self, outcome: &Outcome) {
        add(match outcome {
            Outcome::Ack => &self.acked,
            Outcome::Reject => &self.rejected,
            Outcome::Requeue { .. } => &self.requeued,
            _ => &self.released,
        });
    }

    pub(super) fn report(&self, shutdown_error: Option<Error>) -> Report {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let started = get(&self.started);
        let ends = [&self.acked, &self.rejected, &self.requeued, &self.released, &self.cancelled];
        let [acked, rejected, requeued, released, cancelled] = ends.map(get);
        let known = acked + rejected + requeued + released + cancelled;
        Report {
            started,
            acked,
            rejected,
            requeued,
            released,
            unsettled: started.saturating_sub(known),
            cancelled,
            leases_lost: get(&self.leases_lost),
            failed: get(&self.failed),
            panicked: get(&self.panicked),
            undecodable: get(&self.undecodable),
            unknown: get(&self.unknown),
            shutdown_error,
        }
    }
}

pub(super) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
