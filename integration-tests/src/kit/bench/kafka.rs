//! `kafka` against rdkafka, used as its most careful user would: an idempotent producer that all
//! replicas answer, with the same headers and without linger, from one task with a window in flight; a
//! consumer that copies each payload and stores its offset. The last line has no target of that kind: jobs
//! that take ten milliseconds, beside a consumer that runs them in order, as Kafka's own do.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use integration_tests::kafkad::Brokers;
use jobs_core::{Driver, Job, Message, Pipeline, Queue, Registry};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use rdkafka::{ClientConfig, Message as _};
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    Line, PAIRS, PAYLOAD, Side, Stopwatch, compare, measure, median, messages, runtime, say,
};

const PREFETCH: usize = 1_024;
const CONSUMED: usize = 300_000;
/// Settlements that are under way before the first of them is looked at.
const UNANSWERED: usize = PREFETCH / 2;
/// Of the jobs that take ten milliseconds.
const SLOW: Duration = Duration::from_millis(10);
const SLOW_PREFETCH: usize = 256;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() {
    let runtime = tokio::runtime::Runtime::new().expect("the system allows threads");
    let brokers = Brokers::default();
    let broker = runtime.block_on(brokers.shared()).expect("Kafka starts");
    let operator = broker.operator();
    let make = |topic: &str, partitions| {
        let made = runtime.block_on(operator.create_topic(topic, partitions));
        made.expect("the broker obeys");
    };
    let delete = |place: Place| {
        let deleted = runtime.block_on(operator.delete_topics(vec![place.topic]));
        deleted.expect("the broker obeys");
    };
    let address = broker.brokers();
    for (config, partitions) in [("1-partition", 1), ("4-partitions", 4)] {
        let line = |op, concurrency, jobs| {
            let driver = jobs_kafka::NAME;
            Line { driver, op, config, concurrency, jobs }
        };
        for (callers, jobs) in [(1, 3_000), (64, 100_000), (1_024, 200_000)] {
            let place = Place::new(&address, &format!("push-{config}-{callers}"));
            make(&place.topic, partitions);
            let (raw, driver) = (raw_push(&place, callers), driver_push(&place, callers));
            compare(&line("push", callers, jobs), raw, driver);
            delete(place);
        }
        let place = Place::new(&address, &format!("consume-{config}"));
        make(&place.topic, partitions);
        runtime.block_on(fill(&place, CONSUMED));
        let (raw, driver) = (raw_consume(&place), driver_consume(&place));
        compare(&line("consume", PREFETCH, CONSUMED), raw, driver);
        if partitions == 1 {
            slow(&place, config);
        }
        delete(place);
    }
}

/// A topic, and the groups that read it from its beginning.
#[derive(Clone)]
struct Place {
    address: String,
    topic: String,
}

impl Place {
    fn new(address: &str, topic: &str) -> Self {
        Self { address: address.to_owned(), topic: topic.to_owned() }
    }

    /// One that has read nothing yet.
    fn group(&self) -> String {
        static GROUPS: AtomicUsize = AtomicUsize::new(0);
        format!("{}-{}", self.topic, GROUPS.fetch_add(1, Ordering::Relaxed))
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.address);
        config
    }

    fn consumer(&self) -> BaseConsumer {
        let mut config = self.client();
        config
            .set("group.id", self.group())
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "500")
            .set("enable.auto.offset.store", "false");
        let consumer: BaseConsumer = config.create().expect("valid");
        consumer.subscribe(&[&self.topic]).expect("valid");
        consumer
    }

    async fn pipeline(&self, prefetch: usize) -> (Pipeline, Arc<dyn Driver>) {
        let mut registry = Registry::new();
        registry.register(jobs_kafka::constructor()).expect("the only driver");
        let pipeline = Pipeline::new("bench", jobs_kafka::NAME)
            .with_option("brokers", json!([self.address]))
            .with_option("topics", json!([self.topic]))
            .with_option("group_options", json!({ "group_id": self.group() }))
            .with_option("prefetch", prefetch);
        let driver = registry.connect(pipeline.clone()).await.expect("the broker runs");
        (pipeline, driver)
    }

    /// A driver that consumes, and its queue.
    async fn consuming(&self, prefetch: usize) -> (Queue, Arc<dyn Driver>) {
        let (pipeline, driver) = self.pipeline(prefetch).await;
        let queue = Queue::new();
        driver.run(queue.open_lane(&pipeline)).await.expect("runs once");
        (queue, driver)
    }
}

/// Runs on a thread of the runtime, where both sides' tasks are at home.
async fn in_task(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work).await.expect("no side panics");
}

/// The driver's messages, as they are on the wire.
fn headers(message: &Message) -> OwnedHeaders {
    OwnedHeaders::new_with_capacity(3)
        .insert(Header { key: "rr_job", value: Some(message.name()) })
        .insert(Header { key: "rr_pipeline", value: Some("bench") })
        .insert(Header { key: "rr_priority", value: Some(&10_i64.to_le_bytes()) })
}

fn raw_push(place: &Place, window: usize) -> impl Side {
    let place = place.clone();
    async move |jobs, watch: &mut Stopwatch| {
        let mut config = place.client();
        config.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", "0");
        let producer: FutureProducer = config.create().expect("valid");
        let connected = producer.client().fetch_metadata(Some(&place.topic), PATIENCE);
        connected.expect("the broker runs");
        let (sender, topic) = (producer.clone(), place.topic.clone());
        let push_all = async move {
            let mut flights = FuturesUnordered::new();
            for message in messages(jobs) {
                if flights.len() == window {
                    flights.next().await;
                }
                let (sender, topic) = (&sender, &topic);
                flights.push(async move {
                    let record = FutureRecord::to(topic)
                        .key(message.id().as_str())
                        .payload(&message.payload()[..])
                        .headers(headers(&message));
                    let sent = sender.send_result(record).map_err(|(error, _)| error);
                    sent.expect("there is room").await.expect("answered").expect("stored");
                });
            }
            while flights.next().await.is_some() {}
        };
        watch.restart();
        in_task(push_all).await;
        watch.stop();
    }
}

async fn push_all(driver: &Arc<dyn Driver>, jobs: usize, window: usize) {
    let driver = Arc::clone(driver);
    let push_all = async move {
        let mut flights = FuturesUnordered::new();
        for message in messages(jobs) {
            if flights.len() == window {
                flights.next().await;
            }
            flights.push(async { driver.push(message).await.expect("stored") });
        }
        while flights.next().await.is_some() {}
    };
    in_task(push_all).await;
}

fn driver_push(place: &Place, window: usize) -> impl Side {
    let place = place.clone();
    async move |jobs, watch: &mut Stopwatch| {
        let (_, driver) = place.pipeline(PREFETCH).await;
        watch.restart();
        push_all(&driver, jobs, window).await;
        watch.stop();
        driver.stop().await.expect("stops");
    }
}

/// Stores what both sides consume.
async fn fill(place: &Place, jobs: usize) {
    let (_, driver) = place.pipeline(PREFETCH).await;
    push_all(&driver, jobs, 1_024).await;
    driver.stop().await.expect("stops");
}

/// The next record. That there is none may be said for an event of the client's own.
fn next(consumer: &BaseConsumer) -> BorrowedMessage<'_> {
    let start = Instant::now();
    loop {
        match consumer.poll(PATIENCE) {
            Some(record) => return record.expect("fetched"),
            None => assert!(start.elapsed() < PATIENCE, "one more"),
        }
    }
}

/// Both sides are watched from their first job on: what joining a group takes is the broker's.
fn raw_consume(place: &Place) -> impl Side {
    let place = place.clone();
    async move |jobs, watch: &mut Stopwatch| {
        let consumer = place.consumer();
        tokio::task::block_in_place(|| {
            for count in 0..jobs {
                let record = next(&consumer);
                if count == 0 {
                    watch.restart();
                }
                black_box(record.payload().map(<[u8]>::to_vec));
                let stored =
                    consumer.store_offset(record.topic(), record.partition(), record.offset());
                stored.expect("it is ours");
            }
            watch.stop();
            drop(consumer);
        });
    }
}

fn driver_consume(place: &Place) -> impl Side {
    let place = place.clone();
    async move |jobs, watch: &mut Stopwatch| {
        let (queue, driver) = place.consuming(PREFETCH).await;
        let first = queue.pop().await.expect("the queue is open");
        watch.restart();
        in_task(ack_all(first, queue, jobs)).await;
        watch.stop();
        driver.stop().await.expect("stops");
    }
}

/// As settling needs no answer to go on.
async fn ack_all(first: Job, queue: Queue, jobs: usize) {
    let mut unanswered = VecDeque::from([first.ack().unhurried()]);
    for _ in 1..jobs {
        if unanswered.len() == UNANSWERED {
            let first = unanswered.pop_front().expect("there are some");
            first.await.expect("the partition is ours");
        }
        unanswered.push_back(queue.pop().await.expect("the queue is open").ack().unhurried());
    }
    for settled in unanswered {
        settled.await.expect("the partition is ours");
    }
}

/// Prints the line of jobs that take a while: as many at once as the prefetch allows, beside one after
/// the other.
fn slow(place: &Place, config: &str) {
    const IN_ORDER: usize = 200;
    const AT_ONCE: usize = 30_000;
    let runtime = runtime(tokio::runtime::Builder::new_multi_thread());
    let (raw, driver) = (raw_slow(place), driver_slow(place));
    let pair = |_| {
        let raw = measure(&runtime, &raw, IN_ORDER);
        let driver = measure(&runtime, &driver, AT_ONCE);
        (IN_ORDER as f64 / raw.wall.as_secs_f64(), AT_ONCE as f64 / driver.wall.as_secs_f64())
    };
    let pairs: Vec<_> = (0..PAIRS).map(pair).collect();
    say(format!(
        "{} 10ms config={config} concurrency={SLOW_PREFETCH} payload={PAYLOAD} raw={:.0} \
         driver={:.0} ratio={:.2}",
        jobs_kafka::NAME,
        median(pairs.iter().map(|(raw, _)| *raw)),
        median(pairs.iter().map(|(_, driver)| *driver)),
        median(pairs.iter().map(|(raw, driver)| driver / raw)),
    ));
}

fn raw_slow(place: &Place) -> impl Side {
    let place = place.clone();
    async move |jobs, watch: &mut Stopwatch| {
        let consumer = place.consumer();
        tokio::task::block_in_place(|| {
            for count in 0..jobs {
                let record = next(&consumer);
                if count == 0 {
                    watch.restart();
                }
                std::thread::sleep(SLOW);
                let stored =
                    consumer.store_offset(record.topic(), record.partition(), record.offset());
                stored.expect("it is ours");
            }
            watch.stop();
            drop(consumer);
        });
    }
}

fn driver_slow(place: &Place) -> impl Side {
    let place = place.clone();
    async move |jobs, watch: &mut Stopwatch| {
        let (queue, driver) = place.consuming(SLOW_PREFETCH).await;
        let first = queue.pop().await.expect("the queue is open");
        watch.restart();
        let left = Arc::new(AtomicUsize::new(jobs - 1));
        let mut workers = JoinSet::new();
        for _ in 0..SLOW_PREFETCH {
            let (queue, left) = (queue.clone(), Arc::clone(&left));
            workers.spawn(async move {
                let one_more = |left| usize::checked_sub(left, 1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok() {
                    let job = queue.pop().await.expect("the queue is open");
                    tokio::time::sleep(SLOW).await;
                    job.ack().await.expect("the partition is ours");
                }
            });
        }
        tokio::time::sleep(SLOW).await;
        first.ack().await.expect("the partition is ours");
        while let Some(ended) = workers.join_next().await {
            ended.expect("no side panics");
        }
        watch.stop();
        driver.stop().await.expect("stops");
    }
}
