//! A consuming process that is killed.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jobs_core::{Pipeline, Queue, Registry};
use jobs_kit::{Case, CaseResult, Fixture};

use super::{case, harness};
use crate::kafkad::{Brokers, Committed};

/// Makes this program the process that is killed: brokers and name of the pipeline.
const VICTIM: &str = "JOBS_KIT_KAFKA_VICTIM";
/// Jobs a victim gets, and which of them it keeps: every one of this number.
const JOBS: usize = 600;
const KEPT: usize = 3;

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(
            brokers,
            "crash::a_process_with_hundreds_settled_out_of_order",
            &[1, 3, 4],
            "a killed process loses nothing, and what it had committed is not run again",
            |fx, brokers| a_process_is_killed(fx, brokers, true),
        ),
        case(
            brokers,
            "crash::a_process_before_it_has_committed",
            &[1, 3],
            "a killed process loses nothing, and only what it had settled is run again",
            |fx, brokers| a_process_is_killed(fx, brokers, false),
        ),
    ]
}

/// What a program does that was started to be killed: takes jobs, keeps some, settles the others and
/// tells their ids. `None` if it was not.
pub fn victim() -> Option<ExitCode> {
    let order = std::env::var(VICTIM).ok()?;
    let (brokers, name) = order.split_once(' ').expect("brokers and a name");
    let runtime = tokio::runtime::Runtime::new().expect("the system allows threads");
    runtime.block_on(toil(config(brokers, name)));
    Some(ExitCode::FAILURE)
}

fn config(brokers: &str, name: &str) -> Pipeline {
    harness::pipeline(brokers, name).with_option("prefetch", JOBS)
}

async fn toil(config: Pipeline) {
    let mut registry = Registry::new();
    registry.register(jobs_kafka::constructor()).expect("the only driver");
    let driver = registry.connect(config.clone()).await.expect("the broker runs");
    let queue = Queue::new();
    driver.run(queue.open_lane(&config)).await.expect("the broker runs");
    let mut kept = Vec::new();
    for number in 0.. {
        let job = queue.pop().await.expect("the queue is open");
        if number % KEPT == 0 {
            kept.push(job);
            continue;
        }
        let id = job.id().clone();
        job.ack().await.expect("the partition is ours");
        let mut told = std::io::stdout().lock();
        writeln!(told, "{id}").and_then(|()| told.flush()).expect("somebody listens");
    }
}

/// A process that is killed when this is dropped, if not before.
struct Victim {
    child: Child,
    told: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Victim {
    fn start(brokers: &str, name: &str) -> std::io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(VICTIM, format!("{brokers} {name}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = child.stdout.take().map(BufReader::new).expect("it is piped");
        let told = Arc::<Mutex<Vec<String>>>::default();
        let noted = Arc::clone(&told);
        let reader = std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, told, reader: Some(reader) })
    }

    fn told(&self) -> Vec<String> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Kills it with `SIGKILL`, and returns all it has told.
    fn kill(mut self) -> std::io::Result<Vec<String>> {
        self.child.kill()?;
        self.child.wait()?;
        self.reader.take().map(JoinHandle::join);
        Ok(self.told())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // It is dead already, or there is nothing else to be done.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn a_process_is_killed(fx: Fixture, brokers: Arc<Brokers>, quiet: bool) -> CaseResult {
    let broker = brokers.shared().await?;
    let name = fx.configure().await?.name().to_owned();
    let second = fx.connect(config(&broker.brokers(), &name)).await?;
    let pushed = second.push_numbered(JOBS).await?;
    let victim = Victim::start(&broker.brokers(), &name)?;
    let expected = if quiet { JOBS - JOBS / KEPT } else { JOBS / 4 };
    fx.eventually("it works", async || match victim.told().len() {
        told if told >= expected => Ok(()),
        told => Err(format!("{told} of {expected}")),
    })
    .await?;
    if quiet {
        until_committed(&fx, broker.operator(), &name).await?;
    }
    let told: BTreeSet<String> = victim.kill()?.into_iter().collect();
    second.run().await?;
    let found = second.drain(JOBS - told.len()).await?;
    let found: BTreeSet<String> = found.iter().map(|id| id.as_str().to_owned()).collect();
    let lost =
        pushed.iter().filter(|id| !told.contains(id.as_str()) && !found.contains(id.as_str()));
    assert_eq!(lost.count(), 0, "neither settled nor run again");
    let redone = told.intersection(&found).count();
    assert!(!quiet || redone == 0, "{redone} of {} were committed and run again", told.len());
    second.expect_empty().await?;
    Ok(())
}

/// Waits until ten intervals have brought nothing new.
async fn until_committed(
    fx: &Fixture,
    operator: crate::kafkad::Operator,
    name: &str,
) -> CaseResult {
    const QUIET: Duration = Duration::from_secs(1);
    let (mut last, mut since) = (Committed::default(), Instant::now());
    fx.eventually("all of it is committed", async || {
        let found = operator.committed(name, name, 0).await.map_err(|e| format!("{e:?}"))?;
        if found != last {
            (last, since) = (found, Instant::now());
        }
        match !last.metadata.is_empty() && since.elapsed() > QUIET {
            true => Ok(()),
            false => Err(format!("{last:?}")),
        }
    })
    .await?;
    Ok(())
}
