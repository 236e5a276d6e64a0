//! Rejected jobs.

use std::sync::Arc;

use jobs_kit::{Case, CaseResult, Fixture};
use rdkafka::Message as _;

use super::{case, delete, harness};
use crate::kafkad::{Brokers, headers};

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(
            brokers,
            "dead::a_rejected_job_is_kept_with_its_origin",
            &[],
            "reject: dead-lettered where configured, as it was and with where it was",
            a_rejected_job_is_kept,
        ),
        case(
            brokers,
            "dead::a_topic_that_is_not_there",
            &[3],
            "a job whose dead-letter topic is missing is not lost",
            a_topic_that_is_not_there,
        ),
    ]
}

async fn a_rejected_job_is_kept(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let name = pipeline.config().name().to_owned();
    let message = fx.message("dead").with_header("mine", "kept");
    pipeline.push(message.clone()).await?;
    let job = pipeline.next().await?;
    let place = job.kafka().cloned().expect("it is from Kafka");
    job.reject().await?;
    let found = brokers.shared().await?.operator().read(&harness::dead(&name), 1).await?;
    let [record] = &found[..] else { panic!("{} dead letters", found.len()) };
    assert_eq!(record.payload(), Some(&message.payload()[..]));
    assert_eq!(record.key(), Some(message.id().as_str().as_bytes()));
    let headers = headers(record);
    let text =
        |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned());
    assert_eq!(text("mine").as_deref(), Some("kept"));
    assert_eq!(text("rr_job").as_deref(), Some("kit.case"));
    assert_eq!(text("jobs-origin-topic"), Some(name));
    assert_eq!(
        text("jobs-origin-partition"),
        place.partition.map(|partition| partition.to_string())
    );
    assert_eq!(text("jobs-origin-offset"), place.offset.map(|offset| offset.to_string()));
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_topic_that_is_not_there(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let config = fx
        .configure()
        .await?
        .with_option("auto_create_topics_enable", false)
        .with_option("push_timeout", "5s");
    let name = config.name().to_owned();
    let pipeline = fx.start(config).await?;
    let operator = brokers.shared().await?.operator();
    pipeline.push(fx.message("dead")).await?;
    let job = pipeline.next().await?;
    delete(&fx, &operator, &harness::dead(&name)).await?;
    // Until the client has heard of it, it sends to the broker that had it.
    let error = job.reject().await.expect_err("nowhere to keep it");
    error.into_job().ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}
