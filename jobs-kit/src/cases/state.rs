//! What a pipeline reports about itself.

use std::time::Duration;

use jobs_core::State;

use crate::{Case, CaseResult, Feature, Fixture};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "state::names_the_pipeline",
            &[],
            "state: pipeline, driver, queue and priority",
            names_the_pipeline,
        ),
        Case::new(
            "state::ready_means_consuming",
            &[],
            "ready: true while consuming, false if paused or not run yet",
            ready_means_consuming,
        ),
        Case::new(
            "state::counts_what_waits",
            &[],
            "reserved: at the broker, ready, not yet consumed",
            counts_what_waits,
        ),
        Case::new(
            "state::counts_what_is_delayed",
            &[],
            "delayed: waiting for their time",
            counts_what_is_delayed,
        )
        .needs(&[Feature::Delay]),
        Case::new(
            "state::counts_what_is_unsettled",
            &[6],
            "active: jobs in this process; in_flight: delivered to any consumer",
            counts_what_is_unsettled,
        ),
        Case::new(
            "state::counts_what_is_dead",
            &[],
            "dead: rejected jobs that are kept",
            counts_what_is_dead,
        ),
        Case::new(
            "state::holds_up_no_delivery",
            &[],
            "a bounded round trip that never holds up deliveries",
            holds_up_no_delivery,
        ),
    ]
}

/// A figure that the broker cannot tell matches any.
fn is(figure: Option<u64>, expected: u64) -> bool {
    figure.is_none_or(|figure| figure == expected)
}

async fn names_the_pipeline(fx: Fixture) -> CaseResult {
    let config = fx.configure().await?.with_priority(3);
    let pipeline = fx.connect(config).await?;
    let state = pipeline.state().await?;
    assert_eq!(&*state.pipeline, pipeline.config().name());
    assert_eq!(state.driver, pipeline.config().driver());
    assert_eq!(state.priority, 3);
    assert!(!state.queue.is_empty());
    Ok(())
}

async fn ready_means_consuming(fx: Fixture) -> CaseResult {
    let pipeline = fx.connect(fx.configure().await?).await?;
    assert!(!pipeline.state().await?.ready, "not run yet");
    pipeline.run().await?;
    pipeline.expect_state("running", |state| state.ready).await?;
    pipeline.pause().await?;
    assert!(!pipeline.state().await?.ready, "paused");
    pipeline.resume().await?;
    pipeline.expect_state("resumed", |state| state.ready).await?;
    Ok(())
}

async fn counts_what_waits(fx: Fixture) -> CaseResult {
    let pipeline = fx.connect(fx.configure_prefetch(7).await?).await?;
    pipeline.push_numbered(7).await?;
    let waiting = |state: &State| {
        is(state.reserved, 7) && is(state.in_flight, 0) && is(state.delayed, 0) && state.active == 0
    };
    pipeline.expect_state("7 wait", waiting).await?;
    pipeline.run().await?;
    let jobs = pipeline.take(7).await?;
    let consumed = |state: &State| is(state.reserved, 0) && is(state.in_flight, 7);
    pipeline.expect_state("7 consumed", consumed).await?;
    for job in jobs {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn counts_what_is_delayed(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let longest = pipeline.driver().capabilities().max_delay.unwrap_or(Duration::MAX);
    let delay = longest.min(Duration::from_secs(600));
    for _ in 0..3 {
        pipeline.push(fx.message("later").with_delay(delay)).await?;
    }
    let delayed = |state: &State| {
        is(state.delayed, 3) && is(state.reserved, 0) && is(state.in_flight, 0) && state.active == 0
    };
    pipeline.expect_state("3 delayed", delayed).await?;
    pipeline.expect_quiet().await?;
    Ok(())
}

async fn counts_what_is_unsettled(fx: Fixture) -> CaseResult {
    let pipeline = fx.start(fx.configure_prefetch(4).await?).await?;
    pipeline.push_numbered(10).await?;
    let mut held = pipeline.take(4).await?;
    let figures = |active: u64, waiting: u64| {
        move |state: &State| {
            state.active == active
                && is(state.in_flight, active)
                && is(state.reserved, waiting)
                && is(state.delayed, 0)
        }
    };
    pipeline.expect_state("4 held, 6 wait", figures(4, 6)).await?;
    pipeline.pause().await?;
    held.pop().expect("four").ack().await?;
    pipeline.expect_state("3 held, 6 wait", figures(3, 6)).await?;
    held.pop().expect("three").release().await?;
    pipeline.expect_state("2 held, 7 wait", figures(2, 7)).await?;
    held.pop().expect("two").requeue(Duration::ZERO).await?;
    pipeline.expect_state("1 held, 8 wait", figures(1, 8)).await?;
    drop(held);
    pipeline.expect_state("9 wait", figures(0, 9)).await?;
    pipeline.resume().await?;
    pipeline.ack_next(9).await?;
    pipeline.expect_state("nothing", figures(0, 0)).await?;
    Ok(())
}

async fn counts_what_is_dead(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let kept = pipeline.driver().capabilities().reject.is_available();
    pipeline.push_numbered(3).await?;
    for done in 1..=3 {
        pipeline.next().await?.reject().await?;
        if kept {
            pipeline.expect_state("the rejected", |state| is(state.dead, done)).await?;
        }
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn holds_up_no_delivery(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let asking = pipeline.clone();
    let asker = tokio::spawn(async move {
        for _ in 0..50 {
            asking.state().await?;
        }
        Ok::<_, jobs_core::Error>(())
    });
    pipeline.push_numbered(50).await?;
    pipeline.ack_next(50).await?;
    fx.within("50 states", asker).await???;
    pipeline.expect_empty().await?;
    Ok(())
}
