//! What became of every message: the books of a soak.

mod event;

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jobs_core::JobId;

pub(crate) use event::Event;
use event::Listener;

/// Keeps account of messages by id: pushed, delivered, settled. All calls may come from any task.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<HashMap<JobId, Entry>>,
    /// An ack that returned `Ok` may be lost all the same.
    unconfirmed: bool,
    /// Who is told of everything.
    listener: Option<Listener>,
}

#[derive(Debug, Default)]
struct Entry {
    push: Push,
    /// Deliveries that are out.
    held: u32,
    /// An ack or reject was handed over and not answered.
    ending: bool,
    end: Option<End>,
    /// The broker's number for the delivery that ended.
    ended_at: Option<u64>,
    /// The answer to an ack or reject will never come: its connection is lost, or the process that
    /// worked has ended.
    orphaned: bool,
    /// It had ended before a process did: a delivery to another is no late news.
    sealed: bool,
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

    /// An empty ledger that writes everything that is noted in it to `sink`, at once and line by
    /// line: for a process that may be killed, whose parent keeps books too. See
    /// [`Victim`](crate::Victim).
    #[must_use]
    pub fn told_to(sink: impl Write + Send + 'static) -> Self {
        Self { listener: Some(Listener::new(sink)), ..Self::default() }
    }

    /// False if nobody listens any more to what [`told_to`](Self::told_to) tells.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.listener.as_ref().is_none_or(|listener| !listener.is_gone())
    }

    /// A push begins. Called before it, because a delivery may come first.
    pub fn pushing(&self, id: &JobId) {
        self.note(Event::Pushing, id);
    }

    /// A push returned `Ok`.
    pub fn accepted(&self, id: &JobId) {
        self.note(Event::Accepted, id);
    }

    /// A push failed or was dropped, and the message may have been stored.
    pub fn uncertain(&self, id: &JobId) {
        self.note(Event::Uncertain, id);
    }

    /// A job was handed to a worker. After its end that is a duplicate, but no proof that it came back
    /// in spite of it: the worker may have had it since before, and has only now got round to saying so.
    /// Then its receipt is refused.
    pub fn delivered(&self, id: &JobId) {
        self.note(Event::Delivered, id);
    }

    /// A worker is about to settle or drop a job. Called before it, because the next delivery may
    /// come first.
    pub fn returning(&self, id: &JobId) {
        self.note(Event::Returning, id);
    }

    /// As [`returning`](Self::returning), with an ack or a reject: should the process end before the
    /// answer, the job may be gone.
    pub fn ending(&self, id: &JobId) {
        self.note(Event::Ending, id);
    }

    /// An ack or reject failed, because the lease is lost: with its connection, then it may have been
    /// taken all the same, or before.
    pub fn unanswered(&self, id: &JobId) {
        self.note(Event::Unanswered, id);
    }

    /// An ack was confirmed. True if the job ended now.
    pub fn done(&self, id: &JobId) -> bool {
        self.note(Event::Done, id)
    }

    /// As [`done`](Self::done), of the delivery with this [position](jobs_core::Job::position). An end
    /// at another one is that of a copy: a requeue that was cut off between copy and original leaves
    /// both, which is a duplicate and no ack that did not hold.
    pub fn done_at(&self, id: &JobId, position: Option<u64>) -> bool {
        self.note_at(Event::Done, id, position)
    }

    /// A job that was settled when it was handed out has run. Nobody heard the answer, so that it may
    /// come back. True if it ended now.
    pub fn auto_acked(&self, id: &JobId) -> bool {
        let mut entries = self.entries();
        let ended = entries.entry(id.clone()).or_default().note(Event::Done, true, None);
        if let Some(listener) = &self.listener {
            listener.tell(Event::Done, id);
        }
        ended
    }

    /// A rejection was confirmed. True if the job ended now.
    pub fn dead(&self, id: &JobId) -> bool {
        self.note(Event::Dead, id)
    }

    /// As [`done_at`](Self::done_at), of a rejection.
    pub fn dead_at(&self, id: &JobId, position: Option<u64>) -> bool {
        self.note_at(Event::Dead, id, position)
    }

    /// The process that worked has ended, and everything it told is noted. What was under way may
    /// have happened or not, what it held is back, and what had ended must not come back.
    pub fn crashed(&self) {
        self.entries().values_mut().for_each(Entry::crash);
    }

    /// True if a job ended now.
    pub(crate) fn note(&self, event: Event, id: &JobId) -> bool {
        self.note_at(event, id, None)
    }

    fn note_at(&self, event: Event, id: &JobId, position: Option<u64>) -> bool {
        let mut entries = self.entries();
        let entry = entries.entry(id.clone()).or_default();
        let ended = entry.note(event, self.unconfirmed, position);
        // While the entries are locked, so that the order is the same.
        if let Some(listener) = &self.listener {
            listener.tell(event, id);
        }
        ended
    }

    /// Accepted jobs that have certainly not ended.
    #[must_use]
    pub fn open(&self) -> u64 {
        let open =
            |entry: &&Entry| entry.push == Push::Accepted && entry.end.is_none() && !entry.orphaned;
        self.entries().values().filter(open).count() as u64
    }

    /// The totals, given how many jobs the broker says it still has.
    #[must_use]
    pub fn totals(&self, at_broker: u64) -> Totals {
        let entries = self.entries();
        let mut totals = Totals::default();
        let mut orphans = 0;
        for entry in entries.values() {
            totals.duplicated += entry.duplicates;
            totals.came_back += u64::from(entry.came_back);
            match (&entry.push, &entry.end) {
                (Push::Accepted, end) => {
                    totals.accepted += 1;
                    totals.done += u64::from(*end == Some(End::Done));
                    totals.dead += u64::from(*end == Some(End::Dead));
                    orphans += u64::from(end.is_none() && entry.orphaned);
                }
                (Push::Uncertain, _) => totals.uncertain += 1,
                (Push::Started, _) => {}
            }
        }
        let open = totals.accepted - totals.done - totals.dead;
        totals.pending = open.min(at_broker);
        let missing = open - totals.pending;
        // Nobody knows whether it was acked or rejected.
        totals.done += missing.min(orphans);
        totals.lost = missing.saturating_sub(orphans);
        totals
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<JobId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn note(&mut self, event: Event, unconfirmed: bool, position: Option<u64>) -> bool {
        match event {
            Event::Pushing => {}
            Event::Accepted => self.push = Push::Accepted,
            Event::Uncertain => self.push = Push::Uncertain,
            Event::Delivered => {
                self.duplicates += u64::from(self.held > 0 || self.end.is_some());
                self.came_back |= self.sealed && !unconfirmed;
                self.held += 1;
                (self.ending, self.orphaned) = (false, false);
            }
            Event::Returning | Event::Ending => {
                self.held = self.held.saturating_sub(1);
                self.ending = event == Event::Ending;
            }
            Event::Unanswered => self.orphaned = self.end.is_none(),
            Event::Done => return self.end(End::Done, unconfirmed, position),
            Event::Dead => return self.end(End::Dead, unconfirmed, position),
        }
        false
    }

    fn end(&mut self, end: End, unconfirmed: bool, position: Option<u64>) -> bool {
        let first = self.end.is_none();
        let of_copy = position.zip(self.ended_at).is_some_and(|(one, other)| one != other);
        self.came_back |= !first && !unconfirmed && !of_copy;
        if first {
            self.ended_at = position;
        }
        self.end.get_or_insert(end);
        first
    }

    fn crash(&mut self) {
        if self.push == Push::Started {
            self.push = Push::Uncertain;
        }
        self.held = 0;
        self.orphaned |= std::mem::take(&mut self.ending);
        self.sealed = self.end.is_some();
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
    fn the_end_of_a_copy_is_not_that_of_the_original() {
        let ledger = Ledger::new();
        ledger.accepted(&id());
        assert!(ledger.done_at(&id(), Some(1)) && !ledger.done_at(&id(), Some(2)));
        assert!(ledger.totals(0).is_sound());
        assert!(!ledger.dead_at(&id(), Some(1)));
        assert_eq!(ledger.totals(0).came_back, 1);
    }

    #[test]
    fn a_job_that_was_settled_when_handed_out_may_come_back() {
        let ledger = Ledger::new();
        ledger.accepted(&id());
        assert!(ledger.auto_acked(&id()) && !ledger.auto_acked(&id()));
        assert!(ledger.totals(0).is_sound());
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
    fn after_a_crash_what_was_under_way_may_have_happened() {
        let ledger = Ledger::new();
        for name in ["pushed", "held", "acked"] {
            ledger.pushing(&JobId::from(name));
        }
        for name in ["held", "acked"] {
            ledger.accepted(&JobId::from(name));
            ledger.delivered(&JobId::from(name));
        }
        ledger.ending(&JobId::from("acked"));
        ledger.crashed();
        let totals = ledger.totals(0);
        assert_eq!((totals.accepted, totals.uncertain, totals.done, totals.lost), (2, 1, 1, 1));
        // It was not acked, and nobody has it any more.
        ledger.delivered(&JobId::from("acked"));
        ledger.crashed();
        let totals = ledger.totals(0);
        assert_eq!((totals.duplicated, totals.done, totals.lost), (0, 0, 2));
    }

    #[test]
    fn an_ack_whose_answer_is_lost_may_have_been_taken() {
        let ledger = Ledger::new();
        ledger.accepted(&id());
        ledger.delivered(&id());
        ledger.ending(&id());
        ledger.unanswered(&id());
        let found = |at_broker| {
            let totals = ledger.totals(at_broker);
            (totals.done, totals.pending, totals.lost, ledger.open())
        };
        assert_eq!((found(0), found(1)), ((1, 0, 0, 0), (0, 1, 0, 0)), "or it is back");
        ledger.delivered(&id());
        assert_eq!(found(0), (0, 0, 1, 1), "it was not");
    }

    #[test]
    fn what_had_ended_before_a_crash_must_not_be_delivered() {
        let ledger = Ledger::new();
        ledger.accepted(&id());
        ledger.done(&id());
        ledger.crashed();
        assert!(ledger.totals(0).is_sound());
        ledger.delivered(&id());
        assert_eq!(ledger.totals(0).came_back, 1);
    }

    #[test]
    fn a_listener_hears_all_until_it_goes() {
        let (mut heard, told) = std::io::pipe().unwrap();
        let ledger = Ledger::told_to(told);
        ledger.pushing(&id());
        ledger.accepted(&id());
        let mut lines = [0; 8];
        std::io::Read::read_exact(&mut heard, &mut lines).unwrap();
        assert_eq!(&lines, b"p a\na a\n");
        assert!(ledger.is_heard());
        drop(heard);
        ledger.ending(&id());
        assert!(!ledger.is_heard());
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
