//! Hashes every file of a directory, one job per file, and checks that none was forgotten.
//!
//! ```text
//! cargo run --release -p jobs --example quickstart -- [DIR] [--resume FILE]
//! ```
//!
//! The jobs are in a scratch file, so a run that was killed can be resumed. A configuration file
//! (`--config`) sends them through any other driver: the worker stays the same. `--help` says more.

mod files;
mod options;
mod scratch;
mod tally;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use indicatif::ProgressBar;
use jobs::{Context, ErrorKind, HandlerError, Jobs, Json, Worker, shutdown_signal};
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;

use files::{hash_file, push_files};
use options::{HELP, Options};
use scratch::Scratch;
use tally::{Tally, bar, summary};

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--help" || arg == "-h") {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let runtime = Runtime::new().expect("a runtime starts");
    let answer = runtime.block_on(run());
    // A thread that still reads some endless file does not keep the program from ending.
    runtime.shutdown_background();
    match answer {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

async fn run() -> Result<bool, Box<dyn Error>> {
    let options = Options::parse(std::env::args().skip(1))?;
    match (&options.config, &options.resume) {
        (Some(config), _) => on_config(config, &options).await,
        (None, Some(file)) => {
            on_file(Scratch::resume(&options.pipeline, file).await?, &options).await
        }
        (None, None) => {
            on_file(Scratch::new(&options.pipeline, &options.directory).await?, &options).await
        }
    }
}

/// Pushes first, then works: see [`scratch`] for why.
async fn on_file(scratch: Scratch, options: &Options) -> Result<bool, Box<dyn Error>> {
    println!("the jobs are in a file, and outlive a kill: {}", scratch.hint());
    let (began, tally) = (Instant::now(), tally());
    let pipeline = scratch.jobs.pipeline(&options.pipeline)?;
    scratch.fill(&pipeline, &tally).await?;
    pipeline.resume().await?;
    work(&scratch.jobs, options, &tally).await?;
    let counts = tally.counts.lock().expect("nobody panics with it");
    let good = summary(&counts, began);
    match counts.complete() {
        true => scratch.remove()?,
        false => println!("the rest is in the file: {}", scratch.hint()),
    }
    Ok(good)
}

/// Pushes and works at the same time, on any driver.
async fn on_config(config: &PathBuf, options: &Options) -> Result<bool, Box<dyn Error>> {
    let directory = options.directory.clone();
    if !directory.is_dir() {
        return Err(format!("{} is no directory", directory.display()).into());
    }
    let jobs = Jobs::from_file(config).await?;
    let pipeline = jobs.pipeline(&options.pipeline)?;
    pipeline.resume().await?;
    let (began, tally) = (Instant::now(), tally());
    let pushing = Arc::clone(&tally);
    spawn_blocking(move || {
        let closed = |error: &jobs::Error| error.kind() == ErrorKind::Closed;
        if push_files(&directory, 0, &pipeline, &pushing, closed) {
            pushing.update(|counts| counts.all_pushed = true);
        }
    });
    work(&jobs, options, &tally).await?;
    Ok(summary(&tally.counts.lock().expect("nobody panics with it"), began))
}

fn tally() -> Arc<Tally> {
    Arc::new(Tally { bar: bar(), ..Tally::default() })
}

/// Runs jobs until all are done, or a signal comes.
async fn work(jobs: &Jobs, options: &Options, tally: &Arc<Tally>) -> jobs::Result<()> {
    let sums = options.sums;
    let worker = Worker::new(jobs).pipelines([options.pipeline.as_str()]).handle("hash", {
        let tally = Arc::clone(tally);
        move |Json(path), context| hash(path, sums, context, Arc::clone(&tally))
    });
    let complete = async {
        tokio::select! {
            () = tally.complete.notified() => {}
            () = shutdown_signal() => {}
        }
    };
    let report = worker.run_until(complete).await?;
    tally.bar.iter().for_each(ProgressBar::finish_and_clear);
    if let Some(error) = report.shutdown_error {
        eprintln!("{error}");
    }
    Ok(())
}

async fn hash(
    path: PathBuf,
    print: bool,
    context: Context,
    tally: Arc<Tally>,
) -> Result<(), HandlerError> {
    let read = path.clone();
    match spawn_blocking(move || hash_file(read, print)).await? {
        Ok(hashed) => {
            tally.done(context.id(), hashed);
            Ok(())
        }
        Err(error) => {
            tally.fail(Some(context.id()), format!("{}: {error}", path.display()));
            Err(HandlerError::reject(error))
        }
    }
}
