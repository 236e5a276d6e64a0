//! Receiving: credits first, then a request for as many messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use aws_sdk_sqs::types::{Message as Received, MessageSystemAttributeName};
use jobs_core::{Acknowledger, Backoff, Credit, Delivery, Inlet, Result, Token};
use tokio::time::{Instant, timeout_at};

use super::{Desk, Phase};
use crate::coalescer::FULL;
use crate::codec::Codec;
use crate::connection::lock;
use crate::delays::Hop;
use crate::error::failed;
use crate::settlements::{Removal, change};

/// With at least as many credits a receiver waits a moment until a request brings as much as it can.
const AMPLE: usize = 2 * FULL;

/// So long at most.
const GATHERING: Duration = Duration::from_millis(50);

/// An answer without messages that comes sooner was not waited for by the service.
const AT_ONCE: Duration = Duration::from_millis(250);

/// After such an answer.
const PAUSE: Duration = Duration::from_millis(500);

/// Credits for messages that are asked for.
struct Credits<'a> {
    desk: &'a Desk,
    credits: Vec<Credit>,
}

impl<'a> Credits<'a> {
    fn new(desk: &'a Desk) -> Self {
        Self { desk, credits: Vec::with_capacity(FULL) }
    }

    fn add(&mut self, credit: Credit) {
        self.desk.fetching.fetch_add(1, Ordering::AcqRel);
        self.credits.push(credit);
    }

    /// One that is for a job now.
    fn take(&mut self) -> Option<Credit> {
        let credit = self.credits.pop()?;
        self.desk.fetching.fetch_sub(1, Ordering::AcqRel);
        Some(credit)
    }
}

/// What brought no job is given back.
impl Drop for Credits<'_> {
    fn drop(&mut self) {
        let unused = self.credits.len();
        self.credits.clear();
        self.desk.fetching.fetch_sub(unused, Ordering::AcqRel);
    }
}

impl Desk {
    /// Receives until the consumer is stopped. The first of them always does, the others while there is
    /// plenty.
    pub(super) async fn receive_all(self: Arc<Self>, number: usize) {
        let mut failures = 0;
        while let Some(credits) = self.gather(number).await {
            let wanted = credits.credits.len();
            let asked = Instant::now();
            match self.receive(credits).await {
                Ok(0) => {
                    failures = 0;
                    self.busy.store(false, Ordering::Release);
                    if asked.elapsed() < AT_ONCE {
                        self.rest(PAUSE).await;
                    }
                }
                Ok(received) => {
                    failures = 0;
                    if received == wanted && !self.busy.swap(true, Ordering::AcqRel) {
                        self.changed.notify_waiters();
                    }
                }
                Err(error) => {
                    self.health.met(&error);
                    failures += 1;
                    self.rest(Backoff::RECONNECT.delay(failures)).await;
                }
            }
        }
    }

    /// Waits, but not beyond the end.
    async fn rest(&self, pause: Duration) {
        let until = Instant::now() + pause;
        loop {
            let changed = self.changed.notified();
            if self.is_closing() || timeout_at(until, changed).await.is_err() {
                return;
            }
        }
    }

    /// The lane, if jobs are let in. An error tells that it is over.
    fn lane(&self) -> Result<Option<Arc<Inlet>>, ()> {
        let floor = lock(&self.floor);
        match floor.phase {
            Phase::Running => Ok(floor.inlet.clone()),
            Phase::Paused => Ok(None),
            Phase::Closing => Err(()),
        }
    }

    /// Waits for credits. None: it is over.
    async fn gather(&self, number: usize) -> Option<Credits<'_>> {
        loop {
            let changed = self.changed.notified();
            let lane = self.lane().ok()?;
            let wanted = number == 0 || self.busy.load(Ordering::Acquire);
            match lane {
                Some(inlet) if wanted => {
                    tokio::select! {
                        credits = self.take_credits(&inlet) => return Some(credits),
                        () = changed => {}
                    }
                }
                _ => changed.await,
            }
        }
    }

    async fn take_credits(&self, inlet: &Inlet) -> Credits<'_> {
        let mut credits = Credits::new(self);
        let _turn = self.turn.lock().await;
        credits.add(inlet.credit().await);
        let ample = self.config.prefetch.get() >= AMPLE;
        let until = Instant::now() + GATHERING;
        while credits.credits.len() < FULL {
            match inlet.try_credit() {
                Some(credit) => credits.add(credit),
                None if ample => match timeout_at(until, inlet.credit()).await {
                    Ok(credit) => credits.add(credit),
                    Err(_) => break,
                },
                None => break,
            }
        }
        credits
    }

    /// Asks for as many messages as there are credits, and delivers them. How many came.
    async fn receive(&self, mut credits: Credits<'_>) -> Result<usize> {
        let wanted = i32::try_from(credits.credits.len()).unwrap_or(1);
        let wait = i32::try_from(self.config.wait_time.as_secs()).unwrap_or_default();
        let visibility = lock(&self.floor).leases.first();
        let client = self.link.polling()?;
        let mut request = client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(wanted)
            .wait_time_seconds(wait)
            .visibility_timeout(visibility)
            .message_attribute_names("All")
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
        if self.fifo {
            request =
                request.message_system_attribute_names(MessageSystemAttributeName::MessageGroupId);
        }
        let received = Instant::now();
        let answer = Box::pin(request.send()).await.map_err(|error| failed("receive", error))?;
        let mut messages = answer.messages.unwrap_or_default();
        messages.retain(|message| message.receipt_handle.is_some());
        let count = messages.len();
        let mut asked = received;
        let visibility = Duration::from_secs(visibility.unsigned_abs().into());
        if count > 0 && received.elapsed() > visibility / 4 {
            // They may have been handed out at any moment since.
            asked = Instant::now();
            messages = self.confirm(messages, visibility).await;
        }
        for message in messages {
            self.take_in(message, received, asked, &mut credits);
        }
        Ok(count)
    }

    /// Asks for the whole visibility from now on. Leaves those that are ours.
    async fn confirm(&self, messages: Vec<Received>, visibility: Duration) -> Vec<Received> {
        let seconds = i32::try_from(visibility.as_secs()).unwrap_or(i32::MAX);
        let handles = messages.iter().map(|m| (m.receipt_handle().unwrap_or_default(), seconds));
        let answers = change(self, handles).await;
        let ours = |(message, answer): (Received, Result<()>)| match answer {
            Ok(()) => Some(message),
            Err(error) => {
                // It comes back by itself.
                self.health.met(&error);
                None
            }
        };
        messages.into_iter().zip(answers).filter_map(ours).collect()
    }

    /// Delivers a message, unless it is on its way through a long delay.
    fn take_in(
        &self,
        message: Received,
        received: Instant,
        asked: Instant,
        credits: &mut Credits<'_>,
    ) {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed);
        let handle = message.receipt_handle.clone().unwrap_or_default();
        let now = SystemTime::now();
        let due = Codec::due_of(&message).filter(|due| !self.fifo && *due > now);
        if let Some(due) = due {
            self.on_floor(|floor, _| {
                floor.leases.hold(token, handle.clone(), None, received, asked);
                if let Some(lease) = floor.leases.any(token) {
                    lease.settling = true;
                }
            });
            let removal =
                Removal { token, handle, reply: None, since: Instant::now(), uncertain: false };
            if let Some(desk) = self.me.upgrade() {
                self.spawn(desk.send_on(message, due, removal));
            }
            return;
        }
        let position = message.message_id.as_deref().and_then(position);
        let decoded = self.outbox.codec.decode(message);
        let group = decoded.group.filter(|_| self.fifo).map(Arc::from);
        let Some(desk) = self.me.upgrade() else { return };
        let acknowledger = desk as Arc<dyn Acknowledger>;
        let mut delivery =
            Delivery::new(decoded.message, token, acknowledger).with_attempt(decoded.attempt);
        if let Some(position) = position {
            delivery = delivery.with_position(position);
        }
        let Some(credit) = credits.take() else { return };
        self.on_floor(|floor, aftermath| {
            floor.leases.hold(token, handle, group.clone(), received, asked);
            let job = match group {
                Some(group) if floor.phase == Phase::Running => {
                    floor.groups.admit(&group, token, (credit, delivery))
                }
                _ => Some((credit, delivery)),
            };
            if let Some(job) = job {
                floor.deliver(token, job, aftermath);
            }
        });
    }

    /// Sends on a message that is not due, and deletes it after.
    async fn send_on(self: Arc<Self>, message: Received, due: SystemTime, removal: Removal) {
        let left = due.duration_since(SystemTime::now()).unwrap_or_default();
        let copy = (Codec::hop(message, due), Hop::after(left));
        let deadline = Instant::now() + self.config.push_timeout;
        match self.outbox.send_one("delay", copy, deadline).await {
            Ok(()) => self.removals.add([removal]),
            Err(error) => {
                // It comes back when its lease ends.
                self.health.met(&error);
                self.lost(removal.token);
            }
        }
    }
}

/// A number for people from the service's name of a message, which is a UUID.
fn position(id: &str) -> Option<Token> {
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_a_number_for_people() {
        assert_eq!(position("00000000-0000-00ff-8000-000000000000"), Some(255));
        assert_eq!(position(""), None);
    }
}
