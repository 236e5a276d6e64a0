//! Random work for a while, with books kept on every message.

mod victim;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use jobs_core::{Capabilities, Error, ErrorKind, Job, Message, Outcome, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::{Fault, Fixture, Harness, Ledger, TestPipeline, Totals, poll_times};

pub use victim::{Victim, soak_killed, toil, work_off};

const PRODUCERS: usize = 4;
const WORKERS: usize = 4;
const CONSUMERS: usize = 2;
const PREFETCH: u32 = 50;
/// Messages that are not settled yet: producers wait beyond.
const OPEN: usize = 2_000;
/// How long a push that is going to be dropped may take.
const PATIENCE: Duration = Duration::from_millis(10);
/// From this attempt on a job is acknowledged, so that every job ends.
const LAST_ATTEMPT: u32 = 6;

/// What to run, and for how long.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Soak {
    /// How long messages are pushed.
    pub duration: Duration,
    /// The same seed makes the same decisions; their order in time is the machine's.
    pub seed: u64,
    /// What happens to the broker meanwhile, again and again.
    pub faults: Vec<Fault>,
}

impl Soak {
    /// A soak without faults.
    #[must_use]
    pub fn new(duration: Duration, seed: u64) -> Self {
        Self { duration, seed, faults: Vec::new() }
    }

    /// Causes these faults meanwhile.
    #[must_use]
    pub fn with_faults(mut self, faults: Vec<Fault>) -> Self {
        self.faults = faults;
        self
    }
}

struct World {
    ledger: Arc<Ledger>,
    /// The books are those of processes that may be killed. Jobs that are settled when they are
    /// handed out would be gone with them.
    mortal: bool,
    /// Room for messages that are not settled yet.
    open: Semaphore,
    capabilities: Capabilities,
    /// Set when only the rest is to be worked off.
    draining: AtomicBool,
}

/// Pushes, settles in every way, pauses and cancels at random, causes the faults asked for, then
/// works off what is left and returns the totals.
///
/// Producers push to two consumers of one queue. Some pushes are dropped half way, some jobs are
/// dropped unsettled.
///
/// # Errors
/// The harness's, and those of connecting, running and stopping. Failures while faults are caused
/// are part of the soak.
pub async fn soak(harness: Arc<dyn Harness>, soak: &Soak) -> Result<Totals> {
    let apart = if soak.faults.is_empty() { None } else { harness.apart() };
    let fixture = Fixture::new(apart.unwrap_or(harness));
    let answer = run(&fixture, soak).await;
    let closed = fixture
        .close()
        .await
        .map_err(|error| Error::new(jobs_core::ErrorKind::InvalidState, "stop").with_source(error));
    answer.and_then(|totals| closed.map(|()| totals))
}

async fn run(fixture: &Fixture, soak: &Soak) -> Result<Totals> {
    let mut crew = Crew::start(fixture, soak.seed, None).await?;
    let end = Instant::now() + soak.duration;
    let actors = crew.push_until(end);
    let disturbed = disturb(fixture, &soak.faults, crew.random.fork(), end).await;
    actors.join_all().await;
    let totals = crew.work_off(fixture).await;
    disturbed.and(totals)
}

/// Two consumers of one queue, and those who work for them.
struct Crew {
    world: Arc<World>,
    consumers: Vec<TestPipeline>,
    workers: JoinSet<()>,
    random: Rng,
}

impl Crew {
    /// Connects and begins to consume. A process that may be killed brings its books.
    async fn start(fixture: &Fixture, seed: u64, books: Option<Arc<Ledger>>) -> Result<Self> {
        let config = fixture.configure_prefetch(PREFETCH).await?;
        let first = fixture.start(config).await?;
        let mut consumers = vec![first.clone()];
        while consumers.len() < CONSUMERS {
            consumers.push(first.second().await.map_err(into_error)?);
        }
        let capabilities = first.driver().capabilities();
        let own = match capabilities.acks_confirmed {
            true => Ledger::new,
            false => Ledger::unconfirmed,
        };
        let world = Arc::new(World {
            mortal: books.is_some(),
            ledger: books.unwrap_or_else(|| Arc::new(own())),
            open: Semaphore::new(OPEN),
            capabilities,
            draining: AtomicBool::new(false),
        });
        let mut random = Rng::with_seed(seed);
        let mut workers = JoinSet::new();
        for consumer in &consumers {
            for _ in 0..WORKERS {
                workers.spawn(work(Arc::clone(&world), consumer.clone(), random.fork()));
            }
        }
        Ok(Self { world, consumers, workers, random })
    }

    /// Pushes, and interrupts the consumers.
    fn push_until(&mut self, end: Instant) -> JoinSet<()> {
        let mut actors = JoinSet::new();
        for producer in 0..PRODUCERS {
            let pipeline = self.consumers[producer % CONSUMERS].clone();
            actors.spawn(produce(Arc::clone(&self.world), pipeline, self.random.fork(), end));
        }
        for consumer in &self.consumers {
            let world = Arc::clone(&self.world);
            actors.spawn(interrupt(world, consumer.clone(), self.random.fork(), end));
        }
        actors
    }

    /// Works until nothing is left, or nothing more comes.
    async fn work_off(self, fixture: &Fixture) -> Result<Totals> {
        let Self { world, consumers, workers, .. } = self;
        world.draining.store(true, Ordering::Relaxed);
        // What stays open is in the books: it is pending or lost.
        let _ = fixture
            .eventually("all jobs settled", async || match world.left(&consumers[0]).await {
                Ok(0) => Ok(()),
                left => Err(format!("{left:?} are open")),
            })
            .await;
        let left = at_broker(&consumers[0]).await?;
        consumers.iter().for_each(|consumer| consumer.queue().close());
        workers.join_all().await;
        Ok(world.ledger.totals(left))
    }
}

/// How many jobs the broker says it has.
async fn at_broker(consumer: &TestPipeline) -> Result<u64> {
    let state = consumer.state().await?;
    Ok([state.reserved, state.delayed, state.in_flight].into_iter().flatten().sum())
}

fn into_error(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(jobs_core::ErrorKind::InvalidState, "connect").with_source(error)
}

async fn produce(world: Arc<World>, pipeline: TestPipeline, mut random: Rng, end: Instant) {
    while Instant::now() < end && world.ledger.is_heard() {
        let count = if random.u8(..10) == 0 { random.u32(1..20) } else { 1 };
        let room = tokio::time::timeout_at(end, world.open.acquire_many(count)).await;
        let Ok(Ok(room)) = room else { return };
        room.forget();
        let messages: Vec<_> = (0..count).map(|_| world.message(&mut random)).collect();
        messages.iter().for_each(|message| world.ledger.pushing(message.id()));
        world.push(&pipeline, messages, &mut random).await;
    }
}

impl World {
    /// How many jobs are to be worked off. After a crash that is all there are: some may be in no
    /// books, and some must not be there.
    async fn left(&self, consumer: &TestPipeline) -> Result<u64> {
        match self.ledger.open() {
            open if open > 0 && !self.mortal => Ok(open),
            // Also those whose end is in doubt.
            _ => at_broker(consumer).await,
        }
    }

    fn message(&self, random: &mut Rng) -> Message {
        let most = self.capabilities.max_payload.unwrap_or(usize::MAX).min(2_048);
        let mut payload = vec![0; random.usize(..=most)];
        random.fill(&mut payload);
        let auto_ack = !self.mortal && random.u8(..20) == 0;
        let mut message = Message::new("kit.soak", payload).with_auto_ack(auto_ack);
        if self.capabilities.delay.is_available() && random.u8(..5) == 0 {
            message = message.with_delay(Duration::from_millis(random.u64(1..300)));
        }
        let priority = random.i64(1..20);
        if self.capabilities.priorities.contains(&priority) {
            message = message.with_priority(priority);
        }
        message
    }

    async fn push(&self, pipeline: &TestPipeline, messages: Vec<Message>, random: &mut Rng) {
        let ids: Vec<_> = messages.iter().map(|message| message.id().clone()).collect();
        if random.u8(..50) == 0 {
            let polls = random.usize(..3);
            let pushed = poll_times(pipeline.push_batch(messages), polls, PATIENCE).await;
            let Some(answers) = pushed else {
                ids.iter().for_each(|id| self.ledger.uncertain(id));
                return self.open.add_permits(ids.len());
            };
            return self.book(&ids, answers);
        }
        let answers = match <[Message; 1]>::try_from(messages) {
            Ok([message]) => vec![pipeline.push(message).await],
            Err(messages) => pipeline.push_batch(messages).await,
        };
        self.book(&ids, answers);
    }

    fn book(&self, ids: &[jobs_core::JobId], answers: Vec<Result<()>>) {
        for (id, answer) in ids.iter().zip(answers) {
            match answer {
                Ok(()) => self.ledger.accepted(id),
                Err(error) => {
                    if error.may_be_stored() {
                        self.ledger.uncertain(id);
                    }
                    self.open.add_permits(1);
                }
            }
        }
    }
}

async fn work(world: Arc<World>, consumer: TestPipeline, mut random: Rng) {
    while let Some(job) = consumer.queue().pop().await {
        world.ledger.delivered(job.id());
        if random.u8(..30) == 0 {
            sleep(Duration::from_millis(random.u64(1..30))).await;
        }
        world.settle(job, &mut random).await;
    }
}

impl World {
    async fn settle(&self, job: Job, random: &mut Rng) {
        let (id, position) = (job.id().clone(), job.position());
        let auto_ack = job.message().auto_ack();
        let last = job.attempt() >= LAST_ATTEMPT || self.draining.load(Ordering::Relaxed);
        let outcome = match random.u8(..100) {
            _ if last || auto_ack => Outcome::Ack,
            0..5 => {
                self.ledger.returning(&id);
                return drop(job);
            }
            5..10 => Outcome::Reject,
            10..20 => Outcome::Release,
            20..35 if self.capabilities.requeue.is_available() => {
                Outcome::requeue_after(self.delay(random))
            }
            _ => Outcome::Ack,
        };
        match outcome {
            Outcome::Ack | Outcome::Reject => self.ledger.ending(&id),
            _ => self.ledger.returning(&id),
        }
        let settled = job.settle(outcome.clone()).await;
        // A failed settlement drops its job, which then comes back, unless the outcome arrived.
        if let Err(refused) = &settled
            && matches!(outcome, Outcome::Ack | Outcome::Reject)
            && refused.error().kind() == ErrorKind::LeaseLost
        {
            self.ledger.unanswered(&id);
        }
        let ended = settled.is_ok()
            && match outcome {
                Outcome::Ack if auto_ack => self.ledger.auto_acked(&id),
                Outcome::Ack => self.ledger.done_at(&id, position),
                Outcome::Reject => self.ledger.dead_at(&id, position),
                _ => false,
            };
        self.open.add_permits(usize::from(ended));
    }

    fn delay(&self, random: &mut Rng) -> Duration {
        match self.capabilities.delay.is_available() && random.bool() {
            true => Duration::from_millis(random.u64(1..100)),
            false => Duration::ZERO,
        }
    }
}

/// Pauses and resumes one consumer at random.
async fn interrupt(world: Arc<World>, consumer: TestPipeline, mut random: Rng, end: Instant) {
    while Instant::now() < end && world.ledger.is_heard() {
        sleep(Duration::from_millis(random.u64(50..500))).await;
        // While a fault lasts either may fail; the next turn or the last line makes it good.
        let _ = consumer.pause().await;
        sleep(Duration::from_millis(random.u64(1..50))).await;
        let _ = consumer.resume().await;
    }
    let _ = consumer.resume().await;
}

/// Causes the faults in turn, a few seconds apart, until the end.
async fn disturb(fixture: &Fixture, faults: &[Fault], mut random: Rng, end: Instant) -> Result<()> {
    for fault in faults.iter().cycle() {
        sleep(Duration::from_millis(random.u64(1_000..5_000))).await;
        if Instant::now() >= end {
            break;
        }
        fixture.prepare(*fault).await?;
        fixture.inject(*fault).await?;
    }
    sleep_until(end).await;
    Ok(())
}
