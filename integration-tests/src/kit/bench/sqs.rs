//! `sqs` against aws-sdk-sqs, used as its most careful user would: batches of ten made by hand, as many
//! requests at once as the server is fastest with, the same bodies and attributes, deletions in
//! batches.
//!
//! `requests` counts what the driver sends for a thousand jobs, in a pass of its own through a gate.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_sdk_sqs::Client;
use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{
    DeleteMessageBatchRequestEntry, MessageAttributeValue, MessageSystemAttributeName,
    SendMessageBatchRequestEntry,
};
use integration_tests::elasticmq::{ElasticMq, Operator, client};
use integration_tests::gate::Gate;
use jobs_core::{Driver, JobId, Message, Pipeline, Queue, Registry};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::{Line, Side, Stopwatch, measured, messages, say, share};

/// The most that go in one request.
const BATCH: usize = 10;
/// Requests at once with which the bare client pushes fastest, and consumes.
const SENDERS: usize = 16;
const POLLERS: usize = 8;
/// Jobs of the pass that counts requests.
const COUNTED: usize = 2_000;
/// Longer than any pass, so that nothing comes twice.
const HIDDEN: i32 = 600;

pub(crate) fn run() {
    let runtime = Runtime::new().expect("the system allows threads");
    let server = runtime.block_on(ElasticMq::start_in_memory()).expect("ElasticMQ starts");
    let at = server.address();
    // A server that has just started is slower than one that has worked.
    runtime.block_on(raw_push(at)(40_000, &mut Stopwatch::start()));
    for callers in [64, 160] {
        let raw = raw_push(at);
        compare(&runtime, at, &line("push", callers, 40_000), raw, |at| driver_push(at, callers));
    }
    let single = line("push_single", 64, 20_000);
    compare(&runtime, at, &single, raw_push_single(at, 64), |at| driver_push(at, 64));
    for callers in [64, 160] {
        let (line, raw) = (line("consume", callers, 30_000), raw_consume(at));
        compare(&runtime, at, &line, raw, |at| driver_consume(at, server.address(), callers));
    }
}

fn line(op: &'static str, concurrency: usize, jobs: usize) -> Line {
    Line { driver: jobs_sqs::NAME, op, config: "standard", concurrency, jobs }
}

/// Prints a line, with the driver's requests for a thousand jobs.
fn compare<S: Side>(
    runtime: &Runtime,
    server: SocketAddr,
    line: &Line,
    raw: impl Side,
    driver: impl Fn(SocketAddr) -> S,
) {
    let measured = measured(line, &raw, &driver(server));
    let gate = Gate::before(server).expect("a port is free");
    let before = gate.count("");
    runtime.block_on(driver(gate.address())(COUNTED, &mut Stopwatch::start()));
    let jobs = ["SendMessage", "ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility"];
    let count: usize = jobs.iter().map(|action| gate.count(action)).sum();
    assert!(gate.count("") > before, "it went through the gate");
    say(format!("{measured} requests={}", count * 1_000 / COUNTED));
}

fn url_of(server: SocketAddr) -> String {
    format!("http://{server}")
}

/// A queue of one pass.
struct Bare {
    client: Client,
    url: String,
    name: String,
}

impl Bare {
    async fn create(server: SocketAddr) -> Self {
        let name = format!("bench-{}", JobId::random());
        let operator = Operator::at(&url_of(server));
        let url = operator.create(&name, &[]).await.expect("the server runs");
        Self { client: client(&url_of(server)), url, name }
    }

    async fn delete(&self) {
        self.client.delete_queue().queue_url(&self.url).send().await.expect("it is there");
    }

    /// Sends a part of the messages, ten at a time.
    async fn push(self: Arc<Self>, jobs: usize) {
        let mut entries = Vec::with_capacity(BATCH);
        for (index, message) in messages(jobs).enumerate() {
            let entry = SendMessageBatchRequestEntry::builder()
                .id(entries.len().to_string())
                .message_body(body(&message));
            let entry = attributes(&message)
                .into_iter()
                .fold(entry, |entry, (name, value)| entry.message_attributes(name, value));
            entries.push(entry.build().expect("it has an id and a body"));
            if entries.len() == BATCH || index + 1 == jobs {
                let send = self.client.send_message_batch().queue_url(&self.url);
                let send = send.set_entries(Some(std::mem::take(&mut entries)));
                let answer = Box::pin(send.send()).await.expect("the server runs");
                assert!(answer.failed.is_empty(), "{:?}", answer.failed);
            }
        }
    }

    /// Sends a part of the messages one by one.
    async fn push_single(self: Arc<Self>, jobs: usize) {
        for message in messages(jobs) {
            let send = self.client.send_message().queue_url(&self.url).message_body(body(&message));
            let send = attributes(&message)
                .into_iter()
                .fold(send, |send, (name, value)| send.message_attributes(name, value));
            Box::pin(send.send()).await.expect("the server runs");
        }
    }

    /// Receives and deletes ten at a time until none is left.
    async fn consume(self: Arc<Self>, left: Arc<AtomicUsize>) {
        while left.load(Ordering::Relaxed) > 0 {
            let receive = self
                .client
                .receive_message()
                .queue_url(&self.url)
                .max_number_of_messages(10)
                .visibility_timeout(HIDDEN)
                .message_attribute_names("All")
                .message_system_attribute_names(
                    MessageSystemAttributeName::ApproximateReceiveCount,
                );
            let received = Box::pin(receive.send()).await.expect("the server runs");
            let mut entries = Vec::with_capacity(BATCH);
            for message in received.messages.unwrap_or_default() {
                let entry = DeleteMessageBatchRequestEntry::builder()
                    .id(entries.len().to_string())
                    .receipt_handle(message.receipt_handle().expect("it was received"));
                entries.push(entry.build().expect("it has an id and a handle"));
                black_box(message);
            }
            if entries.is_empty() {
                continue;
            }
            let count = entries.len();
            let delete = self.client.delete_message_batch().queue_url(&self.url);
            let delete = delete.set_entries(Some(entries)).send();
            let answer = Box::pin(delete).await.expect("the server runs");
            assert!(answer.failed.is_empty(), "{:?}", answer.failed);
            left.fetch_sub(count, Ordering::Relaxed);
        }
    }
}

fn body(message: &Message) -> String {
    String::from_utf8_lossy(message.payload()).into_owned()
}

/// The driver's messages, as they are on the wire.
fn attributes(message: &Message) -> [(&'static str, MessageAttributeValue); 6] {
    let written = |kind: &str, value: &str| {
        MessageAttributeValue::builder().data_type(kind).string_value(value)
    };
    let text = |value: &str| written("String", value).build().expect("it has a type");
    let headers = MessageAttributeValue::builder().data_type("Binary");
    let headers = headers.binary_value(Blob::new(*b"{}")).build().expect("it has a type");
    [
        ("rr_id", text(message.id().as_str())),
        ("rr_job", text(message.name())),
        ("rr_delay", text("0")),
        ("rr_headers", headers),
        ("rr_priority", written("Number", "10").build().expect("it has a type")),
        ("rr_auto_ack", text("false")),
    ]
}

/// Runs one task for each, on threads of the runtime.
async fn in_tasks<F: Future<Output = ()> + Send + 'static>(
    count: usize,
    work: impl Fn(usize) -> F,
) {
    let mut tasks: JoinSet<()> = (0..count).map(work).collect();
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no side panics");
    }
}

async fn fill(bare: &Arc<Bare>, jobs: usize) {
    in_tasks(SENDERS, |index| Arc::clone(bare).push(share(jobs, SENDERS, index))).await;
}

fn raw_push(server: SocketAddr) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        let bare = Arc::new(Bare::create(server).await);
        // Its connections are there, as those of the other side.
        fill(&bare, SENDERS * BATCH).await;
        watch.restart();
        fill(&bare, jobs).await;
        watch.stop();
        bare.delete().await;
    }
}

fn raw_push_single(server: SocketAddr, callers: usize) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        let bare = Arc::new(Bare::create(server).await);
        let push = |jobs| {
            let bare = &bare;
            in_tasks(callers, move |index| {
                Arc::clone(bare).push_single(share(jobs, callers, index))
            })
        };
        push(callers).await;
        watch.restart();
        push(jobs).await;
        watch.stop();
        bare.delete().await;
    }
}

fn raw_consume(server: SocketAddr) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        let bare = Arc::new(Bare::create(server).await);
        fill(&bare, jobs).await;
        let left = Arc::new(AtomicUsize::new(jobs));
        watch.restart();
        in_tasks(POLLERS, |_| Arc::clone(&bare).consume(Arc::clone(&left))).await;
        watch.stop();
        bare.delete().await;
    }
}

async fn pipeline(server: SocketAddr, queue: &str, prefetch: usize) -> (Pipeline, Arc<dyn Driver>) {
    let mut registry = Registry::new();
    registry.register(jobs_sqs::constructor()).expect("the only driver");
    let pipeline = Pipeline::new("bench", jobs_sqs::NAME)
        .with_option("endpoint", url_of(server))
        .with_option("region", "us-east-1")
        .with_option("key", "test")
        .with_option("secret", "test")
        .with_option("queue", queue)
        .with_option("skip_queue_declaration", true)
        .with_option("prefetch", prefetch)
        .with_option("receivers", POLLERS)
        .with_option("visibility_timeout", HIDDEN)
        .with_option("wait_time_seconds", 1);
    let driver = registry.connect(pipeline.clone()).await.expect("the server runs");
    (pipeline, driver)
}

async fn push_all(driver: &Arc<dyn Driver>, jobs: usize, callers: usize) {
    in_tasks(callers, |index| {
        let driver = Arc::clone(driver);
        async move {
            for message in messages(share(jobs, callers, index)) {
                driver.push(message).await.expect("stored");
            }
        }
    })
    .await;
}

fn driver_push(server: SocketAddr, callers: usize) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        let bare = Bare::create(server).await;
        let (_, driver) = pipeline(server, &bare.name, 1).await;
        push_all(&driver, callers, callers).await;
        watch.restart();
        push_all(&driver, jobs, callers).await;
        watch.stop();
        driver.stop().await.expect("stops");
        bare.delete().await;
    }
}

/// Filled past a gate, if there is one.
fn driver_consume(server: SocketAddr, past: SocketAddr, callers: usize) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        let bare = Arc::new(Bare::create(past).await);
        fill(&bare, jobs).await;
        let (pipeline, driver) = pipeline(server, &bare.name, callers).await;
        let queue = Queue::new();
        let inlet = queue.open_lane(&pipeline);
        watch.restart();
        driver.run(inlet).await.expect("runs once");
        in_tasks(callers, |index| {
            let queue = queue.clone();
            async move {
                for _ in 0..share(jobs, callers, index) {
                    let job = queue.pop().await.expect("the queue is open");
                    job.ack().await.expect("the lease holds");
                }
            }
        })
        .await;
        watch.stop();
        driver.stop().await.expect("stops");
        bare.delete().await;
    }
}
