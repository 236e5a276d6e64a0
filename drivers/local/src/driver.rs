//! The mapping of the contract onto a queue in a file.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jobs_core::{
    Capabilities, Driver, Error, ErrorKind, Inlet, Message, Pipeline, Result, State, async_trait,
};
use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::NAME;
use crate::codec::NewJob;
use crate::config::LocalConfig;
use crate::consumers::Consumer;
use crate::database::Database;
use crate::error::{Fault, timed_out};
use crate::inbox::{Call, Claim, Inbox, Push, Write};
use crate::receipts::Receipts;

/// Most messages of a batch in one transaction.
const BATCH: usize = 1_024;
/// Most bytes of them, unless one message has more.
const BATCH_BYTES: usize = 8 << 20;
/// How long each step of a stop may take.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A pipeline's part in its file.
#[derive(Debug)]
enum Held {
    Shared(Arc<Database>),
    /// No other pipeline has it: it is being closed.
    Last(Database),
    Nothing,
}

impl Held {
    /// Gives the file up to the others, if there are others.
    fn part(&mut self) {
        *self = match std::mem::replace(self, Self::Nothing) {
            Self::Shared(database) => Arc::into_inner(database).map_or(Self::Nothing, Self::Last),
            held => held,
        };
    }
}

/// What a pipeline that was run consumes with.
#[derive(Clone, Debug)]
struct Consuming {
    id: u64,
    inlet: Arc<Inlet>,
}

/// One pipeline on a queue.
#[derive(Debug)]
pub(crate) struct LocalDriver {
    pipeline: Arc<str>,
    priority: i64,
    config: LocalConfig,
    capabilities: Capabilities,
    queue: i64,
    inbox: Arc<Inbox>,
    /// Held through run, pause, resume and stop, so that they follow one another.
    database: Mutex<Held>,
    consumer: std::sync::Mutex<Option<Consuming>>,
    closed: AtomicBool,
    /// Ends pushes that wait.
    closing: CancellationToken,
}

impl LocalDriver {
    pub(crate) fn new(
        pipeline: &Pipeline,
        config: LocalConfig,
        database: Arc<Database>,
        queue: i64,
    ) -> Self {
        Self {
            pipeline: pipeline.shared_name(),
            priority: pipeline.priority(),
            capabilities: config.capabilities(),
            config,
            queue,
            inbox: Arc::clone(&database.inbox),
            database: Mutex::new(Held::Shared(database)),
            consumer: std::sync::Mutex::default(),
            closed: AtomicBool::new(false),
            closing: CancellationToken::new(),
        }
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

    fn admit(&self, message: &Message) -> Result<()> {
        self.open("push")?;
        self.capabilities.admit(message).map_err(|error| self.named(error))
    }

    fn consuming(&self) -> Option<Consuming> {
        self.consumer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_consuming(&self, consuming: Option<Consuming>) -> Option<Consuming> {
        let mut consumer = self.consumer.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *consumer, consuming)
    }

    /// Stores messages in one transaction.
    async fn store(&self, jobs: Vec<NewJob>, deadline: Instant) -> Result<(), Fault> {
        let bytes = jobs.iter().map(NewJob::size).sum();
        let room = tokio::select! {
            room = timeout_at(deadline, self.inbox.room(bytes)) => room,
            () = self.closing.cancelled() => return Err(ErrorKind::Closed.into()),
        };
        let room = room.map_err(|_| self.late())?;
        let (reply, mut answer) = oneshot::channel();
        let claim = Claim::default();
        let push = Push { claim: claim.clone(), queue: self.queue, jobs, reply, _room: room };
        if self.inbox.write(Write::Push(push)).is_err() {
            return Err(ErrorKind::Closed.into());
        }
        match timeout_at(deadline, &mut answer).await {
            Ok(Ok(stored)) => stored,
            // The writer ended with it, before or after.
            Ok(Err(_)) => Err(Fault::from(ErrorKind::Closed).maybe_stored()),
            Err(_) if claim.take() => Err(self.late()),
            Err(_) => Err(self.late().maybe_stored()),
        }
    }

    fn late(&self) -> Fault {
        let limit = self.config.push_timeout;
        let context = format!("the file was not written for {limit:?} (option `push_timeout`)");
        Fault::new(ErrorKind::Timeout, context).transient()
    }

    fn fault(&self, fault: &Fault, operation: &'static str) -> Error {
        self.named(fault.error(operation))
    }

    /// Asks the writer for something it answers at once.
    async fn ask<T>(
        &self,
        operation: &'static str,
        call: impl FnOnce(oneshot::Sender<T>) -> Call,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.inbox.call(call(reply));
        match timeout(STOP_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(self.error(ErrorKind::Closed, operation)),
            Err(_) => Err(self.named(timed_out(operation))),
        }
    }

    /// Stops fetching, and gives back what nobody popped.
    async fn quiet(&self, operation: &'static str) -> Result<()> {
        let Some(Consuming { id: consumer, inlet }) = self.consuming() else { return Ok(()) };
        inlet.hold();
        self.ask(operation, |reply| Call::Pause { consumer, reply }).await?;
        match timeout(STOP_TIMEOUT, inlet.hold_and_release()).await {
            Ok(released) => released.map_err(|error| self.named(error)),
            Err(_) => Err(self.named(timed_out(operation))),
        }
    }

    /// Ends the consumer, and flushes what was pushed and settled before.
    async fn detach(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        // One that was never run flushes its pushes. The lane is closed here: that drops its jobs,
        // which calls back.
        let consumer = self.set_consuming(None).map_or(0, |consuming| consuming.id);
        if self.inbox.write(Write::Detach { consumer, reply: Some(reply) }).is_err() {
            return Ok(());
        }
        match timeout(STOP_TIMEOUT, answer).await {
            Ok(Ok(flushed)) => flushed.map_err(|fault| self.fault(&fault, "stop")),
            Ok(Err(_)) => Ok(()),
            Err(_) => Err(self.named(timed_out("stop"))),
        }
    }
}

#[async_trait]
impl Driver for LocalDriver {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn push(&self, message: Message) -> Result<()> {
        self.admit(&message)?;
        let deadline = Instant::now() + self.config.push_timeout;
        let stored = self.store(vec![NewJob::new(message, self.priority)], deadline).await;
        stored.map_err(|fault| self.fault(&fault, "push"))
    }

    async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        let deadline = Instant::now() + self.config.push_timeout;
        let mut answers = Vec::with_capacity(messages.len());
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let first = answers.len();
            let (mut jobs, mut bytes) = (Vec::new(), 0);
            while jobs.len() < BATCH
                && bytes < BATCH_BYTES
                && let Some(message) = messages.next()
            {
                let answer = self.admit(&message);
                if answer.is_ok() {
                    jobs.push(NewJob::new(message, self.priority));
                    bytes += jobs.last().map_or(0, NewJob::size);
                }
                answers.push(answer);
            }
            if jobs.is_empty() {
                continue;
            }
            if let Err(fault) = self.store(jobs, deadline).await {
                let failed = answers[first..].iter_mut().filter(|answer| answer.is_ok());
                failed.for_each(|answer| *answer = Err(self.fault(&fault, "push")));
            }
        }
        answers
    }

    async fn run(&self, inlet: Inlet) -> Result<()> {
        let _serialised = self.database.lock().await;
        self.open("run")?;
        if self.consuming().is_some() {
            let error = self.error(ErrorKind::InvalidState, "run");
            return Err(error.with_context("it was run before"));
        }
        inlet.grant(self.config.prefetch.get());
        let (id, inlet) = (self.inbox.number(), Arc::new(inlet));
        self.set_consuming(Some(Consuming { id, inlet: Arc::clone(&inlet) }));
        let receipts =
            Receipts { inbox: Arc::clone(&self.inbox), capabilities: self.capabilities.clone() };
        let consumer = Consumer {
            id,
            queue: self.queue,
            inlet,
            acknowledger: Arc::new(receipts),
            max_lease: self.config.max_lease,
            paused: false,
        };
        let attached = self.ask("run", |reply| Call::Attach { consumer, reply }).await;
        if attached.is_err() {
            // It may be attached yet: what it gets goes back, and it can be run again.
            drop(self.set_consuming(None));
            let _ = self.inbox.write(Write::Detach { consumer: id, reply: None });
        }
        attached
    }

    async fn pause(&self) -> Result<()> {
        let _serialised = self.database.lock().await;
        self.open("pause")?;
        self.quiet("pause").await
    }

    async fn resume(&self) -> Result<()> {
        let _serialised = self.database.lock().await;
        self.open("resume")?;
        let Some(Consuming { id: consumer, .. }) = self.consuming() else {
            let error = self.error(ErrorKind::InvalidState, "resume");
            return Err(error.with_context("it was never run"));
        };
        self.ask("resume", |reply| Call::Resume { consumer, reply }).await
    }

    async fn stop(&self) -> Result<()> {
        let mut database = self.database.lock().await;
        self.closed.store(true, Ordering::Release);
        self.closing.cancel();
        if matches!(*database, Held::Nothing) {
            return Ok(());
        }
        let quiet = self.quiet("stop").await;
        let detached = self.detach().await;
        database.part();
        // Kept until it is closed: a stop that was dropped is gone on with by the next.
        if let Held::Last(last) = &mut *database {
            last.close(STOP_TIMEOUT).await.map_err(|error| self.named(error))?;
        }
        *database = Held::Nothing;
        quiet.and(detached)
    }

    async fn state(&self) -> Result<State> {
        self.open("state")?;
        let (queue, consumer) = (self.queue, self.consuming().map(|c| c.id));
        let figures = self.ask("state", |reply| Call::State { queue, consumer, reply }).await?;
        let figures = figures.map_err(|fault| self.fault(&fault, "state"))?;
        let mut state = State::new(Arc::clone(&self.pipeline), NAME);
        state.queue = self.config.queue.as_str().into();
        state.priority = self.priority;
        state.ready = figures.ready;
        state.active = figures.active as u64;
        state.delayed = Some(figures.delayed);
        state.reserved = Some(figures.reserved);
        state.in_flight = Some(figures.in_flight);
        state.dead = Some(figures.dead);
        state.last_error = figures.last_error;
        Ok(state)
    }
}

/// A driver dropped without a stop is a consumer that died: its jobs go back.
impl Drop for LocalDriver {
    fn drop(&mut self) {
        if let Some(Consuming { id, inlet }) = self.set_consuming(None) {
            drop(inlet);
            let _ = self.inbox.write(Write::Detach { consumer: id, reply: None });
        }
    }
}
