//! Many messages in one call.

use std::time::{Duration, Instant};

use jobs_core::{ErrorKind, JobId};

use super::{sorted, text};
use crate::{Case, CaseResult, Feature, Fixture};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "batch::stores_every_message",
            &[1],
            "push_batch: one result per message; Ok means stored",
            stores_every_message,
        ),
        Case::new(
            "batch::a_bad_message_fails_alone",
            &[8],
            "a bad message fails alone, and the answers are in the order of the messages",
            a_bad_message_fails_alone,
        ),
        Case::new(
            "batch::empty_answers_empty",
            &[8],
            "an empty batch answers an empty list",
            empty_answers_empty,
        ),
        Case::new(
            "batch::is_split_at_the_limits",
            &[1],
            "batches larger than the broker takes are split",
            is_split_at_the_limits,
        ),
        Case::new(
            "batch::keeps_delays_apart",
            &[1],
            "each message of a batch has its own delay",
            keeps_delays_apart,
        )
        .needs(&[Feature::Delay]),
    ]
}

async fn stores_every_message(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let messages: Vec<_> = (0..10).map(|number| fx.message(number.to_string())).collect();
    let pushed: Vec<JobId> = messages.iter().map(|message| message.id().clone()).collect();
    let answers = pipeline.push_batch(messages).await;
    assert_eq!(answers.len(), 10);
    for answer in answers {
        answer?;
    }
    assert_eq!(sorted(pipeline.ack_next(10).await?), sorted(pushed));
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_bad_message_fails_alone(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let messages = vec![
        fx.message("first"),
        fx.message("bad").with_id(""),
        fx.message("second"),
        fx.message("bad").with_header("a\nb", "x"),
        fx.message("third"),
    ];
    let answers = pipeline.push_batch(messages).await;
    let good: Vec<_> = answers.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, false, true, false, true], "{answers:?}");
    for refused in answers.into_iter().filter(Result::is_err) {
        fx.expect_refused(refused, ErrorKind::InvalidMessage)?;
    }
    let mut found = Vec::new();
    for _ in 0..3 {
        let job = pipeline.next().await?;
        found.push(text(&job));
        job.ack().await?;
    }
    found.sort();
    assert_eq!(found, ["first", "second", "third"]);
    pipeline.expect_empty().await?;
    Ok(())
}

async fn empty_answers_empty(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    assert!(pipeline.push_batch(Vec::new()).await.is_empty());
    pipeline.expect_empty().await?;
    Ok(())
}

async fn is_split_at_the_limits(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let limit = pipeline.driver().capabilities().max_batch.unwrap_or(100);
    let count = (limit * 2 + 1).min(1_000);
    let messages: Vec<_> = (0..count).map(|_| fx.message("x".repeat(1_000))).collect();
    let pushed: Vec<JobId> = messages.iter().map(|message| message.id().clone()).collect();
    let answers = pipeline.push_batch(messages).await;
    assert_eq!(answers.len(), count);
    for answer in answers {
        answer?;
    }
    assert_eq!(sorted(pipeline.ack_next(count).await?), sorted(pushed));
    pipeline.expect_empty().await?;
    Ok(())
}

async fn keeps_delays_apart(fx: Fixture) -> CaseResult {
    const DELAY: Duration = Duration::from_millis(400);
    let pipeline = fx.pipeline().await?;
    let messages = vec![fx.message("later").with_delay(DELAY), fx.message("now")];
    let start = Instant::now();
    for answer in pipeline.push_batch(messages).await {
        answer?;
    }
    let mut found = Vec::new();
    for _ in 0..2 {
        let job = pipeline.next().await?;
        let early = text(&job) == "later" && start.elapsed() < DELAY;
        assert!(!early, "after {:?}, not {DELAY:?}", start.elapsed());
        found.push(text(&job));
        job.ack().await?;
    }
    found.sort();
    assert_eq!(found, ["later", "now"]);
    pipeline.expect_empty().await?;
    Ok(())
}
