//! Taking jobs without a worker.

#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

mod common;

use std::time::Duration;

use common::{consuming, eventually, memory, number, push, soon};
use futures::StreamExt;
use jobs::{ErrorKind, Jobs, Message};

#[tokio::test]
async fn takes_jobs_of_the_named_pipelines_only() {
    let jobs = consuming(["a", "b", "c"]).await;
    for name in ["a", "b", "c"] {
        push(&jobs, name, Message::new(name, "")).await;
    }
    let consumer = jobs.consumer(["a", "c"]).unwrap();
    let mut names = Vec::new();
    for _ in 0..2 {
        let job = soon("a job", consumer.next()).await.unwrap();
        names.push(job.pipeline().to_owned());
        job.ack().await.unwrap();
    }
    names.sort();
    assert_eq!(names, ["a", "c"]);
    let nothing = tokio::time::timeout(Duration::from_millis(5), consumer.next()).await;
    assert!(nothing.is_err());
    jobs.shutdown().await.unwrap();
}

#[tokio::test]
async fn needs_pipelines_that_exist() {
    let jobs = consuming(["a"]).await;
    assert_eq!(jobs.consumer(["a", "x"]).expect_err("unknown").kind(), ErrorKind::NotFound);
    assert_eq!(jobs.consumer([""; 0]).expect_err("none").kind(), ErrorKind::InvalidState);
    jobs.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_dropped_next_loses_no_job() {
    let jobs = consuming(["a"]).await;
    let consumer = jobs.consumer(["a"]).unwrap();
    for n in 0..50 {
        let waiting = tokio::spawn({
            let consumer = consumer.clone();
            async move { consumer.next().await.map(jobs::Job::ack) }
        });
        tokio::task::yield_now().await;
        let pushed = tokio::spawn({
            let jobs = jobs.clone();
            async move { push(&jobs, "a", number("x", n)).await }
        });
        waiting.abort();
        pushed.await.unwrap();
        // Either the aborted call took and acknowledged it, or the next call gets it.
        if waiting.await.is_err() {
            soon("the job", consumer.next()).await.unwrap().ack().await.unwrap();
        }
    }
    let a = jobs.pipeline("a").unwrap();
    eventually("all is done", async || a.state().await.unwrap().in_flight == Some(0)).await;
    assert_eq!(a.state().await.unwrap().reserved, Some(0));
    jobs.shutdown().await.unwrap();
}

#[tokio::test]
async fn is_a_stream_that_ends_after_shutdown() {
    let jobs = consuming(["a"]).await;
    for n in 0..10 {
        push(&jobs, "a", number("x", n)).await;
    }
    let mut stream = jobs.consumer(["a"]).unwrap().into_stream();
    let mut seen = Vec::new();
    while seen.len() < 10 {
        let job = soon("a job", stream.next()).await.unwrap();
        seen.push(String::from_utf8(job.payload().to_vec()).unwrap());
        job.ack().await.unwrap();
    }
    assert_eq!(seen, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
    jobs.shutdown().await.unwrap();
    assert!(soon("the end", stream.next()).await.is_none());
}

#[tokio::test]
async fn a_pipeline_that_does_not_consume_gives_nothing() {
    let jobs = Jobs::builder().pipeline(memory("a")).connect().await.unwrap();
    push(&jobs, "a", Message::new("x", "")).await;
    let consumer = jobs.consumer(["a"]).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(5), consumer.next()).await.is_err());
    jobs.resume("a").await.unwrap();
    soon("the job", consumer.next()).await.unwrap().ack().await.unwrap();
    jobs.shutdown().await.unwrap();
}
