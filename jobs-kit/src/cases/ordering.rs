//! Order of arrival.

use std::collections::BTreeMap;

use super::{text, workers};
use crate::{Case, CaseResult, Feature, Fixture};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "ordering::one_producer_one_consumer",
            &[],
            "messages pushed one after another by one caller are stored in that order",
            one_producer_one_consumer,
        )
        .needs(&[Feature::Order]),
        Case::new(
            "ordering::a_batch_stays_in_order",
            &[],
            "the messages of a batch are stored in their order",
            a_batch_stays_in_order,
        )
        .needs(&[Feature::Order]),
        Case::new(
            "ordering::equal_keys_stay_in_order",
            &[],
            "jobs with equal ordering keys are delivered in the order they were pushed",
            equal_keys_stay_in_order,
        )
        .needs(&[Feature::OrderingKey]),
        Case::new(
            "ordering::pausing_keeps_every_job",
            &[3],
            "jobs given back by a pause come again",
            pausing_keeps_every_job,
        ),
    ]
}

const JOBS: usize = 50;

async fn one_producer_one_consumer(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push_numbered(JOBS).await?;
    for number in 0..JOBS {
        let job = pipeline.next().await?;
        assert_eq!(text(&job), number.to_string());
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_batch_stays_in_order(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let messages = (0..JOBS).map(|number| fx.message(number.to_string())).collect();
    for answer in pipeline.push_batch(messages).await {
        answer?;
    }
    for number in 0..JOBS {
        let job = pipeline.next().await?;
        assert_eq!(text(&job), number.to_string());
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn equal_keys_stay_in_order(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    for number in 0..JOBS {
        let key = format!("key {}", number % 3);
        pipeline.push(fx.message(number.to_string()).with_ordering_key(key)).await?;
    }
    let mut last: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..JOBS {
        let job = pipeline.next().await?;
        let number: usize = text(&job).parse()?;
        let key = job.message().ordering_key().unwrap_or_default().to_owned();
        assert_eq!(key, format!("key {}", number % 3), "the key travels");
        let before = last.insert(key, number);
        assert!(before.is_none_or(|before| before < number), "{number} after {before:?}");
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn pausing_keeps_every_job(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let mut pushed = pipeline.push_numbered(JOBS).await?;
    pipeline.pause().await?;
    assert!(pipeline.queue().is_empty(), "what nobody popped was given back");
    pipeline.resume().await?;
    pushed.sort();
    let found = workers::ack_all(&fx, &[pipeline.queue()], 1, JOBS).await?;
    assert_eq!(found, pushed);
    pipeline.expect_empty().await?;
    Ok(())
}
