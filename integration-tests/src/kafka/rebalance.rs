//! Members of a group that come and go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs_core::{ErrorKind, JobId, KafkaOptions, Message};
use jobs_kit::{Case, CaseError, CaseResult, Fault, Feature, Fixture, TestPipeline};
use tokio::task::JoinSet;

use super::{case, harness};
use crate::kafkad::Brokers;

const REBALANCE: &[Feature] = &[Feature::Fault(Fault::Rebalance)];
/// How long members come and go in one run: ten seconds in the three of a test, more than a minute in
/// the twenty of `cargo kit faults`.
const STORM: Duration = Duration::from_millis(3_500);
const PARTITIONS: i32 = 6;

/// With several partitions.
pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    let mut cases = storms();
    cases.push(case(
        brokers,
        "rebalance::receipts_of_a_lost_partition_are_refused",
        &[3, 7],
        "a receipt of a partition that went elsewhere is refused, the others hold",
        receipts_of_a_lost_partition,
    ));
    cases.push(case(
        brokers,
        "rebalance::stops_while_partitions_are_given_up",
        &[3, 10],
        "a member stops and leaves while it still keeps partitions that it is to give up",
        stops_while_partitions_are_given_up,
    ));
    cases
}

/// With one partition.
pub(super) fn one_partition(brokers: &Arc<Brokers>) -> Vec<Case> {
    let mut cases = storms();
    cases.push(case(
        brokers,
        "rebalance::a_member_without_partitions_leaves",
        &[10],
        "a member leaves its group when it stops, also if it has no partition",
        a_member_without_partitions_leaves,
    ));
    cases
}

/// With one job at a time.
pub(super) fn patient(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![case(
        brokers,
        "rebalance::a_handler_outlasts_max_poll_interval",
        &[2],
        "a job may run for longer than the group waits for a poll",
        a_handler_outlasts_max_poll_interval,
    )]
}

fn storms() -> Vec<Case> {
    vec![
        Case::new(
            "rebalance::under_load",
            &[1, 3],
            "nothing is lost while members come and go",
            under_load,
        )
        .needs(REBALANCE),
        Case::new(
            "rebalance::while_paused",
            &[1, 3],
            "a pause outlives every rebalance",
            while_paused,
        )
        .needs(REBALANCE),
    ]
}

/// Members come and go, one after the other.
async fn storm(fx: &Fixture) -> jobs_core::Result<()> {
    let start = Instant::now();
    while start.elapsed() < STORM {
        fx.inject(Fault::Rebalance).await?;
    }
    Ok(())
}

/// Takes jobs until all of `missing` were seen.
pub(super) async fn ack_until_found(
    pipeline: &TestPipeline,
    missing: impl IntoIterator<Item = JobId>,
) -> CaseResult {
    let mut missing: BTreeSet<_> = missing.into_iter().collect();
    while !missing.is_empty() {
        let job = pipeline.next().await?;
        missing.remove(job.id());
        // Its partition may be somebody else's now; then the job comes again.
        drop(job.ack().await);
    }
    Ok(())
}

async fn under_load(fx: Fixture) -> CaseResult {
    const PUSHERS: usize = 4;
    let pipeline = fx.pipeline_of(50).await?;
    let (done, until) = tokio::sync::watch::channel(false);
    let mut pushers = JoinSet::new();
    for _ in 0..PUSHERS {
        let (pipeline, fx, until) = (pipeline.clone(), fx.clone(), until.clone());
        pushers.spawn(async move {
            let mut pushed = Vec::new();
            while !*until.borrow() {
                let message = fx.message("load");
                pushed.push(message.id().clone());
                pipeline.push(message).await?;
            }
            Ok::<_, jobs_core::Error>(pushed)
        });
    }
    let mut worker = JoinSet::new();
    let working = pipeline.clone();
    worker.spawn(async move {
        let mut acked = BTreeSet::new();
        while let Some(job) = working.queue().pop().await {
            let id = job.id().clone();
            if job.ack().await.is_ok() {
                acked.insert(id);
            }
        }
        acked
    });
    let stormed = storm(&fx).await;
    done.send_replace(true);
    let mut pushed = BTreeSet::new();
    while let Some(pusher) = fx.within("the pushes", pushers.join_next()).await? {
        pushed.extend(pusher??);
    }
    stormed?;
    pipeline
        .expect_state("nothing is left", |state| state.active == 0 && state.reserved == Some(0))
        .await?;
    pipeline.queue().close();
    let acked = fx.within("the worker", worker.join_next()).await?.expect("one")?;
    assert!(pushed.len() > 100, "{} pushes are no load", pushed.len());
    assert_eq!(pushed.difference(&acked).count(), 0, "of {} pushed", pushed.len());
    Ok(())
}

async fn while_paused(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(20).await?;
    let mut pushed: Vec<JobId> = pipeline.push_numbered(10).await?;
    pipeline.ack_next(10).await?;
    pipeline.pause().await?;
    pushed.clear();
    let start = Instant::now();
    while start.elapsed() < STORM {
        fx.begin(Fault::Rebalance).await?;
        pushed.extend(pipeline.push_numbered(5).await?);
        fx.end(Fault::Rebalance).await?;
        pushed.extend(pipeline.push_numbered(5).await?);
        assert!(pipeline.queue().is_empty(), "a paused pipeline hands nothing out");
    }
    pipeline.expect_quiet().await?;
    pipeline.resume().await?;
    ack_until_found(&pipeline, pushed).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn receipts_of_a_lost_partition(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    const EACH: usize = 2;
    let config = fx.configure_prefetch(50).await?;
    let pipeline = fx.start(config).await?;
    let name = pipeline.config().name().to_owned();
    for partition in 0..PARTITIONS {
        for _ in 0..EACH {
            pipeline.push(to_partition(fx.message("held"), partition)).await?;
        }
    }
    let held = pipeline.take(EACH * PARTITIONS as usize).await?;
    let guest = brokers.shared().await?.guest(&name, &name).await?;
    fx.eventually("the guest has its share", async || match guest.partitions() {
        found if found == PARTITIONS as usize / 2 => Ok(()),
        found => Err(format!("{found} partitions")),
    })
    .await?;
    let mut refused = Vec::new();
    for job in held {
        match job.ack().await {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.error().kind(), ErrorKind::LeaseLost, "{error}");
                refused.push(error.into_job().id().clone());
            }
        }
    }
    assert_eq!(
        refused.len(),
        EACH * PARTITIONS as usize / 2,
        "the guest's partitions, and no others"
    );
    guest.leave().await?;
    ack_until_found(&pipeline, refused).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn stops_while_partitions_are_given_up(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    const ALL: usize = PARTITIONS as usize;
    let pipeline = fx.start(fx.configure_prefetch(50).await?).await?;
    let name = pipeline.config().name().to_owned();
    let push_to_each = async |name: &'static str| {
        let mut pushed = Vec::new();
        for partition in 0..PARTITIONS {
            let message = to_partition(fx.message(name), partition);
            pushed.push(message.id().clone());
            pipeline.push(message).await?;
        }
        Ok::<_, CaseError>(pushed)
    };
    let unpopped = async |expected: fn(usize) -> bool| match pipeline.queue().len() {
        found if expected(found) => Ok(()),
        found => Err(format!("{found} jobs in the queue")),
    };
    let mut pushed = push_to_each("held").await?;
    // Each partition is kept until this is settled, for a while.
    let held = pipeline.take(ALL).await?;
    pushed.extend(push_to_each("unpopped").await?);
    fx.eventually("all were fetched", async || unpopped(|found| found == ALL).await).await?;
    let guest = brokers.shared().await?.guest(&name, &name).await?;
    fx.eventually("some are withdrawn", async || unpopped(|found| found < ALL).await).await?;
    fx.within("stop", pipeline.stop()).await??;
    for job in held {
        let refused = job.ack().await.expect_err("the driver has stopped");
        let kind = refused.error().kind();
        assert!([ErrorKind::LeaseLost, ErrorKind::Closed].contains(&kind), "{refused}");
    }
    expect_members(&fx, &pipeline, &brokers, 1).await?;
    guest.leave().await?;
    let second = pipeline.second().await?;
    ack_until_found(&second, pushed).await?;
    second.expect_empty().await?;
    Ok(())
}

pub(super) fn to_partition(message: Message, partition: i32) -> Message {
    let mut place = KafkaOptions::default();
    place.partition = Some(partition);
    message.with_kafka(place)
}

/// The members of a pipeline's group, when no rebalance is under way.
async fn members(pipeline: &TestPipeline, brokers: &Brokers) -> Result<usize, String> {
    let operator = brokers.shared().await.map_err(|error| format!("{error:?}"))?.operator();
    match operator.group(pipeline.config().name()).await {
        Ok(group) if group.state == "Stable" => Ok(group.members.len()),
        group => Err(format!("{group:?}")),
    }
}

async fn expect_members(
    fx: &Fixture,
    pipeline: &TestPipeline,
    brokers: &Brokers,
    expected: usize,
) -> Result<(), CaseError> {
    fx.eventually("the members of the group", async || match members(pipeline, brokers).await? {
        found if found == expected => Ok(()),
        found => Err(format!("{found}, not {expected}")),
    })
    .await?;
    Ok(())
}

async fn a_member_without_partitions_leaves(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    // If it did not leave, the others would have to wait for this.
    let config = harness::with(fx.configure().await?, "group_options", "session_timeout", "5m");
    let pipeline = fx.start(config).await?;
    pipeline.push_numbered(1).await?;
    pipeline.ack_next(1).await?;
    let second = pipeline.second().await?;
    expect_members(&fx, &pipeline, &brokers, 2).await?;
    second.stop().await?;
    expect_members(&fx, &pipeline, &brokers, 1).await?;
    pipeline.push_numbered(1).await?;
    pipeline.ack_next(1).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_handler_outlasts_max_poll_interval(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    const INTERVAL: Duration = Duration::from_secs(6);
    let config = harness::with(fx.configure().await?, "group_options", "max_poll_interval", "6s");
    let pipeline = fx.start(config).await?;
    pipeline.push_numbered(3).await?;
    let held = pipeline.next().await?;
    pipeline.expect_quiet_for(INTERVAL + INTERVAL / 2).await?;
    assert_eq!(members(&pipeline, &brokers).await, Ok(1), "it was not given up");
    held.ack().await?;
    pipeline.ack_next(2).await?;
    pipeline.expect_empty().await?;
    Ok(())
}
