//! Threads: where they come from, and that they end.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jobs_core::{ErrorKind, Message, Queue, Registry};
use tokio::sync::Mutex;
use tokio::time::sleep;

use support::{Say, Server, connect, start};

/// All count the threads of this process.
static ALONE: Mutex<()> = Mutex::const_new(());

/// Threads of the driver.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    tasks.filter_map(name).filter(|name| name.starts_with("beanstalk-")).count()
}

async fn expect_threads(most: usize) {
    let start = Instant::now();
    while threads() > most {
        assert!(start.elapsed() < Duration::from_secs(60), "{} threads, not {most}", threads());
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_all_threads() {
    let _alone = ALONE.lock().await;
    let server = Server::start(|_| None);
    let (driver, _queue) = start(server.pipeline().with_option("connections", 3)).await.unwrap();
    let pushes = (0..100).map(|_| driver.push(Message::new("a", "")));
    for pushed in futures::future::join_all(pushes).await {
        pushed.unwrap();
    }
    let most = threads();
    assert!((4..=6).contains(&most), "{most}: 3 to consume, and up to 3 to push");
    driver.stop().await.unwrap();
    expect_threads(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_dropped_leaves_no_thread() {
    let _alone = ALONE.lock().await;
    let server = Server::start(|_| None);
    let (driver, queue) = start(server.pipeline()).await.unwrap();
    driver.push(Message::new("a", "")).await.unwrap();
    drop((driver, queue));
    expect_threads(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_fails_leaves_no_thread() {
    let _alone = ALONE.lock().await;
    let server = Server::start(|command| command.starts_with("watch").then_some(Say::Close));
    let error = start(server.pipeline()).await.map(drop).unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Connection, true));
    expect_threads(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn few_threads_wait_for_a_server_that_is_silent_and_they_end_when_it_hangs_up() {
    const CONNECTIONS: usize = 2;
    let _alone = ALONE.lock().await;
    let silent = Arc::new(AtomicBool::new(false));
    let is_silent = Arc::clone(&silent);
    let server = Server::start(move |_| is_silent.load(Ordering::Acquire).then_some(Say::Nothing));
    let pipeline = server.impatient().with_option("connections", CONNECTIONS);
    let (driver, _queue) = start(pipeline).await.unwrap();
    driver.push(Message::new("a", "")).await.unwrap();
    silent.store(true, Ordering::Release);
    for _ in 0..12 {
        let start = Instant::now();
        let error = driver.push(Message::new("a", "")).await.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
        let waited = start.elapsed();
        assert!(waited < Duration::from_secs(10), "push_timeout is 300 ms, it took {waited:?}");
    }
    // As many to consume, as many to push, and as many that are given up.
    assert!(threads() <= 3 * CONNECTIONS, "{} threads", threads());
    silent.store(false, Ordering::Release);
    server.hang_up();
    let start = Instant::now();
    while driver.push(Message::new("a", "")).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "the server is back");
    }
    let state = driver.state().await.unwrap();
    assert!(state.last_error.is_some(), "{state:?}");
    expect_threads(2 * CONNECTIONS).await;
    driver.stop().await.unwrap();
    expect_threads(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_is_named_and_replaced() {
    let _alone = ALONE.lock().await;
    let silent = Arc::new(AtomicBool::new(true));
    let is_silent = Arc::clone(&silent);
    // The first connection to push with never answers again; later ones do.
    let server = Server::start(move |command| {
        let first = command.starts_with("put") && is_silent.swap(false, Ordering::AcqRel);
        first.then_some(Say::Nothing)
    });
    let driver = connect(server.impatient().with_option("connections", 1)).await.unwrap();
    let error = driver.push(Message::new("a", "")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    assert!(error.may_be_stored());
    let start = Instant::now();
    while driver.push(Message::new("a", "")).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(60), "nobody replaces the thread");
    }
    let last_error = driver.state().await.unwrap().last_error.expect("named");
    assert!(
        last_error.contains("does not answer") && last_error.contains("tcp://"),
        "{last_error}"
    );
    assert_eq!(threads(), 2, "one pushes, one is given up");
    server.hang_up();
    driver.stop().await.unwrap();
    expect_threads(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_while_the_server_is_silent_is_bounded() {
    const CONNECTIONS: usize = 2;
    let _alone = ALONE.lock().await;
    let silent = Arc::new(AtomicBool::new(false));
    let is_silent = Arc::clone(&silent);
    let server = Server::start(move |_| is_silent.load(Ordering::Acquire).then_some(Say::Nothing));
    let pipeline = server.pipeline().with_option("connections", CONNECTIONS);
    let (driver, _queue) = start(pipeline.with_option("push_timeout", "10m")).await.unwrap();
    silent.store(true, Ordering::Release);
    let pushing = Arc::clone(&driver);
    let pushed = tokio::spawn(async move { pushing.push(Message::new("a", "")).await });
    let start = Instant::now();
    driver.stop().await.unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(15), "both crews have ten seconds together, not {took:?}");
    assert!(threads() <= 3 * CONNECTIONS, "{} threads", threads());
    server.hang_up();
    pushed.await.unwrap().unwrap_err();
    expect_threads(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_on_a_silent_server_leave_few_threads() {
    const CONNECTIONS: usize = 2;
    let _alone = ALONE.lock().await;
    let server = Server::start(|line| line.starts_with("use").then_some(Say::Nothing));
    let pipeline = server.impatient().with_option("connections", CONNECTIONS);
    let pipeline = pipeline.with_option("timeout", "100ms");
    let mut registry = Registry::new();
    registry.register(jobs_beanstalk::constructor()).unwrap();
    for _ in 0..8 {
        let error = registry.connect(pipeline.clone()).await.map(drop).unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
    }
    assert!(threads() <= 2 * CONNECTIONS, "{} threads", threads());
    server.hang_up();
    expect_threads(0).await;

    let server = Server::start(|line| line.starts_with("watch").then_some(Say::Nothing));
    let pipeline = server.impatient().with_option("connections", CONNECTIONS);
    // To connect, on a slow machine, and to have the first threads given up.
    let pipeline = pipeline.with_option("timeout", "2s");
    let driver = registry.connect(pipeline.clone()).await.unwrap();
    for _ in 0..4 {
        let inlet = Queue::new().open_lane(&pipeline);
        let error = driver.run(inlet).await.unwrap_err();
        assert!(error.is_retryable(), "{error:?}");
    }
    assert!(threads() <= 3 * CONNECTIONS, "{} threads", threads());
    server.hang_up();
    driver.stop().await.unwrap();
    expect_threads(0).await;
}
