//! `local` against a plain file: the same bytes appended by a thread that takes all that waits,
//! writes it, syncs it once, and answers each caller.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use jobs_core::{Driver, Message, Pipeline, Queue, Registry};
use tempfile::TempDir;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::{Line, Side, Stopwatch, compare, messages, share};

const CONFIGS: [&str; 2] = ["durable", "memory"];
/// Jobs pushed at once to prepare for consuming.
const BATCH: usize = 1_024;

pub(crate) fn run() {
    // First, so that the memory is its own.
    super::runtime(Builder::new_multi_thread()).block_on(super::backlog::run());
    let line = |op, config, concurrency, jobs| {
        let driver = jobs_local::NAME;
        Line { driver, op, config, concurrency, jobs }
    };
    for (callers, jobs) in [(1, 3_000), (64, 60_000), (1_024, 100_000)] {
        compare(&line("push", "full", callers, jobs), raw(callers), driver_push(callers));
    }
    for config in CONFIGS {
        compare(&line("consume", config, 64, 40_000), raw(64), driver_consume(64, config));
    }
    // Without a target: each job is on disk three times before the next one comes.
    compare(&line("consume_one", "durable", 1, 2_000), raw(1), driver_consume(1, "durable"));
}

async fn join(mut tasks: JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no side panics");
    }
}

type Record = (Message, oneshot::Sender<()>);

/// Appends what waits until all callers are gone.
fn append(mut file: File, mut records: mpsc::UnboundedReceiver<Record>) {
    let (mut bytes, mut answers) = (Vec::new(), Vec::new());
    while let Some(first) = records.blocking_recv() {
        let mut next = Some(first);
        while let Some((message, answer)) = next {
            bytes.extend_from_slice(message.id().as_str().as_bytes());
            bytes.extend_from_slice(message.name().as_bytes());
            bytes.extend_from_slice(message.payload());
            answers.push(answer);
            next = records.try_recv().ok();
        }
        file.write_all(&bytes).expect("written");
        file.sync_data().expect("synced");
        bytes.clear();
        answers.drain(..).for_each(|answer| answer.send(()).expect("the caller waits"));
    }
}

fn raw(callers: usize) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let file = File::create(directory.path().join("raw")).expect("a file");
        let (sender, receiver) = mpsc::unbounded_channel();
        let writer = std::thread::spawn(move || append(file, receiver));
        watch.restart();
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let sender = sender.clone();
            tasks.spawn(async move {
                for message in messages(share(jobs, callers, caller)) {
                    let (answer, answered) = oneshot::channel();
                    sender.send((message, answer)).expect("the writer lives");
                    answered.await.expect("written");
                }
            });
        }
        drop(sender);
        join(tasks).await;
        watch.stop();
        writer.join().expect("no side panics");
    }
}

struct Local {
    driver: Arc<dyn Driver>,
    pipeline: Pipeline,
    _directory: TempDir,
}

async fn local(lease_storage: &str) -> Local {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = directory.path().join("jobs.db").to_string_lossy().into_owned();
    let mut registry = Registry::new();
    registry.register(jobs_local::constructor()).expect("the only driver");
    let pipeline = Pipeline::new("bench", jobs_local::NAME)
        .with_option("path", path)
        .with_option("prefetch", 256)
        .with_option("lease_storage", lease_storage);
    let driver = registry.connect(pipeline.clone()).await.expect("valid");
    Local { driver, pipeline, _directory: directory }
}

fn driver_push(callers: usize) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        let local = local("durable").await;
        watch.restart();
        push(&local.driver, jobs, callers).await;
        watch.stop();
        local.driver.stop().await.expect("stops");
    }
}

fn driver_consume(workers: usize, lease_storage: &'static str) -> impl Side {
    async move |jobs, watch: &mut Stopwatch| {
        let local = local(lease_storage).await;
        fill(&local.driver, jobs).await;
        watch.restart();
        let queue = Queue::new();
        local.driver.run(queue.open_lane(&local.pipeline)).await.expect("runs once");
        consume(&queue, jobs, workers).await;
        watch.stop();
        local.driver.stop().await.expect("stops");
    }
}

/// Pushes in batches, to prepare.
pub(super) async fn fill(driver: &Arc<dyn Driver>, jobs: usize) {
    let mut waiting = messages(jobs).peekable();
    while waiting.peek().is_some() {
        let batch = waiting.by_ref().take(BATCH).collect();
        for answer in driver.push_batch(batch).await {
            answer.expect("stored");
        }
    }
}

/// Pushes one by one, by so many callers.
pub(super) async fn push(driver: &Arc<dyn Driver>, jobs: usize, callers: usize) {
    let mut tasks = JoinSet::new();
    for caller in 0..callers {
        let driver = Arc::clone(driver);
        tasks.spawn(async move {
            for message in messages(share(jobs, callers, caller)) {
                driver.push(message).await.expect("stored");
            }
        });
    }
    join(tasks).await;
}

/// Acknowledges jobs, by so many workers.
pub(super) async fn consume(queue: &Queue, jobs: usize, workers: usize) {
    let mut tasks = JoinSet::new();
    for worker in 0..workers {
        tasks.spawn(ack(queue.clone(), share(jobs, workers, worker)));
    }
    join(tasks).await;
}

async fn ack(queue: Queue, jobs: usize) {
    for _ in 0..jobs {
        let job = queue.pop().await.expect("the queue is open");
        job.ack().await.expect("the lease holds");
    }
}
