//! The right to the jobs of one partition, from its assignment to its end.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use jobs_core::{
    Acknowledger, Error, ErrorKind, Extending, Message, Outcome, Refusal, Settler, Settling, Token,
    Unsettled,
};

use crate::NAME;
use crate::codec::{self, Decoded, Origin, Record};
use crate::config::Ordering;
use crate::hub::{Hub, lock, retold};
use crate::offsets::{Above, Arrival, Offsets};
use crate::publisher::{Letter, Report};

/// Offsets have 48 bits in a token: a million jobs a second for nine years, per partition.
const OFFSET_BITS: u32 = 48;

/// A job that is not with a worker, though it was fetched.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) offset: i64,
    pub(crate) message: Message,
    pub(crate) attempt: u32,
    /// Not to be handed out earlier.
    not_before: Option<Instant>,
}

/// How much of a partition is fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Jobs that wait for others with their key.
    pub(crate) waiting: usize,
    /// Offsets beyond the first that is not settled.
    pub(crate) ahead: i64,
}

/// What to deliver next.
#[derive(Debug)]
pub(crate) enum Next {
    Returned(Parked),
    /// So many records at most before this is asked again.
    Fetch(usize),
    /// Nothing now: some of the jobs that were fetched have to end first.
    Full,
}

/// What a job is that was just fetched.
#[derive(Debug)]
pub(crate) enum Accepted {
    Deliver(Parked),
    /// It waits for another with its key.
    Waits,
    /// It ended under an earlier owner.
    Finished,
    /// The partition begins anew from this offset on: this lease is of no more use.
    Backwards(i64),
}

/// What is known of a job that is not settled.
#[derive(Debug)]
struct Unfinished {
    attempt: u32,
    /// It was tried in place, so that only this knows the attempt.
    raised: bool,
    /// Delivered: with a worker, or on the way to one.
    out: bool,
    /// What it holds up: those behind it with the same key.
    key: Option<Box<[u8]>>,
}

#[derive(Debug)]
struct Core {
    alive: bool,
    offsets: Offsets<Unfinished>,
    /// Jobs to be delivered, again or at last.
    returned: VecDeque<Parked>,
    /// Keys that are held, and the jobs that wait for them.
    held: HashMap<Box<[u8]>, VecDeque<Parked>>,
    /// Jobs in `held`.
    waiting: usize,
    /// What the broker has confirmed last.
    committed: Option<(i64, String)>,
    /// The broker has an offset of this group.
    has_commit: bool,
    /// It has none any more: the topic was deleted.
    forgotten: bool,
}

/// One partition, assigned. The acknowledger of its jobs.
pub(crate) struct Lease {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    /// Differs from that of all other leases of the pipeline.
    number: u64,
    hub: Arc<Hub>,
    core: Mutex<Core>,
    myself: Weak<Self>,
}

impl Lease {
    pub(crate) fn new(
        hub: &Arc<Hub>,
        topic: &str,
        partition: i32,
        number: u64,
        above: Option<Above>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|myself| Self {
            topic: topic.into(),
            partition,
            number,
            hub: Arc::clone(hub),
            core: Mutex::new(Core {
                alive: true,
                returned: VecDeque::new(),
                held: HashMap::new(),
                waiting: 0,
                committed: None,
                has_commit: above.is_some(),
                offsets: Offsets::new(above.unwrap_or_default()),
                forgotten: false,
            }),
            myself: Weak::clone(myself),
        })
    }

    pub(crate) fn token(&self, offset: i64) -> Token {
        (self.number << OFFSET_BITS) | (offset.cast_unsigned() & ((1 << OFFSET_BITS) - 1))
    }

    /// True if the delivery is one of this lease.
    pub(crate) fn gave(&self, token: Token) -> bool {
        token >> OFFSET_BITS == self.number & (u64::MAX >> OFFSET_BITS)
    }

    fn offset(token: Token) -> i64 {
        (token & ((1 << OFFSET_BITS) - 1)).cast_signed()
    }

    /// Takes note of a job that was fetched.
    pub(crate) fn accept(&self, offset: i64, decoded: Decoded) -> Accepted {
        let mut core = lock(&self.core);
        let tried = match core.offsets.arrive(offset) {
            Arrival::Finished => return Accepted::Finished,
            Arrival::Backwards(from) => return Accepted::Backwards(from),
            Arrival::New(tried) => tried,
        };
        let Decoded { message, attempt } = decoded;
        let key: Option<Box<[u8]>> = match self.hub.config.ordering {
            Ordering::Unordered => None,
            Ordering::Key => message.ordering_key().map(|key| key.as_bytes().into()),
            Ordering::Partition => Some(Box::default()),
        };
        let attempt = tried.unwrap_or(1).max(attempt);
        let job = Parked { offset, message, attempt, not_before: None };
        let core = &mut *core;
        let waiting = key.as_ref().and_then(|key| core.held.get_mut(key));
        let out = waiting.is_none();
        let answer = match waiting {
            Some(waiting) => {
                waiting.push_back(job);
                core.waiting += 1;
                Accepted::Waits
            }
            None => Accepted::Deliver(job),
        };
        if let (true, Some(key)) = (out, &key) {
            core.held.insert(key.clone(), VecDeque::new());
        }
        core.offsets.add(offset, Unfinished { attempt, raised: tried.is_some(), out, key });
        answer
    }

    /// Keeps a job that was accepted until there is a credit for it.
    pub(crate) fn put_back(&self, job: Parked) {
        let mut core = lock(&self.core);
        if let Some(unfinished) = core.offsets.get_mut(job.offset) {
            unfinished.out = false;
        }
        core.returned.push_back(job);
    }

    /// Takes note of a record that is no job, such as one that waits for its time.
    pub(crate) fn accept_other(&self, offset: i64) -> Arrival {
        let mut core = lock(&self.core);
        let arrival = core.offsets.arrive(offset);
        if let Arrival::New(_) = arrival {
            let unfinished = Unfinished { attempt: 1, raised: false, out: false, key: None };
            core.offsets.add(offset, unfinished);
        }
        arrival
    }

    /// What is to be delivered next.
    pub(crate) fn next(&self, now: Instant, limits: Limits) -> Next {
        let mut core = lock(&self.core);
        let ready = |job: &Parked| job.not_before.is_none_or(|time| time <= now);
        // Nearly always the first.
        let returned = core.returned.iter().position(ready);
        if let Some(job) = returned.and_then(|index| core.returned.remove(index)) {
            if let Some(unfinished) = core.offsets.get_mut(job.offset) {
                unfinished.out = true;
            }
            return Next::Returned(job);
        }
        let ahead = usize::try_from(limits.ahead - core.offsets.span()).unwrap_or(0);
        match ahead.min(limits.waiting.saturating_sub(core.waiting)) {
            0 => Next::Full,
            room => Next::Fetch(room),
        }
    }

    /// Workers did not take these, and will not.
    pub(crate) fn withdrawn(&self, tokens: &[Token]) {
        let mut core = lock(&self.core);
        for token in tokens.iter().filter(|token| self.gave(**token)) {
            if let Some(unfinished) = core.offsets.get_mut(Self::offset(*token)) {
                unfinished.out = false;
            }
        }
    }

    /// When the next job that came back may be delivered that is not yet to be.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        lock(&self.core).returned.iter().filter_map(|job| job.not_before).min()
    }

    /// The first job that is not settled, if it is what holds the partition up.
    pub(crate) fn stuck_at(&self, limits: Limits) -> Option<i64> {
        let core = lock(&self.core);
        core.offsets.base().filter(|_| core.offsets.span() >= limits.ahead)
    }

    /// Jobs that workers have, or are about to.
    pub(crate) fn running(&self) -> usize {
        lock(&self.core).offsets.unsettled().filter(|(_, unfinished)| unfinished.out).count()
    }

    pub(crate) fn unsettled(&self) -> usize {
        lock(&self.core).offsets.len()
    }

    /// The first offset that was not fetched yet, and how many that were fetched are with no worker.
    pub(crate) fn position(&self) -> Option<(i64, usize)> {
        let core = lock(&self.core);
        let parked = core.offsets.unsettled().filter(|(_, unfinished)| !unfinished.out).count();
        core.offsets.next().map(|next| (next, parked))
    }

    /// Ends the lease. Its receipts are refused from now on.
    pub(crate) fn end(&self) {
        let mut core = lock(&self.core);
        core.alive = false;
        core.returned.clear();
        core.held.clear();
        core.waiting = 0;
    }

    pub(crate) fn has_commit(&self) -> bool {
        let core = lock(&self.core);
        core.has_commit && !core.forgotten
    }

    /// The partition's offsets begin anew: nothing of this lease is committed any more.
    pub(crate) fn forget(&self) {
        lock(&self.core).forgotten = true;
    }

    pub(crate) fn is_forgotten(&self) -> bool {
        lock(&self.core).forgotten
    }

    /// What is to be committed, unless the broker has it.
    pub(crate) fn uncommitted(&self) -> Option<(i64, String)> {
        let core = lock(&self.core);
        if core.forgotten {
            return None;
        }
        let attempt =
            |unfinished: &Unfinished| if unfinished.raised { unfinished.attempt } else { 1 };
        core.offsets.commit(attempt).filter(|commit| core.committed.as_ref() != Some(commit))
    }

    /// The broker has confirmed this commit, or the one like it without metadata.
    pub(crate) fn committed(&self, commit: (i64, String)) {
        let mut core = lock(&self.core);
        core.committed = Some(commit);
        core.has_commit = true;
    }

    /// Settles an offset for good. False if the lease is over.
    pub(crate) fn finish(&self, offset: i64) -> bool {
        let mut core = lock(&self.core);
        if !core.alive {
            return false;
        }
        let Some(finished) = core.offsets.finish(offset) else { return false };
        if let Some(key) = finished.key {
            let core = &mut *core;
            let next = core.held.get_mut(&key).and_then(VecDeque::pop_front);
            match next {
                Some(job) => {
                    core.waiting -= 1;
                    core.returned.push_back(job);
                }
                None => drop(core.held.remove(&key)),
            }
        }
        true
    }

    /// Takes a job back that will be delivered again. False if the lease is over.
    fn take_back(&self, job: Unsettled, attempt: u32, delay: Duration, first: bool) -> bool {
        let Unsettled { token, credit, message, .. } = job;
        let offset = Self::offset(token);
        let not_before = (!delay.is_zero()).then(|| Instant::now() + delay);
        let mut core = lock(&self.core);
        if !core.alive {
            return false;
        }
        let Some(unfinished) = core.offsets.get_mut(offset) else { return false };
        unfinished.out = false;
        unfinished.raised |= attempt != unfinished.attempt;
        unfinished.attempt = attempt;
        let job = Parked { offset, message, attempt, not_before };
        match first {
            true => core.returned.push_front(job),
            false => core.returned.push_back(job),
        }
        drop(core);
        drop(credit);
        self.hub.feed();
        true
    }

    fn is_mine(&self, token: Token) -> bool {
        let mut core = lock(&self.core);
        core.alive && core.offsets.get_mut(Self::offset(token)).is_some()
    }

    fn requeue(
        &self,
        job: Unsettled,
        delay: Duration,
        headers: Option<jobs_core::Headers>,
    ) -> Settling {
        let in_place = self.hub.config.ordering != Ordering::Unordered;
        if in_place && headers.as_ref().is_some_and(|headers| headers != job.message.headers()) {
            let error = Error::new(ErrorKind::Unsupported, "settle").with_driver(NAME);
            let context = "a requeue with other headers: with `ordering` jobs are retried in place";
            return refused(error.with_context(context), job);
        }
        let copy = match self.hub.capabilities.admit_requeue(&job.message, delay, headers) {
            Ok(copy) => copy,
            Err(error) => return refused(error.with_driver(NAME), job),
        };
        let attempt = job.attempt.saturating_add(1);
        if in_place {
            return match self.take_back(job, attempt, delay, false) {
                true => Settling::done(),
                false => lost(),
            };
        }
        // Where it was: who chose the partition of the original chose it for the copy.
        let (topic, partition, record) =
            self.hub.address(&copy, attempt, Arc::clone(&self.topic), Some(self.partition));
        self.send_copy(job, topic, partition, record)
    }

    fn reject(&self, job: Unsettled) -> Settling {
        let offset = Self::offset(job.token);
        let Some(topic) = &self.hub.config.dead_letter_topic else {
            let (id, topic, partition) = (job.message.id(), &*self.topic, self.partition);
            tracing::warn!(
                job.pipeline = %self.hub.pipeline, job.id = %id, topic, partition, offset,
                "a rejected job is discarded: there is no dead_letter_topic"
            );
            return self.done(job);
        };
        let origin = Origin { topic: &self.topic, partition: self.partition, offset };
        let record =
            codec::dead_letter(&job.message, self.hub.sender(), job.attempt, origin, "rejected");
        self.send_copy(job, topic.as_str().into(), None, record)
    }

    fn done(&self, job: Unsettled) -> Settling {
        let finished = self.finish(Self::offset(job.token));
        drop(job);
        self.hub.feed();
        if finished { Settling::done() } else { lost() }
    }

    /// Settles a job when its copy is stored.
    fn send_copy(
        &self,
        mut job: Unsettled,
        topic: Arc<str>,
        partition: Option<i32>,
        record: Record,
    ) -> Settling {
        drop(job.credit.take());
        self.hub.feed();
        let (settler, settling) = Settling::later();
        let lease = self.me();
        self.hub.copy_begun();
        let stored = move |answer: jobs_core::Result<()>| {
            lease.copied(job, settler, answer);
            lease.hub.copy_ended();
        };
        let report = Box::new(Report::Then(Box::new(stored)));
        self.hub.post(Letter { topic, partition, record, report });
        settling
    }

    fn copied(&self, job: Unsettled, settler: Settler, answer: jobs_core::Result<()>) {
        let refusal = match answer {
            Ok(()) if self.finish(Self::offset(job.token)) => {
                settler.done();
                return self.hub.feed();
            }
            // The copy is stored, and the original comes again, too.
            Ok(()) => Refusal::lease_lost(NAME),
            Err(error) if self.is_mine(job.token) => {
                self.hub.health.met(&error);
                Refusal { error: retold(&error, "settle"), job: Some(job) }
            }
            Err(_) => Refusal::lease_lost(NAME),
        };
        if let Err(Refusal { job: Some(job), .. }) =
            settler.refuse(refusal).map_err(|refusal| *refusal)
        {
            self.abandon(job);
        }
    }

    /// Sends what is at `offset`, and is no job, on to where it belongs, and settles it when it is stored
    /// there.
    pub(crate) fn forward(
        &self,
        offset: i64,
        topic: Arc<str>,
        partition: Option<i32>,
        record: Record,
        failed: impl FnOnce() + Send + Sync + 'static,
    ) {
        let lease = self.me();
        self.hub.copy_begun();
        let stored = move |answer: jobs_core::Result<()>| {
            match answer {
                Ok(()) => drop(lease.finish(offset)),
                Err(error) => {
                    lease.hub.health.met(&error);
                    failed();
                }
            }
            lease.hub.copy_ended();
        };
        let report = Box::new(Report::Then(Box::new(stored)));
        self.hub.post(Letter { topic, partition, record, report });
    }

    fn me(&self) -> Arc<Self> {
        self.myself.upgrade().expect("whoever calls this holds the lease")
    }
}

fn lost() -> Settling {
    Settling::refused(Refusal::lease_lost(NAME))
}

fn refused(error: Error, job: Unsettled) -> Settling {
    Settling::refused(Refusal { error, job: Some(job) })
}

impl Acknowledger for Lease {
    fn settle(&self, job: Unsettled, outcome: Outcome) -> Settling {
        match outcome {
            Outcome::Ack => self.done(job),
            _ if !self.is_mine(job.token) => {
                drop(job);
                self.hub.feed();
                lost()
            }
            Outcome::Reject => self.reject(job),
            Outcome::Requeue { delay, headers } => self.requeue(job, delay, headers),
            Outcome::Release => {
                let attempt = job.attempt;
                match self.take_back(job, attempt, Duration::ZERO, true) {
                    true => Settling::done(),
                    false => lost(),
                }
            }
        }
    }

    fn extend(&self, token: Token, _by: Duration) -> Extending {
        let error = match self.is_mine(token) {
            true => Error::new(ErrorKind::Unsupported, "extend")
                .with_context("a lease lasts as long as the partition is assigned"),
            false => Error::new(ErrorKind::LeaseLost, "extend"),
        };
        Extending::ready(Err(error.with_driver(NAME)))
    }

    fn abandon(&self, job: Unsettled) {
        let attempt = job.attempt.saturating_add(1);
        if !self.take_back(job, attempt, Duration::ZERO, false) {
            self.hub.feed();
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("topic", &self.topic)
            .field("partition", &self.partition)
            .finish_non_exhaustive()
    }
}
