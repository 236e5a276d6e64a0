//! Work that goes on through a fault, with books on every message.

use std::time::Duration;

use super::books::Books;
use crate::{Case, CaseError, CaseResult, Fault, Feature, Fixture, TestPipeline};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "crash::pushes_outlive_a_kill",
            &[1],
            "a push that returned Ok is delivered, whatever is killed in between",
            |fx| pushes_outlive(fx, Fault::Kill),
        )
        .needs(&[Feature::Fault(Fault::Kill)]),
        Case::new(
            "crash::pushes_outlive_a_cut",
            &[1],
            "a push that returned Ok is delivered, whatever is cut in between",
            |fx| pushes_outlive(fx, Fault::Cut),
        )
        .needs(&[Feature::Fault(Fault::Cut)]),
        Case::new(
            "crash::pushes_outlive_a_reset",
            &[1],
            "a push that returned Ok is delivered, whatever is thrown away in between",
            |fx| pushes_outlive(fx, Fault::Reset),
        )
        .needs(&[Feature::Fault(Fault::Reset)]),
        Case::new(
            "crash::consumption_outlives_a_kill",
            &[1, 2, 3],
            "jobs that were not settled when the broker was killed come back, and only they",
            |fx| consumption_outlives(fx, Fault::Kill),
        )
        .needs(&[Feature::Fault(Fault::Kill)]),
        Case::new(
            "crash::consumption_outlives_a_cut",
            &[1, 2, 3],
            "jobs that were not settled when the connection was cut come back, and only they",
            |fx| consumption_outlives(fx, Fault::Cut),
        )
        .needs(&[Feature::Fault(Fault::Cut)]),
        Case::new(
            "crash::delays_outlive_a_kill",
            &[1],
            "delayed jobs are delivered, also if the broker is killed when they become due",
            |fx| delays_outlive(fx, Fault::Kill),
        )
        .needs(&[Feature::Fault(Fault::Kill), Feature::Delay]),
        Case::new(
            "crash::delays_outlive_a_cut",
            &[1],
            "delayed jobs are delivered, also if connections are cut when they become due",
            |fx| delays_outlive(fx, Fault::Cut),
        )
        .needs(&[Feature::Fault(Fault::Cut), Feature::Delay]),
        Case::new(
            "crash::a_stall_loses_nothing",
            &[1, 3],
            "a broker that is silent for long costs neither jobs that are held nor pushes",
            a_stall_loses_nothing,
        )
        .needs(&[Feature::Fault(Fault::Stall)]),
    ]
}

fn at_once(_: usize) -> Duration {
    Duration::ZERO
}

/// Jobs that the broker keeps in memory do not outlive it.
async fn prepare(fx: &Fixture, pipeline: &TestPipeline, fault: Fault) -> CaseResult {
    if fault == Fault::Kill && !pipeline.driver().capabilities().durable {
        return Err(CaseError::ignored("jobs of this configuration do not outlive the broker"));
    }
    Ok(fx.prepare(fault).await?)
}

async fn pushes_outlive(fx: Fixture, fault: Fault) -> CaseResult {
    let pipeline = fx.connect(fx.configure().await?).await?;
    prepare(&fx, &pipeline, fault).await?;
    let mut books = Books::open(&fx, &pipeline);
    books.push(8, 50, at_once);
    books.until("some pushes", |totals| totals.accepted >= 20).await?;
    fx.inject(fault).await?;
    books.pushed().await?;
    pipeline.run_eventually().await?;
    books.work(2);
    books.close().await
}

async fn consumption_outlives(fx: Fixture, fault: Fault) -> CaseResult {
    const HELD: usize = 5;
    let pipeline = fx.connect(fx.configure_prefetch(20).await?).await?;
    prepare(&fx, &pipeline, fault).await?;
    let mut books = Books::open(&fx, &pipeline);
    books.push(8, 50, at_once);
    books.pushed().await?;
    pipeline.run().await?;
    // However quick the workers are, these are unsettled when it happens.
    let held = books.take(HELD).await?;
    books.work(4);
    books.until("some jobs", |totals| totals.done >= 20).await?;
    fx.inject(fault).await?;
    books.ack(held).await;
    books.close().await
}

async fn delays_outlive(fx: Fixture, fault: Fault) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    prepare(&fx, &pipeline, fault).await?;
    let mut books = Books::open(&fx, &pipeline);
    // They become due one after another, so that some do at the moment of the fault.
    let delay = |number| Duration::from_millis(200 + 25 * number as u64);
    // What a driver sets up for the first job of each delay is there when the broker is killed.
    books.push(1, 40, delay);
    books.pushed().await?;
    fx.prepare(fault).await?;
    books.push(4, 40, delay);
    books.work(2);
    books.until("the first are due", |totals| totals.done >= 10).await?;
    fx.inject(fault).await?;
    books.close().await
}

async fn a_stall_loses_nothing(fx: Fixture) -> CaseResult {
    const HELD: usize = 5;
    let pipeline = fx.pipeline_of(2 * HELD).await?;
    let mut books = Books::open(&fx, &pipeline);
    books.push(1, HELD, at_once);
    let held = books.take(HELD).await?;
    books.push(4, 50, at_once);
    books.work(2);
    books.until("some jobs", |totals| totals.done >= 10).await?;
    fx.inject(Fault::Stall).await?;
    books.ack(held).await;
    books.close().await
}
