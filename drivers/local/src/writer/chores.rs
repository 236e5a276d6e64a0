//! What the writer does that nobody asked for.

use std::collections::BTreeSet;
use std::mem;
use std::time::Instant;

use super::Writer;
use super::agenda::Now;
use crate::group::{Fate, Group, Op};
use crate::owners::Life;
use crate::store::{OtherOwner, Sql};

/// Free pages that are kept for the next jobs.
const KEPT_PAGES: u64 = 1_024;
/// Pages given back in one transaction.
const SHRINK: u64 = 512;

impl Writer {
    /// Takes back the jobs of leases that ended. Those that still wait in a lane are taken out of
    /// it: they were not started, so their attempt does not count.
    pub(super) fn end_leases(&mut self) {
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
    pub(super) fn look_after_others(&mut self) {
        self.agenda.looked_after_others(Now::take());
        if let Err(error) = self.find_dead_owners() {
            self.note(&error.into());
        }
    }

    fn find_dead_owners(&mut self) -> Sql<()> {
        let now = Now::take();
        // Those that could not be written down are found again.
        self.pending.retain(|op| !matches!(op, Op::Reclaim { .. }));
        let mut alive = Vec::new();
        for owner in self.store.other_owners(self.terms.owner)? {
            let life = self.others.life(owner.id);
            let fate = match life {
                Life::Ended => Some(Fate::Ended),
                _ => self.fate_of_silent(owner, life, now)?,
            };
            self.pending.extend(fate.map(|fate| Op::Reclaim { owner: owner.id, fate }));
            if life != Life::Ended {
                alive.push(owner);
            }
        }
        for owner in self.store.ownerless()? {
            self.pending.push(Op::Reclaim { owner, fate: Fate::Ended });
        }
        self.others.set(&alive, now.clock);
        Ok(())
    }

    /// A clock that was set, or a machine that slept, must not make a living process look silent: so
    /// it was watched for a whole lease.
    fn fate_of_silent(&self, owner: OtherOwner, life: Life, now: Now) -> Sql<Option<Fate>> {
        let watched = self.others.silence(owner, now.clock) >= self.options.lease;
        if !watched || owner.until > now.wall {
            return Ok(None);
        }
        if self.store.has_leases(owner.id, now.wall)? {
            return Ok(Some(Fate::Hangs { until: owner.until }));
        }
        // Not even a pipe is left of it, and nothing that somebody could lose.
        let forgotten = life == Life::Unknown && !self.store.has_leases(owner.id, i64::MAX)?;
        Ok(forgotten.then_some(Fate::Ended))
    }

    /// Gives free pages back to the file system, some at a time.
    pub(super) fn tidy(&mut self) {
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
        // If somebody else writes: after the next transaction.
        self.agenda.tidied(shrunk.unwrap_or(false));
    }

    /// Leaves nothing behind.
    pub(super) fn end(mut self) {
        drop(self.consumers.take_all());
        let left = self.gone.is_some() || self.leave().map_err(|e| self.note(&e.into())).is_ok();
        if !left {
            // The lock on the pipe ends with this: whoever looks next takes the jobs back.
            self.store.roll_back();
        }
        let Self { store, inbox, owner, access, .. } = self;
        if let Err(error) = store.close() {
            tracing::warn!(%error, "the file was not closed well");
        }
        // Nobody rings any more: the pipe itself is closed with the inbox.
        drop(inbox);
        if left {
            owner.remove();
        }
        drop(access);
    }

    fn leave(&mut self) -> Sql<()> {
        self.store.begin()?;
        let mut group = Group::new(&self.store, self.terms)?;
        for op in mem::take(&mut self.pending) {
            group.apply(&op)?;
        }
        group.apply(&Op::Reclaim { owner: self.terms.owner, fate: Fate::Ended })?;
        group.finish()?;
        let ready = !group.ready.is_empty();
        self.store.commit()?;
        if ready {
            self.others.ring();
        }
        Ok(())
    }
}
