//! Run, pause, resume, stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jobs_core::{Error, ErrorKind, Job, JobId, Queue};
use tokio::task::JoinSet;

use super::{ids, sorted, text, workers};
use crate::{Case, CaseResult, Fixture, TestPipeline};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("lifecycle::run_twice_is_refused", &[], "run: twice is InvalidState", run_twice),
        Case::new(
            "lifecycle::resume_before_run_is_refused",
            &[],
            "resume before run is InvalidState; pause has nothing to do",
            resume_before_run,
        ),
        Case::new(
            "lifecycle::paused_hands_nothing_out",
            &[],
            "when pause has returned no job is handed out until resume",
            paused_hands_nothing_out,
        ),
        Case::new(
            "lifecycle::pause_gives_back_what_nobody_popped",
            &[],
            "pause gives back what nobody popped, so that other consumers get it",
            pause_gives_back,
        ),
        Case::new(
            "lifecycle::push_and_settle_go_on_while_paused",
            &[],
            "pushing and settling go on while paused",
            push_and_settle_go_on_while_paused,
        ),
        Case::new(
            "lifecycle::resume_beside_held_jobs_settles_only_what_was_seen",
            &[3, 4],
            "jobs held over a pause and those that came after it are settled one by one",
            resume_beside_held_jobs,
        ),
        Case::new(
            "lifecycle::stop_writes_what_was_settled_before",
            &[2],
            "stop flushes the settlements that were handed over before it",
            stop_writes_what_was_settled,
        ),
        Case::new(
            "lifecycle::pause_and_resume_are_idempotent",
            &[],
            "pause and resume are idempotent",
            pause_and_resume_are_idempotent,
        ),
        Case::new(
            "lifecycle::closed_after_stop",
            &[],
            "afterwards everything but stop answers Closed; stop is idempotent",
            closed_after_stop,
        ),
        Case::new(
            "lifecycle::stop_before_run",
            &[10],
            "idle: stop → stopped; what was pushed stays",
            stop_before_run,
        ),
        Case::new(
            "lifecycle::settle_after_stop_is_refused",
            &[7],
            "receipts of a stopped driver are refused, and the job runs elsewhere",
            settle_after_stop_is_refused,
        ),
        Case::new(
            "lifecycle::stop_answers_pushes_under_way",
            &[1],
            "stop flushes pending pushes: each is answered, and Ok means stored",
            stop_answers_pushes_under_way,
        ),
        Case::new(
            "lifecycle::stop_leaves_no_task",
            &[10],
            "no task outlives stop",
            stop_leaves_no_task,
        ),
    ]
}

async fn run_twice(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let other = Queue::new();
    for _ in 0..2 {
        let again = pipeline.driver().run(other.open_lane(pipeline.config())).await;
        fx.expect_refused(again, ErrorKind::InvalidState)?;
    }
    pipeline.pause().await?;
    fx.expect_refused(pipeline.run().await, ErrorKind::InvalidState)?;
    pipeline.resume().await?;
    pipeline.push(fx.message("arrives where it was run first")).await?;
    pipeline.ack_next(1).await?;
    assert!(other.is_empty());
    Ok(())
}

async fn resume_before_run(fx: Fixture) -> CaseResult {
    let pipeline = fx.connect(fx.configure().await?).await?;
    fx.expect_refused(pipeline.resume().await, ErrorKind::InvalidState)?;
    pipeline.pause().await?;
    pipeline.run().await?;
    pipeline.push(fx.message("arrives")).await?;
    pipeline.ack_next(1).await?;
    Ok(())
}

async fn paused_hands_nothing_out(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let before = pipeline.push_numbered(5).await?;
    pipeline.pause().await?;
    pipeline.expect_quiet().await?;
    let after = pipeline.push_numbered(5).await?;
    pipeline.expect_quiet().await?;
    let paused = |state: &jobs_core::State| !state.ready && state.active == 0;
    pipeline.expect_state("paused with nothing in the process", paused).await?;
    pipeline.resume().await?;
    let pushed = [before, after].concat();
    assert_eq!(sorted(pipeline.ack_next(10).await?), sorted(pushed));
    pipeline.expect_empty().await?;
    Ok(())
}

async fn pause_gives_back(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(5).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    let pushed = pipeline.push_numbered(5).await?;
    let held = pipeline.next().await?;
    pipeline.expect_unpopped(4).await?;
    pipeline.pause().await?;
    assert!(pipeline.queue().is_empty(), "nothing waits in a paused lane");
    second.run().await?;
    let mut found = second.ack_next(4).await?;
    second.expect_quiet().await?;
    found.push(held.id().clone());
    assert_eq!(sorted(found), sorted(pushed), "all but the one that is held");
    held.ack().await?;
    second.expect_empty().await?;
    Ok(())
}

async fn push_and_settle_go_on_while_paused(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(3).await?;
    pipeline.push_numbered(3).await?;
    let mut held = pipeline.take(3).await?;
    pipeline.pause().await?;
    let requeued = held.pop().expect("three");
    let id = requeued.id().clone();
    requeued.requeue(Duration::ZERO).await?;
    for job in held {
        job.ack().await?;
    }
    pipeline.push(fx.message("while paused")).await?;
    pipeline.expect_quiet().await?;
    pipeline.resume().await?;
    let jobs = pipeline.take(2).await?;
    assert!(jobs.iter().any(|job| *job.id() == id), "the requeued one");
    assert!(jobs.iter().any(|job| text(job) == "while paused"));
    for job in jobs {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn pause_and_resume_are_idempotent(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.resume().await?;
    for round in 0..3 {
        pipeline.pause().await?;
        pipeline.pause().await?;
        pipeline.push(fx.message(round.to_string())).await?;
        pipeline.expect_quiet().await?;
        pipeline.resume().await?;
        pipeline.resume().await?;
        let job = pipeline.next().await?;
        assert_eq!(text(&job), round.to_string());
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn closed_after_stop(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let watcher = fx.connect(pipeline.config().clone()).await?;
    pipeline.stop().await?;
    pipeline.stop().await?;
    fx.expect_refused(pipeline.push(fx.message("late")).await, ErrorKind::Closed)?;
    for answer in pipeline.push_batch(vec![fx.message("late"), fx.message("late")]).await {
        fx.expect_refused(answer, ErrorKind::Closed)?;
    }
    fx.expect_refused(pipeline.run().await, ErrorKind::Closed)?;
    fx.expect_refused(pipeline.pause().await, ErrorKind::Closed)?;
    fx.expect_refused(pipeline.resume().await, ErrorKind::Closed)?;
    fx.expect_refused(pipeline.state().await, ErrorKind::Closed)?;
    let _ = pipeline.driver().capabilities();
    pipeline.stop().await?;
    watcher.run().await?;
    watcher.expect_empty().await?;
    Ok(())
}

async fn stop_before_run(fx: Fixture) -> CaseResult {
    let producer = fx.connect(fx.configure().await?).await?;
    let consumer = fx.connect(producer.config().clone()).await?;
    let pushed = producer.push_numbered(2).await?;
    producer.stop().await?;
    fx.expect_refused(producer.run().await, ErrorKind::Closed)?;
    consumer.run().await?;
    assert_eq!(sorted(consumer.ack_next(2).await?), sorted(pushed));
    consumer.expect_empty().await?;
    Ok(())
}

async fn resume_beside_held_jobs(fx: Fixture) -> CaseResult {
    const HELD: usize = 100;
    const MORE: usize = 1_000;
    let pipeline = fx.pipeline_of(2 * HELD).await?;
    let mut pushed = pipeline.push_numbered(HELD).await?;
    let held = pipeline.take(HELD).await?;
    let mut found = ids(&held);
    pipeline.pause().await?;
    let more: Vec<_> = (0..MORE).map(|number| fx.message(number.to_string())).collect();
    pushed.extend(more.iter().map(|message| message.id().clone()));
    for answer in pipeline.push_batch(more).await {
        answer?;
    }
    pipeline.resume().await?;
    let mut acks = JoinSet::new();
    held.into_iter().for_each(|job| drop(acks.spawn(job.ack())));
    for _ in 0..MORE {
        let job = pipeline.next().await?;
        found.push(job.id().clone());
        acks.spawn(job.ack());
    }
    while let Some(acked) = fx.within("an ack", acks.join_next()).await? {
        acked??;
    }
    assert!(sorted(found) == sorted(pushed), "each job once");
    pipeline.expect_empty().await?;
    Ok(())
}

async fn stop_writes_what_was_settled(fx: Fixture) -> CaseResult {
    const JOBS: usize = 200;
    let pipeline = fx.pipeline_of(JOBS).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    pipeline.push_numbered(JOBS).await?;
    let held = pipeline.take(JOBS).await?;
    // Every other one, from the last: nothing that a driver could do at once.
    let order = |parity| (0..JOBS).rev().filter(move |index| index % 2 == parity);
    let mut held: Vec<_> = held.into_iter().map(Some).collect();
    let order: Vec<_> = order(0).chain(order(1)).collect();
    let acks: Vec<_> =
        order.into_iter().filter_map(|index| held[index].take()).map(Job::ack).collect();
    let stop = {
        let pipeline = pipeline.clone();
        tokio::spawn(async move { pipeline.stop().await })
    };
    for ack in acks {
        fx.within("an ack", ack).await??;
    }
    fx.within("stop", stop).await???;
    second.run().await?;
    second.expect_empty().await?;
    Ok(())
}

async fn settle_after_stop_is_refused(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(3).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    let pushed = pipeline.push_numbered(3).await?;
    let held = pipeline.take(3).await?;
    pipeline.stop().await?;
    second.run().await?;
    let again = second.take(3).await?;
    assert_eq!(sorted(ids(&again)), sorted(pushed));
    for job in held {
        let Err(refused) = job.ack().await else { panic!("a stopped driver took a settlement") };
        let kind = refused.error().kind();
        assert!(matches!(kind, ErrorKind::LeaseLost | ErrorKind::Closed), "{refused}");
    }
    second.expect_quiet().await?;
    for job in again {
        job.ack().await?;
    }
    second.expect_empty().await?;
    Ok(())
}

async fn stop_answers_pushes_under_way(fx: Fixture) -> CaseResult {
    const PUSHERS: usize = 16;
    const MOST: usize = 500;
    let producer = fx.connect(fx.configure().await?).await?;
    let consumer = fx.connect(producer.config().clone()).await?;
    let mut pushers = JoinSet::new();
    let answered = Arc::new(AtomicUsize::new(0));
    for _ in 0..PUSHERS {
        let (driver, fx) = (Arc::clone(producer.driver()), fx.clone());
        let answered = Arc::clone(&answered);
        pushers.spawn(async move {
            let mut pushes = Vec::new();
            for _ in 0..MOST {
                let message = fx.message("until closed");
                let id = message.id().clone();
                pushes.push((id, driver.push(message).await));
                answered.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
            pushes
        });
    }
    fx.eventually("some pushes", async || match answered.load(Ordering::Relaxed) {
        0..PUSHERS => Err("too few".to_owned()),
        _ => Ok(()),
    })
    .await?;
    producer.stop().await?;
    let mut pushes = Vec::new();
    while let Some(pusher) = fx.within("pushes after stop", pushers.join_next()).await? {
        pushes.extend(pusher?);
    }
    consumer.run().await?;
    expect_stored(&consumer, pushes).await
}

/// Demands what was stored, and nothing that was refused for certain.
async fn expect_stored(
    consumer: &TestPipeline,
    pushes: Vec<(JobId, Result<(), Error>)>,
) -> CaseResult {
    let (stored, failed): (Vec<_>, Vec<_>) = pushes.into_iter().partition(|(_, a)| a.is_ok());
    let found = sorted(consumer.drain(stored.len()).await?);
    for (id, _) in &stored {
        assert!(found.binary_search(id).is_ok(), "Ok means stored, but {id} is lost");
    }
    for (id, answer) in failed {
        let error = answer.expect_err("partitioned");
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
        let refused = !error.may_be_stored();
        assert!(!refused || found.binary_search(&id).is_err(), "{id} was certainly not stored");
    }
    consumer.expect_empty().await?;
    Ok(())
}

async fn stop_leaves_no_task(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let second = pipeline.second().await?;
    pipeline.push_numbered(20).await?;
    workers::ack_all(&fx, &[pipeline.queue(), second.queue()], 2, 20).await?;
    pipeline.pause().await?;
    pipeline.resume().await?;
    pipeline.push_numbered(5).await?;
    pipeline.stop().await?;
    second.stop().await?;
    // The drivers are still held: it is the stop that must end their tasks, not the drop.
    fx.expect_no_tasks().await?;
    Ok(())
}
