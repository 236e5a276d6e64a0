//! Side by side with the bare client: the same messages, the same concurrency, in turns.

pub(crate) mod amqp;
mod backlog;
pub(crate) mod beanstalk;
pub(crate) mod kafka;
pub(crate) mod local;
pub(crate) mod memory;
mod report;
pub(crate) mod sqs;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jobs_core::{Bytes, Message};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};

use report::say;

/// Pairs of runs; the ratio is the median of theirs.
const PAIRS: usize = 5;
/// Bytes of payload in every message.
const PAYLOAD: usize = 256;

/// What one side of a comparison cost for one pass over its messages.
#[derive(Clone, Copy)]
struct Sample {
    wall: Duration,
    cpu: Duration,
}

/// Measures a part of a pass, or all of it if it is not told when to start and stop.
struct Stopwatch {
    started: (Instant, Duration),
    stopped: Option<Sample>,
}

impl Stopwatch {
    fn start() -> Self {
        Self { started: (Instant::now(), cpu_time()), stopped: None }
    }

    /// Forgets what was before: preparation.
    fn restart(&mut self) {
        *self = Self::start();
    }

    /// What follows is cleaning up.
    fn stop(&mut self) {
        let (wall, cpu) = self.started;
        let cpu = cpu_time().saturating_sub(cpu);
        self.stopped.get_or_insert(Sample { wall: wall.elapsed(), cpu });
    }

    fn read(mut self) -> Sample {
        self.stop();
        self.stopped.expect("stopped just now")
    }
}

/// One line of the table.
struct Line {
    driver: &'static str,
    op: &'static str,
    config: &'static str,
    concurrency: usize,
    jobs: usize,
}

/// How one side moves a number of messages.
trait Side: AsyncFn(usize, &mut Stopwatch) {}
impl<S: AsyncFn(usize, &mut Stopwatch)> Side for S {}

/// Runs the benchmarks of a driver, or of all, and writes them to a page if one is named.
pub(crate) fn run(driver: &str, page: Option<&Path>) -> Result<ExitCode, String> {
    for driver in crate::drivers::select(driver)? {
        (driver.bench)();
    }
    if let Some(page) = page {
        report::write(page, &format!("cargo kit bench {driver} --page {}", page.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes messages one after the other, in the time that is measured: both sides pay for it, as
/// every caller does.
fn messages(count: usize) -> impl Iterator<Item = Message> + Send {
    let payload = Bytes::from(vec![b'x'; PAYLOAD]);
    (0..count).map(move |_| Message::new("bench", payload.clone()))
}

/// Shares `jobs` among `count` producers or workers: the part of number `index`.
fn share(jobs: usize, count: usize, index: usize) -> usize {
    jobs / count + usize::from(index < jobs % count)
}

/// Compares two ways to move `line.jobs` messages, and prints the line.
fn compare(line: &Line, raw: impl Side, driver: impl Side) {
    say(measured(line, &raw, &driver));
}

/// As [`compare`], with the allocations beyond those of the bare client, per job.
fn compare_allocations(line: &Line, raw: impl Side, driver: impl Side) {
    let measured = measured(line, &raw, &driver);
    let more = allocations(&driver, line.jobs) - allocations(&raw, line.jobs);
    say(format!("{measured} allocs={:.2}", more / line.jobs as f64));
}

fn measured(line: &Line, raw: &impl Side, driver: &impl Side) -> String {
    let runtime = runtime(Builder::new_multi_thread());
    // The first pass of each side pays for memory and threads.
    measure(&runtime, raw, line.jobs / 10);
    measure(&runtime, driver, line.jobs / 10);
    let pair = |_| (measure(&runtime, raw, line.jobs), measure(&runtime, driver, line.jobs));
    let pairs: Vec<_> = (0..PAIRS).map(pair).collect();
    let rate = |sample: &Sample| line.jobs as f64 / sample.wall.as_secs_f64();
    let cpu_us = |sample: &Sample| sample.cpu.as_secs_f64() * 1e6 / line.jobs as f64;
    let Line { driver: name, op, config, concurrency, .. } = line;
    format!(
        "{name} {op} config={config} concurrency={concurrency} payload={PAYLOAD} raw={:.0} \
         driver={:.0} ratio={:.2} cpu_us={:.2} raw_cpu_us={:.2}",
        median(pairs.iter().map(|(raw, _)| rate(raw))),
        median(pairs.iter().map(|(_, driver)| rate(driver))),
        median(pairs.iter().map(|(raw, driver)| rate(driver) / rate(raw))),
        median(pairs.iter().map(|(_, driver)| cpu_us(driver))),
        median(pairs.iter().map(|(raw, _)| cpu_us(raw))),
    )
}

fn runtime(mut builder: Builder) -> Runtime {
    builder.enable_all().build().expect("the system allows threads")
}

fn measure(runtime: &Runtime, side: &impl Side, jobs: usize) -> Sample {
    let mut watch = Stopwatch::start();
    runtime.block_on(side(jobs, &mut watch));
    watch.read()
}

/// Counted apart and on one thread: the counter sees no other.
fn allocations(side: &impl Side, jobs: usize) -> f64 {
    let runtime = runtime(Builder::new_current_thread());
    let mut watch = Stopwatch::start();
    allocation_counter::measure(|| runtime.block_on(side(jobs, &mut watch))).count_total as f64
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
