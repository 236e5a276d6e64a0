//! One program on all six drivers, chosen by configuration alone. What it observes is what the capabilities
//! of its pipeline announce: two drivers that announce the same behave the same.

#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use integration_tests::brokers::Brokers;
use jobs::{
    Bytes, Capabilities, Consumer, Context, ErrorKind, Failure, HandlerError, Headers, Job, Jobs,
    Message, Outcome, PipelineHandle, Policy, Report, Worker,
};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

const DRIVERS: [&str; 6] = ["memory", "local", "amqp", "kafka", "sqs", "beanstalk"];
const PATIENCE: Duration = Duration::from_secs(60);
/// For so long nothing comes where nothing is to come.
const QUIET: Duration = Duration::from_millis(300);
const DELAY: Duration = Duration::from_millis(400);
/// Longer than the shortest lease there is, five seconds at beanstalkd.
const SLOW: Duration = Duration::from_secs(6);
/// Jobs under load, of which a part is done when the program is told to end.
const LOAD: usize = 300;
const DONE: usize = 60;

/// What a program saw, by what it did.
type Observed = BTreeMap<&'static str, String>;

/// The configuration of one driver: nothing else differs.
fn configuration(sections: &str, driver: &str, file: &str) -> String {
    let options = match driver {
        "memory" => String::new(),
        "local" => format!("path: '{file}'"),
        "amqp" => "queue: work".to_owned(),
        "kafka" => "topics: [work], auto_create_topics_enable: true".to_owned(),
        "sqs" => "queue: work, visibility_timeout: 5".to_owned(),
        _ => "tube: work, time_to_run: 5s".to_owned(),
    };
    format!(
        "{sections}
            version: '3'
            jobs:
              consume: [work]
              pipelines:
                work: {{ driver: {driver}, config: {{ {options} }} }}
        "
    )
}

/// The options of a second pipeline, as other languages send them.
fn second(driver: &'static str, file: &str) -> Vec<(&'static str, String)> {
    let own = match driver {
        "memory" => vec![],
        "local" => vec![("path", file.to_owned())],
        "amqp" | "sqs" => vec![("queue", "second".to_owned())],
        "kafka" => vec![
            ("topics", r#"["second"]"#.to_owned()),
            ("auto_create_topics_enable", "true".to_owned()),
        ],
        _ => vec![("tube", "second".to_owned())],
    };
    let common = [("name", "second"), ("driver", driver), ("prefetch", "1")];
    common.map(|(name, value)| (name, value.to_owned())).into_iter().chain(own).collect()
}

/// What the capabilities of a pipeline announce.
fn announced(capabilities: &Capabilities) -> Observed {
    let or = |announced: bool, yes: &str, no: &str| if announced { yes } else { no }.to_owned();
    let always = |text: &str| text.to_owned();
    Observed::from([
        ("push", always("as it was pushed, attempt 1")),
        ("batch", always("50 of 50, once each")),
        ("delay", or(capabilities.delay.is_available(), "not early", "refused")),
        ("priorities", always("sorted in this process")),
        (
            "priorities, prefetch 1",
            or(
                capabilities.priority.is_available(),
                "sorted by the broker",
                "as the broker has them",
            ),
        ),
        ("requeue", always("the new headers, attempt 2")),
        ("requeue with delay", or(capabilities.delay.is_available(), "not early", "refused")),
        ("release", or(capabilities.uncounted_release, "attempt 1", "attempt 2")),
        ("reject", always("not again")),
        ("pause", always("nothing, and all when it is resumed")),
        ("destroy", always("NotFound, and Closed for who has a handle")),
        ("handlers", always("acked 24, rejected 1, requeued 3, released 1, failed 4, panicked 1")),
        ("shutdown", always("all that began has ended")),
        ("next start", or(capabilities.durable, "the rest, once each", "the rest is gone")),
    ])
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

async fn next(consumer: &Consumer, what: &str) -> Job {
    soon(what, consumer.next()).await.unwrap()
}

async fn is_quiet(consumer: &Consumer) -> bool {
    timeout(QUIET, consumer.next()).await.is_err()
}

fn message(name: &'static str) -> Message {
    Message::new(name, "payload")
}

/// A payload of any bytes, headers, an id.
async fn push(work: &PipelineHandle, consumer: &Consumer) -> String {
    let pushed = Message::new("one", vec![0, 255, 10, 13, 0xc3, 0x28])
        .with_id("the id")
        .with_header("trace", "grüße");
    work.push(pushed.clone()).await.unwrap();
    let job = next(consumer, "what was pushed").await;
    let same = (job.id(), job.name(), job.payload(), job.headers())
        == (pushed.id(), pushed.name(), pushed.payload(), pushed.headers());
    let attempt = job.attempt();
    job.ack().await.unwrap();
    format!("{}, attempt {attempt}", if same { "as it was pushed" } else { "changed" })
}

async fn batch(work: &PipelineHandle, consumer: &Consumer) -> String {
    let messages: Vec<_> = (0..50).map(|_| message("batch")).collect();
    let ids: BTreeSet<_> = messages.iter().map(|message| message.id().clone()).collect();
    for answer in work.push_batch(messages).await {
        answer.unwrap();
    }
    let mut seen = BTreeSet::new();
    while seen.len() < ids.len() {
        let job = next(consumer, "the batch").await;
        if !seen.insert(job.id().clone()) {
            return "one twice".to_owned();
        }
        job.ack().await.unwrap();
    }
    let once = is_quiet(consumer).await && seen == ids;
    format!("{} of {}, {}", seen.len(), ids.len(), if once { "once each" } else { "and others" })
}

async fn delay(work: &PipelineHandle, consumer: &Consumer) -> String {
    let begun = Instant::now();
    match work.push(message("later").with_delay(DELAY)).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => "refused".to_owned(),
        answer => {
            answer.unwrap();
            due(consumer, begun).await
        }
    }
}

/// The next job comes, and no earlier than it may.
async fn due(consumer: &Consumer, begun: Instant) -> String {
    next(consumer, "what was delayed").await.ack().await.unwrap();
    if begun.elapsed() >= DELAY { "not early" } else { "early" }.to_owned()
}

/// Three jobs that the process has when the first is asked for.
async fn priorities(work: &PipelineHandle, consumer: &Consumer) -> String {
    for priority in [30, 10, 20] {
        work.push(message("urgent").with_priority(priority)).await.unwrap();
    }
    soon("all are here", async {
        while work.state().await.unwrap().active < 3 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    match in_order(consumer).await {
        true => "sorted in this process".to_owned(),
        false => "not sorted".to_owned(),
    }
}

async fn in_order(consumer: &Consumer) -> bool {
    let mut found = Vec::new();
    for _ in 0..3 {
        let job = next(consumer, "one of three").await;
        found.push(job.message().priority());
        job.ack().await.unwrap();
    }
    found.is_sorted()
}

async fn requeue(work: &PipelineHandle, consumer: &Consumer) -> String {
    work.push(message("again").with_header("step", "1")).await.unwrap();
    let job = next(consumer, "the first attempt").await;
    let headers: Headers = [("step", "2")].into_iter().collect();
    let outcome = Outcome::Requeue { delay: Duration::ZERO, headers: Some(headers.clone()) };
    job.settle(outcome).await.unwrap();
    let job = next(consumer, "the second attempt").await;
    let (same, attempt) = (*job.headers() == headers, job.attempt());
    job.ack().await.unwrap();
    format!("{}, attempt {attempt}", if same { "the new headers" } else { "other headers" })
}

async fn requeue_later(work: &PipelineHandle, consumer: &Consumer) -> String {
    work.push(message("again")).await.unwrap();
    let job = next(consumer, "the first attempt").await;
    let begun = Instant::now();
    match job.requeue(DELAY).await {
        Ok(()) => due(consumer, begun).await,
        Err(refused) => {
            assert_eq!(refused.error().kind(), ErrorKind::Unsupported, "{refused}");
            refused.into_job().ack().await.unwrap();
            "refused".to_owned()
        }
    }
}

async fn release(work: &PipelineHandle, consumer: &Consumer) -> String {
    work.push(message("untouched")).await.unwrap();
    next(consumer, "what is given back").await.release().await.unwrap();
    let job = next(consumer, "what was given back").await;
    let attempt = job.attempt();
    job.ack().await.unwrap();
    format!("attempt {attempt}")
}

async fn reject(work: &PipelineHandle, consumer: &Consumer) -> String {
    work.push(message("bad")).await.unwrap();
    next(consumer, "what is rejected").await.reject().await.unwrap();
    work.push(message("good")).await.unwrap();
    let job = next(consumer, "what comes after it").await;
    let name = job.name().to_owned();
    job.ack().await.unwrap();
    let gone = name == "good" && is_quiet(consumer).await;
    if gone { "not again" } else { "again" }.to_owned()
}

async fn pause(work: &PipelineHandle, consumer: &Consumer) -> String {
    work.pause().await.unwrap();
    for _ in 0..5 {
        work.push(message("patient")).await.unwrap();
    }
    let held = is_quiet(consumer).await && !work.state().await.unwrap().ready;
    work.resume().await.unwrap();
    for _ in 0..5 {
        next(consumer, "what was pushed while paused").await.ack().await.unwrap();
    }
    if held { "nothing, and all when it is resumed" } else { "something" }.to_owned()
}

/// A pipeline that has one job at a time in this process: what comes next is the broker's choice.
async fn one_at_a_time(second: &PipelineHandle, consumer: &Consumer) -> String {
    for priority in [30, 10, 20] {
        second.push(message("urgent").with_priority(priority)).await.unwrap();
    }
    second.resume().await.unwrap();
    let sorted = in_order(consumer).await;
    match second.capabilities().priority.is_available() {
        true if sorted => "sorted by the broker".to_owned(),
        true => "not sorted".to_owned(),
        false => "as the broker has them".to_owned(),
    }
}

async fn destroy(jobs: &Jobs, second: &PipelineHandle) -> String {
    jobs.destroy("second").await.unwrap();
    let unknown = jobs.pipeline("second").expect_err("destroyed").kind();
    let closed = second.push(message("late")).await.expect_err("destroyed").kind();
    format!("{unknown:?}, and {closed:?} for who has a handle")
}

/// Handlers of all kinds, under one worker until each job has ended.
async fn handlers(jobs: &Jobs) -> String {
    let work = jobs.pipeline("work").unwrap();
    for name in ["slow", "failing", "panicking", "rejecting", "releasing"] {
        work.push(message(name)).await.unwrap();
    }
    for _ in 0..20 {
        work.push(message("quick")).await.unwrap();
    }
    let left = Arc::new((AtomicUsize::new(25), Notify::new()));
    let end = {
        let left = Arc::clone(&left);
        move || {
            if left.0.fetch_sub(1, Ordering::SeqCst) == 1 {
                left.1.notify_one();
            }
        }
    };
    let given_back = Arc::new(AtomicUsize::new(0));
    let handler = move |_: Bytes, context: Context| {
        let (end, given_back) = (end.clone(), Arc::clone(&given_back));
        async move {
            match context.name() {
                "slow" => sleep(SLOW).await,
                "failing" if context.attempt() < 3 => Err(std::io::Error::other("not yet"))?,
                "panicking" if context.attempt() == 1 => panic!("expected here"),
                "rejecting" => {
                    end();
                    return Err(HandlerError::reject("never"));
                }
                "releasing" if given_back.fetch_add(1, Ordering::SeqCst) == 0 => {
                    return Err(HandlerError::release("somebody else"));
                }
                _ => {}
            }
            end();
            Ok(())
        }
    };
    let worker = Worker::new(jobs)
        .fallback(handler)
        .on_failure(Failure::Error, Policy::RetryAfter(Duration::ZERO))
        .on_failure(Failure::Panic, Policy::RetryAfter(Duration::ZERO));
    let report = soon("all jobs end", worker.run_until(left.1.notified())).await.unwrap();
    let Report { acked, rejected, requeued, released, failed, panicked, .. } = report;
    format!(
        "acked {acked}, rejected {rejected}, requeued {requeued}, released {released}, \
         failed {failed}, panicked {panicked}"
    )
}

/// Jobs under way when the program is told to end. What it did, and which jobs it did.
async fn shut_down(jobs: &Jobs) -> (String, BTreeSet<usize>) {
    let work = jobs.pipeline("work").unwrap();
    let messages = (0..LOAD).map(|number| Message::new("load", number.to_string()));
    for answer in work.push_batch(messages.collect()).await {
        answer.unwrap();
    }
    let (done, enough) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Notify::new()));
    let (noted, notify) = (Arc::clone(&done), Arc::clone(&enough));
    let handler = move |payload: Bytes, _: Context| {
        let (noted, notify) = (Arc::clone(&noted), Arc::clone(&notify));
        async move {
            sleep(Duration::from_millis(5)).await;
            let mut noted = noted.lock().unwrap();
            assert!(noted.insert(number(&payload)), "twice");
            if noted.len() == DONE {
                notify.notify_one();
            }
            Ok::<_, HandlerError>(())
        }
    };
    let worker = Worker::new(jobs).handle("load", handler).concurrency(8);
    let report = soon("the worker ends", worker.run_until(enough.notified())).await.unwrap();
    let done = done.lock().unwrap().clone();
    let ended = report.started == report.acked && report.acked == done.len() as u64;
    let clean = ended && report.shutdown_error.is_none() && report.panicked == 0;
    let text = if clean { "all that began has ended".to_owned() } else { format!("{report:?}") };
    (text, done)
}

fn number(payload: &[u8]) -> usize {
    std::str::from_utf8(payload).unwrap().parse().unwrap()
}

/// What another start of the program finds.
async fn start_again(jobs: &Jobs, done: &BTreeSet<usize>) -> String {
    let durable = jobs.pipeline("work").unwrap().capabilities().durable;
    let consumer = jobs.consumer(["work"]).unwrap();
    let mut all = done.clone();
    while durable && all.len() < LOAD {
        let job = next(&consumer, "the rest").await;
        if !all.insert(number(job.payload())) {
            return "one twice".to_owned();
        }
        job.ack().await.unwrap();
    }
    match (is_quiet(&consumer).await, durable) {
        (true, true) => "the rest, once each".to_owned(),
        (true, false) => "the rest is gone".to_owned(),
        (false, _) => "more than the rest".to_owned(),
    }
}

/// The program.
async fn run(configuration: &str, second: Vec<(&'static str, String)>) -> (Capabilities, Observed) {
    let mut seen = Observed::new();
    let jobs = Jobs::from_yaml(configuration).await.unwrap();
    let work = jobs.pipeline("work").unwrap();
    let consumer = jobs.consumer(["work"]).unwrap();
    seen.insert("push", push(&work, &consumer).await);
    seen.insert("batch", batch(&work, &consumer).await);
    seen.insert("delay", delay(&work, &consumer).await);
    seen.insert("priorities", priorities(&work, &consumer).await);
    seen.insert("requeue", requeue(&work, &consumer).await);
    seen.insert("requeue with delay", requeue_later(&work, &consumer).await);
    seen.insert("release", release(&work, &consumer).await);
    seen.insert("reject", reject(&work, &consumer).await);
    seen.insert("pause", pause(&work, &consumer).await);

    let second = jobs.declare_flat(second).await.unwrap();
    let consumer = jobs.consumer(["second"]).unwrap();
    seen.insert("priorities, prefetch 1", one_at_a_time(&second, &consumer).await);
    drop(consumer);
    seen.insert("destroy", destroy(&jobs, &second).await);

    seen.insert("handlers", handlers(&jobs).await);
    let jobs = Jobs::from_yaml(configuration).await.unwrap();
    let (shutdown, done) = shut_down(&jobs).await;
    seen.insert("shutdown", shutdown);
    let jobs = Jobs::from_yaml(configuration).await.unwrap();
    seen.insert("next start", start_again(&jobs, &done).await);
    jobs.shutdown().await.unwrap();
    (work.capabilities(), seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn differs_only_where_the_capabilities_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jobs.db");
    let file = file.to_str().unwrap();
    let brokers = Brokers::start().await.unwrap();
    let sections = brokers.sections();
    let programs = DRIVERS.map(|driver| {
        let configuration = configuration(&sections, driver, file);
        let program = async move { run(&configuration, second(driver, file)).await };
        async move { (driver, program.await) }
    });
    for (driver, (capabilities, observed)) in futures::future::join_all(programs).await {
        assert_eq!(observed, announced(&capabilities), "{driver}");
    }
}
