//! Calls that are made while the broker is away.

use std::time::{Duration, Instant};

use jobs_core::{ErrorKind, Lease, State};

use super::reconnect::{ack_until_found, expect_lease_lost};
use crate::{Case, CaseError, CaseResult, Fault, Feature, Fixture, Unexpected};

pub(super) fn cases() -> Vec<Case> {
    const CUT: &[Feature] = &[Feature::Fault(Fault::Cut)];
    const STALL: &[Feature] = &[Feature::Fault(Fault::Stall)];
    vec![
        Case::new(
            "outage::a_push_waits_for_the_broker",
            &[1],
            "a push waits while the broker is gone, at most push_timeout",
            a_push_waits,
        )
        .needs(CUT),
        Case::new(
            "outage::a_push_fails_in_time",
            &[1],
            "a push that waited for push_timeout fails as transient, and says if it may be stored",
            a_push_fails_in_time,
        )
        .needs(CUT),
        Case::new(
            "outage::settling_is_refused",
            &[2, 3, 7],
            "while reconnecting: settling is LeaseLost; the job comes back",
            settling_is_refused,
        )
        .needs(CUT),
        Case::new(
            "outage::state_is_unknown_when_cut_off",
            &[],
            "while reconnecting state is a transient error, or has no figures",
            |fx| state_is_unknown(fx, Fault::Cut),
        )
        .needs(CUT),
        Case::new(
            "outage::state_is_bounded_when_silent",
            &[],
            "state is a bounded round trip, also when the broker is silent",
            |fx| state_is_unknown(fx, Fault::Stall),
        )
        .needs(STALL),
        Case::new(
            "outage::pause_takes_effect",
            &[9],
            "reconnecting: pause → paused, until resume",
            pause_takes_effect,
        )
        .needs(CUT),
        Case::new(
            "outage::resume_takes_effect",
            &[9],
            "reconnecting: resume → running, when the broker is back",
            resume_takes_effect,
        )
        .needs(CUT),
        Case::new(
            "outage::stop_is_bounded_when_killed",
            &[3, 10],
            "stop is bounded by a deadline, also when the broker is dead",
            |fx| stop_is_bounded(fx, Fault::Kill),
        )
        .needs(&[Feature::Fault(Fault::Kill)]),
        Case::new(
            "outage::stop_is_bounded_when_cut_off",
            &[3, 10],
            "stop is bounded by a deadline, also while reconnecting",
            |fx| stop_is_bounded(fx, Fault::Cut),
        )
        .needs(CUT),
        Case::new(
            "outage::stop_is_bounded_when_silent",
            &[3, 10],
            "stop is bounded by a deadline, also when the broker is silent",
            |fx| stop_is_bounded(fx, Fault::Stall),
        )
        .needs(STALL),
    ]
}

/// What a call that says it is bounded may take.
fn bound(fx: &Fixture) -> Duration {
    fx.deadline().min(Duration::from_secs(15))
}

async fn bounded<T>(
    fx: &Fixture,
    what: &str,
    call: impl Future<Output = T>,
) -> Result<T, Unexpected> {
    crate::wait::within(bound(fx), what, call).await
}

async fn a_push_waits(fx: Fixture) -> CaseResult {
    let config = fx.harness().with_push_timeout(fx.configure().await?, fx.deadline());
    let pipeline = fx.start(config).await?;
    fx.begin(Fault::Cut).await?;
    let message = fx.message("waits");
    let (waiting, waits) = (pipeline.clone(), message.clone());
    let push = tokio::spawn(async move {
        loop {
            match waiting.push(waits.clone()).await {
                // It was on its way before the driver noticed: only then may it give up early.
                Err(error) if error.is_retryable() && error.may_be_stored() => {}
                answer => break answer,
            }
        }
    });
    pipeline.expect_quiet().await?;
    assert!(!push.is_finished(), "a push waits while the broker is gone");
    fx.end(Fault::Cut).await?;
    fx.within("the push that waited", push).await???;
    ack_until_found(&pipeline, vec![message.id().clone()]).await
}

async fn a_push_fails_in_time(fx: Fixture) -> CaseResult {
    const WAIT: Duration = Duration::from_millis(500);
    const PUSHES: usize = 3;
    let config = fx.harness().with_push_timeout(fx.configure().await?, WAIT);
    let pipeline = fx.start(config).await?;
    fx.begin(Fault::Cut).await?;
    let (mut refused, mut last) = (Vec::new(), None);
    for _ in 0..PUSHES {
        let message = fx.message("fails");
        let id = message.id().clone();
        let start = Instant::now();
        let error = bounded(&fx, "a push", pipeline.push(message)).await?.expect_err("no broker");
        let kinds = [ErrorKind::Throttled, ErrorKind::Connection, ErrorKind::Timeout];
        assert!(kinds.contains(&error.kind()) && error.is_retryable(), "{error:?}");
        if !error.may_be_stored() {
            refused.push(id);
        }
        last = Some((error, start.elapsed()));
    }
    let (error, waited) = last.expect("some pushes");
    assert!(!error.may_be_stored(), "no connection to send it on: {error:?}");
    assert!(waited >= WAIT, "after {waited:?}, not {WAIT:?}: {error:?}");
    fx.end(Fault::Cut).await?;
    let sent = pipeline.push_eventually(1).await?;
    let found = pipeline.drain(1).await?;
    assert!(found.contains(&sent[0]), "{found:?}");
    for id in refused {
        assert!(!found.contains(&id), "{id} was certainly not stored");
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn settling_is_refused(fx: Fixture) -> CaseResult {
    // What is held until its receipt is refused has a credit, and its next delivery needs another.
    let pipeline = fx.pipeline_of(4).await?;
    let capabilities = pipeline.driver().capabilities();
    if capabilities.lease != Lease::Connection {
        return Err(CaseError::ignored("leases of this configuration outlive a connection"));
    }
    let pushed = pipeline.push_numbered(2).await?;
    let mut held = pipeline.take(2).await?;
    fx.begin(Fault::Cut).await?;
    let during = held.pop().expect("two");
    match fx.within("settling during an outage", during.ack()).await? {
        Err(refused) => assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}"),
        Ok(()) => assert!(!capabilities.acks_confirmed, "nobody was there to confirm it"),
    }
    fx.end(Fault::Cut).await?;
    let again = pipeline.take(2).await?;
    assert_eq!(super::sorted(super::ids(&again)), super::sorted(pushed), "both come back");
    expect_lease_lost(held).await;
    pipeline.expect_quiet().await?;
    for job in again {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn state_is_unknown(fx: Fixture, fault: Fault) -> CaseResult {
    let pipeline = fx.connect(fx.configure().await?).await?;
    pipeline.push_numbered(3).await?;
    let waiting = |state: &State| state.reserved.is_none_or(|jobs| jobs == 3);
    pipeline.expect_state("3 wait", waiting).await?;
    fx.begin(fault).await?;
    for _ in 0..3 {
        match bounded(&fx, "state", pipeline.state()).await? {
            Ok(state) => {
                let figures = [state.reserved, state.delayed, state.in_flight];
                assert_eq!(figures, [None; 3], "who told? {state:?}");
            }
            Err(error) => assert!(error.is_retryable(), "an outage passes: {error:?}"),
        }
    }
    fx.end(fault).await?;
    pipeline.expect_state("3 wait still", waiting).await?;
    Ok(())
}

async fn pause_takes_effect(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push_numbered(1).await?;
    pipeline.ack_next(1).await?;
    fx.begin(Fault::Cut).await?;
    // If giving back fails the pipeline is paused all the same.
    if let Err(error) = bounded(&fx, "pause", pipeline.pause()).await? {
        assert!(error.is_retryable(), "an outage passes: {error:?}");
    }
    fx.end(Fault::Cut).await?;
    let pushed = pipeline.push_eventually(5).await?;
    pipeline.expect_quiet().await?;
    pipeline.resume_eventually().await?;
    ack_until_found(&pipeline, pushed).await
}

async fn resume_takes_effect(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.pause().await?;
    let pushed = pipeline.push_numbered(5).await?;
    fx.begin(Fault::Cut).await?;
    let resumed = bounded(&fx, "resume", pipeline.resume()).await?;
    fx.end(Fault::Cut).await?;
    if let Err(error) = resumed {
        assert!(error.is_retryable(), "an outage passes: {error:?}");
        pipeline.resume_eventually().await?;
    }
    ack_until_found(&pipeline, pushed).await
}

async fn stop_is_bounded(fx: Fixture, fault: Fault) -> CaseResult {
    let pipeline = fx.pipeline_of(2).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    let pushed = pipeline.push_numbered(5).await?;
    let held = pipeline.take(2).await?;
    fx.prepare(fault).await?;
    fx.begin(fault).await?;
    // What could not be flushed is its answer; it stops all the same.
    drop(bounded(&fx, "stop", pipeline.stop()).await?);
    bounded(&fx, "a second stop", pipeline.stop()).await??;
    fx.expect_refused(pipeline.push(fx.message("late")).await, ErrorKind::Closed)?;
    fx.expect_refused(pipeline.pause().await, ErrorKind::Closed)?;
    fx.expect_refused(pipeline.resume().await, ErrorKind::Closed)?;
    fx.expect_refused(pipeline.state().await, ErrorKind::Closed)?;
    for job in held {
        let Err(refused) = job.ack().await else { panic!("a stopped driver took a settlement") };
        let kind = refused.error().kind();
        assert!(matches!(kind, ErrorKind::LeaseLost | ErrorKind::Closed), "{refused}");
    }
    fx.end(fault).await?;
    if fault == Fault::Kill && !second.driver().capabilities().durable {
        return Ok(());
    }
    second.run_eventually().await?;
    ack_until_found(&second, pushed).await
}
