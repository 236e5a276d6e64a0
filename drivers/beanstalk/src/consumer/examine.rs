//! What a reserved job is, and which attempt.

use std::time::{Duration, Instant};

use jobs_core::Message;

use super::found;
use super::hand::Hand;
use crate::codec::{self, Decoded, Terms};
use crate::connection::{Answer, Reserved};
use crate::error::Reply;
use crate::pool::lock;
use crate::reservations::Reservation;

impl Hand<'_> {
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
            Some(terms) if self.is_fresh(terms.priority, id) => terms,
            _ => match self.ask_about(id, terms)? {
                Some((terms, 0)) => terms,
                Some((terms, lost)) => {
                    let counted = Terms { attempt: terms.attempt.saturating_add(lost), ..terms };
                    if self.write_down(id, &message, counted)? {
                        return Ok(None);
                    }
                    terms
                }
                None => return Ok(None),
            },
        };
        let time_to_run = Duration::from_secs(terms.time_to_run.max(1).into());
        let mut renewed = asked;
        if asked.elapsed() > time_to_run / 4 {
            // It may have come at any moment since.
            renewed = Instant::now();
            if !found(self.ask(|client| client.touch(id)))? {
                return Ok(None);
            }
        }
        let ends = self.floor.config.max_lease.map(|most| Instant::now() + most);
        let (priority, attempt) = (terms.priority, terms.attempt);
        Ok(Some(Reservation { id, priority, time_to_run, message, attempt, ours, renewed, ends }))
    }

    /// True if a job surely comes for the first time. Judged by what had come before it was asked for,
    /// as those that are asked for at once arrive in any order; and by what has come since, for a request
    /// that waited for long.
    fn is_fresh(&self, priority: u32, id: u64) -> bool {
        let mut now = lock(&self.floor.freshness);
        let fresh = self.before.is_fresh(priority, id) || now.is_fresh(priority, id);
        if fresh {
            now.came(priority, id);
        }
        fresh
    }

    /// What the server knows of a job: its terms, and how many deliveries ended without a word that
    /// the body does not know of. None if it is gone.
    fn ask_about(&mut self, id: u64, terms: Option<Terms>) -> Answer<Option<(Terms, u32)>> {
        let stats = match self.ask(|client| client.stats_job(id)) {
            Ok(stats) => stats,
            Err(failure) if failure.reply == Reply::NotFound => return Ok(None),
            Err(failure) => return Err(failure),
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

    /// Replaces a job by a copy that knows its attempt, so that no later consumer counts less. False
    /// if the server takes no copy.
    fn write_down(&mut self, id: u64, message: &Message, terms: Terms) -> Answer<bool> {
        let put = self.floor.put(message, Duration::ZERO, terms);
        match self.ask(|client| client.put(&put)) {
            Ok(()) => {}
            Err(failure) if failure.is_lost() => return Err(failure),
            Err(failure) => {
                self.floor.health.met(&failure.error("reserve"));
                return Ok(false);
            }
        }
        // If it is not there any more, somebody has it: a duplicate, but no loss.
        found(self.ask(|client| client.delete(id)))?;
        Ok(true)
    }
}
