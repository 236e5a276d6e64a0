//! Delays longer than the service's fifteen minutes.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jobs_core::{Headers, Outcome};
use jobs_kit::{Case, CaseError, CaseResult, Fixture, TestPipeline};
use serde_json::{Value, json};

use super::harness::option;
use super::{case, foreign, gated};
use crate::elasticmq::{Operator, Servers};
use crate::gate::{Deed, Gate, MakeDeed};

/// What the service delays at most, in seconds.
const NATIVE: u64 = 900;
const LONG: Duration = Duration::from_secs(NATIVE + 100);

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        case(
            servers,
            "hops::first",
            &[1],
            "a long delay is sent with the longest there is, and when the job is due",
            first,
        ),
        case(
            servers,
            "hops::last",
            &[1],
            "a message that is almost due comes when it is, as it was pushed",
            last,
        ),
        case(
            servers,
            "hops::while_paused",
            &[1, 9],
            "messages hop on while the pipeline is paused",
            while_paused,
        ),
        case(
            servers,
            "hops::while_all_credits_are_out",
            &[6],
            "messages hop on while the process holds all the jobs it may",
            while_all_credits_are_out,
        ),
        case(
            servers,
            "hops::broken",
            &[1, 5],
            "a hop that breaks between its two steps is a duplicate, never a loss, and never early",
            broken,
        ),
        case(
            servers,
            "hops::a_long_requeue",
            &[5],
            "a requeue with a long delay hops too, and its attempt counts",
            a_long_requeue,
        ),
    ]
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

/// What was sent last, as it was sent.
fn sent(gate: &Gate) -> Value {
    let last = gate.seen("SendMessage").pop().expect("something was sent");
    last.body["Entries"][0].clone()
}

fn due(entry: &Value) -> Duration {
    let due = entry["MessageAttributes"]["jobs-due"]["StringValue"].as_str();
    Duration::from_millis(due.and_then(|due| due.parse().ok()).expect("it says when it is due"))
}

/// Where long delays are spent.
fn delays(pipeline: &TestPipeline) -> String {
    format!("{}-delays", option(pipeline.config(), "queue"))
}

/// Sends a message once more, as if only so much of its delay were left.
async fn send_due_in(
    operator: &Operator,
    pipeline: &TestPipeline,
    mut entry: Value,
    left: Duration,
) -> Result<Duration, CaseError> {
    let due = now() + left;
    entry["MessageAttributes"]["jobs-due"]["StringValue"] = json!(due.as_millis().to_string());
    let raw = foreign::message(&entry["MessageBody"], &entry["MessageAttributes"]);
    operator.send(&delays(pipeline), raw).await?;
    Ok(due)
}

/// A pipeline on which one job was pushed with a long delay, to be an example.
async fn example(
    fx: &Fixture,
    servers: &Servers,
) -> Result<(Gate, TestPipeline, jobs_core::Message), CaseError> {
    let (gate, config) = gated(fx, servers).await?;
    let pipeline = fx.connect(config).await?;
    let headers: Headers = [("kept", "yes")].into_iter().collect();
    let message = fx.message("long delayed").with_headers(headers).with_delay(LONG);
    pipeline.push(message.clone()).await?;
    Ok((gate, pipeline, message))
}

async fn first(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let before = now();
    let (gate, pipeline, _) = example(&fx, &servers).await?;
    let entry = sent(&gate);
    assert_eq!(entry["DelaySeconds"], NATIVE, "{entry}");
    let attributes = entry["MessageAttributes"].as_object().expect("attributes");
    assert!(attributes.len() <= 10, "{attributes:?}");
    // In whole milliseconds.
    let due = due(&entry);
    let range = before + LONG - Duration::from_millis(1)..=now() + LONG + Duration::from_millis(1);
    assert!(range.contains(&due), "{due:?} is not in {range:?}");
    pipeline.run().await?;
    pipeline.expect_quiet().await?;
    pipeline.expect_state("a delayed job", |state| state.delayed == Some(1)).await?;
    pipeline.stop().await?;
    Ok(())
}

async fn last(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, pipeline, message) = example(&fx, &servers).await?;
    let operator = servers.shared().await?.operator();
    let due = send_due_in(&operator, &pipeline, sent(&gate), Duration::from_secs(3)).await?;
    pipeline.run().await?;
    let job = pipeline.next().await?;
    assert!(now() >= due, "{:?} early", due - now());
    assert_eq!((job.id(), job.payload()), (message.id(), message.payload()));
    assert_eq!((job.attempt(), job.headers().get("kept")), (1, Some("yes")));
    job.ack().await?;
    pipeline.expect_quiet().await?;
    pipeline.stop().await?;
    Ok(())
}

/// Waits until both queues have so many to be received, received and delayed.
async fn expect_counts(
    fx: &Fixture,
    operator: &Operator,
    pipeline: &TestPipeline,
    expected: [[u64; 3]; 2],
) -> CaseResult {
    let queues = [option(pipeline.config(), "queue").to_owned(), delays(pipeline)];
    fx.eventually("the hop", async || {
        let mut found = [[0; 3]; 2];
        for (found, queue) in found.iter_mut().zip(&queues) {
            *found = operator.count(queue).await.map_err(|error| error.to_string())?;
        }
        if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await?;
    Ok(())
}

async fn while_paused(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, pipeline, _) = example(&fx, &servers).await?;
    pipeline.run().await?;
    pipeline.pause().await?;
    let operator = servers.shared().await?.operator();
    send_due_in(&operator, &pipeline, sent(&gate), Duration::from_secs(600)).await?;
    expect_counts(&fx, &operator, &pipeline, [[0, 0, 1], [0, 0, 1]]).await?;
    let hopped = sent(&gate);
    let delay = hopped["DelaySeconds"].as_u64().expect("delayed");
    assert!((590..=600).contains(&delay), "{delay}: what is left");
    pipeline.expect_quiet().await?;
    pipeline.stop().await?;
    Ok(())
}

async fn while_all_credits_are_out(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.connect(fx.harness().with_prefetch(config, 1)).await?;
    pipeline.push(fx.message("held")).await?;
    pipeline.push(fx.message("long delayed").with_delay(LONG)).await?;
    pipeline.run().await?;
    let held = pipeline.next().await?;
    let operator = servers.shared().await?.operator();
    send_due_in(&operator, &pipeline, sent(&gate), LONG).await?;
    expect_counts(&fx, &operator, &pipeline, [[0, 1, 0], [0, 0, 2]]).await?;
    held.ack().await?;
    pipeline.expect_quiet().await?;
    pipeline.stop().await?;
    Ok(())
}

async fn broken(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let deeds: [(&str, MakeDeed); 4] = [
        ("SendMessage", || Deed::refuse(500, "InternalError", "as the test wants it")),
        ("SendMessage", || Deed::DropAnswer),
        ("DeleteMessage", || Deed::Drop),
        ("DeleteMessage", || Deed::refuse(503, "ServiceUnavailable", "as the test wants it")),
    ];
    let (gate, pipeline, message) = example(&fx, &servers).await?;
    let entry = sent(&gate);
    let operator = servers.shared().await?.operator();
    pipeline.run().await?;
    for (turn, (action, deed)) in deeds.into_iter().enumerate() {
        gate.next(action, 1, deed);
        let mut entry = entry.clone();
        entry["MessageBody"] = json!(turn.to_string());
        let left = Duration::from_secs(3);
        let due = send_due_in(&operator, &pipeline, entry, left).await?;
        loop {
            let job = pipeline.next().await?;
            assert_eq!(job.id(), message.id());
            // Another one is a duplicate of a turn before.
            let is_this = job.payload()[..] == *turn.to_string().as_bytes();
            assert!(!is_this || now() >= due, "{action}: {:?} early", due - now());
            job.ack().await?;
            if is_this {
                break;
            }
        }
    }
    pipeline.stop().await?;
    Ok(())
}

async fn a_long_requeue(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.start(config).await?;
    let message = fx.message("requeued");
    pipeline.push(message.clone()).await?;
    let headers: Headers = [("changed", "yes")].into_iter().collect();
    let job = pipeline.next().await?;
    job.settle(Outcome::Requeue { delay: LONG, headers: Some(headers) }).await?;
    assert_eq!(sent(&gate)["DelaySeconds"], NATIVE);
    let operator = servers.shared().await?.operator();
    send_due_in(&operator, &pipeline, sent(&gate), Duration::from_secs(1)).await?;
    let again = pipeline.next().await?;
    assert_eq!((again.id(), again.headers().get("changed")), (message.id(), Some("yes")));
    assert_eq!(again.attempt(), 2, "hops do not count");
    again.ack().await?;
    pipeline.stop().await?;
    Ok(())
}
