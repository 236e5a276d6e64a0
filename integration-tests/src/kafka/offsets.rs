//! What a group has committed, as Kafka sees it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Job, JobId};
use jobs_kit::{Case, CaseResult, Fixture, TestPipeline};

use super::case;
use crate::kafkad::{Brokers, Committed, is_given};

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(
            brokers,
            "offsets::kafka_sees_the_contiguous_prefix",
            &[4],
            "whatever the order of settling, what is committed is the contiguous prefix",
            kafka_sees_the_contiguous_prefix,
        ),
        case(
            brokers,
            "offsets::what_ended_above_is_not_run_again",
            &[2, 4],
            "the next consumer runs what was not settled, and only that",
            what_ended_above_is_not_run_again,
        ),
        case(
            brokers,
            "offsets::more_than_the_metadata_holds",
            &[1, 4],
            "a settled set that does not fit a commit breaks nothing and loses no job",
            more_than_the_metadata_holds,
        ),
        case(
            brokers,
            "offsets::committed_on_stop",
            &[2],
            "what was settled is committed on stop, however long the interval",
            committed_on_stop,
        ),
    ]
}

fn offset(job: &Job) -> i64 {
    job.kafka().and_then(|place| place.offset).expect("it is from Kafka")
}

/// What the group has committed for the first partition.
async fn committed(pipeline: &TestPipeline, brokers: &Brokers) -> jobs_core::Result<Committed> {
    let name = pipeline.config().name();
    brokers.shared().await?.operator().committed(name, name, 0).await
}

/// What Kafka's own tool says is committed for the first partition, and how much is left.
async fn told(pipeline: &TestPipeline, brokers: &Brokers) -> jobs_core::Result<(String, String)> {
    let name = pipeline.config().name();
    let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
    let table =
        brokers.shared().await?.tool(class, &["--describe", "--offsets", "--group", name]).await?;
    let row = table.lines().map(str::split_whitespace).map(Iterator::collect::<Vec<_>>);
    let row = row.into_iter().find(|row| row.first() == Some(&name) && row.get(2) == Some(&"0"));
    let row = row.unwrap_or_else(|| panic!("no row of {name} in {table}"));
    Ok((row[3].to_owned(), row[5].to_owned()))
}

async fn kafka_sees_the_contiguous_prefix(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    const JOBS: usize = 200;
    const TURN: usize = 25;
    let pipeline = fx.pipeline_of(JOBS).await?;
    pipeline.push_numbered(JOBS).await?;
    let mut jobs = pipeline.take(JOBS).await?;
    let mut open: BTreeSet<i64> = jobs.iter().map(offset).collect();
    fastrand::Rng::with_seed(7).shuffle(&mut jobs);
    while !jobs.is_empty() {
        for job in jobs.split_off(jobs.len().saturating_sub(TURN)) {
            open.remove(&offset(&job));
            job.ack().await?;
        }
        let prefix = open.first().copied().unwrap_or(JOBS as i64);
        fx.eventually("the prefix is committed", async || {
            let found = committed(&pipeline, &brokers).await.map_err(|e| format!("{e:?}"))?;
            let found = found.offset.unwrap_or(0);
            assert!(found <= prefix, "{found} is committed, and {prefix} is not settled");
            if found == prefix { Ok(()) } else { Err(format!("{found}, not {prefix}")) }
        })
        .await?;
        if !is_given() && (jobs.len() == TURN || jobs.is_empty()) && prefix > 0 {
            let (current, lag) = told(&pipeline, &brokers).await?;
            assert_eq!((current, lag), (prefix.to_string(), (JOBS as i64 - prefix).to_string()));
        }
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn what_ended_above_is_not_run_again(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    const JOBS: usize = 300;
    let pipeline = fx.pipeline_of(JOBS).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    pipeline.push_numbered(JOBS).await?;
    let (settled, kept): (Vec<_>, Vec<_>) =
        pipeline.take(JOBS).await?.into_iter().partition(|job| offset(job) % 3 == 1);
    let left: BTreeSet<JobId> = kept.iter().map(|job| job.id().clone()).collect();
    for job in settled {
        job.ack().await?;
    }
    pipeline.stop().await?;
    drop(kept);
    second.run().await?;
    let found = second.drain(left.len()).await?;
    assert_eq!(found.len(), left.len(), "each once");
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), left);
    second.expect_empty().await?;
    Ok(())
}

async fn more_than_the_metadata_holds(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    const JOBS: usize = 6_000;
    let pipeline = fx.pipeline_of(JOBS).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    let messages: Vec<_> = (0..JOBS).map(|number| fx.message(number.to_string())).collect();
    for answer in pipeline.push_batch(messages).await {
        answer?;
    }
    // No two settled ones are neighbours: there is no shorter way to say it.
    let (settled, kept): (Vec<_>, Vec<_>) =
        pipeline.take(JOBS).await?.into_iter().partition(|job| offset(job) % 2 == 1);
    let left: BTreeSet<JobId> = kept.iter().map(|job| job.id().clone()).collect();
    let answers: Vec<_> = settled.into_iter().map(Job::ack).collect();
    for answer in answers {
        answer.await?;
    }
    fx.eventually("some of it is committed", async || match committed(&pipeline, &brokers).await {
        Ok(found) if found.metadata.len() > 2_000 => Ok(()),
        found => Err(format!("{found:?}")),
    })
    .await?;
    // The connection lives, and so does the pipeline.
    pipeline.push(fx.message("one more")).await?;
    pipeline.stop().await?;
    drop(kept);
    second.run().await?;
    let found = second.drain(left.len() + 1).await?;
    let again = found.len() - left.len() - 1;
    let found: BTreeSet<_> = found.into_iter().collect();
    assert!(
        left.is_subset(&found),
        "{} of {} are lost",
        left.difference(&found).count(),
        left.len()
    );
    assert!(again < JOBS / 2, "what fitted is not run again: {again} of {} were", JOBS / 2);
    second.expect_empty().await?;
    Ok(())
}

async fn committed_on_stop(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    const JOBS: usize = 5;
    let config = fx.configure_prefetch(10).await?.with_option("commit_interval", "1h");
    let pipeline = fx.start(config).await?;
    pipeline.push_numbered(JOBS).await?;
    pipeline.ack_next(JOBS).await?;
    let stopped = std::time::Instant::now();
    pipeline.stop().await?;
    assert!(stopped.elapsed() < Duration::from_secs(20), "a stop is bounded");
    assert_eq!(committed(&pipeline, &brokers).await?.offset, Some(JOBS as i64));
    Ok(())
}
