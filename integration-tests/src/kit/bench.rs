//! Side by side with the bare client: the same messages, the same concurrency, in turns.

mod memory;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use jobs_core::{Bytes, Message};
use rustix::time::{ClockId, clock_gettime};

/// Pairs of runs; the ratio is the median of theirs.
const PAIRS: usize = 5;
/// Bytes of payload in every message.
const PAYLOAD: usize = 256;

/// What one side of a comparison cost for one pass over its messages.
#[derive(Clone, Copy)]
struct Sample {
    wall: Duration,
    cpu: Duration,
    allocations: usize,
}

/// One line of the table.
struct Line {
    driver: &'static str,
    op: &'static str,
    config: &'static str,
    concurrency: usize,
    jobs: usize,
}

/// Runs the benchmarks of a driver.
pub(crate) async fn run(driver: &str) -> ExitCode {
    match driver {
        "memory" | "all" => memory::run().await,
        other => {
            eprintln!("kit: no benchmark for `{other}`; expected `memory` or `all`");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Messages that are ready before the clock starts, so that neither side pays for making them.
fn messages(count: usize) -> Vec<Message> {
    let payload = Bytes::from(vec![b'x'; PAYLOAD]);
    (0..count).map(|_| Message::new("bench", payload.clone())).collect()
}

/// Deals messages out to `count` producers.
fn deal(messages: Vec<Message>, count: usize) -> Vec<Vec<Message>> {
    let mut hands: Vec<Vec<Message>> = (0..count).map(|_| Vec::new()).collect();
    for (index, message) in messages.into_iter().enumerate() {
        hands[index % count].push(message);
    }
    hands
}

/// Compares two ways to move `line.jobs` messages, and prints the line.
async fn compare(line: Line, raw: impl AsyncFn(Vec<Message>), driver: impl AsyncFn(Vec<Message>)) {
    // The first pass of each side pays for memory and threads.
    measure(&raw, line.jobs / 10).await;
    measure(&driver, line.jobs / 10).await;
    let mut pairs = Vec::with_capacity(PAIRS);
    for _ in 0..PAIRS {
        pairs.push((measure(&raw, line.jobs).await, measure(&driver, line.jobs).await));
    }
    let rate = |sample: &Sample| line.jobs as f64 / sample.wall.as_secs_f64();
    let per_job = |value: f64| value / line.jobs as f64;
    let Line { driver, op, config, concurrency, .. } = line;
    println!(
        "{driver} {op} config={config} concurrency={concurrency} payload={PAYLOAD} raw={:.0} \
         driver={:.0} ratio={:.2} cpu_us={:.2} allocs={:.2}",
        median(pairs.iter().map(|(raw, _)| rate(raw))),
        median(pairs.iter().map(|(_, driver)| rate(driver))),
        median(pairs.iter().map(|(raw, driver)| rate(driver) / rate(raw))),
        median(pairs.iter().map(|(_, driver)| per_job(driver.cpu.as_secs_f64() * 1e6))),
        median(pairs.iter().map(|(_, driver)| per_job(driver.allocations as f64))),
    );
}

async fn measure(side: &impl AsyncFn(Vec<Message>), jobs: usize) -> Sample {
    let messages = messages(jobs);
    let allocations = crate::ALLOCATOR.stats().allocations;
    let (wall, cpu) = (Instant::now(), cpu_time());
    side(messages).await;
    Sample {
        wall: wall.elapsed(),
        cpu: cpu_time().saturating_sub(cpu),
        allocations: crate::ALLOCATOR.stats().allocations - allocations,
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("processor time is not negative")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
