//! One queue: what is in it, who consumes it, and the hand-over between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jobs_core::{
    Acknowledger, Capabilities, Credit, Delivery, Error, ErrorKind, Extending, Inlet, JobId,
    Message, Outcome, PriorityFifo, Refusal, Result, Settling, Token, Unsettled, Wakeup,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::NAME;
use crate::config::{MemoryConfig, TEN_YEARS};
use crate::leases::{Entry, Leases};
use crate::room::{Room, Waiting};

/// A job that was rejected.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The message as it was delivered last.
    pub message: Message,
    /// The attempt it was rejected in.
    pub attempt: u32,
}

/// One queue, shared by the pipelines on it and by the receipts of their jobs.
///
/// A push that finds a consumer with a free credit delivers itself, under the one lock: a job goes
/// from producer to lane without a task in between.
pub(crate) struct Storage {
    config: MemoryConfig,
    capabilities: Capabilities,
    contents: Mutex<Contents>,
    waiting: Waiting,
    /// Tells the tasks in [`run_timer`](Self::run_timer) that something is due sooner.
    sooner: Notify,
}

struct Contents {
    /// A push takes a place, and gives it back when the job is settled for good.
    room: Room,
    ready: PriorityFifo<Entry>,
    /// By due time, then arrival.
    delayed: BTreeMap<(Instant, u64), Entry>,
    arrivals: u64,
    leases: Leases,
    max_lease: Option<Duration>,
    dead: VecDeque<DeadLetter>,
    consumers: Vec<Consumer>,
    next_consumer: u64,
    /// The consumer whose turn it is.
    turn: usize,
    /// When the timer will look next; it may come early, never late.
    alarm: Option<Instant>,
    after: After,
    last_error: Option<String>,
}

struct Consumer {
    id: u64,
    inlet: Arc<Inlet>,
    /// The storage itself: a cycle that detaching breaks.
    acknowledger: Arc<dyn Acknowledger>,
    paused: bool,
}

/// What one turn under the lock leaves to do when it is free; dropping it wakes the workers.
#[derive(Default)]
struct After {
    /// The timer must look sooner than it meant to.
    sooner: bool,
    wakeup: Option<Wakeup>,
    wakeups: Vec<Wakeup>,
    /// The time, as far as it was asked for under this lock.
    now: Option<Instant>,
}

/// What [`Storage::figures`] tells.
pub(crate) struct Figures {
    pub(crate) ready: bool,
    pub(crate) active: usize,
    pub(crate) delayed: usize,
    pub(crate) reserved: usize,
    pub(crate) in_flight: usize,
    pub(crate) dead: usize,
    pub(crate) last_error: Option<String>,
}

impl Storage {
    pub(crate) fn new(config: MemoryConfig) -> Arc<Self> {
        Arc::new(Self {
            capabilities: config.capabilities(),
            contents: Mutex::new(Contents::new(&config)),
            waiting: Waiting::new(),
            config,
            sooner: Notify::new(),
        })
    }

    pub(crate) fn config(&self) -> &MemoryConfig {
        &self.config
    }

    /// Nothing panics under this lock with the contents half changed, and no job is dropped.
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores messages if there is room; else gives them back.
    pub(crate) fn try_store<M>(&self, messages: M) -> Result<(), M>
    where
        M: ExactSizeIterator<Item = (Message, i64)>,
    {
        let mut contents = self.contents();
        if !contents.room.try_take(messages.len()) {
            return Err(messages);
        }
        self.place_all(contents, messages);
        Ok(())
    }

    /// Waits for room, and then stores messages.
    ///
    /// Cancel safe: if it is dropped nothing was stored. Those who wait are served in turn.
    pub(crate) async fn store<M>(&self, messages: M)
    where
        M: ExactSizeIterator<Item = (Message, i64)>,
    {
        let places = messages.len();
        self.contents().room.ask(places, &self.waiting);
        let asked = Asked { storage: self, places };
        self.waiting.wait(u32::try_from(places).expect("a batch is split")).await;
        std::mem::forget(asked);
        self.place_all(self.contents(), messages);
    }

    fn place_all(
        &self,
        mut contents: MutexGuard<'_, Contents>,
        messages: impl Iterator<Item = (Message, i64)>,
    ) {
        for (message, pipeline) in messages {
            let priority = message.priority().unwrap_or(pipeline);
            let delay = message.delay();
            contents.place(Entry { message, attempt: 1, priority }, delay);
        }
        self.finish(contents);
    }

    /// Registers a consumer, paused, and returns its number.
    pub(crate) fn attach(self: &Arc<Self>, inlet: Arc<Inlet>) -> u64 {
        let mut contents = self.contents();
        let id = contents.next_consumer;
        contents.next_consumer += 1;
        let acknowledger = Arc::<Self>::clone(self);
        contents.consumers.push(Consumer { id, inlet, acknowledger, paused: true });
        id
    }

    /// Removes a consumer. What it had unsettled is ready again, and the attempts count.
    pub(crate) fn detach(&self, id: u64) {
        let mut contents = self.contents();
        let index = contents.consumers.iter().position(|consumer| consumer.id == id);
        let consumer = index.map(|index| contents.consumers.remove(index));
        for entry in contents.leases.take_consumer(id).into_iter().rev() {
            contents.give_back(entry);
        }
        contents.pump();
        self.finish(contents);
        // Outside the lock: closing the lane drops its jobs, and that calls back.
        drop(consumer);
    }

    /// Stops handing jobs to a consumer, and returns its inlet.
    pub(crate) fn pause(&self, id: u64) -> Option<Arc<Inlet>> {
        let mut contents = self.contents();
        let consumer = contents.consumers.iter_mut().find(|consumer| consumer.id == id)?;
        consumer.paused = true;
        Some(Arc::clone(&consumer.inlet))
    }

    /// Hands jobs to a consumer again.
    pub(crate) fn resume(&self, id: u64) {
        let Some(inlet) = self.contents().unpause(id) else { return };
        inlet.open();
        let mut contents = self.contents();
        contents.pump();
        self.finish(contents);
    }

    pub(crate) fn figures(&self, consumer: Option<u64>) -> Figures {
        let contents = self.contents();
        let consumer = contents.consumers.iter().find(|other| Some(other.id) == consumer);
        Figures {
            ready: consumer.is_some_and(|consumer| !consumer.paused),
            active: consumer.map_or(0, |consumer| consumer.inlet.active()),
            delayed: contents.delayed.len(),
            reserved: contents.ready.len(),
            in_flight: contents.leases.len(),
            dead: contents.dead.len(),
            last_error: contents.last_error.clone(),
        }
    }

    pub(crate) fn dead_letters(&self) -> Vec<DeadLetter> {
        self.contents().dead.iter().cloned().collect()
    }

    /// Moves what is due, for ever. Any number of these may run.
    pub(crate) async fn run_timer(self: Arc<Self>) {
        loop {
            let sooner = self.sooner.notified();
            tokio::pin!(sooner);
            // Armed before looking, so that nothing that becomes due meanwhile is missed.
            sooner.as_mut().enable();
            match self.move_due() {
                None => sooner.await,
                Some(alarm) => tokio::select! {
                    () = sooner => {}
                    () = tokio::time::sleep_until(alarm) => {}
                },
            }
        }
    }

    /// Makes delayed jobs ready and ends leases whose time has come; returns when to look again.
    fn move_due(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut contents = self.contents();
        while let Some(entry) = contents.take_due(now) {
            contents.ready.push(entry.priority, entry);
        }
        let ended = contents.end_leases(now);
        contents.pump();
        let due = contents.delayed.first_key_value().map(|((due, _), _)| *due);
        let alarm = due.into_iter().chain(contents.leases.next_deadline()).min();
        contents.alarm = alarm;
        self.finish(contents);
        for id in ended {
            tracing::warn!(job.id = %id, queue = self.config.queue, "lease ended, the job runs again");
        }
        alarm
    }

    /// Makes the timers look again: one of them has ended, and only it may have known the alarm.
    pub(crate) fn wake_timers(&self) {
        self.sooner.notify_waiters();
    }

    /// Frees the lock, and then wakes whom the changes concern.
    fn finish(&self, mut contents: MutexGuard<'_, Contents>) {
        let after = std::mem::take(&mut contents.after);
        drop(contents);
        if after.sooner {
            self.wake_timers();
        }
    }

    /// Checked before the lease is touched: a refused job comes back whole.
    fn step(&self, job: &Unsettled, outcome: Outcome) -> Result<Step> {
        Ok(match outcome {
            Outcome::Ack => Step::Ack,
            Outcome::Reject => Step::Reject,
            Outcome::Release => Step::Release,
            Outcome::Requeue { delay, headers } => {
                let again = self.capabilities.admit_requeue(&job.message, delay, headers);
                Step::Requeue(again.map_err(|error| error.with_driver(NAME))?)
            }
        })
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("queue", &self.config.queue).finish_non_exhaustive()
    }
}

/// What a settlement does to the queue: an outcome that was found possible.
enum Step {
    Ack,
    Reject,
    Release,
    Requeue(Message),
}

/// Gives up a place that was asked for, unless it is forgotten.
struct Asked<'a> {
    storage: &'a Storage,
    places: usize,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.storage.contents().room.give_up(self.places, &self.storage.waiting);
    }
}

impl Contents {
    fn new(config: &MemoryConfig) -> Self {
        Self {
            room: Room::new(config.capacity.get()),
            ready: PriorityFifo::new(),
            delayed: BTreeMap::new(),
            arrivals: 0,
            leases: Leases::default(),
            max_lease: config.max_lease,
            dead: VecDeque::new(),
            consumers: Vec::new(),
            next_consumer: 0,
            turn: 0,
            alarm: None,
            after: After::default(),
            last_error: None,
        }
    }

    fn unpause(&mut self, consumer: u64) -> Option<Arc<Inlet>> {
        let consumer = self.consumers.iter_mut().find(|other| other.id == consumer)?;
        consumer.paused = false;
        Some(Arc::clone(&consumer.inlet))
    }

    /// A consumer that can take a job now, with the credit for it. They take turns.
    fn free_consumer(&mut self) -> Option<(usize, Credit)> {
        let turn = self.turn.min(self.consumers.len());
        for index in (turn..self.consumers.len()).chain(0..turn) {
            let consumer = &self.consumers[index];
            if !consumer.paused
                && let Some(credit) = consumer.inlet.try_credit()
            {
                self.turn = index + 1;
                return Some((index, credit));
            }
        }
        None
    }

    /// Puts a job where it belongs: to a consumer, among the ready or the delayed.
    fn place(&mut self, entry: Entry, delay: Duration) {
        if !delay.is_zero() {
            return self.delay(entry, Instant::now() + delay);
        }
        if self.ready.is_empty()
            && let Some((consumer, credit)) = self.free_consumer()
        {
            return self.hand_over(consumer, credit, entry);
        }
        self.ready.push(entry.priority, entry);
    }

    /// Delivers ready jobs while consumers have credits.
    fn pump(&mut self) {
        while !self.ready.is_empty()
            && let Some((consumer, credit)) = self.free_consumer()
        {
            let entry = self.ready.pop().expect("not empty");
            self.hand_over(consumer, credit, entry);
        }
    }

    /// Gives the credit of a job that is over to the next one, if there is one for its consumer.
    fn pass_on(&mut self, consumer: u64, credit: Option<Credit>) {
        let index = self.consumers.iter().position(|other| other.id == consumer && !other.paused);
        match (index, credit, self.ready.is_empty()) {
            (Some(index), Some(credit), false) => {
                let entry = self.ready.pop().expect("not empty");
                self.hand_over(index, credit, entry);
            }
            (_, credit, _) => {
                drop(credit);
                self.pump();
            }
        }
    }

    fn hand_over(&mut self, consumer: usize, credit: Credit, entry: Entry) {
        // One look at the clock serves all that is handed over under one lock.
        let now = &mut self.after.now;
        let lease_end = self.max_lease.map(|lease| *now.get_or_insert_with(Instant::now) + lease);
        let consumer = &self.consumers[consumer];
        let acknowledger = Arc::clone(&consumer.acknowledger);
        let (message, attempt) = (entry.message.clone(), entry.attempt);
        let token = self.leases.insert(entry, consumer.id, lease_end);
        let delivery = Delivery::new(message, token, acknowledger).with_attempt(attempt);
        // The lane is open as long as its inlet is held: the job cannot come back under the lock.
        let wakeup = consumer.inlet.deliver(credit, delivery);
        // The first in a place of its own: mostly it is the only one, and costs no allocation.
        if let Some(earlier) = std::mem::replace(&mut self.after.wakeup, wakeup) {
            self.after.wakeups.push(earlier);
        }
        if let Some(end) = lease_end {
            self.alarm_before(end);
        }
    }

    /// Keeps a job until `due`.
    fn delay(&mut self, entry: Entry, due: Instant) {
        self.arrivals += 1;
        self.delayed.insert((due, self.arrivals), entry);
        self.alarm_before(due);
    }

    fn take_due(&mut self, now: Instant) -> Option<Entry> {
        let first = self.delayed.first_entry().filter(|first| first.key().0 <= now)?;
        Some(first.remove())
    }

    /// Makes the jobs of ended leases ready again, in front and in order. Those that still wait in
    /// a lane are taken out of it: they were not started, so their attempt does not count. Returns
    /// the others.
    fn end_leases(&mut self, now: Instant) -> Vec<JobId> {
        let ended: Vec<_> = std::iter::from_fn(|| self.leases.take_ended(now)).collect();
        if ended.is_empty() {
            return Vec::new();
        }
        let over: BTreeSet<_> = ended.iter().map(|(token, _)| *token).collect();
        let withdraw = |consumer: &Consumer| consumer.inlet.withdraw(|token| over.contains(&token));
        let waiting: BTreeSet<_> = self.consumers.iter().flat_map(withdraw).collect();
        let mut started = Vec::new();
        for (token, entry) in ended.into_iter().rev() {
            if waiting.contains(&token) {
                self.ready.push_front(entry.priority, entry);
            } else {
                started.push(entry.message.id().clone());
                self.give_back(entry);
            }
        }
        if let Some(id) = started.first() {
            self.last_error = Some(format!("the lease of job `{id}` ended after `max_lease`"));
        }
        started
    }

    fn alarm_before(&mut self, due: Instant) {
        if self.alarm.is_none_or(|alarm| due < alarm) {
            self.alarm = Some(due);
            self.after.sooner = true;
        }
    }

    /// Makes a job ready again, in front, that was started and not finished.
    fn give_back(&mut self, mut entry: Entry) {
        entry.attempt = entry.attempt.saturating_add(1);
        self.ready.push_front(entry.priority, entry);
    }

    /// Keeps a dead letter; returns the oldest if there are too many.
    fn bury(&mut self, entry: Entry, most: usize) -> Option<DeadLetter> {
        self.dead.push_back(DeadLetter { message: entry.message, attempt: entry.attempt });
        if self.dead.len() > most { self.dead.pop_front() } else { None }
    }
}

/// Receipts hold the storage itself: a token is never used twice, so there are no epochs.
impl Acknowledger for Storage {
    fn settle(&self, job: Unsettled, outcome: Outcome) -> Settling {
        let step = match self.step(&job, outcome) {
            Ok(step) => step,
            Err(error) => return Settling::refused(Refusal { error, job: Some(job) }),
        };
        let mut contents = self.contents();
        let Some((consumer, mut entry)) = contents.leases.remove(job.token) else {
            // The credit is free all the same, and may be what a ready job waits for.
            drop(job.credit);
            contents.pump();
            self.finish(contents);
            return Settling::refused(Refusal::lease_lost(NAME));
        };
        let (mut acked, mut forgotten) = (None, None);
        match step {
            Step::Ack => {
                contents.room.leave(&self.waiting);
                acked = Some(entry);
            }
            Step::Reject => {
                contents.room.leave(&self.waiting);
                forgotten = contents.bury(entry, self.config.dead_letters);
            }
            Step::Release => contents.ready.push_front(entry.priority, entry),
            Step::Requeue(message) => {
                let delay = message.delay();
                entry.attempt = entry.attempt.saturating_add(1);
                contents.place(Entry { message, ..entry }, delay);
            }
        }
        contents.pass_on(consumer, job.credit);
        self.finish(contents);
        // Outside the lock, where producers and workers meet.
        drop((acked, forgotten));
        Settling::done()
    }

    fn extend(&self, token: Token, by: Duration) -> Extending {
        // Beyond that the clock may not be able to express it.
        let deadline = Instant::now() + by.min(TEN_YEARS);
        Extending::ready(match self.contents().leases.extend(token, deadline) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::LeaseLost, "extend").with_driver(NAME)),
        })
    }

    fn abandon(&self, job: Unsettled) {
        let mut contents = self.contents();
        drop(job.credit);
        if let Some((_, entry)) = contents.leases.remove(job.token) {
            contents.give_back(entry);
        }
        contents.pump();
        self.finish(contents);
    }
}
