//! The mapping of the contract onto a queue in a file.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
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
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// One pipeline on a queue.
#[derive(Debug)]
pub(crate) struct LocalDriver {
    pipeline: Arc<str>,
    priority: i64,
    config: LocalConfig,
    capabilities: Capabilities,
    queue: i64,
    inbox: Arc<Inbox>,
    /// Held through run, pause, resume and stop, so that they follow one another; none once stopped.
    database: Mutex<Option<Arc<Database>>>,
    consumer: OnceLock<u64>,
    inlet: std::sync::Mutex<Option<Arc<Inlet>>>,
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
            database: Mutex::new(Some(database)),
            consumer: OnceLock::new(),
            inlet: std::sync::Mutex::default(),
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

    fn inlet(&self) -> Option<Arc<Inlet>> {
        self.inlet.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn set_inlet(&self, inlet: Option<Arc<Inlet>>) {
        let before = std::mem::replace(
            &mut *self.inlet.lock().unwrap_or_else(std::sync::PoisonError::into_inner),
            inlet,
        );
        // Outside the lock: closing the lane drops its jobs, and that calls back.
        drop(before);
    }

    /// Stores messages in one transaction.
    async fn store(&self, jobs: Vec<NewJob>, deadline: Instant) -> Result<()> {
        let bytes = jobs.iter().map(NewJob::size).sum();
        let room = tokio::select! {
            room = timeout_at(deadline, self.inbox.room(bytes)) => room,
            () = self.closing.cancelled() => return Err(self.error(ErrorKind::Closed, "push")),
        };
        let room = room.map_err(|_| self.late("push"))?;
        let (reply, mut answer) = oneshot::channel();
        let claim = Claim::default();
        let push = Push { claim: claim.clone(), queue: self.queue, jobs, reply, _room: room };
        if self.inbox.write(Write::Push(push)).is_err() {
            return Err(self.error(ErrorKind::Closed, "push"));
        }
        match timeout_at(deadline, &mut answer).await {
            Ok(Ok(stored)) => stored.map_err(|fault| self.fault(&fault, "push")),
            // The writer ended with it, before or after.
            Ok(Err(_)) => Err(self.error(ErrorKind::Closed, "push").maybe_stored()),
            Err(_) if claim.take() => Err(self.late("push")),
            Err(_) => Err(self.late("push").maybe_stored()),
        }
    }

    fn late(&self, operation: &'static str) -> Error {
        let limit = self.config.push_timeout;
        let context = format!("the file was not written for {limit:?} (option `push_timeout`)");
        self.named(timed_out(operation)).with_context(context)
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
        let (Some(consumer), Some(inlet)) = (self.consumer.get().copied(), self.inlet()) else {
            return Ok(());
        };
        inlet.hold();
        self.ask(operation, |reply| Call::Pause { consumer, reply }).await?;
        match timeout(STOP_TIMEOUT, inlet.hold_and_release()).await {
            Ok(released) => released.map_err(|error| self.named(error)),
            Err(_) => Err(self.named(timed_out(operation))),
        }
    }

    /// Ends the consumer, and flushes what was pushed and settled before.
    async fn detach(&self) -> Result<()> {
        self.set_inlet(None);
        let (reply, answer) = oneshot::channel();
        // One that was never run flushes its pushes.
        let consumer = self.consumer.get().copied().unwrap_or(0);
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
        self.store(vec![NewJob::new(message, self.priority)], deadline).await
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
            if let Err(error) = self.store(jobs, deadline).await {
                let failed = answers[first..].iter_mut().filter(|answer| answer.is_ok());
                failed.for_each(|answer| *answer = Err(self.again(&error)));
            }
        }
        answers
    }

    async fn run(&self, inlet: Inlet) -> Result<()> {
        let _serialised = self.database.lock().await;
        self.open("run")?;
        if self.consumer.get().is_some() {
            let error = self.error(ErrorKind::InvalidState, "run");
            return Err(error.with_context("it was run before"));
        }
        inlet.grant(self.config.prefetch.get());
        let (id, inlet) = (self.inbox.number(), Arc::new(inlet));
        self.consumer.set(id).expect("checked above, under the lock");
        self.set_inlet(Some(Arc::clone(&inlet)));
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
        self.ask("run", |reply| Call::Attach { consumer, reply }).await
    }

    async fn pause(&self) -> Result<()> {
        let _serialised = self.database.lock().await;
        self.open("pause")?;
        self.quiet("pause").await
    }

    async fn resume(&self) -> Result<()> {
        let _serialised = self.database.lock().await;
        self.open("resume")?;
        let Some(consumer) = self.consumer.get().copied() else {
            let error = self.error(ErrorKind::InvalidState, "resume");
            return Err(error.with_context("it was never run"));
        };
        self.ask("resume", |reply| Call::Resume { consumer, reply }).await
    }

    async fn stop(&self) -> Result<()> {
        let mut database = self.database.lock().await;
        self.closed.store(true, Ordering::Release);
        self.closing.cancel();
        if database.is_none() {
            return Ok(());
        }
        let quiet = self.quiet("stop").await;
        let detached = self.detach().await;
        let closed = match database.take().and_then(Arc::into_inner) {
            Some(last) => last.close(STOP_TIMEOUT).await.map_err(|error| self.named(error)),
            None => Ok(()),
        };
        quiet.and(detached).and(closed)
    }

    async fn state(&self) -> Result<State> {
        self.open("state")?;
        let (queue, consumer) = (self.queue, self.consumer.get().copied());
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

impl LocalDriver {
    /// The same error for another message of a batch.
    fn again(&self, error: &Error) -> Error {
        let mut again = self.error(error.kind(), "push").with_context(error.to_string());
        if error.is_retryable() {
            again = again.transient();
        }
        if error.may_be_stored() { again.maybe_stored() } else { again }
    }
}

/// A driver dropped without a stop is a consumer that died: its jobs go back.
impl Drop for LocalDriver {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.get().copied()
            && self.database.get_mut().is_some()
        {
            self.set_inlet(None);
            let _ = self.inbox.write(Write::Detach { consumer, reply: None });
        }
    }
}
