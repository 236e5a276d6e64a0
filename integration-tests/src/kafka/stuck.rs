//! A job that does not end.

use std::sync::Arc;

use jobs_kit::{Case, CaseResult, Fixture};

use super::case;
use super::rebalance::to_partition;
use crate::kafkad::Brokers;

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![case(
        brokers,
        "stuck::a_job_stops_its_own_partition_and_says_so",
        &[6],
        "a job that is held stops its partition at the window's limit, and no other",
        a_job_stops_its_own_partition,
    )]
}

/// More than any window.
const MOST: usize = 400_000;
const BATCH: usize = 2_000;

async fn a_job_stops_its_own_partition(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline_of(100).await?;
    pipeline.push(to_partition(fx.message("stuck"), 0)).await?;
    let stuck = pipeline.next().await?;
    let (mut pushed, mut acked) = (0, 0);
    let said = loop {
        let state = pipeline.state().await?;
        if let Some(error) = state.last_error {
            break error.to_string();
        }
        assert!(pushed < MOST, "nothing stops the partition: {acked} of {pushed} were run");
        let batch: Vec<_> = (0..BATCH).map(|_| to_partition(fx.message("beside"), 0)).collect();
        for answer in pipeline.push_batch(batch).await {
            answer?;
        }
        pushed += BATCH;
        let quiet = fx.harness().quiet();
        while acked < pushed
            && let Ok(Some(job)) = tokio::time::timeout(quiet, pipeline.queue().pop()).await
        {
            job.ack().await?;
            acked += 1;
        }
    };
    let place = format!("{} [0]", pipeline.config().name());
    assert!(said.contains(pipeline.config().name()) && said.contains('0'), "{said}: of {place}");
    for partition in 1..3 {
        pipeline.push(to_partition(fx.message("elsewhere"), partition)).await?;
        let job = pipeline.next().await?;
        assert_eq!(job.kafka().and_then(|place| place.partition), Some(partition));
        job.ack().await?;
    }
    stuck.ack().await?;
    pipeline.ack_next(pushed - acked).await?;
    pipeline.expect_empty().await?;
    Ok(())
}
