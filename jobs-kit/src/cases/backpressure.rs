//! Bounds on what is in the process and in the queue.

use std::time::{Duration, Instant};

use jobs_core::ErrorKind;

use super::{sorted, text};
use crate::{Case, CaseResult, Feature, Fixture};

const CAPACITY: u32 = 3;

pub(super) fn cases() -> Vec<Case> {
    const NEEDS: &[Feature] = &[Feature::Capacity];
    vec![
        Case::new(
            "backpressure::prefetch_1_is_never_exceeded",
            &[6],
            "jobs in the process never exceed prefetch",
            |fx| prefetch_is_never_exceeded(fx, 1),
        ),
        Case::new(
            "backpressure::prefetch_7_is_never_exceeded",
            &[6],
            "jobs in the process never exceed prefetch",
            |fx| prefetch_is_never_exceeded(fx, 7),
        ),
        Case::new(
            "backpressure::a_credit_comes_back_with_every_outcome",
            &[6],
            "settling, refusing and dropping free the credit, each once",
            a_credit_comes_back_with_every_outcome,
        ),
        Case::new(
            "backpressure::a_full_queue_throttles",
            &[1],
            "a push waits for room up to push_timeout, then fails as Throttled, not stored",
            a_full_queue_throttles,
        )
        .needs(NEEDS),
        Case::new(
            "backpressure::a_batch_waits_once",
            &[1],
            "push_batch waits for room up to push_timeout, however many messages it has",
            a_batch_waits_once,
        )
        .needs(NEEDS),
        Case::new(
            "backpressure::a_waiting_push_goes_through",
            &[1],
            "a push that waits goes through when a job is settled",
            a_waiting_push_goes_through,
        )
        .needs(NEEDS),
        Case::new(
            "backpressure::a_full_queue_settles",
            &[4],
            "a full queue delays no settlement: requeue and release need no room",
            a_full_queue_settles,
        )
        .needs(NEEDS),
        Case::new(
            "backpressure::stop_ends_a_waiting_push",
            &[10],
            "stop answers a push that waits for room",
            stop_ends_a_waiting_push,
        )
        .needs(NEEDS),
    ]
}

async fn prefetch_is_never_exceeded(fx: Fixture, prefetch: u32) -> CaseResult {
    let pipeline = fx.start(fx.configure_prefetch(prefetch).await?).await?;
    let credits = usize::try_from(prefetch)?;
    let pushed = pipeline.push_numbered(credits * 3).await?;
    let mut held = pipeline.take(credits).await?;
    let mut found = Vec::new();
    while found.len() < pushed.len() - credits {
        pipeline.expect_quiet().await?;
        assert_eq!(pipeline.state().await?.active, u64::from(prefetch), "with all credits out");
        let job = held.pop().expect("as many as credits");
        found.push(job.id().clone());
        job.ack().await?;
        held.push(pipeline.next().await?);
    }
    for job in held {
        found.push(job.id().clone());
        job.ack().await?;
    }
    assert_eq!(sorted(found), sorted(pushed));
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_credit_comes_back_with_every_outcome(fx: Fixture) -> CaseResult {
    let pipeline = fx.start(fx.configure_prefetch(1).await?).await?;
    pipeline.push_numbered(3).await?;
    for turn in 0..12 {
        let job = pipeline.next().await?;
        match turn % 3 {
            0 => job.requeue(Duration::ZERO).await?,
            1 => job.release().await?,
            _ => drop(job),
        }
    }
    pipeline.next().await?.reject().await?;
    pipeline.ack_next(2).await?;
    // If a credit came back twice, two jobs would be here at once.
    pipeline.push_numbered(2).await?;
    let held = pipeline.next().await?;
    pipeline.expect_quiet().await?;
    held.ack().await?;
    pipeline.ack_next(1).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_full_queue_throttles(fx: Fixture) -> CaseResult {
    const WAIT: Duration = Duration::from_millis(300);
    let pipeline = fx.connect(fx.configure_capacity(CAPACITY, WAIT).await?).await?;
    pipeline.push_numbered(3).await?;
    let start = Instant::now();
    let error = pipeline.push(fx.message("too many")).await.expect_err("the queue is full");
    assert!(start.elapsed() >= WAIT, "after {:?}, not {WAIT:?}", start.elapsed());
    assert_eq!(error.kind(), ErrorKind::Throttled, "{error}");
    assert!(error.is_retryable() && !error.may_be_stored(), "{error:?}");
    for answer in pipeline.push_batch(vec![fx.message("too many"), fx.message("too many")]).await {
        let error = answer.expect_err("the queue is full");
        assert_eq!(error.kind(), ErrorKind::Throttled, "{error}");
    }
    pipeline.run().await?;
    for job in pipeline.take(3).await? {
        assert_ne!(text(&job), "too many");
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    pipeline.push(fx.message("there is room")).await?;
    pipeline.ack_next(1).await?;
    Ok(())
}

async fn a_batch_waits_once(fx: Fixture) -> CaseResult {
    // One after another these would wait twice as long as the kit does.
    const MESSAGES: u32 = 50;
    let push_timeout = fx.deadline() * 2 / MESSAGES;
    let pipeline = fx.connect(fx.configure_capacity(CAPACITY, push_timeout).await?).await?;
    pipeline.push_numbered(3).await?;
    let messages = (0..MESSAGES).map(|_| fx.message("too many")).collect();
    let answers = fx.within("a batch on a full queue", pipeline.push_batch(messages)).await?;
    for answer in answers {
        let error = answer.expect_err("the queue is full");
        assert_eq!(error.kind(), ErrorKind::Throttled, "{error}");
    }
    pipeline.run().await?;
    pipeline.ack_next(3).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_waiting_push_goes_through(fx: Fixture) -> CaseResult {
    let pipeline = fx.start(fx.configure_capacity(CAPACITY, fx.deadline()).await?).await?;
    pipeline.push_numbered(3).await?;
    let waiting = pipeline.clone();
    let message = fx.message("waited");
    let push = tokio::spawn(async move { waiting.push(message).await });
    let mut held = pipeline.take(3).await?;
    pipeline.expect_quiet().await?;
    assert!(!push.is_finished(), "three unsettled jobs fill the queue");
    held.pop().expect("three").ack().await?;
    fx.within("the push that waited", push).await???;
    let job = pipeline.next().await?;
    assert_eq!(text(&job), "waited");
    job.ack().await?;
    for job in held {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_full_queue_settles(fx: Fixture) -> CaseResult {
    let pipeline = fx.start(fx.configure_capacity(CAPACITY, fx.deadline()).await?).await?;
    pipeline.push_numbered(3).await?;
    for turn in 0..9 {
        let job = pipeline.next().await?;
        let settled = if turn % 2 == 0 { job.requeue(Duration::ZERO) } else { job.release() };
        fx.within("settling on a full queue", settled).await??;
    }
    pipeline.ack_next(3).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn stop_ends_a_waiting_push(fx: Fixture) -> CaseResult {
    let pipeline = fx.connect(fx.configure_capacity(CAPACITY, fx.deadline() * 2).await?).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    pipeline.push_numbered(3).await?;
    let waiting = pipeline.clone();
    let message = fx.message("never stored");
    let push = tokio::spawn(async move { waiting.push(message).await });
    pipeline.expect_quiet().await?;
    pipeline.stop().await?;
    let answer = fx.within("the push that waited", push).await??;
    fx.expect_refused(answer, ErrorKind::Closed)?;
    second.run().await?;
    for job in second.take(3).await? {
        assert_ne!(text(&job), "never stored");
        job.ack().await?;
    }
    second.expect_empty().await?;
    Ok(())
}
