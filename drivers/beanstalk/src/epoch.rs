//! The receipts of one connection: outcomes on their way to the thread that owns it.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use jobs_core::{
    Acknowledger, Capabilities, Credit, Error, ErrorKind, Extender, Extending, Message, Outcome,
    Refusal, Settler, Settling, Token, Unsettled, Wakeup,
};

use crate::NAME;
use crate::pool::{NEWS, lock};
use crate::reservations::{Due, Reservation, Reservations};

/// What receipts of one connection hand their outcomes to. Once dead it stays so: what it reserved
/// is ready again, or will be.
pub(crate) struct Epoch {
    capabilities: Arc<Capabilities>,
    others: Arc<Epochs>,
    state: Mutex<State>,
    bell: Condvar,
}

/// What a thread does, for the others to see.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Role {
    /// Anything else.
    #[default]
    Busy,
    /// Its request for a job waits at the server, which should have answered by then.
    Waiting(Instant),
    /// It holds no job, and has no credit to ask for one with.
    Free,
}

#[derive(Default)]
struct State {
    dead: bool,
    role: Role,
    /// Something changed that the thread should look at.
    rung: bool,
    /// The thread waits for the bell.
    waiting: bool,
    held: Reservations,
    /// For the job that is being asked for: not lost with a thread that is stuck.
    credit: Option<Credit>,
    orders: VecDeque<(Order, Reply)>,
    /// To the order that is carried out: not lost with a thread that is stuck, either.
    reply: Reply,
    news: News,
}

/// What others are told as soon as the thread has nothing else to do.
#[derive(Default)]
struct News {
    since: Option<Instant>,
    /// Orders that are carried out.
    done: Vec<Reply>,
    /// Of jobs that were delivered.
    wakeups: Vec<Wakeup>,
}

/// What the thread is to do. Who waits for the answer stays with the epoch, see [`Epoch::reply`].
pub(crate) enum Order {
    Settle(Token, Ending),
    Extend(Token, Duration),
}

/// How a delivery ends.
#[derive(Debug)]
pub(crate) enum Ending {
    Ack,
    Reject,
    Release,
    /// `changed`: its headers did.
    Requeue {
        message: Message,
        delay: Duration,
        changed: bool,
    },
    /// Dropped by its worker.
    Abandon,
}

/// Whom to tell. Dropped without an answer it tells that the lease is lost.
#[derive(Default)]
pub(crate) struct Reply(Option<Asked>);

enum Asked {
    /// With the job to give back if it could not be settled.
    Settle(Option<Settler>, Unsettled),
    Extend(Extender),
}

/// The epochs of a pipeline that are alive.
#[derive(Default)]
pub(crate) struct Epochs(Mutex<Vec<Weak<Epoch>>>);

impl Epochs {
    /// Makes every thread look whether there is something to do.
    pub(crate) fn ring(&self) {
        let alive: Vec<_> = lock(&self.0).iter().filter_map(Weak::upgrade).collect();
        alive.iter().for_each(|epoch| epoch.ring());
    }
}

impl Epoch {
    pub(crate) fn begin(capabilities: &Arc<Capabilities>, others: &Arc<Epochs>) -> Arc<Self> {
        let (state, bell) = Default::default();
        let (capabilities, others) = (Arc::clone(capabilities), Arc::clone(others));
        let epoch = Arc::new(Self { capabilities, others, state, bell });
        let mut all = lock(&epoch.others.0);
        all.retain(|epoch| epoch.strong_count() > 0);
        all.push(Arc::downgrade(&epoch));
        drop(all);
        epoch
    }

    pub(crate) fn ring(&self) {
        let mut state = lock(&self.state);
        state.rung = true;
        self.wake(state);
    }

    /// Wakes the thread, which costs nothing if it does not sleep.
    fn wake(&self, state: MutexGuard<'_, State>) {
        let waiting = state.waiting;
        drop(state);
        if waiting {
            self.bell.notify_one();
        }
    }

    /// The order under way is carried out.
    pub(crate) fn done(&self) {
        let mut state = lock(&self.state);
        let reply = mem::take(&mut state.reply);
        state.news.done.push(reply);
        Self::tell_if_due(state);
    }

    /// A job was delivered.
    pub(crate) fn delivered(&self, wakeup: Option<Wakeup>) {
        let Some(wakeup) = wakeup else { return };
        let mut state = lock(&self.state);
        state.news.wakeups.push(wakeup);
        Self::tell_if_due(state);
    }

    fn tell_if_due(mut state: MutexGuard<'_, State>) {
        let news = &mut state.news;
        let since = *news.since.get_or_insert_with(Instant::now);
        let jobs = news.done.len() + news.wakeups.len();
        if jobs >= NEWS.0 || since.elapsed() >= NEWS.1 || state.dead {
            let news = mem::take(&mut state.news);
            drop(state);
            news.tell();
        }
    }

    /// Tells all, before the thread waits.
    pub(crate) fn tell(&self) {
        let news = mem::take(&mut lock(&self.state).news);
        news.tell();
    }

    pub(crate) fn role(&self) -> Role {
        lock(&self.state).role
    }

    /// Does something that the others should see.
    pub(crate) fn as_role<T>(&self, role: Role, work: impl FnOnce() -> T) -> T {
        lock(&self.state).role = role;
        let done = work();
        lock(&self.state).role = Role::Busy;
        done
    }

    /// Keeps the credit of a job that is asked for; gives it back if the epoch is dead.
    pub(crate) fn keep(&self, credit: Credit) -> Option<Credit> {
        let mut state = lock(&self.state);
        if state.dead {
            return Some(credit);
        }
        state.credit = Some(credit);
        None
    }

    /// Takes the credit back, unless somebody gave the thread up and took it.
    pub(crate) fn credit(&self) -> Option<Credit> {
        lock(&self.state).credit.take()
    }

    /// Ends all reservations, and returns their tokens. Those who wait for an answer are told.
    pub(crate) fn kill(&self) -> Vec<Token> {
        let mut state = lock(&self.state);
        state.dead = true;
        let (held, orders) = (mem::take(&mut state.held), mem::take(&mut state.orders));
        let (reply, news) = (mem::take(&mut state.reply), mem::take(&mut state.news));
        drop(state);
        news.tell();
        // Dropping them tells, which calls others.
        drop((reply, orders));
        held.tokens()
    }

    /// Ends it if there is nothing to do.
    pub(crate) fn kill_if_idle(&self) -> bool {
        let mut state = lock(&self.state);
        state.dead |= state.orders.is_empty();
        state.dead
    }

    pub(crate) fn is_dead(&self) -> bool {
        lock(&self.state).dead
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.state).held.is_empty()
    }

    /// Notes a reservation. Returns the token of an earlier one of the same job; refused by a dead
    /// epoch.
    pub(crate) fn hold(&self, token: Token, reservation: Reservation) -> Result<Option<Token>, ()> {
        let mut state = lock(&self.state);
        if state.dead { Err(()) } else { Ok(state.held.insert(token, reservation)) }
    }

    pub(crate) fn order(&self) -> Option<Order> {
        let mut state = lock(&self.state);
        state.rung = false;
        let (order, reply) = state.orders.pop_front()?;
        state.reply = reply;
        Some(order)
    }

    /// Whom to tell that the order failed; nobody if the thread was given up meanwhile.
    pub(crate) fn reply(&self) -> Reply {
        mem::take(&mut lock(&self.state).reply)
    }

    pub(crate) fn due(&self, now: Instant) -> Option<Due> {
        lock(&self.state).held.due(now)
    }

    /// The reservation, if it lasts.
    pub(crate) fn reservation(&self, token: Token) -> Option<Reservation> {
        lock(&self.state).held.get(token, Instant::now()).cloned()
    }

    pub(crate) fn forget(&self, token: Token) -> Option<Reservation> {
        lock(&self.state).held.remove(token)
    }

    pub(crate) fn reopen(&self, token: Token) {
        lock(&self.state).held.reopen(token);
    }

    pub(crate) fn renew(&self, token: Token, asked: Instant) {
        lock(&self.state).held.renew(token, asked);
    }

    pub(crate) fn postpone(&self, token: Token) {
        lock(&self.state).held.postpone(token, Instant::now());
    }

    pub(crate) fn extend_to(&self, token: Token, ends: Instant) {
        lock(&self.state).held.extend(token, ends);
    }

    /// Waits until there is something to do: an order, a ring, a reservation that is due, or `at`.
    pub(crate) fn wait(&self, at: Option<Instant>) {
        self.tell();
        let mut state = lock(&self.state);
        state.waiting = true;
        let until = state.held.next().into_iter().chain(at).min();
        let waits = |state: &mut State| !state.rung && !state.dead && state.orders.is_empty();
        let mut state = match until {
            None => self.bell.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                let waited = self.bell.wait_timeout_while(state, left, waits);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.waiting = false;
    }

    fn ending(&self, job: &Unsettled, outcome: Outcome) -> Result<Ending, Error> {
        Ok(match outcome {
            Outcome::Ack => Ending::Ack,
            Outcome::Reject => Ending::Reject,
            Outcome::Release => Ending::Release,
            Outcome::Requeue { delay, headers } => {
                let changed = headers.as_ref().is_some_and(|to| to != job.message.headers());
                let message = self.capabilities.admit_requeue(&job.message, delay, headers);
                let message = message.map_err(|error| error.with_driver(NAME))?;
                Ending::Requeue { message, delay, changed }
            }
        })
    }

    /// Takes an outcome over, unless the reservation is over.
    fn settle_as(&self, job: Unsettled, ending: Ending, settler: Option<Settler>) -> bool {
        let token = job.token;
        let mut state = lock(&self.state);
        if state.dead || !state.held.begin(token, Instant::now()) {
            return false;
        }
        let reply = Reply(Some(Asked::Settle(settler, job)));
        state.orders.push_back((Order::Settle(token, ending), reply));
        self.wake(state);
        true
    }
}

impl News {
    /// Calls others, so not under a lock.
    fn tell(self) {
        self.done.into_iter().for_each(Reply::done);
        drop(self.wakeups);
    }
}

impl Acknowledger for Epoch {
    fn settle(&self, mut job: Unsettled, outcome: Outcome) -> Settling {
        let ending = match self.ending(&job, outcome) {
            Ok(ending) => ending,
            Err(error) => return Settling::refused(Refusal { error, job: Some(job) }),
        };
        // The thread that settles it is the one to use it again.
        job.credit = None;
        let (settler, settling) = Settling::later();
        if self.settle_as(job, ending, Some(settler)) {
            return settling;
        }
        self.others.ring();
        Settling::refused(Refusal::lease_lost(NAME))
    }

    fn extend(&self, token: Token, by: Duration) -> Extending {
        let (extender, extending) = Extending::later();
        let mut state = lock(&self.state);
        if state.dead || state.held.get(token, Instant::now()).is_none() {
            return Extending::ready(Err(lease_lost("extend")));
        }
        state.orders.push_back((Order::Extend(token, by), Reply(Some(Asked::Extend(extender)))));
        self.wake(state);
        extending
    }

    fn abandon(&self, mut job: Unsettled) {
        job.credit = None;
        if !self.settle_as(job, Ending::Abandon, None) {
            // It is back already. Only its credit is free now.
            self.others.ring();
        }
    }
}

impl Reply {
    pub(crate) fn done(mut self) {
        match self.0.take() {
            Some(Asked::Settle(Some(settler), _)) => settler.done(),
            Some(Asked::Extend(extender)) => extender.answer(Ok(())),
            _ => {}
        }
    }

    /// A job can be settled in another way. If nobody listens, it comes back.
    pub(crate) fn refuse(mut self, error: Error) -> Option<Unsettled> {
        match self.0.take()? {
            Asked::Settle(settler, job) => {
                let refusal = Refusal { error, job: Some(job) };
                settler?.refuse(refusal).err().and_then(|refusal| refusal.job)
            }
            Asked::Extend(extender) => {
                extender.answer(Err(error));
                None
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        match self.0.take() {
            // Nobody listens: the job is elsewhere, there is nothing to give up.
            Some(Asked::Settle(Some(settler), _)) => {
                drop(settler.refuse(Refusal::lease_lost(NAME)));
            }
            Some(Asked::Extend(extender)) => extender.answer(Err(lease_lost("extend"))),
            _ => {}
        }
    }
}

fn lease_lost(operation: &'static str) -> Error {
    Error::new(ErrorKind::LeaseLost, operation).with_driver(NAME)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn held(epoch: &Epoch, token: Token, time_to_run: Duration) -> Unsettled {
        let message = Message::new("a", "");
        let reservation = Reservation {
            id: token,
            priority: 10,
            time_to_run,
            message: message.clone(),
            attempt: 1,
            ours: true,
            renewed: Instant::now(),
            ends: None,
        };
        epoch.hold(token, reservation).expect("alive");
        Unsettled { token, credit: None, message, attempt: 1 }
    }

    fn epoch() -> Arc<Epoch> {
        Epoch::begin(&Arc::default(), &Arc::default())
    }

    fn kind(settling: Settling) -> Option<ErrorKind> {
        let answer = settling.now_or_never()?;
        answer.err().map(|refusal| refusal.error.kind())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn outcomes_wait_for_the_thread() {
        let epoch = epoch();
        let job = held(&epoch, 1, LONG);
        let mut settling = epoch.settle(job, Outcome::Ack);
        assert!((&mut settling).now_or_never().is_none());
        let order = epoch.order();
        assert!(matches!(order, Some(Order::Settle(1, Ending::Ack))), "it was handed over");
        assert!(!epoch.is_empty() && epoch.forget(1).is_some());
        epoch.done();
        assert!((&mut settling).now_or_never().is_none(), "the thread may have more to do");
        epoch.tell();
        assert!(settling.now_or_never().expect("answered").is_ok());
    }

    #[test]
    fn receipts_of_what_is_over_are_refused_and_do_not_reach_the_thread() {
        let epoch = epoch();
        let lapsed = held(&epoch, 1, Duration::ZERO);
        assert_eq!(kind(epoch.settle(lapsed, Outcome::Ack)), Some(ErrorKind::LeaseLost));
        let (first, waiting) = (held(&epoch, 2, LONG), held(&epoch, 3, LONG));
        let late = Unsettled { token: 2, credit: None, message: first.message.clone(), attempt: 1 };
        let settling = epoch.settle(first, Outcome::Release);
        assert_eq!(kind(epoch.settle(late, Outcome::Ack)), Some(ErrorKind::LeaseLost), "settled");
        let mut ended = epoch.kill();
        ended.sort_unstable();
        assert_eq!(ended, [2, 3]);
        assert_eq!(kind(settling), Some(ErrorKind::LeaseLost));
        assert_eq!(kind(epoch.settle(waiting, Outcome::Ack)), Some(ErrorKind::LeaseLost));
        assert!(epoch.order().is_none());
        assert!(epoch.extend(3, LONG).now_or_never().expect("at once").is_err());
    }

    #[test]
    fn what_is_under_way_is_answered_when_the_thread_is_given_up() {
        let epoch = epoch();
        let job = held(&epoch, 1, LONG);
        held(&epoch, 2, LONG);
        let extending = epoch.extend(2, LONG);
        assert!(matches!(epoch.order(), Some(Order::Extend(2, LONG))));
        epoch.done();
        let settling = epoch.settle(job, Outcome::Ack);
        assert!(epoch.order().is_some());
        epoch.kill();
        assert!(extending.now_or_never().expect("answered").is_ok(), "it was carried out");
        assert_eq!(kind(settling), Some(ErrorKind::LeaseLost), "nobody knows");
        epoch.done();
    }

    #[test]
    fn a_ring_ends_a_wait_also_if_it_came_before() {
        let epoch = epoch();
        epoch.others.ring();
        epoch.wait(None);
        assert!(epoch.order().is_none(), "it is heard once");
        let before = Instant::now();
        epoch.wait(Some(before + Duration::from_millis(5)));
        assert!(before.elapsed() >= Duration::from_millis(5));
        held(&epoch, 1, Duration::from_millis(10));
        epoch.wait(None);
        assert!(epoch.due(Instant::now()).is_some(), "half of its time is over");
    }
}
