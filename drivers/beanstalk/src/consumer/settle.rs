//! How reservations go on and end.

use std::time::{Duration, Instant};

use jobs_core::{Message, Result, Token};

use super::found;
use super::hand::Hand;
use crate::codec::Terms;
use crate::config::{A_YEAR, whole_seconds};
use crate::connection::Answer;
use crate::epoch::{Ending, Order};
use crate::error::Failure;
use crate::reservations::{Due, Reservation};

impl Hand<'_> {
    pub(super) fn look_after(&mut self, due: Due) -> Result<()> {
        match due {
            Due::Renew(token) => match self.renew(token) {
                Err(failure) if !failure.is_lost() => {
                    self.refused(&failure, "extend");
                    Ok(())
                }
                renewed => renewed.map(drop).map_err(|failure| failure.error("extend")),
            },
            Due::End(token) => {
                // What nobody has popped was not started.
                let started = self.floor.withdraw(&[token]).is_empty();
                self.give_back(token, started)?;
                if started {
                    self.floor
                        .company
                        .health
                        .note("a job was not settled within `max_lease`".to_owned());
                }
                Ok(())
            }
        }
    }

    /// False if the reservation is over.
    fn renew(&mut self, token: Token) -> Answer<bool> {
        let asked = Instant::now();
        // Looking at it forgets it if its time is over.
        let reservation = self.epoch.reservation(token);
        let renewed = match reservation {
            Some(Reservation { id, .. }) => self.ask(|client| client.touch(id)),
            None => {
                self.lapsed(token);
                return Ok(false);
            }
        };
        match found(renewed) {
            Ok(true) => self.epoch.renew(token, asked),
            Ok(false) => {
                self.epoch.forget(token);
                self.lapsed(token);
                return Ok(false);
            }
            // It lasts as long as it did, and is asked about again.
            Err(failure) if !failure.is_lost() => {
                self.epoch.postpone(token);
                return Err(failure);
            }
            Err(failure) => return Err(failure),
        }
        Ok(true)
    }

    fn lapsed(&self, token: Token) {
        self.floor.withdraw(&[token]);
        let trouble = "the server ended a reservation: its time to run was over";
        tracing::warn!(job.pipeline = %self.floor.company.health.pipeline(), trouble, "a lease is lost");
        self.floor.company.health.note(trouble.to_owned());
    }

    /// Ends a reservation without a receipt's doing.
    pub(super) fn give_back(&mut self, token: Token, started: bool) -> Result<()> {
        let Some(reservation) = self.epoch.reservation(token) else { return Ok(()) };
        self.epoch.forget(token);
        let ended = match started {
            true => self.again(&reservation, &reservation.message, Duration::ZERO, false),
            false => self.release(&reservation, Duration::ZERO),
        };
        match found(ended) {
            Err(failure) if failure.is_lost() => Err(failure.error("release")),
            // It comes back when its time to run is over.
            Err(failure) => {
                self.floor.company.health.met(&failure.error("release"));
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    pub(super) fn carry_out(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Settle(token, ending) => self.settle(token, &ending),
            Order::Extend(token, by) => self.extend(token, by),
        }
    }

    fn extend(&mut self, token: Token, by: Duration) -> Result<()> {
        match self.renew(token) {
            Ok(true) => {
                self.epoch.extend_to(token, Instant::now() + by.min(A_YEAR));
                self.epoch.done();
            }
            Ok(false) => drop(self.epoch.reply()),
            Err(failure) if failure.is_lost() => {
                drop(self.epoch.reply());
                return Err(failure.error("extend"));
            }
            Err(failure) => drop(self.epoch.reply().refuse(failure.error("extend"))),
        }
        Ok(())
    }

    fn settle(&mut self, token: Token, ending: &Ending) -> Result<()> {
        // Looked at again: its time may have ended while it waited here.
        let Some(reservation) = self.epoch.reservation(token) else {
            drop(self.epoch.reply());
            return Ok(());
        };
        let (id, priority) = (reservation.id, reservation.priority);
        let settled = match ending {
            Ending::Ack => self.ask(|client| client.delete(id)),
            Ending::Reject => self.ask(|client| client.bury(id, priority)),
            Ending::Release => self.release(&reservation, Duration::ZERO),
            Ending::Abandon => {
                self.again(&reservation, &reservation.message, Duration::ZERO, false)
            }
            Ending::Requeue { message, delay, changed } => {
                self.again(&reservation, message, *delay, *changed)
            }
        };
        // Something changed, so that the tube may have a job.
        self.ask_soon();
        match found(settled) {
            Ok(true) => {
                self.epoch.forget(token);
                self.epoch.done();
                Ok(())
            }
            Ok(false) => {
                self.epoch.forget(token);
                drop(self.epoch.reply());
                Ok(())
            }
            Err(failure) if failure.is_lost() => {
                // Whether it was settled nobody knows; the receipt is over.
                self.epoch.forget(token);
                drop(self.epoch.reply());
                Err(failure.error("settle"))
            }
            Err(failure) => {
                self.refuse(token, ending, &failure);
                Ok(())
            }
        }
    }

    fn refuse(&mut self, token: Token, ending: &Ending, failure: &Failure) {
        let reply = self.epoch.reply();
        let error = failure.error("settle");
        self.floor.company.health.met(&error);
        if matches!(ending, Ending::Abandon) {
            // It comes back when its time to run is over.
            self.epoch.forget(token);
            return;
        }
        self.epoch.reopen(token);
        if let Some(job) = reply.refuse(error) {
            jobs_core::Acknowledger::abandon(&*self.epoch, job);
        }
    }

    fn release(&mut self, reservation: &Reservation, delay: Duration) -> Answer<()> {
        let Reservation { id, priority, .. } = *reservation;
        self.ask(|client| client.release(id, priority, whole_seconds(delay)))
    }

    /// Lets a job run again, with the attempt counted: as a copy that knows it, stored before the
    /// original is deleted. A body that is not of this suite stays as it is, as long as it can; the
    /// server counts for it.
    fn again(
        &mut self,
        reservation: &Reservation,
        message: &Message,
        delay: Duration,
        changed: bool,
    ) -> Answer<()> {
        if !reservation.ours && !changed {
            return self.release(reservation, delay);
        }
        let terms = Terms {
            attempt: reservation.attempt.saturating_add(1),
            priority: reservation.priority,
            time_to_run: whole_seconds(reservation.time_to_run),
        };
        let copy = self.floor.copy(message, delay, terms);
        match copy.and_then(|copy| self.ask(|client| client.put(&copy))) {
            Ok(()) => self.ask(|client| client.delete(reservation.id)),
            // The server takes no copy now, or none this large. Better uncounted than not at all.
            Err(failure) if !changed && !failure.is_lost() && !failure.of_put().may_be_stored() => {
                self.floor.company.health.met(&failure.error("settle"));
                self.release(reservation, delay)
            }
            Err(failure) => Err(failure),
        }
    }
}
