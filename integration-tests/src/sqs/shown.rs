//! What the service sees of the driver, which is what its users pay for.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jobs_core::Job;
use jobs_kit::{Case, CaseResult, Fixture};
use serde_json::Value;

use super::{case, finish, gated};
use crate::elasticmq::Servers;

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        case(
            servers,
            "shown::pushes_share_requests",
            &[],
            "concurrent pushes travel in batches, and one alone does not wait",
            pushes_share_requests,
        ),
        case(
            servers,
            "shown::jobs_share_requests",
            &[6],
            "a full queue is received and acknowledged ten jobs at a time",
            jobs_share_requests,
        ),
        case(
            servers,
            "shown::what_a_receive_asks",
            &[2, 6],
            "each request for jobs says for how long they are hidden, and asks for no more than fit",
            what_a_receive_asks,
        ),
        case(
            servers,
            "shown::an_idle_queue_is_not_polled",
            &[],
            "an idle pipeline asks once per receiver and wait_time_seconds",
            an_idle_queue_is_not_polled,
        ),
        case(
            servers,
            "shown::a_held_job_is_extended_at_half_time",
            &[2],
            "a lease is renewed once in half of its time",
            a_held_job_is_extended,
        ),
        case(
            servers,
            "shown::a_full_process_does_not_ask",
            &[6],
            "a pipeline whose credits are all out asks for hops only",
            a_full_process_does_not_ask,
        ),
    ]
}

async fn pushes_share_requests(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    const CALLERS: usize = 64;
    const EACH: usize = 10;
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.connect(config.with_option("operation_timeout", "20s")).await?;
    pipeline.push_numbered(1).await?;
    assert_eq!(gate.count("SendMessage"), 1);
    let callers = (0..CALLERS).map(|_| pipeline.push_numbered(EACH));
    for answer in join_all(callers).await {
        answer?;
    }
    let requests = gate.count("SendMessage") - 1;
    // A fifth is promised; a busy machine may be worse.
    assert!(requests <= CALLERS * EACH * 3 / 10, "{requests} for {}", CALLERS * EACH);
    for seen in gate.seen("SendMessage") {
        let entries = seen.body["Entries"].as_array().map_or(1, Vec::len);
        assert!((1..=10).contains(&entries), "{entries} in one request");
    }
    pipeline.run().await?;
    pipeline.drain(CALLERS * EACH + 1).await?;
    finish(&pipeline).await
}

async fn jobs_share_requests(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    const JOBS: usize = 300;
    let (gate, config) = gated(&fx, &servers).await?;
    let config = config.with_option("operation_timeout", "20s");
    let config = config.with_option("visibility_timeout", 60);
    let pipeline = fx.connect(fx.harness().with_prefetch(config, 64)).await?;
    let messages: Vec<_> = (0..JOBS).map(|number| fx.message(number.to_string())).collect();
    for answer in pipeline.push_batch(messages).await {
        answer?;
    }
    let before = gate.count("");
    pipeline.run().await?;
    let mut acks = Vec::with_capacity(JOBS);
    for _ in 0..JOBS {
        acks.push(tokio::spawn(pipeline.next().await?.ack().into_future()));
    }
    for ack in acks {
        fx.within("an ack", ack).await???;
    }
    let requests = gate.count("") - before;
    // 220 for a thousand are promised; a busy machine may be worse.
    assert!(requests <= JOBS * 3 / 10, "{requests} for {JOBS}");
    finish(&pipeline).await
}

async fn what_a_receive_asks(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    const PREFETCH: u64 = 4;
    let (gate, config) = gated(&fx, &servers).await?;
    let config = fx.harness().with_prefetch(config, 4).with_option("receivers", 1);
    let pipeline = fx.start(config).await?;
    pipeline.push_numbered(20).await?;
    pipeline.ack_next(20).await?;
    let number = |body: &Value, name: &str| body[name].as_u64();
    let mut most = 0;
    for seen in gate.seen("ReceiveMessage") {
        let body = &seen.body;
        assert_eq!(number(body, "VisibilityTimeout"), Some(5), "{body}");
        let asked = number(body, "MaxNumberOfMessages").unwrap_or(1);
        assert!(asked <= 10, "{body}");
        most = most.max(asked);
        assert!(number(body, "WaitTimeSeconds").is_some_and(|wait| wait <= 20), "{body}");
    }
    assert!(most >= PREFETCH, "{most}: as many as there are credits");
    finish(&pipeline).await
}

/// How many requests there are in a while.
async fn requests(gate: &crate::gate::Gate, action: &str, time: Duration) -> usize {
    let before = gate.count(action);
    tokio::time::sleep(time).await;
    gate.count(action) - before
}

async fn an_idle_queue_is_not_polled(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let config = config.with_option("wait_time_seconds", 2).with_option("receivers", 2);
    let pipeline = fx.start(config).await?;
    let asked = requests(&gate, "", Duration::from_secs(6)).await;
    // Three by each, one that was under way at the start by each, and as many for hops.
    assert!(asked <= 12, "{asked} requests in six seconds");
    pipeline.push_numbered(1).await?;
    pipeline.ack_next(1).await?;
    finish(&pipeline).await
}

async fn a_held_job_is_extended(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.start(config.with_option("visibility_timeout", 4)).await?;
    pipeline.push_numbered(10).await?;
    let held = pipeline.take(10).await?;
    let asked = requests(&gate, "ChangeMessageVisibility", Duration::from_secs(9)).await;
    // Every two seconds, for those together that were received together.
    assert!((3..=30).contains(&asked), "{asked} requests in nine seconds");
    for answer in join_all(held.into_iter().map(Job::ack)).await {
        answer?;
    }
    finish(&pipeline).await
}

async fn a_full_process_does_not_ask(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let config = fx.harness().with_prefetch(config, 2).with_option("visibility_timeout", 30);
    let pipeline = fx.start(config).await?;
    pipeline.push_numbered(3).await?;
    let held = pipeline.take(2).await?;
    let asked = requests(&gate, "ReceiveMessage", Duration::from_secs(4)).await;
    assert!(asked <= 5, "{asked} requests in four seconds");
    for job in held {
        job.ack().await?;
    }
    pipeline.ack_next(1).await?;
    finish(&pipeline).await
}
