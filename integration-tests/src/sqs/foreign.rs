//! Messages of others: of RoadRunner, and of whoever sends to a queue.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::MessageAttributeValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jobs_core::{Headers, Outcome};
use jobs_kit::{Case, CaseResult, Fixture};
use serde_json::Value;

use super::case;
use super::harness::option;
use crate::elasticmq::{Raw, Servers};

/// What RoadRunner's driver stored.
const ROADRUNNER: &str = include_str!("../../../drivers/sqs/tests/fixtures/roadrunner.json");

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        case(servers, "foreign::roadrunner", &[8], "RoadRunner's jobs are read", roadrunner),
        case(
            servers,
            "foreign::raw_messages",
            &[8],
            "a message of others is delivered with its attributes, and stays so",
            raw_messages,
        ),
        case(
            servers,
            "foreign::hostile_attributes",
            &[8],
            "attributes that make no sense do not keep a job from running",
            hostile_attributes,
        ),
    ]
}

/// An attribute as requests and fixtures write it.
pub(super) fn attribute(written: &Value) -> MessageAttributeValue {
    let text = |name: &str| written[name].as_str().map(str::to_owned);
    let binary = text("BinaryValue").or_else(|| text("BinaryValue_base64"));
    let binary = binary.map(|text| Blob::new(STANDARD.decode(text).expect("base64")));
    MessageAttributeValue::builder()
        .data_type(text("DataType").expect("a type"))
        .set_string_value(text("StringValue"))
        .set_binary_value(binary)
        .build()
        .expect("it has a type")
}

/// A message as requests and fixtures write it.
pub(super) fn message(body: &Value, attributes: &Value) -> Raw {
    let body = body.as_str().expect("a body");
    let attributes = attributes.as_object().into_iter().flatten();
    attributes.fold(Raw::new(body), |raw, (name, value)| raw.with(name, attribute(value)))
}

async fn roadrunner(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let operator = servers.shared().await?.operator();
    let queue = option(pipeline.config(), "queue");
    let fixture: Value = serde_json::from_str(ROADRUNNER)?;
    let records = fixture["records"].as_array().expect("records");
    assert!(!records.is_empty());
    for record in records {
        let (pushed, stored) = (&record["pushed"], &record["stored"]);
        operator.send(queue, message(&stored["body_text"], &stored["message_attributes"])).await?;
        let job = pipeline.next().await?;
        assert_eq!(
            (job.name(), job.id().as_str()),
            ("app.mail", pushed["id"].as_str().expect("id"))
        );
        assert_eq!((&job.payload()[..], job.attempt()), (&b"hello"[..], 1));
        assert_eq!(job.message().priority(), pushed["priority"].as_i64());
        for (name, values) in pushed["headers"].as_object().expect("headers") {
            let found: Vec<_> = job.headers().get_all(name).collect();
            let values: Vec<_> = values.as_array().into_iter().flatten().collect();
            assert_eq!(found, values.iter().filter_map(|value| value.as_str()).collect::<Vec<_>>());
        }
        if pushed["auto_ack"] == true {
            job.ack().await?;
            continue;
        }
        let headers: Headers = [("again", "yes")].into_iter().collect();
        job.settle(Outcome::Requeue { delay: Duration::ZERO, headers: Some(headers) }).await?;
        let copy = pipeline.next().await?;
        assert_eq!(
            (copy.name(), copy.id().as_str()),
            ("app.mail", pushed["id"].as_str().expect("id"))
        );
        assert_eq!((copy.headers().get("again"), copy.attempt()), (Some("yes"), 2));
        copy.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn raw_messages(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let operator = servers.shared().await?.operator();
    let queue = option(pipeline.config(), "queue");
    let body = "{\"any\": \"body ☃\"}\n\t";
    operator.send(queue, Raw::new(body).with_text("colour", "blue")).await?;
    let mut known = None;
    for outcome in [Outcome::requeue(), Outcome::Release, Outcome::requeue()] {
        let job = pipeline.next().await?;
        assert_eq!((job.name(), &job.payload()[..]), ("deduced_by_rr", body.as_bytes()));
        assert_eq!(job.headers().get("colour"), Some("blue"));
        assert_eq!(*known.get_or_insert_with(|| job.id().clone()), *job.id());
        job.settle(outcome).await?;
    }
    // With other headers it becomes one of ours.
    let headers: Headers = [("seen", "yes")].into_iter().collect();
    let job = pipeline.next().await?;
    let attempt = job.attempt();
    job.settle(Outcome::Requeue { delay: Duration::ZERO, headers: Some(headers) }).await?;
    let job = pipeline.next().await?;
    assert_eq!((Some(job.id()), &job.payload()[..]), (known.as_ref(), body.as_bytes()));
    assert_eq!(job.headers().get("seen"), Some("yes"));
    assert!(job.attempt() > attempt, "{} after {attempt}", job.attempt());
    job.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn hostile_attributes(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let operator = servers.shared().await?.operator();
    let queue = option(pipeline.config(), "queue");
    let long = "x".repeat(5_000);
    let hostile = [
        Raw::new("1").with_text("rr_id", &long).with_text("rr_job", &long),
        Raw::new("2").with_text("rr_headers", "no JSON").with_text("rr_priority", "many"),
        Raw::new("3").with_text("rr_headers", "{\"a\":1,\"b\":[null,[]],\"c\":\"d\"}"),
        Raw::new("4").with_text("jobs-attempt", "-1").with_text("jobs-due", "soon"),
        Raw::new("5").with_text("jobs-body", "base64").with_text("rr_delay", "-5"),
        Raw::new("6").with_text("rr_auto_ack", "perhaps"),
    ];
    for raw in hostile {
        let body = raw.body.clone();
        operator.send(queue, raw).await?;
        let job = pipeline.next().await?;
        assert!(!job.payload().is_empty() && job.attempt() == 1, "{body}: {job:?}");
        job.requeue(Duration::ZERO).await?;
        let again = pipeline.next().await?;
        assert_eq!(again.attempt(), 2, "{body}");
        again.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}
