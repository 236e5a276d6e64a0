//! Publishing with confirms, from any number of tasks at once.
//!
//! One task per pipeline owns the channel and starts every publish: the client numbers a publish
//! before it queues its frames, so that two tasks publishing on one channel could get each other's
//! confirms. It never waits for one confirm before it starts the next publish.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures::future::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use jobs_core::{Backoff, Error, ErrorKind, Message, Result};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::NAME;
use crate::codec::{fits, id_of};
use crate::confirms::{Confirms, Key, Published, Verdict};
use crate::connection::{Connections, Live, close, within};
use crate::error::{closed, mapped, max_message_size, refuses};
use crate::health::Health;
use crate::topology::{Side, Target, Topology};

/// Publishes that wait for their confirms, and as many that wait for their turn. A window of 1,024
/// reaches what the client can do.
const WINDOW: usize = 2_048;

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

/// A message on its way.
pub(crate) struct Publish {
    pub(crate) target: Arc<Target>,
    /// Its id and target tell returned messages apart, its payload is the body.
    pub(crate) message: Message,
    pub(crate) properties: BasicProperties,
}

struct Request {
    /// Boxed, as it is handed on several times.
    publish: Box<Publish>,
    stage: Arc<Stage>,
    answer: oneshot::Sender<Result<()>>,
}

/// Whether a request was handed to the client. Either that or giving up wins, never both: so a push
/// that fails knows whether its message may be stored.
#[derive(Default)]
struct Stage(AtomicU8);

impl Stage {
    const WAITING: u8 = 0;
    const STARTED: u8 = 1;
    const WITHDRAWN: u8 = 2;

    fn leave_waiting(&self, to: u8) -> bool {
        let order = Ordering::AcqRel;
        self.0.compare_exchange(Self::WAITING, to, order, Ordering::Acquire).is_ok()
    }

    fn start(&self) -> bool {
        self.leave_waiting(Self::STARTED)
    }

    /// True if the message was not and will not be handed to the client.
    fn withdraw(&self) -> bool {
        self.leave_waiting(Self::WITHDRAWN)
    }

    /// The client refused to take it.
    fn restart(&self) {
        self.0.store(Self::WAITING, Ordering::Release);
    }
}

/// Withdraws a request whose caller went away.
struct Withdraw<'a>(&'a Stage);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.0.withdraw();
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
        let (requests, receiver) = mpsc::channel(WINDOW);
        let closing = CancellationToken::new();
        let mut worker = Worker {
            connections,
            topology,
            with_due,
            declared: None,
            requests: receiver,
            backlog: VecDeque::new(),
            drained: false,
            health: Arc::clone(&health),
            closing: closing.clone(),
        };
        let first = worker.open().await?;
        let task = AbortOnDropHandle::new(tokio::spawn(worker.work(first)));
        Ok(Self { requests, health, closing, task: Mutex::new(Some(task)) })
    }

    /// Publishes a message and waits for its confirm, at most until the deadline.
    ///
    /// # Cancel safety
    /// A message that was not handed to the client yet will not be.
    pub(crate) async fn publish(&self, publish: Box<Publish>, deadline: Instant) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        let stage = Arc::new(Stage::default());
        let request = Request { publish, stage: Arc::clone(&stage), answer };
        let withdraw = Withdraw(&stage);
        let answer = timeout_at(deadline, async {
            self.requests.send(request).await.map_err(|_| closed("push"))?;
            answered.await.unwrap_or_else(|_| Err(closed("push")))
        });
        let stored =
            |error: Error| if withdraw.0.withdraw() { error } else { error.maybe_stored() };
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
    /// No request will come any more.
    drained: bool,
    health: Arc<Health>,
    closing: CancellationToken,
}

/// A push that waits to be told.
struct Pending {
    message: Message,
    target: Arc<Target>,
    answer: oneshot::Sender<Result<()>>,
}

impl Published for Pending {
    fn key(&self) -> Key {
        let Target { exchange, routing_key } = &*self.target;
        let id = self.message.id().as_str().to_owned();
        Key { id, exchange: exchange.to_string(), routing_key: routing_key.to_string() }
    }
}

/// Why a channel is no longer used.
enum End {
    Lost,
    /// Stopped, and everything was published.
    Finished,
}

/// What became of a publish.
enum Flown {
    /// Confirmed, together with some returned message.
    Acked(Pending, Option<Key>),
    Nacked(Pending, Option<Key>),
    Failed(Pending, lapin::Error),
    /// The channel was gone before.
    Refused(Request),
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
        self.backlog.is_empty() && self.requests.is_closed() && self.requests.is_empty()
    }

    /// Publishes until the channel is lost or nothing more will come.
    async fn serve(&mut self, live: &Live, channel: &Channel) -> End {
        let frame_max = live.connection().configuration().frame_max();
        let start = |request| start(channel, frame_max, request);
        let mut flights = FuturesUnordered::new();
        flights.extend(mem::take(&mut self.backlog).into_iter().filter_map(start));
        let mut confirms = Confirms::default();
        let mut taken = Vec::new();
        let mut blocked = false;
        let mut look = interval(BLOCKED_POLL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            blocked = self.look_at_alarm(live, blocked);
            let free = if blocked { 0 } else { WINDOW.saturating_sub(flights.len()) };
            tokio::select! {
                biased;
                Some(flown) = flights.next() => {
                    let mut failed = Vec::new();
                    let mut lost = self.land(flown, &mut confirms, &mut failed);
                    // Everything that has landed is judged together. Twice, because the set lets
                    // others run in between.
                    for _ in 0..2 {
                        while let Some(Some(flown)) = flights.next().now_or_never() {
                            lost |= self.land(flown, &mut confirms, &mut failed);
                        }
                    }
                    tell(confirms.judge());
                    if lost {
                        let rest = async {
                            while let Some(flown) = flights.next().await {
                                self.land(flown, &mut confirms, &mut failed);
                            }
                        };
                        let drained = timeout(DRAIN, rest).await.is_ok();
                        if !drained {
                            tracing::error!("the client does not answer for a dead channel");
                        }
                        tell(confirms.judge());
                        confirms.into_undecided().for_each(|pending| pending.tell(Err(lost_channel())));
                        self.tell_failed(failed, drained);
                        return End::Lost;
                    }
                }
                count = self.requests.recv_many(&mut taken, free), if free > 0 && !self.drained => {
                    self.drained = count == 0;
                    flights.extend(taken.drain(..).filter_map(start));
                }
                () = self.closing.cancelled(), if !self.requests.is_closed() => self.requests.close(),
                _ = look.tick(), if blocked || !flights.is_empty() => {}
                else => return End::Finished,
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

    /// Takes note of what became of a publish. True if the channel is lost.
    fn land(
        &mut self,
        flown: Flown,
        confirms: &mut Confirms<Pending>,
        failed: &mut Vec<(Pending, lapin::Error)>,
    ) -> bool {
        match flown {
            Flown::Acked(pending, returned) => {
                confirms.resolve(returned, pending);
                false
            }
            Flown::Nacked(pending, returned) => {
                returned.into_iter().for_each(|key| confirms.note_returned(key));
                let context = "the broker refused it: the queue is full, or could not store it";
                let error = Error::new(ErrorKind::Throttled, "push").with_driver(NAME);
                pending.tell(Err(error.with_context(context).transient().maybe_stored()));
                false
            }
            Flown::Failed(pending, error) => {
                failed.push((pending, error));
                true
            }
            Flown::Refused(request) => {
                request.stage.restart();
                self.backlog.push_back(request);
                true
            }
        }
    }

    /// Tells those that were under way when the channel failed; `all` of them, unless some are missing.
    fn tell_failed(&self, failed: Vec<(Pending, lapin::Error)>, all: bool) {
        let is_refused = |(pending, error): &&(Pending, _)| refuses(error, &pending.target);
        let alone = all && failed.iter().filter(is_refused).count() == 1;
        for (pending, error) in failed {
            let failure = failed_push(&pending.message, &pending.target, alone, &error);
            self.health.met(&failure);
            pending.tell(Err(failure));
        }
    }
}

impl Pending {
    fn tell(self, answer: Result<()>) {
        // Nobody listens any more: that caller has drawn its own conclusion.
        let _ = self.answer.send(answer);
    }
}

fn tell(judged: Vec<(Pending, Verdict)>) {
    for (pending, verdict) in judged {
        pending.tell(match verdict {
            Verdict::Stored => Ok(()),
            Verdict::Returned => {
                let error = Error::new(ErrorKind::NotFound, "push").with_driver(NAME);
                Err(error.with_context("no queue is bound where the message went"))
            }
        });
    }
}

/// What tells a message apart that the broker gave back.
fn key_of(returned: &BasicReturnMessage) -> Option<Key> {
    let delivery = &returned.delivery;
    Some(Key {
        id: id_of(&delivery.properties)?.to_owned(),
        exchange: delivery.exchange.to_string(),
        routing_key: delivery.routing_key.to_string(),
    })
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

/// Starts to publish, unless nobody waits for it any more or no frame can take the headers.
fn start(
    channel: &Channel,
    frame_max: u32,
    request: Request,
) -> Option<impl Future<Output = Flown>> {
    if request.answer.is_closed() {
        return None;
    }
    if !fits(&request.publish.properties, frame_max) {
        let error = Error::new(ErrorKind::PayloadTooLarge, "push").with_driver(NAME);
        let context = format!("headers larger than a frame takes, which has {frame_max} bytes");
        let _ = request.answer.send(Err(error.with_context(context)));
        return None;
    }
    if !request.stage.start() {
        return None;
    }
    Some(async move {
        if !channel.status().connected() {
            return Flown::Refused(request);
        }
        let Request { publish, answer, .. } = request;
        let Publish { target, message, properties } = *publish;
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let Target { exchange, routing_key } = Target::clone(&target);
        let body = message.payload();
        // Boxed, to be given back when the frames are written: it is many times as large as what waits
        // for the confirm.
        let write = channel.basic_publish(exchange, routing_key, options, body, properties);
        let confirmed = match Box::pin(write).await {
            Ok(confirm) => confirm.await,
            Err(error) => Err(error),
        };
        let pending = Pending { message, target, answer };
        let key_of = |returned: Option<BasicReturnMessage>| returned.as_ref().and_then(key_of);
        match confirmed {
            Ok(Confirmation::Ack(returned)) => Flown::Acked(pending, key_of(returned)),
            Ok(Confirmation::Nack(returned)) => Flown::Nacked(pending, key_of(returned)),
            Ok(Confirmation::NotRequested) => {
                let id = pending.message.id();
                unreachable!("confirms were selected before {id:?} was published")
            }
            Err(error) => Flown::Failed(pending, error),
        }
    })
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPSoftError};

    use super::*;

    fn target(exchange: &str, routing_key: &str) -> Target {
        Target { exchange: exchange.into(), routing_key: routing_key.into() }
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
