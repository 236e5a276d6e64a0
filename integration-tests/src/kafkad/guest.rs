//! Members of a group that come and go.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jobs_core::{Error, ErrorKind, Result};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::time::sleep;

use super::operator::Operator;
use super::{blocking, failed};

/// What joining or leaving may take: another member may have to be given up first.
const PATIENCE: Duration = Duration::from_secs(60);
const TURN: Duration = Duration::from_millis(50);
/// What a member may take to give back its partitions before it goes.
const FAREWELL: Duration = Duration::from_secs(10);

/// A member that reads and settles nothing. It leaves when it is told to, or when it is dropped.
pub struct Guest {
    operator: Operator,
    group: String,
    name: String,
    leaving: Arc<AtomicBool>,
    partitions: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    pub(super) async fn join(address: &str, group: &str, topic: &str) -> Result<Self> {
        static GUESTS: AtomicU64 = AtomicU64::new(0);
        let name = format!("guest-{}", GUESTS.fetch_add(1, Ordering::Relaxed));
        let consumer = consumer(address, group, &name)?;
        consumer.subscribe(&[topic]).map_err(failed)?;
        let leaving = Arc::<AtomicBool>::default();
        let partitions = Arc::<AtomicUsize>::default();
        let (told, telling) = (Arc::clone(&leaving), Arc::clone(&partitions));
        let thread = std::thread::spawn(move || attend(&consumer, &told, &telling));
        let guest = Self {
            operator: Operator::new(address),
            group: group.to_owned(),
            name,
            leaving,
            partitions,
            thread: Some(thread),
        };
        guest.until("join a group", true).await?;
        Ok(guest)
    }

    /// How many partitions it has.
    #[must_use]
    pub fn partitions(&self) -> usize {
        self.partitions.load(Ordering::Acquire)
    }

    /// Leaves, and returns when the group goes on without it.
    ///
    /// # Errors
    /// The client's, or it does not happen in time.
    pub async fn leave(mut self) -> Result<()> {
        self.leaving.store(true, Ordering::Release);
        let thread = self.thread.take();
        blocking(move || {
            thread.map_or(Ok(()), |thread| thread.join().map_err(|_| failed("a guest panicked")))
        })
        .await?;
        self.until("leave a group", false).await
    }

    /// Waits until the group has settled down, with or without it.
    async fn until(&self, what: &'static str, there: bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = match self.operator.group(&self.group).await {
                Ok(group) => {
                    let member = group.members.contains(&self.name);
                    if member == there && ["Stable", "Empty", "Dead"].contains(&&*group.state) {
                        return Ok(());
                    }
                    format!("{group:?}")
                }
                Err(error) => format!("{error:?}"),
            };
            if Instant::now() >= end {
                let context = format!("{}: not within {PATIENCE:?}, found {found}", self.name);
                return Err(Error::new(ErrorKind::Timeout, what).with_context(context));
            }
            sleep(TURN).await;
        }
    }
}

fn consumer(address: &str, group: &str, name: &str) -> Result<BaseConsumer> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", address)
        .set("client.id", name)
        .set("group.id", group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "500")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "earliest")
        .set("queued.max.messages.kbytes", "64");
    config.create().map_err(failed)
}

/// Stays in the group until it is told to leave.
fn attend(consumer: &BaseConsumer, leaving: &AtomicBool, partitions: &AtomicUsize) {
    let assigned = || consumer.assignment().map_or(0, |assignment| assignment.count());
    while !leaving.load(Ordering::Acquire) {
        drop(consumer.poll(TURN));
        partitions.store(assigned(), Ordering::Release);
    }
    // A cooperative member without partitions that only closes stays in its group until its session
    // ends: https://github.com/confluentinc/librdkafka/issues/5347
    consumer.unsubscribe();
    let end = Instant::now() + FAREWELL;
    drop(consumer.poll(TURN));
    while assigned() > 0 && Instant::now() < end {
        drop(consumer.poll(TURN));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.leaving.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guest").field("name", &self.name).finish_non_exhaustive()
    }
}
