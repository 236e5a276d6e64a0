//! Jobs that wait for each other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs_core::Message;
use jobs_kit::{Case, CaseResult, Fixture, TestPipeline};

use super::case;
use super::rebalance::to_partition;
use crate::kafkad::Brokers;

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(
            brokers,
            "order::one_job_of_a_key_at_a_time",
            &[],
            "jobs of one key run one after the other, those of others beside them",
            one_job_of_a_key_at_a_time,
        ),
        case(
            brokers,
            "order::a_requeue_holds_its_key",
            &[5],
            "a requeue retries in place, holding its key until it is due",
            a_requeue_holds_its_key,
        ),
        case(
            brokers,
            "order::one_job_of_a_partition_at_a_time",
            &[],
            "ordering: partition runs the jobs of a partition one after the other",
            one_job_of_a_partition_at_a_time,
        ),
    ]
}

fn of(fx: &Fixture, key: &'static str, payload: &'static str) -> Message {
    fx.message(payload).with_ordering_key(key)
}

/// The payloads of the next jobs, sorted, with the jobs.
async fn next(pipeline: &TestPipeline, count: usize) -> jobs_core::Result<Vec<jobs_core::Job>> {
    let jobs = pipeline.take(count).await;
    let mut jobs = jobs.map_err(|error| {
        jobs_core::Error::new(jobs_core::ErrorKind::Timeout, "wait").with_source(error)
    })?;
    jobs.sort_by(|one, other| one.payload().cmp(other.payload()));
    Ok(jobs)
}

async fn one_job_of_a_key_at_a_time(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline_of(20).await?;
    for payload in ["a1", "a2", "a3"] {
        pipeline.push(of(&fx, "a", payload)).await?;
    }
    for (key, payload) in [("b", "b1"), ("c", "c1")] {
        pipeline.push(of(&fx, key, payload)).await?;
    }
    let mut jobs = next(&pipeline, 3).await?;
    let found: Vec<_> = jobs.iter().map(|job| job.payload().clone()).collect();
    assert_eq!(found, ["a1", "b1", "c1"]);
    pipeline.expect_quiet().await?;
    for expected in ["a2", "a3"] {
        jobs.remove(0).ack().await?;
        jobs.insert(0, pipeline.next().await?);
        assert_eq!(jobs[0].payload(), expected);
    }
    for job in jobs {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_requeue_holds_its_key(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    const DELAY: Duration = Duration::from_millis(700);
    let pipeline = fx.pipeline_of(20).await?;
    for payload in ["a1", "a2"] {
        pipeline.push(of(&fx, "a", payload)).await?;
    }
    for (turn, delay) in [(1, Duration::ZERO), (2, DELAY)] {
        let job = pipeline.next().await?;
        assert_eq!((&job.payload()[..], job.attempt()), (&b"a1"[..], turn));
        let start = Instant::now();
        job.requeue(delay).await?;
        if delay > Duration::ZERO {
            // Another key does not wait for it.
            pipeline.push(of(&fx, "b", "b1")).await?;
            let other = pipeline.next().await?;
            assert_eq!(other.payload(), "b1");
            other.ack().await?;
            let again = pipeline.next().await?;
            assert!(start.elapsed() >= delay, "after {:?}, not {delay:?}", start.elapsed());
            assert_eq!((&again.payload()[..], again.attempt()), (&b"a1"[..], 3));
            again.release().await?;
        }
    }
    for expected in ["a1", "a2"] {
        let job = pipeline.next().await?;
        assert_eq!(job.payload(), expected);
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn one_job_of_a_partition_at_a_time(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let config = fx.configure_prefetch(20).await?.with_option("ordering", "partition");
    let pipeline = fx.start(config).await?;
    for payload in ["0a", "0b", "0c"] {
        pipeline.push(to_partition(fx.message(payload), 0)).await?;
    }
    pipeline.push(to_partition(fx.message("1a"), 1)).await?;
    let mut jobs = next(&pipeline, 2).await?;
    let found: Vec<_> = jobs.iter().map(|job| job.payload().clone()).collect();
    assert_eq!(found, ["0a", "1a"]);
    pipeline.expect_quiet().await?;
    for expected in ["0b", "0c"] {
        jobs.remove(0).ack().await?;
        jobs.insert(0, pipeline.next().await?);
        assert_eq!(jobs[0].payload(), expected);
    }
    for job in jobs {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}
