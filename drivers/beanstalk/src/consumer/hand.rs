//! What one thread does: it reserves, settles and renews on its own connection.
//!
//! A reservation belongs to the connection that made it, and while a request for a job waits the
//! server reads nothing else from that connection. So a thread that holds jobs asks only for what is
//! ready now, and only one that holds none waits at the server.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jobs_core::{Credit, Delivery, Error, ErrorKind, Result};

use super::Floor;
use crate::connection::{Answer, Client};
use crate::epoch::{Epoch, Role};
use crate::error::{Failure, Reply};
use crate::freshness::Before;
use crate::pool::{Post, lock};
use crate::reservations::Reservation;

/// Between questions for a job when every connection holds some, from and to.
const PACE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// A thread that leaves the waiting to others looks after so long whether they still do.
const TRUST: Duration = Duration::from_secs(1);
/// A job that came sooner may have been ready when it was asked for.
const AT_ONCE: Duration = Duration::from_millis(1);

/// A thread with its connection.
pub(super) struct Hand<'a> {
    pub(super) floor: &'a Floor,
    pub(super) post: &'a Post,
    pub(super) client: &'a mut Client,
    pub(super) epoch: Arc<Epoch>,
    /// When to ask for a job next, and how long to wait after that.
    pub(super) next: Instant,
    pub(super) pace: Duration,
    /// The last question was answered with a job at once.
    pub(super) at_once: bool,
    /// What had come before the job that is asked for.
    pub(super) before: Before,
}

impl<'a> Hand<'a> {
    pub(super) fn new(
        floor: &'a Floor,
        post: &'a Post,
        client: &'a mut Client,
        epoch: Arc<Epoch>,
    ) -> Self {
        let (next, pace, before) = (Instant::now(), PACE.0, Before::default());
        Self { floor, post, client, epoch, next, pace, at_once: false, before }
    }

    pub(super) fn serve(mut self) -> Result<()> {
        loop {
            while let Some(order) = self.epoch.order() {
                self.carry_out(order)?;
            }
            while let Some(due) = self.epoch.due(Instant::now()) {
                self.look_after(due)?;
            }
            if self.post.is_relieved() || self.epoch.is_dead() {
                return Err(Error::new(ErrorKind::Connection, "serve")
                    .with_driver(crate::NAME)
                    .with_context("it was given up meanwhile")
                    .transient());
            }
            if self.floor.is_closing() && self.epoch.kill_if_idle() {
                return Ok(());
            }
            self.fetch()?;
        }
    }

    pub(super) fn ask<T>(&mut self, what: impl FnOnce(&mut Client) -> Answer<T>) -> Answer<T> {
        let client = &mut *self.client;
        self.post.during(self.floor.config.push_timeout, || what(client))
    }

    /// Asks for a job next, without waiting.
    pub(super) fn ask_soon(&mut self) {
        (self.next, self.pace) = (Instant::now(), PACE.0);
    }

    /// Asks for a job next after a while, and after up to `longest` if it goes on like that.
    fn ask_later(&mut self, longest: Duration) {
        self.pace = self.pace.min(longest);
        self.next = Instant::now() + self.pace;
        self.pace *= 2;
    }

    /// The server refused something that can wait, as when it is out of memory. The connection is of
    /// use, and the jobs that it has reserved stay with it.
    pub(super) fn refused(&mut self, failure: &Failure, operation: &'static str) {
        self.floor.company.health.met(&failure.error(operation));
        self.ask_later(TRUST);
    }

    /// Asks for a job if there is a credit for it, or waits for something to do.
    fn fetch(&mut self) -> Result<()> {
        let holds_none = self.epoch.is_empty();
        let Some(credit) = self.floor.credit() else {
            let role = if holds_none { Role::Free } else { Role::Busy };
            self.epoch.as_role(role, || self.epoch.wait(None));
            return Ok(());
        };
        if Instant::now() < self.next {
            self.floor.unused(credit);
            self.epoch.wait(Some(self.next));
            return Ok(());
        }
        if holds_none {
            self.epoch.tell();
            let (epoch, wait) = (Arc::clone(&self.epoch), self.floor.config.reserve());
            let waiting = Role::Waiting(Instant::now() + wait + TRUST);
            return epoch.as_role(waiting, || self.reserve(wait, credit)).map(drop);
        }
        // More may be ready if not even the others have taken everything.
        let busy = self.at_once && self.floor.active() > 1;
        if !busy && self.floor.is_any_waiting() {
            // What becomes ready goes to them.
            self.floor.unused(credit);
            self.epoch.wait(Some(Instant::now() + TRUST));
            return Ok(());
        }
        if self.reserve(Duration::ZERO, credit)? {
            return Ok(());
        }
        if self.next <= Instant::now() {
            self.ask_later(PACE.1);
        }
        if self.floor.is_any_free() {
            // They can wait at the server, with the credit that is free now.
            self.floor.epochs.ring();
        }
        Ok(())
    }

    /// Asks for a job, and delivers it. False if there is none.
    fn reserve(&mut self, wait: Duration, credit: Credit) -> Result<bool> {
        let floor = self.floor;
        lock(&floor.freshness).note(&mut self.before);
        if let Some(credit) = self.epoch.keep(credit) {
            floor.unused(credit);
            return Ok(false);
        }
        let asked = Instant::now();
        let client = &mut *self.client;
        let allowance = floor.config.push_timeout + wait;
        let answer = self.post.during(allowance, || client.reserve(wait));
        self.at_once = answer.is_ok() && asked.elapsed() < AT_ONCE;
        let fetched = match answer {
            Ok(reserved) if self.epoch.is_dead() => self.decline(&reserved).map(|()| None),
            Ok(reserved) => self.examine(reserved, asked),
            Err(failure) => match failure.reply {
                Reply::TimedOut => Ok(None),
                // It means: renew what you hold, which is looked after before the next question.
                Reply::DeadlineSoon => {
                    self.ask_later(PACE.1);
                    Ok(None)
                }
                _ => Err(failure),
            },
        };
        // None: the thread was given up.
        let Some(credit) = self.epoch.credit() else { return Ok(false) };
        match fetched {
            Ok(Some(reservation)) => {
                self.pace = PACE.0;
                self.deliver(reservation, credit)?;
                Ok(true)
            }
            Ok(None) => {
                floor.unused(credit);
                Ok(false)
            }
            Err(failure) => {
                floor.unused(credit);
                if failure.is_lost() {
                    return Err(failure.error("reserve"));
                }
                self.refused(&failure, "reserve");
                Ok(false)
            }
        }
    }

    fn deliver(&mut self, reservation: Reservation, credit: Credit) -> Result<()> {
        let floor = self.floor;
        let token = floor.tokens.fetch_add(1, Ordering::Relaxed);
        let Reservation { id, attempt, .. } = reservation;
        let message = reservation.message.clone();
        let Ok(before) = self.epoch.hold(token, reservation) else {
            floor.unused(credit);
            // Given up meanwhile: closing the connection gives the job back.
            return Ok(());
        };
        if let Some(before) = before {
            floor.withdraw(&[before]);
        }
        let acknowledger = Arc::clone(&self.epoch) as Arc<dyn jobs_core::Acknowledger>;
        let delivery = Delivery::new(message, token, acknowledger);
        let delivery = delivery.with_attempt(attempt).with_position(id);
        let gate = lock(&floor.gate);
        floor.fetching.fetch_sub(1, Ordering::AcqRel);
        if let Some(inlet) = gate.inlet.as_ref().filter(|_| gate.running) {
            let wakeup = inlet.deliver(credit, delivery);
            drop(gate);
            self.post.done();
            self.epoch.delivered(wakeup);
            return Ok(());
        }
        drop(gate);
        drop(credit);
        self.give_back(token, false)
    }
}
