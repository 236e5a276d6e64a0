//! How a delivery ends.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jobs_core::{ErrorKind, Headers, JobId, Outcome};

use super::{ids, shuffled, sorted, text};
use crate::{Case, CaseResult, Feature, Fixture, TestPipeline};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "settle::ack_ends_the_job",
            &[2],
            "a job acked Ok never comes back",
            ack_ends_the_job,
        ),
        Case::new(
            "settle::ack_covers_only_its_own_job",
            &[4],
            "an ack never covers a job that is not settled",
            ack_covers_only_its_own_job,
        ),
        Case::new(
            "settle::any_order_loses_nothing",
            &[4],
            "settling in any order, with any outcome, loses nothing",
            any_order_loses_nothing,
        ),
        Case::new(
            "settle::requeue_brings_the_job_back",
            &[1],
            "requeue: run again later",
            requeue_brings_the_job_back,
        ),
        Case::new(
            "settle::requeue_with_headers_travels",
            &[5],
            "changed headers travel with the requeued job",
            requeue_with_headers_travels,
        )
        .needs(&[Feature::ChangedHeaders]),
        Case::new(
            "settle::requeue_waits_for_its_delay",
            &[5],
            "a requeued job comes no sooner than its delay",
            requeue_waits_for_its_delay,
        )
        .needs(&[Feature::Requeue, Feature::Delay]),
        Case::new(
            "settle::a_refused_requeue_hands_the_job_back",
            &[8],
            "a settlement that fails is an error that bears the job, to settle again",
            a_refused_requeue_hands_the_job_back,
        ),
        Case::new(
            "settle::a_refused_requeue_that_nobody_awaits_gives_the_job_back",
            &[3],
            "a job whose settlement is refused while nobody awaits the answer is abandoned",
            a_refused_requeue_that_nobody_awaits_gives_the_job_back,
        ),
        Case::new(
            "settle::reject_never_comes_back",
            &[],
            "reject: never again, dead-lettered where configured",
            reject_never_comes_back,
        ),
        Case::new(
            "settle::release_gives_the_job_back_unchanged",
            &[],
            "release: was not started, goes back unchanged",
            release_gives_the_job_back_unchanged,
        ),
        Case::new(
            "settle::works_on_a_closed_queue",
            &[4],
            "settling needs no worker and no pop: it works when the queue is closed",
            works_on_a_closed_queue,
        ),
    ]
}

async fn ack_ends_the_job(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    pipeline.push_numbered(3).await?;
    pipeline.ack_next(3).await?;
    pipeline.expect_empty().await?;
    pipeline.stop().await?;
    second.run().await?;
    second.expect_empty().await?;
    Ok(())
}

async fn ack_covers_only_its_own_job(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(6).await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    pipeline.push_numbered(6).await?;
    let (mut acked, mut kept) = (Vec::new(), Vec::new());
    for (index, job) in pipeline.take(6).await?.into_iter().enumerate().rev() {
        if index % 2 == 1 {
            acked.push(job.id().clone());
            job.ack().await?;
        } else {
            kept.push(job);
        }
    }
    pipeline.stop().await?;
    second.run().await?;
    let back = second.ack_next(kept.len()).await?;
    assert_eq!(sorted(back), sorted(ids(&kept)), "unsettled jobs come back, and only they");
    drop(kept);
    second.expect_empty().await?;
    Ok(())
}

async fn any_order_loses_nothing(fx: Fixture) -> CaseResult {
    const JOBS: usize = 30;
    let pipeline = fx.pipeline_of(JOBS).await?;
    for seed in 1..=3 {
        pipeline.push_numbered(JOBS).await?;
        let mut jobs: Vec<_> = pipeline.take(JOBS).await?.into_iter().map(Some).collect();
        let mut back: BTreeMap<JobId, &str> = BTreeMap::new();
        for (turn, index) in shuffled(JOBS, seed).into_iter().enumerate() {
            let job = jobs[index].take().expect("each index once");
            let outcome = match turn % 4 {
                0 => Outcome::Ack,
                1 => Outcome::requeue(),
                2 => Outcome::Release,
                _ => Outcome::Reject,
            };
            if turn % 4 == 1 || turn % 4 == 2 {
                back.insert(job.id().clone(), outcome.name());
            }
            job.settle(outcome).await?;
        }
        let found = pipeline.ack_next(back.len()).await?;
        assert_eq!(sorted(found), back.keys().cloned().collect::<Vec<_>>(), "{back:?}");
        pipeline.expect_empty().await?;
    }
    Ok(())
}

async fn requeue_brings_the_job_back(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let message = fx.message("again").with_header("kept", "yes");
    pipeline.push(message.clone()).await?;
    pipeline.next().await?.requeue(Duration::ZERO).await?;
    let again = pipeline.next().await?;
    assert_eq!((again.id(), again.name()), (message.id(), message.name()));
    assert_eq!((again.payload(), again.headers()), (message.payload(), message.headers()));
    again.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn requeue_with_headers_travels(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let message = fx.message("changed").with_header("gone", "x");
    pipeline.push(message.clone()).await?;
    for turn in ["first", "second"] {
        let headers: Headers = [("turn", turn), ("list", "b"), ("list", "a")].into_iter().collect();
        let outcome = Outcome::Requeue { delay: Duration::ZERO, headers: Some(headers.clone()) };
        pipeline.next().await?.settle(outcome).await?;
        let again = pipeline.next().await?;
        assert_eq!((again.id(), again.payload()), (message.id(), message.payload()));
        assert_eq!(again.headers().get("turn"), Some(turn));
        assert_eq!(again.headers().get_all("list").collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(again.headers().get("gone"), None, "the new headers are all there are");
        again.release().await?;
    }
    pipeline.ack_next(1).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn requeue_waits_for_its_delay(fx: Fixture) -> CaseResult {
    const DELAY: Duration = Duration::from_millis(400);
    let pipeline = fx.pipeline().await?;
    pipeline.push(fx.message("later")).await?;
    let job = pipeline.next().await?;
    let start = Instant::now();
    job.requeue(DELAY).await?;
    let again = pipeline.next().await?;
    assert!(start.elapsed() >= DELAY, "after {:?}, not {DELAY:?}", start.elapsed());
    assert_eq!(text(&again), "later");
    again.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

/// A requeue that this pipeline must refuse, and the kind of its error.
fn impossible_requeue(pipeline: &TestPipeline) -> (Outcome, ErrorKind) {
    let capabilities = pipeline.driver().capabilities();
    let delay = match (capabilities.delay.is_available(), capabilities.max_delay) {
        (false, _) => Duration::from_secs(1),
        (true, Some(most)) => most.saturating_add(Duration::from_secs(1)),
        (true, None) => {
            // A header name that no broker carries makes it impossible whatever the limits.
            let headers = Some([("bad\nname", "x")].into_iter().collect());
            let outcome = Outcome::Requeue { delay: Duration::ZERO, headers };
            return (outcome, ErrorKind::InvalidMessage);
        }
    };
    (Outcome::requeue_after(delay), ErrorKind::Unsupported)
}

async fn a_refused_requeue_hands_the_job_back(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let (outcome, kind) = impossible_requeue(&pipeline);
    pipeline.push(fx.message("handed back")).await?;
    let job = pipeline.next().await?;
    let Err(refused) = job.settle(outcome.clone()).await else {
        panic!("{outcome:?} must be refused");
    };
    let (error, job) = refused.into_parts();
    assert_eq!((error.kind(), error.is_retryable()), (kind, false), "{error}");
    assert_eq!((text(&job), job.attempt()), ("handed back".into(), 1));
    pipeline.expect_quiet().await?;
    job.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_refused_requeue_that_nobody_awaits_gives_the_job_back(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let (outcome, _) = impossible_requeue(&pipeline);
    pipeline.push(fx.message("given back")).await?;
    drop(pipeline.next().await?.settle(outcome));
    let again = pipeline.next().await?;
    assert_eq!(text(&again), "given back");
    again.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn reject_never_comes_back(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let second = fx.connect(pipeline.config().clone()).await?;
    pipeline.push_numbered(2).await?;
    for _ in 0..2 {
        pipeline.next().await?.reject().await?;
    }
    pipeline.expect_empty().await?;
    if pipeline.driver().capabilities().reject.is_available() {
        let dead = |state: &jobs_core::State| state.dead.is_none_or(|dead| dead == 2);
        pipeline.expect_state("two dead letters", dead).await?;
    }
    pipeline.stop().await?;
    second.run().await?;
    second.expect_empty().await?;
    Ok(())
}

async fn release_gives_the_job_back_unchanged(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let message = fx.message("unchanged").with_header("kept", "yes");
    pipeline.push(message.clone()).await?;
    let uncounted = pipeline.driver().capabilities().uncounted_release;
    for _ in 0..3 {
        let job = pipeline.next().await?;
        assert!(!uncounted || job.attempt() == 1, "released jobs stay at attempt 1: {job:?}");
        assert_eq!((job.id(), job.headers()), (message.id(), message.headers()));
        assert_eq!(job.payload(), message.payload());
        job.release().await?;
    }
    pipeline.ack_next(1).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn works_on_a_closed_queue(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(2).await?;
    pipeline.push_numbered(2).await?;
    let jobs = pipeline.take(2).await?;
    pipeline.queue().close();
    for job in jobs {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}
