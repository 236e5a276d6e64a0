//! The mapping of the contract onto Kafka.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jobs_core::{
    Capabilities, Driver, Error, ErrorKind, Health, Inlet, Message, Pipeline, Result, State,
    async_trait,
};
use rdkafka::producer::Producer as _;
use tokio::sync::{Notify, oneshot};

use crate::NAME;
use crate::config::KafkaConfig;
use crate::connection;
use crate::consumer::Consumer;
use crate::error;
use crate::hub::{Hub, lock};
use crate::inspector::Inspector;
use crate::publisher::{self, Publisher};

/// How long a stop waits for a broker that does not answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a question about the state may take.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);

/// One pipeline on one cluster.
#[derive(Debug)]
pub(crate) struct KafkaDriver {
    hub: Arc<Hub>,
    inspector: Arc<Inspector>,
    /// Held through run, pause, resume and stop, so that they follow one another.
    control: tokio::sync::Mutex<()>,
    consumer: Mutex<Option<Arc<Consumer>>>,
    closed: AtomicBool,
    /// Ends what holds the control.
    closing: Notify,
}

impl KafkaDriver {
    pub(crate) async fn connect(
        pipeline: &Pipeline,
        config: KafkaConfig,
        capabilities: Capabilities,
    ) -> Result<Self> {
        let config = Arc::new(config);
        let health = Arc::new(Health::new(pipeline.shared_name()));
        let publisher = Publisher::new(&config, &health)?;
        connection::prepare(&config, &publisher).await?;
        let (name, priority) = (pipeline.shared_name(), pipeline.priority());
        let hub = Hub::new(name, priority, config, capabilities, publisher, health);
        let driver = Self {
            hub: Arc::new(hub),
            inspector: Arc::default(),
            control: tokio::sync::Mutex::default(),
            consumer: Mutex::default(),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
        };
        driver.look_for_delays().await?;
        Ok(driver)
    }

    /// Jobs may wait in the delay topic since an earlier time.
    async fn look_for_delays(&self) -> Result<()> {
        let Some(delays) = self.hub.delays.clone() else { return Ok(()) };
        let (hub, producer) = (Arc::clone(&self.hub), self.hub.publisher.producer("connect")?);
        let deadline = Instant::now() + self.hub.config.connect_timeout;
        connection::on_a_thread("connect", deadline, move || {
            delays.look(producer.client(), &hub.config, deadline).map(drop)
        })
        .await
    }

    async fn ensure_delays(&self, deadline: Instant) -> Result<()> {
        let Some(delays) = self.hub.delays.as_ref().filter(|delays| !delays.exist()) else {
            return Ok(());
        };
        let (delays, hub) = (Arc::clone(delays), Arc::clone(&self.hub));
        connection::on_a_thread("push", deadline, move || {
            let producer = hub.publisher.producer("push")?;
            if delays.ensure(producer.client(), &hub.config, deadline)? {
                hub.session.wake();
            }
            Ok(())
        })
        .await
    }

    fn named(&self, error: Error) -> Error {
        error.with_driver(NAME).with_pipeline(Arc::clone(&self.hub.pipeline))
    }

    fn open(&self, operation: &'static str) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(self.named(error::closed(operation))),
            false => Ok(()),
        }
    }

    fn consumer(&self) -> Option<Arc<Consumer>> {
        lock(&self.consumer).clone()
    }

    /// Hands a message to the producer. What is returned answers when it is stored.
    async fn begin(
        &self,
        message: &Message,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Result<()>>> {
        self.open("push")?;
        self.hub.capabilities.admit(message)?;
        let chosen = message.kafka().filter(|kafka| !kafka.topic.is_empty());
        let topic = chosen.map(|kafka| &kafka.topic).or(self.hub.topic.as_ref());
        let Some(topic) = topic else {
            let error = Error::new(ErrorKind::InvalidMessage, "push");
            return Err(
                error.with_context("no topic: the pipeline has no `topic`, nor the message")
            );
        };
        let partition = message.kafka().and_then(|kafka| kafka.partition);
        let (topic, partition, record) = self.hub.address(message, 1, Arc::clone(topic), partition);
        if !record.fits(self.hub.config.max_message_bytes) {
            let most = self.hub.config.max_message_bytes;
            let error = Error::new(ErrorKind::PayloadTooLarge, "push");
            return Err(error.with_context(format!("at most {most} bytes with key and headers")));
        }
        if !message.delay().is_zero() {
            self.ensure_delays(deadline).await?;
        }
        self.hub.publisher.begin(topic, partition, record, deadline).await
    }

    /// Waits until a message is stored. One that certainly was not, because the client knew no such
    /// topic, is pushed once more if there is one: it may have been made a moment ago.
    async fn stored(
        &self,
        message: &Message,
        answer: Result<oneshot::Receiver<Result<()>>>,
        deadline: Instant,
    ) -> Result<()> {
        let error = match answer {
            Ok(answer) => match publisher::confirmed(answer).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            },
            Err(error) => error,
        };
        let missing = error.kind() == ErrorKind::NotFound && !error.may_be_stored();
        if !missing || !self.is_there(message, deadline).await? {
            return Err(error);
        }
        publisher::confirmed(self.begin(message, deadline).await?).await
    }

    /// Asks the broker for the topic and partition of a message. That of the delays will be made again
    /// if somebody has deleted it.
    async fn is_there(&self, message: &Message, deadline: Instant) -> Result<bool> {
        let kafka = message.kafka();
        let delays = self.hub.delays.as_ref().filter(|_| !message.delay().is_zero());
        let chosen = kafka.map(|kafka| &kafka.topic).filter(|topic| !topic.is_empty());
        let delayed = delays.map(|delays| Arc::from(delays.topic.as_str()));
        let topic = delayed.as_ref().or(chosen).or(self.hub.topic.as_ref());
        let Some(topic) = topic.cloned() else { return Ok(false) };
        let partition = kafka.and_then(|kafka| kafka.partition).filter(|_| delays.is_none());
        let mut found = self.learn_of(&topic, Instant::now()).await?;
        if let (Some(delays), 0) = (delays, found) {
            delays.forget();
            self.ensure_delays(deadline).await?;
            found = self.learn_of(&topic, deadline).await?;
        }
        Ok(partition.map_or(found > 0, |partition| partition < found))
    }

    /// Asks for the partitions of a topic by the producer's own client, which learns of it by this. Once,
    /// and again until the deadline while there are none.
    async fn learn_of(&self, topic: &str, deadline: Instant) -> Result<i32> {
        const LOOK: Duration = Duration::from_millis(50);
        let (producer, topic) = (self.hub.publisher.producer("push")?, topic.to_owned());
        let answer = Instant::now() + self.hub.config.connect_timeout;
        connection::on_a_thread("push", deadline.max(answer), move || {
            use rdkafka::producer::Producer as _;
            loop {
                match connection::partitions(producer.client(), &topic, deadline.max(answer)) {
                    Ok(found) if found > 0 => return Ok(found),
                    _ if Instant::now() >= deadline => return Ok(0),
                    _ => std::thread::sleep(LOOK),
                }
            }
        })
        .await
    }

    /// Does one thing after the other, until stopped.
    async fn in_turn<T>(
        &self,
        operation: &'static str,
        work: impl AsyncFnOnce() -> Result<T>,
    ) -> Result<T> {
        let closing = self.closing.notified();
        self.open(operation)?;
        let work = async {
            let _control = self.control.lock().await;
            self.open(operation)?;
            work().await
        };
        tokio::select! {
            done = work => done.map_err(|error| self.named(error)),
            () = closing => Err(self.named(error::closed(operation))),
        }
    }

    fn start(&self, inlet: Inlet) -> Result<()> {
        let mut place = lock(&self.consumer);
        let refused = match (place.is_some(), self.hub.config.consumes()) {
            (true, _) => "it was run before",
            (false, false) => "the pipeline only pushes: it has no `topics` to consume",
            (false, true) => {
                *place = Some(Arc::new(Consumer::start(&self.hub, inlet)?));
                return Ok(());
            }
        };
        Err(Error::new(ErrorKind::InvalidState, "run").with_context(refused))
    }
}

#[async_trait]
impl Driver for KafkaDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities::clone(&self.hub.capabilities)
    }

    async fn push(&self, message: Message) -> Result<()> {
        let deadline = Instant::now() + self.hub.config.push_timeout;
        let answer = self.begin(&message, deadline).await;
        self.stored(&message, answer, deadline).await.map_err(|error| self.named(error))
    }

    async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        let deadline = Instant::now() + self.hub.config.push_timeout;
        let mut begun = Vec::with_capacity(messages.len());
        for message in &messages {
            begun.push(self.begin(message, deadline).await);
        }
        let mut answers = Vec::with_capacity(begun.len());
        for (message, answer) in messages.iter().zip(begun) {
            let stored = self.stored(message, answer, deadline).await;
            answers.push(stored.map_err(|error| self.named(error)));
        }
        answers
    }

    async fn run(&self, inlet: Inlet) -> Result<()> {
        self.in_turn("run", async || self.start(inlet)).await
    }

    async fn pause(&self) -> Result<()> {
        self.in_turn("pause", async || match self.consumer() {
            Some(consumer) => consumer.pause().await,
            None => Ok(()),
        })
        .await
    }

    async fn resume(&self) -> Result<()> {
        self.in_turn("resume", async || match self.consumer() {
            Some(consumer) => {
                consumer.resume();
                Ok(())
            }
            None => {
                let error = Error::new(ErrorKind::InvalidState, "resume");
                Err(error.with_context("it was never run"))
            }
        })
        .await
    }

    async fn stop(&self) -> Result<()> {
        let deadline = Instant::now() + STOP_TIMEOUT;
        self.closed.store(true, Ordering::Release);
        self.closing.notify_waiters();
        let control = tokio::time::timeout_at(deadline.into(), self.control.lock()).await;
        let Ok(_control) = control else { return Err(self.named(error::timed_out("stop"))) };
        // The consumer first: what it still settles goes by the producer.
        let stopped = match self.consumer() {
            Some(consumer) => consumer.stop(deadline).await,
            None => Ok(()),
        };
        *lock(&self.consumer) = None;
        let (hub, inspector) = (Arc::clone(&self.hub), Arc::clone(&self.inspector));
        let closed = connection::on_a_thread("stop", deadline, move || {
            hub.publisher.close(deadline);
            inspector.close();
            Ok(())
        });
        let closed = closed.await;
        stopped.and(closed).map_err(|error| self.named(error))
    }

    async fn state(&self) -> Result<State> {
        self.open("state")?;
        let consumer = self.consumer();
        let mut state = State::new(Arc::clone(&self.hub.pipeline), NAME);
        let config = &self.hub.config;
        let topics = config.topics.iter().chain(config.partitions.keys());
        let mut topics: Vec<_> = topics.map(String::as_str).collect();
        if topics.is_empty() {
            topics.extend(config.topic.as_deref());
        }
        state.queue = topics.join(",").into();
        state.priority = self.hub.priority;
        state.ready = consumer.as_ref().is_some_and(|consumer| consumer.is_ready());
        state.active = consumer.as_ref().map_or(0, |consumer| consumer.active()) as u64;
        let leases = consumer.map(|consumer| consumer.leases()).unwrap_or_default();
        let (hub, inspector) = (Arc::clone(&self.hub), Arc::clone(&self.inspector));
        let deadline = Instant::now() + STATE_TIMEOUT;
        let figures = connection::on_a_thread("state", deadline, move || {
            inspector.figures(&hub, &leases, deadline)
        });
        let figures = figures.await.map_err(|error| self.named(error))?;
        (state.reserved, state.delayed) = (figures.reserved, figures.delayed);
        state.last_error = self.hub.health.last_error();
        Ok(state)
    }
}
