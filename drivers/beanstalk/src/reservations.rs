//! The jobs that one connection has reserved: decisions without I/O.
//!
//! The server would take a late settlement wrongly: it deletes a job that is ready again, and one
//! that the same connection has reserved anew. So each reservation has a number, and ends here no
//! later than at the server.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use jobs_core::{Message, Token};

/// A job that is reserved.
#[derive(Clone, Debug)]
pub(crate) struct Reservation {
    /// The server's number for the job.
    pub(crate) id: u64,
    /// The server's priority, which a release must repeat.
    pub(crate) priority: u32,
    pub(crate) time_to_run: Duration,
    pub(crate) message: Message,
    pub(crate) attempt: u32,
    /// False for a job whose body is not of this suite: it goes back as it is.
    pub(crate) ours: bool,
    /// When the server was last asked to begin its time anew, at the latest.
    pub(crate) renewed: Instant,
    /// When the worker's time is over.
    pub(crate) ends: Option<Instant>,
}

impl Reservation {
    fn lapses(&self) -> Instant {
        self.renewed + self.time_to_run
    }

    fn renewal(&self) -> Instant {
        self.renewed + self.time_to_run / 2
    }
}

#[derive(Debug)]
struct Entry {
    reservation: Reservation,
    /// When to ask the server for more time.
    renewal: Instant,
    /// Its outcome is known, and on its way.
    settling: bool,
}

impl Entry {
    /// When something is to be done about it.
    fn next(&self) -> Instant {
        self.reservation.ends.map_or(self.renewal, |ends| ends.min(self.renewal))
    }
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Ask the server for more time.
    Renew(Token),
    /// The worker's time is over.
    End(Token),
}

#[derive(Debug, Default)]
pub(crate) struct Reservations {
    by_token: HashMap<Token, Entry>,
    by_id: HashMap<u64, Token>,
    /// When something is to be done.
    times: BTreeSet<(Instant, Token)>,
}

impl Reservations {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_token.is_empty()
    }

    pub(crate) fn tokens(&self) -> Vec<Token> {
        self.by_token.keys().copied().collect()
    }

    /// Adds one. Returns the token of an earlier one of the same job, which thereby has ended.
    pub(crate) fn insert(&mut self, token: Token, reservation: Reservation) -> Option<Token> {
        let before = self.by_id.insert(reservation.id, token);
        if let Some(before) = before {
            self.remove(before);
            self.by_id.insert(reservation.id, token);
        }
        let entry = Entry { renewal: reservation.renewal(), reservation, settling: false };
        self.times.insert((entry.next(), token));
        self.by_token.insert(token, entry);
        before
    }

    pub(crate) fn remove(&mut self, token: Token) -> Option<Reservation> {
        let entry = self.by_token.remove(&token)?;
        self.times.remove(&(entry.next(), token));
        self.by_id.remove(&entry.reservation.id);
        Some(entry.reservation)
    }

    /// The first outcome of a reservation that lasts: others are refused.
    pub(crate) fn begin(&mut self, token: Token, now: Instant) -> bool {
        if self.get(token, now).is_none() {
            return false;
        }
        let entry = self.by_token.get_mut(&token).expect("it lasts");
        !std::mem::replace(&mut entry.settling, true)
    }

    /// Its outcome failed: another may be tried.
    pub(crate) fn reopen(&mut self, token: Token) {
        if let Some(entry) = self.by_token.get_mut(&token) {
            entry.settling = false;
        }
    }

    /// The reservation, if it lasts. One that does not is forgotten.
    pub(crate) fn get(&mut self, token: Token, now: Instant) -> Option<&Reservation> {
        let entry = self.by_token.get(&token)?;
        if now >= entry.reservation.lapses() {
            self.remove(token);
            return None;
        }
        self.by_token.get(&token).map(|entry| &entry.reservation)
    }

    /// The server was asked at `asked` to begin its time anew, and did.
    pub(crate) fn renew(&mut self, token: Token, asked: Instant) {
        self.change(token, |entry| {
            entry.reservation.renewed = asked;
            entry.renewal = entry.reservation.renewal();
        });
    }

    /// The server refused that for now: it is to be asked again, at the latest when the time is over.
    pub(crate) fn postpone(&mut self, token: Token, now: Instant) {
        self.change(token, |entry| {
            let again = now + entry.reservation.time_to_run / 10;
            entry.renewal = again.min(entry.reservation.lapses());
        });
    }

    /// The worker's time ends no sooner than at `ends`.
    pub(crate) fn extend(&mut self, token: Token, ends: Instant) {
        self.change(token, |entry| {
            let lasts = &mut entry.reservation.ends;
            *lasts = lasts.map(|before| before.max(ends));
        });
    }

    fn change(&mut self, token: Token, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.by_token.get_mut(&token) else { return };
        self.times.remove(&(entry.next(), token));
        change(entry);
        self.times.insert((entry.next(), token));
    }

    /// When [`due`](Self::due) will have something.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.times.first().map(|(time, _)| *time)
    }

    pub(crate) fn due(&self, now: Instant) -> Option<Due> {
        let (_, token) = self.times.first().filter(|(time, _)| *time <= now)?;
        let ends = self.by_token.get(token)?.reservation.ends;
        Some(match ends.is_some_and(|ends| ends <= now) {
            true => Due::End(*token),
            false => Due::Renew(*token),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME_TO_RUN: Duration = Duration::from_secs(10);

    fn reserved(id: u64, now: Instant, ends: Option<Instant>) -> Reservation {
        Reservation {
            id,
            priority: 10,
            time_to_run: TIME_TO_RUN,
            message: Message::new("a", ""),
            attempt: 1,
            ours: true,
            renewed: now,
            ends,
        }
    }

    fn start() -> (Instant, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        (start, move |seconds| start + Duration::from_secs(seconds))
    }

    #[test]
    fn the_first_outcome_counts_unless_it_fails() {
        let (now, _) = start();
        let mut held = Reservations::default();
        held.insert(1, reserved(7, now, None));
        assert!(held.begin(1, now) && !held.begin(1, now));
        held.reopen(1);
        assert!(held.begin(1, now));
        assert!(held.remove(1).is_some() && !held.begin(1, now) && held.is_empty());
        assert_eq!(held.next(), None);
    }

    #[test]
    fn a_reservation_that_is_not_renewed_in_time_is_over() {
        let (now, at) = start();
        let mut held = Reservations::default();
        held.insert(1, reserved(7, now, None));
        held.insert(2, reserved(8, now, None));
        held.renew(2, at(4));
        assert!(!held.begin(1, at(10)) && held.begin(2, at(10)));
        assert!(held.get(2, at(14)).is_none() && held.is_empty());
    }

    #[test]
    fn a_job_that_is_reserved_anew_ends_its_old_reservation() {
        let (now, _) = start();
        let mut held = Reservations::default();
        assert_eq!(held.insert(1, reserved(7, now, None)), None);
        assert_eq!(held.insert(2, reserved(7, now, None)), Some(1));
        assert!(!held.begin(1, now) && held.begin(2, now));
    }

    #[test]
    fn a_renewal_that_is_refused_is_tried_again_until_the_time_is_over() {
        let (now, at) = start();
        let mut held = Reservations::default();
        held.insert(1, reserved(7, now, None));
        held.postpone(1, at(5));
        assert_eq!((held.due(at(5)), held.due(at(6))), (None, Some(Due::Renew(1))));
        held.postpone(1, at(9) + TIME_TO_RUN / 20);
        assert_eq!(held.next(), Some(at(10)));
        assert!(held.get(1, at(10)).is_none());
    }

    #[test]
    fn renewal_is_due_at_half_the_time_and_the_end_when_the_workers_time_is_over() {
        let (now, at) = start();
        let mut held = Reservations::default();
        held.insert(1, reserved(7, now, None));
        held.insert(2, reserved(8, now, Some(at(7))));
        assert_eq!((held.next(), held.due(at(4))), (Some(at(5)), None));
        held.renew(1, at(5));
        assert_eq!(held.due(at(5)), Some(Due::Renew(2)));
        held.renew(2, at(5));
        assert_eq!((held.next(), held.due(at(7))), (Some(at(7)), Some(Due::End(2))));
        held.extend(2, at(9));
        held.extend(2, at(8));
        assert_eq!((held.next(), held.due(at(8))), (Some(at(9)), None));
        held.extend(1, at(1));
        assert_eq!(held.due(at(10)), Some(Due::End(2)));
        held.remove(2);
        assert_eq!(held.due(at(10)), Some(Due::Renew(1)), "one that never ends never ends");
    }
}
