//! The thread that writes: everything that waits goes into one transaction, and everybody is
//! answered when it is on disk.
//!
//! It is the only one that touches the file. While there is nothing to do it sleeps until somebody
//! rings, or until the next delayed job is due or lease ends.

mod agenda;
mod chores;
mod transaction;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agenda::{Agenda, Now, Step, Surroundings};

use crate::config::{FileOptions, LeaseStorage};
use crate::consumers::Consumers;
use crate::error::Fault;
use crate::group::{Op, Terms};
use crate::inbox::{Call, Inbox};
use crate::leases::Leases;
use crate::open::{Identity, Opened};
use crate::owners::{Access, Others, Owner};
use crate::store::{Sql, Store};

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
    identity: Identity,
    terms: Terms,
    options: FileOptions,
    /// How long settlements wait for other processes.
    patience: Duration,
    leases: Leases,
    consumers: Consumers,
    /// What is to be done and nobody waits for.
    pending: Vec<Op>,
    agenda: Agenda,
    /// What was written together the last time.
    last_group: usize,
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
            agenda: Agenda::new(Now::take()),
            last_group: 0,
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
            // One that never sleeps hears others all the same.
            if self.owner.answer() {
                self.agenda.rung();
            }
            match self.agenda.next(Now::take(), &self.surroundings(closed)) {
                Step::EndLeases => self.end_leases(),
                Step::LookAfterOthers => self.look_after_others(),
                Step::Write => self.work(),
                Step::Look => self.look(),
                Step::Tidy => self.tidy(),
                Step::Sleep(limit) => {
                    if self.inbox.sleep(&self.owner, limit) {
                        self.agenda.rung();
                    }
                }
                Step::End => break,
            }
        }
        self.end();
    }

    fn surroundings(&self, closed: bool) -> Surroundings {
        Surroundings {
            closed,
            writes: self.inbox.has_writes(),
            pending: !self.pending.is_empty(),
            holds: self.terms.durable && !self.leases.is_empty(),
            shared: !self.others.is_empty(),
            next_end: self.leases.next_end(),
        }
    }

    fn answer(&mut self, call: Call) {
        match call {
            Call::Attach { consumer, reply } => {
                self.consumers.attach(consumer);
                self.agenda.look_around();
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
                self.agenda.look();
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

    /// Works if there are jobs for consumers.
    fn look(&mut self) {
        match self.has_jobs() {
            Ok(true) => self.work(),
            Ok(false) => {}
            Err(error) => self.retry_later(&error.into()),
        }
    }

    fn has_jobs(&mut self) -> Sql<bool> {
        let next_due = self.store.next_due()?;
        if next_due.is_some_and(|due| due <= Now::take().wall) {
            return Ok(true);
        }
        for queue in self.consumers.queues() {
            if self.store.counts(queue)?.ready > 0 {
                return Ok(true);
            }
        }
        self.agenda.found_nothing(next_due);
        Ok(false)
    }

    fn retry_later(&mut self, fault: &Fault) {
        self.note(fault);
        self.agenda.failed(Now::take());
    }

    fn note(&mut self, fault: &Fault) {
        let text = fault.to_string();
        if self.last_error.as_ref() != Some(&text) {
            tracing::warn!(error = text, "the file could not be written");
            self.last_error = Some(text);
        }
    }
}
