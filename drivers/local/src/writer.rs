//! The thread that writes: everything that waits goes into one transaction, and everybody is
//! answered when it is on disk.
//!
//! It is the only one that touches the file. While there is nothing to do it sleeps until somebody
//! rings, or until the next delayed job is due or lease ends.

mod transaction;

use std::collections::BTreeSet;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::codec::millis;
use crate::config::{FileOptions, LeaseStorage};
use crate::consumers::Consumers;
use crate::error::Fault;
use crate::group::{Group, Op, Terms};
use crate::inbox::{Call, Inbox};
use crate::leases::Leases;
use crate::open::{Identity, Opened};
use crate::owners::{Access, Others, Owner};
use crate::store::{Sql, Store};

/// How often the writer looks whether other processes live, while there are any.
const LOOK_AFTER_OTHERS: Duration = Duration::from_millis(500);
/// Between attempts at what nobody waits for.
const RETRY: Duration = Duration::from_millis(100);
/// Free pages that are kept for the next jobs.
const KEPT_PAGES: u64 = 1_024;
/// Pages given back in one transaction.
const SHRINK: u64 = 512;

/// What [`Call::State`] tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) ready: bool,
    pub(crate) active: usize,
    pub(crate) delayed: u64,
    pub(crate) reserved: u64,
    pub(crate) in_flight: u64,
    pub(crate) dead: u64,
    pub(crate) last_error: Option<String>,
}

pub(crate) struct Writer {
    store: Store,
    inbox: Arc<Inbox>,
    owner: Arc<Owner>,
    access: Access,
    others: Others,
    path: PathBuf,
    identity: Option<Identity>,
    terms: Terms,
    options: FileOptions,
    /// How long settlements wait for other processes.
    patience: Duration,
    leases: Leases,
    consumers: Consumers,
    /// What is to be done and nobody waits for.
    pending: Vec<Op>,
    retry_at: Option<Instant>,
    /// What was written together the last time.
    last_group: usize,
    next_due: Option<i64>,
    /// When to say again that this process lives.
    keep_alive_at: Instant,
    looked_after_others: Option<Instant>,
    /// There may be jobs for consumers.
    look: bool,
    busy_since: Option<Instant>,
    /// Free pages were looked for, and nothing was written since.
    tidy: bool,
    /// The file is not where it was: nothing is confirmed any more.
    gone: Option<Fault>,
    last_error: Option<String>,
}

impl Writer {
    pub(crate) fn new(opened: Opened, inbox: Arc<Inbox>, patience: Duration) -> Self {
        let Opened { store, owner, access, others, path, identity, options } = opened;
        let terms = Terms {
            owner: owner.id,
            durable: options.lease_storage == LeaseStorage::Durable,
            max_size: options.max_size.map(|size| size as u64),
        };
        Self {
            store,
            inbox,
            owner,
            access,
            others,
            path,
            identity,
            terms,
            options,
            patience,
            leases: Leases::default(),
            consumers: Consumers::default(),
            pending: Vec::new(),
            retry_at: None,
            last_group: 0,
            next_due: None,
            keep_alive_at: Instant::now(),
            looked_after_others: None,
            look: true,
            busy_since: None,
            tidy: false,
            gone: None,
            last_error: None,
        }
    }

    /// Works until the inbox is closed and empty.
    pub(crate) fn run(mut self) {
        loop {
            // Asked before the calls are taken: none comes after.
            let closed = self.inbox.is_closed();
            for call in self.inbox.take_calls() {
                self.answer(call);
            }
            self.end_leases();
            self.look_after_others();
            if self.has_work() {
                self.work();
            } else if closed {
                break;
            } else if !self.tidied() {
                let others = self.inbox.sleep(self.until_next());
                self.look |= others;
                if others {
                    // Perhaps it is one that has come or gone.
                    self.looked_after_others = None;
                }
            }
        }
        self.end();
    }

    fn answer(&mut self, call: Call) {
        match call {
            Call::Attach { consumer, reply } => {
                self.consumers.attach(consumer);
                self.look = true;
                // Whoever starts consuming wants what dead processes left.
                self.looked_after_others = None;
                let _ = reply.send(());
            }
            Call::Pause { consumer, reply } => {
                self.consumers.get_mut(consumer).into_iter().for_each(|c| c.paused = true);
                let _ = reply.send(());
            }
            Call::Resume { consumer, reply } => {
                if let Some(consumer) = self.consumers.get_mut(consumer) {
                    consumer.paused = false;
                    consumer.inlet.open();
                }
                self.look = true;
                let _ = reply.send(());
            }
            Call::State { queue, consumer, reply } => {
                let _ = reply.send(self.figures(queue, consumer));
            }
            Call::Dead { queue, after, most, reply } => {
                let dead = self.store.dead(queue, after, most).map_err(Fault::from);
                let _ = reply.send(dead.map(|dead| dead.into_iter().map(Into::into).collect()));
            }
        }
    }

    fn figures(&self, queue: i64, consumer: Option<u64>) -> Result<Figures, Fault> {
        if let Some(gone) = &self.gone {
            return Err(gone.clone());
        }
        let mut counts = self.store.counts(queue)?;
        if !self.terms.durable {
            counts.leased = i64::try_from(self.leases.of_queue(queue)).unwrap_or(i64::MAX);
            counts.ready -= counts.leased;
        }
        let figure = |count: i64| u64::try_from(count).unwrap_or(0);
        let consumer = consumer.and_then(|consumer| self.consumers.get(consumer));
        Ok(Figures {
            ready: consumer.is_some_and(|consumer| !consumer.paused),
            active: consumer.map_or(0, |consumer| consumer.inlet.active()),
            delayed: figure(counts.delayed),
            reserved: figure(counts.ready),
            in_flight: figure(counts.leased),
            dead: figure(counts.dead),
            last_error: self.last_error.clone(),
        })
    }

    /// Takes back the jobs of leases that ended. Those that still wait in a lane are taken out of
    /// it: they were not started, so their attempt does not count.
    fn end_leases(&mut self) {
        if self.leases.next_end().is_none_or(|end| end > Instant::now()) {
            return;
        }
        let ended = self.leases.take_ended(Instant::now());
        let over: BTreeSet<_> = ended.iter().map(|lease| lease.token).collect();
        let consumers = self.consumers.iter();
        let waiting: BTreeSet<_> = consumers
            .flat_map(|consumer| consumer.inlet.withdraw(|token| over.contains(&token)))
            .collect();
        for lease in ended {
            let counted = !waiting.contains(&lease.token);
            if counted {
                let (seq, queue) = (lease.job.seq, lease.job.queue);
                tracing::warn!(job.seq = seq, queue, "lease ended, the job runs again");
                self.last_error = Some(format!("the lease of job {seq} ended after `max_lease`"));
            }
            self.pending.push(Op::Return { lease, counted });
        }
    }

    /// Looks who else has the file open, and takes over from those that are gone.
    fn look_after_others(&mut self) {
        let due = match self.looked_after_others {
            None => true,
            Some(last) => !self.others.is_empty() && last.elapsed() >= LOOK_AFTER_OTHERS,
        };
        if !due || self.gone.is_some() {
            return;
        }
        self.looked_after_others = Some(Instant::now());
        if let Err(error) = self.find_dead_owners() {
            self.note(&error.into());
        }
    }

    fn find_dead_owners(&mut self) -> Sql<()> {
        let now = millis(SystemTime::now());
        let mut alive = Vec::new();
        for owner in self.store.other_owners(self.terms.owner)? {
            if self.others.is_dead(owner.id) {
                self.pending.push(Op::Reclaim { owner: owner.id, ended: true });
            } else {
                alive.push(owner.id);
                if owner.until <= now && self.store.has_leases(owner.id, now)? {
                    self.pending.push(Op::Reclaim { owner: owner.id, ended: false });
                }
            }
        }
        for owner in self.store.ownerless()? {
            self.pending.push(Op::Reclaim { owner, ended: true });
        }
        self.others.set(alive.into_iter());
        Ok(())
    }

    fn has_work(&mut self) -> bool {
        if self.inbox.has_writes() {
            return true;
        }
        if self.gone.is_some() || self.retry_at.is_some_and(|at| at > Instant::now()) {
            return false;
        }
        self.retry_at = None;
        let due = self.next_due.is_some_and(|due| due <= millis(SystemTime::now()));
        if due || !self.pending.is_empty() || self.must_keep_alive() {
            return true;
        }
        if mem::take(&mut self.look) {
            // Without a transaction, for which others may have to wait.
            match self.has_jobs() {
                Ok(jobs) => return jobs,
                Err(error) => self.retry_later(&error.into()),
            }
        }
        false
    }

    fn has_jobs(&mut self) -> Sql<bool> {
        self.next_due = self.store.next_due()?;
        if self.next_due.is_some_and(|due| due <= millis(SystemTime::now())) {
            return Ok(true);
        }
        for queue in self.consumers.queues() {
            if self.store.counts(queue)?.ready > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn must_keep_alive(&self) -> bool {
        self.terms.durable && !self.leases.is_empty() && self.keep_alive_at <= Instant::now()
    }

    /// How long there is nothing to do unless somebody rings; none: for ever.
    fn until_next(&self) -> Option<Duration> {
        let now = Instant::now();
        let due = self.next_due.map(|due| {
            let left = u64::try_from(due.saturating_sub(millis(SystemTime::now()))).unwrap_or(0);
            now + Duration::from_millis(left.min(crate::config::TEN_YEARS.as_millis() as u64))
        });
        let keep_alive =
            (self.terms.durable && !self.leases.is_empty()).then_some(self.keep_alive_at);
        let others = self.looked_after_others.filter(|_| !self.others.is_empty());
        let next = match self.gone {
            Some(_) => self.leases.next_end(),
            None => [
                due,
                keep_alive,
                self.leases.next_end(),
                others.map(|last| last + LOOK_AFTER_OTHERS),
            ]
            .into_iter()
            .flatten()
            .min(),
        };
        // What is to be tried again is not due before that.
        let next = next.map(|next| self.retry_at.map_or(next, |retry| next.max(retry)));
        let next = next.into_iter().chain(self.retry_at).min();
        next.map(|next| next.saturating_duration_since(now))
    }

    /// Gives free pages back to the file system, some at a time; true if it did.
    fn tidied(&mut self) -> bool {
        if mem::replace(&mut self.tidy, true) || self.gone.is_some() {
            return false;
        }
        let shrunk = self.store.pages().and_then(|(pages, free)| {
            let many = free > KEPT_PAGES && free > pages / 2;
            if many {
                self.store.shrink(SHRINK)?;
                if free <= KEPT_PAGES + SHRINK {
                    self.store.checkpoint()?;
                }
            }
            Ok(many)
        });
        match shrunk {
            Ok(shrunk) => {
                self.tidy = !shrunk;
                shrunk
            }
            // Somebody else writes: later, then.
            Err(_) => false,
        }
    }

    fn retry_later(&mut self, fault: &Fault) {
        self.note(fault);
        self.look = true;
        self.retry_at = Some(Instant::now() + RETRY);
    }

    fn note(&mut self, fault: &Fault) {
        let text = fault.to_string();
        if self.last_error.as_ref() != Some(&text) {
            tracing::warn!(error = text, "the file could not be written");
            self.last_error = Some(text);
        }
    }

    /// Leaves nothing behind.
    fn end(mut self) {
        drop(self.consumers.take_all());
        if self.gone.is_none()
            && let Err(error) = self.leave()
        {
            // The lock on the pipe ends with this: whoever looks next takes the jobs back.
            self.store.roll_back();
            self.note(&error.into());
        }
        let Self { store, inbox, owner, access, .. } = self;
        if let Err(error) = store.close() {
            tracing::warn!(%error, "the file was not closed well");
        }
        // Nobody rings any more: the pipe itself is closed with the inbox.
        drop(inbox);
        owner.remove();
        drop(access);
    }

    fn leave(&mut self) -> Sql<()> {
        self.store.begin()?;
        let mut group = Group::new(&self.store, self.terms)?;
        for op in mem::take(&mut self.pending) {
            group.apply(&op)?;
        }
        group.apply(&Op::Reclaim { owner: self.terms.owner, ended: true })?;
        group.finish()?;
        let ready = !group.ready.is_empty();
        self.store.commit()?;
        if ready {
            self.others.ring();
        }
        Ok(())
    }
}
