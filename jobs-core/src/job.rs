//! A delivered message, and the right to say how its delivery ends.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;

use crate::queue::{Credit, RunningSlot};
use crate::settle::{Settling, Token};
use crate::{
    Acknowledger, Error, ErrorKind, Extending, Headers, JobId, KafkaOptions, Message, Outcome,
    Result, Unsettled,
};

/// A job as a worker receives it.
///
/// It is settled once, by a call that takes it: settling twice does not compile. A job that is
/// dropped goes back to the broker, and the attempt counts.
#[must_use = "a job that is dropped goes back to the broker and runs again"]
pub struct Job {
    message: Message,
    attempt: u32,
    position: Option<u64>,
    receipt: Receipt,
    running: Option<RunningSlot>,
}

/// The right to settle one delivery. Dropping it gives the job back.
pub struct Receipt {
    pipeline: Arc<str>,
    token: Token,
    acknowledger: Arc<dyn Acknowledger>,
    /// False once the delivery is over for us: settled when handed out, or its lease was lost.
    open: bool,
    credit: Option<Credit>,
}

/// What a driver hands to [`Inlet::deliver`](crate::Inlet::deliver).
pub struct Delivery {
    message: Message,
    attempt: u32,
    position: Option<u64>,
    token: Token,
    acknowledger: Arc<dyn Acknowledger>,
}

impl Delivery {
    /// The first attempt at a message, with the driver's number for the delivery and what settles
    /// it.
    #[must_use]
    pub fn new(message: Message, token: Token, acknowledger: Arc<dyn Acknowledger>) -> Self {
        Self { message, attempt: 1, position: None, token, acknowledger }
    }

    /// Says which attempt this is, counted from 1.
    #[must_use]
    pub fn with_attempt(self, attempt: u32) -> Self {
        Self { attempt, ..self }
    }

    /// Sets the broker's own number for the message or delivery, for people: Kafka's offset, AMQP's
    /// delivery tag, beanstalkd's job id.
    #[must_use]
    pub fn with_position(self, position: u64) -> Self {
        Self { position: Some(position), ..self }
    }
}

impl Job {
    pub(crate) fn new(pipeline: Arc<str>, credit: Credit, delivery: Delivery) -> Self {
        let Delivery { message, attempt, position, token, acknowledger } = delivery;
        let receipt = Receipt { pipeline, token, acknowledger, open: true, credit: Some(credit) };
        Self { message, attempt, position, receipt, running: None }
    }

    pub(crate) fn start(&mut self, slot: Option<RunningSlot>) {
        self.running = slot;
        if self.message.auto_ack()
            && let Some(job) = self.unsettled()
        {
            let mut settling = self.receipt.acknowledger.settle(job, Outcome::Ack);
            // Nobody waits for the answer. A job refused at once stays open for its worker.
            if let Some(job) = settling.unclaimed().and_then(|refusal| refusal.job) {
                self.reopen(job);
            }
        }
    }

    pub(crate) fn token(&self) -> Token {
        self.receipt.token
    }

    /// Gives the job back, unless it is settled; true if it did.
    pub(crate) fn abandon(&mut self) -> bool {
        let unsettled = self.unsettled();
        let abandoned = unsettled.is_some();
        unsettled.into_iter().for_each(|job| self.receipt.acknowledger.abandon(job));
        abandoned
    }

    /// Ends a delivery that is over for the broker already.
    pub(crate) fn forget(mut self) -> Token {
        drop(self.unsettled());
        self.receipt.token
    }

    fn reopen(&mut self, job: Unsettled) {
        self.receipt.open = true;
        self.receipt.token = job.token;
        self.receipt.credit = job.credit;
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The id.
    #[must_use]
    pub fn id(&self) -> &JobId {
        self.message.id()
    }

    /// The job type.
    #[must_use]
    pub fn name(&self) -> &str {
        self.message.name()
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        self.message.payload()
    }

    /// The headers.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        self.message.headers()
    }

    /// Topic, partition and offset in Kafka; none on other brokers.
    #[must_use]
    pub fn kafka(&self) -> Option<&KafkaOptions> {
        self.message.kafka()
    }

    /// Which attempt this is, counted from 1; it never falls.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The pipeline that consumed the job.
    #[must_use]
    pub fn pipeline(&self) -> &str {
        &self.receipt.pipeline
    }

    /// The broker's own number for the message or delivery, for people.
    #[must_use]
    pub fn position(&self) -> Option<u64> {
        self.position
    }

    /// The work is done. Short for `settle(Outcome::Ack)`.
    pub fn ack(self) -> Settle {
        self.settle(Outcome::Ack)
    }

    /// Never again. Short for `settle(Outcome::Reject)`.
    pub fn reject(self) -> Settle {
        self.settle(Outcome::Reject)
    }

    /// Run again after `delay`; this attempt counts. Short for `settle` with
    /// [`Outcome::Requeue`].
    pub fn requeue(self, delay: Duration) -> Settle {
        self.settle(Outcome::requeue_after(delay))
    }

    /// Was not started: goes back unchanged. Short for `settle(Outcome::Release)`.
    pub fn release(self) -> Settle {
        self.settle(Outcome::Release)
    }

    /// Ends the delivery. Its place in the pipeline's `max_running` is free at once.
    ///
    /// The outcome is handed over before this returns; the future only waits for the answer.
    /// Dropping it withdraws nothing; only if the driver refuses the outcome is the job abandoned.
    /// `Ok` means what
    /// [`Capabilities::acks_confirmed`](crate::Capabilities) says. On a job that was settled when
    /// it was handed out ([`Message::auto_ack`]) this does nothing and succeeds.
    ///
    /// # Errors
    /// [`SettleError`] bears the job. After a transient error settle it again; after
    /// [`ErrorKind::LeaseLost`] another consumer may have it, and dropping this one does nothing.
    /// [`ErrorKind::Unsupported`] if the pipeline cannot requeue with that delay or those headers:
    /// choose another outcome.
    pub fn settle(mut self, outcome: Outcome) -> Settle {
        let settling = match (self.unsettled(), self.message.auto_ack()) {
            (Some(job), _) => self.receipt.acknowledger.settle(job, outcome),
            (None, true) => Settling::done(),
            (None, false) => Settling::refused(crate::Refusal { error: over("settle"), job: None }),
        };
        self.running = None;
        Settle { settling, job: Some(self) }
    }

    /// Asks that the lease last at least `by` from now, also beyond the pipeline's `max_lease`:
    /// proof that the work goes on.
    ///
    /// Leases are extended by the driver while a job is unsettled; a job that may run for longer
    /// than `max_lease` calls this. The request is handed over at once, the future waits for the
    /// answer. On a job that was settled when it was handed out this does nothing and succeeds.
    ///
    /// # Errors
    /// [`ErrorKind::LeaseLost`] if the lease ended already: stop working, the job may run
    /// elsewhere. [`ErrorKind::Unsupported`] where leases cannot be extended.
    pub fn extend(&self, by: Duration) -> impl Future<Output = Result<()>> + Send + use<> {
        let extending = match (self.receipt.open, self.message.auto_ack()) {
            (true, _) => self.receipt.acknowledger.extend(self.receipt.token, by),
            (false, true) => Extending::ready(Ok(())),
            (false, false) => Extending::ready(Err(over("extend"))),
        };
        let pipeline = Arc::clone(&self.receipt.pipeline);
        async move { extending.await.map_err(|error| error.with_pipeline(pipeline)) }
    }

    pub(crate) fn effective_priority(&self, pipeline: i64) -> i64 {
        self.message.priority().unwrap_or(pipeline)
    }

    /// Takes the right to settle out, after which dropping the job does nothing.
    fn unsettled(&mut self) -> Option<Unsettled> {
        if !std::mem::take(&mut self.receipt.open) {
            return None;
        }
        let credit = self.receipt.credit.take();
        let message = self.message.clone();
        Some(Unsettled { token: self.receipt.token, credit, message, attempt: self.attempt })
    }
}

fn over(operation: &'static str) -> Error {
    Error::new(ErrorKind::LeaseLost, operation).with_context("this delivery is over already")
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.abandon() {
            let (id, pipeline) = (self.message.id(), &self.receipt.pipeline);
            tracing::warn!(job.id = %id, job.pipeline = %pipeline, "job was dropped unsettled, it goes back");
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("message", &self.message)
            .field("attempt", &self.attempt)
            .field("receipt", &self.receipt)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("pipeline", &self.pipeline)
            .field("token", &self.token)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message", &self.message)
            .field("attempt", &self.attempt)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// Waits for the answer to a settlement that is under way.
#[derive(Debug)]
#[must_use = "the outcome is on its way, but only the answer tells whether it was taken"]
pub struct Settle {
    settling: Settling,
    job: Option<Job>,
}

impl Settle {
    /// Lets the driver take a moment to send this outcome together with others, also while somebody
    /// waits for the answer: a few milliseconds at most, which the driver's page states. For those who
    /// settle many jobs and do not need each answer before they go on.
    pub fn unhurried(mut self) -> Self {
        self.settling.unhurried();
        self
    }
}

impl Future for Settle {
    type Output = Result<(), SettleError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Err(refusal) = ready!(Pin::new(&mut self.settling).poll(cx)) else {
            return Poll::Ready(Ok(()));
        };
        let mut job = self.job.take().expect("not polled again after it was ready");
        if let Some(unsettled) = refusal.job {
            job.reopen(unsettled);
        }
        let error = refusal.error.with_pipeline(Arc::clone(&job.receipt.pipeline));
        Poll::Ready(Err(SettleError { error, job: Box::new(job) }))
    }
}

/// A refusal that is there and was not awaited leaves the job unsettled: it is abandoned.
impl Drop for Settle {
    fn drop(&mut self) {
        if let Some(mut job) = self.job.take()
            && let Some(unsettled) = self.settling.unclaimed().and_then(|refusal| refusal.job)
        {
            job.reopen(unsettled);
        }
    }
}

/// A settlement that failed, with the job it was for.
#[derive(Debug)]
pub struct SettleError {
    error: Error,
    job: Box<Job>,
}

impl SettleError {
    /// Why it failed.
    #[must_use]
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// The job, to settle again.
    pub fn into_job(self) -> Job {
        *self.job
    }

    /// Both.
    pub fn into_parts(self) -> (Error, Job) {
        (self.error, *self.job)
    }
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for SettleError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Forgets the job, which then goes back to the broker.
impl From<SettleError> for Error {
    fn from(error: SettleError) -> Self {
        error.error
    }
}
