//! Consuming on one channel, from its opening to its end.

use std::collections::{BTreeSet, HashMap};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::{FutureExt, OptionFuture, try_join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use jobs_core::{Capabilities, Credit, Delivery, Error, Inlet, Result, Wakeup};
use lapin::Channel;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    BasicRejectOptions,
};
use lapin::types::{FieldTable, ShortString};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::NAME;
use crate::acks::{Frame, Tag, Unsettled, Verb};
use crate::codec;
use crate::config::AmqpConfig;
use crate::connection::{Connections, Live, close, within};
use crate::consumer::Command;
use crate::error::mapped;
use crate::health::Health;
use crate::outbox::Outbox;
use crate::settlements::{Ending, Reply, Settlement, Settlements};
use crate::topology::{Side, Topology};

/// The broker's own limit for a delivery that is not settled, unless the queue or its policy says
/// otherwise. Source: <https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout>
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// Deliveries that are handed over before settlements are looked at.
const TURN: usize = 64;

/// What there is room for in the name of a consumer, of the 255 bytes that AMQP has.
const NAME_ROOM: usize = 250;

/// What every channel of a pipeline is opened with.
pub(crate) struct Context {
    pub(crate) config: Arc<AmqpConfig>,
    pub(crate) capabilities: Arc<Capabilities>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) topology: Arc<Topology>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) health: Arc<Health>,
    pub(crate) inlet: Arc<Inlet>,
    /// The connection that everything was declared on.
    pub(crate) declared: Option<u64>,
    /// Channels opened so far.
    pub(crate) channels: u64,
}

/// A channel that is consumed from.
pub(crate) struct Session {
    config: Arc<AmqpConfig>,
    outbox: Arc<Outbox>,
    inlet: Arc<Inlet>,
    limit: Duration,
    /// Kept open as long as this consumes from it, also when others make a new one.
    _live: Live,
    channel: Channel,
    settlements: Arc<Settlements>,
    unsettled: Unsettled,
    subscriptions: Vec<lapin::Consumer>,
    /// Deliveries that the subscriptions may have unsettled together.
    window: usize,
    /// What was delivered up to this tag takes up room beside the window.
    earlier: Tag,
    /// Fetched, and waiting for a credit.
    fetched: Option<lapin::message::Delivery>,
    /// Whom to tell of requeued jobs whose copies are on their way.
    copying: HashMap<Tag, Option<Reply>>,
}

/// Why a channel is no longer consumed from.
pub(crate) enum End {
    Stopped,
    Lost(Error),
}

/// Settlements whose frames are being written.
struct Written {
    replies: Vec<Option<Reply>>,
    answer: lapin::Result<()>,
}

type Writing<'a> = Pin<Box<dyn Future<Output = Written> + Send + 'a>>;

impl Context {
    /// Opens a channel and subscribes.
    pub(crate) async fn open(&mut self) -> Result<Session> {
        let live = self.connections.consuming().await?;
        let limit = self.connections.timeout();
        let channel = live.channel("run", limit).await?;
        if self.declared != Some(live.number) {
            within(limit, "run", self.topology.declare(&channel, Side::Consuming)).await?;
            self.declared = Some(live.number);
        }
        self.channels += 1;
        let capabilities = Arc::clone(&self.capabilities);
        let prefetch = self.config.prefetch.get();
        let mut session = Session {
            config: Arc::clone(&self.config),
            outbox: Arc::clone(&self.outbox),
            inlet: Arc::clone(&self.inlet),
            limit,
            _live: live,
            channel,
            settlements: Arc::new(Settlements::new(self.channels, capabilities, prefetch)),
            unsettled: Unsettled::default(),
            subscriptions: Vec::new(),
            window: 0,
            earlier: 0,
            fetched: None,
            copying: HashMap::new(),
        };
        session.subscribe().await?;
        self.inlet.open();
        Ok(session)
    }
}

impl Session {
    /// Delivers and settles until stopped, or until the channel or its queue is gone.
    pub(crate) async fn serve(
        mut self,
        commands: &mut mpsc::Receiver<Command>,
        running: &mut bool,
    ) -> End {
        let end = self.work(commands, running).await;
        self.settlements.kill();
        close(self.channel.clone()).await;
        end
    }

    async fn work(&mut self, commands: &mut mpsc::Receiver<Command>, running: &mut bool) -> End {
        let channel = self.channel.clone();
        let settlements = Arc::clone(&self.settlements);
        let outbox = Arc::clone(&self.outbox);
        let inlet = Arc::clone(&self.inlet);
        let mut writing: Option<Writing<'_>> = None;
        let mut copies = FuturesUnordered::new();
        let mut copied: Vec<Settlement> = Vec::new();
        let mut stopping = false;
        let (mut patrol, patience) = self.patrol();
        let mut gathered = pin!(settlements.gathered());
        loop {
            if writing.is_none() && !copied.is_empty() {
                writing = self.write(&channel, std::mem::take(&mut copied));
            }
            let idle = writing.is_none() && self.copying.is_empty();
            if stopping && idle && settlements.is_empty() {
                return End::Stopped;
            }
            let waits = self.fetched.is_some();
            tokio::select! {
                biased;
                command = commands.recv(), if !stopping => match command {
                    Some(Command::Pause(done)) => {
                        *running = false;
                        let paused = self.unsubscribe().await;
                        let _ = done.send(());
                        if let Err(error) = paused {
                            return End::Lost(error);
                        }
                    }
                    Some(Command::Resume(done)) => {
                        let (answer, lost) = self.resume(*running).await;
                        if answer.is_ok() {
                            *running = true;
                            inlet.open();
                        }
                        let _ = done.send(answer);
                        if let Some(error) = lost {
                            return End::Lost(error);
                        }
                    }
                    Some(Command::Stop) | None => stopping = true,
                },
                Some(written) = OptionFuture::from(writing.as_mut()) => {
                    writing = None;
                    if let Err(error) = written.answer {
                        return End::Lost(mapped("settle", &error));
                    }
                    written.replies.into_iter().flatten().for_each(Reply::done);
                    if *running && let Err(error) = self.widen().await {
                        return End::Lost(error);
                    }
                }
                () = &mut gathered, if writing.is_none() => {
                    gathered.set(settlements.gathered());
                    let mut frames = Vec::new();
                    for settlement in settlements.take() {
                        match settlement.ending {
                            Ending::Frame(_) => frames.push(settlement),
                            Ending::Copy { message, attempt } => {
                                let tag = settlement.tag;
                                self.copying.insert(tag, settlement.reply);
                                let outbox = &outbox;
                                copies.push(async move { (tag, outbox.copy(message, attempt).await) });
                            }
                        }
                    }
                    writing = self.write(&channel, frames);
                }
                Some((tag, stored)) = copies.next() => copied.extend(self.copied(tag, stored)),
                credit = inlet.credit(), if waits => drop(self.deliver_fetched(credit)),
                fetched = next(&mut self.subscriptions), if !waits => {
                    if let Err(error) = self.receive(fetched) {
                        return End::Lost(error);
                    }
                }
                _ = patrol.tick() => self.give_back_old(patience),
            }
        }
    }

    /// What to answer, and the error if the channel is gone.
    async fn resume(&mut self, running: bool) -> (Result<()>, Option<Error>) {
        if running {
            return (Ok(()), None);
        }
        match self.subscribe().await {
            Ok(()) => (Ok(()), None),
            // The broker is away: consuming goes on when it is back.
            Err(error) if error.is_retryable() => (Ok(()), Some(error)),
            // It stays paused.
            Err(error) => {
                let refused = Error::new(error.kind(), "resume").with_driver(NAME);
                (Err(error), Some(refused))
            }
        }
    }

    /// Consumes with what room `prefetch` leaves. Without any, the next settlement makes some.
    async fn subscribe(&mut self) -> Result<()> {
        let prefetch = usize::from(self.config.prefetch.get());
        let free = prefetch.saturating_sub(self.unsettled.len().max(self.window));
        if self.window == 0 {
            self.earlier = self.unsettled.come_up_to();
        }
        if free == 0 {
            return Ok(());
        }
        let qos = u16::try_from(free).expect("at most `prefetch`");
        let queue = self.config.queue.as_ref().map_or("", |queue| queue.name.as_str());
        let name = self.config.consumer_id.as_deref().unwrap_or(self.inlet.pipeline());
        let name = consumer_name(name, self.subscriptions.len());
        let (channel, options) = (&self.channel, BasicConsumeOptions::default());
        let subscription = async {
            // Counts for the consumers that follow on this channel.
            channel.basic_qos(qos, BasicQosOptions::default()).await?;
            channel.basic_consume(queue.into(), name, options, FieldTable::default()).await
        };
        self.subscriptions.push(within(self.limit, "run", subscription).await?);
        self.window += free;
        Ok(())
    }

    /// After a pause the subscription has less room than `prefetch`: jobs from before it are still
    /// unsettled. Once they are settled another subscription takes up the room.
    async fn widen(&mut self) -> Result<()> {
        let prefetch = usize::from(self.config.prefetch.get());
        if self.window == prefetch {
            return Ok(());
        }
        let room = match self.window {
            0 => self.unsettled.len() < prefetch,
            _ => self.unsettled.settled_up_to(self.earlier),
        };
        if room { self.subscribe().await } else { Ok(()) }
    }

    /// Ends the subscriptions and gives back what they fetched.
    async fn unsubscribe(&mut self) -> Result<()> {
        self.window = 0;
        let mut unstarted: Vec<Tag> = Vec::new();
        unstarted.extend(self.fetched.take().map(|delivery| delivery.delivery_tag));
        for mut subscription in self.subscriptions.drain(..) {
            let cancel =
                self.channel.basic_cancel(subscription.tag(), BasicCancelOptions::default());
            within(self.limit, "pause", cancel).await?;
            // Ends with what was on its way when the broker heard of it.
            let rest = async {
                while let Some(Ok(delivery)) = subscription.next().await {
                    unstarted.push(delivery.delivery_tag);
                }
                Ok(())
            };
            within(self.limit, "pause", rest).await?;
        }
        unstarted.sort_unstable();
        for tag in unstarted.into_iter().rev() {
            self.unsettled.deliver(tag, Instant::now());
            let _ = self.settlements.add(Settlement::release(tag));
        }
        Ok(())
    }

    /// Delivers what was fetched and what follows at once, as far as credits last.
    fn receive(
        &mut self,
        mut fetched: Option<lapin::Result<lapin::message::Delivery>>,
    ) -> Result<()> {
        // Who waits for a job is woken at the end: awake, it would contend for the lane.
        let mut wakeups = Vec::new();
        for _ in 0..TURN {
            match fetched {
                Some(Ok(delivery)) => self.fetched = Some(delivery),
                Some(Err(error)) => return Err(mapped("consume", &error)),
                None => return Err(self.gone()),
            }
            let Some(credit) = self.inlet.try_credit() else { return Ok(()) };
            wakeups.extend(self.deliver_fetched(credit));
            match next(&mut self.subscriptions).now_or_never() {
                Some(next) => fetched = next,
                None => return Ok(()),
            }
        }
        // The last one looked at is kept for the next turn.
        match fetched {
            Some(Ok(delivery)) => self.fetched = Some(delivery),
            Some(Err(error)) => return Err(mapped("consume", &error)),
            None => return Err(self.gone()),
        }
        Ok(())
    }

    fn deliver_fetched(&mut self, credit: Credit) -> Option<Wakeup> {
        let delivery = self.fetched.take()?;
        let tag = delivery.delivery_tag;
        self.unsettled.deliver(tag, Instant::now());
        let decoded = codec::decode(&delivery.properties, delivery.data);
        let acknowledger = Arc::clone(&self.settlements);
        let delivery = Delivery::new(decoded.message, self.settlements.token(tag), acknowledger)
            .with_attempt(decoded.attempt)
            .with_position(tag);
        self.inlet.deliver(credit, delivery)
    }

    /// Starts to write the frames of these settlements.
    fn write<'a>(&mut self, channel: &'a Channel, settled: Vec<Settlement>) -> Option<Writing<'a>> {
        if settled.is_empty() {
            return None;
        }
        let mut verbs = Vec::with_capacity(settled.len());
        let mut replies = Vec::with_capacity(settled.len());
        for Settlement { tag, ending, reply } in settled {
            let verb = match ending {
                Ending::Frame(verb) => verb,
                // The copy is stored.
                Ending::Copy { .. } => Verb::Ack,
            };
            verbs.push((tag, verb));
            replies.push(reply);
        }
        let frames = self.unsettled.settle(&verbs);
        Some(Box::pin(async move {
            // The first poll of each queues its frame, in this order.
            let answer = try_join_all(frames.into_iter().map(|frame| write(channel, frame))).await;
            Written { replies, answer: answer.map(drop) }
        }))
    }

    /// What follows when the copy of a requeued job is stored, or could not be.
    fn copied(&mut self, tag: Tag, stored: Result<()>) -> Option<Settlement> {
        let reply = self.copying.remove(&tag).flatten();
        match stored {
            Ok(()) => Some(Settlement { tag, ending: Ending::Frame(Verb::Ack), reply }),
            // Nobody will settle it in another way: it comes back as it is.
            Err(error) => reply
                .is_none_or(|reply| reply.refuse(error).is_some())
                .then(|| Settlement { tag, ending: Ending::Frame(Verb::Abandon), reply: None }),
        }
    }

    /// How often to look for old deliveries, and when they are old.
    fn patrol(&self) -> (Interval, Duration) {
        let patience = self.config.consumer_timeout.unwrap_or(CONSUMER_TIMEOUT) / 2;
        let mut patrol = interval(patience / 8);
        patrol.set_missed_tick_behavior(MissedTickBehavior::Delay);
        (patrol, patience)
    }

    /// The broker closes channels whose deliveries are not settled in time, also of those that no
    /// worker has seen yet. They go to the end of the queue, or to another consumer.
    fn give_back_old(&mut self, patience: Duration) {
        let Some(then) = Instant::now().checked_sub(patience) else { return };
        let old: BTreeSet<Tag> = self.unsettled.since_before(then).collect();
        let waiting = self.inlet.withdraw(|token| {
            self.settlements.owns(token) && old.contains(&Settlements::tag(token))
        });
        for token in waiting.into_iter().rev() {
            let _ = self.settlements.add(Settlement::release(Settlements::tag(token)));
        }
    }

    /// The broker has ended the subscription.
    fn gone(&self) -> Error {
        // When the queue is there again, delayed messages must find it.
        self.outbox.inspector.distrust();
        let queue = self.config.queue.as_ref().map_or("", |queue| queue.name.as_str());
        let error = Error::new(jobs_core::ErrorKind::NotFound, "consume").with_driver(NAME);
        error
            .with_context(format!("the broker ended the consumer: is the queue `{queue}` deleted?"))
    }
}

/// What this channel delivered is delivered anew by the broker, once it is closed. The client does not
/// close a channel that has a consumer when it is dropped.
impl Drop for Session {
    fn drop(&mut self) {
        if self.channel.status().connected()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(close(self.channel.clone()));
        }
        self.settlements.kill();
        self.inlet.withdraw(|token| self.settlements.owns(token));
    }
}

/// The next delivery of any subscription, in turn; none if one has ended. Without any it waits.
///
/// # Cancel safety
/// Cancel safe.
async fn next(
    subscriptions: &mut [lapin::Consumer],
) -> Option<lapin::Result<lapin::message::Delivery>> {
    poll_fn(|cx| {
        for turn in 0..subscriptions.len() {
            if let Poll::Ready(fetched) = subscriptions[turn].poll_next_unpin(cx) {
                // The others come first now.
                subscriptions.rotate_left(turn + 1);
                return Poll::Ready(fetched);
            }
        }
        Poll::Pending
    })
    .await
}

/// The name of a consumer that has so many others beside it on its channel, whose names must differ.
fn consumer_name(name: &str, others: usize) -> ShortString {
    let cut = (0..=name.len().min(NAME_ROOM)).rfind(|end| name.is_char_boundary(*end));
    let name = &name[..cut.unwrap_or(0)];
    let numbered = (others > 0).then(|| format!("{name}.{}", others + 1));
    // It fits; else the broker makes one up.
    ShortString::try_new(numbered.unwrap_or_else(|| name.to_owned())).unwrap_or_default()
}

async fn write(channel: &Channel, frame: Frame) -> lapin::Result<()> {
    let requeue = true;
    match frame {
        Frame::AckUpTo(tag) => channel.basic_ack(tag, BasicAckOptions { multiple: true }).await,
        Frame::One(tag, Verb::Ack) => channel.basic_ack(tag, BasicAckOptions::default()).await,
        Frame::One(tag, Verb::Reject) => {
            channel.basic_reject(tag, BasicRejectOptions { requeue: false }).await
        }
        Frame::One(tag, Verb::Release) => {
            channel.basic_nack(tag, BasicNackOptions { requeue, multiple: false }).await
        }
        Frame::One(tag, Verb::Abandon) => {
            channel.basic_reject(tag, BasicRejectOptions { requeue }).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumers_of_one_channel_have_names_that_fit_and_differ() {
        assert_eq!(consumer_name("me", 0).as_str(), "me");
        assert_eq!(consumer_name("me", 1).as_str(), "me.2");
        for length in 245..=255 {
            // Ends in what is appended, or in the middle of a character if it is cut.
            for name in
                ["a".repeat(length - 2) + ".2", "a".repeat(length % 2) + &"é".repeat(length / 2)]
            {
                let names = [0, 1, 98].map(|others| consumer_name(&name, others));
                assert!(names.iter().all(|name| (1..=255).contains(&name.as_str().len())));
                assert!(names[0] != names[1] && names[1] != names[2], "{names:?}");
                assert!(names[1].as_str().ends_with(".2"));
            }
        }
    }
}
