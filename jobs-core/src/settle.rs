//! How a delivery ends: the outcomes, and the driver's side of settling.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::queue::Credit;
use crate::{Error, ErrorKind, Headers, Message, Result};

/// How a delivery ends. There is no fifth way: a driver that forgets one does not compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The work is done: the job is gone for good.
    Ack,
    /// Never again: kept as a dead letter where the pipeline has that, else discarded.
    Reject,
    /// Run again later. This attempt counts.
    Requeue {
        /// How long to wait at least; zero: at once.
        delay: Duration,
        /// Headers the job has from now on; none: those it has.
        headers: Option<Headers>,
    },
    /// The job was not started: it goes back unchanged and at once, and the attempt does not count
    /// where the broker allows ([`Capabilities::uncounted_release`](crate::Capabilities)).
    Release,
}

impl Outcome {
    /// Run again at once.
    #[must_use]
    pub const fn requeue() -> Self {
        Self::requeue_after(Duration::ZERO)
    }

    /// Run again after `delay`.
    #[must_use]
    pub const fn requeue_after(delay: Duration) -> Self {
        Self::Requeue { delay, headers: None }
    }

    /// The outcome's name, for logs and metrics: `ack`, `reject`, `requeue` or `release`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ack => "ack",
            Self::Reject => "reject",
            Self::Requeue { .. } => "requeue",
            Self::Release => "release",
        }
    }
}

/// The driver's number for one delivery, given to [`Inlet::deliver`](crate::Inlet::deliver) and
/// handed back to settle it. Unique per [`Acknowledger`].
pub type Token = u64;

/// A delivered job on its way back to the driver, with everything the driver may need.
///
/// The driver drops the [credit](Self::credit) as soon as its slot for another job is free, before it
/// awaits the broker. If settling then fails it gives the job back without: until that is settled
/// again there is one job more in the process.
///
/// Dropping this does nothing but free the credit: a driver that has one answers with it, or makes
/// the job run again.
#[derive(Debug)]
pub struct Unsettled {
    /// The delivery.
    pub token: Token,
    /// The right to have one job in this process.
    pub credit: Option<Credit>,
    /// The message as it was delivered.
    pub message: Message,
    /// The attempt it was delivered as.
    pub attempt: u32,
}

/// The driver's side of settling: one per connection, channel or assignment *epoch*, shared by all
/// its deliveries.
///
/// When the epoch ends the acknowledger stays dead: it answers
/// [`ErrorKind::LeaseLost`] without I/O and never touches the delivery that bears the same tag on
/// the next connection.
///
/// These are plain functions called from any thread, also from `Drop`: they take note and return,
/// and must not block. The work is done by a task of the driver.
pub trait Acknowledger: Send + Sync + 'static {
    /// Takes over the outcome of a delivery. The first outcome of a token counts.
    ///
    /// Takes effect before it returns: dropping the [`Settling`] loses only the answer. If the
    /// driver cannot settle it answers with the job, so that the caller can try again; if the lease
    /// is lost, without. What the pipeline cannot do, such as a delay, is refused so with
    /// `Unsupported`, see [`Capabilities::admit_requeue`](crate::Capabilities::admit_requeue).
    fn settle(&self, job: Unsettled, outcome: Outcome) -> Settling;

    /// Asks that the lease last at least `by` from now, whatever `max_lease` says.
    fn extend(&self, token: Token, by: Duration) -> Extending;

    /// Takes back a job that was dropped unsettled: it is given back at once where the broker
    /// allows, and counts as an attempt. An unknown token is ignored. Called from `Drop`.
    fn abandon(&self, job: Unsettled);
}

/// Why a settlement failed, and the job unless the lease is lost.
#[derive(Debug)]
pub struct Refusal {
    /// What went wrong.
    pub error: Error,
    /// The job, if it can still be settled.
    pub job: Option<Unsettled>,
}

impl Refusal {
    /// The delivery is not this consumer's any more.
    #[must_use]
    pub fn lease_lost(driver: &'static str) -> Self {
        Self { error: Error::new(ErrorKind::LeaseLost, "settle").with_driver(driver), job: None }
    }
}

/// The answer to a settlement, from the driver.
#[derive(Debug)]
pub struct Settling {
    answer: Answer<Result<(), Box<Refusal>>>,
    /// Told when somebody begins to wait.
    awaited: Option<Arc<Notify>>,
}

/// The answer to a request for more time, from the driver.
#[derive(Debug)]
pub struct Extending(Answer<Result<()>>);

/// Answers a [`Settling`] later. Dropped without an answer, the caller gets
/// [`ErrorKind::Closed`] and a job that can no longer be settled.
#[derive(Debug)]
pub struct Settler(oneshot::Sender<Result<(), Box<Refusal>>>);

/// Answers an [`Extending`] later.
#[derive(Debug)]
pub struct Extender(oneshot::Sender<Result<()>>);

impl Settling {
    /// Settled already. Costs no allocation.
    #[must_use]
    pub const fn done() -> Self {
        Self { answer: Answer::Ready(Some(Ok(()))), awaited: None }
    }

    /// Refused at once.
    #[must_use]
    pub fn refused(refusal: Refusal) -> Self {
        Self { answer: Answer::Ready(Some(Err(Box::new(refusal)))), awaited: None }
    }

    /// To be answered by a task of the driver.
    #[must_use]
    pub fn later() -> (Settler, Self) {
        let (sender, receiver) = oneshot::channel();
        (Settler(sender), Self { answer: Answer::Later(receiver), awaited: None })
    }

    /// To be answered by a task of the driver that sends outcomes in groups. `awaited` is notified
    /// when somebody begins to wait for this one, which then should not wait for others.
    #[must_use]
    pub fn in_group(awaited: Arc<Notify>) -> (Settler, Self) {
        let (settler, settling) = Self::later();
        (settler, Self { awaited: Some(awaited), ..settling })
    }

    /// Nobody hurries the driver.
    pub(crate) fn unhurried(&mut self) {
        self.awaited = None;
    }

    /// Takes out a refusal that nobody will await, if there is one. One that comes later goes back
    /// to the driver, see [`Settler::refuse`].
    pub(crate) fn unclaimed(&mut self) -> Option<Box<Refusal>> {
        let answer = match &mut self.answer {
            Answer::Ready(answer) => answer.take(),
            Answer::Later(receiver) => {
                receiver.close();
                receiver.try_recv().ok()
            }
        };
        answer.and_then(Result::err)
    }
}

impl Settler {
    /// The broker has confirmed the outcome.
    pub fn done(self) {
        let _ = self.0.send(Ok(()));
    }

    /// The outcome could not be settled: the job goes back to whoever awaits the answer.
    ///
    /// # Errors
    /// Nobody does: the refusal comes back, and the driver abandons its job.
    pub fn refuse(self, refusal: Refusal) -> Result<(), Box<Refusal>> {
        match self.0.send(Err(Box::new(refusal))) {
            Err(Err(refusal)) => Err(refusal),
            _ => Ok(()),
        }
    }
}

impl Extending {
    /// Answered already.
    #[must_use]
    pub const fn ready(answer: Result<()>) -> Self {
        Self(Answer::Ready(Some(answer)))
    }

    /// To be answered by a task of the driver.
    #[must_use]
    pub fn later() -> (Extender, Self) {
        let (sender, receiver) = oneshot::channel();
        (Extender(sender), Self(Answer::Later(receiver)))
    }
}

impl Extender {
    /// Gives the answer.
    pub fn answer(self, answer: Result<()>) {
        let _ = self.0.send(answer);
    }
}

impl Future for Settling {
    type Output = Result<(), Box<Refusal>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.answer.poll(cx);
        if answer.is_pending()
            && let Some(awaited) = self.awaited.take()
        {
            awaited.notify_one();
        }
        answer.map(|answer| {
            answer.unwrap_or_else(|| Err(Box::new(Refusal { error: gone("settle"), job: None })))
        })
    }
}

impl Future for Extending {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(cx).map(|answer| answer.unwrap_or_else(|| Err(gone("extend"))))
    }
}

fn gone(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_context("the driver ended before it answered")
}

enum Answer<T> {
    Ready(Option<T>),
    Later(oneshot::Receiver<T>),
}

impl<T> Answer<T> {
    /// `None` if the answer will never come.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match self {
            Self::Ready(answer) => {
                Poll::Ready(Some(answer.take().expect("not polled again after it was ready")))
            }
            Self::Later(receiver) => Pin::new(receiver).poll(cx).map(Result::ok),
        }
    }
}

impl<T> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready",
            Self::Later(_) => "Later",
        })
    }
}
