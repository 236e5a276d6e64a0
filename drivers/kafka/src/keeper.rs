//! The thread beside a session for what may block: commits, and letters that could not be sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};

use crate::connection::Events;
use crate::error;
use crate::hub::{Hub, Wake, lock};
use crate::lease::Lease;

/// How often it is looked whether another process made the delay topic, and whether a topic was made anew.
const LOOK: Duration = Duration::from_secs(10);
/// How long that may take.
const ANSWER: Duration = Duration::from_secs(3);
/// How soon a full producer is tried again.
const FULL: Duration = Duration::from_millis(10);

pub(crate) struct Keeper {
    pub(crate) hub: Arc<Hub>,
    pub(crate) consumer: Arc<BaseConsumer<Events>>,
    pub(crate) leases: Arc<Mutex<Vec<Arc<Lease>>>>,
    pub(crate) ending: Arc<AtomicBool>,
    pub(crate) owed: Arc<Owed>,
}

/// Since when the client owes an answer to a commit: nothing can end that wait, also if it is for ever.
#[derive(Debug, Default)]
pub(crate) struct Owed(Mutex<Option<Instant>>);

impl Owed {
    pub(crate) fn set(&self, since: Option<Instant>) {
        *lock(&self.0) = since;
    }

    /// True if the answer is so late.
    pub(crate) fn is_late(&self, patience: Duration) -> bool {
        lock(&self.0).is_some_and(|since| since.elapsed() > patience)
    }
}

impl Keeper {
    /// Works until told to end, and then once more.
    pub(crate) fn run(&self) {
        self.hub.keeper.is_mine();
        let mut next_look = Instant::now() + LOOK;
        loop {
            let ending = self.ending.load(Ordering::Acquire);
            self.hub.post_again();
            self.commit();
            if ending {
                return;
            }
            if Instant::now() >= next_look {
                self.look_for_delays();
                self.look_for_what_was_forgotten(&lock(&self.leases).clone());
                next_look = Instant::now() + LOOK;
            }
            let interval = self.hub.config.commit_interval;
            Wake::wait(if self.hub.has_letters() { interval.min(FULL) } else { interval });
        }
    }

    /// Commits what has changed, of all partitions at once.
    fn commit(&self) {
        let leases = lock(&self.leases).clone();
        if leases.iter().any(|lease| lease.uncommitted().is_some()) {
            self.look_for_what_was_forgotten(&leases);
        }
        let commits: Vec<_> =
            leases.iter().filter_map(|lease| Some((lease, lease.uncommitted()?))).collect();
        if commits.is_empty() {
            return;
        }
        let list = |with_metadata: bool| {
            let mut list = TopicPartitionList::with_capacity(commits.len());
            for (lease, (offset, metadata)) in &commits {
                let mut one = list.add_partition(&lease.topic, lease.partition);
                // An offset that was fetched can be written.
                let _ = one.set_offset(Offset::Offset(*offset));
                if with_metadata {
                    one.set_metadata(metadata);
                }
            }
            list
        };
        self.owed.set(Some(Instant::now()));
        let mut answer = self.consumer.commit(&list(true), CommitMode::Sync);
        if answer.as_ref().is_err_and(error::is_metadata_too_large) {
            // Somebody has set a lower limit. Without it some jobs may run again after a crash.
            answer = self.consumer.commit(&list(false), CommitMode::Sync);
        }
        self.owed.set(None);
        match answer {
            Ok(()) => commits.into_iter().for_each(|(lease, commit)| lease.committed(commit)),
            // The next one says all that this one did.
            Err(found) => self.hub.health.met(&error::failed("commit", &found)),
        }
    }

    /// Asks whether the broker still has what was committed. It forgets that with a topic that is deleted; one
    /// that is made again under its name begins with offset 0, which the client may not notice.
    fn look_for_what_was_forgotten(&self, leases: &[Arc<Lease>]) {
        let known: Vec<_> = leases.iter().filter(|lease| lease.has_commit()).collect();
        // It also forgets, after a week, what is committed by somebody who is no member of the group.
        if known.is_empty() || !self.hub.config.partitions.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(known.len());
        for lease in &known {
            list.add_partition(&lease.topic, lease.partition);
        }
        let found = match self.consumer.committed_offsets(list, ANSWER) {
            Ok(found) => found,
            Err(failure) => return self.hub.health.met(&error::failed("commit", &failure)),
        };
        for lease in known {
            let one = found.find_partition(&lease.topic, lease.partition);
            let is_gone = |one: TopicPartitionListElem<'_>| {
                one.error().is_ok() && one.offset() == Offset::Invalid
            };
            if one.is_some_and(is_gone) {
                lease.forget();
                self.hub.session.wake();
            }
        }
    }

    fn look_for_delays(&self) {
        let Some(delays) = &self.hub.delays else { return };
        let deadline = Instant::now() + ANSWER;
        match delays.look(self.consumer.client(), &self.hub.config, deadline) {
            Ok(true) => self.hub.session.wake(),
            Ok(false) => {}
            Err(error) => self.hub.health.met(&error),
        }
    }
}
