//! The queue between drivers and workers.
//!
//! A [`Queue`] has a lane per running pipeline. The driver holds the [`Inlet`] of its lane and
//! delivers jobs into it, each with one of the pipeline's [`Credit`]s; workers [`pop`](Queue::pop).
//! So the number of jobs in the process is bounded by `prefetch`, and a slow or paused pipeline
//! fills its own lane only.

mod inlet;
mod priority;
mod waiters;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::{Job, Pipeline};

pub use inlet::{Credit, Inlet, Wakeup};
pub use priority::PriorityFifo;
use waiters::{Key, Selection, Waiters};

/// Jobs that were delivered to this process and wait for a worker. Clones share the lanes.
///
/// Among the heads of all lanes [`pop`](Self::pop) takes the one with the lowest priority; lanes
/// whose heads are equal take turns. Within a lane jobs are ordered by priority, then arrival. A
/// pop looks at each lane once.
#[derive(Clone, Default)]
pub struct Queue {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    lanes: Mutex<Lanes>,
    /// Counts deliveries, for a worker that looks whether there was one.
    deliveries: AtomicUsize,
}

#[derive(Default)]
struct Lanes {
    /// Few, and looked through at every pop.
    lanes: Vec<Lane>,
    next_id: LaneId,
    /// Counts pops: the lane whose last turn is longest ago goes first among equals.
    turn: u64,
    /// Pops since a worker let others run.
    since_yield: u32,
    waiters: Waiters,
    closed: bool,
}

type LaneId = u64;

/// A worker that always finds a job would never let go of its thread.
const POPS_PER_YIELD: u32 = 256;

/// Turns a worker takes before it sleeps.
const SPINS: usize = 100;

struct Lane {
    id: LaneId,
    pipeline: Arc<str>,
    priority: i64,
    jobs: PriorityFifo<Job>,
    held: bool,
    running: usize,
    max_running: usize,
    last_turn: u64,
}

impl Lane {
    /// The priority of the job this lane would hand out now.
    fn head(&self) -> Option<i64> {
        match self.held || self.running >= self.max_running {
            true => None,
            false => self.jobs.first_priority(),
        }
    }
}

impl Queue {
    /// A queue without lanes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a lane for `pipeline`; its driver gets the inlet. Dropping the inlet closes the lane.
    #[must_use]
    pub fn open_lane(&self, pipeline: &Pipeline) -> Inlet {
        let mut lanes = self.shared.lock();
        let id = lanes.next_id;
        lanes.next_id += 1;
        let lane = Lane {
            id,
            pipeline: pipeline.shared_name(),
            priority: pipeline.priority(),
            jobs: PriorityFifo::new(),
            held: false,
            running: 0,
            max_running: pipeline.max_running().map_or(usize::MAX, usize::from),
            last_turn: 0,
        };
        lanes.lanes.push(lane);
        drop(lanes);
        Inlet::new(Arc::clone(&self.shared), id, pipeline.shared_name())
    }

    /// Waits for the next job; `None` once the queue was closed.
    ///
    /// # Cancel safety
    /// Cancel safe: no job is lost and no wake-up swallowed.
    pub fn pop(&self) -> Pop<'_> {
        Pop { shared: &self.shared, selection: Selection::All, key: None }
    }

    /// As [`pop`](Self::pop), from the lanes of the named pipelines only.
    pub fn pop_from(&self, pipelines: &Arc<[Arc<str>]>) -> Pop<'_> {
        let selection = Selection::Named(Arc::clone(pipelines));
        Pop { shared: &self.shared, selection, key: None }
    }

    /// The next job if there is one now.
    #[must_use]
    pub fn try_pop(&self) -> Option<Job> {
        let taken = self.shared.take(&mut self.shared.lock(), &Selection::All);
        taken.map(started)
    }

    /// Jobs waiting in all lanes, held ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.lock().lanes.iter().map(|lane| lane.jobs.len()).sum()
    }

    /// True if no job waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all waiting and future pops. Jobs in the lanes stay until their pipeline stops.
    pub fn close(&self) {
        let mut lanes = self.shared.lock();
        lanes.closed = true;
        let wakers = lanes.waiters.take_all();
        drop(lanes);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lanes = self.shared.lock();
        let lengths = lanes.lanes.iter().map(|lane| (&lane.pipeline, lane.jobs.len()));
        f.debug_map().entries(lengths).finish()
    }
}

impl Shared {
    /// No code of others runs under this lock, and none of ours panics with it half changed.
    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for about a microsecond whether a job comes. Putting a worker's thread to sleep and
    /// waking it costs more than that, and a busy producer is about to deliver.
    fn spin(&self, seen: usize) {
        for _ in 0..SPINS {
            if self.deliveries.load(Ordering::Relaxed) != seen {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// Takes the best job of the selected lanes. Call [`started`] on it once the lock is gone.
    fn take(self: &Arc<Self>, lanes: &mut Lanes, selection: &Selection) -> Option<Taken> {
        if lanes.closed {
            return None;
        }
        let selected = lanes.lanes.iter_mut().filter(|lane| selection.contains(&lane.pipeline));
        let ready = selected.filter_map(|lane| Some((lane.head()?, lane)));
        let (_, lane) = ready.min_by_key(|(priority, lane)| (*priority, lane.last_turn))?;
        let job = lane.jobs.pop()?;
        lanes.turn += 1;
        lanes.since_yield += 1;
        lane.last_turn = lanes.turn;
        let limited = lane.max_running != usize::MAX;
        lane.running += usize::from(limited);
        let slot = limited.then(|| RunningSlot { shared: Arc::clone(self), lane: lane.id });
        Some(Taken { job, slot })
    }
}

struct Taken {
    job: Job,
    slot: Option<RunningSlot>,
}

/// Marks the job as handed out: outside the queue's lock, because it may settle the job.
fn started(taken: Taken) -> Job {
    let Taken { mut job, slot } = taken;
    job.start(slot);
    job
}

impl Lanes {
    fn lane(&mut self, id: LaneId) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.id == id)
    }

    /// The waker of somebody who can take a job from this lane now. Wake it without the lock.
    fn waker_for(&mut self, lane: LaneId) -> Option<Waker> {
        if self.waiters.is_empty() {
            return None;
        }
        let lane = self.lanes.iter().find(|other| other.id == lane)?;
        lane.head()?;
        self.waiters.take_for(&lane.pipeline)
    }

    /// One waker for each of the selected lanes that has a job to hand out.
    fn wakers_for(&mut self, selection: &Selection) -> Vec<Waker> {
        if self.waiters.is_empty() {
            return Vec::new();
        }
        let selected = self.lanes.iter().filter(|lane| selection.contains(&lane.pipeline));
        let ids: Vec<_> = selected.map(|lane| lane.id).collect();
        ids.into_iter().filter_map(|id| self.waker_for(id)).collect()
    }
}

/// One of the places in `max_running`; freed when the job is settled or dropped.
pub(crate) struct RunningSlot {
    shared: Arc<Shared>,
    lane: LaneId,
}

impl Drop for RunningSlot {
    fn drop(&mut self) {
        let mut lanes = self.shared.lock();
        if let Some(lane) = lanes.lane(self.lane) {
            lane.running -= 1;
        }
        let waker = lanes.waker_for(self.lane);
        drop(lanes);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// Waits for the next job.
#[must_use = "a pop does nothing unless awaited"]
pub struct Pop<'a> {
    shared: &'a Arc<Shared>,
    selection: Selection,
    key: Option<Key>,
}

impl Future for Pop<'_> {
    type Output = Option<Job>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Job>> {
        let this = self.get_mut();
        let deliveries = this.shared.deliveries.load(Ordering::Relaxed);
        let mut lanes = this.shared.lock();
        if lanes.since_yield >= POPS_PER_YIELD {
            // Others on this thread, such as the producers, get their turn.
            lanes.since_yield = 0;
            drop(lanes);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut taken = this.shared.take(&mut lanes, &this.selection);
        if taken.is_none() && this.key.is_none() {
            drop(lanes);
            this.shared.spin(deliveries);
            lanes = this.shared.lock();
            taken = this.shared.take(&mut lanes, &this.selection);
        }
        if let Some(taken) = taken {
            let wakers = this.leave(&mut lanes);
            drop(lanes);
            wakers.into_iter().for_each(Waker::wake);
            return Poll::Ready(Some(started(taken)));
        }
        if lanes.closed {
            return Poll::Ready(None);
        }
        let key = lanes.waiters.wait(this.key, &this.selection, cx.waker());
        this.key = Some(key);
        Poll::Pending
    }
}

impl Pop<'_> {
    /// Waits no longer. If it was woken, then for a job that it may not have taken: whoever can take
    /// what is there is woken instead.
    fn leave(&mut self, lanes: &mut Lanes) -> Vec<Waker> {
        match self.key.take() {
            Some(key) if !lanes.waiters.remove(key) => lanes.wakers_for(&self.selection),
            _ => Vec::new(),
        }
    }
}

impl Drop for Pop<'_> {
    fn drop(&mut self) {
        if self.key.is_some() {
            let shared = self.shared;
            let mut lanes = shared.lock();
            let wakers = self.leave(&mut lanes);
            drop(lanes);
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl fmt::Debug for Pop<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pop").finish_non_exhaustive()
    }
}
