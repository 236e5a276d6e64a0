//! The mapping of the contract onto RabbitMQ.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use jobs_core::{
    Capabilities, Driver, Error, ErrorKind, Inlet, Message, Pipeline, Result, State, async_trait,
};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::NAME;
use crate::config::AmqpConfig;
use crate::connection::Connections;
use crate::consumer::Consumer;
use crate::error::timed_out;
use crate::health::Health;
use crate::inspector::Inspector;
use crate::outbox::Outbox;
use crate::publisher::Publisher;
use crate::session::Context;
use crate::topology::{Side, Topology};

/// How long a stop waits for a broker that does not answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a question about the state may take.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);

/// One pipeline at one broker.
#[derive(Debug)]
pub(crate) struct AmqpDriver {
    pipeline: Arc<str>,
    priority: i64,
    config: Arc<AmqpConfig>,
    capabilities: Arc<Capabilities>,
    health: Arc<Health>,
    connections: Arc<Connections>,
    topology: Arc<Topology>,
    inspector: Arc<Inspector>,
    outbox: Arc<Outbox>,
    /// Held through run, pause, resume and stop, so that they follow one another. True once the
    /// connections are left.
    control: Mutex<bool>,
    /// Ends run, pause and resume.
    stopping: CancellationToken,
    consumer: std::sync::Mutex<Option<Arc<Consumer>>>,
    /// Fetching: neither paused nor never run.
    ready: AtomicBool,
}

impl AmqpDriver {
    /// Connects, and declares what the configuration says, until the deadline.
    pub(crate) async fn connect(
        pipeline: &Pipeline,
        config: &Arc<AmqpConfig>,
        connections: Arc<Connections>,
        capabilities: Capabilities,
        deadline: Instant,
    ) -> Result<Self> {
        let guard = Leave(&connections);
        let with_delays = capabilities.delay.is_available();
        let topology = Arc::new(Topology::new(config));
        let health = Arc::new(Health::default());
        let exclusive = config.queue.as_ref().is_some_and(|queue| queue.exclusive);
        let side = if exclusive { Side::Consuming } else { Side::Publishing };
        let (links, plan) = (Arc::clone(&connections), Arc::clone(&topology));
        let inspector = Arc::new(Inspector::new(links, plan, side));
        let opened = async {
            if exclusive {
                inspector.declare().await?;
            }
            let (links, plan) = (Arc::clone(&connections), Arc::clone(&topology));
            Publisher::connect(links, plan, with_delays, Arc::clone(&health)).await
        };
        let publisher =
            timeout_at(deadline, opened).await.unwrap_or_else(|_| Err(timed_out("connect")))?;
        std::mem::forget(guard);
        let outbox = Arc::new(Outbox {
            pipeline: pipeline.shared_name(),
            priority: pipeline.priority(),
            config: Arc::clone(config),
            topology: Arc::clone(&topology),
            inspector: Arc::clone(&inspector),
            publisher,
        });
        Ok(Self {
            pipeline: pipeline.shared_name(),
            priority: pipeline.priority(),
            config: Arc::clone(config),
            capabilities: Arc::new(capabilities),
            health,
            connections,
            topology,
            inspector,
            outbox,
            control: Mutex::new(false),
            stopping: CancellationToken::new(),
            consumer: std::sync::Mutex::default(),
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
        match self.stopping.is_cancelled() {
            true => Err(self.error(ErrorKind::Closed, operation)),
            false => Ok(()),
        }
    }

    async fn push_by(&self, message: Message, deadline: Instant) -> Result<()> {
        self.open("push")?;
        let admitted = self.capabilities.admit(&message);
        let pushed = match admitted {
            Ok(()) => self.outbox.push(message, deadline).await,
            refused => refused,
        };
        pushed.map_err(|error| self.named(error))
    }

    /// Does one thing after the other, until stopped.
    async fn in_turn<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let work = async {
            let _control = self.control.lock().await;
            self.open(operation)?;
            work.await
        };
        let done = self.stopping.run_until_cancelled(work).await;
        done.unwrap_or_else(|| Err(self.error(ErrorKind::Closed, operation)))
    }

    async fn run_in_turn(&self, inlet: Inlet) -> Result<()> {
        let refused =
            |context| Err(self.error(ErrorKind::InvalidState, "run").with_context(context));
        if self.config.queue.is_none() {
            return refused("it has no `queue`: it can only push");
        }
        if self.consumer().is_some() {
            return refused("it was run before");
        }
        inlet.grant(self.config.prefetch.get().into());
        let context = Context {
            config: Arc::clone(&self.config),
            capabilities: Arc::clone(&self.capabilities),
            connections: Arc::clone(&self.connections),
            topology: Arc::clone(&self.topology),
            outbox: Arc::clone(&self.outbox),
            health: Arc::clone(&self.health),
            inlet: Arc::new(inlet),
            declared: None,
            channels: 0,
        };
        let consumer = Consumer::run(context).await.map_err(|error| self.named(error))?;
        *self.consumer() = Some(Arc::new(consumer));
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    async fn pause_in_turn(&self) -> Result<()> {
        if !self.config.pausable() {
            let error = self.error(ErrorKind::Unsupported, "pause");
            return Err(
                error.with_context("the broker deletes an auto-delete queue without consumer")
            );
        }
        let Some(consumer) = self.consumer().clone() else { return Ok(()) };
        let paused = consumer.pause().await;
        // Also if giving back has failed. A pause that is dropped before is to be called again.
        self.ready.store(false, Ordering::Release);
        paused.map_err(|error| self.named(error))
    }

    async fn resume_in_turn(&self) -> Result<()> {
        let Some(consumer) = self.consumer().clone() else {
            let error = self.error(ErrorKind::InvalidState, "resume");
            return Err(error.with_context("it was never run"));
        };
        // Even if it is ready: a pause that was dropped may have got half way.
        consumer.resume().await.map_err(|error| self.named(error))?;
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    fn consumer(&self) -> MutexGuard<'_, Option<Arc<Consumer>>> {
        self.consumer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn figures(&self, state: &mut State) -> Result<()> {
        if let Some(queue) = &self.config.queue {
            state.reserved = Some(self.inspector.ready(&queue.name).await?);
        }
        if self.capabilities.delay.is_available() {
            state.delayed = Some(self.inspector.delayed().await?);
        }
        Ok(())
    }
}

#[async_trait]
impl Driver for AmqpDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities::clone(&self.capabilities)
    }

    async fn push(&self, message: Message) -> Result<()> {
        self.push_by(message, Instant::now() + self.config.push_timeout).await
    }

    async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        let deadline = Instant::now() + self.config.push_timeout;
        join_all(messages.into_iter().map(|message| self.push_by(message, deadline))).await
    }

    async fn run(&self, inlet: Inlet) -> Result<()> {
        self.in_turn("run", self.run_in_turn(inlet)).await
    }

    async fn pause(&self) -> Result<()> {
        self.in_turn("pause", self.pause_in_turn()).await
    }

    async fn resume(&self) -> Result<()> {
        self.in_turn("resume", self.resume_in_turn()).await
    }

    async fn stop(&self) -> Result<()> {
        let deadline = Instant::now() + STOP_TIMEOUT;
        // What holds the control gives it up.
        self.stopping.cancel();
        let Ok(mut left) = timeout_at(deadline, self.control.lock()).await else {
            return Err(self.named(timed_out("stop")));
        };
        self.ready.store(false, Ordering::Release);
        let mut answer = Ok(());
        // Consuming first: settling a requeue publishes its copy.
        let consumer = self.consumer().clone();
        if let Some(consumer) = consumer {
            answer = consumer.stop(deadline).await;
        }
        self.outbox.publisher.stop(deadline).await;
        self.inspector.delete_on_stop(deadline).await;
        self.inspector.close(deadline).await;
        if !*left {
            *left = true;
            self.connections.leave();
        }
        // Also when it was stopped before: that may have been interrupted here.
        self.connections.close_unused(deadline).await;
        *self.consumer() = None;
        answer.map_err(|error| self.named(error))
    }

    async fn state(&self) -> Result<State> {
        self.open("state")?;
        let mut state = State::new(Arc::clone(&self.pipeline), NAME);
        let queue = self.config.queue.as_ref().map(|queue| queue.name.as_str());
        state.queue = queue.unwrap_or(&self.config.routing_key).into();
        state.priority = self.priority;
        state.ready = self.ready.load(Ordering::Acquire);
        let active = self.consumer().as_ref().map_or(0, |consumer| consumer.inlet().active());
        state.active = active as u64;
        state.last_error = self.health.last_error();
        let figures = self.inspector.until_closed("state", self.figures(&mut state));
        let figures = timeout(STATE_TIMEOUT, figures).await;
        figures.unwrap_or_else(|_| Err(timed_out("state"))).map_err(|error| self.named(error))?;
        Ok(state)
    }
}

/// A driver dropped without a stop is a consumer that died: its jobs go back.
impl Drop for AmqpDriver {
    fn drop(&mut self) {
        if !*self.control.get_mut() {
            self.connections.leave();
        }
    }
}

/// Leaves the connections, unless it is forgotten.
struct Leave<'a>(&'a Connections);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}
