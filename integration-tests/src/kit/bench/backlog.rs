//! `local` with a million jobs waiting, beside the same with a thousand.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs_core::{Driver, Pipeline, Queue, Registry};

use super::local::{consume, fill, push};
use super::{PAYLOAD, median, say};

const FEW: usize = 1_000;
const MANY: usize = 1_000_000;
/// Jobs pushed and then consumed to measure a rate, by so many callers.
const JOBS: usize = 20_000;
const CALLERS: usize = 64;
const ROUNDS: usize = 5;
/// What remains of the file when nothing is in it, at most, and how long that may take.
const EMPTY: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// An open file that is consumed.
struct Open {
    driver: Arc<dyn Driver>,
    queue: Queue,
}

impl Open {
    async fn at(path: &Path) -> Self {
        let mut registry = Registry::new();
        registry.register(jobs_local::constructor()).expect("the only driver");
        let pipeline = Pipeline::new("backlog", jobs_local::NAME)
            .with_option("path", path.to_string_lossy().into_owned())
            .with_option("prefetch", 256);
        let queue = Queue::new();
        let lane = queue.open_lane(&pipeline);
        let driver = registry.connect(pipeline).await.expect("valid");
        driver.run(lane).await.expect("runs once");
        Self { driver, queue }
    }

    /// Jobs pushed and consumed per second, with as many waiting after as before.
    async fn rates(&self) -> (f64, f64) {
        let (mut pushed, mut consumed) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            push(&self.driver, JOBS, CALLERS).await;
            pushed.push(JOBS as f64 / start.elapsed().as_secs_f64());
            let start = Instant::now();
            consume(&self.queue, JOBS, CALLERS).await;
            consumed.push(JOBS as f64 / start.elapsed().as_secs_f64());
        }
        (median(pushed.into_iter()), median(consumed.into_iter()))
    }
}

/// Prints a line with what a million waiting jobs cost.
pub(crate) async fn run() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let few = Open::at(&directory.path().join("few.db")).await;
    fill(&few.driver, FEW).await;
    let (push_few, consume_few) = few.rates().await;
    few.driver.stop().await.expect("stops");

    let path = directory.path().join("many.db");
    let many = Open::at(&path).await;
    fill(&many.driver, MANY).await;
    many.driver.stop().await.expect("stops");
    drop(many);
    let start = Instant::now();
    let many = Open::at(&path).await;
    let first = many.queue.pop().await.expect("the queue is open");
    let reopened = start.elapsed();
    first.release().await.expect("the lease holds");
    let (push_many, consume_many) = many.rates().await;
    let full = size(&path);
    let start = Instant::now();
    consume(&many.queue, MANY, CALLERS).await;
    let drained = start.elapsed();
    let start = Instant::now();
    while size(&path) > EMPTY && start.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    say(format!(
        "local backlog config=full concurrency={CALLERS} payload={PAYLOAD} pending={MANY} \
         reopened_ms={} push={push_many:.0} push_ratio={:.2} consume={consume_many:.0} \
         consume_ratio={:.2} drained_s={:.1} peak_mib={} file_mib={} left_mib={} reclaimed_s={:.1}",
        reopened.as_millis(),
        push_many / push_few,
        consume_many / consume_few,
        drained.as_secs_f64(),
        peak_memory() >> 20,
        full >> 20,
        size(&path) >> 20,
        start.elapsed().as_secs_f64(),
    ));
    many.driver.stop().await.expect("stops");
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The most memory this process has had, in bytes; zero where the system does not tell.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
