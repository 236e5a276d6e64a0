//! Jobs that are settled when they are handed out.

use std::time::Duration;

use jobs_core::Outcome;

use super::{sorted, text};
use crate::{Case, CaseResult, Fixture};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "auto_ack::settled_when_handed_out",
            &[2],
            "auto_ack: settled when handed to a worker, so that dropping it loses it",
            settled_when_handed_out,
        ),
        Case::new(
            "auto_ack::later_outcomes_do_nothing",
            &[],
            "later outcomes of an auto_ack job are no-ops that succeed",
            later_outcomes_do_nothing,
        ),
        Case::new(
            "auto_ack::not_before_it_is_handed_out",
            &[3],
            "an auto_ack job that nobody popped comes back when its consumer stops",
            not_before_it_is_handed_out,
        ),
    ]
}

async fn settled_when_handed_out(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    pipeline.push(fx.message("once").with_auto_ack(true)).await?;
    let job = pipeline.next().await?;
    assert!(job.message().auto_ack(), "the flag travels");
    let settled = |state: &jobs_core::State| state.active == 0 && state.in_flight.unwrap_or(0) == 0;
    pipeline.expect_state("settled while the job is held", settled).await?;
    drop(job);
    pipeline.expect_empty().await?;
    pipeline.stop().await?;
    second.run().await?;
    second.expect_empty().await?;
    Ok(())
}

async fn later_outcomes_do_nothing(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let outcomes = [Outcome::Ack, Outcome::Reject, Outcome::requeue(), Outcome::Release];
    for outcome in outcomes {
        pipeline.push(fx.message("once").with_auto_ack(true)).await?;
        let job = pipeline.next().await?;
        job.extend(Duration::from_secs(1)).await?;
        job.settle(outcome).await?;
    }
    pipeline.expect_empty().await?;
    let none = |state: &jobs_core::State| state.dead.unwrap_or(0) == 0;
    pipeline.expect_state("no dead letter", none).await?;
    Ok(())
}

async fn not_before_it_is_handed_out(fx: Fixture) -> CaseResult {
    let pipeline = fx.start(fx.configure_prefetch(10).await?).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    let mut pushed = Vec::new();
    for number in 0..3 {
        let message = fx.message(number.to_string()).with_auto_ack(true);
        pushed.push(message.id().clone());
        pipeline.push(message).await?;
    }
    pipeline.expect_unpopped(3).await?;
    pipeline.stop().await?;
    second.run().await?;
    let jobs = second.take(3).await?;
    assert!(jobs.iter().all(|job| text(job).len() == 1 && job.message().auto_ack()));
    assert_eq!(sorted(super::ids(&jobs)), sorted(pushed));
    drop(jobs);
    second.expect_empty().await?;
    Ok(())
}
