//! The mapping of the contract onto SQS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jobs_core::{
    Capabilities, Driver, Error, ErrorKind, Health, Inlet, Message, Pipeline, Result, State,
    async_trait,
};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout, timeout_at};

use crate::NAME;
use crate::codec::{Codec, Encoded};
use crate::config::{ENVELOPE, LONGEST_NATIVE_DELAY, SqsConfig};
use crate::connection::{Directory, Link, lock};
use crate::consumer::Consumer;
use crate::delays::{Delays, Hop};
use crate::error::{closed, timed_out};
use crate::outbox::{Dead, Outbox};
use crate::publisher::Sender;
use crate::topology::{Figures, Topology};

/// How long a stop waits at least for a service that does not answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What a stop waits for beyond the end of a request that waits at the service.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// How long a question about the state may take.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);

/// One pipeline on one queue.
#[derive(Debug)]
pub(crate) struct SqsDriver {
    pipeline: Arc<str>,
    priority: i64,
    config: Arc<SqsConfig>,
    capabilities: Arc<Capabilities>,
    health: Arc<Health>,
    link: Arc<Link>,
    url: Arc<str>,
    outbox: Arc<Outbox>,
    /// Held through run, pause, resume and stop, so that they follow one another.
    control: Mutex<()>,
    consumer: std::sync::Mutex<Option<Arc<Consumer>>>,
    closed: AtomicBool,
    /// Ends what holds the control.
    closing: Notify,
    /// Fetching: neither paused nor never run.
    ready: AtomicBool,
}

impl SqsDriver {
    /// Connects, and finds or makes the queues.
    pub(crate) async fn connect(
        pipeline: &Pipeline,
        config: SqsConfig,
        directory: &Directory,
    ) -> Result<Self> {
        let time = config.connect_timeout + config.operation_timeout;
        let connected = async {
            let link = directory.connect(&config).await?;
            let topology = Topology::resolve(&link.client()?, &config).await?;
            Ok((link, topology))
        };
        let connected = timeout(time, connected).await;
        let (link, topology) = connected.unwrap_or_else(|_| Err(timed_out("connect")))?;
        let (config, link) = (Arc::new(config), Arc::new(link));
        let health = Arc::new(Health::new(pipeline.shared_name()));
        let handle = Handle::current();
        let codec = Codec::new(&config, pipeline.priority());
        let sender = |url: String, fifo| Sender::new(&link, &health, url, fifo, handle.clone());
        let delays = Delays::new(&link, &health, &config, handle.clone());
        let mut capabilities = config.capabilities();
        if !delays.are_possible() && capabilities.delay.is_available() {
            capabilities.max_delay = Some(LONGEST_NATIVE_DELAY);
        }
        let max_message = config.max_message().min(topology.max_message.unwrap_or(usize::MAX));
        let max_payload = max_message - ENVELOPE.min(max_message / 2);
        capabilities.max_payload = capabilities.max_payload.map(|most| most.min(max_payload));
        let outbox = Outbox {
            main: sender(topology.queue.url.clone(), topology.queue.fifo),
            delays: Arc::new(delays),
            dead: topology.dead.map(|place| Dead {
                codec: codec.for_queue(place.fifo),
                sender: sender(place.url.clone(), place.fifo),
                url: place.url,
            }),
            codec,
            max_message,
        };
        Ok(Self {
            pipeline: pipeline.shared_name(),
            priority: pipeline.priority(),
            config,
            capabilities: Arc::new(capabilities),
            health,
            link,
            url: topology.queue.url.into(),
            outbox: Arc::new(outbox),
            control: Mutex::default(),
            consumer: std::sync::Mutex::default(),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
            ready: AtomicBool::new(false),
        })
    }

    fn error(&self, kind: ErrorKind, operation: &'static str) -> Error {
        self.named(Error::new(kind, operation))
    }

    fn named(&self, error: Error) -> Error {
        error.with_driver(NAME).with_pipeline(Arc::clone(&self.pipeline))
    }

    fn open(&self, operation: &'static str) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(self.named(closed(operation))),
            false => Ok(()),
        }
    }

    fn consumer(&self) -> Option<Arc<Consumer>> {
        lock(&self.consumer).clone()
    }

    fn prepare(&self, message: &Message) -> Result<(Encoded, Hop)> {
        self.open("push")?;
        self.capabilities.admit(message)?;
        self.outbox.prepare("push", message, 1)
    }

    async fn send_one(&self, message: Message) -> Result<()> {
        let deadline = Instant::now() + self.config.push_timeout;
        let prepared = self.prepare(&message)?;
        drop(message);
        self.outbox.send_one("push", prepared, deadline).await
    }

    /// Pushes what can be pushed. One answer for each, in order.
    async fn send(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        let deadline = Instant::now() + self.config.push_timeout;
        let mut prepared = Vec::with_capacity(messages.len());
        let mut prepare = |message: &Message| {
            prepared.push(self.prepare(message)?);
            Ok(())
        };
        let mut answers: Vec<Result<()>> = messages.iter().map(&mut prepare).collect();
        drop(messages);
        let mut stored = self.outbox.send("push", prepared, deadline).await.into_iter();
        for answer in &mut answers {
            let own = std::mem::replace(answer, Ok(()));
            let own = own.and_then(|()| stored.next().expect("an answer for each"));
            *answer = own.map_err(|error| self.named(error));
        }
        answers
    }

    /// Does one thing after the other, until stopped.
    async fn in_turn<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let closing = self.closing.notified();
        self.open(operation)?;
        let work = async {
            let _control = self.control.lock().await;
            self.open(operation)?;
            work.await
        };
        tokio::select! {
            done = work => done.map_err(|error| self.named(error)),
            () = closing => Err(self.named(closed(operation))),
        }
    }

    fn run_in_turn(&self, inlet: Inlet) -> Result<()> {
        let mut consumer = lock(&self.consumer);
        if consumer.is_some() {
            let error = self.error(ErrorKind::InvalidState, "run");
            drop(consumer);
            drop(inlet);
            return Err(error.with_context("it was run before"));
        }
        inlet.grant(self.config.prefetch.get());
        *consumer = Some(Arc::new(Consumer::start(
            &self.config,
            &self.capabilities,
            &self.health,
            &self.link,
            &self.outbox,
            &self.url,
            inlet,
        )));
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    async fn figures(&self, state: &mut State) -> Result<()> {
        let client = self.link.client()?;
        let dead = async {
            match &self.outbox.dead {
                Some(dead) => Figures::of(&client, &dead.url).await,
                None => Ok(Figures::default()),
            }
        };
        let delays = async {
            match self.outbox.delays.url() {
                Some(url) => Figures::of(&client, url).await.map(Some),
                None => Ok(None),
            }
        };
        let (own, dead, delays) = tokio::join!(Figures::of(&client, &self.url), dead, delays);
        let (own, delays) = (own?, delays?);
        state.reserved = own.ready;
        state.in_flight = own.in_flight;
        state.delayed = match delays {
            Some(delays) => own.delayed.zip(delays.total()).map(|(own, others)| own + others),
            None => own.delayed,
        };
        state.dead = dead?.ready;
        Ok(())
    }
}

#[async_trait]
impl Driver for SqsDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities::clone(&self.capabilities)
    }

    async fn push(&self, message: Message) -> Result<()> {
        self.send_one(message).await.map_err(|error| self.named(error))
    }

    async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        self.send(messages).await
    }

    async fn run(&self, inlet: Inlet) -> Result<()> {
        self.in_turn("run", async { self.run_in_turn(inlet) }).await
    }

    async fn pause(&self) -> Result<()> {
        self.in_turn("pause", async {
            let Some(consumer) = self.consumer() else { return Ok(()) };
            let paused = consumer.pause().await;
            // Also if giving back has failed. A pause that is dropped before is to be called again.
            self.ready.store(false, Ordering::Release);
            paused
        })
        .await
    }

    async fn resume(&self) -> Result<()> {
        self.in_turn("resume", async {
            let Some(consumer) = self.consumer() else {
                let error = Error::new(ErrorKind::InvalidState, "resume");
                return Err(error.with_context("it was never run"));
            };
            // Even if it is ready: a pause that was dropped may have got half way.
            consumer.resume();
            self.ready.store(true, Ordering::Release);
            Ok(())
        })
        .await
    }

    async fn stop(&self) -> Result<()> {
        let time = STOP_TIMEOUT.max(self.config.wait_time + STOP_MARGIN);
        let deadline = Instant::now() + time;
        // What holds the control gives it up.
        self.closed.store(true, Ordering::Release);
        self.closing.notify_waiters();
        let control = timeout_at(deadline, self.control.lock()).await;
        let Ok(_control) = control else { return Err(self.named(timed_out("stop"))) };
        self.ready.store(false, Ordering::Release);
        // Consuming first: settling a requeue stores its copy.
        let answer = match self.consumer() {
            Some(consumer) => consumer.stop(deadline).await,
            None => Ok(()),
        };
        *lock(&self.consumer) = None;
        self.outbox.close(deadline).await;
        self.link.close();
        answer.map_err(|error| self.named(error))
    }

    async fn state(&self) -> Result<State> {
        self.open("state")?;
        let mut state = State::new(Arc::clone(&self.pipeline), NAME);
        state.queue = Arc::clone(&self.url);
        state.priority = self.priority;
        state.ready = self.ready.load(Ordering::Acquire);
        state.active = self.consumer().map_or(0, |consumer| consumer.active()) as u64;
        let figures = timeout(STATE_TIMEOUT, self.figures(&mut state)).await;
        let figures = figures.unwrap_or_else(|_| Err(timed_out("state")));
        figures.map_err(|error| self.named(error))?;
        state.last_error = self.health.last_error();
        Ok(state)
    }
}

/// A driver dropped without a stop is a consumer that died: its jobs come back.
impl Drop for SqsDriver {
    fn drop(&mut self) {
        self.outbox.abort();
        self.link.close();
    }
}
