//! What happens in one transaction, and who is told of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, mem};

use jobs_core::{Delivery, ErrorKind, Refusal};

use super::Writer;
use super::agenda::{Done, Now};
use crate::NAME;
use crate::consumers::Consumers;
use crate::error::Fault;
use crate::group::{Fate, Group, Op, Reserved, Verdict};
use crate::inbox::Write;
use crate::leases::{Lease, Leases};
use crate::open::{Identity, LOCK_WAIT};
use crate::receipts::lost;
use crate::store::Sql;

/// Most jobs handed out in one transaction: pushes should not wait for more.
const MOST_RESERVED: usize = 1_024;
/// How long a transaction waits for others to join it, all in all: less than a sync takes.
const GATHERING: Duration = Duration::from_micros(100);
/// How long a file that is closed waits for other processes.
const PATIENCE_AT_THE_END: Duration = Duration::from_secs(2);

/// What a transaction did, as far as it matters outside the file.
struct Filled {
    verdicts: Vec<Verdict>,
    reserved: Vec<Reserved>,
    /// Other processes want to know.
    news: bool,
    done: Done,
}

impl Writer {
    /// Writes all that waits.
    pub(super) fn work(&mut self) {
        if let Some(gone) = self.gone.clone() {
            return self.take_ops().into_iter().for_each(|op| self.fail(op, &gone));
        }
        let start = Instant::now();
        if let Err(error) = self.store.begin() {
            return self.not_begun(&error.into(), start);
        }
        self.agenda.begun();
        let ops = self.take_ops();
        self.transact(ops, true);
    }

    fn not_begun(&mut self, fault: &Fault, start: Instant) {
        self.inbox.forget_withdrawn();
        let waited = self.agenda.not_begun(Now::take());
        let closed = self.inbox.is_closed();
        let patience = match closed {
            true => self.patience.min(PATIENCE_AT_THE_END),
            false => self.patience,
        };
        if fault.is_transient() && waited < patience {
            // What is not a lock fails at once.
            return std::thread::sleep(LOCK_WAIT.saturating_sub(start.elapsed()));
        }
        self.retry_later(fault);
        // Pushes have times of their own: their callers withdraw them.
        let pushes_wait = fault.is_transient() && !closed;
        let writes = match pushes_wait {
            true => self.inbox.take_all_but_pushes(),
            false => self.inbox.take_writes(),
        };
        for op in self.resolve_all(writes) {
            match op {
                Op::Push(_) if pushes_wait => self.pending.push(op),
                op => self.fail(op, fault),
            }
        }
    }

    fn take_ops(&mut self) -> Vec<Op> {
        let writes = self.inbox.take_writes();
        self.resolve_all(writes)
    }

    fn resolve_all(&mut self, writes: Vec<Write>) -> Vec<Op> {
        let mut ops = mem::take(&mut self.pending);
        ops.reserve(writes.len());
        for write in writes {
            resolve(write, &mut self.leases, &mut self.consumers, &mut ops);
        }
        ops
    }

    /// Does all this in the transaction that has begun, or each by itself if that fails.
    fn transact(&mut self, mut ops: Vec<Op>, fetch: bool) {
        let result = match &self.gone {
            Some(gone) => Err(gone.clone()),
            None => self.fill(&mut ops, fetch),
        };
        let filled = match result {
            Ok(filled) => filled,
            Err(fault) => {
                self.store.roll_back();
                return self.one_by_one(ops, fetch, &fault);
            }
        };
        let committed = self.store.commit().map_err(Fault::from);
        match committed.and_then(|()| self.is_in_place()) {
            Ok(()) => self.done(ops, filled),
            // The log was not written to its end, so that nothing of this is in it; a part of it may fit.
            Err(fault) if fault.is_full() => {
                self.store.roll_back();
                drop(filled);
                self.one_by_one(ops, fetch, &fault);
            }
            Err(fault) => {
                self.store.roll_back();
                // The credits are free again.
                drop(filled);
                let fault = fault.maybe_stored();
                self.retry_later(&fault);
                ops.into_iter().for_each(|op| self.fail(op, &fault));
            }
        }
    }

    /// What fails, fails alone.
    fn one_by_one(&mut self, ops: Vec<Op>, fetch: bool, fault: &Fault) {
        self.retry_later(fault);
        if self.gone.is_some() || (ops.len() == 1 && !fetch) {
            return ops.into_iter().for_each(|op| self.fail(op, fault));
        }
        let mut ops = VecDeque::from(ops);
        while let Some(op) = ops.pop_front() {
            let fault = match self.store.begin() {
                Ok(()) => {
                    self.transact(vec![op], false);
                    continue;
                }
                Err(error) => Fault::from(error),
            };
            if !fault.is_transient() || self.inbox.is_closed() {
                self.fail(op, &fault);
                continue;
            }
            // Somebody else writes, which is not the fault of any of them.
            self.pending.push(op);
            self.pending.extend(ops.drain(..));
        }
    }

    fn fill(&mut self, ops: &mut Vec<Op>, fetch: bool) -> Result<Filled, Fault> {
        let mut group = Group::new(&self.store, self.terms)?;
        let mut verdicts = Vec::with_capacity(ops.len());
        let mut waited = Duration::ZERO;
        // Most of those who were answered just now are about to come back: a sync without them would
        // keep them waiting. Whoever comes alone does not wait.
        let expected = ops.len() + self.last_group * 3 / 4;
        loop {
            for op in &ops[verdicts.len()..] {
                verdicts.push(group.apply(op)?);
            }
            if !fetch || ops.len() >= expected || waited >= GATHERING {
                break;
            }
            let writes = self.inbox.take_writes();
            if writes.is_empty() {
                let start = Instant::now();
                std::thread::yield_now();
                waited += start.elapsed();
            }
            for write in writes {
                resolve(write, &mut self.leases, &mut self.consumers, ops);
            }
        }
        self.last_group = ops.len();
        let looks_for_due = fetch && self.agenda.looks_for_due(group.now());
        let mut more = looks_for_due && group.move_due()?;
        for (queue, position) in &group.ready {
            self.consumers.come_back(*queue, *position);
        }
        let mut reserved = Vec::new();
        for queue in self.consumers.queues().into_iter().filter(|_| fetch) {
            more |= fetch_from(
                queue,
                &mut group,
                &mut self.consumers,
                &mut self.leases,
                &mut reserved,
            )?;
        }
        let Some(kept_alive) = self.keep_alive(&group, !reserved.is_empty())? else {
            return Err(self.declared_dead());
        };
        group.finish()?;
        let next_due = match looks_for_due || group.delays_changed {
            true => self.store.next_due()?,
            false => self.agenda.next_due(),
        };
        let wrote = self.store.is_writing();
        Ok(Filled {
            verdicts,
            reserved,
            news: !group.ready.is_empty() || group.delays_changed,
            // What failed beside a transaction without fetching is looked for again.
            done: Done { next_due, look: more || !fetch, kept_alive, wrote },
        })
    }

    /// Gives a sign of life if others wait for one, or are about to. Returns whether it did; none if
    /// it is too late.
    fn keep_alive(&self, group: &Group<'_>, reserved: bool) -> Sql<Option<bool>> {
        let (holds, due) = (!self.leases.is_empty(), self.agenda.keep_alive_is_due(Now::take()));
        if !self.terms.durable || !(reserved || (holds && due)) {
            return Ok(Some(false));
        }
        let known = group.is_known()?;
        if holds && !known {
            return Ok(None);
        }
        if due || !known {
            group.keep_alive(self.options.lease)?;
        }
        Ok(Some(due || !known))
    }

    /// Others have the jobs of this process.
    fn declared_dead(&mut self) -> Fault {
        let context = format!("another process took this one for ended: `{}`", self.path.display());
        let fault = Fault::new(ErrorKind::InvalidState, context);
        self.is_gone(&fault);
        self.leases = Leases::default();
        for consumer in self.consumers.iter() {
            consumer.inlet.withdraw(|_| true);
        }
        fault
    }

    fn is_gone(&mut self, fault: &Fault) {
        self.note(fault);
        self.gone = Some(fault.clone());
        self.agenda.gone();
    }

    /// An error if the file is not the one that was opened.
    fn is_in_place(&mut self) -> Result<(), Fault> {
        match Identity::of(&self.path) {
            Ok(identity) if identity != self.identity => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // What cannot be looked at is not gone.
            _ => return Ok(()),
        }
        let context = format!("`{}` was deleted or replaced", self.path.display());
        let fault = Fault::new(ErrorKind::NotFound, context);
        self.is_gone(&fault);
        Err(fault)
    }

    /// It is on disk: everybody is told.
    fn done(&mut self, ops: Vec<Op>, filled: Filled) {
        self.agenda.done(Now::take(), &filled.done, self.options.lease);
        for Reserved { job, .. } in &filled.reserved {
            self.consumers.pass(job.queue, (job.priority, job.place));
        }
        for (op, verdict) in ops.into_iter().zip(filled.verdicts) {
            self.tell(op, verdict);
        }
        self.deliver(filled.reserved);
        if filled.news {
            self.others.ring();
        }
    }

    fn tell(&mut self, op: Op, verdict: Verdict) {
        match (op, verdict) {
            (Op::Push(push), Verdict::Full) => {
                let max = self.terms.max_size.unwrap_or_default();
                let context = format!("option `max_size`: the file holds {max} bytes of jobs");
                let full = Fault::new(ErrorKind::Full, context).transient();
                let _ = push.reply.send(Err(full));
            }
            (Op::Push(push), _) => drop(push.reply.send(Ok(()))),
            (Op::Settle { settler, .. }, Verdict::Lost) => {
                drop(settler.refuse(Refusal::lease_lost(NAME)));
            }
            (Op::Settle { settler, .. }, _) => settler.done(),
            (Op::Extend { lease, extender, .. }, Verdict::Lost) => {
                // Others have the job: it is not settled here.
                self.leases.remove(lease.token);
                extender.answer(Err(lost("extend")));
            }
            (Op::Extend { lease, by, extender }, _) => {
                self.leases.extend(lease.token, Instant::now() + by);
                extender.answer(Ok(()));
            }
            (Op::Detached { reply: Some(reply) }, _) => drop(reply.send(Ok(()))),
            (Op::Queue { reply, .. }, Verdict::Number(number)) => drop(reply.send(Ok(number))),
            (Op::Dead { reply, .. }, Verdict::Number(count)) => {
                let _ = reply.send(Ok(u64::try_from(count).unwrap_or(0)));
            }
            (Op::Reclaim { owner, fate }, verdict) => self.reclaimed(owner, fate, &verdict),
            _ => {}
        }
    }

    fn reclaimed(&mut self, owner: i64, fate: Fate, verdict: &Verdict) {
        let ended = fate == Fate::Ended;
        if ended {
            self.others.bury(owner);
        }
        if let Verdict::Number(jobs @ 1..) = verdict {
            let how = if ended { "ended" } else { "hangs" };
            tracing::warn!(owner, jobs, "another process {how}, its jobs run again");
            self.last_error = Some(format!("another process {how}: {jobs} of its jobs run again"));
        }
    }

    fn deliver(&mut self, reserved: Vec<Reserved>) {
        let now = Instant::now();
        for Reserved { place, job, token, content } in reserved {
            let consumer = self.consumers.get(place.consumer);
            let consumer = consumer.expect("none ends between a credit and its delivery");
            let end = consumer.max_lease.map(|lease| now + lease);
            let position = u64::try_from(job.seq).unwrap_or_default();
            let message = content.into_message();
            let delivery = Delivery::new(message, token, Arc::clone(&consumer.acknowledger))
                .with_attempt(job.attempt)
                .with_position(position);
            self.leases.insert(Lease { token, consumer: place.consumer, job, end });
            drop(consumer.inlet.deliver(place.credit, delivery));
        }
    }

    /// Tells who waits that nothing came of it, and keeps what has to be done all the same.
    fn fail(&mut self, op: Op, fault: &Fault) {
        match op {
            Op::Push(push) => drop(push.reply.send(Err(fault.clone()))),
            Op::Settle { lease, settler, .. } if self.consumers.get(lease.consumer).is_none() => {
                // Its consumer ended in the same transaction.
                drop(settler.refuse(Refusal::lease_lost(NAME)));
                self.pending.push(Op::Return { lease, counted: true });
            }
            Op::Settle { lease, job, settler, .. } => {
                let refusal = Refusal { error: fault.error("settle"), job: Some(job) };
                match settler.refuse(refusal) {
                    Ok(()) => self.leases.insert(lease),
                    // Nobody will settle it any more.
                    Err(_) => self.pending.push(Op::Return { lease, counted: true }),
                }
            }
            Op::Extend { extender, .. } => extender.answer(Err(fault.error("extend"))),
            Op::Return { .. } | Op::Reclaim { .. } if self.gone.is_some() => {}
            Op::Return { .. } | Op::Reclaim { .. } => self.pending.push(op),
            Op::Detached { reply: Some(reply) } => drop(reply.send(Err(fault.clone()))),
            Op::Queue { reply, .. } => drop(reply.send(Err(fault.clone()))),
            Op::Dead { reply, .. } => drop(reply.send(Err(fault.clone()))),
            Op::Detached { reply: None } => {}
        }
    }
}

/// Takes credits first, then jobs for them. Returns whether there may be more of both.
fn fetch_from(
    queue: i64,
    group: &mut Group<'_>,
    consumers: &mut Consumers,
    leases: &mut Leases,
    reserved: &mut Vec<Reserved>,
) -> Sql<bool> {
    let ready = group.ready_in(queue)?.min(MOST_RESERVED);
    if ready == 0 {
        return Ok(false);
    }
    let places = consumers.places(queue, ready);
    if places.is_empty() {
        return Ok(false);
    }
    let (before, wanted) = (reserved.len(), places.len());
    reserved.extend(group.reserve(queue, consumers.position(queue), places, leases)?);
    Ok(reserved.len() - before == wanted && wanted == MOST_RESERVED)
}

/// Finds the lease that a receipt speaks of. One that ended is answered at once.
fn resolve(write: Write, leases: &mut Leases, consumers: &mut Consumers, ops: &mut Vec<Op>) {
    let op = match write {
        Write::Push(push) => match push.claim.take() {
            true => Op::Push(push),
            false => return,
        },
        Write::Queue { name, reply } => Op::Queue { name, reply },
        Write::Dead { queue, call, reply } => Op::Dead { queue, call, reply },
        Write::Settle { job, step, settler } => match leases.remove(job.token) {
            Some(lease) => Op::Settle { lease, job, step, settler },
            // The credit is free all the same, and may be what a ready job waits for.
            None => return drop(settler.refuse(Refusal::lease_lost(NAME))),
        },
        Write::Extend { token, by, extender } => match leases.get(token) {
            Some(lease) => Op::Extend { lease: lease.clone(), by, extender },
            None => return extender.answer(Err(lost("extend"))),
        },
        Write::Abandon { token } => match leases.remove(token) {
            Some(lease) => Op::Return { lease, counted: true },
            None => return,
        },
        Write::Detach { consumer, reply } => {
            let leases = leases.take_consumer(consumer);
            ops.extend(leases.into_iter().map(|lease| Op::Return { lease, counted: true }));
            drop(consumers.detach(consumer));
            Op::Detached { reply }
        }
    };
    ops.push(op);
}
