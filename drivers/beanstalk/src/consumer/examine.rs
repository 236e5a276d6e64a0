//! What a reserved job is, and which attempt.

use std::time::{Duration, Instant};

use jobs_core::Message;

use super::found;
use super::hand::Hand;
use crate::codec::{self, Decoded, Terms, server_priority};
use crate::connection::{Answer, Reserved};
use crate::error::Reply;
use crate::pool::lock;
use crate::reservations::Reservation;

impl Hand<'_> {
    /// Gives a job back that came after the thread was given up. Closing the connection would, too, but
    /// then it counts as an attempt.
    pub(super) fn decline(&mut self, reserved: &Reserved) -> Answer<()> {
        match codec::decode(&reserved.body).terms {
            Some(terms) => self.ask(|client| client.release(reserved.id, terms.priority, 0)),
            None => Ok(()),
        }
    }

    /// Finds out what a job is. None if it was ours for a moment only.
    pub(super) fn examine(
        &mut self,
        reserved: Reserved,
        asked: Instant,
    ) -> Answer<Option<Reservation>> {
        let Reserved { id, body } = reserved;
        let Decoded { message, terms } = codec::decode(&body);
        let ours = terms.is_some();
        let terms = match terms {
            Some(terms) if self.is_first(terms.priority, id) => terms,
            _ => match self.ask_about(id, terms)? {
                Some((terms, 0)) => terms,
                Some((terms, lost)) => {
                    let counted = Terms { attempt: terms.attempt.saturating_add(lost), ..terms };
                    if self.write_down(id, &message, counted)? {
                        return Ok(None);
                    }
                    counted
                }
                None => return Ok(None),
            },
        };
        let time_to_run = Duration::from_secs(terms.time_to_run.max(1).into());
        let mut renewed = asked;
        if asked.elapsed() > time_to_run / 4 {
            // It may have come at any moment since. If that cannot be told, it comes back when its time is
            // over.
            renewed = Instant::now();
            if !found(self.ask(|client| client.touch(id)))? {
                return Ok(None);
            }
        }
        let ends = self.floor.config.max_lease.map(|most| Instant::now() + most);
        let (priority, attempt) = (terms.priority, terms.attempt);
        Ok(Some(Reservation { id, priority, time_to_run, message, attempt, ours, renewed, ends }))
    }

    fn is_first(&self, priority: u32, id: u64) -> bool {
        lock(&self.floor.freshness).is_first(&self.before, priority, id)
    }

    /// What the server knows of a job: its terms, and how many deliveries ended without a word that
    /// the body does not know of. None if it is gone.
    fn ask_about(&mut self, id: u64, terms: Option<Terms>) -> Answer<Option<(Terms, u32)>> {
        let stats = match self.ask(|client| client.stats_job(id)) {
            Ok(stats) => stats,
            Err(failure) if failure.reply == Reply::NotFound => return Ok(None),
            Err(failure) if failure.is_lost() => return Err(failure),
            Err(failure) => {
                // Better uncounted than not at all: what is worked off gives the server room.
                self.refused(&failure, "reserve");
                return Ok(Some((terms.unwrap_or_else(|| self.unknown()), 0)));
            }
        };
        let reserves: u32 = stats.number("reserves").unwrap_or(1).max(1);
        let Some(terms) = terms else {
            let priority = stats.number("pri").unwrap_or_default();
            let time_to_run = stats.number("ttr").unwrap_or(1);
            return Ok(Some((Terms { attempt: reserves, priority, time_to_run }, 0)));
        };
        if reserves == 1 {
            lock(&self.floor.freshness).came(terms.priority, id);
        }
        let releases: u32 = stats.number("releases").unwrap_or_default();
        Ok(Some((terms, reserves.saturating_sub(releases.saturating_add(1)))))
    }

    /// The terms of a job that neither its body nor the server tells.
    fn unknown(&self) -> Terms {
        let priority = server_priority(self.floor.priority);
        let priority = self.floor.config.tube_priority.unwrap_or(priority);
        Terms { attempt: 1, priority, time_to_run: 1 }
    }

    /// Replaces a job by a copy that knows its attempt, so that no later consumer counts less. False
    /// if the server takes no copy.
    fn write_down(&mut self, id: u64, message: &Message, terms: Terms) -> Answer<bool> {
        let copy = self.floor.copy(message, Duration::ZERO, terms);
        match copy.and_then(|copy| self.ask(|client| client.put(&copy))) {
            Ok(()) => {}
            Err(failure) if failure.is_lost() => return Err(failure),
            // A copy that is buried is a duplicate, should anybody kick it.
            Err(failure) => {
                self.refused(&failure, "reserve");
                return Ok(false);
            }
        }
        // If it is not there any more, somebody has it: a duplicate, but no loss.
        found(self.ask(|client| client.delete(id)))?;
        Ok(true)
    }
}
