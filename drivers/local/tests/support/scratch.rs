//! Files, drivers and processes for the tests of this driver alone.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may unwrap: the panic is the report")]

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs_core::{Driver, Job, Message, Pipeline, Queue, Registry, Result};
use jobs_local::LocalConstructor;
use tempfile::TempDir;

/// How long the tests wait for what must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A scratch file.
pub(crate) struct Scratch {
    directory: TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("jobs.db")
    }

    pub(crate) fn pipeline(&self) -> Pipeline {
        on(&self.path().to_string_lossy())
    }

    /// What is beside the file.
    pub(crate) fn owners(&self) -> Vec<String> {
        let owners = std::fs::read_dir(self.directory.path().join("jobs.db-owners")).unwrap();
        let mut names: Vec<_> =
            owners.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A pipeline on a file.
pub(crate) fn on(path: &str) -> Pipeline {
    Pipeline::new("p", jobs_local::NAME).with_option("path", path)
}

/// A pipeline that consumes.
pub(crate) struct Running {
    pub(crate) driver: Arc<dyn Driver>,
    queue: Queue,
}

pub(crate) async fn connect(
    constructor: &LocalConstructor,
    pipeline: Pipeline,
) -> Result<Arc<dyn Driver>> {
    let mut registry = Registry::new();
    registry.register(constructor.clone()).unwrap();
    registry.connect(pipeline).await
}

pub(crate) async fn start(constructor: &LocalConstructor, pipeline: Pipeline) -> Running {
    let queue = Queue::new();
    let inlet = queue.open_lane(&pipeline);
    let driver = connect(constructor, pipeline).await.unwrap();
    driver.run(inlet).await.unwrap();
    Running { driver, queue }
}

impl Running {
    pub(crate) async fn next(&self) -> Job {
        let popped = tokio::time::timeout(DEADLINE, self.queue.pop()).await;
        popped.expect("a job comes").expect("the queue is open")
    }

    pub(crate) async fn pop_within(
        &self,
        limit: Duration,
    ) -> std::result::Result<Option<Job>, tokio::time::error::Elapsed> {
        tokio::time::timeout(limit, self.queue.pop()).await
    }

    /// Waits that long for a job that should not come.
    pub(crate) async fn none_for(&self, quiet: Duration) -> bool {
        self.pop_within(quiet).await.is_err()
    }

    pub(crate) async fn push(&self, name: &'static str) {
        self.driver.push(Message::new(name, name)).await.unwrap();
    }
}

/// Asks until it is true.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// This test program again, as a process that plays one of the roles of [`role`].
pub(crate) fn child(role: &str, scratch: &Scratch) -> Reaped {
    let program = std::env::current_exe().unwrap();
    let child = Command::new(program)
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("JOBS_LOCAL_ROLE", role)
        .env("JOBS_LOCAL_PATH", scratch.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    Reaped(child.unwrap())
}

/// The role of this process and its file, if it has one.
pub(crate) fn role() -> Option<(String, Pipeline)> {
    let role = std::env::var("JOBS_LOCAL_ROLE").ok()?;
    Some((role, on(&std::env::var("JOBS_LOCAL_PATH").ok()?)))
}

/// A child process that does not outlive its test.
pub(crate) struct Reaped(pub(crate) Child);

impl Reaped {
    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
