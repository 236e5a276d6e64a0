//! Hashes every file of a directory, one job per file, and checks that none was forgotten.
//!
//! ```text
//! cargo run --release -p jobs --example quickstart -- [DIR] [--config FILE] [--pipeline NAME]
//! ```
//!
//! Without `--config` the jobs go through a pipeline of the in-process driver. A configuration file
//! sends them through any other: the code stays the same.

mod tally;

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use ignore::WalkBuilder;
use indicatif::ProgressBar;
use jobs::{
    Context, ErrorKind, HandlerError, Jobs, Json, Message, Payload, Pipeline, PipelineHandle,
    Worker, shutdown_signal,
};
use sha2::{Digest, Sha256};
use tokio::runtime::{Handle, Runtime};
use tokio::task::spawn_blocking;

use tally::{Hashed, Tally, bar, summary};

const USAGE: &str = "usage: quickstart [DIR] [--config FILE] [--pipeline NAME]";
const BATCH: usize = 256;

struct Options {
    directory: PathBuf,
    config: Option<PathBuf>,
    pipeline: String,
}

fn main() -> ExitCode {
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
    let options = options(std::env::args().skip(1))?;
    if !options.directory.is_dir() {
        return Err(format!("{} is no directory", options.directory.display()).into());
    }
    let jobs = match &options.config {
        Some(file) => Jobs::from_file(file).await?,
        None => {
            let pipeline = Pipeline::new(options.pipeline.as_str(), "memory");
            Jobs::builder().pipeline(pipeline).connect().await?
        }
    };
    let pipeline = jobs.pipeline(&options.pipeline)?;
    pipeline.resume().await?;
    let tally = Arc::new(Tally { bar: bar(), ..Tally::default() });

    let began = Instant::now();
    let pushing = Arc::clone(&tally);
    spawn_blocking(move || push_files(&options.directory, &pipeline, &pushing));
    let worker = Worker::new(&jobs).pipelines([options.pipeline]).handle("hash", {
        let tally = Arc::clone(&tally);
        move |Json(path), context| hash(path, context, Arc::clone(&tally))
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
    Ok(summary(&tally.counts.lock().expect("nobody panics"), began))
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { directory: ".".into(), config: None, pipeline: "files".into() };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--config" => options.config = Some(value()?.into()),
            "--pipeline" => options.pipeline = value()?,
            flag if flag.starts_with('-') => return Err(USAGE.into()),
            directory => options.directory = directory.into(),
        }
    }
    Ok(options)
}

/// Walks and pushes in batches, on a thread of its own because reading directories blocks.
fn push_files(directory: &Path, pipeline: &PipelineHandle, tally: &Tally) {
    let mut batch = Vec::with_capacity(BATCH);
    for entry in WalkBuilder::new(directory).build() {
        match entry {
            Ok(entry) if entry.file_type().is_some_and(|kind| kind.is_file()) => {
                match Json(entry.into_path()).message("hash") {
                    Ok(message) => batch.push(message),
                    Err(error) => tally.fail(None, error.to_string()),
                }
            }
            Ok(_) => {}
            Err(error) => tally.fail(None, error.to_string()),
        }
        if batch.len() == BATCH && !push(std::mem::take(&mut batch), pipeline, tally) {
            return;
        }
    }
    push(batch, pipeline, tally);
    tally.update(|counts| counts.all_pushed = true);
}

/// False if the pipeline was stopped meanwhile.
fn push(batch: Vec<Message>, pipeline: &PipelineHandle, tally: &Tally) -> bool {
    let ids: Vec<_> = batch.iter().map(|message| message.id().clone()).collect();
    tally.update(|counts| {
        counts.pushed += ids.len();
        counts.waiting.extend(ids.iter().cloned());
    });
    let mut open = true;
    for (id, answer) in ids.iter().zip(Handle::current().block_on(pipeline.push_batch(batch))) {
        if let Err(error) = answer {
            open &= error.kind() != ErrorKind::Closed;
            tally.fail(Some(id), error.to_string());
        }
    }
    open
}

async fn hash(path: PathBuf, context: Context, tally: Arc<Tally>) -> Result<(), HandlerError> {
    let read = path.clone();
    match spawn_blocking(move || hash_file(&read)).await? {
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

fn hash_file(path: &Path) -> std::io::Result<Hashed> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path)?);
    let (mut digest, mut bytes, mut lines) = (Sha256::new(), 0, 0);
    loop {
        let part = file.fill_buf()?;
        if part.is_empty() {
            break;
        }
        digest.update(part);
        lines += part.iter().filter(|byte| **byte == b'\n').count() as u64;
        let length = part.len();
        bytes += length as u64;
        file.consume(length);
    }
    let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Hashed { path: path.to_owned(), bytes, lines, sha256 })
}
