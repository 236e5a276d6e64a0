//! The thread that fetches: one consumer of the client, its partitions, and what goes from them into the
//! lane.
//!
//! Each partition has a queue of its own in the client, which stops fetching when that is full. So nothing
//! is ever paused at the client, which would throw away what it had fetched, and the consumer is polled
//! whatever happens to the jobs.

mod control;
mod forward;
mod rebalance;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jobs_core::{Backoff, Credit, Delivery, Error, ErrorKind, Inlet, Result, Wakeup};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::codec::{self, Decoded, Record, Target};
use crate::config::Ordering as Order;
use crate::connection::{self, Event, Events};
use crate::error;
use crate::hub::{Hub, Wake, lock};
use crate::keeper::{Keeper, Owed};
use crate::lease::{Accepted, Lease, Limits, Next, Parked};
use crate::offsets::Arrival;

pub(crate) use control::Control;

/// How long the thread sleeps at most: the consumer wants to be polled.
const NAP: Duration = Duration::from_millis(250);
/// Jobs taken from one partition before the next has its turn.
const TURN: usize = 64;
/// How long one question to the brokers may take.
const ANSWER: Duration = Duration::from_secs(3);
/// How long jobs of a partition that is revoked may run on.
const GRACE: Duration = Duration::from_secs(5);
/// Offsets that may be fetched beyond one that is not settled, at least.
const AHEAD: usize = 10_000;
/// What is kept of a stop's time for the end of the client.
const CLOSE: Duration = Duration::from_secs(3);

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
        let owed = Arc::<Owed>::default();
        let keeper = Keeper {
            hub: Arc::clone(&self.hub),
            consumer: Arc::clone(&consumer),
            leases: Arc::clone(&self.control.leases),
            ending: Arc::clone(&ending),
            owed: Arc::clone(&owed),
        };
        let keeper =
            std::thread::Builder::new().name("kafka-keeper".into()).spawn(move || keeper.run());
        let end = match &keeper {
            Ok(_) => self.fetch(&consumer, &owed),
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
            connection::leave(&consumer, unanswered, stays, deadline - CLOSE / 6);
            match keeper.is_finished() {
                true => drop(keeper.join()),
                // It keeps the client, which owes it an answer, until it gets that.
                false => tracing::warn!(
                    job.pipeline = %self.hub.pipeline,
                    "the client does not answer a commit: it is left to itself"
                ),
            }
        }
        lock(&self.control.leases).clear();
        // The last one, unless the keeper was left with it: this closes it.
        drop(consumer);
        end
    }

    fn fetch(&mut self, consumer: &Arc<BaseConsumer<Events>>, owed: &Owed) -> End {
        let patience = self.hub.config.commit_patience();
        loop {
            if self.control.is_stopping() {
                return End::Stopped;
            }
            if owed.is_late(patience) {
                let context =
                    format!("no answer within {patience:?}: another client takes its place");
                return End::Broken(error::timed_out("commit").with_context(context));
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
        loop {
            let before = consumer.context().dealt_with();
            match consumer.poll(Duration::ZERO) {
                // After an outage what the client has to say of it may stand before a rebalance.
                None if consumer.context().dealt_with() != before => {}
                None => break,
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
