//! Delivering later.

use std::time::{Duration, Instant, SystemTime};

use jobs_core::ErrorKind;

use super::{sorted, text};
use crate::{Case, CaseResult, Feature, Fixture};

const DELAY: Duration = Duration::from_millis(400);
/// What the clock on the wall may differ from the other one.
const CLOCKS: Duration = Duration::from_millis(10);

pub(super) fn cases() -> Vec<Case> {
    const NEEDS: &[Feature] = &[Feature::Delay];
    vec![
        Case::new(
            "delay::not_before_its_time",
            &[1],
            "a delay counts from acceptance and is rounded up, never down",
            not_before_its_time,
        )
        .needs(NEEDS),
        Case::new(
            "delay::a_due_time_is_a_delay",
            &[1],
            "a job is delivered no sooner than its due time",
            a_due_time_is_a_delay,
        )
        .needs(NEEDS),
        Case::new(
            "delay::a_past_due_time_is_no_delay",
            &[1],
            "a due time in the past is no delay, on any pipeline",
            a_past_due_time_is_no_delay,
        ),
        Case::new(
            "delay::does_not_block_others",
            &[1],
            "a long delay holds up neither jobs without one nor shorter ones",
            does_not_block_others,
        )
        .needs(NEEDS),
        Case::new(
            "delay::runs_without_a_consumer",
            &[1],
            "a delay counts from acceptance, also while nobody consumes",
            runs_without_a_consumer,
        )
        .needs(NEEDS),
        Case::new(
            "delay::counts_no_attempt",
            &[2],
            "a delayed job is delivered once, as its first attempt",
            counts_no_attempt,
        )
        .needs(NEEDS),
        Case::new(
            "delay::too_long_is_refused",
            &[8],
            "a delay beyond the limit is refused before any I/O",
            too_long_is_refused,
        )
        .needs(NEEDS),
    ]
}

async fn not_before_its_time(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    for delay in [Duration::from_millis(1), DELAY, DELAY * 3] {
        let start = Instant::now();
        pipeline.push(fx.message("later").with_delay(delay)).await?;
        let job = pipeline.next().await?;
        assert!(start.elapsed() >= delay, "after {:?}, not {delay:?}", start.elapsed());
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_due_time_is_a_delay(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let due = SystemTime::now() + DELAY;
    pipeline.push(fx.message("due").with_due(due)).await?;
    let job = pipeline.next().await?;
    assert!(SystemTime::now() + CLOCKS >= due, "before its time");
    job.ack().await?;
    Ok(())
}

async fn a_past_due_time_is_no_delay(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push(fx.message("overdue").with_due(SystemTime::UNIX_EPOCH)).await?;
    let job = pipeline.next().await?;
    assert_eq!(text(&job), "overdue");
    job.ack().await?;
    Ok(())
}

async fn does_not_block_others(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let longest = pipeline.driver().capabilities().max_delay.unwrap_or(Duration::from_secs(3600));
    let hour = longest.min(Duration::from_secs(3600));
    pipeline.push(fx.message("an hour").with_delay(hour)).await?;
    pipeline.push(fx.message("soon").with_delay(DELAY)).await?;
    pipeline.push(fx.message("now")).await?;
    let mut found = Vec::new();
    for _ in 0..2 {
        let job = pipeline.next().await?;
        found.push(text(&job));
        job.ack().await?;
    }
    found.sort();
    assert_eq!(found, ["now", "soon"]);
    pipeline.expect_quiet().await?;
    Ok(())
}

async fn runs_without_a_consumer(fx: Fixture) -> CaseResult {
    let pipeline = fx.connect(fx.configure().await?).await?;
    let start = Instant::now();
    pipeline.push(fx.message("later").with_delay(DELAY)).await?;
    pipeline.run().await?;
    let job = pipeline.next().await?;
    assert!(start.elapsed() >= DELAY, "after {:?}, not {DELAY:?}", start.elapsed());
    job.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn counts_no_attempt(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let mut pushed = Vec::new();
    for _ in 0..5 {
        let message = fx.message("later").with_delay(DELAY);
        pushed.push(message.id().clone());
        pipeline.push(message).await?;
    }
    let mut found = Vec::new();
    for _ in 0..5 {
        let job = pipeline.next().await?;
        assert_eq!(job.attempt(), 1, "{job:?}");
        found.push(job.id().clone());
        job.ack().await?;
    }
    assert_eq!(sorted(found), sorted(pushed));
    pipeline.expect_empty().await?;
    Ok(())
}

async fn too_long_is_refused(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let Some(longest) = pipeline.driver().capabilities().max_delay else { return Ok(()) };
    for delay in [longest + Duration::from_millis(1), Duration::MAX] {
        let answer = pipeline.push(fx.message("too long").with_delay(delay)).await;
        fx.expect_refused(answer, ErrorKind::Unsupported)?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}
