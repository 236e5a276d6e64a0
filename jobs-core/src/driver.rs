//! The contract between this suite and the crates that speak to one broker each.
//!
//! ```text
//! Constructor::plan ──▶ Plan::connect ──▶ Driver: push │ run ⇄ pause/resume │ stop
//!   no I/O, all problems   consumes nothing            └─▶ Inlet ─▶ Queue ─▶ Job ─▶ Acknowledger
//! ```

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::{Capabilities, Inlet, Message, Options, Pipeline, Problem, Result, State};

/// Makes drivers of one kind. A value of the application, registered under its name.
///
/// An instance owns what its pipelines share, such as connections (keyed by the full connection
/// options, held weakly). Nothing is global.
pub trait Constructor: Send + Sync + 'static {
    /// What `driver:` selects.
    fn name(&self) -> &'static str;

    /// Reads and checks everything that can be checked without I/O.
    ///
    /// `shared` is the driver's root section, such as `amqp:`; a pipeline's own options win.
    ///
    /// # Errors
    /// *All* problems: unknown options, wrong types, values out of range, combinations that the
    /// broker would refuse later.
    fn plan(&self, shared: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>>;
}

/// A pipeline whose configuration is known to be good.
#[async_trait]
pub trait Plan: Send {
    /// What the pipeline can do at most, as far as its configuration tells.
    fn capabilities(&self) -> Capabilities;

    /// Connects, declares what the configuration says, and returns a driver that can push.
    ///
    /// Consumes nothing: that is [`Driver::run`]. Takes at most the driver's `connect_timeout`.
    ///
    /// # Errors
    /// `Connection` and `Timeout` (transient), `Denied`, `NotFound`, and `Config` or
    /// `InvalidState` if what exists at the broker differs from what was asked for.
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    async fn connect(self: Box<Self>) -> Result<Arc<dyn Driver>>;
}

/// One pipeline on one broker.
///
/// All methods may be called from any task at any time. State by state:
///
/// | | idle (never run) | running | paused | reconnecting | stopped |
/// |---|---|---|---|---|---|
/// | `push`, `push_batch` | ✓ | ✓ | ✓ | waits, up to `push_timeout` | `Closed` |
/// | `run` | → running | `InvalidState` | `InvalidState` | `InvalidState` | `Closed` |
/// | `pause` | ✓ nothing to do | → paused | ✓ | → paused | `Closed` |
/// | `resume` | `InvalidState` | ✓ | → running | → running | `Closed` |
/// | `state` | ✓ | ✓ | ✓ | transient error, or `None` figures | `Closed` |
/// | `stop` | → stopped | → stopped | → stopped | → stopped | ✓ |
/// | settling | – | ✓ | ✓ | `LeaseLost` | `LeaseLost` or `Closed` |
///
/// A driver that is dropped without `stop` is a consumer that died: its tasks end, and what it had
/// unsettled goes back as soon as the broker notices.
///
/// Wrappers of a driver should carry `#[deny(clippy::missing_trait_methods)]`.
///
/// # Ten invariants
///
/// What every driver keeps, each proven by cases of the conformance kit:
///
/// 1. A push that returned `Ok` is delivered at least once, whatever is killed in between.
/// 2. A job is delivered to two consumers of a pipeline at once only after a lease ended, a
///    connection died or a partition was revoked; where acks are confirmed, a job acked `Ok` never
///    comes back.
/// 3. Unsettled jobs come back after consumer death; nobody runs a repair.
/// 4. Settling in any order loses nothing: an ack never covers a job that is not settled.
/// 5. Requeue with changes stores the copy before it settles the original: a crash between gives a
///    duplicate, never a loss; deduplicating brokers must not swallow the copy.
/// 6. Jobs in the process ≤ `prefetch` per pipeline; what a client reads ahead of them is bounded too,
///    and stated on the driver's page.
/// 7. A stale receipt (dead channel, revoked partition, ended lease) is refused, without I/O where
///    the broker would accept it wrongly.
/// 8. Bad input (foreign message, broken header, hostile length, oversized payload) gets a clear
///    error or a delivery with defaults; never a panic, a hang, a lost job or an endless uncounted
///    redelivery.
/// 9. Broker gone: consuming resumes by itself, with jittered [`Backoff`](crate::Backoff), for
///    ever.
/// 10. No task, thread, connection or channel outlives `stop`.
#[async_trait]
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// What this pipeline can do: never more than its plan said.
    fn capabilities(&self) -> Capabilities;

    /// Hands one message to the broker and waits until the broker has taken responsibility for it.
    ///
    /// `Ok` means that the confirm, delivery report or insert reply has arrived; no option turns
    /// that off. Concurrent pushes share round trips. A delay counts from acceptance and is rounded
    /// up to the broker's resolution, never down. Messages pushed one after another by one caller
    /// are stored in that order.
    ///
    /// While the broker is gone or the queue is full, the push waits, at most `push_timeout`. A
    /// message is sent a second time only if it certainly was not stored or the broker
    /// deduplicates; else the caller decides, by
    /// [`Error::is_retryable`](crate::Error::is_retryable) and
    /// [`Error::may_be_stored`](crate::Error::may_be_stored).
    ///
    /// # Errors
    /// Those of [`Capabilities::admit`], before any I/O; `NotFound` if the queue is missing;
    /// `InvalidState`; `Denied`; `Closed` after `stop`; `Broker` for what has no kind of its own.
    /// `Full`, `Throttled`, `Connection` and `Timeout` are transient.
    ///
    /// # Cancel safety
    /// After a drop the message may or may not be stored; nothing else is affected. Push again
    /// under the same id, and expect a duplicate.
    async fn push(&self, message: Message) -> Result<()>;

    /// Pushes many messages: one result each, in the order given.
    ///
    /// A bad message fails alone. Split at the broker's limits; where the broker has batches, whole
    /// batches share a round trip. `push_timeout` bounds the whole call. An empty batch answers an
    /// empty list.
    ///
    /// # Errors and cancel safety
    /// Per message as for [`push`](Self::push).
    async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>>;

    /// Starts consuming into `inlet` and returns once subscribed. A program that only pushes never
    /// calls it.
    ///
    /// The driver first grants the pipeline's `prefetch` ([`Inlet::grant`]), then delivers each job
    /// with one of these credits, and drops the inlet when it stops. After a lost connection it
    /// subscribes again by itself.
    ///
    /// # Errors
    /// `InvalidState` if it was run before, `Closed` after `stop`; as [`Plan::connect`] otherwise,
    /// and then nothing runs and `run` may be called again.
    ///
    /// A task that may be aborted must have no await between fetching a job and delivering it.
    ///
    /// # Cancel safety
    /// Not cancel safe: after a drop call [`stop`](Self::stop).
    async fn run(&self, inlet: Inlet) -> Result<()>;

    /// Stops fetching, holds the lane and gives back what nobody popped, then returns.
    ///
    /// When it has returned no job is handed out until [`resume`](Self::resume). Pushing and
    /// settling go on. Outlives reconnects and rebalances. Idempotent.
    ///
    /// # Errors
    /// `Unsupported` where pausing would destroy the queue; `Closed` after `stop`. If giving back
    /// fails the pipeline is paused all the same; the jobs come back when their lease ends.
    ///
    /// # Cancel safety
    /// The pipeline is paused; jobs not given back yet come back when dropped.
    async fn pause(&self) -> Result<()>;

    /// Goes on consuming. Idempotent.
    ///
    /// # Errors
    /// `InvalidState` if it was never run; `Closed` after `stop`; as `run` otherwise.
    ///
    /// # Cancel safety
    /// The pipeline is paused or consumes, and one that consumed goes on: call it again.
    async fn resume(&self) -> Result<()>;

    /// As `pause`, then flushes pending pushes and settlements, ends its tasks and closes the
    /// connection. Jobs that are still with workers go back to the broker, and their receipts are
    /// refused.
    ///
    /// Bounded by a deadline, also when the broker is dead. Afterwards everything but `stop` and
    /// `capabilities` answers `Closed`. Idempotent.
    ///
    /// # Errors
    /// What could not be flushed. The driver is stopped all the same.
    ///
    /// # Cancel safety
    /// Call it again; it continues.
    async fn stop(&self) -> Result<()>;

    /// Reports figures: a bounded round trip that never holds up deliveries.
    ///
    /// # Errors
    /// `Connection`, `Timeout` (transient), `Denied`, `NotFound`; `Closed` after `stop`.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn state(&self) -> Result<State>;
}

const _: fn(&dyn Driver, &dyn Constructor, &dyn Plan) = |_, _, _| {};
