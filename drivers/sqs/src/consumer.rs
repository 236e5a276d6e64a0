//! Consuming: what the tasks share that receive, extend and settle, and how they begin and end.

mod receive;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use jobs_core::{
    Acknowledger, Capabilities, Credit, Delivery, Error, ErrorKind, Extending, Headers, Health,
    Inlet, Message, Outcome, Refusal, Result, Settling, Token, Unsettled, Wakeup,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::NAME;
use crate::coalescer::Coalescer;
use crate::codec::Encoded;
use crate::config::SqsConfig;
use crate::connection::{Link, lock};
use crate::delays::Hop;
use crate::error::lease_lost;
use crate::groups::Groups;
use crate::outbox::Outbox;
use crate::settlements::{Change, Changes, Purpose, Removal, Removals, Reply};
use crate::visibility::{Leases, whole_seconds};

/// The keeper of leases that has nothing to do looks again after so long.
const IDLE: Duration = Duration::from_secs(3600);

/// A pipeline that consumes.
pub(crate) struct Consumer {
    desk: Arc<Desk>,
    ending: watch::Sender<bool>,
    /// Those that receive, and the one for delays.
    receivers: tokio::sync::Mutex<JoinSet<()>>,
    keeper: tokio::sync::Mutex<JoinSet<()>>,
}

/// What its tasks share. Outcomes are handed over here.
pub(crate) struct Desk {
    me: Weak<Desk>,
    pub(crate) config: Arc<SqsConfig>,
    pub(crate) health: Arc<Health>,
    pub(crate) link: Arc<Link>,
    pub(crate) url: String,
    capabilities: Arc<Capabilities>,
    outbox: Arc<Outbox>,
    fifo: bool,
    floor: Mutex<Floor>,
    tokens: AtomicU64,
    /// Credits that are out for jobs that are not there yet.
    fetching: AtomicUsize,
    /// Told when receivers should look again whether to receive.
    changed: Notify,
    /// Told when a lease is due sooner than those before.
    agenda: Notify,
    /// One gathers credits at a time, lest two share what is enough for one.
    turn: tokio::sync::Mutex<()>,
    /// More than one request for messages is worth its price.
    busy: AtomicBool,
    removals: Arc<Coalescer<Removals>>,
    changes: Arc<Coalescer<Changes>>,
    /// Copies that are being stored.
    errands: Mutex<JoinSet<()>>,
    handle: Handle,
    discarded: AtomicU64,
}

/// Held for moments, and through a delivery, so that none comes after a pause.
struct Floor {
    phase: Phase,
    /// Receipts mean nothing any more.
    dead: bool,
    /// Taken out by the stop, which closes the lane.
    inlet: Option<Arc<Inlet>>,
    leases: Leases,
    groups: Groups<(Credit, Delivery)>,
    /// Changes that wait for an earlier one of the same message.
    later: HashMap<Token, VecDeque<Change>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Paused,
    Closing,
}

/// What an outcome means here.
enum Order {
    Delete,
    /// It goes back, hidden for so many seconds.
    Return(i32),
    Copy(Encoded, Hop),
    Bury,
}

/// How a lease ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The job is over.
    Done,
    /// It comes again.
    Again,
}

/// What happened under the lock, and is told when it is free.
#[derive(Default)]
struct Aftermath {
    wakeup: Option<Wakeup>,
    changes: Vec<Change>,
}

impl Consumer {
    pub(crate) fn start(
        config: &Arc<SqsConfig>,
        capabilities: &Arc<Capabilities>,
        health: &Arc<Health>,
        link: &Arc<Link>,
        outbox: &Arc<Outbox>,
        url: &str,
        inlet: Inlet,
    ) -> Self {
        let handle = Handle::current();
        let leases = Leases::new(config.visibility_timeout, config.max_lease);
        let desk = Arc::new_cyclic(|desk| Desk {
            me: desk.clone(),
            config: Arc::clone(config),
            health: Arc::clone(health),
            link: Arc::clone(link),
            url: url.to_owned(),
            capabilities: Arc::clone(capabilities),
            outbox: Arc::clone(outbox),
            fifo: config.fifo,
            floor: Mutex::new(Floor {
                phase: Phase::Running,
                dead: false,
                inlet: Some(Arc::new(inlet)),
                leases,
                groups: Groups::default(),
                later: HashMap::new(),
            }),
            tokens: AtomicU64::new(1),
            fetching: AtomicUsize::new(0),
            changed: Notify::new(),
            agenda: Notify::new(),
            turn: tokio::sync::Mutex::default(),
            busy: AtomicBool::new(false),
            removals: Coalescer::new(Removals(desk.clone()), handle.clone()),
            changes: Coalescer::new(Changes(desk.clone()), handle.clone()),
            errands: Mutex::default(),
            handle,
            discarded: AtomicU64::new(0),
        });
        let (ending, ended) = watch::channel(false);
        let mut receivers = JoinSet::new();
        for number in 0..config.receivers.get() {
            receivers.spawn(Arc::clone(&desk).receive_all(number));
        }
        let delays = Arc::clone(&outbox.delays);
        receivers.spawn(delays.look_after(outbox.main.clone(), ended));
        let mut keeper = JoinSet::new();
        keeper.spawn(Arc::clone(&desk).keep());
        Self { desk, ending, receivers: receivers.into(), keeper: keeper.into() }
    }

    /// Jobs in this process.
    pub(crate) fn active(&self) -> usize {
        let active = lock(&self.desk.floor).inlet.as_ref().map_or(0, |inlet| inlet.active());
        active.saturating_sub(self.desk.fetching.load(Ordering::Acquire))
    }

    /// Lets no more jobs in, and gives back what nobody popped. A request for messages that waits at the
    /// service goes on: what it brings goes back at once.
    pub(crate) async fn pause(&self) -> Result<()> {
        self.desk.pause(Phase::Paused).await
    }

    pub(crate) fn resume(&self) {
        let inlet = {
            let mut floor = lock(&self.desk.floor);
            if floor.phase == Phase::Paused {
                floor.phase = Phase::Running;
            }
            floor.inlet.clone()
        };
        inlet.iter().for_each(|inlet| inlet.open());
        self.desk.changed.notify_waiters();
    }

    /// Gives everything back, lets requests that wait at the service finish, and ends all tasks; at the
    /// deadline at the latest.
    pub(crate) async fn stop(&self, deadline: Instant) -> Result<()> {
        let desk = &self.desk;
        self.ending.send_replace(true);
        let paused = timeout_at(deadline, desk.pause(Phase::Closing)).await;
        desk.abandon_all();
        let mut receivers = self.receivers.lock().await;
        let ended = async { while receivers.join_next().await.is_some() {} };
        let _ = timeout_at(deadline, ended).await;
        receivers.shutdown().await;
        let mut errands = std::mem::take(&mut *lock(&desk.errands));
        let ended = async { while errands.join_next().await.is_some() {} };
        let _ = timeout_at(deadline, ended).await;
        errands.shutdown().await;
        // What waits for an answer that is under way is not added yet.
        let idle = async { tokio::join!(desk.removals.idle(), desk.changes.idle()) };
        let _ = timeout_at(deadline, idle).await;
        tokio::join!(desk.removals.close(deadline), desk.changes.close(deadline));
        self.keeper.lock().await.shutdown().await;
        desk.close();
        match paused {
            // What could not be given back now comes back when its lease ends.
            Ok(Err(error)) if !error.is_retryable() && error.kind() != ErrorKind::Closed => {
                Err(error)
            }
            _ => Ok(()),
        }
    }
}

/// A consumer that is dropped is one that died: its jobs come back when their leases end.
impl Drop for Consumer {
    fn drop(&mut self) {
        self.desk.removals.abort();
        self.desk.changes.abort();
        let errands = std::mem::take(&mut *lock(&self.desk.errands));
        drop(errands);
        self.desk.close();
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("url", &self.desk.url).finish_non_exhaustive()
    }
}

impl Floor {
    /// Changes a visibility, after those of the same message that are under way.
    fn change(&mut self, change: Change, aftermath: &mut Aftermath) {
        match self.leases.any(change.token) {
            Some(lease) if lease.changing => {
                self.later.entry(change.token).or_default().push_back(change);
            }
            Some(lease) => {
                lease.changing = true;
                aftermath.changes.push(change);
            }
            // Dropping it tells.
            None => {}
        }
    }

    /// Gives a job back that nobody asks about any more.
    fn give_back(&mut self, token: Token, aftermath: &mut Aftermath) {
        let Some(lease) = self.leases.any(token) else { return };
        lease.settling = true;
        let handle = lease.handle.clone();
        let purpose = Purpose::Return { reply: None, since: Instant::now() };
        self.change(Change { token, handle, seconds: 0, purpose }, aftermath);
    }

    /// Gives back those of a group that came after one that is back. Not sooner: there are servers that
    /// then deliver them before it.
    fn give_back_later(&mut self, token: Token, aftermath: &mut Aftermath) {
        let Some(group) = self.leases.any(token).and_then(|lease| lease.group.clone()) else {
            return;
        };
        for (later, job) in self.groups.went_back(&group, token) {
            drop(job);
            self.give_back(later, aftermath);
        }
    }

    /// Puts a job into the lane, or gives it back if nothing is delivered now.
    fn deliver(&mut self, token: Token, job: (Credit, Delivery), aftermath: &mut Aftermath) {
        match &self.inlet {
            Some(inlet) if self.phase == Phase::Running => {
                let (credit, delivery) = job;
                let wakeup = inlet.deliver(credit, delivery);
                // More than one only if the one before was there already.
                aftermath.wakeup = wakeup.or(aftermath.wakeup.take());
            }
            _ => {
                drop(job);
                self.give_back(token, aftermath);
            }
        }
    }

    /// Forgets a lease.
    fn end(&mut self, token: Token, end: End, aftermath: &mut Aftermath) {
        if end == End::Again {
            self.give_back_later(token, aftermath);
        }
        // Changes that waited for it are dropped, which tells.
        self.later.remove(&token);
        let Some(group) = self.leases.remove(token).and_then(|lease| lease.group) else { return };
        if end == End::Done
            && let Some((next, job)) = self.groups.ended(&group, token)
        {
            self.deliver(next, job, aftermath);
        }
    }
}

impl Desk {
    /// Does something under the lock, and tells of it after.
    fn on_floor<T>(&self, work: impl FnOnce(&mut Floor, &mut Aftermath) -> T) -> T {
        let mut aftermath = Aftermath::default();
        let (answer, sooner) = {
            let mut floor = lock(&self.floor);
            let before = floor.leases.next();
            let answer = work(&mut floor, &mut aftermath);
            let after = floor.leases.next();
            (answer, after.is_some_and(|after| before.is_none_or(|before| after < before)))
        };
        if sooner {
            self.agenda.notify_one();
        }
        if !aftermath.changes.is_empty() {
            self.changes.add(aftermath.changes);
        }
        answer
    }

    async fn pause(&self, phase: Phase) -> Result<()> {
        let inlet = {
            let mut floor = lock(&self.floor);
            if floor.phase != Phase::Closing {
                floor.phase = phase;
            }
            floor.inlet.clone()
        };
        self.changed.notify_waiters();
        let answer = match inlet {
            Some(inlet) => inlet.hold_and_release().await,
            None => Ok(()),
        };
        // Those that came after a job a worker has.
        self.on_floor(|floor, aftermath| {
            for (token, job) in floor.groups.take_waiting() {
                drop(job);
                floor.give_back(token, aftermath);
            }
        });
        answer
    }

    /// Gives back what workers still have, whose receipts mean nothing from now on.
    fn abandon_all(&self) {
        self.on_floor(|floor, aftermath| {
            floor.dead = true;
            for token in floor.leases.unsettled() {
                floor.give_back(token, aftermath);
            }
        });
    }

    /// Ends everything that is not a task.
    fn close(&self) {
        let (inlet, later, groups) = {
            let mut floor = lock(&self.floor);
            floor.phase = Phase::Closing;
            floor.dead = true;
            let later = std::mem::take(&mut floor.later);
            (floor.inlet.take(), later, std::mem::take(&mut floor.groups))
        };
        self.changed.notify_waiters();
        // The lane is closed here, which calls back.
        drop((inlet, later, groups));
    }

    pub(crate) fn is_closing(&self) -> bool {
        lock(&self.floor).phase == Phase::Closing
    }

    /// True if the message is ours for certain.
    pub(crate) fn holds(&self, token: Token) -> bool {
        lock(&self.floor).leases.get(token, Instant::now()).is_some()
    }

    /// The message was deleted.
    pub(crate) fn done(&self, token: Token) {
        self.on_floor(|floor, aftermath| floor.end(token, End::Done, aftermath));
    }

    /// The message is not ours any more: it is back, or will be.
    pub(crate) fn lost(&self, token: Token) {
        self.on_floor(|floor, aftermath| floor.end(token, End::Again, aftermath));
    }

    /// The service says that the message is not ours any more.
    pub(crate) fn taken(&self, token: Token, error: &Error) {
        let settling = lock(&self.floor).leases.any(token).is_none_or(|lease| lease.settling);
        self.changed(token);
        // What is being settled may just be gone.
        if !settling {
            self.health.met(error);
            self.lapse(vec![token]);
        }
    }

    /// The job comes back to whoever awaits the answer.
    pub(crate) fn refuse(&self, token: Token, reply: Option<Reply>, error: Error) {
        self.on_floor(|floor, aftermath| match floor.leases.get(token, Instant::now()) {
            Some(lease) => lease.settling = false,
            None => floor.end(token, End::Again, aftermath),
        });
        match reply {
            Some(reply) => {
                if let Some(job) = reply.refuse(error) {
                    self.abandon(job);
                }
            }
            // It comes back when its lease ends.
            None => self.lost(token),
        }
    }

    /// A change of visibility was answered: the next may go.
    pub(crate) fn changed(&self, token: Token) {
        self.on_floor(|floor, aftermath| {
            let next = floor.later.get_mut(&token).and_then(VecDeque::pop_front);
            if let Some(lease) = floor.leases.any(token) {
                lease.changing = next.is_some();
                aftermath.changes.extend(next);
            }
        });
    }

    pub(crate) fn extended(&self, token: Token, seconds: i32, asked: Instant) {
        self.on_floor(|floor, _| floor.leases.extended(token, seconds, asked));
        self.changed(token);
    }

    pub(crate) fn not_extended(&self, token: Token, error: &Error) {
        self.health.met(error);
        self.on_floor(|floor, _| floor.leases.not_extended(token, Instant::now()));
        self.changed(token);
    }

    /// Looks after leases, for ever.
    async fn keep(self: Arc<Self>) {
        loop {
            let next = lock(&self.floor).leases.next();
            tokio::select! {
                () = sleep_until(next.unwrap_or_else(|| Instant::now() + IDLE)) => {}
                () = self.agenda.notified() => continue,
            }
            let due = lock(&self.floor).leases.due(Instant::now());
            self.changes.add(due.extend.into_iter().map(|extension| Change {
                token: extension.token,
                handle: extension.handle,
                seconds: extension.seconds,
                purpose: Purpose::Extend(None),
            }));
            self.lapse(due.ended);
        }
    }

    /// Leases ended: jobs that nobody popped are taken out of the lane.
    fn lapse(&self, mut over: Vec<Token>) {
        let inlet = self.on_floor(|floor, aftermath| {
            over.retain(|token| floor.leases.any(*token).is_some_and(|lease| !lease.settling));
            for token in &over {
                let group = floor.leases.any(*token).and_then(|lease| lease.group.clone());
                if let Some(group) = group {
                    for (later, job) in floor.groups.lapsed(&group, *token) {
                        drop(job);
                        if later != *token {
                            floor.give_back(later, aftermath);
                        }
                    }
                }
                floor.end(*token, End::Again, aftermath);
            }
            floor.inlet.clone()
        });
        if over.is_empty() {
            return;
        }
        if let Some(inlet) = inlet {
            inlet.withdraw(|token| over.contains(&token));
        }
        let trouble = "a lease ended before its job was settled";
        tracing::warn!(job.pipeline = %self.health.pipeline(), leases = over.len(), trouble);
        self.health.note(trouble.to_owned());
    }

    /// What an outcome means.
    fn order(&self, floor: &mut Floor, job: &Unsettled, outcome: Outcome) -> Result<Order> {
        let now = Instant::now();
        match outcome {
            Outcome::Ack => Ok(Order::Delete),
            Outcome::Release => Ok(Order::Return(0)),
            Outcome::Reject => {
                Ok(if self.outbox.dead.is_some() { Order::Bury } else { Order::Delete })
            }
            Outcome::Requeue { delay, headers } => {
                let copy = self.capabilities.admit_requeue(&job.message, delay, headers.clone());
                let copy = copy.map_err(|error| error.with_driver(NAME))?;
                let patience = self.config.push_timeout;
                let lease = floor.leases.get(job.token, now);
                let can_hide =
                    lease.is_some_and(|lease| Leases::can_hide(lease, delay, now, patience));
                if can_hide && is_unchanged(&job.message, headers.as_ref()) {
                    return Ok(Order::Return(
                        i32::try_from(whole_seconds(delay)).unwrap_or(i32::MAX),
                    ));
                }
                let attempt = job.attempt.saturating_add(1);
                self.outbox
                    .prepare("settle", &copy, attempt)
                    .map(|(copy, hop)| Order::Copy(copy, hop))
            }
        }
    }

    /// Carries something out in a task of its own.
    fn spawn(&self, errand: impl Future<Output = ()> + Send + 'static) {
        let mut errands = lock(&self.errands);
        while errands.try_join_next().is_some() {}
        errands.spawn_on(errand, &self.handle);
    }

    /// Stores a copy, or keeps a rejected job, and deletes the original after.
    async fn replace(self: Arc<Self>, order: Order, removal: Removal, job: (Message, u32)) {
        let deadline = Instant::now() + self.config.push_timeout;
        let stored = match order {
            Order::Copy(copy, hop) => self.outbox.send_one("settle", (copy, hop), deadline).await,
            _ => self.outbox.bury(&job.0, job.1, deadline).await.map(drop),
        };
        match stored {
            Ok(()) => self.removals.add([Removal { since: Instant::now(), ..removal }]),
            Err(error) => {
                self.health.met(&error);
                self.refuse(removal.token, removal.reply, error);
            }
        }
    }
}

/// True if a job would run again as it is.
fn is_unchanged(message: &Message, headers: Option<&Headers>) -> bool {
    headers.is_none_or(|headers| headers == message.headers())
}

/// Shared by all receipts of a run. After the stop it is dead.
impl Acknowledger for Desk {
    fn settle(&self, mut job: Unsettled, outcome: Outcome) -> Settling {
        let token = job.token;
        let rejected = outcome == Outcome::Reject;
        let settled = self.on_floor(|floor, aftermath| {
            let lease = floor.leases.get(token, Instant::now());
            if floor.dead || lease.is_none_or(|lease| lease.settling) {
                return Err(Refusal::lease_lost(NAME));
            }
            let order = match self.order(floor, &job, outcome) {
                Ok(order) => order,
                Err(error) => return Err(Refusal { error, job: Some(job) }),
            };
            // The slot is free.
            job.credit = None;
            let details = (job.message.clone(), job.attempt);
            let (settler, settling) = Settling::later();
            let reply = Some(Reply::new(settler, job));
            let Some(lease) = floor.leases.any(token) else {
                return Err(Refusal::lease_lost(NAME));
            };
            lease.settling = true;
            let (handle, since) = (lease.handle.clone(), Instant::now());
            if let Order::Return(seconds) = order {
                let purpose = Purpose::Return { reply, since };
                floor.change(Change { token, handle, seconds, purpose }, aftermath);
                return Ok((settling, None));
            }
            let removal = Removal { token, handle, reply, since, uncertain: false };
            Ok((settling, Some((order, removal, details))))
        });
        match settled {
            Ok((settling, None)) => settling,
            Ok((settling, Some((Order::Delete, removal, details)))) => {
                if rejected {
                    let discarded = self.discarded.fetch_add(1, Ordering::Relaxed) + 1;
                    let (id, pipeline) = (details.0.id(), &self.health.pipeline());
                    tracing::warn!(job.id = %id, job.pipeline = %pipeline, discarded, "a rejected job is discarded");
                }
                self.removals.add([removal]);
                settling
            }
            Ok((settling, Some((order, removal, details)))) => {
                if let Some(desk) = self.me.upgrade() {
                    self.spawn(desk.replace(order, removal, details));
                }
                settling
            }
            Err(refusal) => Settling::refused(refusal),
        }
    }

    fn extend(&self, token: Token, by: Duration) -> Extending {
        let asked = self.on_floor(|floor, aftermath| {
            let asked = match floor.dead {
                true => None,
                false => floor.leases.extend(token, by, Instant::now()),
            };
            match asked {
                None => Err(lease_lost("extend")),
                Some(Err(allowed)) => {
                    let error = Error::new(ErrorKind::Unsupported, "extend").with_driver(NAME);
                    let context = format!("a delivery lasts 12 h at most: {allowed:?} are left");
                    Err(error.with_context(context))
                }
                Some(Ok(None)) => Ok(None),
                Some(Ok(Some(extension))) => {
                    let (extender, extending) = Extending::later();
                    let change = Change {
                        token,
                        handle: extension.handle,
                        seconds: extension.seconds,
                        purpose: Purpose::Extend(Some(extender)),
                    };
                    floor.change(change, aftermath);
                    Ok(Some(extending))
                }
            }
        });
        match asked {
            Ok(Some(extending)) => extending,
            Ok(None) => Extending::ready(Ok(())),
            Err(error) => Extending::ready(Err(error)),
        }
    }

    fn abandon(&self, job: Unsettled) {
        let token = job.token;
        drop(job);
        self.on_floor(|floor, aftermath| {
            let lease = floor.leases.get(token, Instant::now());
            if !floor.dead && lease.is_some_and(|lease| !lease.settling) {
                floor.give_back(token, aftermath);
            }
        });
    }
}
