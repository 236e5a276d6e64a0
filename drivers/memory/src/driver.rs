//! The mapping of the contract onto a queue in this process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use jobs_core::{
    Capabilities, Driver, Error, ErrorKind, Inlet, Message, Pipeline, Result, State, async_trait,
};
use tokio::sync::Mutex;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::NAME;
use crate::config::MemoryConfig;
use crate::storage::Storage;

/// One pipeline on a queue.
#[derive(Debug)]
pub(crate) struct MemoryDriver {
    pipeline: Arc<str>,
    priority: i64,
    config: MemoryConfig,
    capabilities: Capabilities,
    storage: Arc<Storage>,
    /// Held through run, pause, resume and stop, so that they follow one another; none once stopped.
    timer: Mutex<Option<AbortOnDropHandle<()>>>,
    consumer: OnceLock<u64>,
    closed: AtomicBool,
    /// Ends pushes that wait for room.
    closing: CancellationToken,
}

impl MemoryDriver {
    pub(crate) fn new(pipeline: &Pipeline, config: MemoryConfig, storage: Arc<Storage>) -> Self {
        let timer = AbortOnDropHandle::new(tokio::spawn(Arc::clone(&storage).run_timer()));
        Self {
            pipeline: pipeline.shared_name(),
            priority: pipeline.priority(),
            capabilities: config.capabilities(),
            config,
            storage,
            timer: Mutex::new(Some(timer)),
            consumer: OnceLock::new(),
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

    /// Stores messages; waits for room, at most until the deadline or the stop. The first wait of a
    /// call sets its deadline, so that a push that need not wait asks no clock.
    async fn store<M>(&self, messages: M, deadline: &mut Option<Instant>) -> Result<()>
    where
        M: ExactSizeIterator<Item = (Message, i64)> + Send,
    {
        let Err(messages) = self.storage.try_store(messages) else { return Ok(()) };
        let deadline = deadline.get_or_insert_with(|| Instant::now() + self.config.push_timeout);
        let stored = timeout_at(*deadline, self.storage.store(messages));
        tokio::select! {
            stored = stored => stored.map_err(|_| self.no_room(ErrorKind::Throttled)),
            () = self.closing.cancelled() => Err(self.no_room(ErrorKind::Closed)),
        }
    }

    /// `Throttled` because the queue stayed full, or `Closed`.
    fn no_room(&self, kind: ErrorKind) -> Error {
        let error = self.error(kind, "push");
        if kind != ErrorKind::Throttled {
            return error;
        }
        let (capacity, limit) = (self.config.capacity, self.config.push_timeout);
        error
            .with_context(format!("the queue still held {capacity} jobs after {limit:?}"))
            .transient()
    }
}

#[async_trait]
impl Driver for MemoryDriver {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.clone()
    }

    async fn push(&self, message: Message) -> Result<()> {
        // A producer that always finds room would never let go of its thread.
        consume_budget().await;
        self.admit(&message)?;
        self.store(std::iter::once((message, self.priority)), &mut None).await
    }

    async fn push_batch(&self, messages: Vec<Message>) -> Vec<Result<()>> {
        // A part of the queue at a time: a batch larger than the queue would wait for ever.
        let most = (self.config.capacity.get() / 8).clamp(1, 1 << 16);
        consume_budget().await;
        let mut deadline = None;
        let mut answers = Vec::with_capacity(messages.len());
        let mut messages = messages.into_iter().peekable();
        while messages.peek().is_some() {
            let first = answers.len();
            let mut admitted = Vec::with_capacity(most.min(messages.len()));
            for message in messages.by_ref().take(most) {
                let answer = self.admit(&message);
                if answer.is_ok() {
                    admitted.push((message, self.priority));
                }
                answers.push(answer);
            }
            if let Err(error) = self.store(admitted.into_iter(), &mut deadline).await {
                let refused = answers[first..].iter_mut().filter(|answer| answer.is_ok());
                refused.for_each(|answer| *answer = Err(self.no_room(error.kind())));
            }
        }
        answers
    }

    async fn run(&self, inlet: Inlet) -> Result<()> {
        let _serialised = self.timer.lock().await;
        self.open("run")?;
        if self.consumer.get().is_some() {
            let error = self.error(ErrorKind::InvalidState, "run");
            return Err(error.with_context("it was run before"));
        }
        inlet.grant(self.config.prefetch.get());
        let consumer = self.storage.attach(Arc::new(inlet));
        self.consumer.set(consumer).expect("checked above, under the lock");
        self.storage.resume(consumer);
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        let _serialised = self.timer.lock().await;
        self.open("pause")?;
        match self.consumer.get().and_then(|consumer| self.storage.pause(*consumer)) {
            Some(inlet) => inlet.hold_and_release().await,
            None => Ok(()),
        }
    }

    async fn resume(&self) -> Result<()> {
        let _serialised = self.timer.lock().await;
        self.open("resume")?;
        let Some(consumer) = self.consumer.get() else {
            let error = self.error(ErrorKind::InvalidState, "resume");
            return Err(error.with_context("it was never run"));
        };
        self.storage.resume(*consumer);
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        let mut timer = self.timer.lock().await;
        self.closed.store(true, Ordering::Release);
        self.closing.cancel();
        let mut answer = Ok(());
        if let Some(consumer) = self.consumer.get() {
            if let Some(inlet) = self.storage.pause(*consumer) {
                answer = inlet.hold_and_release().await;
            }
            self.storage.detach(*consumer);
        }
        if let Some(task) = &mut *timer {
            task.abort();
            // It was cancelled just now: there is nothing else it could answer.
            let _ = task.await;
            *timer = None;
            self.storage.wake_timers();
        }
        answer
    }

    async fn state(&self) -> Result<State> {
        self.open("state")?;
        let figures = self.storage.figures(self.consumer.get().copied());
        let mut state = State::new(Arc::clone(&self.pipeline), NAME);
        state.queue = self.config.queue.as_str().into();
        state.priority = self.priority;
        state.ready = figures.ready;
        state.active = figures.active as u64;
        state.delayed = Some(figures.delayed as u64);
        state.reserved = Some(figures.reserved as u64);
        state.in_flight = Some(figures.in_flight as u64);
        state.dead = Some(figures.dead as u64);
        state.last_error = figures.last_error;
        Ok(state)
    }
}

/// A driver dropped without a stop is a consumer that died: its jobs go back.
impl Drop for MemoryDriver {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.get() {
            self.storage.detach(*consumer);
        }
        *self.timer.get_mut() = None;
        self.storage.wake_timers();
    }
}
