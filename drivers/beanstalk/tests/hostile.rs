//! Answers that a good server gives seldom, or never.

mod support;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jobs_core::{ErrorKind, Job, Message, Queue, Registry};
use tokio::time::timeout;

use support::{Say, Server, connect, start};

const PATIENCE: Duration = Duration::from_secs(60);

/// Says something once, to the first command that begins so.
fn once(command: &'static str, say: Say) -> impl Fn(&str) -> Option<Say> + Send + Sync {
    let said = AtomicUsize::new(0);
    move |line| {
        let first = line.starts_with(command) && said.fetch_add(1, Ordering::AcqRel) == 0;
        first.then(|| say.clone())
    }
}

fn job(id: u64) -> Say {
    Say::job(id, "jobs/1 {\"i\":\"x\",\"n\":\"a\",\"p\":1,\"t\":30}\n")
}

async fn next(queue: &Queue) -> Job {
    timeout(PATIENCE, queue.pop()).await.expect("a job").expect("open")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_to_a_put_is_an_outcome_and_the_next_push_works() {
    use ErrorKind::{Broker, Connection, PayloadTooLarge};
    // With what is said only once, a server that is full has room at the second attempt.
    let table = [
        ("OUT_OF_MEMORY", None),
        ("DRAINING", None),
        ("JOB_TOO_BIG", Some((PayloadTooLarge, false, false))),
        ("BURIED 7", Some((ErrorKind::Full, true, true))),
        ("INTERNAL_ERROR", Some((Broker, true, true))),
        ("BAD_FORMAT", Some((Broker, false, false))),
        ("UNKNOWN_COMMAND", Some((Connection, true, true))),
        ("EXPECTED_CRLF", Some((Connection, true, true))),
        ("INSERTED", Some((Connection, true, true))),
        ("INSERTED many", Some((Connection, true, true))),
        ("HTTP/1.1 400 Bad Request", Some((Connection, true, true))),
        ("", Some((Connection, true, true))),
        ("RESERVED 1 3\r\nabc", Some((Connection, true, true))),
        // The client panics on it.
        ("RESERVED 1 9223372036854775807", Some((Connection, true, true))),
    ];
    for (line, expected) in table {
        let server = Server::start(once("put", Say::line(line)));
        expect(&server, line, expected).await;
    }
    let lost = Some((Connection, true, true));
    let server = Server::start(once("put", Say::Bytes(b"\xff\xfe\r\n".to_vec())));
    expect(&server, "no text", lost).await;
    let server = Server::start(once("put", Say::Close));
    expect(&server, "nothing", lost).await;
}

async fn expect(server: &Server, said: &str, expected: Option<(ErrorKind, bool, bool)>) {
    let driver = connect(server.pipeline()).await.expect("it answers");
    let found = driver.push(Message::new("a", "")).await.err();
    let found = found.map(|e| (e.kind(), e.is_retryable(), e.may_be_stored()));
    assert_eq!(found, expected, "{said}");
    driver.push(Message::new("a", "")).await.unwrap_or_else(|error| panic!("{said}: {error:?}"));
    driver.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stays_full_is_waited_for_and_then_told_so() {
    for (line, kind) in [("OUT_OF_MEMORY", ErrorKind::Full), ("DRAINING", ErrorKind::Throttled)] {
        let script = move |command: &str| command.starts_with("put").then(|| Say::line(line));
        let server = Server::start(script);
        let driver = connect(server.pipeline()).await.unwrap();
        let start = Instant::now();
        let answers = driver.push_batch(vec![Message::new("a", ""), Message::new("b", "")]).await;
        assert!(start.elapsed() >= Duration::from_secs(3));
        for answer in answers {
            let error = answer.unwrap_err();
            assert_eq!((error.kind(), error.is_retryable()), (kind, true));
            assert!(!error.may_be_stored(), "{error:?}");
        }
        driver.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consuming_goes_on_after_any_answer_to_a_request_for_a_job() {
    let answers = [
        Say::line("DEADLINE_SOON"),
        Say::line("OUT_OF_MEMORY"),
        Say::line("INTERNAL_ERROR"),
        Say::line("nonsense"),
        Say::line("RESERVED"),
        Say::line("RESERVED 1"),
        Say::line("RESERVED one 3\r\nabc"),
        Say::line("RESERVED 1 -3"),
        // The client panics on it.
        Say::line("RESERVED 1 9223372036854775807"),
        Say::Bytes(b"RESERVED 1 10\r\nhalf".to_vec()),
        Say::Bytes(b"\xff\xff\r\n".to_vec()),
        Say::Nothing,
        Say::Close,
    ];
    for answer in answers {
        let (asked, first) = (AtomicUsize::new(0), answer.clone());
        let server = Server::start(move |command| {
            if !command.starts_with("reserve") {
                return None;
            }
            match asked.fetch_add(1, Ordering::AcqRel) {
                0 => Some(first.clone()),
                1 => {
                    Some(Say::job(2, "jobs/1 {\"i\":\"x\",\"n\":\"a\",\"p\":1,\"t\":30}\npayload"))
                }
                _ => None,
            }
        });
        let pipeline = server.pipeline().with_option("connections", 1);
        let (driver, queue) = start(pipeline).await.unwrap();
        // A half of a reply, or none, is noticed when the server is hung up on.
        let job = timeout(PATIENCE, queue.pop()).await;
        let job = job.unwrap_or_else(|_| panic!("{answer:?}")).expect("open");
        assert_eq!((job.id().as_str(), &job.payload()[..]), ("x", &b"payload"[..]), "{answer:?}");
        job.ack().await.unwrap();
        driver.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_memory_is_worked_off_on_the_connection_that_stands() {
    let foreign = Say::job(3, "of others");
    for (first, name) in [(job(2), "a"), (foreign, "deduced_by_rr")] {
        for refused in ["reserve", "stats-job", "touch"] {
            let connected = Arc::new(AtomicUsize::new(0));
            let (watched, turn) = (Arc::clone(&connected), AtomicUsize::new(0));
            let (reserve, full) = (once("reserve", first.clone()), Say::line("OUT_OF_MEMORY"));
            let server = Server::start(move |line| {
                watched.fetch_add(usize::from(line.starts_with("watch")), Ordering::AcqRel);
                // A request for a job has to succeed some time.
                let is_first = || turn.fetch_add(1, Ordering::AcqRel) < 3;
                let is_refused = line.starts_with(refused) && (refused != "reserve" || is_first());
                is_refused.then(|| full.clone()).or_else(|| reserve(line))
            });
            let pipeline = server.pipeline().with_option("connections", 1);
            let (driver, queue) = start(pipeline).await.unwrap();
            let job = next(&queue).await;
            assert_eq!((job.name(), job.attempt()), (name, 1));
            if refused == "touch" {
                let error = job.extend(Duration::from_secs(1)).await.unwrap_err();
                assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Full, true));
            }
            job.ack().await.unwrap();
            assert_eq!(connected.load(Ordering::Acquire), 1, "{refused}");
            driver.stop().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_a_job_that_is_overdue_holds_up_no_other_connection() {
    let (silent, first) = (once("reserve", Say::Nothing), once("reserve-with-timeout 1", job(2)));
    let second = once("reserve-with-timeout 0", job(3));
    let server =
        Server::start(move |line| silent(line).or_else(|| first(line)).or_else(|| second(line)));
    let pipeline = server.pipeline().with_option("connections", 2);
    // The connection is given up only when the test has failed.
    let (driver, queue) = start(pipeline.with_option("push_timeout", "10m")).await.unwrap();
    let held = next(&queue).await;
    let other = next(&queue).await;
    held.ack().await.unwrap();
    other.ack().await.unwrap();
    server.hang_up();
    driver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_buried_jobs_are_kicked() {
    let kicked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&kicked);
    let server = Server::start(move |line| {
        let count = |by| count.fetch_add(by, Ordering::AcqRel);
        match line.split_once(' ').unwrap_or((line, "")).0 {
            "stats-tube" => Some(Say::line("OK 27\r\n---\ncurrent-jobs-buried: 2\n")),
            // Somebody else was first with the other.
            "peek-buried" if count(0) > 0 => Some(Say::line("NOT_FOUND")),
            "peek-buried" => Some(Say::line("FOUND 7 1\r\nx")),
            "kick-job" => {
                count(1);
                Some(Say::line("KICKED"))
            }
            "kick" => {
                count(100);
                Some(Say::line("KICKED 2"))
            }
            _ => None,
        }
    });
    let constructor = jobs_beanstalk::constructor();
    let mut registry = Registry::new();
    registry.register(constructor.clone()).unwrap();
    let driver = registry.connect(server.pipeline()).await.unwrap();
    assert_eq!(constructor.buried("p").unwrap().kick(10).await.unwrap(), 1);
    assert_eq!(kicked.load(Ordering::Acquire), 1);
    driver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_the_server_refuses_gives_the_job_back() {
    let (reserve, delete) = (once("reserve", job(2)), once("delete", Say::line("INTERNAL_ERROR")));
    let server = Server::start(move |command| reserve(command).or_else(|| delete(command)));
    let (driver, queue) = start(server.pipeline()).await.unwrap();
    let refused = next(&queue).await.ack().await.unwrap_err();
    assert_eq!((refused.error().kind(), refused.error().is_retryable()), (ErrorKind::Broker, true));
    refused.into_job().ack().await.unwrap();
    driver.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_silent_about_a_settlement_does_not_hold_up_its_caller() {
    let silent = |command: &'static str| async move {
        let reserve = once("reserve", job(2));
        let server = Server::start(move |line| {
            reserve(line).or_else(|| line.starts_with(command).then_some(Say::Nothing))
        });
        let pipeline = server.impatient().with_option("connections", 1);
        let (driver, queue) = start(pipeline).await.unwrap();
        (server, driver, queue)
    };
    let lost = ErrorKind::LeaseLost;

    let (_server, _driver, queue) = silent("delete").await;
    let acked = next(&queue).await.ack();
    let refused = timeout(PATIENCE, acked).await.expect("answered").unwrap_err();
    assert_eq!(refused.error().kind(), lost, "{refused:?}");

    let (_server, _driver, queue) = silent("touch").await;
    let job = next(&queue).await;
    let extended = timeout(PATIENCE, job.extend(Duration::from_secs(1))).await;
    assert_eq!(extended.expect("answered").unwrap_err().kind(), lost);

    let (_server, driver, queue) = silent("release").await;
    let arrived = async {
        while queue.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, arrived).await.expect("a job");
    timeout(PATIENCE, driver.pause()).await.expect("answered").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_extension_for_ever_is_one() {
    let server = Server::start(once("reserve", job(2)));
    let pipeline = server.pipeline().with_option("max_lease", "1m");
    let (driver, queue) = start(pipeline).await.unwrap();
    let job = next(&queue).await;
    job.extend(Duration::MAX).await.unwrap();
    job.ack().await.unwrap();
    driver.stop().await.unwrap();
}

/// The protocol has no authentication, and the client believes every length.
#[test]
fn a_hostile_length_aborts_the_process() {
    const CHILD: &str = "JOBS_BEANSTALK_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return believe_a_length();
    }
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "a_hostile_length_aborts_the_process"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().expect("a child");
            panic!("it lives on");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    const SIGABRT: i32 = 6;
    assert_eq!(status.signal(), Some(SIGABRT), "{status:?}");
}

fn believe_a_length() {
    let server = Server::start(once("reserve", Say::line("RESERVED 1 999999999999999")));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (_driver, queue) = start(server.pipeline()).await.expect("it runs");
        let _ = timeout(PATIENCE, queue.pop()).await;
    });
}
