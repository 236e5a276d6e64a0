//! The right to work on a job, and its end.

use std::time::Duration;

use jobs_core::{Attempts, ErrorKind, Job, Lease, Outcome, State};

use super::{sorted, text};
use crate::{Case, CaseError, CaseResult, Feature, Fixture, TestPipeline};

pub(super) fn cases() -> Vec<Case> {
    const TIMED: &[Feature] = &[Feature::MaxLease];
    vec![
        Case::new(
            "leases::a_held_job_stays",
            &[2],
            "without max_lease a job is delivered to nobody else while it is held",
            a_held_job_stays,
        ),
        Case::new(
            "leases::end_after_max_lease",
            &[3],
            "leases last up to max_lease; then the job runs again, and the attempt counts",
            end_after_max_lease,
        )
        .needs(TIMED),
        Case::new(
            "leases::a_stale_receipt_is_refused",
            &[2, 7],
            "a receipt of an ended lease is refused and does not touch the new delivery",
            a_stale_receipt_is_refused,
        )
        .needs(TIMED),
        Case::new(
            "leases::stale_outcomes_do_nothing",
            &[5, 7],
            "no outcome of an ended lease stores a copy or touches the new delivery",
            stale_outcomes_do_nothing,
        )
        .needs(TIMED),
        Case::new(
            "leases::a_stale_drop_does_nothing",
            &[7],
            "dropping a job whose lease ended does nothing",
            a_stale_drop_does_nothing,
        )
        .needs(TIMED),
        Case::new(
            "leases::an_ended_lease_frees_no_credit",
            &[6],
            "a job whose lease ended is in this process until its worker lets go of it",
            an_ended_lease_frees_no_credit,
        )
        .needs(TIMED),
        Case::new(
            "leases::a_late_settlement_lets_the_next_delivery_in",
            &[3, 6],
            "a refused settlement of an ended lease frees the credit, and the job comes again",
            a_late_settlement_lets_the_next_delivery_in,
        )
        .needs(&[Feature::Extend, Feature::MaxLease]),
        Case::new(
            "leases::extend_is_taken",
            &[],
            "extend: the lease lasts at least that long from now",
            extend_is_taken,
        )
        .needs(&[Feature::Extend]),
        Case::new(
            "leases::extend_outlasts_max_lease",
            &[2],
            "extend: whatever max_lease says",
            extend_outlasts_max_lease,
        )
        .needs(&[Feature::Extend, Feature::MaxLease]),
        Case::new(
            "leases::extend_after_the_end_is_refused",
            &[7],
            "extend after the lease ended is LeaseLost",
            extend_after_the_end_is_refused,
        )
        .needs(&[Feature::Extend, Feature::MaxLease]),
    ]
}

async fn a_held_job_stays(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push(fx.message("held")).await?;
    let held = pipeline.next().await?;
    let second = pipeline.second().await?;
    let lease = fx.harness().max_lease();
    second.expect_quiet_for(lease * 2 + fx.harness().quiet()).await?;
    pipeline.expect_quiet().await?;
    held.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

/// A pipeline, a job of it whose lease has ended, and its next delivery to another consumer.
struct Ended {
    pipeline: TestPipeline,
    second: TestPipeline,
    stale: Job,
    again: Job,
}

/// The first consumer is paused, so that the job can only come to the second. That one extends its
/// lease where it can, so that the case has time.
async fn ended(fx: &Fixture) -> Result<Ended, CaseError> {
    let pipeline = fx.start(fx.configure_lease().await?).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    pipeline.push(fx.message("leased")).await?;
    let stale = pipeline.next().await?;
    pipeline.pause().await?;
    second.run().await?;
    let again = match can_extend(&second) {
        true => extended(&second, fx.deadline()).await?,
        false => second.next().await?,
    };
    assert_eq!((text(&again), again.id()), ("leased".into(), stale.id()));
    Ok(Ended { pipeline, second, stale, again })
}

fn can_extend(pipeline: &TestPipeline) -> bool {
    pipeline.driver().capabilities().extend.is_available()
}

/// A job whose lease was extended in time: a slow machine may need more than one delivery.
async fn extended(pipeline: &TestPipeline, by: Duration) -> Result<Job, CaseError> {
    loop {
        let job = pipeline.next().await?;
        match job.extend(by).await {
            Ok(()) => return Ok(job),
            Err(error) if error.kind() == ErrorKind::LeaseLost => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Settles the new delivery, to which nothing must have happened. Where it could not be extended
/// its lease may end as well, on a slow machine; then the next one is settled.
async fn finish(pipeline: TestPipeline, second: TestPipeline, mut again: Job) -> CaseResult {
    if can_extend(&second) {
        second.expect_quiet().await?;
        let held = |state: &State| state.in_flight.is_none_or(|jobs| jobs == 1);
        second.expect_state("the new delivery", held).await?;
        again.ack().await?;
    } else {
        while let Err(refused) = again.ack().await {
            if refused.error().kind() != ErrorKind::LeaseLost {
                return Err(refused.into());
            }
            again = second.next().await?;
        }
    }
    pipeline.resume().await?;
    pipeline.expect_quiet().await?;
    second.expect_empty().await?;
    Ok(())
}

async fn end_after_max_lease(fx: Fixture) -> CaseResult {
    let Ended { pipeline, second, stale, again } = ended(&fx).await?;
    let capabilities = second.driver().capabilities();
    assert_ne!(capabilities.lease, Lease::Connection, "a lease that ends is no connection's");
    if capabilities.attempts == Attempts::Exact {
        assert_eq!(stale.attempt(), 1);
        assert!(again.attempt() > 1, "an ended lease counts");
    }
    finish(pipeline, second, again).await
}

async fn a_stale_receipt_is_refused(fx: Fixture) -> CaseResult {
    let Ended { pipeline, second, stale, again } = ended(&fx).await?;
    let stale = expect_stale(stale, Outcome::Ack).await;
    drop(expect_stale(stale, Outcome::Ack).await);
    finish(pipeline, second, again).await
}

async fn stale_outcomes_do_nothing(fx: Fixture) -> CaseResult {
    for outcome in [Outcome::Reject, Outcome::requeue(), Outcome::Release] {
        let Ended { pipeline, second, stale, again } = ended(&fx).await?;
        drop(expect_stale(stale, outcome).await);
        finish(pipeline, second, again).await?;
    }
    Ok(())
}

async fn expect_stale(stale: Job, outcome: Outcome) -> Job {
    let Err(refused) = stale.settle(outcome).await else { panic!("a stale receipt was taken") };
    assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}");
    refused.into_job()
}

async fn a_stale_drop_does_nothing(fx: Fixture) -> CaseResult {
    let Ended { pipeline, second, stale, again } = ended(&fx).await?;
    drop(stale);
    finish(pipeline, second, again).await
}

async fn an_ended_lease_frees_no_credit(fx: Fixture) -> CaseResult {
    let config = fx.harness().with_prefetch(fx.configure_lease().await?, 1);
    let pipeline = fx.start(config).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    let pushed = pipeline.push_numbered(3).await?;
    let stale = pipeline.next().await?;
    second.run().await?;
    let mut found = Vec::new();
    while found.len() < 3 {
        let job = second.next().await?;
        let id = job.id().clone();
        // On a slow machine this lease may end as well; then the job comes once more.
        match job.ack().await {
            Ok(()) => found.push(id),
            Err(refused) => assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}"),
        }
    }
    assert_eq!(sorted(found), sorted(pushed), "all ran elsewhere");
    assert!(pipeline.queue().is_empty());
    assert_eq!(pipeline.state().await?.active, 1, "the stale one is here still");
    drop(stale);
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_late_settlement_lets_the_next_delivery_in(fx: Fixture) -> CaseResult {
    let config = fx.harness().with_prefetch(fx.configure_lease().await?, 1);
    let pipeline = fx.start(config).await?;
    pipeline.push(fx.message("leased")).await?;
    let mut job = pipeline.next().await?;
    // Asking for nothing changes no lease, and tells when it has ended.
    fx.eventually("the lease ends", async || match job.extend(Duration::ZERO).await {
        Err(error) if error.kind() == ErrorKind::LeaseLost => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await?;
    drop(expect_stale(job, Outcome::Ack).await);
    loop {
        job = pipeline.next().await?;
        // On a slow machine this lease may end as well; then the job comes once more.
        match job.ack().await {
            Ok(()) => break,
            Err(refused) => assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}"),
        }
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn extend_is_taken(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push(fx.message("held")).await?;
    let job = pipeline.next().await?;
    for by in [Duration::from_millis(1), Duration::from_secs(30)] {
        job.extend(by).await?;
    }
    pipeline.expect_quiet().await?;
    job.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn extend_outlasts_max_lease(fx: Fixture) -> CaseResult {
    let pipeline = fx.start(fx.configure_lease().await?).await?;
    let lease = fx.harness().max_lease();
    pipeline.push(fx.message("extended")).await?;
    let job = extended(&pipeline, lease * 4 + fx.deadline()).await?;
    pipeline.expect_quiet_for(lease * 3).await?;
    job.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn extend_after_the_end_is_refused(fx: Fixture) -> CaseResult {
    let Ended { pipeline, second, stale, again } = ended(&fx).await?;
    let answer = stale.extend(Duration::from_secs(60)).await;
    fx.expect_refused(answer, ErrorKind::LeaseLost)?;
    finish(pipeline, second, again).await
}
