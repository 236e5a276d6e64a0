//! Pipelines by name: push, declare, destroy, pause, resume, list, stat, shutdown.

#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::scripted::{Script, Scripted};
use common::{SECOND, consuming, memory, number, push, soon};
use jobs::{Config, ErrorKind, Jobs, Message, Pipeline, default_registry};

/// Drivers `memory` and `scripted`.
fn scripted() -> (Config, Arc<Script>) {
    let driver = Scripted::default();
    let script = Arc::clone(&driver.0);
    let mut registry = default_registry();
    registry.register(driver).unwrap();
    (Jobs::builder().registry(registry).timeout(SECOND), script)
}

fn other(name: &str) -> Pipeline {
    Pipeline::new(name.to_owned(), "scripted")
}

#[tokio::test]
async fn push_answers_errors_by_kind_and_stores_nothing() {
    let pipeline = memory("a")
        .with_option("max_payload", 3)
        .with_option("max_delay", "1m")
        .with_option("max_priority", 9);
    let jobs = Jobs::builder().pipeline(pipeline).connect().await.unwrap();
    let a = jobs.pipeline("a").unwrap();
    let ok = Message::new("x", "abc");
    for (message, kind) in [
        (ok.clone().with_id(""), ErrorKind::InvalidMessage),
        (ok.clone().with_id("i".repeat(256)), ErrorKind::InvalidMessage),
        (ok.clone().with_header("a\nb", "v"), ErrorKind::InvalidMessage),
        (ok.clone().with_payload("abcd"), ErrorKind::PayloadTooLarge),
        (ok.clone().with_delay(61 * SECOND), ErrorKind::Unsupported),
        (ok.clone().with_priority(10), ErrorKind::Unsupported),
        (ok.clone().with_ordering_key("k"), ErrorKind::Unsupported),
    ] {
        let error = a.push(message.clone()).await.expect_err("refused");
        assert_eq!((error.kind(), error.pipeline()), (kind, Some("a")));
        let batch = a.push_batch(vec![message]).await;
        let error = batch.into_iter().next().unwrap().expect_err("refused");
        assert_eq!((error.kind(), error.pipeline()), (kind, Some("a")));
    }
    assert_eq!(a.state().await.unwrap().reserved, Some(0));
    assert!(a.capabilities().delay.is_available());
    let answers = a.push_batch(vec![ok.clone(), ok.with_id(""), Message::new("x", "")]).await;
    assert_eq!(answers.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(a.state().await.unwrap().reserved, Some(2));
    jobs.shutdown().await.unwrap();
}

#[tokio::test]
async fn unknown_and_destroyed_pipelines() {
    let jobs = consuming(["a", "b"]).await;
    let error = jobs.pipeline("c").expect_err("unknown");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("`a`, `b`"), "{error}");
    let handle = jobs.pipeline("a").unwrap();
    jobs.destroy("a").await.unwrap();
    assert_eq!(jobs.list(), [Arc::from("b")]);
    assert_eq!(jobs.pipeline("a").expect_err("gone").kind(), ErrorKind::NotFound);
    assert_eq!(jobs.destroy("a").await.expect_err("gone").kind(), ErrorKind::NotFound);
    let closed = Some(ErrorKind::Closed);
    assert_eq!(handle.push(Message::new("x", "")).await.err().map(|e| e.kind()), closed);
    assert_eq!(handle.pause().await.err().map(|e| e.kind()), closed);
    assert_eq!(handle.resume().await.err().map(|e| e.kind()), closed);
    assert_eq!(handle.state().await.err().map(|e| e.kind()), closed);
    jobs.shutdown().await.unwrap();
}

#[tokio::test]
async fn both_doors_of_declare_read_the_same_options() {
    let jobs = Jobs::builder().connect().await.unwrap();
    let typed = memory("typed").with_priority(3).with_option("queue", "q1");
    jobs.declare(typed).await.unwrap();
    let flat = [("Driver", "memory"), ("name", "flat"), ("priority", "3"), ("queue", "q2")];
    jobs.declare_flat(flat).await.unwrap();
    let named_by_queue = [("driver", "memory"), ("queue", "q3"), ("prefetch", "5")];
    assert_eq!(jobs.declare_flat(named_by_queue).await.unwrap().name(), "q3");

    let stat = jobs.stat().await;
    let of = |name| stat[name].as_ref().unwrap();
    assert_eq!((of("typed").priority, &*of("typed").queue), (3, "q1"));
    assert_eq!((of("flat").priority, &*of("flat").queue), (3, "q2"));
    assert_eq!((of("q3").priority, &*of("q3").queue), (10, "q3"));
    jobs.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_wrong_declaration_leaves_nothing() {
    let jobs = consuming(["a"]).await;
    let twice = jobs.declare(memory("a")).await.expect_err("twice");
    assert_eq!(twice.kind(), ErrorKind::InvalidState);
    let unknown = jobs.declare(Pipeline::new("b", "nope")).await.expect_err("no driver");
    assert_eq!(unknown.kind(), ErrorKind::UnknownDriver);
    let nameless = jobs.declare_flat([("prefetch", "0")]).await.expect_err("no name");
    assert_eq!(nameless.problems().len(), 2, "{nameless}");
    let wrong = [("name", "b"), ("driver", "memory"), ("prefetch", "0"), ("priorty", "1")];
    let wrong = jobs.declare_flat(wrong).await.expect_err("wrong");
    assert_eq!((wrong.kind(), wrong.problems().len()), (ErrorKind::Config, 2), "{wrong}");
    let bad_name = jobs.declare(memory("a b")).await.expect_err("blank");
    assert_eq!(bad_name.kind(), ErrorKind::Config);
    assert_eq!(jobs.list(), [Arc::from("a")]);
    jobs.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_declared_pipeline_runs_if_listed_else_on_resume() {
    let jobs = Jobs::builder().consume(["listed"]).connect().await.unwrap();
    let listed = jobs.declare(memory("listed")).await.unwrap();
    let idle = jobs.declare(memory("idle")).await.unwrap();
    assert!(listed.state().await.unwrap().ready);
    assert!(!idle.state().await.unwrap().ready);
    idle.pause().await.unwrap();
    jobs.resume("idle").await.unwrap();
    jobs.resume("idle").await.unwrap();
    assert!(idle.state().await.unwrap().ready);
    jobs.shutdown().await.unwrap();
}

#[tokio::test]
async fn sections_count_for_declared_pipelines_too() {
    let yaml = "{version: '3', memory: {max_payload: 3}, jobs: {}}";
    let jobs = Jobs::from_yaml(yaml).await.unwrap();
    let a = jobs.declare(memory("a")).await.unwrap();
    assert_eq!(a.capabilities().max_payload, Some(3));
    jobs.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_paused_pipeline_hands_out_nothing_and_does_not_slow_another() {
    let jobs = consuming(["slow", "fast"]).await;
    let consumer = jobs.consumer(["slow", "fast"]).unwrap();
    jobs.pause("slow").await.unwrap();
    jobs.pause("slow").await.unwrap();
    for n in 0..100 {
        push(&jobs, "slow", number("slow", n)).await;
        push(&jobs, "fast", number("fast", n)).await;
    }
    for _ in 0..100 {
        let job = soon("a job", consumer.next()).await.unwrap();
        assert_eq!(job.name(), "fast");
        job.ack().await.unwrap();
    }
    assert_eq!(jobs.stat().await["slow"].as_ref().unwrap().reserved, Some(100));
    jobs.resume("slow").await.unwrap();
    let job = soon("a job", consumer.next()).await.unwrap();
    assert_eq!((job.name(), job.attempt()), ("slow", 1));
    job.ack().await.unwrap();
    jobs.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_failing_pipeline_does_not_fail_the_figures_of_others() {
    let (config, script) = scripted();
    let jobs = config.pipeline(memory("a")).pipeline(other("b")).connect().await.unwrap();
    script.fails.lock().unwrap().push("state");
    let stat = jobs.stat().await;
    assert!(stat["a"].is_ok());
    assert_eq!(stat["b"].as_ref().expect_err("fails").kind(), ErrorKind::Broker);
    script.hangs.lock().unwrap().push("state");
    let stat = jobs.stat().await;
    assert!(stat["a"].is_ok());
    let error = stat["b"].as_ref().expect_err("hangs");
    assert_eq!((error.kind(), error.pipeline()), (ErrorKind::Timeout, Some("b")));
    assert!(error.is_retryable());
    jobs.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_control_call_is_bounded() {
    let (config, script) = scripted();
    let jobs = config.pipeline(other("a")).consume(["a"]).connect().await.unwrap();
    script.hangs.lock().unwrap().extend(["pause", "resume", "stop", "state"]);
    let a = jobs.pipeline("a").unwrap();
    let timeout = Some(ErrorKind::Timeout);
    assert_eq!(a.pause().await.err().map(|e| e.kind()), timeout);
    assert_eq!(a.resume().await.err().map(|e| e.kind()), timeout);
    assert_eq!(a.state().await.err().map(|e| e.kind()), timeout);
    let began = tokio::time::Instant::now();
    assert_eq!(jobs.shutdown().await.err().map(|e| e.kind()), timeout);
    assert!(began.elapsed() <= 2 * SECOND);
}

#[tokio::test]
async fn if_one_cannot_connect_the_others_are_stopped() {
    let (config, script) = scripted();
    script.hangs.lock().unwrap().push("connect");
    let config = config.timeout(Duration::from_millis(20));
    let config = config.pipeline(memory("a")).pipeline(other("b")).consume(["a"]);
    let before = alive();
    let error = config.connect().await.expect_err("hangs");
    assert_eq!((error.kind(), error.pipeline()), (ErrorKind::Timeout, Some("b")));
    assert_eq!(alive(), before);
}

#[tokio::test]
async fn if_one_cannot_run_all_are_stopped() {
    let (config, script) = scripted();
    script.fails.lock().unwrap().push("run");
    let config = config.pipeline(memory("a")).pipeline(other("b")).consume(["a", "b"]);
    let before = alive();
    assert_eq!(config.connect().await.expect_err("fails").kind(), ErrorKind::Broker);
    assert_eq!(script.calls().last().unwrap(), "stop b");
    assert_eq!(alive(), before);
}

#[tokio::test(start_paused = true)]
async fn a_declaration_that_fails_half_way_leaves_nothing() {
    let (config, script) = scripted();
    let jobs = config.consume(["a"]).connect().await.unwrap();
    script.fails.lock().unwrap().push("run");
    assert!(jobs.declare(other("a")).await.is_err());
    assert_eq!(script.calls(), ["connect a", "run a", "stop a"]);
    assert!(jobs.list().is_empty());

    script.fails.lock().unwrap().clear();
    script.hangs.lock().unwrap().push("run");
    let error = jobs.declare(other("a")).await.expect_err("hangs");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(jobs.list().is_empty());

    script.hangs.lock().unwrap().clear();
    jobs.declare(other("a")).await.unwrap();
    jobs.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_start_is_not_taken_for_a_running_pipeline() {
    let (config, script) = scripted();
    let jobs = config.pipeline(other("a")).connect().await.unwrap();
    script.hangs.lock().unwrap().push("run");
    let dropped = tokio::time::timeout(Duration::from_millis(5), jobs.resume("a")).await;
    assert!(dropped.is_err());
    script.hangs.lock().unwrap().clear();
    assert_eq!(jobs.resume("a").await.expect_err("odd").kind(), ErrorKind::InvalidState);
    jobs.destroy("a").await.unwrap();
    jobs.shutdown().await.unwrap();
}

#[tokio::test]
async fn concurrent_declarations_of_one_name_make_one_pipeline() {
    let jobs = Jobs::builder().connect().await.unwrap();
    let declare = |_| jobs.declare(memory("a"));
    let answers = futures::future::join_all((0..8).map(declare)).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    push(&jobs, "a", Message::new("x", "")).await;
    jobs.shutdown().await.unwrap();
}

#[tokio::test]
async fn after_shutdown_everything_is_closed_and_no_task_is_left() {
    let before = alive();
    let jobs = consuming(["a", "b"]).await;
    let handle = jobs.pipeline("a").unwrap();
    push(&jobs, "a", Message::new("x", "")).await;
    let waiting = tokio::spawn({
        let consumer = jobs.consumer(["b"]).unwrap();
        async move { consumer.next().await.is_none() }
    });
    jobs.shutdown().await.unwrap();
    jobs.shutdown().await.unwrap();
    assert!(soon("the consumer ends", waiting).await.unwrap());
    let closed = Some(ErrorKind::Closed);
    assert_eq!(jobs.pipeline("a").err().map(|e| e.kind()), closed);
    assert_eq!(jobs.declare(memory("c")).await.err().map(|e| e.kind()), closed);
    assert_eq!(jobs.consumer(["a"]).err().map(|e| e.kind()), closed);
    assert_eq!(handle.push(Message::new("x", "")).await.err().map(|e| e.kind()), closed);
    assert!(jobs.list().is_empty() && jobs.stat().await.is_empty());
    assert_eq!(alive(), before);
}

#[tokio::test]
async fn shutdown_tells_of_every_failure_and_stops_the_rest() {
    let (config, script) = scripted();
    let config = config.pipeline(other("a")).pipeline(other("b")).pipeline(memory("c"));
    let jobs = config.connect().await.unwrap();
    script.fails.lock().unwrap().push("stop");
    let error = jobs.shutdown().await.expect_err("two fail");
    let text = error.to_string();
    assert!(text.contains("`a`") && text.contains("`b`"), "{text}");
    assert!(jobs.list().is_empty());
    jobs.shutdown().await.unwrap();
}

fn alive() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}
