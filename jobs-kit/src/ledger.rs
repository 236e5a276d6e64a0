//! What became of every message: the books of a soak.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jobs_core::JobId;

/// Keeps account of messages by id: pushed, delivered, settled. All calls may come from any task.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<HashMap<JobId, Entry>>,
    /// An ack that returned `Ok` may be lost all the same.
    unconfirmed: bool,
}

#[derive(Debug, Default)]
struct Entry {
    push: Push,
    /// Deliveries that are out.
    held: u32,
    end: Option<End>,
    /// Deliveries that should not have been: while another was out, or after the end.
    duplicates: u64,
    came_back: bool,
}

#[derive(Debug, Default, PartialEq)]
enum Push {
    #[default]
    Started,
    Accepted,
    Uncertain,
}

#[derive(Debug, PartialEq)]
enum End {
    Done,
    Dead,
}

/// The totals of a [`Ledger`]: `accepted = done + dead + pending + lost`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Pushes that returned `Ok`.
    pub accepted: u64,
    /// Of these, settled for good.
    pub done: u64,
    /// Of these, rejected.
    pub dead: u64,
    /// Of these, still at the broker as far as it tells.
    pub pending: u64,
    /// Of these, the rest. Must be zero.
    pub lost: u64,
    /// Deliveries while another was out, or after the job was settled for good.
    pub duplicated: u64,
    /// Pushes that failed or were dropped, and may have been stored.
    pub uncertain: u64,
    /// Jobs whose confirmed ack or reject did not hold. Must be zero.
    pub came_back: u64,
}

impl Ledger {
    /// An empty ledger.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty ledger for a pipeline whose acks nobody confirms
    /// ([`acks_confirmed`](jobs_core::Capabilities::acks_confirmed)): a job that comes back after
    /// one is a duplicate and no more.
    #[must_use]
    pub fn unconfirmed() -> Self {
        Self { unconfirmed: true, ..Self::default() }
    }

    /// A push begins. Called before it, because a delivery may come first.
    pub fn pushing(&self, id: &JobId) {
        self.entries().entry(id.clone()).or_default();
    }

    /// A push returned `Ok`.
    pub fn accepted(&self, id: &JobId) {
        self.entry(id, |entry| entry.push = Push::Accepted);
    }

    /// A push failed or was dropped, and the message may have been stored.
    pub fn uncertain(&self, id: &JobId) {
        self.entry(id, |entry| entry.push = Push::Uncertain);
    }

    /// A job was handed to a worker. After its end that is a duplicate, but no proof that it came back
    /// in spite of it: the worker may have had it since before, and has only now got round to saying so.
    /// Then its receipt is refused.
    pub fn delivered(&self, id: &JobId) {
        self.entry(id, |entry| {
            entry.duplicates += u64::from(entry.held > 0 || entry.end.is_some());
            entry.held += 1;
        });
    }

    /// A worker is about to settle or drop a job. Called before it, because the next delivery may
    /// come first.
    pub fn returning(&self, id: &JobId) {
        self.entry(id, |entry| entry.held = entry.held.saturating_sub(1));
    }

    /// An ack was confirmed. True if the job ended now.
    pub fn done(&self, id: &JobId) -> bool {
        self.end(id, End::Done)
    }

    /// A rejection was confirmed. True if the job ended now.
    pub fn dead(&self, id: &JobId) -> bool {
        self.end(id, End::Dead)
    }

    fn end(&self, id: &JobId, end: End) -> bool {
        self.entry(id, |entry| {
            let first = entry.end.is_none();
            entry.came_back |= !first && !self.unconfirmed;
            entry.end.get_or_insert(end);
            first
        })
    }

    /// Accepted jobs that have not ended.
    #[must_use]
    pub fn open(&self) -> u64 {
        let open = |entry: &&Entry| entry.push == Push::Accepted && entry.end.is_none();
        self.entries().values().filter(open).count() as u64
    }

    /// The totals, given how many jobs the broker says it still has.
    #[must_use]
    pub fn totals(&self, at_broker: u64) -> Totals {
        let entries = self.entries();
        let mut totals = Totals::default();
        for entry in entries.values() {
            totals.duplicated += entry.duplicates;
            totals.came_back += u64::from(entry.came_back);
            match (&entry.push, &entry.end) {
                (Push::Accepted, end) => {
                    totals.accepted += 1;
                    totals.done += u64::from(*end == Some(End::Done));
                    totals.dead += u64::from(*end == Some(End::Dead));
                }
                (Push::Uncertain, _) => totals.uncertain += 1,
                (Push::Started, _) => {}
            }
        }
        let open = totals.accepted - totals.done - totals.dead;
        totals.pending = open.min(at_broker);
        totals.lost = open - totals.pending;
        totals
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<JobId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry<T>(&self, id: &JobId, change: impl FnOnce(&mut Entry) -> T) -> T {
        change(self.entries().entry(id.clone()).or_default())
    }
}

impl Totals {
    /// True if nothing was lost and every confirmed end held.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.lost == 0 && self.came_back == 0
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, done, dead, pending, lost, duplicated, uncertain, came_back } = self;
        write!(
            f,
            "accepted={accepted} done={done} dead={dead} pending={pending} lost={lost} \
             duplicated={duplicated} uncertain={uncertain}"
        )?;
        if *came_back > 0 {
            write!(f, " came_back={came_back}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> JobId {
        JobId::from("a")
    }

    #[test]
    fn a_job_that_nobody_has_is_lost() {
        let ledger = Ledger::new();
        ledger.pushing(&id());
        ledger.accepted(&id());
        let totals = ledger.totals(1);
        assert_eq!((totals.pending, totals.lost), (1, 0));
        let totals = ledger.totals(0);
        assert_eq!((totals.pending, totals.lost, totals.is_sound()), (0, 1, false));
    }

    #[test]
    fn a_delivery_beside_another_or_after_the_end_is_a_duplicate() {
        let ledger = Ledger::new();
        ledger.accepted(&id());
        ledger.delivered(&id());
        ledger.delivered(&id());
        ledger.returning(&id());
        assert!(ledger.done(&id()));
        let totals = ledger.totals(0);
        assert_eq!((totals.duplicated, totals.is_sound()), (1, true), "it was not settled yet");
        ledger.delivered(&id());
        assert!(!ledger.done(&id()));
        let totals = ledger.totals(0);
        assert_eq!((totals.duplicated, totals.came_back, totals.is_sound()), (2, 1, false));
    }

    #[test]
    fn where_acks_are_not_confirmed_a_job_may_come_back() {
        let ledger = Ledger::unconfirmed();
        ledger.accepted(&id());
        for _ in 0..2 {
            ledger.delivered(&id());
            ledger.returning(&id());
            ledger.done(&id());
        }
        let totals = ledger.totals(0);
        assert_eq!((totals.done, totals.duplicated, totals.is_sound()), (1, 1, true));
    }

    #[test]
    fn a_redelivery_is_none() {
        let ledger = Ledger::new();
        ledger.accepted(&id());
        for _ in 0..3 {
            ledger.delivered(&id());
            ledger.returning(&id());
        }
        assert!(ledger.dead(&id()) && !ledger.done(&id()));
        assert_eq!(ledger.totals(0).duplicated, 0);
    }
}
