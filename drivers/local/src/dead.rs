//! Rejected jobs: to look at, to run again, to delete.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jobs_core::{Message, Result};
use tokio::sync::oneshot;

use crate::error::closed;
use crate::group::MOST_PURGED;
use crate::inbox::{Call, Inbox, Write};
use crate::store::DeadJob;

/// A job that was rejected.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Its place among the dead letters of its queue; later ones have greater numbers.
    pub place: i64,
    /// The message as it was delivered last.
    pub message: Message,
    /// The attempt it was rejected in.
    pub attempt: u32,
    /// When it was rejected.
    pub died: SystemTime,
}

/// The dead letters of one queue, as long as a pipeline has the file open.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    queue: i64,
    inbox: Arc<Inbox>,
}

/// What can be done to them.
#[derive(Debug)]
pub(crate) enum DeadCall {
    Requeue(Vec<i64>),
    Purge,
}

impl DeadLetters {
    pub(crate) fn new(queue: i64, inbox: Arc<Inbox>) -> Self {
        Self { queue, inbox }
    }

    /// At most `limit` dead letters after the place `after` (0: from the beginning), oldest first.
    ///
    /// # Errors
    /// `Closed` if no pipeline has the file open any more; what SQLite says.
    pub async fn list(&self, after: i64, limit: usize) -> Result<Vec<DeadLetter>> {
        let (reply, answer) = oneshot::channel();
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        self.inbox.call(Call::Dead { queue: self.queue, after, most, reply });
        let answer = answer.await.map_err(|_| closed("list"))?;
        answer.map_err(|fault| fault.error("list"))
    }

    /// Lets the dead letters at these places run again, with the attempt counted. Returns how many
    /// were there.
    ///
    /// # Errors
    /// `Closed` if no pipeline has the file open any more; `Timeout`, and what SQLite says.
    pub async fn requeue(&self, places: &[i64]) -> Result<u64> {
        self.change("requeue", DeadCall::Requeue(places.to_vec())).await
    }

    /// Deletes all dead letters of the queue, and returns how many there were.
    ///
    /// # Errors
    /// As [`requeue`](Self::requeue); some may be deleted then.
    ///
    /// # Cancel safety
    /// Some are deleted; call it again.
    pub async fn purge(&self) -> Result<u64> {
        let mut all = 0;
        loop {
            let some = self.change("purge", DeadCall::Purge).await?;
            all += some;
            if some < MOST_PURGED as u64 {
                return Ok(all);
            }
        }
    }

    async fn change(&self, operation: &'static str, call: DeadCall) -> Result<u64> {
        let (reply, answer) = oneshot::channel();
        let write = Write::Dead { queue: self.queue, call, reply };
        self.inbox.write(write).map_err(|_| closed(operation))?;
        let answer = answer.await.map_err(|_| closed(operation))?;
        answer.map_err(|fault| fault.error(operation))
    }
}

impl From<DeadJob> for DeadLetter {
    fn from(dead: DeadJob) -> Self {
        let died = Duration::from_millis(u64::try_from(dead.died).unwrap_or(0));
        Self {
            place: dead.standing.place,
            attempt: dead.standing.attempt,
            message: dead.content.into_message(),
            died: SystemTime::UNIX_EPOCH + died,
        }
    }
}
