//! What the attempt number counts.

use std::time::Duration;

use jobs_core::Attempts;

use super::assert_attempt;
use crate::{Case, CaseResult, Fixture};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("attempts::start_at_one", &[], "attempt starts at 1", start_at_one),
        Case::new(
            "attempts::requeue_counts_one_each",
            &[],
            "requeue: the attempt counts",
            requeue_counts_one_each,
        ),
        Case::new(
            "attempts::never_fall",
            &[8],
            "the attempt never falls, whatever the outcomes",
            never_fall,
        ),
        Case::new(
            "attempts::outlive_the_consumer",
            &[3],
            "the attempt is kept with the job, not with the consumer",
            outlive_the_consumer,
        ),
    ]
}

async fn start_at_one(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push(fx.message("single")).await?;
    for answer in pipeline.push_batch(vec![fx.message("batched"), fx.message("batched")]).await {
        answer?;
    }
    for _ in 0..3 {
        let job = pipeline.next().await?;
        assert_eq!(job.attempt(), 1, "{job:?}");
        job.ack().await?;
    }
    Ok(())
}

async fn requeue_counts_one_each(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let attempts = pipeline.driver().capabilities().attempts;
    pipeline.push(fx.message("again")).await?;
    for requeued in 0..5 {
        let job = pipeline.next().await?;
        assert_attempt(attempts, &job, requeued);
        job.requeue(Duration::ZERO).await?;
    }
    let last = pipeline.next().await?;
    assert_attempt(attempts, &last, 5);
    last.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn never_fall(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push(fx.message("mixed")).await?;
    let mut before = 1;
    for turn in 0..9 {
        let job = pipeline.next().await?;
        assert!(job.attempt() >= before, "attempt {} after {before}", job.attempt());
        before = job.attempt();
        match turn % 3 {
            0 => job.requeue(Duration::ZERO).await?,
            1 => job.release().await?,
            _ => drop(job),
        }
    }
    let last = pipeline.next().await?;
    assert!(last.attempt() >= before);
    if pipeline.driver().capabilities().attempts == Attempts::AtLeast {
        assert!(last.attempt() >= 4, "three requeues count");
    }
    last.ack().await?;
    Ok(())
}

async fn outlive_the_consumer(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    let attempts = pipeline.driver().capabilities().attempts;
    pipeline.push(fx.message("kept")).await?;
    pipeline.next().await?.requeue(Duration::ZERO).await?;
    pipeline.next().await?.requeue(Duration::ZERO).await?;
    let held = pipeline.next().await?;
    assert_attempt(attempts, &held, 2);
    held.release().await?;
    pipeline.stop().await?;
    second.run().await?;
    let job = second.next().await?;
    // It went back by a release, or was on its way to the first consumer when that stopped.
    assert!(job.attempt() >= if attempts == Attempts::Flag { 2 } else { 3 }, "{job:?}");
    job.ack().await?;
    second.expect_empty().await?;
    Ok(())
}
