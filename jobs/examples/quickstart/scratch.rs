//! A run in a file of its own, with which another process can go on.
//!
//! The file has two queues. One has a job for each file to hash. The other says how far the run
//! came: `begun` names the directory, `listed` the number of its files, once all are pushed. Nothing
//! is hashed before that, so until then the first queue holds exactly what was pushed, and a listing
//! that was cut short goes on behind as many files.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use jobs::{Job, Jobs, Json, Message, Payload, Pipeline, PipelineHandle, Registry, State, Worker};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::files::push_files;
use crate::tally::Tally;

/// How long what the journal says may take to arrive, unless another process is quicker to take it.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub(crate) struct Scratch {
    pub(crate) jobs: Jobs,
    path: PathBuf,
    journal: PipelineHandle,
    directory: PathBuf,
    /// How many files the directory has, if all were pushed.
    listed: Option<usize>,
    /// What the journal says, in hand as long as this process works on it: no other takes it up.
    _claim: Vec<Job>,
}

impl Scratch {
    /// Begins a run in a new file.
    pub(crate) async fn new(files: &str, directory: &Path) -> Result<Self> {
        let directory = directory_at(directory)?;
        let file = tempfile::Builder::new().prefix("quickstart-").suffix(".db").tempfile()?;
        let (_, path) = file.keep()?;
        let (jobs, journal) = connect(&path, files).await?;
        journal.push(Json(directory).message("begun")?).await?;
        Self::claim(path, jobs, journal).await
    }

    /// Goes on with the run in a file.
    pub(crate) async fn resume(files: &str, path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Err(format!("{} is no file", path.display()).into());
        }
        let (jobs, journal) = connect(path, files).await?;
        Self::claim(path.to_owned(), jobs, journal).await
    }

    async fn claim(path: PathBuf, jobs: Jobs, journal: PipelineHandle) -> Result<Self> {
        let state = journal.state().await?;
        if state.in_flight != Some(0) {
            return Err(format!("another process works on {}", path.display()).into());
        }
        let entries = waiting(&state);
        journal.resume().await?;
        let consumer = jobs.consumer([journal.name()])?;
        let (mut directory, mut listed, mut claim) = (None, None, Vec::new());
        while claim.len() < entries
            && let Some(entry) = timeout(CLAIM_TIMEOUT, consumer.next()).await?
        {
            match entry.name() {
                "begun" => directory = Some(read(entry.message())?),
                _ => listed = Some(read(entry.message())?),
            }
            claim.push(entry);
        }
        let directory = directory.ok_or(format!("no run has begun in {}", path.display()))?;
        Ok(Self { jobs, path, journal, directory, listed, _claim: claim })
    }

    /// Pushes the files that are not pushed yet.
    pub(crate) async fn fill(&self, files: &PipelineHandle, tally: &Arc<Tally>) -> Result<()> {
        let found = waiting(&files.state().await?);
        tally.update(|counts| {
            counts.pushed = found;
            counts.found = found;
            counts.before = self.listed.map_or(0, |listed| listed.saturating_sub(found));
        });
        if self.listed.is_none() {
            self.list(found, files, tally).await?;
            let all = waiting(&files.state().await?);
            self.journal.push(Json(all).message("listed")?).await?;
        }
        tally.update(|counts| counts.all_pushed = true);
        Ok(())
    }

    async fn list(&self, skip: usize, files: &PipelineHandle, tally: &Arc<Tally>) -> Result<()> {
        let directory = directory_at(&self.directory)?;
        let (files, tally) = (files.clone(), Arc::clone(tally));
        let pushing = spawn_blocking(move || {
            // A gap would be taken for the end of what was pushed.
            push_files(&directory, skip, &files, &tally, |_| true).then_some(()).ok_or_else(|| {
                let counts = tally.counts.lock().expect("nobody panics with it");
                counts.failures.last().cloned().unwrap_or_default()
            })
        });
        Ok(pushing.await??)
    }

    /// How to go on with it.
    pub(crate) fn hint(&self) -> String {
        format!("--resume {}", self.path.display())
    }

    /// Leaves nothing behind, once the jobs are shut down.
    pub(crate) fn remove(self) -> std::io::Result<()> {
        let beside = |what: &str| {
            let mut path = self.path.clone().into_os_string();
            path.push(what);
            path
        };
        std::fs::remove_dir_all(beside("-owners"))?;
        std::fs::remove_file(&self.path)
    }
}

async fn connect(path: &Path, files: &str) -> Result<(Jobs, PipelineHandle)> {
    let path = path.to_str().ok_or("the path is not UTF-8")?;
    // Half of what the worker may run at once. While jobs are being settled as many others are
    // handed out, so that after a kill at most as many run again as the worker may run at once.
    let cpus = available_parallelism().map_or(1, NonZeroUsize::get);
    let prefetch = (cpus * Worker::DEFAULT_CONCURRENCY_PER_CPU / 2) as u64;
    let journal = format!("{files}-run");
    let on = |name: &str| {
        Pipeline::new(name, "local").with_option("path", path).with_option("prefetch", prefetch)
    };
    // An application switches on the feature `local` of `jobs` instead.
    let mut registry = Registry::new();
    registry.register(jobs_local::constructor())?;
    let jobs = Jobs::builder().registry(registry).pipeline(on(files)).pipeline(on(&journal));
    let jobs = jobs.connect().await?;
    let journal = jobs.pipeline(&journal)?;
    Ok((jobs, journal))
}

/// A directory that is there, so named that it can be found from anywhere.
fn directory_at(path: &Path) -> Result<PathBuf> {
    match path.is_dir() {
        true => Ok(absolute(path)?),
        false => Err(format!("{} is no directory", path.display()).into()),
    }
}

fn read<T>(message: &Message) -> jobs::Result<T>
where
    Json<T>: Payload,
{
    Json::decode(message.payload()).map(|Json(value)| value)
}

/// Jobs that nobody has in hand.
fn waiting(state: &State) -> usize {
    let waiting = state.reserved.unwrap_or(0) + state.delayed.unwrap_or(0);
    usize::try_from(waiting).unwrap_or(usize::MAX)
}
