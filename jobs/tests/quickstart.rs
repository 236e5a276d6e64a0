//! The example `quickstart`, killed half-way and resumed.
//!
//! It is built with the tests, though not by `cargo test --test quickstart` alone.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::available_parallelism;
use std::time::Duration;

use common::eventually;
use jobs::{Jobs, Pipeline, Registry, Worker};

const DEADLINE: Duration = Duration::from_secs(60);

/// Files to hash, and beside them a directory for the scratch file.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.files()).unwrap();
        fs::create_dir(place.scratch()).unwrap();
        place
    }

    fn files(&self) -> PathBuf {
        self.0.path().join("files")
    }

    fn scratch(&self) -> PathBuf {
        self.0.path().join("scratch")
    }

    fn add_files(&self, directory: &str, count: usize) {
        let directory = self.files().join(directory);
        fs::create_dir_all(&directory).unwrap();
        for n in 0..count {
            fs::write(directory.join(format!("{n:05}")), n.to_string()).unwrap();
        }
    }

    fn begin(&self) -> Run {
        Run::start(self, &[self.files().as_path()])
    }

    fn resume(&self, file: &Path) -> Run {
        Run::start(self, &["--resume".as_ref(), file])
    }

    fn leaves_nothing(&self) -> bool {
        fs::read_dir(self.scratch()).unwrap().next().is_none()
    }
}

/// A process that does not outlive its test.
struct Run {
    child: Child,
    lines: Receiver<String>,
}

impl Run {
    fn start(place: &Place, args: &[&Path]) -> Self {
        let mut child = Command::new(program())
            .args(args)
            .arg("--sums")
            .env("TMPDIR", place.scratch())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Nothing is read ahead: so the other process cannot get far ahead of the test.
        let (send, receive) = sync_channel(0);
        std::thread::spawn(move || {
            lines.map_while(Result::ok).try_for_each(|line| send.send(line).ok())
        });
        Self { child, lines: receive }
    }

    fn line(&self) -> Option<String> {
        match self.lines.recv_timeout(DEADLINE) {
            Ok(line) => Some(line),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => None,
            Err(error) => panic!("no line: {error}"),
        }
    }

    fn file(&self) -> PathBuf {
        let line = self.line().unwrap();
        line.split_once("--resume ").expect("the first line names the file").1.into()
    }

    /// Ends it as a crash does.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Files that it hashed, in the next `count` lines or all, and the other lines.
    fn read(&self, count: usize) -> (Vec<PathBuf>, String) {
        let (mut hashed, mut rest) = (Vec::new(), String::new());
        while hashed.len() < count
            && let Some(line) = self.line()
        {
            match line.split_once("  ") {
                Some((sum, path)) if sum.len() == 64 => hashed.push(path.into()),
                _ => rest += &format!("{line}\n"),
            }
        }
        (hashed, rest)
    }

    fn status(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/quickstart");
    assert!(program.exists(), "first: cargo build -p jobs --example quickstart");
    program
}

fn distinct(paths: &[PathBuf]) -> BTreeSet<&PathBuf> {
    paths.iter().collect()
}

#[test]
fn what_a_killed_run_had_not_done_is_done_by_the_next() {
    const FILES: usize = 2_000;
    let place = Place::new();
    place.add_files("", FILES);
    let mut killed = place.begin();
    let file = killed.file();
    let (mut first, _) = killed.read(FILES / 4);
    killed.kill();
    first.extend(killed.read(FILES).0);
    assert!(first.len() < FILES, "a full pipe holds it up before the end");

    let mut resumed = place.resume(&file);
    assert_eq!(resumed.file(), file);
    let (second, said) = resumed.read(usize::MAX);
    assert!(resumed.status().success(), "{said}");
    let (first, again) = (distinct(&first), distinct(&second));
    assert_eq!(second.len(), again.len(), "nothing is done twice by one process");
    assert_eq!(first.union(&again).count(), FILES, "{said}");
    let at_once = available_parallelism().unwrap().get() * Worker::DEFAULT_CONCURRENCY_PER_CPU;
    let both = first.intersection(&again).count();
    assert!(both <= at_once, "{both} were done twice, of at most {at_once}");
    let (done, before) = (again.len(), FILES - again.len());
    assert!(said.contains(&format!("checked: all {done} pushed jobs were handled")), "{said}");
    assert!(said.contains(&format!("{before} more were done before this process")), "{said}");
    assert!(place.leaves_nothing());
}

#[tokio::test]
async fn a_listing_that_was_cut_short_goes_on_where_it_ended() {
    let place = Place::new();
    place.add_files("a", 300);
    place.add_files("b", 300);
    // Reading it does not end: so the listing stops between the two directories.
    let stuck = place.files().join("b/.ignore");
    assert!(Command::new("mkfifo").arg(&stuck).status().unwrap().success());
    let mut killed = place.begin();
    let file = killed.file();
    let jobs = look(&file).await;
    let files = jobs.pipeline("files").unwrap();
    let pushed = async || files.state().await.unwrap().reserved == Some(256);
    eventually("the first batch is pushed", pushed).await;
    jobs.shutdown().await.unwrap();
    killed.kill();
    assert!(killed.read(1).0.is_empty(), "nothing is hashed before all is listed");

    fs::remove_file(&stuck).unwrap();
    let mut resumed = place.resume(&file);
    let (hashed, said) = resumed.read(usize::MAX);
    assert!(resumed.status().success(), "{said}");
    assert_eq!((hashed.len(), distinct(&hashed).len()), (600, 600), "{said}");
    assert!(said.contains("checked: all 600 pushed jobs were handled"), "{said}");
    assert!(place.leaves_nothing());
}

#[test]
fn a_run_is_not_taken_up_while_it_goes_on_or_when_there_is_none() {
    let place = Place::new();
    place.add_files("", 2_000);
    let mut running = place.begin();
    let file = running.file();
    assert_eq!(running.read(1).0.len(), 1);
    assert_eq!(place.resume(&file).status().code(), Some(2));
    running.read(usize::MAX);
    assert!(running.status().success());
    assert!(place.leaves_nothing());
    assert_eq!(place.resume(&file).status().code(), Some(2));
    assert!(place.leaves_nothing());
}

/// The file, as another process that does not consume.
async fn look(file: &Path) -> Jobs {
    let mut registry = Registry::new();
    registry.register(jobs_local::constructor()).unwrap();
    let files = Pipeline::new("files", "local").with_option("path", file.to_str().unwrap());
    Jobs::builder().registry(registry).pipeline(files).connect().await.unwrap()
}
