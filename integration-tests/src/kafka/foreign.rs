//! Records that this driver did not write.

use std::collections::BTreeSet;
use std::sync::Arc;

use jobs_kit::{Case, CaseResult, Fixture};
use serde_json::Value;

use super::case;
use crate::kafkad::{Brokers, Raw};

const FIXTURES: &str = include_str!("../../../drivers/kafka/tests/fixtures/roadrunner.json");

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(
            brokers,
            "foreign::records_of_any_kind_arrive",
            &[8],
            "whatever is in the topic is delivered with defaults, and is the same job each time",
            records_of_any_kind_arrive,
        ),
        case(
            brokers,
            "foreign::transactions_hold_nothing_up",
            &[8],
            "jobs of a transaction arrive once it is committed; its marks are passed over",
            transactions_hold_nothing_up,
        ),
        case(
            brokers,
            "foreign::jobs_of_roadrunner",
            &[8],
            "jobs pushed by RoadRunner arrive as they were pushed",
            jobs_of_roadrunner,
        ),
    ]
}

fn value(value: impl Into<Vec<u8>>) -> Raw {
    Raw { partition: Some(0), value: Some(value.into()), ..Raw::default() }
}

fn strange() -> Vec<Raw> {
    let text = |name: &str, value: &[u8]| (name.to_owned(), Some(value.to_vec()));
    vec![
        value("no key, no headers"),
        Raw { key: Some(b"tombstone".to_vec()), value: None, ..value("") },
        Raw { value: None, ..value("") },
        Raw { key: Some(Vec::new()), ..value("an empty key") },
        Raw { key: Some(vec![0xff, 0, 0xfe]), ..value("a key of bytes") },
        Raw { key: Some(vec![b'k'; 300]), ..value("a long key") },
        Raw {
            headers: vec![text("bytes", &[0xff, 0, 0x80]), ("none".into(), None), text("", b"x")],
            ..value("headers of bytes, of nothing, and without a name")
        },
        Raw {
            headers: vec![
                text("rr_priority", b"\x01"),
                text("rr_job", &[0xff]),
                text("rr_headers", b"{not json"),
                text("rr_delay", b"soon"),
                text("jobs-attempt", b"many"),
                text("rr_auto_ack", b"perhaps"),
            ],
            ..value("broken headers of ours")
        },
        value(vec![0xee; 1_000_000]),
        value(""),
    ]
}

async fn records_of_any_kind_arrive(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let config = fx.configure_prefetch(50).await?;
    let second = fx.connect(config.clone()).await?;
    let pipeline = fx.start(config).await?;
    let records = strange();
    let operator = brokers.shared().await?.operator();
    operator.produce(pipeline.config().name(), records.clone()).await?;
    let jobs = pipeline.take(records.len()).await?;
    for (job, record) in jobs.iter().zip(&records) {
        assert_eq!(job.payload()[..], record.value.clone().unwrap_or_default()[..]);
        assert!(!job.id().as_str().is_empty() && !job.name().is_empty(), "{job:?}");
        assert_eq!(job.attempt(), 1, "{job:?}");
    }
    let ids: Vec<_> = jobs.iter().map(|job| job.id().clone()).collect();
    assert_eq!(
        ids.iter().collect::<BTreeSet<_>>().len(),
        ids.len(),
        "no two are the same: {ids:?}"
    );
    pipeline.stop().await?;
    drop(jobs);
    second.run().await?;
    assert_eq!(second.ack_next(ids.len()).await?, ids, "the same jobs again");
    second.expect_empty().await?;
    Ok(())
}

async fn transactions_hold_nothing_up(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let topic = pipeline.config().name();
    let operator = brokers.shared().await?.operator();
    operator.transact(topic, vec![value("committed"), value("too")], true).await?;
    operator.transact(topic, vec![value("aborted"); 5], false).await?;
    operator.produce(topic, vec![value("plain")]).await?;
    for expected in ["committed", "too", "plain"] {
        let job = pipeline.next().await?;
        assert_eq!(job.payload(), expected);
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    // A mark is the last record now: nothing waits behind it.
    operator.transact(topic, vec![value("last")], true).await?;
    pipeline.ack_next(1).await?;
    operator.produce(topic, vec![value("after the mark")]).await?;
    pipeline.ack_next(1).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

fn bytes(hex: &Value) -> Option<Vec<u8>> {
    let hex = hex.as_str()?;
    let pair = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits");
    Some((0..hex.len()).step_by(2).map(pair).collect())
}

fn stored(record: &Value) -> Raw {
    let headers = record["headers"].as_array().expect("a list").iter();
    let header = |header: &Value| {
        (header["name"].as_str().expect("text").to_owned(), bytes(&header["value_hex"]))
    };
    Raw {
        partition: Some(0),
        key: bytes(&record["key_hex"]),
        value: match record["value_is_null"].as_bool() {
            Some(true) => None,
            _ => bytes(&record["body_hex"]),
        },
        headers: headers.map(header).collect(),
    }
}

async fn jobs_of_roadrunner(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline_of(50).await?;
    let fixtures: Value = serde_json::from_str(FIXTURES)?;
    let records = fixtures["records"].as_array().expect("a list");
    assert!(!records.is_empty());
    let stored = records.iter().map(|record| stored(&record["stored"])).collect();
    brokers.shared().await?.operator().produce(pipeline.config().name(), stored).await?;
    // Not as they were pushed: some have priorities.
    let mut jobs = pipeline.take(records.len()).await?;
    jobs.sort_by(|one, other| one.id().cmp(other.id()));
    for (record, job) in records.iter().zip(jobs) {
        let pushed = &record["pushed"];
        assert_eq!(Some(job.id().as_str()), pushed["id"].as_str());
        assert_eq!(Some(job.name()), pushed["name"].as_str());
        assert_eq!(Some(job.payload().to_vec()), bytes(&pushed["payload_hex"]));
        for (name, values) in pushed["headers"].as_object().expect("a map") {
            // It keeps the first value only.
            assert_eq!(job.headers().get(name), values[0].as_str(), "{name}");
        }
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}
