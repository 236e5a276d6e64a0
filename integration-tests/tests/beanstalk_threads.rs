//! The threads of the beanstalkd driver, after what can happen to a server: none is left behind. In a
//! program of its own, because it counts the threads of the whole process.

use std::time::{Duration, Instant};

use integration_tests::beanstalkd::{Beanstalkd, Mode, is_given};
use jobs_core::{Driver, Message, Pipeline, Queue, Registry};
use jobs_kit::Fault;
use tokio::time::sleep;

/// What a server may take to come back on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const CONNECTIONS: usize = 2;

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
        assert!(start.elapsed() < PATIENCE, "{} threads, not {most}", threads());
        sleep(Duration::from_millis(10)).await;
    }
}

/// Pushes and runs a job, however often that fails at first.
async fn work(driver: &dyn Driver, queue: &Queue) {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "no job gets through");
        if driver.push(Message::new("a", "")).await.is_ok()
            && let Ok(Some(job)) = tokio::time::timeout(PATIENCE, queue.pop()).await
            && job.ack().await.is_ok()
        {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_are_back_to_where_they_started() {
    let server = Beanstalkd::start(Mode::Synced, true).await.expect("a server");
    let pipeline = Pipeline::new("threads", jobs_beanstalk::NAME)
        .with_option("addr", server.url())
        .with_option("tube", "threads")
        .with_option("connections", CONNECTIONS)
        .with_option("push_timeout", "1s");
    let mut registry = Registry::new();
    registry.register(jobs_beanstalk::constructor()).expect("the only driver");
    let driver = registry.connect(pipeline.clone()).await.expect("it answers");
    let queue = Queue::new();
    driver.run(queue.open_lane(&pipeline)).await.expect("it answers");
    work(&*driver, &queue).await;
    let faults = [Fault::Kill, Fault::Stall, Fault::Cut, Fault::Reset];
    for fault in faults.into_iter().filter(|fault| *fault != Fault::Kill || !is_given()) {
        server.control.begin(fault).await.expect("a fault");
        // Longer than any thread waits before it is given up.
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(4) {
            let _ = driver.push(Message::new("a", "")).await;
            sleep(Duration::from_millis(50)).await;
        }
        assert!(threads() <= 3 * CONNECTIONS, "{} threads in {fault:?}", threads());
        server.control.end(fault).await.expect("the end of a fault");
        work(&*driver, &queue).await;
        expect_threads(2 * CONNECTIONS).await;
    }
    driver.stop().await.expect("it answers");
    expect_threads(0).await;
}
