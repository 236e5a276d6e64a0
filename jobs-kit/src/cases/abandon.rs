//! Jobs that nobody settles.

use super::{assert_attempt, ids, sorted, text};
use crate::{Case, CaseResult, Fixture};
use jobs_core::Attempts;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "abandon::a_dropped_job_comes_back",
            &[3],
            "a job dropped unsettled is given back, and counts as an attempt",
            a_dropped_job_comes_back,
        ),
        Case::new(
            "abandon::unsettled_jobs_outlive_their_consumer",
            &[3],
            "unsettled jobs come back after consumer death; nobody runs a repair",
            unsettled_jobs_outlive_their_consumer,
        ),
        Case::new(
            "abandon::unpopped_jobs_outlive_their_consumer",
            &[3],
            "jobs that nobody popped come back when their consumer stops",
            unpopped_jobs_outlive_their_consumer,
        ),
        Case::new(
            "abandon::a_panicking_worker_gives_its_job_back",
            &[3],
            "a job is given back when its worker's task panics",
            a_panicking_worker_gives_its_job_back,
        ),
    ]
}

async fn a_dropped_job_comes_back(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let attempts = pipeline.driver().capabilities().attempts;
    pipeline.push(fx.message("dropped")).await?;
    for dropped in 0..3 {
        let job = pipeline.next().await?;
        assert_eq!(text(&job), "dropped");
        if attempts == Attempts::Exact {
            assert_attempt(attempts, &job, dropped);
        }
        drop(job);
    }
    pipeline.ack_next(1).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn unsettled_jobs_outlive_their_consumer(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(5).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    let pushed = pipeline.push_numbered(5).await?;
    let held = pipeline.take(5).await?;
    pipeline.stop().await?;
    second.run().await?;
    let back = second.take(5).await?;
    assert_eq!(sorted(ids(&back)), sorted(pushed));
    let attempts = second.driver().capabilities().attempts;
    for job in back {
        if attempts == Attempts::Exact {
            assert_attempt(attempts, &job, 1);
        }
        job.ack().await?;
    }
    // Their first consumer lets go of them only now: that must not bring them back again.
    drop(held);
    second.expect_empty().await?;
    Ok(())
}

async fn unpopped_jobs_outlive_their_consumer(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    let pushed = pipeline.push_numbered(5).await?;
    pipeline.expect_unpopped(1).await?;
    pipeline.stop().await?;
    assert!(pipeline.queue().is_empty(), "a stopped pipeline leaves nothing in its lane");
    second.run().await?;
    assert_eq!(sorted(second.ack_next(5).await?), sorted(pushed));
    second.expect_empty().await?;
    Ok(())
}

async fn a_panicking_worker_gives_its_job_back(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push(fx.message("survives")).await?;
    let job = pipeline.next().await?;
    let worker = tokio::spawn(async move {
        let _held = job;
        // Unwinds as a panic does, without a report on the console.
        std::panic::resume_unwind(Box::new("worker"));
    });
    assert!(worker.await.is_err(), "the worker panicked");
    let again = pipeline.next().await?;
    assert_eq!(text(&again), "survives");
    again.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}
