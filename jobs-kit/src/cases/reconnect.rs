//! A broker that goes away and comes back. Needs a harness that can make it so.

use std::collections::BTreeSet;
use std::time::Duration;

use jobs_core::{ErrorKind, JobId, Outcome};

use super::{ids, sorted, workers};
use crate::{Case, CaseError, CaseResult, Fault, Feature, Fixture, TestPipeline};

pub(super) fn cases() -> Vec<Case> {
    const KILL: &[Feature] = &[Feature::Fault(Fault::Kill)];
    const CUT: &[Feature] = &[Feature::Fault(Fault::Cut)];
    const STALL: &[Feature] = &[Feature::Fault(Fault::Stall)];
    vec![
        Case::new(
            "reconnect::consuming_resumes_after_kill",
            &[9],
            "broker gone: consuming resumes by itself",
            |fx| consuming_resumes(fx, Fault::Kill),
        )
        .needs(KILL),
        Case::new(
            "reconnect::consuming_resumes_after_cut",
            &[9],
            "connections cut: consuming resumes by itself",
            |fx| consuming_resumes(fx, Fault::Cut),
        )
        .needs(CUT),
        Case::new(
            "reconnect::consuming_resumes_after_stall",
            &[9],
            "broker silent: consuming resumes by itself",
            |fx| consuming_resumes(fx, Fault::Stall),
        )
        .needs(STALL),
        Case::new(
            "reconnect::confirmed_pushes_outlive_a_kill",
            &[1],
            "a push that returned Ok is delivered, whatever is killed in between",
            |fx| confirmed_pushes_are_delivered(fx, Fault::Kill),
        )
        .needs(KILL),
        Case::new(
            "reconnect::confirmed_pushes_outlive_a_cut",
            &[1],
            "a push that returned Ok is delivered, whatever is cut in between",
            |fx| confirmed_pushes_are_delivered(fx, Fault::Cut),
        )
        .needs(CUT),
        Case::new(
            "reconnect::requeues_outlive_a_cut",
            &[5],
            "a requeue with changes that is cut gives a duplicate at most, never a loss",
            requeues_are_never_lost,
        )
        .needs(&[Feature::Fault(Fault::Cut), Feature::Requeue]),
        Case::new(
            "reconnect::unsettled_jobs_come_back",
            &[3, 7],
            "receipts of a dead connection are refused, and their jobs come back",
            unsettled_jobs_come_back,
        )
        .needs(CUT),
        Case::new(
            "reconnect::a_pause_outlives_a_cut",
            &[9],
            "a pause outlives reconnects",
            a_pause_outlives_a_cut,
        )
        .needs(CUT),
    ]
}

async fn consuming_resumes(fx: Fixture, fault: Fault) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push_numbered(3).await?;
    pipeline.ack_next(3).await?;
    fx.harness().inject(fault).await?;
    let message = fx.message("after the fault");
    fx.eventually("a push after the fault", async || {
        pipeline.push(message.clone()).await.map_err(|error| format!("{error:?}"))
    })
    .await?;
    let found = pipeline.drain(1).await?;
    assert!(found.contains(message.id()), "{found:?}");
    Ok(())
}

async fn confirmed_pushes_are_delivered(fx: Fixture, fault: Fault) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    if fault == Fault::Kill && !pipeline.driver().capabilities().durable {
        return Err(CaseError::ignored("jobs of this configuration do not outlive the broker"));
    }
    let pusher = pipeline.clone();
    let messages = fx.clone();
    let pushing = tokio::spawn(async move {
        let mut stored: Vec<JobId> = Vec::new();
        for number in 0..200 {
            let message = messages.message(number.to_string());
            let id = message.id().clone();
            // A push that fails may or may not be stored: only those that succeeded count.
            if pusher.push(message).await.is_ok() {
                stored.push(id);
            }
        }
        stored
    });
    fx.harness().inject(fault).await?;
    let stored = fx.within("pushes through the fault", pushing).await??;
    ack_until_found(&pipeline, stored).await
}

/// Takes jobs until all of `missing` were seen.
async fn ack_until_found(pipeline: &TestPipeline, missing: Vec<JobId>) -> CaseResult {
    let mut missing: BTreeSet<_> = missing.into_iter().collect();
    while !missing.is_empty() {
        let job = pipeline.next().await?;
        missing.remove(job.id());
        // Its connection may be the one that was cut; then the job comes again.
        drop(job.ack().await);
    }
    Ok(())
}

async fn requeues_are_never_lost(fx: Fixture) -> CaseResult {
    const JOBS: usize = 30;
    let pipeline = fx.pipeline().await?;
    let pushed = pipeline.push_numbered(JOBS).await?;
    let held = pipeline.take(JOBS).await?;
    let requeueing = tokio::spawn(async move {
        for job in held {
            let headers = [("requeued", "yes")].into_iter().collect();
            let outcome = Outcome::Requeue { delay: Duration::ZERO, headers: Some(headers) };
            // Whether it was taken or not, the job must come back.
            drop(job.settle(outcome).await);
        }
    });
    fx.harness().inject(Fault::Cut).await?;
    fx.within("requeues through the fault", requeueing).await??;
    ack_until_found(&pipeline, pushed).await
}

async fn unsettled_jobs_come_back(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let pushed = pipeline.push_numbered(5).await?;
    let held = pipeline.take(5).await?;
    fx.harness().inject(Fault::Cut).await?;
    if pipeline.driver().capabilities().lease == jobs_core::Lease::Connection {
        let again = pipeline.take(5).await?;
        assert_eq!(sorted(ids(&again)), sorted(pushed));
        for job in held {
            let Err(refused) = job.ack().await else { panic!("a stale receipt was taken") };
            assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}");
        }
        for job in again {
            job.ack().await?;
        }
    } else {
        for job in held {
            job.ack().await?;
        }
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_pause_outlives_a_cut(fx: Fixture) -> CaseResult {
    const JOBS: usize = 5;
    let pipeline = fx.pipeline().await?;
    pipeline.pause().await?;
    fx.harness().inject(Fault::Cut).await?;
    let pushed = pipeline.push_numbered(JOBS).await?;
    pipeline.expect_quiet().await?;
    pipeline.resume().await?;
    let found = workers::ack_all(&fx, &[pipeline.queue()], 1, JOBS).await?;
    assert_eq!(found, sorted(pushed));
    pipeline.expect_empty().await?;
    Ok(())
}
