//! Workers: typed handlers, what becomes of failures, limits, settlements.

#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

mod common;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::scripted::{Answer, Script, Scripted};
use common::{SECOND, consuming, eventually, memory, number, push, soon};
use jobs::{
    Bytes, Context, ErrorKind, Failure, HandlerError, Headers, Jobs, Json, Message, Outcome,
    Payload, Pipeline, Policy, Registry, Report, Support, Worker,
};
use jobs_memory::MemoryConstructor;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A worker in a task, and how to end it.
struct Running {
    end: oneshot::Sender<()>,
    worker: JoinHandle<jobs::Result<Report>>,
}

impl Running {
    fn start(worker: Worker) -> Self {
        let (end, ended) = oneshot::channel();
        let run = worker.run_until(async move { drop(ended.await) });
        Self { end, worker: tokio::spawn(run) }
    }

    async fn end(self) -> Report {
        drop(self.end);
        let report = soon("the worker ends", self.worker).await.unwrap().unwrap();
        let ends = report.acked + report.rejected + report.requeued + report.released;
        assert_eq!(report.started, ends + report.unsettled + report.cancelled, "{report:?}");
        report
    }
}

/// Waits until nothing is left to do on a pipeline.
async fn drained(jobs: &Jobs, pipeline: &str) {
    let pipeline = jobs.pipeline(pipeline).unwrap();
    eventually("all jobs are done", async || {
        let state = pipeline.state().await.unwrap();
        [state.reserved, state.in_flight, state.delayed] == [Some(0); 3]
    })
    .await;
}

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Email {
    to: String,
}

#[tokio::test]
async fn typed_handlers_get_their_argument_and_context() {
    async fn send(Json(email): Json<Email>, context: Context) -> Result<(), HandlerError> {
        assert_eq!(email.to, "ann@example.org");
        assert_eq!((context.name(), context.pipeline(), context.attempt()), ("send", "a", 1));
        assert_eq!(context.headers().get("tenant"), Some("acme"));
        assert_eq!(context.id().as_str(), "one");
        assert!(!context.is_shutting_down());
        context.extend(SECOND).await?;
        Ok(())
    }
    let jobs = consuming(["a"]).await;
    let email = Json(Email { to: "ann@example.org".into() }).message("send").unwrap();
    push(&jobs, "a", email.with_id("one").with_header("tenant", "acme")).await;
    push(&jobs, "a", Message::new("other", "raw")).await;
    let other = async |payload: Bytes, context: Context| {
        assert_eq!((&payload[..], context.name()), (&b"raw"[..], "other"));
        Ok(())
    };
    let worker = Worker::new(&jobs).handle("send", send).fallback(other);
    assert_eq!(worker.names(), [Arc::from("send")]);
    let running = Running::start(worker);
    drained(&jobs, "a").await;
    let report = running.end().await;
    assert_eq!((report.acked, report.panicked), (2, 0));
}

async fn nothing(_: Bytes, _: Context) -> Result<(), HandlerError> {
    Ok(())
}

#[tokio::test]
async fn everything_wrong_with_a_worker_is_reported_before_it_runs() {
    let jobs = consuming(["a"]).await;
    push(&jobs, "a", Message::new("x", "")).await;
    let worker = Worker::new(&jobs)
        .handle("x", nothing)
        .handle("x", nothing)
        .handle("y", nothing)
        .handle("y", nothing)
        .handle("", nothing)
        .concurrency(0);
    let error = worker.clone().run_until(async {}).await.expect_err("wrong");
    assert_eq!((error.kind(), error.problems().len()), (ErrorKind::InvalidState, 4), "{error}");
    assert!(error.to_string().contains("`handlers.x`: is registered twice"), "{error}");
    let unknown = Worker::new(&jobs).handle("x", nothing).pipelines(["a", "b"]);
    assert_eq!(unknown.run_until(async {}).await.expect_err("b").kind(), ErrorKind::NotFound);
    let empty = Worker::new(&jobs).run_until(async {}).await.expect_err("no handler");
    assert_eq!(empty.kind(), ErrorKind::InvalidState);
    let state = jobs.pipeline("a").unwrap().state().await.unwrap();
    assert_eq!((state.reserved, jobs.list().len()), (Some(0), 1), "{state:?}");
    jobs.shutdown().await.unwrap();
    let closed = Worker::new(&jobs).handle("x", nothing).run_until(async {}).await;
    assert_eq!(closed.expect_err("closed").kind(), ErrorKind::Closed);
}

/// A worker that fails in every way, on a pipeline whose rejected jobs can be seen.
async fn failing(configure: impl FnOnce(Worker) -> Worker) -> (Report, Vec<String>, u64) {
    let memory_driver = jobs_memory::constructor();
    let jobs = with_driver(&memory_driver).await;
    let panics = async |_: Bytes, _: Context| panic!("by design");
    let error = async |_: Bytes, _: Context| Err("x".parse::<u8>().unwrap_err().into());
    let worker = Worker::new(&jobs)
        .handle("panic", panics)
        .handle("panic_at_once", |_: Bytes, _| -> std::future::Ready<_> { panic!("by design") })
        .handle("error", error)
        .handle("number", async |_: Json<u64>, _| Ok(()));
    let running = Running::start(configure(worker));
    for name in ["panic", "panic_at_once", "error", "number", "unknown"] {
        push(&jobs, "a", Message::new(name, "no number").with_id(name)).await;
    }
    let a = jobs.pipeline("a").unwrap();
    eventually("all have failed", async || {
        let state = a.state().await.unwrap();
        state.delayed.unwrap() + state.dead.unwrap() == 5
    })
    .await;
    let delayed = a.state().await.unwrap().delayed.unwrap();
    let dead = memory_driver.dead_letters("a");
    let mut dead: Vec<_> = dead.iter().map(|letter| letter.message.id().to_string()).collect();
    dead.sort();
    (running.end().await, dead, delayed)
}

async fn with_driver(driver: &MemoryConstructor) -> Jobs {
    let mut registry = Registry::new();
    registry.register(driver.clone()).unwrap();
    Jobs::builder().registry(registry).pipeline(memory("a")).consume(["a"]).connect().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn every_failure_is_contained_and_runs_again_later() {
    let (report, dead, delayed) = failing(|worker| worker).await;
    let counts = (report.panicked, report.failed, report.undecodable, report.unknown);
    assert_eq!(counts, (2, 1, 1, 1), "{report:?}");
    assert_eq!((report.requeued, report.started), (5, 5));
    assert_eq!((dead.len(), delayed), (0, 5));
}

#[tokio::test(start_paused = true)]
async fn each_default_can_be_set() {
    let day = Duration::from_secs(24 * 3600);
    let (report, dead, delayed) = failing(|worker| {
        worker
            .on_failure(Failure::Panic, Policy::Reject)
            .on_failure(Failure::Unknown, Policy::Reject)
            .on_failure(Failure::Undecodable, Policy::RetryAfter(day))
    })
    .await;
    assert_eq!(dead, ["panic", "panic_at_once", "unknown"]);
    assert_eq!((report.rejected, report.requeued, delayed), (3, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_handler_chooses_the_outcome() {
    let memory_driver = jobs_memory::constructor();
    let jobs = with_driver(&memory_driver).await;
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let began = tokio::time::Instant::now();
    let choose = {
        let attempts = Arc::clone(&attempts);
        move |_: Bytes, context: Context| {
            let attempt = (context.name().to_owned(), context.attempt());
            let first = !attempts.lock().unwrap().contains(&attempt);
            attempts.lock().unwrap().push(attempt);
            async move {
                match (context.name(), context.attempt()) {
                    ("retry", 1) => Err(HandlerError::retry("a")),
                    ("retry_after", 1) => Err(HandlerError::retry_after(3600 * SECOND, "b")),
                    ("reject", _) => Err(HandlerError::reject("c")),
                    ("release", _) if first => Err(HandlerError::release("d")),
                    _ => Ok(()),
                }
            }
        }
    };
    let running = Running::start(Worker::new(&jobs).fallback(choose));
    for name in ["retry", "retry_after", "reject", "release"] {
        push(&jobs, "a", Message::new(name, "").with_id(name)).await;
    }
    let a = jobs.pipeline("a").unwrap();
    // A worker that waits an hour of paused time polls often: wait by the queue's own clock.
    tokio::time::sleep(3601 * SECOND).await;
    assert!(began.elapsed() >= 3600 * SECOND);
    assert_eq!(a.state().await.unwrap().dead, Some(1));
    let report = running.end().await;
    let ends = (report.acked, report.rejected, report.requeued, report.released);
    assert_eq!(ends, (3, 1, 2, 1), "{report:?}");
    let mut attempts = attempts.lock().unwrap().clone();
    attempts.sort();
    let attempts: Vec<_> = attempts.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    assert_eq!(
        attempts,
        [
            ("reject", 1),
            ("release", 1),
            ("release", 1),
            ("retry", 1),
            ("retry", 2),
            ("retry_after", 1),
            ("retry_after", 2)
        ]
    );
}

#[tokio::test]
async fn jobs_settled_when_handed_out_count_as_done() {
    let jobs = consuming(["a"]).await;
    let running = Running::start(
        Worker::new(&jobs).handle("x", async |_: Bytes, _| Err(HandlerError::reject("late"))),
    );
    push(&jobs, "a", Message::new("x", "").with_auto_ack(true)).await;
    drained(&jobs, "a").await;
    let a = jobs.pipeline("a").unwrap();
    assert_eq!(a.state().await.unwrap().dead, Some(0));
    let report = running.end().await;
    assert_eq!((report.acked, report.rejected, report.failed), (1, 0, 1), "{report:?}");
}

/// Counts how many handlers run, in all and at most at once.
#[derive(Clone, Default)]
struct Gauge {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    all: Arc<AtomicUsize>,
}

impl Gauge {
    async fn run(self) -> Result<(), HandlerError> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.all.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_urgent_jobs_stays_within_max_running() {
    let flood = memory("flood").with_priority(1).with_max_running(NonZeroUsize::new(2).unwrap());
    let config = Jobs::builder().pipeline(flood).pipeline(memory("calm"));
    let jobs = config.consume(["flood", "calm"]).connect().await.unwrap();
    for n in 0..200 {
        push(&jobs, "flood", number("flood", n).with_priority(-5)).await;
    }
    for n in 0..50 {
        push(&jobs, "calm", number("calm", n)).await;
    }
    let (flood, calm) = (Gauge::default(), Gauge::default());
    let done_when_calm_was = Arc::new(AtomicUsize::new(0));
    let (of_flood, of_calm, done) = (flood.clone(), calm.clone(), Arc::clone(&done_when_calm_was));
    let worker = Worker::new(&jobs)
        .handle("flood", move |_: Json<u64>, _| of_flood.clone().run())
        .handle("calm", {
            let flood = flood.clone();
            move |_: Json<u64>, _| {
                done.store(flood.all.load(Ordering::SeqCst), Ordering::SeqCst);
                of_calm.clone().run()
            }
        })
        .concurrency(8);
    let running = Running::start(worker);
    drained(&jobs, "flood").await;
    drained(&jobs, "calm").await;
    let report = running.end().await;
    assert_eq!(report.acked, 250);
    assert_eq!((flood.most(), calm.most()), (2, 6), "at once");
    let flooded = done_when_calm_was.load(Ordering::SeqCst);
    assert!(flooded < 100, "calm jobs waited for {flooded} of the flood");
}

#[tokio::test(start_paused = true)]
async fn concurrency_is_a_bound_and_the_rest_waits_at_the_pipeline() {
    let jobs = consuming(["a"]).await;
    for n in 0..40 {
        push(&jobs, "a", number("x", n)).await;
    }
    let gauge = Gauge::default();
    let shared = gauge.clone();
    let handler = move |_: Json<u64>, _: Context| shared.clone().run();
    let running = Running::start(Worker::new(&jobs).handle("x", handler).concurrency(3));
    drained(&jobs, "a").await;
    assert_eq!(gauge.most(), 3);
    assert_eq!(running.end().await.acked, 40);
}

#[tokio::test]
async fn a_worker_of_named_pipelines_takes_no_others() {
    let jobs = consuming(["a", "b"]).await;
    push(&jobs, "a", Message::new("x", "")).await;
    push(&jobs, "b", Message::new("x", "")).await;
    let of_a = Running::start(Worker::new(&jobs).handle("x", nothing).pipelines(["a"]));
    let of_none = Running::start(Worker::new(&jobs).handle("x", nothing).pipelines(["a"]));
    drained(&jobs, "a").await;
    assert_eq!(of_none.end().await.started + of_a.end().await.started, 1);
    assert_eq!(jobs.pipeline("b").expect_err("the last worker").kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn a_pipeline_with_slow_jobs_does_not_slow_another() {
    let slow = memory("slow").with_max_running(NonZeroUsize::new(1).unwrap());
    let config = Jobs::builder().pipeline(slow).pipeline(memory("fast"));
    let jobs = config.consume(["slow", "fast"]).connect().await.unwrap();
    let (release, released) = tokio::sync::watch::channel(false);
    let slow = move |_: Json<u64>, _: Context| {
        let mut released = released.clone();
        async move { Ok(released.wait_for(|open| *open).await.map(drop)?) }
    };
    for n in 0..20 {
        push(&jobs, "slow", number("slow", n)).await;
        push(&jobs, "fast", number("fast", n)).await;
    }
    let worker = Worker::new(&jobs).handle("slow", slow).handle("fast", nothing).concurrency(2);
    let running = Running::start(worker);
    drained(&jobs, "fast").await;
    release.send_replace(true);
    drained(&jobs, "slow").await;
    assert_eq!(running.end().await.acked, 40);
}

/// A consuming pipeline of a driver that settles as told.
async fn scripted(answers: impl IntoIterator<Item = Answer>) -> (Jobs, Arc<Script>) {
    let driver = Scripted::default();
    let script = Arc::clone(&driver.0);
    script.settling.lock().unwrap().extend(answers);
    let mut registry = Registry::new();
    registry.register(driver).unwrap();
    let pipeline = Pipeline::new("a", "scripted");
    let config = Jobs::builder().registry(registry).pipeline(pipeline).consume(["a"]);
    (config.connect().await.unwrap(), script)
}

/// Runs one job to its end, whose handler fails or not.
async fn settled(answers: impl IntoIterator<Item = Answer>, fails: bool) -> (Report, Arc<Script>) {
    let (jobs, script) = scripted(answers).await;
    let handler = move |_: Bytes, _: Context| async move {
        if fails { Err(HandlerError::retry("by design")) } else { Ok(()) }
    };
    let running = Running::start(Worker::new(&jobs).handle("x", handler));
    push(&jobs, "a", Message::new("x", "")).await;
    eventually("it is settled", async || !script.settled.lock().unwrap().is_empty()).await;
    (running.end().await, script)
}

#[tokio::test(start_paused = true)]
async fn a_settlement_that_fails_for_the_moment_is_tried_again() {
    let (report, script) = settled([Answer::Transient, Answer::Transient], false).await;
    assert_eq!((report.acked, report.unsettled), (1, 0), "{report:?}");
    assert_eq!(*script.settled.lock().unwrap(), [Outcome::Ack, Outcome::Ack, Outcome::Ack]);
}

#[tokio::test(start_paused = true)]
async fn a_settlement_is_not_tried_for_ever() {
    let (report, script) = settled((0..99).map(|_| Answer::Transient), false).await;
    assert_eq!((report.acked, report.unsettled), (0, 1), "{report:?}");
    assert_eq!(script.settled.lock().unwrap().len(), 6);
    assert_eq!(*script.abandoned.lock().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_never_an_ack() {
    let (report, script) = settled([Answer::LeaseLost], false).await;
    assert_eq!((report.acked, report.unsettled, report.leases_lost), (0, 1, 1), "{report:?}");
    assert_eq!(script.settled.lock().unwrap().len(), 1, "not tried again");
    assert_eq!(*script.abandoned.lock().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_never_comes_does_not_hold_up_the_shutdown() {
    let began = tokio::time::Instant::now();
    let (report, _) = settled([Answer::Never], false).await;
    assert_eq!((report.acked, report.unsettled), (0, 1), "{report:?}");
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn where_delays_are_refused_a_retry_runs_at_once() {
    let (report, script) = settled([], true).await;
    assert_eq!(report.requeued, 1);
    assert_eq!(*script.settled.lock().unwrap(), [Outcome::requeue()]);
    let (report, script) = settled([Answer::Unsupported], true).await;
    assert_eq!((report.requeued, report.released), (0, 1));
    assert_eq!(*script.settled.lock().unwrap(), [Outcome::requeue(), Outcome::Release]);
}

#[tokio::test(start_paused = true)]
async fn a_delay_is_at_most_the_longest_the_pipeline_can_do() {
    let (jobs, script) = scripted([]).await;
    {
        let mut capabilities = script.capabilities.lock().unwrap();
        capabilities.delay = Support::Native;
        capabilities.requeue = Support::Native;
        capabilities.max_delay = Some(9 * SECOND);
    }
    let late = async |_: Bytes, _: Context| Err(HandlerError::retry_after(99 * SECOND, "late"));
    let running = Running::start(Worker::new(&jobs).fallback(late));
    push(&jobs, "a", Message::new("x", "")).await;
    eventually("it is settled", async || !script.settled.lock().unwrap().is_empty()).await;
    running.end().await;
    assert_eq!(*script.settled.lock().unwrap(), [Outcome::requeue_after(9 * SECOND)]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_settlement_keeps_no_handler_from_starting() {
    let (jobs, script) = scripted((0..50).map(|_| Answer::Never)).await;
    let running = Running::start(Worker::new(&jobs).handle("x", nothing).concurrency(1));
    for n in 0..50 {
        push(&jobs, "a", number("x", n)).await;
    }
    eventually("all have run", async || script.settled.lock().unwrap().len() == 50).await;
    assert_eq!(running.end().await.unsettled, 50);
}

#[tokio::test]
async fn a_context_that_outlives_its_handler_keeps_nothing() {
    let jobs = consuming(["a"]).await;
    let (send, mut kept) = tokio::sync::mpsc::unbounded_channel();
    let keep = move |_: Bytes, context: Context| {
        let sent = send.send(context);
        async move { Ok(sent?) }
    };
    let running = Running::start(Worker::new(&jobs).handle("x", keep));
    push(&jobs, "a", Message::new("x", "")).await;
    let context = soon("the context", kept.recv()).await.unwrap();
    drained(&jobs, "a").await;
    let error = context.extend(SECOND).await.expect_err("over");
    assert_eq!(error.kind(), ErrorKind::LeaseLost);
    let report = running.end().await;
    assert_eq!(report.acked, 1);
    assert!(context.is_shutting_down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_job_runs_once_with_many_handlers_on_many_threads() {
    let jobs = consuming(["a", "b"]).await;
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let noted = Arc::clone(&seen);
    let note = move |Json(n): Json<u64>, _: Context| {
        let new = noted.lock().unwrap().insert(n);
        async move {
            tokio::task::yield_now().await;
            if new { Ok(()) } else { Err(HandlerError::reject("twice")) }
        }
    };
    let running = Running::start(Worker::new(&jobs).handle("x", note).concurrency(64));
    let (a, b) = (jobs.pipeline("a").unwrap(), jobs.pipeline("b").unwrap());
    for n in (0..20_000).step_by(100) {
        let batch = (n..n + 100).map(|n| number("x", n)).collect();
        let pipeline = if n % 200 == 0 { &a } else { &b };
        assert!(pipeline.push_batch(batch).await.iter().all(Result::is_ok));
    }
    drained(&jobs, "a").await;
    drained(&jobs, "b").await;
    let report = running.end().await;
    assert_eq!((report.acked, report.rejected), (20_000, 0), "{report:?}");
    assert_eq!(seen.lock().unwrap().len(), 20_000);
}

#[tokio::test]
async fn headers_stay_through_a_retry() {
    let jobs = consuming(["a"]).await;
    let headers: Headers = [("a", "1"), ("a", "2")].into_iter().collect();
    let expected = headers.clone();
    let check = move |_: Bytes, context: Context| {
        let same = *context.headers() == expected;
        async move {
            match (same, context.attempt()) {
                (false, _) => Err(HandlerError::reject("other headers")),
                (true, 1) => Err(HandlerError::retry_after(Duration::ZERO, "again")),
                (true, _) => Ok(()),
            }
        }
    };
    let running = Running::start(Worker::new(&jobs).fallback(check));
    push(&jobs, "a", Message::new("x", "").with_headers(headers)).await;
    drained(&jobs, "a").await;
    let report = running.end().await;
    assert_eq!((report.requeued, report.acked, report.rejected), (1, 1, 0));
}
