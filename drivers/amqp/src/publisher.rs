//! Publishing with confirms, from any number of tasks at once.
//!
//! One task per pipeline owns the channel and starts every publish: the client numbers a publish
//! before it queues its frames, so that two tasks publishing on one channel could get each other's
//! confirms. It never waits for one confirm before it starts the next publish.

use std::collections::VecDeque;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::StreamExt;
use jobs_core::{Backoff, Error, ErrorKind, Message, Result};
use lapin::Channel;
use lapin::options::ConfirmSelectOptions;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::NAME;
use crate::codec::fits;
use crate::confirms::{Confirms, Verdict};
use crate::connection::{Connections, Live, close, within};
use crate::error::{closed, mapped, max_message_size, refuses};
use crate::flights::{Flights, Flown, Publish, Request, WINDOW};
use crate::health::Health;
use crate::topology::{Side, Target, Topology};

/// How often to look if the connection is blocked while there is something to publish. The client
/// tells only one listener.
const BLOCKED_POLL: Duration = Duration::from_millis(20);

/// How long the client may take to fail what is in flight on a dead channel.
const DRAIN: Duration = Duration::from_secs(5);

/// What a connection lives at least, and at least as long as it was waited for, unless something is
/// wrong that trying again at once would make worse.
const HEALTHY: Duration = Duration::from_secs(1);

/// The longest wait between two attempts of a driver that is being stopped.
const LAST_WAIT: Duration = Duration::from_millis(100);

/// The publishing side of a pipeline.
pub(crate) struct Publisher {
    requests: mpsc::Sender<Request>,
    health: Arc<Health>,
    closing: CancellationToken,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// Takes back what was not handed to the client when its caller is gone.
struct Withdraw<'a>(&'a Publish);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.0.discard();
    }
}

impl Publisher {
    /// Opens the channel, declares what is to be declared, and starts the task.
    pub(crate) async fn connect(
        connections: Arc<Connections>,
        topology: Arc<Topology>,
        with_due: bool,
        health: Arc<Health>,
    ) -> Result<Self> {
        // As many as wait for their confirms may wait for their turn.
        let (requests, receiver) = mpsc::channel(WINDOW);
        let closing = CancellationToken::new();
        let mut worker = Worker {
            connections,
            topology,
            with_due,
            declared: None,
            requests: receiver,
            backlog: VecDeque::new(),
            health: Arc::clone(&health),
            closing: closing.clone(),
        };
        let first = worker.open().await?;
        let task = AbortOnDropHandle::new(tokio::spawn(worker.work(first)));
        Ok(Self { requests, health, closing, task: Mutex::new(Some(task)) })
    }

    /// Publishes a message, once, and waits for its confirm, at most until the deadline.
    ///
    /// # Cancel safety
    /// A message that was not handed to the client yet will not be.
    pub(crate) async fn publish(&self, publish: &Arc<Publish>, deadline: Instant) -> Result<()> {
        let _withdraw = Withdraw(publish);
        let (answer, answered) = oneshot::channel();
        let request = Request { publish: Arc::clone(publish), answer };
        let answer = timeout_at(deadline, async {
            self.requests.send(request).await.map_err(|_| closed("push"))?;
            let unanswered =
                || if self.closing.is_cancelled() { closed("push") } else { lost_channel() };
            answered.await.unwrap_or_else(|_| Err(unanswered()))
        });
        let stored = |error: Error| if publish.discard() { error } else { error.maybe_stored() };
        match answer.await {
            Ok(Err(error)) if error.kind() == ErrorKind::Closed => Err(stored(error)),
            Ok(answer) => answer,
            Err(_) => Err(stored(self.health.too_late())),
        }
    }

    /// Publishes what is waiting, waits for the confirms, and ends; gives up at the deadline.
    pub(crate) async fn stop(&self, deadline: Instant) {
        self.closing.cancel();
        let mut slot = self.task.lock().await;
        let Some(task) = slot.as_mut() else { return };
        if timeout_at(deadline, &mut *task).await.is_err() {
            task.abort();
            let _ = task.await;
        }
        *slot = None;
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("health", &self.health).finish_non_exhaustive()
    }
}

/// How long to wait before the next attempt to publish.
#[derive(Default)]
struct Patience {
    failures: u32,
    waited: Duration,
}

impl Patience {
    fn after_failure(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        self.waited = Backoff::RECONNECT.delay(self.failures);
        self.waited
    }

    /// After the loss of a connection that lived that long: no time, unless it died young.
    fn after(&mut self, lived: Duration) -> Duration {
        if lived < HEALTHY.max(self.waited) {
            return self.after_failure();
        }
        *self = Self::default();
        self.waited
    }
}

/// What the task owns.
struct Worker {
    connections: Arc<Connections>,
    topology: Arc<Topology>,
    with_due: bool,
    /// The connection that everything was declared on.
    declared: Option<u64>,
    requests: mpsc::Receiver<Request>,
    /// Taken from the requests, and certainly not published.
    backlog: VecDeque<Request>,
    health: Arc<Health>,
    closing: CancellationToken,
}

/// Why a channel is no longer used.
enum End {
    Lost,
    /// Stopped, and everything was published.
    Finished,
}

impl Worker {
    async fn open(&mut self) -> Result<(Live, Channel)> {
        let limit = self.connections.timeout();
        let (live, channel) = self.connections.channel(Side::Publishing, "connect").await?;
        if self.declared != Some(live.number) {
            within(limit, "connect", self.topology.declare(&channel, Side::Publishing)).await?;
            if self.with_due {
                within(limit, "connect", self.topology.declare_due(&channel)).await?;
            }
            self.declared = Some(live.number);
        }
        let options = ConfirmSelectOptions::default();
        within(limit, "connect", channel.confirm_select(options)).await?;
        Ok((live, channel))
    }

    async fn work(mut self, first: (Live, Channel)) {
        let closing = self.closing.clone();
        let mut opened: Result<_> = Ok(first);
        let mut patience = Patience::default();
        let (mut connection, mut since) = (0, Instant::now());
        loop {
            let wait = match opened {
                Ok((live, channel)) => {
                    if connection != live.number {
                        (connection, since) = (live.number, Instant::now());
                    }
                    self.health.can_publish();
                    if let End::Finished = self.serve(&live, &channel).await {
                        close(channel).await;
                        return;
                    }
                    match live.connection().status().connected() {
                        // Some push closed the channel: the others do not wait for that.
                        true => Duration::ZERO,
                        false => patience.after(since.elapsed()),
                    }
                }
                Err(error) => {
                    let wait = patience.after_failure();
                    tracing::warn!(%error, ?wait, "cannot publish, trying again");
                    self.health.cannot_publish(error.kind(), &error.with_sources());
                    if self.is_finished() {
                        return;
                    }
                    wait
                }
            };
            if closing.run_until_cancelled(sleep(wait)).await.is_none() {
                sleep(wait.min(LAST_WAIT)).await;
            }
            opened = match closing.run_until_cancelled(self.open()).await {
                Some(opened) => opened,
                None if self.is_finished() => return,
                None => self.open().await,
            };
        }
    }

    /// True if the driver was stopped and nobody waits for a push.
    fn is_finished(&mut self) -> bool {
        if self.closing.is_cancelled() {
            self.requests.close();
        }
        // What callers have given up on is not kept until the broker is back.
        while let Ok(request) = self.requests.try_recv() {
            self.backlog.push_back(request);
        }
        self.backlog.retain(|request| !request.answer.is_closed());
        self.backlog.is_empty() && self.has_no_more_requests()
    }

    /// True if no request is waiting and none will come.
    fn has_no_more_requests(&self) -> bool {
        self.requests.is_closed() && self.requests.is_empty()
    }

    /// Publishes until the channel is lost or nothing more will come.
    async fn serve(&mut self, live: &Live, channel: &Channel) -> End {
        let frame_max = live.connection().configuration().frame_max();
        let mut flights = Flights::new(channel);
        let mut confirms = Confirms::default();
        let mut taken = Vec::new();
        let mut blocked = false;
        let closing = self.closing.clone();
        let mut closing = pin!(closing.cancelled());
        let mut look = interval(BLOCKED_POLL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut failed = Vec::new();
            let mut lost = !channel.status().connected();
            blocked = self.look_at_alarm(live, blocked);
            let finished = if blocked {
                self.is_finished()
            } else {
                while !lost && flights.room() > 0 {
                    let Some(request) = self.backlog.pop_front() else { break };
                    start(&mut flights, frame_max, request);
                    lost = !channel.status().connected();
                }
                self.backlog.is_empty() && self.has_no_more_requests()
            };
            if finished && flights.is_empty() {
                return End::Finished;
            }
            let free = if blocked || finished { 0 } else { flights.room() };
            if !lost {
                tokio::select! {
                    biased;
                    Some(flown) = flights.next() => {
                        lost = land(flown, &mut confirms, &mut failed);
                        // Everything that has landed is judged together.
                        while let Some(flown) = flights.landed() {
                            lost |= land(flown, &mut confirms, &mut failed);
                        }
                        confirms.judge(tell);
                    }
                    _ = self.requests.recv_many(&mut taken, free), if free > 0 => {
                        self.backlog.extend(taken.drain(..));
                    }
                    () = &mut closing, if !self.requests.is_closed() => self.requests.close(),
                    _ = look.tick(), if blocked || !flights.is_empty() => {}
                }
            }
            if lost {
                let rest = async {
                    while let Some(flown) = flights.next().await {
                        land(flown, &mut confirms, &mut failed);
                    }
                };
                let drained = timeout(DRAIN, rest).await.is_ok();
                if !drained {
                    tracing::error!("the client does not answer for a dead channel");
                }
                confirms.judge(tell);
                confirms.into_undecided().for_each(|request| request.tell(Err(lost_channel())));
                self.tell_failed(failed, drained);
                return End::Lost;
            }
        }
    }

    /// True if the broker is short of memory or disk and takes no messages. What waits here
    /// meanwhile is certainly not stored.
    fn look_at_alarm(&self, live: &Live, before: bool) -> bool {
        let blocked = live.connection().status().blocked();
        match (before, blocked) {
            (false, true) => {
                let trouble =
                    "the broker has blocked the connection: it is short of memory or disk";
                tracing::warn!(trouble);
                self.health.cannot_publish(ErrorKind::Throttled, trouble);
            }
            (true, false) => self.health.can_publish(),
            _ => {}
        }
        blocked
    }

    /// Tells those that were under way when the channel failed; `all` of them, unless some are missing.
    fn tell_failed(&self, failed: Vec<(Request, lapin::Error)>, all: bool) {
        let is_refused = |(request, error): &&(Request, _)| refuses(error, &request.publish.target);
        let alone = all && failed.iter().filter(is_refused).count() == 1;
        for (request, error) in failed {
            let Publish { message, target, .. } = &*request.publish;
            let failure = failed_push(message, target, alone, &error);
            self.health.met(&failure);
            request.tell(Err(failure));
        }
    }
}

/// Starts to publish, unless nobody waits for it any more or no frame can take the headers.
fn start(flights: &mut Flights<'_>, frame_max: u32, request: Request) {
    let Some(properties) = request.publish.take() else { return };
    if fits(&properties, frame_max) {
        return flights.start(request, properties);
    }
    let error = Error::new(ErrorKind::PayloadTooLarge, "push").with_driver(NAME);
    let context = format!("headers larger than a frame takes, which has {frame_max} bytes");
    request.tell(Err(error.with_context(context)));
}

/// Takes note of what became of a publish. True if the channel is lost.
fn land(
    flown: Flown,
    confirms: &mut Confirms<Request>,
    failed: &mut Vec<(Request, lapin::Error)>,
) -> bool {
    match flown {
        Flown::Acked(request, returned) => confirms.resolve(returned, request),
        Flown::Nacked(request, returned) => {
            returned.into_iter().for_each(|key| confirms.note_returned(key));
            let context = "the broker refused it: the queue is full, or could not store it";
            let error = Error::new(ErrorKind::Throttled, "push").with_driver(NAME);
            request.tell(Err(error.with_context(context).transient().maybe_stored()));
        }
        Flown::Failed(request, error) => {
            failed.push((request, error));
            return true;
        }
        Flown::Room => {}
    }
    false
}

fn tell(request: Request, verdict: Verdict) {
    request.tell(match verdict {
        Verdict::Stored => Ok(()),
        Verdict::Returned => {
            let error = Error::new(ErrorKind::NotFound, "push").with_driver(NAME);
            Err(error.with_context("no queue is bound where the message went"))
        }
    });
}

pub(crate) fn lost_channel() -> Error {
    let error = Error::new(ErrorKind::Connection, "push").with_driver(NAME);
    error.with_context("the channel was lost before the answer").transient().maybe_stored()
}

/// The error of a push that was under way when the channel failed. Usually another message, or the
/// connection, is to blame. `alone`: what the broker refused is one message.
fn failed_push(message: &Message, target: &Target, alone: bool, error: &lapin::Error) -> Error {
    let failure = mapped("push", error);
    match (failure.kind(), max_message_size(error)) {
        (ErrorKind::PayloadTooLarge, Some(limit)) if message.payload().len() > limit => failure,
        (ErrorKind::Denied | ErrorKind::NotFound, _) if refuses(error, target) => match alone {
            true => failure,
            // An earlier one to the same place may have been taken.
            false => failure.maybe_stored(),
        },
        (ErrorKind::PayloadTooLarge | ErrorKind::Denied | ErrorKind::NotFound, _) => {
            lost_channel().with_source(error.clone())
        }
        _ => failure.maybe_stored(),
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPSoftError};

    use super::*;

    fn target(exchange: &str, routing_key: &str) -> Target {
        Target { exchange: exchange.into(), routing_key: routing_key.into() }
    }

    #[tokio::test]
    async fn a_push_that_nobody_answers_fails_as_what_it_knows() {
        for (stopped, published, expected) in [
            (false, true, (ErrorKind::Connection, true, true)),
            (true, true, (ErrorKind::Closed, false, true)),
            (true, false, (ErrorKind::Closed, false, false)),
        ] {
            let (requests, mut taken) = mpsc::channel(1);
            let closing = CancellationToken::new();
            let health = Arc::default();
            let task = Mutex::default();
            let publisher = Publisher { requests, health, closing: closing.clone(), task };
            let message = Message::new("a", "");
            let publish = Publish::new(Arc::new(target("", "k")), message, Default::default());
            let client_does_not_answer = async {
                let request: Request = taken.recv().await.expect("one");
                if published {
                    request.publish.take().expect("not taken");
                }
                if stopped {
                    closing.cancel();
                }
            };
            let deadline = Instant::now() + Duration::from_secs(60);
            let push = publisher.publish(&publish, deadline);
            let error = tokio::join!(push, client_does_not_answer).0.expect_err("no answer");
            let found = (error.kind(), error.is_retryable(), error.may_be_stored());
            assert_eq!(found, expected, "stopped: {stopped}, published: {published}");
        }
    }

    #[test]
    fn connections_that_die_young_are_made_less_and_less_often() {
        let mut patience = Patience::default();
        assert_eq!(patience.after(HEALTHY), Duration::ZERO);
        let waits: Vec<_> = (0..12).map(|_| patience.after(Duration::from_millis(5))).collect();
        assert!(waits[0] > Duration::ZERO && waits[11] >= Duration::from_secs(15), "{waits:?}");
        assert!(patience.after(HEALTHY) > HEALTHY, "not as long as it was waited for");
        assert_eq!(patience.after(Duration::from_secs(30)), Duration::ZERO);
        assert!(patience.after(Duration::ZERO) <= Duration::from_millis(100), "from the beginning");
    }

    #[test]
    fn only_the_message_that_was_refused_fails_for_good() {
        let missing = "NOT_FOUND - no exchange 'gone' in vhost '/'";
        let error = AMQPError::new(AMQPSoftError::NOTFOUND.into(), missing.into());
        let error = lapin::ErrorKind::ProtocolError(error).into();
        let message = Message::new("a", "");
        for (exchange, alone, expected) in [
            ("gone", true, (ErrorKind::NotFound, false, false)),
            ("gone", false, (ErrorKind::NotFound, false, true)),
            ("there", true, (ErrorKind::Connection, true, true)),
            ("", true, (ErrorKind::Connection, true, true)),
        ] {
            let error = failed_push(&message, &target(exchange, "k"), alone, &error);
            let found = (error.kind(), error.is_retryable(), error.may_be_stored());
            assert_eq!(found, expected, "{exchange:?}, {alone}");
        }
    }
}
