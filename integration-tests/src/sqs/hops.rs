//! Delays longer than the service's fifteen minutes.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jobs_core::{Headers, Outcome};
use jobs_kit::{Case, CaseError, CaseResult, Fixture, TestPipeline};
use serde_json::{Value, json};

use super::harness::option;
use super::{case, foreign, gated};
use crate::elasticmq::{Operator, Servers};
use crate::gate::{Deed, Gate};

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

/// Sends what was sent last once more, as if all hops but those of the last while were behind it.
async fn send_due_in(
    gate: &Gate,
    operator: &Operator,
    queue: &str,
    left: Duration,
) -> Result<Duration, CaseError> {
    let mut entry = sent(gate);
    let due = now() + left;
    entry["MessageAttributes"]["jobs-due"]["StringValue"] = json!(due.as_millis().to_string());
    let raw = foreign::message(&entry["MessageBody"], &entry["MessageAttributes"]);
    operator.send(queue, raw).await?;
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
    let queue = option(pipeline.config(), "queue").to_owned();
    let due = send_due_in(&gate, &operator, &queue, Duration::from_secs(3)).await?;
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

/// Waits until the second long delayed message has gone back to those.
async fn expect_hopped(fx: &Fixture, operator: &Operator, queue: &str) -> CaseResult {
    fx.eventually("both are delayed", async || match operator.count(queue).await {
        Ok([0, 0, 2]) => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await?;
    Ok(())
}

async fn while_paused(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, pipeline, _) = example(&fx, &servers).await?;
    pipeline.run().await?;
    pipeline.pause().await?;
    let operator = servers.shared().await?.operator();
    let queue = option(pipeline.config(), "queue");
    send_due_in(&gate, &operator, queue, Duration::from_secs(600)).await?;
    expect_hopped(&fx, &operator, queue).await?;
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
    let queue = option(pipeline.config(), "queue");
    send_due_in(&gate, &operator, queue, LONG).await?;
    fx.eventually("it is delayed again", async || match operator.count(queue).await {
        Ok([0, 1, 2]) => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await?;
    held.ack().await?;
    pipeline.expect_quiet().await?;
    pipeline.stop().await?;
    Ok(())
}

async fn broken(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let deeds: [(&str, fn() -> Deed); 4] = [
        ("SendMessage", || Deed::refuse(500, "InternalError", "as the test wants it")),
        ("SendMessage", || Deed::DropAnswer),
        ("DeleteMessage", || Deed::Drop),
        ("DeleteMessage", || Deed::refuse(503, "ServiceUnavailable", "as the test wants it")),
    ];
    let (gate, pipeline, message) = example(&fx, &servers).await?;
    let entry = sent(&gate);
    let operator = servers.shared().await?.operator();
    let queue = option(pipeline.config(), "queue").to_owned();
    pipeline.run().await?;
    for (action, deed) in deeds {
        gate.next(action, 1, deed);
        let due = now() + Duration::from_secs(3);
        let mut entry = entry.clone();
        entry["MessageAttributes"]["jobs-due"]["StringValue"] = json!(due.as_millis().to_string());
        let raw = foreign::message(&entry["MessageBody"], &entry["MessageAttributes"]);
        operator.send(&queue, raw).await?;
        let job = pipeline.next().await?;
        assert!(now() >= due, "{action}: {:?} early", due - now());
        assert_eq!(job.id(), message.id());
        job.ack().await?;
        // A duplicate may come when the lease of its original has ended.
        let only_ours = async || match operator.count(&queue).await {
            Ok([0, 0, 1]) => Ok(()),
            found => {
                pipeline.drain(0).await.map_err(|error| error.to_string())?;
                Err(format!("{found:?}"))
            }
        };
        fx.eventually("nothing but the example is left", only_ours).await?;
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
    let queue = option(pipeline.config(), "queue").to_owned();
    send_due_in(&gate, &operator, &queue, Duration::from_secs(1)).await?;
    let again = pipeline.next().await?;
    assert_eq!((again.id(), again.headers().get("changed")), (message.id(), Some("yes")));
    assert_eq!(again.attempt(), 2, "hops do not count");
    again.ack().await?;
    pipeline.stop().await?;
    Ok(())
}
