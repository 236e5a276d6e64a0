//! One transaction: what it does to the tables, for everybody who waits.
//!
//! Nothing outside the file changes here, so that a transaction that fails leaves nothing to undo.

use std::time::{Duration, SystemTime};

use jobs_core::{Extender, Settler, Unsettled};

use crate::codec::{Content, NewJob, encode_headers, millis, millis_after};
use crate::consumers::Place;
use crate::dead::DeadCall;
use crate::inbox::{Push, Reply, Step};
use crate::leases::{Lease, Leases};
use crate::store::{Counts, Sql, Standing, Store};

/// Most delayed jobs that become ready in one transaction.
const MOST_DUE: usize = 1_000;
/// Most dead letters deleted in one transaction.
pub(crate) const MOST_PURGED: usize = 1_000;

/// What a transaction is to do.
#[derive(Debug)]
pub(crate) enum Op {
    Push(Push),
    Settle {
        lease: Lease,
        job: Unsettled,
        step: Step,
        settler: Settler,
    },
    Extend {
        lease: Lease,
        by: Duration,
        extender: Extender,
    },
    /// A job goes back that nobody settled.
    Return {
        lease: Lease,
        counted: bool,
    },
    /// The end of a consumer whose jobs go back in the same transaction.
    Detached {
        reply: Option<Reply<()>>,
    },
    Queue {
        name: String,
        reply: Reply<i64>,
    },
    Dead {
        queue: i64,
        call: DeadCall,
        reply: Reply<u64>,
    },
    /// The jobs of another process go back.
    Reclaim {
        owner: i64,
        fate: Fate,
    },
}

/// Why another process loses its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Ended,
    /// This was its last sign of life. It keeps what it asked more time for.
    Hangs {
        until: i64,
    },
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum Verdict {
    Done,
    /// The lease ended before.
    Lost,
    /// There is no room for it.
    Full,
    /// A queue, or how many.
    Number(i64),
}

/// What does not change while the file is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) owner: i64,
    /// Leases are written down.
    pub(crate) durable: bool,
    pub(crate) max_size: Option<u64>,
}

/// A job on its way to a consumer.
pub(crate) struct Reserved {
    pub(crate) place: Place,
    pub(crate) job: Standing,
    pub(crate) token: u64,
    pub(crate) content: Content,
}

/// A transaction that has begun.
pub(crate) struct Group<'a> {
    store: &'a Store,
    terms: Terms,
    now: SystemTime,
    /// The next number, and what it was.
    next: i64,
    first: i64,
    counts: Vec<(i64, Counts)>,
    used: Option<u64>,
    /// Jobs that are ready now and were not before.
    pub(crate) ready: Vec<(i64, (i64, i64))>,
    /// Jobs were delayed, or are not any more.
    pub(crate) delays_changed: bool,
}

impl<'a> Group<'a> {
    pub(crate) fn new(store: &'a Store, terms: Terms) -> Sql<Self> {
        let next = store.next_number()?;
        Ok(Self {
            store,
            terms,
            now: SystemTime::now(),
            next,
            first: next,
            counts: Vec::new(),
            used: None,
            ready: Vec::new(),
            delays_changed: false,
        })
    }

    pub(crate) fn now(&self) -> i64 {
        millis(self.now)
    }

    fn number(&mut self) -> i64 {
        self.next += 1;
        self.next - 1
    }

    fn count(&mut self, queue: i64) -> &mut Counts {
        let known = self.counts.iter().position(|(other, _)| *other == queue);
        let index = known.unwrap_or_else(|| {
            self.counts.push((queue, Counts::default()));
            self.counts.len() - 1
        });
        &mut self.counts[index].1
    }

    pub(crate) fn apply(&mut self, op: &Op) -> Sql<Verdict> {
        match op {
            Op::Push(push) => self.push(push),
            Op::Settle { lease, step, .. } => self.settle(lease, step),
            Op::Extend { lease, by, .. } => self.extend(lease, *by),
            Op::Return { lease, counted } => self.give_back(lease, *counted),
            Op::Detached { .. } => Ok(Verdict::Done),
            Op::Queue { name, .. } => self.store.queue(name).map(Verdict::Number),
            Op::Dead { queue, call, .. } => self.dead(*queue, call),
            Op::Reclaim { owner, fate } => self.reclaim(*owner, *fate),
        }
    }

    fn push(&mut self, push: &Push) -> Sql<Verdict> {
        // Nobody waits for it any more.
        if push.reply.is_closed() {
            return Ok(Verdict::Done);
        }
        if !self.has_room(&push.jobs)? {
            return Ok(Verdict::Full);
        }
        for job in &push.jobs {
            let seq = self.number();
            self.store.insert_job(seq, push.queue, job, self.now())?;
            let priority = job.priority;
            let job_at = Standing { seq, queue: push.queue, priority, place: seq, attempt: 1 };
            self.put(job_at, job.message.delay())?;
        }
        Ok(Verdict::Done)
    }

    fn has_room(&mut self, jobs: &[NewJob]) -> Sql<bool> {
        let Some(max) = self.terms.max_size else { return Ok(true) };
        let used = match self.used {
            Some(used) => used,
            None => self.store.used()?,
        };
        let more: usize = jobs.iter().map(NewJob::size).sum();
        let then = used.saturating_add(more as u64);
        self.used = Some(if then > max { used } else { then });
        Ok(then <= max)
    }

    /// Puts a job among the ready or the delayed.
    fn put(&mut self, job: Standing, delay: Duration) -> Sql<()> {
        if delay.is_zero() {
            return self.put_ready(&job);
        }
        self.store.insert_delayed(&job, millis_after(self.now, delay))?;
        self.count(job.queue).delayed += 1;
        self.delays_changed = true;
        Ok(())
    }

    fn put_ready(&mut self, job: &Standing) -> Sql<()> {
        self.store.insert_ready(job)?;
        self.count(job.queue).ready += 1;
        self.ready.push((job.queue, (job.priority, job.place)));
        Ok(())
    }

    /// Takes a job from its consumer; false if that lost it before.
    fn take(&mut self, lease: &Lease) -> Sql<bool> {
        let job = &lease.job;
        let (taken, durable) = match self.terms.durable {
            true => (self.store.delete_leased(job.seq, self.terms.owner, lease.token)?, true),
            false => (self.store.delete_ready(job)?, false),
        };
        if taken {
            let counts = self.count(job.queue);
            *if durable { &mut counts.leased } else { &mut counts.ready } -= 1;
        }
        Ok(taken)
    }

    fn settle(&mut self, lease: &Lease, step: &Step) -> Sql<Verdict> {
        if !self.take(lease)? {
            return Ok(Verdict::Lost);
        }
        let mut job = lease.job;
        match step {
            Step::Ack => self.store.delete_job(job.seq)?,
            Step::Release => self.put_ready(&job)?,
            Step::Reject => {
                job.place = self.number();
                self.store.insert_dead(&job, self.now())?;
                self.count(job.queue).dead += 1;
            }
            Step::Requeue { message, changed } => {
                if *changed {
                    let headers = encode_headers(message.headers());
                    self.store.set_headers(job.seq, headers.as_deref())?;
                }
                job.place = self.number();
                job.attempt = job.attempt.saturating_add(1);
                self.put(job, message.delay())?;
            }
        }
        Ok(Verdict::Done)
    }

    fn extend(&mut self, lease: &Lease, by: Duration) -> Sql<Verdict> {
        let until = millis_after(self.now, by);
        let (owner, job) = (self.terms.owner, &lease.job);
        let held = !self.terms.durable || self.store.extend(job.seq, owner, lease.token, until)?;
        Ok(if held { Verdict::Done } else { Verdict::Lost })
    }

    /// Back to where it stood, in front of those that came later.
    fn give_back(&mut self, lease: &Lease, counted: bool) -> Sql<Verdict> {
        if !self.take(lease)? {
            return Ok(Verdict::Lost);
        }
        let attempt = lease.job.attempt.saturating_add(u32::from(counted));
        self.put_ready(&Standing { attempt, ..lease.job })?;
        Ok(Verdict::Done)
    }

    fn reclaim(&mut self, owner: i64, fate: Fate) -> Sql<Verdict> {
        let jobs = match fate {
            Fate::Ended => {
                self.store.delete_owner(owner)?;
                self.store.take_leased(owner, i64::MAX)?
            }
            // It woke up.
            Fate::Hangs { until } if self.store.owner_until(owner)? != Some(until) => {
                return Ok(Verdict::Done);
            }
            Fate::Hangs { .. } => self.store.take_leased(owner, self.now())?,
        };
        let count = i64::try_from(jobs.len()).unwrap_or(i64::MAX);
        for job in jobs {
            self.count(job.queue).leased -= 1;
            let attempt = job.attempt.saturating_add(1);
            self.put_ready(&Standing { attempt, ..job })?;
        }
        Ok(Verdict::Number(count))
    }

    fn dead(&mut self, queue: i64, call: &DeadCall) -> Sql<Verdict> {
        let mut count = 0;
        match call {
            DeadCall::Requeue(places) => {
                for place in places {
                    let Some(mut job) = self.store.take_dead(queue, *place)? else { continue };
                    job.place = self.number();
                    job.attempt = job.attempt.saturating_add(1);
                    self.put_ready(&job)?;
                    count += 1;
                }
            }
            DeadCall::Purge => {
                count = i64::try_from(self.store.purge_dead(queue, MOST_PURGED)?).unwrap_or(0);
            }
        }
        self.count(queue).dead -= count;
        Ok(Verdict::Number(count))
    }

    /// Makes jobs ready whose time has come, behind those that are ready. Returns whether there
    /// may be more.
    pub(crate) fn move_due(&mut self) -> Sql<bool> {
        let due = self.store.take_due(self.now(), MOST_DUE)?;
        let more = due.len() == MOST_DUE;
        self.delays_changed |= !due.is_empty();
        for mut job in due {
            self.count(job.queue).delayed -= 1;
            job.place = self.number();
            self.put_ready(&job)?;
        }
        Ok(more)
    }

    /// How many jobs of a queue are ready.
    pub(crate) fn ready_in(&mut self, queue: i64) -> Sql<usize> {
        let stored = self.store.counts(queue)?.ready;
        let ready = stored.saturating_add(self.count(queue).ready);
        Ok(usize::try_from(ready).unwrap_or(0))
    }

    /// Gives the first ready jobs of a queue to those who wait for them.
    pub(crate) fn reserve(
        &mut self,
        queue: i64,
        from: (i64, i64),
        places: Vec<Place>,
        leases: &mut Leases,
    ) -> Sql<Vec<Reserved>> {
        // Other processes may have put jobs anywhere.
        let from = if self.terms.durable { (i64::MIN, i64::MIN) } else { from };
        let mut jobs = Vec::with_capacity(places.len());
        self.store.each_ready(queue, from, |job| {
            // Those of leases in memory are among the ready.
            if self.terms.durable || !leases.has_job(job.seq) {
                jobs.push(*job);
            }
            jobs.len() < places.len()
        })?;
        if self.terms.durable
            && let Some(last) = jobs.last()
        {
            self.store.delete_ready_up_to(last)?;
        }
        let mut reserved = Vec::with_capacity(jobs.len());
        for (job, place) in jobs.into_iter().zip(places) {
            let content = self.store.content(job.seq)?;
            if self.terms.durable {
                self.count(queue).ready -= 1;
            }
            // Somebody deleted it: so it is over.
            let Some(content) = content else { continue };
            let token = leases.next_token();
            if self.terms.durable {
                self.store.insert_leased(&job, self.terms.owner, token)?;
                self.count(queue).leased += 1;
            }
            reserved.push(Reserved { place, job, token, content });
        }
        Ok(reserved)
    }

    /// True if nobody took this process for ended.
    pub(crate) fn is_known(&self) -> Sql<bool> {
        Ok(self.store.owner_until(self.terms.owner)?.is_some())
    }

    /// Notes that this process lives.
    pub(crate) fn keep_alive(&self, lease: Duration) -> Sql<()> {
        self.store.set_owner(self.terms.owner, millis_after(self.now, lease))
    }

    /// Writes the counters. What is left is to commit.
    pub(crate) fn finish(&mut self) -> Sql<()> {
        if self.next != self.first {
            self.store.set_next_number(self.next)?;
        }
        for (queue, by) in self.counts.drain(..) {
            if by != Counts::default() {
                self.store.count(queue, by)?;
            }
        }
        Ok(())
    }
}
