//! Taking partitions, and giving them up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs_core::{Error, ErrorKind, Result};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};

use super::{ANSWER, Delay, GRACE, Partition, Revocation, Session};
use crate::config::Start;
use crate::connection::{Event, Events};
use crate::error;
use crate::hub::lock;
use crate::lease::Lease;
use crate::offsets::Above;

/// How long the last commit of a partition that is given up may take.
const FLUSH: Duration = Duration::from_secs(2);
/// How often committed offsets are asked for.
const QUESTIONS: u32 = 3;

impl Session {
    /// Answers what the group has said, one after the other. True if there is more to be done at once.
    pub(super) fn rebalance(&mut self, consumer: &Arc<BaseConsumer<Events>>) -> Result<bool> {
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
}
