//! Many producers, workers and consumers at once.

use std::num::NonZeroUsize;
use std::sync::Arc;

use jobs_core::{JobId, Queue};
use tokio::task::JoinSet;

use super::{ids, sorted, text, workers};
use crate::{Case, CaseError, CaseResult, Fixture, TestPipeline};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "concurrency::many_pushers_many_workers",
            &[1, 2],
            "pushes come from any number of tasks at once; each job is settled once",
            many_pushers_many_workers,
        ),
        Case::new(
            "concurrency::prefetch_one_never_stalls",
            &[1, 6],
            "no wake-up between settling and refilling is lost",
            prefetch_one_never_stalls,
        ),
        Case::new(
            "concurrency::consumers_share_a_queue",
            &[2],
            "a job is delivered to two consumers at once only after a lease ended",
            consumers_share_a_queue,
        ),
        Case::new(
            "concurrency::pausing_while_consuming_loses_nothing",
            &[1, 2],
            "pause and resume lose and double nothing while workers settle",
            pausing_while_consuming,
        ),
        Case::new(
            "concurrency::consumers_come_and_go",
            &[3],
            "consumers that stop while others consume lose nothing",
            consumers_come_and_go,
        ),
        Case::new(
            "concurrency::a_paused_pipeline_slows_no_other",
            &[6],
            "a slow or paused pipeline fills its own lane only",
            a_paused_pipeline_slows_no_other,
        ),
        Case::new(
            "concurrency::a_flood_respects_max_running",
            &[6],
            "a flood of high priority takes no more than max_running workers",
            a_flood_respects_max_running,
        ),
    ]
}

/// Pushes from many tasks at once, and returns all ids sorted.
async fn push_from_tasks(
    fx: &Fixture,
    pipeline: &TestPipeline,
    tasks: usize,
    each: usize,
) -> Result<Vec<JobId>, CaseError> {
    let mut pushers = JoinSet::new();
    for _ in 0..tasks {
        let pipeline = pipeline.clone();
        pushers.spawn(async move { pipeline.push_numbered(each).await });
    }
    let mut pushed = Vec::with_capacity(tasks * each);
    while let Some(pusher) = fx.within("pushers", pushers.join_next()).await? {
        pushed.extend(pusher??);
    }
    pushed.sort();
    Ok(pushed)
}

async fn many_pushers_many_workers(fx: Fixture) -> CaseResult {
    const PUSHERS: usize = 64;
    const EACH: usize = 10;
    let pipeline = fx.pipeline().await?;
    let queues = [pipeline.queue()];
    let (pushed, found) = tokio::join!(
        push_from_tasks(&fx, &pipeline, PUSHERS, EACH),
        workers::ack_all(&fx, &queues, 8, PUSHERS * EACH),
    );
    assert_eq!(found?, pushed?);
    pipeline.expect_empty().await?;
    Ok(())
}

async fn prefetch_one_never_stalls(fx: Fixture) -> CaseResult {
    const EACH: usize = 50;
    let pipeline = fx.start(fx.configure_prefetch(1).await?).await?;
    let queues = [pipeline.queue()];
    let (pushed, found) = tokio::join!(
        push_from_tasks(&fx, &pipeline, 4, EACH),
        workers::ack_all(&fx, &queues, 3, 4 * EACH),
    );
    assert_eq!(found?, pushed?);
    // With all of them stored nothing but the settlements keeps it going.
    pipeline.pause().await?;
    let pushed = push_from_tasks(&fx, &pipeline, 4, EACH).await?;
    pipeline.resume().await?;
    let found = workers::ack_all(&fx, &queues, 3, 4 * EACH).await?;
    assert_eq!(found, pushed);
    pipeline.expect_empty().await?;
    Ok(())
}

async fn consumers_share_a_queue(fx: Fixture) -> CaseResult {
    const EACH: usize = 50;
    let first = fx.start(fx.configure_prefetch(5).await?).await?;
    let second = first.second().await?;
    let queues = [first.queue(), second.queue()];
    let (pushed, found) = tokio::join!(
        push_from_tasks(&fx, &first, 4, EACH),
        workers::ack_all(&fx, &queues, 2, 4 * EACH),
    );
    assert_eq!(found?, pushed?);
    first.expect_empty().await?;
    second.expect_empty().await?;
    Ok(())
}

async fn pausing_while_consuming(fx: Fixture) -> CaseResult {
    const JOBS: usize = 200;
    let pipeline = fx.start(fx.configure_prefetch(5).await?).await?;
    let mut pushed = pipeline.push_numbered(JOBS).await?;
    let toggling = async {
        for _ in 0..20 {
            pipeline.pause().await?;
            tokio::task::yield_now().await;
            pipeline.resume().await?;
            tokio::task::yield_now().await;
        }
        Ok::<_, CaseError>(())
    };
    let queues = [pipeline.queue()];
    let (toggled, found) = tokio::join!(toggling, workers::ack_all(&fx, &queues, 3, JOBS));
    toggled?;
    pushed.sort();
    assert_eq!(found?, pushed);
    pipeline.expect_empty().await?;
    Ok(())
}

async fn consumers_come_and_go(fx: Fixture) -> CaseResult {
    const JOBS: usize = 60;
    let producer = fx.connect(fx.configure_prefetch(10).await?).await?;
    let mut pushed = producer.push_numbered(JOBS).await?;
    let mut found = Vec::new();
    for _ in 0..4 {
        let consumer = fx.start(producer.config().clone()).await?;
        let held = consumer.take(5).await?;
        found.extend(consumer.ack_next(5).await?);
        consumer.stop().await?;
        drop(held);
    }
    producer.run().await?;
    found.extend(producer.drain(JOBS - found.len()).await?);
    pushed.sort();
    assert_eq!(sorted(found), pushed, "each acknowledged once");
    producer.expect_empty().await?;
    Ok(())
}

async fn a_paused_pipeline_slows_no_other(fx: Fixture) -> CaseResult {
    let queue = Queue::new();
    let config = fx.configure_prefetch(5).await?;
    let paused = fx.connect_to(config, queue.clone()).await?;
    let config = fx.configure_prefetch(5).await?;
    let other = fx.connect_to(config, queue.clone()).await?;
    paused.run().await?;
    other.run().await?;
    paused.push_numbered(20).await?;
    // One pipeline has all its credits out and is then paused; the other must not care.
    let only: Arc<[Arc<str>]> = Arc::new([paused.config().shared_name()]);
    let mut held = Vec::new();
    while held.len() < 5 {
        held.extend(fx.within("a job of the first", queue.pop_from(&only)).await?);
    }
    paused.pause().await?;
    other.push_numbered(50).await?;
    for _ in 0..50 {
        let job = other.next().await?;
        assert_eq!(job.pipeline(), other.config().name());
        job.ack().await?;
    }
    paused.expect_quiet().await?;
    for job in held {
        job.ack().await?;
    }
    paused.resume().await?;
    paused.ack_next(15).await?;
    paused.expect_empty().await?;
    Ok(())
}

async fn a_flood_respects_max_running(fx: Fixture) -> CaseResult {
    let queue = Queue::new();
    let two = NonZeroUsize::new(2).expect("not zero");
    let config = fx.configure_prefetch(20).await?.with_priority(1).with_max_running(two);
    let flood = fx.connect_to(config, queue.clone()).await?;
    let config = fx.configure_prefetch(20).await?.with_priority(9);
    let calm = fx.connect_to(config, queue.clone()).await?;
    flood.run().await?;
    flood.push_numbered(20).await?;
    let mut running = flood.take(2).await?;
    flood.expect_quiet().await?;
    calm.run().await?;
    calm.push(fx.message("calm")).await?;
    let job = calm.next().await?;
    assert_eq!((job.pipeline(), text(&job)), (calm.config().name(), "calm".into()));
    job.ack().await?;
    let mut found = ids(&running);
    while found.len() < 20 {
        running.remove(0).ack().await?;
        running.push(flood.next().await?);
        found.push(running[1].id().clone());
        assert!(queue.try_pop().is_none(), "two run already");
    }
    for job in running {
        job.ack().await?;
    }
    flood.expect_empty().await?;
    Ok(())
}
