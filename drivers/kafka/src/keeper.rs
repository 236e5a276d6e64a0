//! The thread beside a session for what may block: commits, and letters that could not be sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jobs_core::ErrorKind;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use crate::connection::{self, Events};
use crate::error;
use crate::hub::{Hub, Wake, lock};
use crate::lease::Lease;

/// How often it is looked whether another process made the delay topic.
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
                next_look = Instant::now() + LOOK;
            }
            let interval = self.hub.config.commit_interval;
            Wake::wait(if self.hub.has_letters() { interval.min(FULL) } else { interval });
        }
    }

    /// Commits what has changed, of all partitions at once.
    fn commit(&self) {
        let leases = lock(&self.leases).clone();
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
        let mut answer = self.consumer.commit(&list(true), CommitMode::Sync);
        if answer.as_ref().is_err_and(error::is_metadata_too_large) {
            // Somebody has set a lower limit. Without it some jobs may run again after a crash.
            answer = self.consumer.commit(&list(false), CommitMode::Sync);
        }
        match answer {
            Ok(()) => commits.into_iter().for_each(|(lease, commit)| lease.committed(commit)),
            // The next one says all that this one did.
            Err(found) => self.hub.health.met(&error::failed("commit", &found)),
        }
    }

    fn look_for_delays(&self) {
        let Some(delays) = self.hub.delays.as_ref().filter(|delays| !delays.exist()) else { return };
        let deadline = Instant::now() + ANSWER;
        match connection::partitions(self.consumer.client(), &delays.topic, deadline) {
            Ok(0) => {}
            Ok(_) => {
                delays.found();
                self.hub.session.wake();
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => self.hub.health.met(&error),
        }
    }
}
