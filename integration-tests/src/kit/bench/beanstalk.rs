//! `beanstalk` against beanstalkc, used as its most careful user would: a plain thread for each
//! connection, the same bodies, and the next command as soon as the last is answered.

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use beanstalkc::Beanstalkc;
use integration_tests::beanstalkd::{Beanstalkd, Mode};
use jobs_core::{Driver, Message, Pipeline, Queue, Registry};
use tokio::task::JoinSet;

use super::{Line, Side, Stopwatch, compare, messages, say, share};

/// Callers for each connection: who pushes one at a time is as slow as one connection.
const CALLERS: usize = 16;
const PREFETCH: usize = 256;
const TIME_TO_RUN: Duration = Duration::from_secs(30);
const TUBE: &str = "bench";

pub(crate) fn run() {
    let runtime = tokio::runtime::Runtime::new().expect("the system allows threads");
    let levels = [("memory", Mode::Memory), ("binlog", Mode::Binlog), ("synced", Mode::Synced)];
    for (config, mode) in levels {
        let server = runtime.block_on(Beanstalkd::start(mode, false)).expect("beanstalkd starts");
        let address = server.address();
        let line = |op, concurrency, jobs| {
            let driver = jobs_beanstalk::NAME;
            Line { driver, op, config, concurrency, jobs }
        };
        // Without a target where the disk decides, and there on as many connections as by default.
        let (connections, each): (&[usize], _) = match mode {
            Mode::Memory => (&[1, 4, 8, 16], 4_000),
            Mode::Binlog => (&[4], 4_000),
            _ => (&[4], 250),
        };
        for count in connections.iter().copied() {
            let jobs = count * each;
            let (raw, driver) = (raw_push(address, count), driver_push(address, count));
            compare(&line("push", count, jobs), raw, driver);
            let (raw, driver) = (raw_consume(address, count), driver_consume(address, count));
            compare(&line("consume", count, jobs), raw, driver);
        }
        runtime.block_on(ack_alone(address, config));
    }
}

fn connect(address: SocketAddr) -> Beanstalkc {
    let host = address.ip().to_string();
    let client = Beanstalkc::new().host(&host).port(address.port()).connect();
    let mut client = client.expect("the server runs");
    client.use_tube(TUBE).expect("a tube");
    client.watch(TUBE).expect("a tube");
    client.ignore("default").expect("another is watched");
    client
}

/// The same bytes that the driver writes.
fn body(message: &Message) -> Vec<u8> {
    let (id, name) = (message.id(), message.name());
    let mut body =
        format!("jobs/1 {{\"i\":\"{id}\",\"n\":\"{name}\",\"p\":10,\"t\":30}}\n").into_bytes();
    body.extend_from_slice(message.payload());
    body
}

fn push_on(mut client: Beanstalkc, jobs: usize) {
    for message in messages(jobs) {
        client.put(&body(&message), 10, Duration::ZERO, TIME_TO_RUN).expect("stored");
    }
}

/// Puts jobs into the tube that a pass is to find, on as many connections as the server is fast with.
fn fill(address: SocketAddr, jobs: usize) {
    threads(CALLERS, |index| spawn(move || push_on(connect(address), share(jobs, CALLERS, index))));
}

/// Empties the tube.
fn clear(address: SocketAddr) {
    threads(CALLERS, |_| {
        spawn(move || {
            let mut client = connect(address);
            while let Ok(mut job) = client.reserve_with_timeout(Duration::ZERO) {
                job.delete().expect("it is ours");
            }
        })
    });
}

fn threads(count: usize, work: impl Fn(usize) -> JoinHandle<()>) {
    let threads: Vec<_> = (0..count).map(work).collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no side panics"));
}

fn raw_push(address: SocketAddr, connections: usize) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        let clients: Vec<_> = (0..connections).map(|_| connect(address)).collect();
        watch.restart();
        let work =
            |(index, client)| spawn(move || push_on(client, share(jobs, connections, index)));
        let threads: Vec<_> = clients.into_iter().enumerate().map(work).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no side panics"));
        watch.stop();
        clear(address);
    }
}

fn raw_consume(address: SocketAddr, connections: usize) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        fill(address, jobs);
        let clients: Vec<_> = (0..connections).map(|_| connect(address)).collect();
        let left = Arc::new(AtomicUsize::new(jobs));
        watch.restart();
        let work = |client| {
            let left = Arc::clone(&left);
            spawn(move || consume_on(client, &left))
        };
        let threads: Vec<_> = clients.into_iter().map(work).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no side panics"));
        watch.stop();
    }
}

fn consume_on(mut client: Beanstalkc, left: &AtomicUsize) {
    let one_more = |left| usize::checked_sub(left, 1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok() {
        let job = client.reserve_with_timeout(Duration::from_secs(1)).expect("one more");
        let id = job.id();
        black_box(job.body().to_vec());
        client.delete(id).expect("it is ours");
    }
}

async fn pipeline(address: SocketAddr, connections: usize) -> (Pipeline, Arc<dyn Driver>) {
    let mut registry = Registry::new();
    registry.register(jobs_beanstalk::constructor()).expect("the only driver");
    let pipeline = Pipeline::new("bench", jobs_beanstalk::NAME)
        .with_option("addr", format!("tcp://{address}"))
        .with_option("tube", TUBE)
        .with_option("connections", connections)
        .with_option("prefetch", PREFETCH);
    let driver = registry.connect(pipeline.clone()).await.expect("the server runs");
    (pipeline, driver)
}

async fn push_all(driver: &Arc<dyn Driver>, jobs: usize, callers: usize) {
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        let driver = Arc::clone(driver);
        tasks.spawn(async move {
            for message in messages(share(jobs, callers, caller)) {
                driver.push(message).await.expect("stored");
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no side panics");
    }
}

fn driver_push(address: SocketAddr, connections: usize) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        let (_, driver) = pipeline(address, connections).await;
        // The threads are there, as those of the other side.
        push_all(&driver, connections * CALLERS, connections * CALLERS).await;
        watch.restart();
        push_all(&driver, jobs, connections * CALLERS).await;
        watch.stop();
        driver.stop().await.expect("stops");
        clear(address);
    }
}

fn driver_consume(address: SocketAddr, connections: usize) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        let (pipeline, driver) = pipeline(address, connections).await;
        fill(address, jobs);
        let queue = Queue::new();
        let inlet = queue.open_lane(&pipeline);
        watch.restart();
        driver.run(inlet).await.expect("runs once");
        let worker = tokio::spawn(async move {
            // As settling needs no answer to go on.
            let mut unanswered = VecDeque::new();
            for _ in 0..jobs {
                unanswered.push_back(queue.pop().await.expect("the queue is open").ack());
                if unanswered.len() == PREFETCH / 2 {
                    let first = unanswered.pop_front().expect("there are some");
                    first.await.expect("the connection lives");
                }
            }
            for settled in unanswered {
                settled.await.expect("the connection lives");
            }
        });
        worker.await.expect("no side panics");
        watch.stop();
        driver.stop().await.expect("stops");
    }
}

/// How long an ack takes when nothing else happens: requests for jobs wait at the server.
async fn ack_alone(address: SocketAddr, config: &str) {
    const JOBS: usize = 300;
    let (pipeline, driver) = pipeline(address, 4).await;
    let queue = Queue::new();
    driver.run(queue.open_lane(&pipeline)).await.expect("runs once");
    let mut times = Vec::with_capacity(JOBS);
    for message in messages(JOBS) {
        driver.push(message).await.expect("stored");
        let job = queue.pop().await.expect("the queue is open");
        let start = Instant::now();
        job.ack().await.expect("the connection lives");
        times.push(start.elapsed());
    }
    driver.stop().await.expect("stops");
    times.sort_unstable();
    let at = |part: usize| times[(JOBS - 1) * part / 100].as_micros();
    say(format!(
        "{} ack_alone config={config} concurrency=1 payload={} p50_us={} p99_us={}",
        jobs_beanstalk::NAME,
        super::PAYLOAD,
        at(50),
        at(99),
    ));
}
