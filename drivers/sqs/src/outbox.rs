//! Everything a pipeline sends: pushes, copies, dead letters.

use std::sync::Arc;

use jobs_core::{Message, Result};
use tokio::time::Instant;

use crate::codec::{Codec, Encoded};
use crate::delays::{Delays, Hop};
use crate::error::too_large;
use crate::publisher::Sender;

/// Where messages go.
#[derive(Debug)]
pub(crate) struct Outbox {
    pub(crate) codec: Codec,
    pub(crate) main: Sender,
    pub(crate) delays: Arc<Delays>,
    pub(crate) dead: Option<Dead>,
    /// Bytes of a message.
    pub(crate) max_message: usize,
}

/// The queue of rejected jobs.
#[derive(Debug)]
pub(crate) struct Dead {
    pub(crate) codec: Codec,
    pub(crate) sender: Sender,
    pub(crate) url: String,
}

impl Outbox {
    /// What is sent for a message, if it can be.
    pub(crate) fn prepare(
        &self,
        operation: &'static str,
        message: &Message,
        attempt: u32,
    ) -> Result<(Encoded, Hop)> {
        let encoded = self.codec.encode(message, attempt);
        let size = encoded.size();
        if size > self.max_message {
            return Err(too_large(operation, size, self.max_message));
        }
        Ok((encoded, Hop::after(message.delay())))
    }

    /// Sends prepared messages. One answer for each, in order.
    pub(crate) async fn send(
        &self,
        operation: &'static str,
        messages: Vec<(Encoded, Hop)>,
        deadline: Instant,
    ) -> Vec<Result<()>> {
        let hops: Vec<_> = messages.iter().map(|(_, hop)| *hop).collect();
        let (last, others): (Vec<_>, Vec<_>) =
            messages.into_iter().partition(|(_, hop)| *hop == Hop::Last);
        let encoded =
            |all: Vec<(Encoded, Hop)>| all.into_iter().map(|(encoded, _)| encoded).collect();
        let (last, others) = tokio::join!(
            self.main.send(operation, encoded(last), deadline),
            self.delays.send(operation, encoded(others), deadline)
        );
        let (mut last, mut others) = (last.into_iter(), others.into_iter());
        let answers = hops.into_iter().map(|hop| match hop {
            Hop::Last => last.next(),
            Hop::Another => others.next(),
        });
        answers.map(|answer| answer.expect("an answer for each")).collect()
    }

    /// Sends one.
    pub(crate) async fn send_one(
        &self,
        operation: &'static str,
        (encoded, hop): (Encoded, Hop),
        deadline: Instant,
    ) -> Result<()> {
        match hop {
            Hop::Last => self.main.send_one(operation, encoded, deadline).await,
            Hop::Another => {
                // Apart, because the futures of all pushes would be as large.
                let sent = Box::pin(self.delays.send(operation, vec![encoded], deadline));
                sent.await.pop().expect("an answer for each")
            }
        }
    }

    /// Keeps a rejected job. False if there is no queue for that.
    pub(crate) async fn bury(
        &self,
        message: &Message,
        attempt: u32,
        deadline: Instant,
    ) -> Result<bool> {
        let Some(dead) = &self.dead else { return Ok(false) };
        let encoded = dead.codec.encode(message, attempt);
        dead.sender.send_one("settle", encoded, deadline).await.map(|()| true)
    }

    /// Sends what is under way, until the deadline, and nothing after.
    pub(crate) async fn close(&self, deadline: Instant) {
        let dead = async {
            if let Some(dead) = &self.dead {
                dead.sender.close(deadline).await;
            }
        };
        tokio::join!(self.main.close(deadline), self.delays.close(deadline), dead);
    }

    pub(crate) fn abort(&self) {
        self.main.abort();
        self.delays.abort();
        self.dead.iter().for_each(|dead| dead.sender.abort());
    }
}
