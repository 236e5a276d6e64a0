//! The mapping of the contract onto beanstalkd.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use jobs_core::{
    Capabilities, Driver, Error, ErrorKind, Health, Inlet, Message, Pipeline, Result, State,
    async_trait,
};
use tokio::sync::{Mutex, Notify};

use crate::NAME;
use crate::codec::{self, Terms, server_priority};
use crate::config::{Address, BeanstalkConfig, whole_seconds};
use crate::connection::{Connector, Put};
use crate::consumer::Consumer;
use crate::error::{Reply, timed_out};
use crate::pool::{Company, Crew, Losses, Watch};
use crate::publisher::Publisher;
use crate::strays::Strays;

/// How long a stop waits for a server that does not answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a question about the state may take.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);

/// What the envelope of a copy may have more than that of a first attempt: `"a":4294967295,`.
const ATTEMPT: usize = 15;

/// What the envelope of a message without large headers may have. The exact size is known when it is
/// written.
const ENVELOPE: usize = 256;

#[derive(Debug)]
struct Control {
    watch: Watch,
    /// Of a run that failed.
    former: Option<Arc<Crew>>,
}

/// One pipeline on one tube.
#[derive(Debug)]
pub(crate) struct BeanstalkDriver {
    pipeline: Arc<str>,
    priority: i64,
    config: Arc<BeanstalkConfig>,
    capabilities: Arc<Capabilities>,
    company: Arc<Company>,
    /// The largest body, and that of a first attempt.
    largest: usize,
    max_body: usize,
    publisher: Arc<Publisher>,
    /// Held through run, pause, resume and stop, so that they follow one another.
    control: Mutex<Control>,
    consumer: std::sync::Mutex<Option<Arc<Consumer>>>,
    closed: AtomicBool,
    /// Ends what holds the control.
    closing: Notify,
    /// Fetching: neither paused nor never run.
    ready: AtomicBool,
}

impl BeanstalkDriver {
    /// Connects, and asks the server for its limits.
    pub(crate) async fn connect(
        pipeline: &Pipeline,
        config: BeanstalkConfig,
        strays: &Strays,
    ) -> Result<Self> {
        let deadline = Instant::now() + config.timeout;
        let connector = Connector {
            address: config.addr.clone(),
            timeout: config.timeout,
            tube: config.tube.clone(),
        };
        let connections = config.connections.get();
        let company = Arc::new(Company {
            connector,
            patience: config.push_timeout,
            losses: Losses::new(connections),
            health: Health::new(pipeline.shared_name()),
        });
        strays.admit(&config.addr, connections, deadline).await?;
        let publisher = Publisher::new(&company, connections);
        let closes = Close { publisher: &publisher, address: &config.addr, strays };
        let watch = Watch::start(company.patience);
        watch.over(publisher.crew());
        let stats = publisher.connect(deadline).await?;
        std::mem::forget(closes);

        let mut capabilities = config.capabilities();
        // Without a binlog there is no file of it.
        capabilities.durable &=
            stats.number("binlog-current-index").is_some_and(|file: u64| file > 0);
        let largest = stats.number("max-job-size").unwrap_or(usize::MAX);
        let max_body = largest.saturating_sub(ATTEMPT);
        if largest < usize::MAX {
            capabilities.max_payload = Some(max_body.saturating_sub(ENVELOPE));
        }
        Ok(Self {
            pipeline: pipeline.shared_name(),
            priority: pipeline.priority(),
            config: Arc::new(config),
            capabilities: Arc::new(capabilities),
            company,
            largest,
            max_body,
            publisher: Arc::new(publisher),
            control: Mutex::new(Control { watch, former: None }),
            consumer: std::sync::Mutex::default(),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
            ready: AtomicBool::new(false),
        })
    }

    pub(crate) fn publisher(&self) -> &Arc<Publisher> {
        &self.publisher
    }

    fn error(&self, kind: ErrorKind, operation: &'static str) -> Error {
        self.named(Error::new(kind, operation))
    }

    fn named(&self, error: Error) -> Error {
        error.with_driver(NAME).with_pipeline(Arc::clone(&self.pipeline))
    }

    fn open(&self, operation: &'static str) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(self.error(ErrorKind::Closed, operation)),
            false => Ok(()),
        }
    }

    fn consumer(&self) -> Option<Arc<Consumer>> {
        self.consumer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_consumer(&self, consumer: Option<Arc<Consumer>>) {
        *self.consumer.lock().unwrap_or_else(PoisonError::into_inner) = consumer;
    }

    /// What is put for a message, if it can be.
    fn prepare(&self, message: &Message) -> Result<Put> {
        self.open("push")?;
        self.capabilities.admit(message).map_err(|error| self.named(error))?;
        let own = message.priority().unwrap_or(self.priority);
        let priority = self.config.tube_priority.unwrap_or_else(|| server_priority(own));
        let time_to_run = whole_seconds(self.config.time_to_run);
        let terms = Terms { attempt: 1, priority, time_to_run };
        let body = codec::encode(message, self.priority, terms);
        if body.len() > self.max_body {
            let (most, found) = (self.max_body, body.len());
            let context = format!("at most {most} bytes with its envelope, found {found}");
            let error = self.error(ErrorKind::PayloadTooLarge, "push");
            return Err(error.with_context(context));
        }
        Ok(Put { body, priority, delay: whole_seconds(message.delay()), time_to_run })
    }

    async fn put(&self, puts: Vec<Put>) -> Vec<Result<()>> {
        let deadline = Instant::now() + self.config.push_timeout;
        let mut answers = self.publisher.push(puts, deadline).await;
        for answer in &mut answers {
            let named = std::mem::replace(answer, Ok(())).map_err(|error| self.named(error));
            *answer = named;
        }
        answers
    }

    /// Does one thing after the other, until stopped.
    async fn in_turn<T>(
        &self,
        operation: &'static str,
        work: impl AsyncFnOnce(&mut Control) -> Result<T>,
    ) -> Result<T> {
        let closing = self.closing.notified();
        self.open(operation)?;
        let work = async {
            let mut control = self.control.lock().await;
            self.open(operation)?;
            work(&mut control).await
        };
        tokio::select! {
            done = work => done.map_err(|error| self.named(error)),
            () = closing => Err(self.error(ErrorKind::Closed, operation)),
        }
    }

    async fn run_in_turn(&self, inlet: Inlet, control: &mut Control) -> Result<()> {
        if self.consumer().is_some() {
            let error = Error::new(ErrorKind::InvalidState, "run");
            return Err(error.with_context("it was run before"));
        }
        if let Some(former) = &control.former {
            // Else each attempt on a silent server would leave threads behind.
            let deadline = tokio::time::Instant::now() + self.config.timeout;
            if !former.ended(deadline).await {
                let context = "the connections of an earlier run are not given up yet";
                return Err(timed_out("run").with_context(context));
            }
        }
        inlet.grant(self.config.prefetch.get());
        let mut consumer = Consumer::new(
            &self.config,
            self.priority,
            self.largest,
            &self.capabilities,
            &self.company,
            inlet,
        )?;
        control.watch.over(consumer.crew());
        control.former = Some(Arc::clone(consumer.crew()));
        consumer.begun().await?;
        control.former = None;
        self.set_consumer(Some(Arc::new(consumer)));
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    async fn figures(&self, state: &mut State) -> Result<()> {
        let tube = self.config.tube.clone();
        let deadline = Instant::now() + STATE_TIMEOUT;
        let stats = self.publisher.ask("state", deadline, move |client| {
            match client.stats_tube(&tube) {
                Ok(stats) => Ok(Some(stats)),
                // It comes with its first job or connection, and goes with the last.
                Err(failure) if failure.reply == Reply::NotFound => Ok(None),
                Err(failure) => Err(failure),
            }
        });
        let stats = stats.await?;
        let figure = |name| stats.as_ref().map_or(Some(0), |stats| stats.number(name));
        state.reserved = figure("current-jobs-ready");
        state.delayed = figure("current-jobs-delayed");
        state.in_flight = figure("current-jobs-reserved");
        state.dead = figure("current-jobs-buried");
        Ok(())
    }
}

#[async_trait]
impl Driver for BeanstalkDriver {
    fn capabilities(&self) -> Capabilities {
        Capabilities::clone(&self.capabilities)
    }

    async fn push(&self, message: Message) -> Result<()> {
        let put = self.prepare(&message)?;
        self.put(vec![put]).await.pop().expect("an answer for each put")
    }

    async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        let mut puts = Vec::with_capacity(messages.len());
        let prepare = |message| self.prepare(&message).map(|put| puts.push(put));
        let mut answers: Vec<_> = messages.into_iter().map(prepare).collect();
        let mut stored = self.put(puts).await.into_iter();
        for answer in answers.iter_mut().filter(|answer| answer.is_ok()) {
            *answer = stored.next().expect("an answer for each put");
        }
        answers
    }

    async fn run(&self, inlet: Inlet) -> Result<()> {
        self.in_turn("run", async |control: &mut Control| self.run_in_turn(inlet, control).await)
            .await
    }

    async fn pause(&self) -> Result<()> {
        self.in_turn("pause", async |_: &mut Control| {
            let Some(consumer) = self.consumer() else { return Ok(()) };
            let paused = consumer.pause().await;
            // Also if giving back has failed. A pause that is dropped before is to be called again.
            self.ready.store(false, Ordering::Release);
            paused
        })
        .await
    }

    async fn resume(&self) -> Result<()> {
        self.in_turn("resume", async |_: &mut Control| {
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
        let deadline = tokio::time::Instant::now() + STOP_TIMEOUT;
        // What holds the control gives it up.
        self.closed.store(true, Ordering::Release);
        self.closing.notify_waiters();
        let control = tokio::time::timeout_at(deadline, self.control.lock()).await;
        let Ok(mut control) = control else { return Err(self.named(timed_out("stop"))) };
        self.ready.store(false, Ordering::Release);
        // All at once: a server that is silent to one is silent to the others.
        let consumer = self.consumer();
        let former = control.former.take();
        let (answer, (), _) = tokio::join!(
            async {
                match &consumer {
                    Some(consumer) => consumer.stop(deadline).await,
                    None => Ok(()),
                }
            },
            self.publisher.stop(deadline),
            async {
                match &former {
                    Some(former) => former.ended(deadline).await,
                    None => true,
                }
            }
        );
        self.set_consumer(None);
        control.watch.end().await;
        answer.map_err(|error| self.named(error))
    }

    async fn state(&self) -> Result<State> {
        self.open("state")?;
        let mut state = State::new(Arc::clone(&self.pipeline), NAME);
        state.queue = self.config.tube.as_str().into();
        state.priority = self.priority;
        state.ready = self.ready.load(Ordering::Acquire);
        state.active = self.consumer().map_or(0, |consumer| consumer.active()) as u64;
        self.figures(&mut state).await.map_err(|error| self.named(error))?;
        state.last_error = self.company.health.last_error();
        Ok(state)
    }
}

/// A driver dropped without a stop is a consumer that died: its jobs go back.
impl Drop for BeanstalkDriver {
    fn drop(&mut self) {
        self.publisher.close();
        if let Some(consumer) = self.consumer() {
            consumer.close();
        }
    }
}

/// Closes the publisher of a connection that was not made, unless it is forgotten.
struct Close<'a> {
    publisher: &'a Publisher,
    address: &'a Address,
    strays: &'a Strays,
}

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.publisher.close();
        self.strays.add(self.address, self.publisher.crew());
    }
}
