//! Producing: pushes, and the copies that settle jobs.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jobs_core::{Error, ErrorKind, Health, Result};
use rdkafka::Message as _;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{
    BaseRecord, NoCustomPartitioner, Producer as _, ProducerContext, PurgeConfig, ThreadedProducer,
};
use tokio::sync::oneshot;

use crate::codec::Record;
use crate::config::KafkaConfig;
use crate::connection::{self, Reports};
use crate::error;

/// How long a push waits before it asks a full producer again.
const FULL: Duration = Duration::from_millis(5);

/// How long a broker is waited for at a time while none is connected.
const PROBE: Duration = Duration::from_secs(1);

pub(crate) type Producer = ThreadedProducer<Confirms>;

/// Who is told whether a record was stored.
pub(crate) enum Report {
    Push(oneshot::Sender<Result<()>>),
    /// Called on the producer's thread: it must not block.
    Then(Box<dyn FnOnce(Result<()>) + Send + Sync>),
}

impl Report {
    fn tell(self, answer: Result<()>) {
        match self {
            // Nobody waits any more, and the record is stored or not all the same.
            Self::Push(sender) => drop(sender.send(answer)),
            Self::Then(then) => then(answer),
        }
    }
}

/// A record on its way.
pub(crate) struct Letter {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: Option<i32>,
    pub(crate) record: Record,
    pub(crate) report: Box<Report>,
}

impl Letter {
    /// It will not be sent.
    pub(crate) fn fail(self, error: Error) {
        self.report.tell(Err(error));
    }
}

impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Letter").field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// The context of a producer: hands each delivery report to whom it concerns.
pub(crate) struct Confirms {
    reports: Reports,
    /// It sends nothing any more.
    fatal: AtomicBool,
    /// It has told that no broker is connected, and not been asked since.
    cut_off: AtomicBool,
}

impl Confirms {
    /// Why a broker refuses us, if one does.
    pub(crate) fn refused(&self) -> Option<Error> {
        self.reports.refused()
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.reports.last_error()
    }
}

impl ClientContext for Confirms {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.reports.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if error::is_fatal(&error) {
            self.fatal.store(true, Ordering::Release);
        }
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.cut_off.store(true, Ordering::Release);
        }
        self.reports.error(error, reason);
    }
}

impl ProducerContext for Confirms {
    type DeliveryOpaque = Box<Report>;

    fn delivery(&self, result: &DeliveryResult<'_>, report: Box<Report>) {
        match result {
            Ok(message) if message.offset() >= 0 => report.tell(Ok(())),
            Ok(message) => report.tell(Err(error::unproved(message.topic()))),
            Err((error, message)) => {
                if error::is_fatal(error) {
                    self.fatal.store(true, Ordering::Release);
                }
                let mapped = error::push(error).with_context(format!("topic {}", message.topic()));
                report.tell(Err(mapped));
            }
        }
    }
}

/// The producer of one pipeline. An idempotent producer that lost count with its broker ends for good,
/// and another takes its place.
pub(crate) struct Publisher {
    config: Arc<KafkaConfig>,
    health: Arc<Health>,
    /// None once it is closed.
    producer: RwLock<Option<Arc<Producer>>>,
    /// Threads that end former producers.
    retired: Mutex<Vec<JoinHandle<()>>>,
    /// One of the pushes looks for a broker while none is connected, and the others wait for it.
    looking: tokio::sync::Mutex<()>,
}

impl Publisher {
    pub(crate) fn new(config: &Arc<KafkaConfig>, health: &Arc<Health>) -> Result<Self> {
        let producer = make(config, health)?;
        Ok(Self {
            config: Arc::clone(config),
            health: Arc::clone(health),
            producer: RwLock::new(Some(Arc::new(producer))),
            retired: Mutex::default(),
            looking: tokio::sync::Mutex::default(),
        })
    }

    /// The producer as it is now, to ask the broker by.
    ///
    /// # Errors
    /// `Closed`.
    pub(crate) fn producer(&self, operation: &'static str) -> Result<Arc<Producer>> {
        let producer = self.producer.read().unwrap_or_else(PoisonError::into_inner).clone();
        let producer = producer.ok_or_else(|| error::closed(operation))?;
        if producer.context().fatal.load(Ordering::Acquire) {
            return self.replace(&producer, operation);
        }
        Ok(producer)
    }

    fn replace(&self, broken: &Arc<Producer>, operation: &'static str) -> Result<Arc<Producer>> {
        let mut place = self.producer.write().unwrap_or_else(PoisonError::into_inner);
        let current = place.as_ref().ok_or_else(|| error::closed(operation))?;
        if !Arc::ptr_eq(current, broken) {
            return Ok(Arc::clone(current));
        }
        tracing::warn!(job.pipeline = %self.health.pipeline(), "the producer ended: another takes its place");
        let fresh = Arc::new(make(&self.config, &self.health)?);
        let former = place.replace(Arc::clone(&fresh));
        drop(place);
        self.retire(former);
        Ok(fresh)
    }

    /// Ends a producer where it may take its time.
    fn retire(&self, former: Option<Arc<Producer>>) {
        let ending = std::thread::Builder::new().name("kafka-retired".into());
        if let Ok(thread) = ending.spawn(move || drop(former)) {
            let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
            retired.retain(|thread| !thread.is_finished());
            retired.push(thread);
        }
    }

    /// Hands a record to the client, which tells later what became of it.
    ///
    /// # Errors
    /// Why not, and the record.
    pub(crate) fn send(&self, letter: Letter) -> Result<(), (SendError, Letter)> {
        match self.producer("push") {
            Ok(producer) => Self::send_by(&producer, letter),
            Err(error) => Err((SendError::Refused(error), letter)),
        }
    }

    fn send_by(producer: &Producer, letter: Letter) -> Result<(), (SendError, Letter)> {
        let Letter { topic, partition, record, report } = letter;
        let Record { key, payload, headers } = record;
        let outgoing = BaseRecord {
            topic: &topic,
            partition,
            payload: Some(&*payload),
            key: key.as_deref(),
            timestamp: None,
            headers: Some(headers),
            delivery_opaque: report,
        };
        let (found, back) = match producer.send(outgoing) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        let (headers, report) = (back.headers.unwrap_or_default(), back.delivery_opaque);
        let record = Record { key, payload, headers };
        let error = match found.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => SendError::Full(error::push(&found)),
            _ => {
                if error::is_fatal(&found) {
                    producer.context().fatal.store(true, Ordering::Release);
                }
                let context = format!("topic {topic}");
                SendError::Refused(error::push(&found).with_context(context))
            }
        };
        Err((error, Letter { topic, partition, record, report }))
    }

    /// Hands a pushed record over, waiting while the producer is full, and returns what answers when it
    /// is stored.
    pub(crate) async fn begin(
        &self,
        topic: Arc<str>,
        partition: Option<i32>,
        record: Record,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Result<()>>> {
        let mut producer = self.connected(&topic, deadline).await?;
        let (sender, answer) = oneshot::channel();
        let mut letter =
            Letter { topic, partition, record, report: Box::new(Report::Push(sender)) };
        loop {
            letter = match Self::send_by(&producer, letter) {
                Ok(()) => return Ok(answer),
                Err((SendError::Full(_), letter)) if Instant::now() < deadline => letter,
                Err((SendError::Full(error) | SendError::Refused(error), _)) => return Err(error),
            };
            tokio::time::sleep(FULL).await;
            producer = self.producer("push")?;
        }
    }

    /// The producer, when a broker is connected. What the client never had is certainly not stored, which
    /// it does not say of what it could not send.
    ///
    /// # Errors
    /// `Connection`, transient: none was until the deadline.
    async fn connected(&self, topic: &Arc<str>, deadline: Instant) -> Result<Arc<Producer>> {
        let cut_off = |producer: &Producer| producer.context().cut_off.load(Ordering::Acquire);
        let producer = self.producer("push")?;
        if !cut_off(&producer) {
            return Ok(producer);
        }
        let look = async {
            let _looking = self.looking.lock().await;
            loop {
                let producer = self.producer("push")?;
                if !cut_off(&producer) {
                    return Ok(producer);
                }
                let topic = Arc::clone(topic);
                let until = deadline.min(Instant::now() + PROBE);
                let asked = connection::on_a_thread("push", until, move || {
                    let left = until.saturating_duration_since(Instant::now());
                    let answer = producer.client().fetch_metadata(Some(&topic), left);
                    if answer.is_ok() {
                        producer.context().cut_off.store(false, Ordering::Release);
                    }
                    Ok(())
                });
                // Late, or no thread to be had: the next turn asks again.
                drop(asked.await);
            }
        };
        let missing = || {
            let error = Error::new(ErrorKind::Connection, "push").transient();
            error.with_context("no broker is connected")
        };
        tokio::time::timeout_at(deadline.into(), look).await.unwrap_or_else(|_| Err(missing()))
    }

    /// Sends what waits, at most until the deadline, and ends. Blocks.
    pub(crate) fn close(&self, deadline: Instant) {
        let producer = self.producer.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(producer) = producer {
            let left = deadline.saturating_duration_since(Instant::now());
            if producer.flush(left).is_err() {
                // Everything in it is answered now.
                producer.purge(PurgeConfig::default().queue().inflight());
                drop(producer.flush(Duration::from_secs(1)));
            }
            drop(producer);
        }
        let retired =
            std::mem::take(&mut *self.retired.lock().unwrap_or_else(PoisonError::into_inner));
        retired.into_iter().for_each(|thread| drop(thread.join()));
    }
}

/// What a push comes to that was handed over.
pub(crate) async fn confirmed(answer: oneshot::Receiver<Result<()>>) -> Result<()> {
    answer.await.unwrap_or_else(|_| Err(error::push(&KafkaError::Canceled)))
}

/// Why a record was not taken. It certainly is not stored.
#[derive(Debug)]
pub(crate) enum SendError {
    /// Later, perhaps.
    Full(Error),
    Refused(Error),
}

fn make(config: &KafkaConfig, health: &Arc<Health>) -> Result<Producer> {
    let context = Confirms {
        reports: Reports::new(health),
        fatal: AtomicBool::new(false),
        cut_off: AtomicBool::new(false),
    };
    ThreadedProducer::<Confirms, NoCustomPartitioner>::from_config_and_context(
        &config.producer(),
        context,
    )
    .map_err(|found| error::failed("connect", &found))
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let producer = self.producer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if producer.is_some() {
            self.retire(producer);
        }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use jobs_core::{Options, Pipeline};
    use rdkafka::message::OwnedHeaders;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    use serde_json::json;

    use super::*;

    /// Too large for two of them to share a request.
    const LARGE: usize = 1_000;

    fn publisher(brokers: &str) -> Publisher {
        let options = json!({
            "brokers": [brokers],
            "topic": "orders",
            "producer_options": { "max_message_bytes": LARGE * 3 / 2 },
        });
        let options = Options::from_value("p.config", options).expect("a map");
        let pipeline = Pipeline::with_options("p", "kafka", options).expect("common options");
        let shared = Options::from_value("kafka", json!({})).expect("a map");
        let config = KafkaConfig::read(&shared, &pipeline).expect("valid");
        Publisher::new(&Arc::new(config), &Arc::new(Health::new("p"))).expect("a producer")
    }

    #[tokio::test]
    async fn a_record_that_a_later_one_vouches_for_may_not_be_stored() {
        let cluster = MockCluster::new(1).expect("a cluster");
        cluster.create_topic("orders", 1, 1).expect("a topic");
        let publisher = publisher(&cluster.bootstrap_servers());
        let deadline = Instant::now() + Duration::from_secs(20);
        let begin = || {
            let record = Record {
                key: None,
                payload: vec![b'x'; LARGE].into(),
                headers: OwnedHeaders::new(),
            };
            publisher.begin("orders".into(), Some(0), record, deadline)
        };
        confirmed(begin().await.expect("taken")).await.expect("stored");

        // Both are on their way when the first is refused.
        cluster.broker_round_trip_time(1, Duration::from_millis(200)).expect("slow");
        let refusal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION;
        cluster.request_errors(RDKafkaApiKey::Produce, &[refusal]);
        let (first, second) = (begin().await.expect("taken"), begin().await.expect("taken"));
        let (first, second) = (confirmed(first).await, confirmed(second).await);

        let producer = publisher.producer("look").expect("a producer");
        let stored = producer.client().fetch_watermarks("orders", 0, Duration::from_secs(10));
        assert_eq!(stored.expect("an answer"), (0, 2), "the first is not stored");
        second.expect("stored");
        let error = first.expect_err("nobody knows");
        assert!(error.may_be_stored() && error.is_retryable(), "{error}");
    }
}
