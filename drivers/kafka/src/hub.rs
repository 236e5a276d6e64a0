//! What the parts of one pipeline share.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use jobs_core::{Capabilities, Error, Health, Message};
use rdkafka::producer::Producer as _;

use crate::codec::{self, Record, Sender, Target};
use crate::config::KafkaConfig;
use crate::delays::{self, Delays};
use crate::error::closed;
use crate::publisher::{Letter, Publisher, SendError};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same failure, told to somebody else.
pub(crate) fn retold(error: &Error, operation: &'static str) -> Error {
    let told = Error::new(error.kind(), operation).with_context(error.to_string());
    if error.is_retryable() { told.transient() } else { told }
}

/// Wakes a thread that [waits](Self::wait).
#[derive(Debug, Default)]
pub(crate) struct Wake(Mutex<Option<Thread>>);

impl Wake {
    /// The calling thread is the one that waits from now on.
    pub(crate) fn is_mine(&self) {
        *lock(&self.0) = Some(std::thread::current());
    }

    pub(crate) fn wake(&self) {
        if let Some(thread) = &*lock(&self.0) {
            thread.unpark();
        }
    }

    /// Waits until woken, also if that was before, or for that long.
    pub(crate) fn wait(time: Duration) {
        std::thread::park_timeout(time);
    }
}

#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) pipeline: Arc<str>,
    pub(crate) priority: i64,
    pub(crate) config: Arc<KafkaConfig>,
    /// Where messages go that name none.
    pub(crate) topic: Option<Arc<str>>,
    pub(crate) capabilities: Arc<Capabilities>,
    pub(crate) publisher: Publisher,
    pub(crate) delays: Option<Arc<Delays>>,
    pub(crate) health: Arc<Health>,
    /// The thread that fetches.
    pub(crate) session: Wake,
    /// The thread that commits.
    pub(crate) keeper: Wake,
    /// True while the session waits for a credit, or for jobs to end.
    starving: AtomicBool,
    /// Letters that cannot be sent yet: the producer is full, or the delay topic not made.
    outbox: Mutex<Vec<Letter>>,
    /// Copies on their way that settle something.
    copies: AtomicUsize,
}

impl Hub {
    pub(crate) fn new(
        pipeline: Arc<str>,
        priority: i64,
        config: Arc<KafkaConfig>,
        capabilities: Capabilities,
        publisher: Publisher,
        health: Arc<Health>,
    ) -> Self {
        let delayed = config.topic.as_deref().filter(|_| capabilities.delay.is_available());
        let delays = delayed
            .and_then(|topic| delays::topic(&config.group, topic))
            .map(|topic| Arc::new(Delays::new(topic)));
        Self {
            pipeline,
            priority,
            topic: config.topic.as_deref().map(Arc::from),
            config,
            capabilities: Arc::new(capabilities),
            publisher,
            delays,
            health,
            session: Wake::default(),
            keeper: Wake::default(),
            starving: AtomicBool::new(false),
            outbox: Mutex::default(),
            copies: AtomicUsize::new(0),
        }
    }

    pub(crate) fn sender(&self) -> Sender<'_> {
        Sender { pipeline: &self.pipeline, priority: self.priority }
    }

    /// What is produced for a message, and where: into the delay topic if it is to wait.
    pub(crate) fn address(
        &self,
        message: &Message,
        attempt: u32,
        topic: Arc<str>,
        partition: Option<i32>,
    ) -> (Arc<str>, Option<i32>, Record) {
        let record = codec::encode(message, self.sender(), attempt);
        let delay = delays::millis(message.delay());
        match &self.delays {
            Some(delays) if delay > 0 => {
                let target = Target { topic: (*topic).to_owned(), partition };
                let due = delays::now().saturating_add(delay);
                let record = codec::delayed(record, &target, due);
                (delays.topic.as_str().into(), Some(delays::level(delay)), record)
            }
            _ => (topic, partition, record),
        }
    }

    /// The session begins to wait for a credit. It has to look once more after this.
    pub(crate) fn starve(&self) {
        self.starving.store(true, Ordering::SeqCst);
    }

    /// A credit or a place is free, or a job came back.
    pub(crate) fn feed(&self) {
        if self.starving.load(Ordering::SeqCst) && self.starving.swap(false, Ordering::SeqCst) {
            self.session.wake();
        }
    }

    /// Sends a copy that settles something, now or as soon as it can be.
    pub(crate) fn post(&self, letter: Letter) {
        if self
            .delays
            .as_ref()
            .is_some_and(|delays| *delays.topic == *letter.topic && !delays.exist())
        {
            lock(&self.outbox).push(letter);
            return self.keeper.wake();
        }
        match self.publisher.send(letter) {
            Ok(()) => {}
            Err((SendError::Refused(error), letter)) => letter.fail(error),
            Err((SendError::Full(_), letter)) => {
                lock(&self.outbox).push(letter);
                self.keeper.wake();
            }
        }
    }

    /// Sends what could not be sent before. Blocks while the delay topic is made.
    pub(crate) fn post_again(&self) {
        let waiting = std::mem::take(&mut *lock(&self.outbox));
        if waiting.is_empty() {
            return;
        }
        let is_delayed = |letter: &Letter| {
            self.delays.as_ref().is_some_and(|delays| *delays.topic == *letter.topic)
        };
        if let Some(delays) = self.delays.as_ref().filter(|_| waiting.iter().any(is_delayed)) {
            let deadline = Instant::now() + self.config.connect_timeout;
            let made = self
                .publisher
                .producer("settle")
                .and_then(|producer| delays.ensure(producer.client(), &self.config, deadline));
            if let Err(error) = made {
                self.health.met(&error);
                for letter in waiting {
                    match is_delayed(&letter) {
                        true => letter.fail(retold(&error, "push")),
                        false => self.post(letter),
                    }
                }
                return;
            }
            self.session.wake();
        }
        waiting.into_iter().for_each(|letter| self.post(letter));
    }

    pub(crate) fn has_letters(&self) -> bool {
        !lock(&self.outbox).is_empty()
    }

    /// Fails what could not be sent.
    pub(crate) fn give_up_posting(&self) {
        let waiting = std::mem::take(&mut *lock(&self.outbox));
        waiting.into_iter().for_each(|letter| letter.fail(closed("settle")));
    }

    pub(crate) fn copy_begun(&self) {
        self.copies.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn copy_ended(&self) {
        self.copies.fetch_sub(1, Ordering::AcqRel);
        self.session.wake();
    }

    /// Waits until the copies that are on their way have settled what they are to settle.
    pub(crate) fn copies_ended(&self, deadline: Instant) -> bool {
        while self.copies.load(Ordering::Acquire) > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            Wake::wait(left.min(Duration::from_millis(100)));
        }
        true
    }
}
