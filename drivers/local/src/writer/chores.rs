//! What the writer does that nobody asked for.

use std::collections::BTreeSet;
use std::mem;
use std::time::{Instant, SystemTime};

use super::Writer;
use super::agenda::Now;
use crate::codec::millis;
use crate::group::{Group, Op};
use crate::store::Sql;

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
