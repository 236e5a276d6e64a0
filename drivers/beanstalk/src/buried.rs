//! Rejected jobs: to look at, to run again, to delete.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs_core::{ErrorKind, Message, Result};

use crate::NAME;
use crate::codec::{self, Decoded};
use crate::connection::{Answer, Client};
use crate::error::Reply;
use crate::publisher::Publisher;

/// How long a question may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A job that was rejected, or that the server set aside for want of memory.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BuriedJob {
    /// The server's number for it.
    pub id: u64,
    /// The message as it was delivered last.
    pub message: Message,
    /// The attempt it was rejected in, if its body tells.
    pub attempt: Option<u32>,
}

/// The buried jobs of one tube, as long as its pipeline is connected.
#[derive(Clone, Debug)]
pub struct Buried {
    pipeline: Arc<str>,
    tube: String,
    publisher: Arc<Publisher>,
}

impl Buried {
    pub(crate) fn new(pipeline: Arc<str>, tube: String, publisher: Arc<Publisher>) -> Self {
        Self { pipeline, tube, publisher }
    }

    /// The job that was buried first; none if there is none. beanstalkd shows no others.
    ///
    /// # Errors
    /// `Connection` and `Timeout`, transient; `Closed` when the pipeline was stopped.
    pub async fn first(&self) -> Result<Option<BuriedJob>> {
        self.ask("first", |client| match client.peek_buried() {
            Ok(job) => {
                let Decoded { message, terms } = codec::decode(&job.body);
                let attempt = terms.map(|terms| terms.attempt);
                Ok(Some(BuriedJob { id: job.id, message, attempt }))
            }
            Err(failure) if failure.reply == Reply::NotFound => Ok(None),
            Err(failure) => Err(failure),
        })
        .await
    }

    /// Lets at most so many jobs run again, those buried first, with the attempt counted. Returns how
    /// many. Those that are buried meanwhile stay so.
    ///
    /// # Errors
    /// As [`first`](Self::first); some may be ready then.
    pub async fn kick(&self, most: u32) -> Result<u64> {
        let tube = self.tube.clone();
        let buried = self.ask("kick", move |client| match client.stats_tube(&tube) {
            Ok(stats) => Ok(stats.number("current-jobs-buried").unwrap_or(0)),
            Err(failure) if failure.reply == Reply::NotFound => Ok(0),
            Err(failure) => Err(failure),
        });
        let mut kicked = 0;
        for _ in 0..most.min(buried.await?) {
            // Not by the command `kick`: where no job is buried, it makes delayed ones ready instead.
            let answer = self.ask("kick", |client| {
                let job = client.peek_buried()?;
                client.kick_job(job.id)
            });
            match answer.await {
                Ok(()) => kicked += 1,
                // Others were first.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(kicked)
    }

    /// Lets this job run again, with the attempt counted. False if it is not buried in this tube.
    ///
    /// # Errors
    /// As [`first`](Self::first).
    pub async fn kick_job(&self, id: u64) -> Result<bool> {
        self.change("kick_job", id, Client::kick_job).await
    }

    /// Deletes this job. False if it is not buried in this tube.
    ///
    /// # Errors
    /// As [`first`](Self::first).
    pub async fn delete(&self, id: u64) -> Result<bool> {
        self.change("delete", id, Client::delete).await
    }

    async fn change(
        &self,
        operation: &'static str,
        id: u64,
        change: fn(&mut Client, u64) -> Answer<()>,
    ) -> Result<bool> {
        let tube = self.tube.clone();
        self.ask(operation, move |client| {
            let changed = client.stats_job(id).and_then(|stats| {
                // The server would do it to any job.
                let ours =
                    stats.text("tube") == Some(&tube) && stats.text("state") == Some("buried");
                if ours { change(client, id).map(|()| true) } else { Ok(false) }
            });
            match changed {
                Err(failure) if failure.reply == Reply::NotFound => Ok(false),
                answer => answer,
            }
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        operation: &'static str,
        question: impl FnOnce(&mut Client) -> Answer<T> + Send + 'static,
    ) -> Result<T> {
        let answer = self.publisher.ask(operation, Instant::now() + TIMEOUT, question).await;
        answer.map_err(|error| error.with_driver(NAME).with_pipeline(Arc::clone(&self.pipeline)))
    }
}
