//! Several processes on one file: this program starts itself again.
#![allow(clippy::unwrap_used, reason = "a test may unwrap: the panic is the report")]

#[path = "support/scratch.rs"]
mod scratch;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, SystemTime};

use jobs_core::{ErrorKind, Message};
use jobs_local::constructor;
use rusqlite::Connection;
use scratch::{Running, Scratch, connect, eventually, role, start};

/// What the other process does. Not a test: it needs a role, and ends when it is told to.
#[test]
#[ignore = "played by child processes of the other tests"]
fn child() {
    let Some((role, pipeline)) = role() else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lease = if role == "hang" { "1s" } else { "60s" };
    let running = runtime.block_on(start(&constructor(), pipeline.with_option("lease", lease)));
    runtime.block_on(async {
        match role.as_str() {
            "hold" | "hang" => {
                let jobs = [running.next().await, running.next().await];
                told();
                for job in jobs {
                    let answer = job.ack().await.map_err(|refused| refused.error().kind());
                    assert_eq!(answer, Err(ErrorKind::LeaseLost));
                }
            }
            "produce" => produce(&running).await,
            role => assert_eq!(role, "reject"),
        }
    });
    if role == "reject" {
        runtime.spawn(async move {
            loop {
                running.next().await.reject().await.unwrap();
            }
        });
        told();
    }
}

/// Waits until the parent writes a byte, or ends: then this is false.
fn told() -> bool {
    std::io::stdin().read(&mut [0]).unwrap() > 0
}

fn tell(child: &mut scratch::Reaped) {
    child.0.stdin.as_mut().unwrap().write_all(b"!").unwrap();
}

/// True if no process is in the middle of a transaction for a while.
fn can_write(scratch: &Scratch) -> bool {
    let file = Connection::open(scratch.path()).unwrap();
    file.busy_timeout(Duration::from_millis(500)).unwrap();
    file.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_ok()
}

fn micros() -> u128 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros()
}

/// Pushes a job when told, with the time when that was stored.
async fn produce(running: &Running) {
    running.driver.pause().await.unwrap();
    while told() {
        running.driver.push(Message::new("a", micros().to_string())).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_of_a_killed_process_are_there_for_the_next() {
    let scratch = Scratch::new();
    let producer = connect(&constructor(), scratch.pipeline()).await.unwrap();
    for name in ["a", "b"] {
        producer.push(Message::new(name, "")).await.unwrap();
    }
    let mut other = scratch::child("hold", &scratch);
    eventually("it has both", async || producer.state().await.unwrap().in_flight == Some(2)).await;
    producer.stop().await.unwrap();
    other.kill();
    let consumer = start(&constructor(), scratch.pipeline()).await;
    let began = std::time::Instant::now();
    for name in ["a", "b"] {
        let job = consumer.next().await;
        assert_eq!((job.name(), job.attempt()), (name, 2), "its attempt is not forgotten");
        job.ack().await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(5), "without waiting for the lease");
    let state = consumer.driver.state().await.unwrap();
    assert_eq!((state.in_flight, state.reserved), (Some(0), Some(0)));
    assert_eq!(scratch.owners().len(), 2, "what the dead one left is removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_takes_over_from_one_that_is_killed() {
    let scratch = Scratch::new();
    let consumer = start(&constructor(), scratch.pipeline().with_option("prefetch", 1)).await;
    consumer.driver.pause().await.unwrap();
    for name in ["a", "b"] {
        consumer.push(name).await;
    }
    let mut other = scratch::child("hold", &scratch);
    eventually("it has both", async || consumer.driver.state().await.unwrap().in_flight == Some(2))
        .await;
    consumer.driver.resume().await.unwrap();
    assert!(consumer.none_for(Duration::from_millis(800)).await, "it lives");
    other.kill();
    for name in ["a", "b"] {
        let job = consumer.next().await;
        assert_eq!((job.name(), job.attempt()), (name, 2));
        job.ack().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_hangs_loses_its_jobs_when_the_lease_ends() {
    let scratch = Scratch::new();
    let consumer = start(&constructor(), scratch.pipeline().with_option("lease", "1s")).await;
    consumer.driver.pause().await.unwrap();
    for name in ["a", "b"] {
        consumer.push(name).await;
    }
    let mut other = scratch::child("hang", &scratch);
    eventually("it has both", async || consumer.driver.state().await.unwrap().in_flight == Some(2))
        .await;
    consumer.driver.resume().await.unwrap();
    assert!(consumer.none_for(Duration::from_millis(2_500)).await, "it extends its leases");
    let signal = |signal: &str| {
        let pid = other.0.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    };
    // Whoever hangs while it writes keeps everybody from writing.
    let mut stops = 0;
    while stops == 0 || !can_write(&scratch) {
        assert!(stops < 20, "it always writes");
        stops += 1;
        signal("-CONT");
        signal("-STOP");
    }
    for _ in 0..2 {
        let job = consumer.next().await;
        assert_eq!(job.attempt(), 2);
        job.ack().await.unwrap();
    }
    signal("-CONT");
    tell(&mut other);
    assert!(other.0.wait().unwrap().success(), "its receipts are refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_process_pushes_is_noticed_at_once() {
    let scratch = Scratch::new();
    let consumer = start(&constructor(), scratch.pipeline()).await;
    let mut producer = scratch::child("produce", &scratch);
    let mut delays = Vec::new();
    for _ in 0..20 {
        tell(&mut producer);
        let job = consumer.next().await;
        let pushed: u128 = std::str::from_utf8(job.payload()).unwrap().parse().unwrap();
        delays.push(micros().saturating_sub(pushed));
        job.ack().await.unwrap();
        // So that it sleeps again.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    delays.sort_unstable();
    assert!(delays[delays.len() / 2] < 100_000, "{delays:?} microseconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_share_the_jobs() {
    const JOBS: usize = 500;
    let scratch = Scratch::new();
    let consumer = start(&constructor(), scratch.pipeline().with_option("prefetch", 5)).await;
    let _other = scratch::child("reject", &scratch);
    let mut mine = BTreeSet::new();
    let (mut pushed, mut dead) = (0, 0);
    while dead == 0 || pushed < JOBS {
        let messages = (0..50).map(|_| Message::new("a", "")).collect();
        consumer.driver.push_batch(messages).await.into_iter().for_each(|a| a.unwrap());
        pushed += 50;
        while let Ok(Some(job)) = consumer.pop_within(Duration::ZERO).await {
            assert!(mine.insert(job.id().clone()), "twice");
            job.ack().await.unwrap();
        }
        dead = consumer.driver.state().await.unwrap().dead.unwrap();
    }
    let done = async |mine: usize| {
        let state = consumer.driver.state().await.unwrap();
        state.in_flight == Some(0)
            && state.reserved == Some(0)
            && mine + usize::try_from(state.dead.unwrap()).unwrap() == pushed
    };
    let start = std::time::Instant::now();
    while !done(mine.len()).await {
        assert!(start.elapsed() < scratch::DEADLINE, "each job ends once");
        if let Ok(Some(job)) = consumer.pop_within(Duration::from_millis(10)).await {
            assert!(mine.insert(job.id().clone()), "twice");
            job.ack().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_process_without_its_pipe_keeps_its_jobs() {
    let scratch = Scratch::new();
    let holder = start(&constructor(), scratch.pipeline()).await;
    let other = start(&constructor(), scratch.pipeline()).await;
    other.driver.pause().await.unwrap();
    holder.push("a").await;
    let job = holder.next().await;
    std::fs::remove_dir_all(scratch.path().with_file_name("jobs.db-owners")).unwrap();
    other.driver.resume().await.unwrap();
    assert!(other.none_for(Duration::from_millis(700)).await, "nothing says that it ended");
    job.ack().await.unwrap();
}

#[tokio::test]
async fn a_process_that_was_taken_for_ended_stops() {
    let scratch = Scratch::new();
    let running = start(&constructor(), scratch.pipeline()).await;
    running.push("a").await;
    let job = running.next().await;
    let file = rusqlite::Connection::open(scratch.path()).unwrap();
    file.execute_batch("DELETE FROM owners; DELETE FROM leased").unwrap();
    let error = running.driver.push(Message::new("b", "")).await.unwrap_err();
    assert_eq!((error.kind(), error.may_be_stored()), (ErrorKind::InvalidState, false), "{error}");
    assert_eq!(job.ack().await.unwrap_err().error().kind(), ErrorKind::LeaseLost);
}

#[tokio::test]
async fn with_leases_in_memory_a_file_belongs_to_one_process() {
    let scratch = Scratch::new();
    let in_memory = || scratch.pipeline().with_option("lease_storage", "memory");
    let (here, elsewhere) = (constructor(), constructor());
    let driver = connect(&here, in_memory()).await.unwrap();
    for pipeline in [in_memory(), scratch.pipeline()] {
        let error = connect(&elsewhere, pipeline).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
        assert!(error.to_string().contains("`lease_storage`"), "{error}");
    }
    driver.stop().await.unwrap();
    connect(&elsewhere, scratch.pipeline()).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_ends_here_lets_its_job_run_elsewhere() {
    let scratch = Scratch::new();
    let pipeline = |prefetch| {
        let pipeline = scratch.pipeline().with_option("max_lease", "300ms");
        pipeline.with_option("prefetch", prefetch)
    };
    let here = start(&constructor(), pipeline(1)).await;
    for name in ["a", "b", "c"] {
        here.push(name).await;
    }
    let stale = here.next().await;
    let elsewhere = start(&constructor(), pipeline(1)).await;
    for _ in 0..3 {
        let job = tokio::time::timeout(Duration::from_secs(3), elsewhere.next()).await;
        let Ok(job) = job else {
            panic!("{:?} {:?}", here.driver.state().await, elsewhere.driver.state().await)
        };
        job.ack().await.unwrap();
    }
    drop(stale);
}
