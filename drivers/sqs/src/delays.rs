//! Delays that are longer than the service's: hops from queue to queue.
//!
//! A message with a longer delay waits in a queue of its own beside the pipeline's, for as long as the
//! service lets it, and bears the time it is due. Every pipeline that runs, also a paused one, looks
//! after that queue: what is not due for long goes back into it, the rest into the pipeline's queue with
//! what is left of its delay. A message is deleted after its copy was stored.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, Message as Received};
use jobs_core::{Backoff, Error, ErrorKind, Health, Result};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OnceCell, watch};
use tokio::time::{Instant, sleep};

use crate::NAME;
use crate::coalescer::FULL;
use crate::codec::{Codec, Encoded};
use crate::config::{LONGEST_NATIVE_DELAY, SqsConfig};
use crate::connection::Link;
use crate::error::{entry_failed, failed, timed_out};
use crate::publisher::Sender;
use crate::topology::{Made, delays_of, find};

/// How often to look whether another process has made the queue. Its first message comes out no sooner
/// than after the longest delay of the service.
const LOOK: Duration = Duration::from_secs(300);

/// Where long delays are spent.
pub(crate) struct Delays {
    link: Arc<Link>,
    health: Arc<Health>,
    config: Arc<SqsConfig>,
    handle: Handle,
    /// None: there cannot be one.
    name: Option<String>,
    /// Once the queue is known to be there.
    found: OnceCell<Found>,
    news: Notify,
}

struct Found {
    url: String,
    sender: Sender,
}

/// Where a message goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hop {
    /// To the pipeline's queue.
    Last,
    /// To the queue of delays.
    Another,
}

impl Hop {
    /// Of a message that is due after `left`.
    pub(crate) fn after(left: Duration) -> Self {
        if left > LONGEST_NATIVE_DELAY { Self::Another } else { Self::Last }
    }
}

impl Delays {
    pub(crate) fn new(
        link: &Arc<Link>,
        health: &Arc<Health>,
        config: &Arc<SqsConfig>,
        handle: Handle,
    ) -> Self {
        Self {
            link: Arc::clone(link),
            health: Arc::clone(health),
            config: Arc::clone(config),
            handle,
            name: delays_of(&config.queue).filter(|_| !config.fifo),
            found: OnceCell::new(),
            news: Notify::new(),
        }
    }

    /// True if delays may be longer than the service's.
    pub(crate) fn are_possible(&self) -> bool {
        self.name.is_some()
    }

    /// The queue, if it is known to be there.
    pub(crate) fn url(&self) -> Option<&str> {
        self.found.get().map(|found| found.url.as_str())
    }

    /// Sends to the queue, which is made if it is missing.
    pub(crate) async fn send(
        &self,
        operation: &'static str,
        messages: Vec<Encoded>,
        deadline: Instant,
    ) -> Vec<Result<()>> {
        if messages.is_empty() {
            return Vec::new();
        }
        let found = self.found.get_or_try_init(|| self.find(true));
        match tokio::time::timeout_at(deadline, found).await {
            Ok(Ok(found)) => {
                let sender = found.sender.clone();
                sender.send(operation, messages, deadline).await
            }
            Ok(Err(error)) => {
                messages.iter().map(|_| Err(unavailable(operation, &error))).collect()
            }
            Err(_) => {
                let late = || timed_out(operation);
                messages.iter().map(|_| Err(late())).collect()
            }
        }
    }

    async fn find(&self, make: bool) -> Result<Found> {
        let Some(name) = &self.name else {
            let error = Error::new(ErrorKind::Unsupported, "push").with_driver(NAME);
            return Err(error.with_context("there is no name for a queue of long delays"));
        };
        let made = (make && self.config.declare).then(|| Made::plain(name));
        let url = find(&self.link.client()?, name, made).await?;
        let sender = Sender::new(&self.link, &self.health, url.clone(), false, self.handle.clone());
        self.news.notify_waiters();
        Ok(Found { url, sender })
    }

    pub(crate) async fn close(&self, deadline: Instant) {
        if let Some(found) = self.found.get() {
            found.sender.close(deadline).await;
        }
    }

    pub(crate) fn abort(&self) {
        self.found.get().into_iter().for_each(|found| found.sender.abort());
    }

    /// Sends on what comes out of the queue, until told to end. A request that waits at the service is
    /// not dropped for that.
    pub(crate) async fn look_after(
        self: Arc<Self>,
        main: Sender,
        mut ending: watch::Receiver<bool>,
    ) {
        if !self.are_possible() {
            return;
        }
        let mut failures = 0;
        while !*ending.borrow_and_update() {
            let Some(found) = self.found.get() else {
                let news = self.news.notified();
                if self.found.get_or_try_init(|| self.find(false)).await.is_err() {
                    // Not there, or it may not be asked for: nothing to do.
                    tokio::select! {
                        () = news => {}
                        () = sleep(LOOK) => {}
                        _ = ending.changed() => {}
                    }
                }
                continue;
            };
            match self.turn(&found.url, &main).await {
                Ok(()) => failures = 0,
                Err(error) => {
                    self.health.met(&error);
                    failures += 1;
                    tokio::select! {
                        () = sleep(Backoff::RECONNECT.delay(failures)) => {}
                        _ = ending.changed() => {}
                    }
                }
            }
        }
    }

    /// Waits for messages, and sends them on.
    async fn turn(&self, url: &str, main: &Sender) -> Result<()> {
        let seconds = |time: Duration| i32::try_from(time.as_secs()).unwrap_or(i32::MAX);
        let request = self.link.polling()?.receive_message().queue_url(url);
        let request = request
            .max_number_of_messages(i32::try_from(FULL).unwrap_or(1))
            .visibility_timeout(seconds(self.config.visibility_timeout))
            .wait_time_seconds(seconds(self.config.wait_time))
            .message_attribute_names("All");
        let answer = Box::pin(request.send()).await.map_err(|error| failed("receive", error))?;
        let messages = answer.messages.unwrap_or_default();
        if messages.is_empty() {
            return Ok(());
        }
        // Half the time they are hidden for: what is not sent on by then comes out again.
        let deadline = Instant::now() + self.config.visibility_timeout / 2;
        let (mut handles, mut last, mut others) =
            ([const { Vec::new() }; 2], Vec::new(), Vec::new());
        for message in messages {
            let handle = message.receipt_handle.clone().unwrap_or_default();
            let (encoded, hop) = Self::next(message);
            match hop {
                Hop::Last => {
                    handles[0].push(handle);
                    last.push(encoded);
                }
                Hop::Another => {
                    handles[1].push(handle);
                    others.push(encoded);
                }
            }
        }
        let answers =
            tokio::join!(main.send("delay", last, deadline), self.send("delay", others, deadline));
        let mut stored = Vec::new();
        for (handle, answer) in
            handles.into_iter().flatten().zip(answers.0.into_iter().chain(answers.1))
        {
            match answer {
                Ok(()) => stored.push(handle),
                // It comes out again.
                Err(error) => self.health.met(&error),
            }
        }
        self.delete(url, stored).await
    }

    /// A message of the queue of delays, and where it goes.
    fn next(message: Received) -> (Encoded, Hop) {
        let now = SystemTime::now();
        // What others put there is due.
        let due = Codec::due_of(&message).unwrap_or(now);
        let hop = Hop::after(due.duration_since(now).unwrap_or_default());
        (Codec::hop(message, due), hop)
    }

    async fn delete(&self, url: &str, handles: Vec<String>) -> Result<()> {
        if handles.is_empty() {
            return Ok(());
        }
        let entries: Vec<_> = handles
            .into_iter()
            .enumerate()
            .map(|(index, handle)| {
                DeleteMessageBatchRequestEntry::builder()
                    .id(index.to_string())
                    .receipt_handle(handle)
                    .build()
                    .expect("it has an id and a handle")
            })
            .collect();
        let request = self.link.client()?.delete_message_batch().queue_url(url);
        let request = request.set_entries(Some(entries));
        let answer = Box::pin(request.send()).await.map_err(|error| failed("delay", error))?;
        match answer.failed().first() {
            // It comes out again: a duplicate, no loss.
            Some(refused) => Err(entry_failed("delay", refused)),
            None => Ok(()),
        }
    }
}

fn unavailable(operation: &'static str, error: &Error) -> Error {
    let context = "delays of more than 15 minutes need a queue of their own";
    let why = error.with_sources();
    let again = Error::new(error.kind(), operation).with_driver(NAME);
    let again = again.with_context(format!("{context}: {why}"));
    if error.is_retryable() { again.transient() } else { again }
}

impl fmt::Debug for Delays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delays")
            .field("name", &self.name)
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hop_is_the_services_own_delay() {
        let after = |seconds| Hop::after(Duration::from_secs(seconds));
        assert_eq!((after(0), after(900), after(901)), (Hop::Last, Hop::Last, Hop::Another));
        assert_eq!(Hop::after(LONGEST_NATIVE_DELAY + Duration::from_millis(1)), Hop::Another);
    }
}
