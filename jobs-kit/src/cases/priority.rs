//! Smaller is sooner.

use std::time::Duration;

use jobs_core::ErrorKind;

use super::text;
use crate::{Case, CaseResult, Feature, Fixture, TestPipeline};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "priority::orders_jobs_in_the_process",
            &[],
            "within a lane jobs are ordered by priority; none means the pipeline's",
            orders_jobs_in_the_process,
        ),
        Case::new(
            "priority::orders_jobs_at_the_broker",
            &[],
            "where priority is available the broker orders jobs that are not fetched yet",
            orders_jobs_at_the_broker,
        ),
        Case::new(
            "priority::equals_stay_in_order",
            &[],
            "first in, first out among equal priorities",
            equals_stay_in_order,
        )
        .needs(&[Feature::Order]),
        Case::new(
            "priority::survives_a_requeue",
            &[],
            "a job that comes back has the priority it was pushed with",
            survives_a_requeue,
        ),
        Case::new(
            "priority::out_of_range_is_refused",
            &[8],
            "a priority the pipeline does not have is refused before any I/O",
            out_of_range_is_refused,
        ),
    ]
}

/// Around the pipeline's own, which is 10: most brokers have these.
const PRIORITIES: [i64; 4] = [11, 1, 9, 2];

async fn push_prioritised(fx: &Fixture, pipeline: &TestPipeline) -> CaseResult {
    for priority in PRIORITIES {
        let message = fx.message(priority.to_string()).with_priority(priority);
        pipeline.push(message).await?;
    }
    pipeline.push(fx.message("none")).await?;
    Ok(())
}

async fn orders_jobs_in_the_process(fx: Fixture) -> CaseResult {
    let pipeline = fx.start(fx.configure_prefetch(10).await?).await?;
    push_prioritised(&fx, &pipeline).await?;
    pipeline.expect_unpopped(5).await?;
    let mut found = Vec::new();
    for job in pipeline.take(5).await? {
        found.push(text(&job));
        job.ack().await?;
    }
    assert_eq!(found, ["1", "2", "9", "none", "11"]);
    Ok(())
}

async fn orders_jobs_at_the_broker(fx: Fixture) -> CaseResult {
    let pipeline = fx.connect(fx.configure_prefetch(1).await?).await?;
    push_prioritised(&fx, &pipeline).await?;
    pipeline.run().await?;
    let mut found = Vec::new();
    for _ in 0..5 {
        let job = pipeline.next().await?;
        found.push(text(&job));
        job.ack().await?;
    }
    if pipeline.driver().capabilities().priority.is_available() {
        assert_eq!(found, ["1", "2", "9", "none", "11"]);
    } else {
        found.sort();
        assert_eq!(found, ["1", "11", "2", "9", "none"], "a priority is no reason to refuse");
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn equals_stay_in_order(fx: Fixture) -> CaseResult {
    let pipeline = fx.connect(fx.configure_prefetch(1).await?).await?;
    for number in 0..20 {
        pipeline.push(fx.message(number.to_string()).with_priority(5)).await?;
    }
    pipeline.run().await?;
    for number in 0..20 {
        let job = pipeline.next().await?;
        assert_eq!(text(&job), number.to_string());
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn survives_a_requeue(fx: Fixture) -> CaseResult {
    let pipeline = fx.start(fx.configure_prefetch(10).await?).await?;
    push_prioritised(&fx, &pipeline).await?;
    for job in pipeline.take(5).await? {
        job.requeue(Duration::ZERO).await?;
    }
    pipeline.expect_unpopped(5).await?;
    let mut found = Vec::new();
    for job in pipeline.take(5).await? {
        found.push(text(&job));
        job.ack().await?;
    }
    assert_eq!(found, ["1", "2", "9", "none", "11"]);
    pipeline.expect_empty().await?;
    Ok(())
}

async fn out_of_range_is_refused(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let range = pipeline.driver().capabilities().priorities;
    let below = range.start().checked_sub(1);
    let above = range.end().checked_add(1);
    // 0 means none on every broker.
    for priority in below.into_iter().chain(above).filter(|priority| *priority != 0) {
        let answer = pipeline.push(fx.message("refused").with_priority(priority)).await;
        fx.expect_refused(answer, ErrorKind::Unsupported)?;
    }
    for priority in [*range.start(), *range.end()] {
        pipeline.push(fx.message("taken").with_priority(priority)).await?;
    }
    pipeline.ack_next(2).await?;
    pipeline.expect_empty().await?;
    Ok(())
}
