//! The thread that fetches: one consumer of the client, its partitions, and what goes from them into the
//! lane.
//!
//! Each partition has a queue of its own in the client, which stops fetching when that is full. So nothing
//! is ever paused at the client, which would throw away what it had fetched, and the consumer is polled
//! whatever happens to the jobs.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jobs_core::{Backoff, Credit, Delivery, Error, ErrorKind, Inlet, Result, Wakeup};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use tokio::sync::watch;

use crate::codec::{self, Decoded, Record, Target};
use crate::config::{Ordering as Order, Start};
use crate::connection::{self, Event, Events};
use crate::delays::{self, Turn};
use crate::error;
use crate::hub::{Hub, Wake, lock};
use crate::keeper::Keeper;
use crate::lease::{Accepted, Lease, Limits, Next, Parked};
use crate::offsets::{Above, Arrival};

/// How long the thread sleeps at most: the consumer wants to be polled.
const NAP: Duration = Duration::from_millis(250);
/// Jobs taken from one partition before the next has its turn.
const TURN: usize = 64;
/// How long jobs of a partition that is revoked may run on.
const GRACE: Duration = Duration::from_secs(5);
/// How long the last commit of such a partition may take.
const FLUSH: Duration = Duration::from_secs(2);
/// How long one question about committed offsets may take, and how often it is asked.
const ANSWER: Duration = Duration::from_secs(3);
const QUESTIONS: u32 = 3;
/// Records of a delay partition that are on their way at once.
const MOVES: usize = 1_000;
/// Offsets that may be fetched beyond one that is not settled, at least.
const AHEAD: usize = 10_000;
/// What is kept of a stop's time for the end of the client.
const CLOSE: Duration = Duration::from_secs(3);

/// How a session is told what to do, and tells what it has done.
#[derive(Debug)]
pub(crate) struct Control {
    paused: AtomicBool,
    /// When it has to have ended, once it was told to.
    deadline: Mutex<Option<Instant>>,
    stopping: AtomicBool,
    asked: AtomicU64,
    seen: watch::Sender<u64>,
    ended: watch::Sender<bool>,
    pub(crate) leases: Arc<Mutex<Vec<Arc<Lease>>>>,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self {
            paused: AtomicBool::new(false),
            deadline: Mutex::default(),
            stopping: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            seen: watch::Sender::new(0),
            ended: watch::Sender::new(false),
            leases: Arc::default(),
        }
    }

    /// Fetching stops, or goes on.
    pub(crate) fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }

    /// Waits until the session has seen what it was told. False if it has ended or is too busy.
    pub(crate) async fn obeyed(&self, hub: &Hub, limit: Duration) -> bool {
        let turn = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        hub.session.wake();
        let mut seen = self.seen.subscribe();
        let seen = seen.wait_for(|seen| *seen >= turn);
        tokio::time::timeout(limit, seen).await.is_ok_and(|seen| seen.is_ok())
    }

    pub(crate) fn stop(&self, hub: &Hub, deadline: Instant) {
        lock(&self.deadline).get_or_insert(deadline);
        self.stopping.store(true, Ordering::Release);
        hub.session.wake();
    }

    pub(crate) async fn ended(&self, deadline: Instant) -> bool {
        let mut ended = self.ended.subscribe();
        let ended = ended.wait_for(|ended| *ended);
        tokio::time::timeout_at(deadline.into(), ended).await.is_ok_and(|ended| ended.is_ok())
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn until(&self) -> Instant {
        lock(&self.deadline).unwrap_or_else(Instant::now)
    }
}

/// A record that waits for its time: the first of its partition.
#[derive(Clone)]
struct Waiting {
    offset: i64,
    stored: u64,
    due: u64,
    target: Target,
    record: Record,
}

struct Partition {
    queue: PartitionQueue<Events>,
    lease: Arc<Lease>,
    /// Of the delay topic: what it is to wait for, and what could not be moved.
    delay: Option<Delay>,
    /// It is being given up.
    revoked: bool,
    /// Where it is to be fetched from, in place of where the client is.
    seek: Option<Offset>,
    /// It was said that it is held up by the job at this offset.
    stuck_at: Option<i64>,
}

#[derive(Default)]
struct Delay {
    first: Option<Waiting>,
    failed: Arc<Mutex<VecDeque<Waiting>>>,
}

/// Partitions that are given up when their jobs have ended.
struct Revocation {
    partitions: TopicPartitionList,
    /// When their leases end.
    grace: Instant,
    /// When they are given up, once their leases have ended.
    flush: Option<Instant>,
}

enum End {
    Stopped,
    /// The consumer is of no more use: another takes its place.
    Broken(Error),
}

pub(crate) struct Session {
    hub: Arc<Hub>,
    control: Arc<Control>,
    inlet: Arc<Inlet>,
    limits: Limits,
    /// Counts leases.
    leases: u64,
    /// Whose turn it is.
    turn: usize,
    partitions: Vec<Partition>,
    /// What the group has said and the client waits for an answer to.
    events: VecDeque<Event>,
    revocation: Option<Revocation>,
    /// How often the offsets of what is to be taken were asked for in vain.
    asked: u32,
    subscribed_to_delays: bool,
    wakeups: Vec<Wakeup>,
    next_wake: Option<Instant>,
}

impl Session {
    pub(crate) fn new(hub: &Arc<Hub>, control: &Arc<Control>, inlet: &Arc<Inlet>) -> Self {
        let prefetch = hub.config.prefetch.get();
        let ahead = i64::try_from(AHEAD.max(2 * prefetch)).unwrap_or(i64::MAX);
        Self {
            hub: Arc::clone(hub),
            control: Arc::clone(control),
            inlet: Arc::clone(inlet),
            limits: Limits { waiting: prefetch, ahead },
            leases: 0,
            turn: 0,
            partitions: Vec::new(),
            events: VecDeque::new(),
            revocation: None,
            asked: 0,
            subscribed_to_delays: false,
            wakeups: Vec::new(),
            next_wake: None,
        }
    }

    /// A consumer that has subscribed.
    ///
    /// # Errors
    /// The configuration's: a broker is not waited for.
    pub(crate) fn subscribe(&mut self) -> Result<Arc<BaseConsumer<Events>>> {
        let config = &self.hub.config;
        let hub = Arc::clone(&self.hub);
        let consumer =
            BaseConsumer::from_config_and_context(&config.consumer(), Events::new(&hub.health));
        let mut consumer = consumer.map_err(|found| error::failed("run", &found))?;
        let waker = Arc::clone(&hub);
        consumer.set_nonempty_callback(move || waker.session.wake());
        let consumer = Arc::new(consumer);
        self.subscribed_to_delays = false;
        if config.partitions.is_empty() {
            self.renew_subscription(&consumer)?;
        } else {
            let mut list = TopicPartitionList::new();
            for (topic, partitions) in &config.partitions {
                for partition in partitions.keys() {
                    list.add_partition(topic, *partition);
                }
            }
            self.events.push_back(Event::Assigned(list));
        }
        Ok(consumer)
    }

    fn renew_subscription(&mut self, consumer: &BaseConsumer<Events>) -> Result<()> {
        let delays = self.hub.delays.as_ref().filter(|delays| delays.exist());
        self.subscribed_to_delays = delays.is_some();
        let topics = self.hub.config.topics.iter().map(String::as_str);
        let topics: Vec<&str> = topics.chain(delays.map(|delays| &*delays.topic)).collect();
        consumer.subscribe(&topics).map_err(|found| error::failed("run", &found))
    }

    /// What the thread does, beginning with a consumer that has subscribed.
    pub(crate) fn run(mut self, consumer: Arc<BaseConsumer<Events>>) {
        self.hub.session.is_mine();
        let mut consumer = Some(consumer);
        let mut failures = 0;
        loop {
            let subscribed = match consumer.take() {
                Some(consumer) => Ok(consumer),
                None => self.subscribe(),
            };
            let end = match subscribed {
                Ok(consumer) => self.serve(consumer),
                Err(error) => End::Broken(error),
            };
            match end {
                End::Stopped => break,
                End::Broken(error) => self.hub.health.met(&error),
            }
            failures += 1;
            let again = Instant::now() + Backoff::RECONNECT.delay(failures);
            while Instant::now() < again && !self.control.is_stopping() {
                self.report();
                Wake::wait(NAP.min(again.saturating_duration_since(Instant::now())));
            }
            if self.control.is_stopping() {
                break;
            }
        }
        let Self { hub, control, inlet, .. } = self;
        // First the lane, then the word that it is gone.
        drop(inlet);
        hub.give_up_posting();
        control.ended.send_replace(true);
    }

    fn report(&self) {
        let asked = self.control.asked.load(Ordering::Acquire);
        self.control.seen.send_if_modified(|seen| std::mem::replace(seen, asked) != asked);
    }

    /// Fetches until told to stop, or until the consumer breaks.
    fn serve(&mut self, consumer: Arc<BaseConsumer<Events>>) -> End {
        let ending = Arc::new(AtomicBool::new(false));
        let keeper = Keeper {
            hub: Arc::clone(&self.hub),
            consumer: Arc::clone(&consumer),
            leases: Arc::clone(&self.control.leases),
            ending: Arc::clone(&ending),
        };
        let keeper =
            std::thread::Builder::new().name("kafka-keeper".into()).spawn(move || keeper.run());
        let end = match &keeper {
            Ok(_) => self.fetch(&consumer),
            Err(failure) => End::Broken(
                Error::new(ErrorKind::InvalidState, "run").with_context(failure.to_string()),
            ),
        };
        let deadline = match end {
            End::Stopped => self.control.until(),
            End::Broken(_) => Instant::now() + GRACE,
        };
        // What nobody popped stays at the broker: its credits are free, and its leases end.
        self.inlet.withdraw(|_| true);
        self.hub.copies_ended(deadline - CLOSE);
        let leases = lock(&self.control.leases).clone();
        leases.iter().for_each(|lease| lease.end());
        ending.store(true, Ordering::Release);
        self.hub.keeper.wake();
        if let Ok(keeper) = keeper {
            // A commit that a broker does not answer ends with the client.
            while !keeper.is_finished() && Instant::now() < deadline - CLOSE / 2 {
                Wake::wait(Duration::from_millis(20));
            }
            self.partitions.clear();
            let events = std::mem::take(&mut self.events);
            let begun = self.revocation.take().map(|begun| Event::Revoked(begun.partitions, false));
            let unanswered = match self.hub.config.partitions.is_empty() {
                true => begun.into_iter().chain(events).collect(),
                false => {
                    // They are no group's to take back.
                    drop(consumer.unassign());
                    Vec::new()
                }
            };
            let stays = self.hub.config.instance.is_some();
            connection::leave(&consumer, unanswered, stays, deadline);
            drop(keeper.join());
        }
        lock(&self.control.leases).clear();
        // The last one: this closes it.
        drop(consumer);
        end
    }

    fn fetch(&mut self, consumer: &Arc<BaseConsumer<Events>>) -> End {
        loop {
            if self.control.is_stopping() {
                return End::Stopped;
            }
            self.next_wake = None;
            // In this order: a pause is answered by a turn that has seen it.
            self.report();
            let paused = self.control.paused.load(Ordering::Acquire);
            if let Err(error) = self.poll(consumer) {
                return End::Broken(error);
            }
            let busy = match self.rebalance(consumer) {
                Ok(busy) => busy,
                Err(error) => return End::Broken(error),
            };
            let exist = self.hub.delays.as_ref().is_some_and(|delays| delays.exist());
            if exist
                && !self.subscribed_to_delays
                && let Err(error) = self.renew_subscription(consumer)
            {
                return End::Broken(error);
            }
            if let Err(error) = self.seek(consumer) {
                return End::Broken(error);
            }
            let worked = self.take_turns(paused);
            self.wakeups.clear();
            if !busy && !worked {
                let nap = self.next_wake.map(|at| at.saturating_duration_since(Instant::now()));
                Wake::wait(nap.unwrap_or(NAP).min(NAP));
            }
        }
    }

    /// Lets the client call back, and takes what it has for nobody else.
    fn poll(&mut self, consumer: &Arc<BaseConsumer<Events>>) -> Result<()> {
        let mut empty = 0;
        // An answer may be `None` for an event that was dealt with.
        while empty < 2 {
            match consumer.poll(Duration::ZERO) {
                None => empty += 1,
                Some(Ok(message)) => {
                    // None should come here, and none may be passed over.
                    let index = self.partitions.iter().position(|partition| {
                        *partition.lease.topic == *message.topic()
                            && partition.lease.partition == message.partition()
                    });
                    if let Some(index) = index {
                        let fetched = self.read(&self.partitions[index], &message);
                        self.take(index, fetched, None);
                    }
                }
                Some(Err(found)) => self.trouble(&found)?,
            }
        }
        self.events.extend(consumer.context().take());
        Ok(())
    }

    /// Takes note of a failure the client goes on from.
    ///
    /// # Errors
    /// It does not go on from this one.
    fn trouble(&self, found: &KafkaError) -> Result<()> {
        let error = error::failed("fetch", found);
        if error::is_fatal(found) {
            return Err(error);
        }
        self.hub.health.met(&error);
        Ok(())
    }

    /// Answers what the group has said, one after the other. True if there is more to be done at once.
    fn rebalance(&mut self, consumer: &Arc<BaseConsumer<Events>>) -> Result<bool> {
        if self.revocation.is_some() && !self.give_up(consumer)? {
            return Ok(false);
        }
        match self.events.pop_front() {
            None => Ok(false),
            Some(Event::Assigned(partitions)) => {
                let answered = self.assigned(consumer, &partitions);
                if !matches!(answered, Ok(true)) {
                    self.events.push_front(Event::Assigned(partitions));
                }
                answered.map(|_| true)
            }
            Some(Event::Revoked(partitions, lost)) => {
                self.revoke(partitions, lost);
                Ok(true)
            }
        }
    }

    /// Takes partitions. False if it is to be tried again.
    fn assigned(
        &mut self,
        consumer: &Arc<BaseConsumer<Events>>,
        partitions: &TopicPartitionList,
    ) -> Result<bool> {
        let known = consumer.committed_offsets(partitions.clone(), ANSWER).and_then(|known| {
            known.elements().iter().try_for_each(TopicPartitionListElem::error)?;
            Ok(known)
        });
        let known = match known {
            Ok(known) => Some(known),
            Err(found) => {
                self.hub.health.met(&error::failed("rebalance", &found));
                self.asked += 1;
                if self.asked < QUESTIONS {
                    return Ok(false);
                }
                // The client finds the offsets by itself, in time. What ended above them runs again.
                None
            }
        };
        self.asked = 0;
        let mut list = TopicPartitionList::new();
        let mut leases = Vec::new();
        for one in known.as_ref().unwrap_or(partitions).elements() {
            let (topic, partition) = (one.topic(), one.partition());
            let (start, above) = match (known.is_some(), one.offset()) {
                (true, Offset::Offset(offset)) => {
                    (Offset::Offset(offset), Some(Above::read(offset, one.metadata())))
                }
                (true, _) => (self.start(consumer, topic, partition), None),
                (false, _) => (Offset::Invalid, None),
            };
            // Only an offset that cannot be written is refused, and this one was read.
            let _ = list.add_partition_offset(topic, partition, start);
            self.leases += 1;
            leases.push(Lease::new(&self.hub, topic, partition, self.leases, above));
        }
        let taken = leases
            .into_iter()
            .map(|lease| self.take_partition(consumer, lease))
            .collect::<Result<Vec<_>>>()?;
        let fixed = !self.hub.config.partitions.is_empty();
        let answer = match fixed {
            true => consumer.assign(&list),
            false => consumer.incremental_assign(&list),
        };
        answer.map_err(|found| error::failed("rebalance", &found))?;
        let leases = taken.iter().map(|partition| Arc::clone(&partition.lease));
        lock(&self.control.leases).extend(leases);
        self.partitions.extend(taken);
        Ok(true)
    }

    /// Gives a partition a queue of its own, before anything is fetched from it: the client leaves what it
    /// has fetched by then in the consumer's queue, where it would come out of order.
    fn take_partition(
        &self,
        consumer: &Arc<BaseConsumer<Events>>,
        lease: Arc<Lease>,
    ) -> Result<Partition> {
        let Some(mut queue) = consumer.split_partition_queue(&lease.topic, lease.partition) else {
            let context = format!("{} {} has no queue", lease.topic, lease.partition);
            return Err(Error::new(ErrorKind::InvalidState, "rebalance").with_context(context));
        };
        let waker = Arc::clone(&self.hub);
        queue.set_nonempty_callback(move || waker.session.wake());
        let is_delay = self.hub.delays.as_ref().is_some_and(|delays| *delays.topic == *lease.topic);
        let delay = is_delay.then(Delay::default);
        Ok(Partition { queue, lease, delay, revoked: false, seek: None, stuck_at: None })
    }

    /// Where a partition is begun that the group has no offset for.
    fn start(&self, consumer: &Arc<BaseConsumer<Events>>, topic: &str, partition: i32) -> Offset {
        let config = &self.hub.config;
        let of_partition = config.partitions.get(topic).and_then(|starts| starts.get(&partition));
        let is_delay = self.hub.delays.as_ref().is_some_and(|delays| *delays.topic == *topic);
        match of_partition.copied().unwrap_or(config.start) {
            _ if is_delay => Offset::Beginning,
            Start::Earliest => Offset::Beginning,
            Start::Offset(offset) => Offset::Offset(offset),
            Start::AtEnd => {
                let end =
                    consumer.fetch_watermarks(topic, partition, ANSWER).and_then(|(_, high)| {
                        // Now, so that what is pushed from here on is not skipped the next time.
                        let mut list = TopicPartitionList::new();
                        list.add_partition_offset(topic, partition, Offset::Offset(high))?;
                        consumer.commit(&list, CommitMode::Sync)?;
                        Ok(high)
                    });
                match end {
                    Ok(high) => Offset::Offset(high),
                    Err(found) => {
                        self.hub.health.met(&error::failed("rebalance", &found));
                        Offset::Beginning
                    }
                }
            }
        }
    }

    /// Begins to give partitions up.
    fn revoke(&mut self, partitions: TopicPartitionList, lost: bool) {
        for partition in &mut self.partitions {
            let lease = &partition.lease;
            if partitions.find_partition(&lease.topic, lease.partition).is_some() {
                partition.revoked = true;
                // Those that nobody popped are not begun any more.
                let tokens = self.inlet.withdraw(|token| lease.gave(token));
                lease.withdrawn(&tokens);
                if let Some(delay) = &mut partition.delay {
                    delay.first = None;
                }
            }
        }
        let grace = if lost { Duration::ZERO } else { GRACE };
        let grace = Instant::now() + grace;
        self.revocation = Some(Revocation { partitions, grace, flush: None });
    }

    /// Goes on giving partitions up; true when that is done.
    fn give_up(&mut self, consumer: &Arc<BaseConsumer<Events>>) -> Result<bool> {
        let Some(revocation) = &mut self.revocation else { return Ok(true) };
        let mut revoked = self.partitions.iter().filter(|partition| partition.revoked);
        let now = Instant::now();
        let wait = Duration::from_millis(20);
        let Some(flush) = revocation.flush else {
            if now < revocation.grace
                && revoked.clone().any(|partition| partition.lease.running() > 0)
            {
                self.next_wake = Some(now + wait);
                return Ok(false);
            }
            revoked.for_each(|partition| partition.lease.end());
            revocation.flush = Some(now + FLUSH);
            self.hub.keeper.wake();
            self.next_wake = Some(now + wait);
            return Ok(false);
        };
        if now < flush && revoked.any(|partition| partition.lease.uncommitted().is_some()) {
            self.hub.keeper.wake();
            self.next_wake = Some(now + wait);
            return Ok(false);
        }
        let partitions = self.revocation.take().map(|revocation| revocation.partitions);
        let ended = |lease: &Lease| {
            self.partitions.iter().any(|one| one.revoked && std::ptr::eq(&*one.lease, lease))
        };
        lock(&self.control.leases).retain(|lease| !ended(lease));
        self.partitions.retain(|partition| !partition.revoked);
        if let Some(partitions) = partitions
            && let Err(found) = consumer.incremental_unassign(&partitions)
        {
            return Err(error::failed("rebalance", &found));
        }
        Ok(true)
    }

    /// Lets each partition deliver a little. True if one did.
    fn take_turns(&mut self, paused: bool) -> bool {
        let mut worked = false;
        let count = self.partitions.len();
        self.turn = self.turn.wrapping_add(1);
        for step in 0..count {
            let index = (self.turn + step) % count;
            let Partition { revoked, delay, .. } = &self.partitions[index];
            worked |= match (*revoked, delay) {
                (true, _) => false,
                (false, Some(_)) => self.move_on(index),
                (false, None) if paused => false,
                (false, None) => self.deliver_from(index),
            };
        }
        worked
    }

    /// Delivers what one partition has, as far as there are credits. True if it did.
    fn deliver_from(&mut self, index: usize) -> bool {
        let now = Instant::now();
        let lease = Arc::clone(&self.partitions[index].lease);
        // Records that may be fetched before the lease is asked again.
        let mut room = 0;
        for count in 0..TURN {
            if self.partitions[index].seek.is_some() {
                return true;
            }
            let Some(credit) = self.credit() else { return count > 0 };
            if room == 0 {
                let mut next = lease.next(now, self.limits);
                if let Next::Full = next {
                    // Ask to be woken, and look again.
                    self.hub.starve();
                    next = lease.next(now, self.limits);
                }
                match next {
                    Next::Fetch(most) => room = most,
                    Next::Returned(job) => {
                        self.deliver(&lease, job, credit);
                        continue;
                    }
                    Next::Full => {
                        self.wake_at(lease.next_due());
                        self.held_up(index);
                        return count > 0;
                    }
                }
            }
            room -= 1;
            let fetched = match self.partitions[index].queue.poll(Duration::ZERO) {
                None => {
                    self.wake_at(lease.next_due());
                    return count > 0;
                }
                Some(Err(found)) => {
                    // A fatal one comes on the consumer's own queue, too.
                    let _ = self.trouble(&found);
                    return count > 0;
                }
                Some(Ok(message)) => self.read(&self.partitions[index], &message),
            };
            self.take(index, fetched, Some(credit));
        }
        true
    }

    /// A credit, or the promise to be woken when there is one.
    fn credit(&self) -> Option<Credit> {
        self.inlet.try_credit().or_else(|| {
            self.hub.starve();
            self.inlet.try_credit()
        })
    }

    fn wake_at(&mut self, time: Option<Instant>) {
        self.next_wake = [self.next_wake, time].into_iter().flatten().min();
    }

    /// What a record is, copied out of the client's buffer.
    fn read(&self, partition: &Partition, message: &BorrowedMessage<'_>) -> Fetched {
        let keyed = self.hub.config.ordering != Order::Unordered;
        let what = match &partition.delay {
            None => What::Job(codec::decode(message, &partition.lease.topic, keyed)),
            Some(_) => match codec::undelayed(message) {
                None => What::Foreign,
                Some((target, due, record)) => {
                    let stored = message.timestamp().to_millis().unwrap_or_default();
                    let stored = u64::try_from(stored).unwrap_or_default();
                    let offset = message.offset();
                    What::Delayed(Waiting { offset, stored, due, target, record })
                }
            },
        };
        Fetched { offset: message.offset(), what }
    }

    /// Takes note of a record, and delivers it if it is a job and there is a credit for it.
    fn take(&mut self, index: usize, fetched: Fetched, credit: Option<Credit>) {
        let Fetched { offset, what } = fetched;
        let Partition { lease, seek: None, .. } = &self.partitions[index] else {
            // It comes again.
            return;
        };
        let lease = Arc::clone(lease);
        match what {
            What::Job(decoded) => match (lease.accept(offset, decoded), credit) {
                (Accepted::Finished | Accepted::Waits, _) => {}
                (Accepted::Deliver(job), Some(credit)) => self.deliver(&lease, job, credit),
                (Accepted::Deliver(job), None) => lease.put_back(job),
                (Accepted::Backwards(from), _) => self.begin_anew(index, Offset::Offset(from)),
            },
            What::Delayed(waiting) => match lease.accept_other(offset) {
                Arrival::Finished => {}
                Arrival::New(_) => {
                    if let Some(delay) = &mut self.partitions[index].delay {
                        lock(&delay.failed).push_back(waiting);
                    }
                }
                Arrival::Backwards(from) => self.begin_anew(index, Offset::Offset(from)),
            },
            What::Foreign => {
                tracing::warn!(
                    job.pipeline = %self.hub.pipeline, topic = %lease.topic, offset,
                    "skipped a record of the delay topic that is not ours"
                );
                if let Arrival::New(_) = lease.accept_other(offset) {
                    lease.finish(offset);
                }
            }
        }
    }

    /// Begins partitions anew whose topic was deleted and made again, and fetches from where they begin.
    fn seek(&mut self, consumer: &Arc<BaseConsumer<Events>>) -> Result<()> {
        for index in 0..self.partitions.len() {
            if self.partitions[index].revoked {
                continue;
            }
            if self.partitions[index].lease.is_forgotten() {
                self.begin_anew(index, Offset::Beginning);
            }
            let Partition { seek, lease, .. } = &mut self.partitions[index];
            if let Some(from) = seek.take() {
                consumer
                    .seek(&lease.topic, lease.partition, from, ANSWER)
                    .map_err(|found| error::failed("fetch", &found))?;
            }
        }
        Ok(())
    }

    /// The partition's offsets start over: the topic was made anew, or what was to be fetched is gone. All from
    /// there on is fetched again, because the former lease takes what it had with it.
    fn begin_anew(&mut self, index: usize, from: Offset) {
        let former = Arc::clone(&self.partitions[index].lease);
        tracing::warn!(
            job.pipeline = %self.hub.pipeline, topic = %former.topic, partition = former.partition,
            "the offsets of a partition start over"
        );
        former.end();
        self.inlet.withdraw(|token| former.gave(token));
        self.leases += 1;
        let fresh = Lease::new(&self.hub, &former.topic, former.partition, self.leases, None);
        let mut leases = lock(&self.control.leases);
        leases.retain(|lease| !Arc::ptr_eq(lease, &former));
        leases.push(Arc::clone(&fresh));
        drop(leases);
        let partition = &mut self.partitions[index];
        partition.lease = fresh;
        partition.seek = Some(from);
        if let Some(delay) = &mut partition.delay {
            *delay = Delay::default();
        }
    }

    fn deliver(&mut self, lease: &Arc<Lease>, job: Parked, credit: Credit) {
        let Parked { offset, message, attempt, .. } = job;
        let acknowledger: Arc<dyn jobs_core::Acknowledger> = lease.clone();
        let delivery = Delivery::new(message, lease.token(offset), acknowledger)
            .with_attempt(attempt)
            .with_position(offset.cast_unsigned());
        self.wakeups.extend(self.inlet.deliver(credit, delivery));
    }

    /// Says, once, that one job holds its partition up.
    fn held_up(&mut self, index: usize) {
        let ahead = self.limits.ahead;
        let partition = &mut self.partitions[index];
        let stuck_at = partition.lease.stuck_at(self.limits);
        if stuck_at.is_some() && stuck_at != partition.stuck_at {
            let Lease { topic, partition: number, .. } = &*partition.lease;
            let offset = stuck_at.unwrap_or_default();
            let trouble = format!(
                "topic {topic}, partition {number}: nothing more is fetched, because the job at offset \
                 {offset} is not settled while {ahead} were fetched beyond it"
            );
            tracing::warn!(job.pipeline = %self.hub.pipeline, "{trouble}");
            self.hub.health.note(trouble);
        }
        partition.stuck_at = stuck_at;
    }

    /// Moves records of a delay partition on whose time there is over. True if it did.
    fn move_on(&mut self, index: usize) -> bool {
        for count in 0..TURN {
            let partition = &mut self.partitions[index];
            if partition.seek.is_some() {
                return true;
            }
            let lease = Arc::clone(&partition.lease);
            let Some(delay) = &mut partition.delay else { return false };
            let first = delay.first.take().or_else(|| lock(&delay.failed).pop_front());
            let failed = Arc::clone(&delay.failed);
            let Some(waiting) = first else {
                if lease.unsettled() >= MOVES {
                    // The answers to those wake this thread.
                    return count > 0;
                }
                let partition = &self.partitions[index];
                let fetched = match partition.queue.poll(Duration::ZERO) {
                    None => return count > 0,
                    Some(Err(found)) => {
                        let _ = self.trouble(&found);
                        return count > 0;
                    }
                    Some(Ok(message)) => self.read(partition, &message),
                };
                self.take(index, fetched, None);
                continue;
            };
            let now = delays::now();
            let (topic, number) =
                match delays::turn(lease.partition, waiting.stored, waiting.due, now) {
                    Turn::Wait(more) => {
                        self.wake_at(Some(Instant::now() + Duration::from_millis(more)));
                        if let Some(delay) = &mut self.partitions[index].delay {
                            delay.first = Some(waiting);
                        }
                        return count > 0;
                    }
                    Turn::Move(level) => (Arc::clone(&lease.topic), Some(level)),
                    Turn::Due => (waiting.target.topic.as_str().into(), waiting.target.partition),
                };
            let again = waiting.clone();
            let Waiting { offset, due, target, record, .. } = waiting;
            let record = match number {
                Some(_) if topic == lease.topic => codec::delayed(record, &target, due),
                _ => record,
            };
            lease.forward(offset, topic, number, record, move || lock(&failed).push_back(again));
        }
        true
    }
}

/// A record.
struct Fetched {
    offset: i64,
    what: What,
}

enum What {
    Job(Decoded),
    Delayed(Waiting),
    /// In the delay topic, but not for it.
    Foreign,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("pipeline", &self.hub.pipeline).finish_non_exhaustive()
    }
}
