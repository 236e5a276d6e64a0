//! A broker that goes away and comes back. Needs a harness that can make it so.

use std::collections::BTreeSet;
use std::time::Duration;

use jobs_core::{ErrorKind, Job, JobId, Lease, Outcome};

use super::{ids, sorted};
use crate::{Case, CaseResult, Fault, Feature, Fixture, TestPipeline};

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
            "reconnect::consuming_resumes_after_reset",
            &[9],
            "connections reset: consuming resumes by itself",
            |fx| consuming_resumes(fx, Fault::Reset),
        )
        .needs(&[Feature::Fault(Fault::Reset)]),
        Case::new(
            "reconnect::requeues_outlive_a_cut",
            &[5],
            "a requeue with changes that is cut gives a duplicate at most, never a loss",
            |fx| requeues_are_never_lost(fx, Duration::ZERO),
        )
        .needs(&[Feature::Fault(Fault::Cut), Feature::ChangedHeaders]),
        Case::new(
            "reconnect::delayed_requeues_outlive_a_cut",
            &[5],
            "a requeue with a delay that is cut gives a duplicate at most, never a loss",
            |fx| requeues_are_never_lost(fx, Duration::from_millis(300)),
        )
        .needs(&[Feature::Fault(Fault::Cut), Feature::ChangedHeaders, Feature::Delay]),
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
        Case::new(
            "reconnect::a_stopped_consumer_stays_away",
            &[10],
            "run, stop and start again, through cuts: no consumer is left behind that takes jobs",
            a_stopped_consumer_stays_away,
        )
        .needs(CUT),
    ]
}

async fn consuming_resumes(fx: Fixture, fault: Fault) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push_numbered(3).await?;
    pipeline.ack_next(3).await?;
    fx.prepare(fault).await?;
    fx.inject(fault).await?;
    let pushed = pipeline.push_eventually(3).await?;
    ack_until_found(&pipeline, pushed).await
}

/// Takes jobs until all of `missing` were seen.
pub(super) async fn ack_until_found(pipeline: &TestPipeline, missing: Vec<JobId>) -> CaseResult {
    let mut missing: BTreeSet<_> = missing.into_iter().collect();
    while !missing.is_empty() {
        let job = pipeline.next().await?;
        missing.remove(job.id());
        // Its connection may be the one that was cut; then the job comes again.
        drop(job.ack().await);
    }
    Ok(())
}

pub(super) async fn expect_lease_lost(stale: Vec<Job>) {
    for job in stale {
        let Err(refused) = job.ack().await else { panic!("a stale receipt was taken") };
        assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}");
    }
}

async fn requeues_are_never_lost(fx: Fixture, delay: Duration) -> CaseResult {
    const JOBS: usize = 30;
    let requeue = |job: Job| {
        let headers = [("requeued", "yes")].into_iter().collect();
        job.settle(Outcome::Requeue { delay, headers: Some(headers) })
    };
    let pipeline = fx.pipeline_of(JOBS).await?;
    let pushed = pipeline.push_numbered(JOBS).await?;
    let mut held = pipeline.take(JOBS).await?.into_iter();
    // The outcome is handed over at once: some are under way when the first is answered, and the
    // rest has hardly begun when the connection goes.
    let first = held.next().map(requeue).expect("thirty");
    let under_way: Vec<_> = held.by_ref().take(JOBS / 2).map(requeue).collect();
    fx.within("a requeue", first).await??;
    let begun: Vec<_> = held.map(requeue).collect();
    fx.inject(Fault::Cut).await?;
    for answer in under_way.into_iter().chain(begun) {
        // Whether it was taken or not, the job must come back.
        drop(fx.within("a requeue through the fault", answer).await?);
    }
    ack_until_found(&pipeline, pushed).await
}

async fn unsettled_jobs_come_back(fx: Fixture) -> CaseResult {
    // What is held until its receipt is refused has a credit, and its next delivery needs another.
    let pipeline = fx.pipeline_of(10).await?;
    let pushed = pipeline.push_numbered(5).await?;
    let held = pipeline.take(5).await?;
    fx.inject(Fault::Cut).await?;
    if pipeline.driver().capabilities().lease == Lease::Connection {
        let again = pipeline.take(5).await?;
        assert_eq!(sorted(ids(&again)), sorted(pushed));
        expect_lease_lost(held).await;
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
    let pipeline = fx.pipeline().await?;
    pipeline.push_numbered(1).await?;
    pipeline.ack_next(1).await?;
    pipeline.pause().await?;
    fx.inject(Fault::Cut).await?;
    let pushed = pipeline.push_eventually(5).await?;
    pipeline.expect_quiet().await?;
    pipeline.resume().await?;
    ack_until_found(&pipeline, pushed).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_stopped_consumer_stays_away(fx: Fixture) -> CaseResult {
    const ROUNDS: usize = 6;
    const PREFETCH: u32 = 5;
    let producer = fx.connect(fx.configure_prefetch(PREFETCH).await?).await?;
    for round in 0..ROUNDS {
        let consumer = fx.start(producer.config().clone()).await?;
        fx.begin(Fault::Cut).await?;
        if round % 2 == 0 {
            // It is about to connect again when it is stopped.
            fx.end(Fault::Cut).await?;
        }
        // What could not be flushed is its answer; it stops all the same.
        drop(fx.within("stop", consumer.stop()).await?);
        fx.end(Fault::Cut).await?;
    }
    let last = fx.start(producer.config().clone()).await?;
    let pushed = producer.push_eventually(ROUNDS * PREFETCH as usize).await?;
    ack_until_found(&last, pushed).await?;
    last.expect_empty().await?;
    Ok(())
}
