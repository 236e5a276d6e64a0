//! Ending a worker: within its deadline, with a report, and with nothing left behind.

#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

mod common;

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{SECOND, consuming, eventually, memory, number, push, soon};
use jobs::{Bytes, Context, HandlerError, Jobs, Json, Message, Worker};
use tokio::sync::{Notify, mpsc};

fn alive() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

#[tokio::test(start_paused = true)]
async fn running_handlers_end_and_nothing_new_starts() {
    let jobs = consuming(["a"]).await;
    let (started, mut starts) = mpsc::unbounded_channel();
    let slow = move |_: Json<u64>, context: Context| {
        let started = started.clone();
        async move {
            started.send(())?;
            context.shutting_down().await;
            tokio::time::sleep(29 * SECOND).await;
            Ok(())
        }
    };
    for n in 0..10 {
        push(&jobs, "a", number("x", n)).await;
    }
    let worker = Worker::new(&jobs).handle("x", slow).concurrency(4);
    let report = worker
        .run_until(async {
            for _ in 0..4 {
                starts.recv().await;
            }
        })
        .await
        .unwrap();
    assert_eq!((report.started, report.acked, report.cancelled), (4, 4, 0), "{report:?}");
    assert!(report.shutdown_error.is_none());
    assert!(jobs.list().is_empty(), "the last worker shuts down");
}

#[tokio::test(start_paused = true)]
async fn handlers_are_dropped_at_the_deadline_and_their_jobs_go_back() {
    let driver = jobs_memory::constructor();
    let connect = async || {
        let mut registry = jobs::Registry::new();
        registry.register(driver.clone()).unwrap();
        let config = Jobs::builder().registry(registry).pipeline(memory("a")).consume(["a"]);
        config.connect().await.unwrap()
    };
    let jobs = connect().await;
    let started = Arc::new(Notify::new());
    let notify = Arc::clone(&started);
    let endless = move |_: Bytes, _: Context| {
        notify.notify_one();
        pending::<Result<(), HandlerError>>()
    };
    push(&jobs, "a", Message::new("x", "").with_id("one")).await;
    // Holds the queue open for the next consumer.
    let keeper = connect().await;
    keeper.pause("a").await.unwrap();

    let began = tokio::time::Instant::now();
    let worker = Worker::new(&jobs).handle("x", endless).shutdown_deadline(3 * SECOND);
    let report = worker.run_until(started.notified()).await.unwrap();
    assert!(began.elapsed() >= 3 * SECOND && began.elapsed() < 4 * SECOND);
    assert_eq!((report.started, report.cancelled, report.acked), (1, 1, 0), "{report:?}");

    keeper.resume("a").await.unwrap();
    let job = soon("it comes back", keeper.consumer(["a"]).unwrap().next()).await.unwrap();
    assert_eq!((job.id().as_str(), job.attempt()), ("one", 2));
    job.ack().await.unwrap();
    keeper.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_worker_ends_when_the_jobs_are_shut_down_elsewhere() {
    let jobs = consuming(["a"]).await;
    let nothing = async |_: Bytes, _: Context| Ok(());
    let worker = Worker::new(&jobs).handle("x", nothing);
    let worker = tokio::spawn(worker.run_until(pending()));
    push(&jobs, "a", Message::new("x", "")).await;
    let a = jobs.pipeline("a").unwrap();
    eventually("it is done", async || a.state().await.unwrap().in_flight == Some(0)).await;
    jobs.shutdown().await.unwrap();
    soon("the worker ends", worker).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_dropped_worker_gives_its_jobs_back_and_leaves_the_pipelines() {
    let jobs = consuming(["a"]).await;
    let before = alive();
    let endless = |_: Bytes, _: Context| pending::<Result<(), HandlerError>>();
    push(&jobs, "a", Message::new("x", "")).await;
    let worker = tokio::spawn(Worker::new(&jobs).handle("x", endless).run_until(pending()));
    let a = jobs.pipeline("a").unwrap();
    eventually("it runs", async || alive() > before + 1).await;
    eventually("it is taken", async || a.state().await.unwrap().in_flight == Some(1)).await;
    worker.abort();
    eventually("its tasks end", async || alive() == before).await;
    let again = soon("the job", jobs.consumer(["a"]).unwrap().next()).await.unwrap();
    again.ack().await.unwrap();
    jobs.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_handler_that_blocks_its_thread_does_not_hold_up_the_rest() {
    let jobs = consuming(["a"]).await;
    let (unblock, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(std::sync::Mutex::new(blocked));
    let started = Arc::new(Notify::new());
    let notify = Arc::clone(&started);
    let block = move |_: Bytes, _: Context| {
        let (blocked, notify) = (Arc::clone(&blocked), Arc::clone(&notify));
        async move {
            notify.notify_one();
            blocked.lock().unwrap().recv().expect_err("nothing is sent");
            Ok(())
        }
    };
    push(&jobs, "a", Message::new("x", "")).await;
    let worker = Worker::new(&jobs).handle("x", block).shutdown_deadline(Duration::ZERO);
    let began = Instant::now();
    let report = soon("it ends", worker.run_until(started.notified())).await.unwrap();
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    assert_eq!((report.started, report.unsettled), (1, 1), "{report:?}");
    drop(unblock);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_pending_jobs_and_64_workers() {
    let before = alive();
    let jobs = Jobs::builder().pipeline(memory("a")).consume(["a"]).connect().await.unwrap();
    let a = jobs.pipeline("a").unwrap();
    for first in (0..100_000).step_by(1000) {
        let batch = (first..first + 1000).map(|n| number("x", n)).collect();
        assert!(a.push_batch(batch).await.iter().all(Result::is_ok));
    }
    let done = Arc::new(AtomicU64::new(0));
    let (count, enough) = (Arc::clone(&done), Arc::new(Notify::new()));
    let reached = Arc::clone(&enough);
    let handler = move |_: Json<u64>, _: Context| {
        if count.fetch_add(1, Ordering::Relaxed) == 10_000 {
            reached.notify_one();
        }
        async {
            tokio::task::yield_now().await;
            Ok(())
        }
    };
    let deadline = 5 * SECOND;
    let worker =
        Worker::new(&jobs).handle("x", handler).concurrency(64).shutdown_deadline(deadline);
    let (asked, when_asked) = tokio::sync::oneshot::channel();
    let worker = tokio::spawn(worker.run_until(async move {
        enough.notified().await;
        let _ = asked.send(Instant::now());
    }));
    let asked = soon("enough are done", when_asked).await.unwrap();
    let report = soon("the worker ends", worker).await.unwrap().unwrap();
    assert!(asked.elapsed() < deadline, "{:?}", asked.elapsed());
    assert_eq!((report.acked, report.cancelled), (report.started, 0), "{report:?}");
    assert_eq!(done.load(Ordering::Relaxed), report.started);
    assert!(report.started < 100_000, "the rest was left to others");
    drop((a, jobs));
    eventually("all tasks end", async || alive() == before).await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_ends_leaves_the_pipelines_of_others_alone() {
    let jobs = consuming(["a"]).await;
    let (handled, mut jobs_handled) = mpsc::unbounded_channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stays = Worker::new(&jobs).handle("x", move |_: Json<u64>, _| {
        let handled = handled.clone();
        async move { Ok(handled.send(())?) }
    });
    let stays = tokio::spawn(stays.run_until(async { drop(stopped.await) }));
    let ends = Worker::new(&jobs).handle("x", async |_: Json<u64>, _| Ok(()));
    ends.run_until(tokio::time::sleep(SECOND)).await.unwrap();

    push(&jobs, "a", number("x", 1)).await;
    soon("the other worker goes on", jobs_handled.recv()).await.unwrap();
    drop(stop);
    assert_eq!(stays.await.unwrap().unwrap().acked, 1);
}
