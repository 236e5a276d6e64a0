//! Things that share requests: what comes while requests are under way goes together.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

/// Most things in one request. Source: the quotas of Amazon SQS.
pub(crate) const FULL: usize = 10;

/// Most requests under way.
const MOST: usize = 16;

/// What becomes of things that wait.
pub(crate) trait Carrier: Send + Sync + 'static {
    /// One of them. What dropping it does is what happens to those left at the end.
    type Item: Send + 'static;

    /// With fewer requests under way one begins that is not full: whoever waits alone waits for nobody.
    const FEW: usize;

    /// Takes out what goes in one request. None: nothing may go now, and what is under way is about to
    /// change that.
    fn cut(&self, waiting: &mut VecDeque<Self::Item>) -> Vec<Self::Item>;

    /// Sends them, and answers each.
    fn carry(&self, batch: Vec<Self::Item>) -> impl Future<Output = ()> + Send;
}

/// Lets a carrier carry.
pub(crate) struct Coalescer<C: Carrier> {
    carrier: C,
    handle: Handle,
    state: Mutex<State<C::Item>>,
    idle: Notify,
}

struct State<T> {
    waiting: VecDeque<T>,
    /// Tasks that carry or are about to.
    flying: usize,
    /// Of these, those that have not taken their batch yet.
    starting: usize,
    closed: bool,
    tasks: JoinSet<()>,
}

impl<T> State<T> {
    /// True if one more request should begin beside `others`.
    fn wants_more(&self, others: usize, few: usize) -> bool {
        let unclaimed = self.waiting.len().saturating_sub(self.starting * FULL);
        others < MOST && (unclaimed >= FULL || (unclaimed > 0 && others < few))
    }
}

impl<C: Carrier> Coalescer<C> {
    pub(crate) fn new(carrier: C, handle: Handle) -> Arc<Self> {
        let state = State {
            waiting: VecDeque::new(),
            flying: 0,
            starting: 0,
            closed: false,
            tasks: JoinSet::new(),
        };
        Arc::new(Self { carrier, handle, state: Mutex::new(state), idle: Notify::new() })
    }

    pub(crate) fn carrier(&self) -> &C {
        &self.carrier
    }

    /// Takes things over, unless it is closed: then they are dropped.
    pub(crate) fn add(self: &Arc<Self>, items: impl IntoIterator<Item = C::Item>) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            drop(items);
            return;
        }
        state.waiting.extend(items);
        self.launch(&mut state);
    }

    fn launch(self: &Arc<Self>, state: &mut State<C::Item>) {
        while state.tasks.try_join_next().is_some() {}
        while state.wants_more(state.flying, C::FEW) {
            state.flying += 1;
            state.starting += 1;
            state.tasks.spawn_on(Arc::clone(self).fly(), &self.handle);
        }
    }

    async fn fly(self: Arc<Self>) {
        loop {
            // Those who were woken by the same answer add theirs first.
            tokio::task::yield_now().await;
            let batch = {
                let mut state = self.lock();
                state.starting -= 1;
                let batch = self.carrier.cut(&mut state.waiting);
                if batch.is_empty() {
                    self.land(&mut state);
                    return;
                }
                self.launch(&mut state);
                batch
            };
            self.carrier.carry(batch).await;
            let mut state = self.lock();
            if !state.wants_more(state.flying - 1, C::FEW) {
                self.land(&mut state);
                return;
            }
            state.starting += 1;
        }
    }

    fn land(&self, state: &mut State<C::Item>) {
        state.flying -= 1;
        if state.flying == 0 {
            self.idle.notify_waiters();
        }
    }

    /// Takes nothing more, and waits until everything is carried, but not beyond the deadline. What is
    /// left then is dropped.
    pub(crate) async fn close(&self, deadline: Instant) {
        self.lock().closed = true;
        let _ = timeout_at(deadline, self.idle()).await;
        let (mut tasks, waiting) = {
            let mut state = self.lock();
            (std::mem::take(&mut state.tasks), std::mem::take(&mut state.waiting))
        };
        drop(waiting);
        tasks.shutdown().await;
    }

    /// Waits until nothing is under way.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            {
                let state = self.lock();
                if state.flying == 0 {
                    return;
                }
            }
            idle.await;
        }
    }

    /// Ends everything now.
    pub(crate) fn abort(&self) {
        let (tasks, waiting) = {
            let mut state = self.lock();
            state.closed = true;
            (std::mem::take(&mut state.tasks), std::mem::take(&mut state.waiting))
        };
        drop(tasks);
        drop(waiting);
    }

    /// Nothing of others runs under this lock but the carrier's cutting.
    fn lock(&self) -> MutexGuard<'_, State<C::Item>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Carrier> fmt::Debug for Coalescer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Coalescer")
            .field("waiting", &state.waiting.len())
            .field("flying", &state.flying)
            .finish_non_exhaustive()
    }
}

/// The first ten at most.
pub(crate) fn cut_ten<T>(waiting: &mut VecDeque<T>) -> Vec<T> {
    let count = waiting.len().min(FULL);
    waiting.drain(..count).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::Semaphore;

    use super::*;

    /// Notes the sizes of batches, each of which needs a permit to end.
    struct Sizes {
        begun: Mutex<Vec<usize>>,
        permits: Semaphore,
    }

    impl Carrier for Sizes {
        type Item = tokio::sync::oneshot::Sender<()>;
        const FEW: usize = 4;

        fn cut(&self, waiting: &mut VecDeque<Self::Item>) -> Vec<Self::Item> {
            cut_ten(waiting)
        }

        async fn carry(&self, batch: Vec<Self::Item>) {
            self.begun.lock().unwrap().push(batch.len());
            self.permits.acquire().await.unwrap().forget();
            batch.into_iter().for_each(|answer| answer.send(()).unwrap());
        }
    }

    fn sizes() -> Arc<Coalescer<Sizes>> {
        let carrier = Sizes { begun: Mutex::default(), permits: Semaphore::new(0) };
        Coalescer::new(carrier, Handle::current())
    }

    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    fn begun(coalescer: &Coalescer<Sizes>) -> Vec<usize> {
        coalescer.carrier().begun.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn what_comes_while_requests_are_under_way_goes_together() {
        let coalescer = sizes();
        let mut answers = Vec::new();
        for _ in 0..25 {
            let (sender, answer) = tokio::sync::oneshot::channel();
            answers.push(answer);
            coalescer.add([sender]);
        }
        settle().await;
        assert_eq!(begun(&coalescer), [10, 10, 5], "at once");
        for _ in 0..12 {
            let (sender, answer) = tokio::sync::oneshot::channel();
            answers.push(answer);
            coalescer.add([sender]);
            settle().await;
        }
        assert_eq!(begun(&coalescer), [10, 10, 5, 1, 10], "with few under way nobody waits");
        coalescer.carrier().permits.add_permits(100);
        for answer in answers {
            answer.await.unwrap();
        }
        coalescer.idle().await;
        assert_eq!(begun(&coalescer).iter().sum::<usize>(), 37);
    }

    #[tokio::test(start_paused = true)]
    async fn closing_drops_what_is_left_at_the_deadline() {
        let coalescer = sizes();
        let (sender, answer) = tokio::sync::oneshot::channel();
        coalescer.add([sender]);
        settle().await;
        coalescer.close(Instant::now() + Duration::from_secs(1)).await;
        assert!(answer.await.is_err());
        let (sender, late) = tokio::sync::oneshot::channel();
        coalescer.add([sender]);
        assert!(late.await.is_err());
    }
}
