//! The driver's end of a lane.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use tokio::sync::Semaphore;

use super::{Lane, LaneId, Lanes, Shared};
use crate::job::Delivery;
use crate::settle::Token;
use crate::{ErrorKind, Job, Result};

/// Where a driver delivers the jobs of one pipeline. Dropping it closes the lane: jobs that nobody
/// popped are abandoned.
pub struct Inlet {
    shared: Arc<Shared>,
    lane: LaneId,
    pipeline: Arc<str>,
    credits: Arc<Credits>,
}

#[derive(Default)]
struct Credits {
    granted: AtomicUsize,
    free: Free,
}

/// A semaphore that starts empty.
struct Free(Semaphore);

impl Default for Free {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

/// The right to have one job of a pipeline in this process. Dropping it lets the next job in.
pub struct Credit(Arc<Credits>);

/// Wakes the worker that waits for a delivered job, if there is one, when it is dropped.
#[derive(Debug)]
pub struct Wakeup(Option<Waker>);

impl Drop for Wakeup {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Waker::wake);
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.0.free.0.add_permits(1);
    }
}

impl Inlet {
    pub(super) fn new(shared: Arc<Shared>, lane: LaneId, pipeline: Arc<str>) -> Self {
        Self { shared, lane, pipeline, credits: Arc::default() }
    }

    fn lane_in<'a>(&self, lanes: &'a mut Lanes) -> &'a mut Lane {
        lanes.lane(self.lane).expect("a lane is open as long as its inlet")
    }

    /// The pipeline whose lane this is.
    #[must_use]
    pub fn pipeline(&self) -> &Arc<str> {
        &self.pipeline
    }

    /// Adds credits: the pipeline's `prefetch`, once, when it is run.
    pub fn grant(&self, prefetch: usize) {
        let prefetch = prefetch.min(Semaphore::MAX_PERMITS);
        self.credits.granted.fetch_add(prefetch, Ordering::Relaxed);
        self.credits.free.0.add_permits(prefetch);
    }

    /// Credits that are out: jobs of this pipeline in this process. A driver that takes credits
    /// before it fetches has to subtract those it still holds.
    #[must_use]
    pub fn active(&self) -> usize {
        let free = self.credits.free.0.available_permits();
        self.credits.granted.load(Ordering::Relaxed).saturating_sub(free)
    }

    /// A credit if one is free.
    #[must_use]
    pub fn try_credit(&self) -> Option<Credit> {
        self.credits.free.0.try_acquire().ok()?.forget();
        Some(Credit(Arc::clone(&self.credits)))
    }

    /// Waits for a credit; those who wait are served in turn.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn credit(&self) -> Credit {
        let permit = self.credits.free.0.acquire().await.expect("the semaphore is never closed");
        permit.forget();
        Credit(Arc::clone(&self.credits))
    }

    /// Puts a job into the lane.
    ///
    /// A driver that delivers under a lock keeps the answer until the lock is free.
    pub fn deliver(&self, credit: Credit, delivery: Delivery) -> Option<Wakeup> {
        let job = Job::new(Arc::clone(&self.pipeline), credit, delivery);
        let mut lanes = self.shared.lock();
        let lane = self.lane_in(&mut lanes);
        lane.jobs.push(job.effective_priority(lane.priority), job);
        // Changed under the lock only, so that it need not be one atomic step.
        let deliveries = self.shared.deliveries.load(Ordering::Relaxed);
        self.shared.deliveries.store(deliveries.wrapping_add(1), Ordering::Relaxed);
        lanes.waker_for(self.lane).map(|waker| Wakeup(Some(waker)))
    }

    /// Holds the lane: nothing is handed out until [`open`](Self::open), deliveries still go in.
    pub fn hold(&self) {
        self.lane_in(&mut self.shared.lock()).held = true;
    }

    /// Hands jobs out again.
    pub fn open(&self) {
        let mut lanes = self.shared.lock();
        let lane = self.lane_in(&mut lanes);
        lane.held = false;
        let waiting = lane.jobs.len();
        let wakers: Vec<_> = (0..waiting).map_while(|_| lanes.waker_for(self.lane)).collect();
        drop(lanes);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Takes jobs that nobody popped out of the lane, because their delivery is over: the lease
    /// ended, the channel died, the partition was revoked. Frees their credits and returns their
    /// tokens in order, without a word to the acknowledger. Looks at the whole lane.
    pub fn withdraw(&self, mut over: impl FnMut(Token) -> bool) -> Vec<Token> {
        let mut lanes = self.shared.lock();
        let jobs = self.lane_in(&mut lanes).jobs.extract(|job| over(job.token()));
        drop(lanes);
        jobs.into_iter().map(Job::forget).collect()
    }

    /// Takes back what nobody popped, in order.
    #[must_use]
    pub fn take_back(&self) -> Vec<Job> {
        self.lane_in(&mut self.shared.lock()).jobs.drain().collect()
    }

    /// Holds the lane and releases what nobody popped, last job first, so that brokers that put
    /// released jobs in front keep their order. What pausing is, on every driver.
    ///
    /// A delivery that comes later stays in the held lane: a driver that fetches in a task first
    /// [holds](Self::hold) the lane, then makes the task stop fetching, then calls this.
    ///
    /// # Errors
    /// The first failure; the other jobs are released all the same. A lease that was lost is none:
    /// that job is elsewhere already.
    pub async fn hold_and_release(&self) -> Result<()> {
        self.hold();
        let releases: Vec<_> = self.take_back().into_iter().rev().map(Job::release).collect();
        let mut answer = Ok(());
        for release in releases {
            match release.await {
                Err(error) if error.error().kind() != ErrorKind::LeaseLost => {
                    answer = answer.and(Err(error.into()));
                }
                _ => {}
            }
        }
        answer
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        let mut lanes = self.shared.lock();
        let index = lanes.lanes.iter().position(|lane| lane.id == self.lane);
        let lane = index.map(|index| lanes.lanes.remove(index));
        drop(lanes);
        // Outside the lock: this calls into the driver.
        let jobs = lane.into_iter().flat_map(|mut lane| lane.jobs.drain());
        let abandoned = jobs.map(|mut job| job.abandon()).filter(|abandoned| *abandoned).count();
        if abandoned > 0 {
            tracing::warn!(job.pipeline = %self.pipeline, abandoned, "lane closed with jobs in it");
        }
    }
}

impl fmt::Debug for Inlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inlet")
            .field("pipeline", &self.pipeline)
            .field("active", &self.active())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Credit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credit")
    }
}
