//! `amqp` against lapin, used as its most careful user would: the same persistent messages, mandatory,
//! with confirms, started by one task with a window in flight, because the client may mix up the
//! confirms of two tasks that publish on one channel; the same headers read; one ordered writer of
//! merged acks.

use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream::{FuturesUnordered, StreamExt};
use integration_tests::rabbitmq::Brokers;
use jobs_core::{Driver, Message, Pipeline, Queue, Registry};
use lapin::options::{
    BasicAckOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};

use super::{Line, Side, Stopwatch, compare, messages};

const PREFETCH: u16 = 256;
/// Deliveries acked by one frame.
const MERGED: usize = 64;

pub(crate) fn run() {
    let runtime = tokio::runtime::Runtime::new().expect("the system allows threads");
    let brokers = Brokers::default();
    let url = runtime.block_on(brokers.shared()).expect("RabbitMQ starts").url();
    for config in ["classic", "quorum"] {
        let line = |op, concurrency, jobs| {
            let driver = jobs_amqp::NAME;
            Line { driver, op, config, concurrency, jobs }
        };
        for (callers, jobs) in [(1, 2_000), (64, 40_000), (1_024, 60_000)] {
            let raw = raw_push(&url, config, callers);
            compare(&line("push", callers, jobs), raw, driver_push(&url, config, callers));
        }
        let raw = raw_consume(&url, config);
        compare(&line("consume", PREFETCH.into(), 60_000), raw, driver_consume(&url, config));
    }
}

struct Raw {
    connection: Connection,
    channel: Channel,
    queue: ShortString,
}

impl Raw {
    async fn open(url: &str, config: &str, queue: &str) -> Self {
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(url, properties).await.expect("the broker runs");
        let channel = connection.create_channel().await.expect("a channel");
        let queue: ShortString = queue.into();
        channel.queue_delete(queue.clone(), Default::default()).await.expect("deleted");
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(config.into()));
        if config == "quorum" {
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(-1));
        }
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.clone(), options, arguments).await.expect("declared");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { connection, channel, queue }
    }

    async fn push(self: Arc<Self>, jobs: usize, window: usize) {
        let publish_all = async move {
            let mut flights = FuturesUnordered::new();
            for message in messages(jobs) {
                if flights.len() == window {
                    flights.next().await;
                }
                let queue = self.queue.clone();
                let options = BasicPublishOptions { mandatory: true, ..Default::default() };
                let channel = &self.channel;
                flights.push(async move {
                    let (body, properties) = (message.payload(), properties(&message));
                    let publish =
                        channel.basic_publish("".into(), queue, options, body, properties);
                    let confirm = publish.await.expect("written").await.expect("confirmed");
                    assert!(confirm.is_ack() && confirm.take_message().is_none());
                });
            }
            while flights.next().await.is_some() {}
        };
        in_task(publish_all).await;
    }

    async fn subscribe(&self) -> Consumer {
        let qos = BasicQosOptions::default();
        self.channel.basic_qos(PREFETCH, qos).await.expect("qos");
        let (queue, name) = (self.queue.clone(), "raw".into());
        let consume =
            self.channel.basic_consume(queue, name, Default::default(), FieldTable::default());
        consume.await.expect("subscribed")
    }

    async fn consume(self: Arc<Self>, mut deliveries: Consumer, jobs: usize) {
        let consume_all = async move {
            for count in 1..=jobs {
                let delivery = deliveries.next().await.expect("one more").expect("delivered");
                black_box(Read::from(&delivery.properties));
                if count % MERGED == 0 || count == jobs {
                    let ack = BasicAckOptions { multiple: true };
                    self.channel.basic_ack(delivery.delivery_tag, ack).await.expect("written");
                }
            }
        };
        in_task(consume_all).await;
    }

    async fn close(&self) {
        self.channel.queue_delete(self.queue.clone(), Default::default()).await.expect("deleted");
        // A queue that is deleted under its consumer may end the connection first.
        let _ = self.connection.close(200, "".into()).await;
    }
}

/// Runs on a thread of the runtime, where both sides' tasks are at home.
async fn in_task(work: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(work).await.expect("no side panics");
}

/// The driver's messages, as they are on the wire.
fn properties(message: &Message) -> BasicProperties {
    let text = |text: &str| AMQPValue::LongString(text.into());
    let headers = BTreeMap::from([
        ("rr_id".into(), text(message.id().as_str())),
        ("rr_job".into(), text(message.name())),
        ("rr_pipeline".into(), text("bench-raw")),
        ("rr_headers".into(), AMQPValue::ByteArray(b"{}".as_slice().into())),
        ("rr_delay".into(), AMQPValue::LongInt(0)),
        ("rr_priority".into(), AMQPValue::LongLongInt(10)),
        ("rr_auto_ack".into(), AMQPValue::Boolean(false)),
    ]);
    let seconds = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    BasicProperties::default()
        .with_content_type("application/octet-stream".into())
        .with_delivery_mode(2)
        .with_timestamp(seconds)
        .with_headers(headers.into())
}

/// What every worker needs of a message beside its body.
struct Read {
    _id: String,
    _name: String,
    _headers: BTreeMap<String, Vec<String>>,
    _priority: i64,
}

impl From<&BasicProperties> for Read {
    fn from(properties: &BasicProperties) -> Self {
        let table = properties.headers().as_ref().expect("we wrote them").inner();
        let text = |name| match table.get(name) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            other => panic!("{name} is {other:?}"),
        };
        let headers = match table.get("rr_headers") {
            Some(AMQPValue::ByteArray(json)) => serde_json::from_slice(json.as_slice()),
            other => panic!("rr_headers is {other:?}"),
        };
        let priority = match table.get("rr_priority") {
            Some(AMQPValue::LongLongInt(priority)) => *priority,
            other => panic!("rr_priority is {other:?}"),
        };
        let headers = headers.expect("JSON");
        Self { _id: text("rr_id"), _name: text("rr_job"), _headers: headers, _priority: priority }
    }
}

fn raw_push(url: &str, config: &'static str, window: usize) -> impl Side {
    let url = url.to_owned();
    async move |jobs, watch: &mut Stopwatch| {
        let raw = Arc::new(Raw::open(&url, config, "bench-raw").await);
        watch.restart();
        Arc::clone(&raw).push(jobs, window).await;
        watch.stop();
        raw.close().await;
    }
}

fn raw_consume(url: &str, config: &'static str) -> impl Side {
    let url = url.to_owned();
    async move |jobs, watch: &mut Stopwatch| {
        let raw = Arc::new(Raw::open(&url, config, "bench-raw").await);
        Arc::clone(&raw).push(jobs, 1_024).await;
        let deliveries = raw.subscribe().await;
        watch.restart();
        Arc::clone(&raw).consume(deliveries, jobs).await;
        watch.stop();
        raw.close().await;
    }
}

async fn pipeline(url: &str, config: &str) -> (Pipeline, Arc<dyn Driver>) {
    let mut registry = Registry::new();
    registry.register(jobs_amqp::constructor()).expect("the only driver");
    let pipeline = Pipeline::new("bench-driver", jobs_amqp::NAME)
        .with_option("addr", url)
        .with_option("queue", "bench-driver")
        .with_option("queue_type", config)
        .with_option("prefetch", PREFETCH);
    let driver = registry.connect(pipeline.clone()).await.expect("the broker runs");
    (pipeline, driver)
}

fn driver_push(url: &str, config: &'static str, callers: usize) -> impl Side {
    let url = url.to_owned();
    async move |jobs, watch: &mut Stopwatch| {
        let admin = Raw::open(&url, config, "bench-driver").await;
        let (_, driver) = pipeline(&url, config).await;
        watch.restart();
        push_all(&driver, jobs, callers).await;
        watch.stop();
        driver.stop().await.expect("stops");
        admin.close().await;
    }
}

/// With so many in flight, from one task as the other side does it.
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

fn driver_consume(url: &str, config: &'static str) -> impl Side {
    let url = url.to_owned();
    async move |jobs, watch: &mut Stopwatch| {
        let admin = Raw::open(&url, config, "bench-driver").await;
        let (pipeline, driver) = pipeline(&url, config).await;
        push_all(&driver, jobs, 1_024).await;
        let queue = Queue::new();
        let inlet = queue.open_lane(&pipeline);
        driver.run(inlet).await.expect("runs once");
        watch.restart();
        in_task(ack_all(queue, jobs)).await;
        watch.stop();
        driver.stop().await.expect("stops");
        admin.close().await;
    }
}

/// With half of what the broker sends at once unanswered, as settling needs no answer to go on.
async fn ack_all(queue: Queue, jobs: usize) {
    let mut unanswered = VecDeque::new();
    for _ in 0..jobs {
        unanswered.push_back(queue.pop().await.expect("the queue is open").ack().unhurried());
        if unanswered.len() == usize::from(PREFETCH) / 2 {
            let first = unanswered.pop_front().expect("there are some");
            first.await.expect("the channel lives");
        }
    }
    for settled in unanswered {
        settled.await.expect("the channel lives");
    }
}
