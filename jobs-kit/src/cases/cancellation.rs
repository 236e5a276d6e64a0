//! Dropping each future at each await.

use std::time::Duration;

use jobs_core::{Job, JobId, Outcome};

use super::{sorted, text};
use crate::{Case, CaseError, CaseResult, Feature, Fixture, TestPipeline};

/// Polls after which a future is dropped; one that is ready sooner is done.
const POLLS: std::ops::Range<usize> = 0..6;

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "cancellation::pop_loses_nothing",
            &[1],
            "pop is cancel safe: no job is lost and no wake-up swallowed",
            pop_loses_nothing,
        ),
        Case::new(
            "cancellation::push_affects_nothing_else",
            &[1],
            "after a drop the message may or may not be stored; nothing else is affected",
            push_affects_nothing_else,
        ),
        Case::new(
            "cancellation::push_batch_affects_nothing_else",
            &[1],
            "per message as for push",
            push_batch_affects_nothing_else,
        ),
        Case::new(
            "cancellation::a_waiting_push_stores_nothing",
            &[1],
            "a push dropped while it waits for room takes no room",
            a_waiting_push_stores_nothing,
        )
        .needs(&[Feature::Capacity]),
        Case::new(
            "cancellation::settle_takes_effect_all_the_same",
            &[2, 4],
            "the outcome is handed over synchronously; dropping the future withdraws nothing",
            settle_takes_effect_all_the_same,
        ),
        Case::new(
            "cancellation::extend_harms_nothing",
            &[],
            "the request is handed over at once; the future waits for the answer",
            extend_harms_nothing,
        ),
        Case::new(
            "cancellation::run_can_be_stopped",
            &[3, 10],
            "run is not cancel safe: after a drop call stop, and nothing is lost",
            run_can_be_stopped,
        ),
        Case::new(
            "cancellation::pause_can_be_called_again",
            &[3],
            "a dropped pause loses nothing, and pausing again completes it",
            pause_can_be_called_again,
        ),
        Case::new(
            "cancellation::resume_can_be_called_again",
            &[3],
            "a dropped resume loses nothing, and resuming again completes it",
            resume_can_be_called_again,
        ),
        Case::new(
            "cancellation::stop_continues",
            &[3, 10],
            "a dropped stop continues when it is called again",
            stop_continues,
        ),
        Case::new("cancellation::state_is_safe", &[], "state is cancel safe", state_is_safe),
    ]
}

async fn pop_loses_nothing(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let mut pushed = Vec::new();
    let mut found: Vec<JobId> = Vec::new();
    for polls in POLLS {
        let message = fx.message("popped");
        pushed.push(message.id().clone());
        // One waits before the job comes, the other after.
        let before = fx.cancel_after(polls, pipeline.queue().pop());
        let (job, stored) = tokio::join!(before, pipeline.push(message));
        stored?;
        found.extend(ack(job.flatten()).await?);
        found.extend(ack(fx.cancel_after(polls, pipeline.queue().pop()).await.flatten()).await?);
    }
    found.extend(pipeline.ack_next(pushed.len() - found.len()).await?);
    assert_eq!(sorted(found), sorted(pushed));
    pipeline.expect_empty().await?;
    woken_and_dropped(&fx, &pipeline).await
}

/// Two wait; the one that is woken goes away: the other must get the job.
async fn woken_and_dropped(fx: &Fixture, pipeline: &TestPipeline) -> CaseResult {
    let first = pipeline.queue().pop();
    let mut first = Box::pin(first);
    assert!(fx.cancel_after(1, &mut first).await.is_none());
    let waiting = pipeline.clone();
    let second = tokio::spawn(async move { waiting.next().await });
    pipeline.push(fx.message("for the second")).await?;
    fx.eventually("the job in the lane", async || match pipeline.queue().len() {
        0 if !second.is_finished() => Err("none".to_owned()),
        _ => Ok(()),
    })
    .await?;
    drop(first);
    fx.within("the one that waits", second).await???.ack().await?;
    Ok(())
}

async fn ack(job: Option<Job>) -> Result<Option<JobId>, CaseError> {
    let Some(job) = job else { return Ok(None) };
    let id = job.id().clone();
    job.ack().await?;
    Ok(Some(id))
}

async fn push_affects_nothing_else(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let (mut stored, mut uncertain) = (Vec::new(), Vec::new());
    for polls in POLLS {
        let message = fx.message("cancelled");
        let id = message.id().clone();
        match fx.cancel_after(polls, pipeline.push(message)).await {
            Some(answer) => {
                answer?;
                stored.push(id);
            }
            None => uncertain.push(id),
        }
        let message = fx.message("next");
        stored.push(message.id().clone());
        pipeline.push(message).await?;
    }
    expect_stored(&pipeline, &stored, &uncertain).await
}

async fn push_batch_affects_nothing_else(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let (mut stored, mut uncertain) = (Vec::new(), Vec::new());
    for polls in POLLS {
        let messages: Vec<_> = (0..5).map(|_| fx.message("cancelled")).collect();
        let batch = messages.iter().map(|message| message.id().clone());
        match fx.cancel_after(polls, pipeline.push_batch(messages.clone())).await {
            Some(answers) => {
                answers.into_iter().collect::<Result<(), _>>()?;
                stored.extend(batch);
            }
            None => uncertain.extend(batch),
        }
        stored.extend(pipeline.push_numbered(1).await?);
    }
    expect_stored(&pipeline, &stored, &uncertain).await
}

/// Demands what is stored, once, and of the rest at most once.
async fn expect_stored(
    pipeline: &TestPipeline,
    stored: &[JobId],
    uncertain: &[JobId],
) -> CaseResult {
    let found = sorted(pipeline.drain(stored.len()).await?);
    let mut once = found.clone();
    once.dedup();
    assert_eq!(found, once, "no job twice");
    for id in stored {
        assert!(found.contains(id), "a push that returned Ok is lost");
    }
    for id in &found {
        assert!(stored.contains(id) || uncertain.contains(id), "{id} was never pushed");
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_waiting_push_stores_nothing(fx: Fixture) -> CaseResult {
    let pipeline = fx.start(fx.configure_capacity(2, fx.deadline()).await?).await?;
    pipeline.push_numbered(2).await?;
    let held = pipeline.take(2).await?;
    for polls in POLLS {
        let push = pipeline.push(fx.message("cancelled"));
        assert!(fx.cancel_after(polls, push).await.is_none(), "the queue is full");
        let batch = pipeline.push_batch(vec![fx.message("cancelled"), fx.message("cancelled")]);
        assert!(fx.cancel_after(polls, batch).await.is_none(), "the queue is full");
    }
    for job in held {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    // Room that a dropped push kept would be missing now.
    pipeline.push_numbered(2).await?;
    pipeline.ack_next(2).await?;
    Ok(())
}

async fn settle_takes_effect_all_the_same(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(3).await?;
    for polls in POLLS {
        let pushed = pipeline.push_numbered(3).await?;
        let mut kept = Vec::new();
        for (index, job) in pipeline.take(3).await?.into_iter().enumerate() {
            let outcome = match index {
                0 => Outcome::Ack,
                1 => Outcome::Reject,
                _ => Outcome::requeue(),
            };
            if index == 2 {
                kept.push(job.id().clone());
            }
            if let Some(answer) = fx.cancel_after(polls, job.settle(outcome)).await {
                answer?;
            }
        }
        assert!(pushed.contains(&kept[0]));
        assert_eq!(pipeline.ack_next(1).await?, kept, "only the requeued one comes back");
        pipeline.expect_empty().await?;
    }
    Ok(())
}

async fn extend_harms_nothing(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    for polls in POLLS {
        pipeline.push(fx.message("held")).await?;
        let job = pipeline.next().await?;
        drop(fx.cancel_after(polls, job.extend(Duration::from_secs(30))).await);
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn run_can_be_stopped(fx: Fixture) -> CaseResult {
    let second = fx.connect(fx.configure().await?).await?;
    let pushed = second.push_numbered(5).await?;
    for polls in POLLS {
        let pipeline = fx.connect(second.config().clone()).await?;
        drop(fx.cancel_after(polls, pipeline.run()).await);
        fx.within("stop after a cancelled run", pipeline.stop()).await??;
        assert!(pipeline.queue().is_empty());
    }
    second.run().await?;
    assert_eq!(sorted(second.ack_next(5).await?), sorted(pushed));
    second.expect_empty().await?;
    Ok(())
}

async fn pause_can_be_called_again(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    for polls in POLLS {
        let pushed = pipeline.push_numbered(5).await?;
        drop(fx.cancel_after(polls, pipeline.pause()).await);
        fx.within("pause after a cancelled pause", pipeline.pause()).await??;
        assert!(pipeline.queue().is_empty(), "what nobody popped was given back");
        pipeline.expect_quiet().await?;
        pipeline.resume().await?;
        assert_eq!(sorted(pipeline.ack_next(5).await?), sorted(pushed));
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn resume_can_be_called_again(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    for polls in POLLS {
        pipeline.pause().await?;
        let pushed = pipeline.push_numbered(5).await?;
        drop(fx.cancel_after(polls, pipeline.resume()).await);
        fx.within("resume after a cancelled resume", pipeline.resume()).await??;
        assert_eq!(sorted(pipeline.ack_next(5).await?), sorted(pushed));
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn stop_continues(fx: Fixture) -> CaseResult {
    let second = fx.connect(fx.configure().await?).await?;
    let pushed = second.push_numbered(5).await?;
    for polls in POLLS {
        let pipeline = fx.start(second.config().clone()).await?;
        let held = pipeline.next().await?;
        drop(fx.cancel_after(polls, pipeline.stop()).await);
        fx.within("stop after a cancelled stop", pipeline.stop()).await??;
        assert!(pipeline.queue().is_empty());
        drop(held);
    }
    second.run().await?;
    assert_eq!(sorted(second.ack_next(5).await?), sorted(pushed));
    second.expect_empty().await?;
    Ok(())
}

async fn state_is_safe(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    for polls in POLLS {
        if let Some(state) = fx.cancel_after(polls, pipeline.state()).await {
            state?;
        }
        pipeline.push(fx.message("goes on")).await?;
        let job = pipeline.next().await?;
        assert_eq!(text(&job), "goes on");
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}
