//! Topics and partitions by name, and where consuming begins.

use std::collections::BTreeSet;
use std::sync::Arc;

use jobs_core::{ErrorKind, KafkaOptions};
use jobs_kit::{Case, CaseResult, Fixture};
use serde_json::json;

use super::rebalance::to_partition;
use super::{case, harness};
use crate::kafkad::Brokers;

const PARTITIONS: i32 = 6;

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(
            brokers,
            "places::a_push_names_its_partition",
            &[],
            "topic, partition and offset are on the job, the partition is the one asked for",
            a_push_names_its_partition,
        ),
        case(
            brokers,
            "places::a_partition_that_is_not_there",
            &[8],
            "a partition that does not exist is NotFound, and nothing is stored",
            a_partition_that_is_not_there,
        ),
        case(
            brokers,
            "places::a_push_names_its_topic",
            &[],
            "a push to another topic goes there",
            a_push_names_its_topic,
        ),
        case(
            brokers,
            "places::fixed_partitions",
            &[],
            "fixed partitions are consumed, and no others",
            fixed_partitions,
        ),
        case(
            brokers,
            "places::a_pattern_of_topics",
            &[],
            "topics whose names match are consumed, and no others",
            a_pattern_of_topics,
        ),
        case(
            brokers,
            "places::from_the_end",
            &[],
            "at the end: what was there before the group was is passed over, once",
            from_the_end,
        ),
    ]
}

async fn a_push_names_its_partition(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    for partition in 0..PARTITIONS {
        for offset in 0..2 {
            pipeline.push(to_partition(fx.message("there"), partition)).await?;
            let job = pipeline.next().await?;
            let place = job.kafka().expect("it is from Kafka");
            assert_eq!(&*place.topic, pipeline.config().name());
            assert_eq!((place.partition, place.offset), (Some(partition), Some(offset)));
            job.ack().await?;
        }
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_partition_that_is_not_there(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let config = fx.configure().await?.with_option("push_timeout", "5s");
    let pipeline = fx.start(config).await?;
    let answer = pipeline.push(to_partition(fx.message("nowhere"), PARTITIONS)).await;
    fx.expect_refused(answer, ErrorKind::NotFound)?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_push_names_its_topic(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let other = format!("{}-other", pipeline.config().name());
    let operator = brokers.shared().await?.operator();
    operator.create_topic(&other, 1).await?;
    let mut place = KafkaOptions::default();
    place.topic = other.as_str().into();
    pipeline.push(fx.message("elsewhere").with_kafka(place)).await?;
    assert_eq!(operator.watermarks(&other, 0).await?, (0, 1));
    pipeline.expect_empty().await?;
    Ok(())
}

async fn fixed_partitions(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    const FIXED: [i32; 2] = [1, 4];
    let config = fx.configure_prefetch(50).await?;
    let name = config.name().to_owned();
    let start = json!({ "type": "AtStart" });
    let fixed = json!({ "1": start, "4": start });
    let fixed = json!({ name.as_str(): fixed });
    let config = harness::with(config, "consumer_options", "consume_partitions", fixed)
        .with_option("topics", json!([]))
        .with_option("topic", name);
    let pipeline = fx.start(config).await?;
    for partition in 0..PARTITIONS {
        pipeline.push(to_partition(fx.message("here"), partition)).await?;
    }
    let jobs = pipeline.take(FIXED.len()).await?;
    let found: BTreeSet<_> = jobs.iter().filter_map(|job| job.kafka()?.partition).collect();
    assert_eq!(found, BTreeSet::from(FIXED));
    for job in jobs {
        job.ack().await?;
    }
    pipeline.expect_quiet().await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    pipeline.stop().await?;
    second.run().await?;
    second.expect_quiet().await?;
    Ok(())
}

async fn a_pattern_of_topics(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let config = fx.configure().await?;
    let name = config.name().to_owned();
    let operator = brokers.shared().await?.operator();
    operator.create_topic(&format!("{name}-of-1"), 1).await?;
    let config = harness::with(config, "consumer_options", "consume_regexp", true)
        .with_option("topics", json!([format!("^{name}-of-.*")]))
        .with_option("topic", name.as_str());
    let pipeline = fx.start(config).await?;
    let push = async |topic: &str| {
        let mut place = KafkaOptions::default();
        place.topic = topic.into();
        pipeline.push(fx.message("matches").with_kafka(place)).await
    };
    push(&format!("{name}-of-1")).await?;
    pipeline.ack_next(1).await?;
    push(&name).await?;
    pipeline.expect_quiet().await?;
    Ok(())
}

async fn from_the_end(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let config = fx.configure().await?;
    let producer = fx.connect(config.clone()).await?;
    producer.push_numbered(12).await?;
    let end = json!({ "type": "AtEnd" });
    let config = harness::with(config, "consumer_options", "consumer_offset", end);
    let first = fx.start(config.clone()).await?;
    first.expect_state("consuming", |state| state.ready && state.reserved == Some(0)).await?;
    first.expect_quiet().await?;
    let pushed = producer.push_numbered(12).await?;
    let mut found = first.ack_next(6).await?;
    first.stop().await?;
    // What comes while nobody consumes is not passed over.
    let later = producer.push_numbered(12).await?;
    let second = fx.start(config).await?;
    found.extend(second.drain(18).await?);
    found.sort();
    let mut expected = [pushed, later].concat();
    expected.sort();
    assert_eq!(found, expected);
    second.expect_empty().await?;
    Ok(())
}
