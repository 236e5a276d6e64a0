//! Soaks of drivers that have no broker to kill: it is the process that is killed.

use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use jobs_core::{Error, ErrorKind, Result};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{Crew, into_error};
use crate::ledger::Event;
use crate::wait::within;
use crate::{Fixture, Harness, Ledger, Totals, Unexpected};

/// How long a process that nobody kills works.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);
/// How long a process may take until it works.
const START: Duration = Duration::from_secs(30);

/// A child process that works until it is killed, and tells what became of every message.
///
/// The child calls [`toil`] with its standard output. Whoever started it keeps the [`Ledger`], and
/// can judge afterwards with [`work_off`]:
///
/// - a push or settlement is told after it returned `Ok`: a kill in between leaves it uncertain;
/// - a job that was told to be settled must not be delivered to another process.
///
/// [`soak_killed`] does all this again and again. If this is dropped the child is killed.
#[derive(Debug)]
pub struct Victim {
    child: Child,
    reader: JoinHandle<io::Result<()>>,
    heard: watch::Receiver<bool>,
    doubted: Arc<AtomicBool>,
    ledger: Arc<Ledger>,
}

impl Victim {
    /// Starts a process, and notes what it tells on its standard output. Lines of another form are
    /// passed over.
    ///
    /// # Errors
    /// Those of starting a process.
    pub fn start(mut command: Command, ledger: &Arc<Ledger>) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn()?;
        let output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (first, heard) = watch::channel(false);
        let (ledger, doubted) = (Arc::clone(ledger), Arc::<AtomicBool>::default());
        let reader = book(output, Arc::clone(&ledger), first, Arc::clone(&doubted));
        Ok(Self { child, reader: tokio::spawn(reader), heard, doubted, ledger })
    }

    /// Waits until the process works: until it has told something.
    ///
    /// # Errors
    /// If it ends before, or takes too long.
    pub async fn at_work(&mut self) -> Result<(), Unexpected> {
        let heard = within(START, "a child process works", self.heard.wait_for(|heard| *heard));
        heard
            .await?
            .map(drop)
            .map_err(|_| Unexpected::new("a child process ended before it worked"))
    }

    /// From now on what was answered is not noted, as if the process had ended before it could tell:
    /// for a test that takes more from it than its life, such as the power of its disk.
    pub fn doubt(&self) {
        self.doubted.store(true, Ordering::Release);
    }

    /// Kills the process with `SIGKILL`, notes the rest of what it told, and that it
    /// [crashed](Ledger::crashed). Returns how it ended, which may have been before.
    ///
    /// # Errors
    /// Those of the system.
    pub async fn kill(mut self) -> io::Result<ExitStatus> {
        self.child.start_kill()?;
        let status = self.child.wait().await?;
        self.reader.await??;
        self.ledger.crashed();
        Ok(status)
    }
}

async fn book(
    output: ChildStdout,
    ledger: Arc<Ledger>,
    first: watch::Sender<bool>,
    doubted: Arc<AtomicBool>,
) -> io::Result<()> {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).await? > 0 {
        if let Some((event, id)) = Event::read(&line) {
            if !event.is_answer() || !doubted.load(Ordering::Acquire) {
                ledger.note(event, &id);
            }
            first.send_if_modified(|heard| !std::mem::replace(heard, true));
        }
        line.clear();
    }
    Ok(())
}

/// What a [`Victim`] does: works as in a [`soak`](super::soak) and tells of every message on `told`,
/// until it is killed or nobody listens.
///
/// All processes of a soak must work on one queue, whatever name the harness is given.
///
/// # Errors
/// The harness's, and those of connecting and running.
pub async fn toil(
    harness: Arc<dyn Harness>,
    seed: u64,
    told: impl io::Write + Send + 'static,
) -> Result<()> {
    let fixture = Fixture::new(harness);
    let ledger = Arc::new(Ledger::told_to(told));
    let mut crew = Crew::start(&fixture, seed, Some(ledger)).await?;
    crew.push_until(Instant::now() + FOR_EVER).join_all().await;
    Ok(())
}

/// Works off what killed processes have left, and judges: in the end nothing is pending.
///
/// # Errors
/// The harness's, and those of connecting, running and stopping.
pub async fn work_off(harness: Arc<dyn Harness>, ledger: Arc<Ledger>) -> Result<Totals> {
    let fixture = Fixture::new(harness);
    let worked = match Crew::start(&fixture, 0, Some(ledger)).await {
        Ok(crew) => crew.work_off(&fixture).await,
        Err(error) => Err(error),
    };
    let closed = fixture.close().await.map_err(into_error);
    worked.and_then(|totals| closed.map(|()| totals))
}

/// As [`soak`](super::soak), in processes that are killed at random moments, one after another on one
/// queue. Then this process works off what is left.
///
/// Each of `lives` is how long a process lives; mostly from when it works, sometimes from when it
/// starts. `child` makes the command of a process that calls [`toil`] with this seed.
///
/// # Errors
/// Those of [`work_off`]; also if a process cannot be started or ends by itself.
pub async fn soak_killed(
    harness: Arc<dyn Harness>,
    seed: u64,
    lives: impl IntoIterator<Item = Duration>,
    mut child: impl FnMut(u64) -> Command,
) -> Result<Totals> {
    let mut random = Rng::with_seed(seed);
    let ledger = Arc::new(Ledger::new());
    for life in lives {
        let mut victim = Victim::start(child(random.u64(..)), &ledger).map_err(failed)?;
        if random.u8(..8) > 0 {
            victim.at_work().await.map_err(failed)?;
        }
        sleep(life).await;
        let status = victim.kill().await.map_err(failed)?;
        // A process that is killed has none.
        if status.code().is_some() {
            return Err(failed(Unexpected::new(format!("a child process ended: {status}"))));
        }
    }
    work_off(harness, ledger).await
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidState, "soak").with_source(error)
}
