//! Queues and exchanges that an operator deletes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs_core::{ErrorKind, JobId, Pipeline};
use jobs_kit::{Case, CaseResult, Fault, Feature, Fixture};

use super::{case, names};
use crate::rabbitmq::{Brokers, Operator};

const CUT: &[Feature] = &[Feature::Fault(Fault::Cut)];
const DELAYED: &[Feature] = &[Feature::Fault(Fault::Cut), Feature::Delay];
const DELAY: Duration = Duration::from_millis(100);

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(
            brokers,
            "gone::a_queue_at_a_push",
            &[1],
            "a push to a queue that is gone is NotFound, and stores nothing",
            a_queue_at_a_push,
        )
        .needs(CUT),
        case(
            brokers,
            "gone::a_queue_while_consuming",
            &[9],
            "a queue that is deleted and declared again is consumed again",
            a_queue_while_consuming,
        )
        .needs(CUT),
        case(
            brokers,
            "gone::the_target_of_delayed_jobs",
            &[1],
            "jobs that are due for a queue that is gone wait until it is there again",
            the_target_of_delayed_jobs,
        )
        .needs(DELAYED),
        case(
            brokers,
            "gone::a_queue_at_a_delayed_push",
            &[1],
            "a delayed push to a queue that is gone is NotFound, and stores nothing",
            a_queue_at_a_delayed_push,
        )
        .needs(DELAYED),
        case(
            brokers,
            "gone::a_queue_that_is_there_again",
            &[1],
            "a delayed job finds a queue that somebody else has declared again",
            a_queue_that_is_there_again,
        )
        .needs(DELAYED),
        case(
            brokers,
            "gone::what_is_due_of_a_pipeline_that_pushes",
            &[1],
            "delayed jobs of a pipeline without queue and exchange reach the queue",
            what_is_due_of_a_pipeline_that_pushes,
        )
        .needs(DELAYED),
        case(
            brokers,
            "gone::what_delays_are_made_of",
            &[1],
            "delayed jobs are taken after somebody deleted the exchanges they pass through",
            what_delays_are_made_of,
        )
        .needs(DELAYED),
        case(
            brokers,
            "gone::more_channels_than_a_connection_has",
            &[9],
            "channels that the broker closes are not missing later",
            more_channels_than_a_connection_has,
        )
        .needs(DELAYED),
        case(
            brokers,
            "gone::a_question_given_up",
            &[9],
            "a question that was given up, about what does not exist, does not disturb the next one",
            a_question_given_up,
        ),
    ]
}

/// For configurations with an exchange.
pub(super) fn exchange_cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(
            brokers,
            "gone::an_exchange_at_a_push",
            &[1],
            "a push to an exchange that is gone is NotFound, and the channel goes on",
            an_exchange_at_a_push,
        )
        .needs(CUT),
    ]
}

/// Past the proxy, to the broker that is disturbed.
async fn operator(brokers: &Brokers) -> jobs_core::Result<Operator> {
    brokers.own().await?.operator().await
}

async fn a_queue_at_a_push(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.connect(fx.configure().await?).await?;
    pipeline.push(fx.message("there")).await?;
    let operator = operator(&brokers).await?;
    operator.delete_queue(names::queue(pipeline.config())).await?;
    for _ in 0..2 {
        let answer = fx.within("a push", pipeline.push(fx.message("gone"))).await?;
        fx.expect_refused(answer, ErrorKind::NotFound)?;
    }
    operator.close().await?;
    // Connecting declares the queue again.
    let second = fx.start(pipeline.config().clone()).await?;
    pipeline.push(fx.message("there again")).await?;
    second.ack_next(1).await?;
    second.expect_empty().await?;
    Ok(())
}

async fn a_queue_at_a_delayed_push(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.connect(fx.configure().await?).await?;
    let operator = operator(&brokers).await?;
    operator.delete_queue(names::queue(pipeline.config())).await?;
    operator.close().await?;
    let message = fx.message("gone").with_delay(Duration::from_millis(100));
    let answer = fx.within("a push", pipeline.push(message)).await?;
    fx.expect_refused(answer, ErrorKind::NotFound)?;
    Ok(())
}

async fn a_queue_that_is_there_again(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.connect(fx.configure().await?).await?;
    let queue = names::queue(pipeline.config());
    let operator = operator(&brokers).await?;
    for noticed in [false, true] {
        operator.delete_queue(queue).await?;
        if noticed {
            let answer = fx.within("a push", pipeline.push(fx.message("gone"))).await?;
            fx.expect_refused(answer, ErrorKind::NotFound)?;
        }
        // Not by the driver, which would bind it.
        operator.declare_other(queue).await?;
        pipeline.push(fx.message("due").with_delay(DELAY)).await?;
        fx.eventually("it arrives", async || match operator.ready(queue).await {
            Ok(1) => Ok(()),
            found => Err(format!("{found:?}")),
        })
        .await?;
    }
    operator.close().await?;
    Ok(())
}

async fn what_is_due_of_a_pipeline_that_pushes(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let consuming = fx.pipeline().await?;
    let queue = names::queue(consuming.config());
    // As if nothing but the queue had been declared.
    let operator = operator(&brokers).await?;
    operator.delete_exchange(&format!("jobs.delay.{queue}.due")).await?;
    operator.close().await?;
    let mut config = Pipeline::new(format!("{queue}-pushing"), jobs_amqp::NAME)
        .with_option("routing_key", queue);
    for option in ["addr", "heartbeat"] {
        if let Some(value) = consuming.config().options().get(option) {
            config = config.with_option(option, value.clone());
        }
    }
    let pushing = fx.connect(config).await?;
    let message = fx.message("due").with_delay(DELAY);
    let pushed = message.id().clone();
    pushing.push(message).await?;
    assert_eq!(consuming.ack_next(1).await?, [pushed]);
    consuming.expect_empty().await?;
    Ok(())
}

async fn what_delays_are_made_of(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let delays = format!("jobs.delay.{}", names::queue(pipeline.config()));
    let operator = operator(&brokers).await?;
    for _ in 0..2 {
        let message = fx.message("due").with_delay(DELAY);
        let pushed = message.id().clone();
        pipeline.push(message).await?;
        assert_eq!(pipeline.ack_next(1).await?, [pushed]);
        for exchange in [&delays, &format!("{delays}.due")] {
            operator.delete_exchange(exchange).await?;
        }
    }
    operator.close().await?;
    Ok(())
}

async fn a_question_given_up(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let config = fx.configure().await?;
    for polls in 1..12 {
        // The first to ask looks for what delays are made of, which is not there.
        let pipeline = fx.connect(config.clone()).await?;
        drop(fx.cancel_after(polls, pipeline.state()).await);
        pipeline.state().await?;
        pipeline.stop().await?;
    }
    Ok(())
}

async fn more_channels_than_a_connection_has(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    const CHANNELS: usize = 8;
    let config = fx.configure().await?;
    let address = config.options().get("addr").and_then(|value| value.as_str()).expect("a text");
    let address = format!("{address}?channel_max={CHANNELS}");
    let pipeline = fx.connect(config.with_option("addr", address)).await?;
    let queue = names::queue(pipeline.config());
    let operator = operator(&brokers).await?;
    operator.delete_queue(queue).await?;
    for _ in 0..3 * CHANNELS {
        let message = fx.message("gone").with_delay(DELAY);
        let answer = fx.within("a push", pipeline.push(message)).await?;
        fx.expect_refused(answer, ErrorKind::NotFound)?;
    }
    operator.declare_other(queue).await?;
    pipeline.push(fx.message("there again")).await?;
    assert_eq!(operator.ready(queue).await?, 1);
    operator.close().await?;
    Ok(())
}

async fn a_queue_while_consuming(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.push_numbered(1).await?;
    pipeline.ack_next(1).await?;
    for _ in 0..2 {
        let operator = operator(&brokers).await?;
        operator.delete_queue(names::queue(pipeline.config())).await?;
        operator.close().await?;
        // Connecting declares the queue again.
        let second = fx.connect(pipeline.config().clone()).await?;
        let pushed = second.push_eventually(3).await?;
        let found = pipeline.drain(3).await?;
        assert!(pushed.iter().all(|id| found.contains(id)), "{found:?}");
        second.stop().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn the_target_of_delayed_jobs(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    const JOBS: usize = 64;
    const FIRST: Duration = Duration::from_secs(3);
    const STEP: Duration = Duration::from_millis(10);
    let pipeline = fx.connect(fx.configure().await?).await?;
    let start = Instant::now();
    let mut pushed: Vec<JobId> = Vec::with_capacity(JOBS);
    for number in 0..JOBS {
        let message = fx.message("due").with_delay(FIRST + STEP * u32::try_from(number)?);
        pushed.push(message.id().clone());
        pipeline.push(message).await?;
    }
    let operator = operator(&brokers).await?;
    operator.delete_queue(names::queue(pipeline.config())).await?;
    operator.close().await?;
    assert!(start.elapsed() < FIRST, "too slow: some were due already");
    let all_due = start + FIRST + STEP * u32::try_from(JOBS)? + Duration::from_millis(500);
    fx.eventually("all are due", async || match Instant::now() {
        now if now >= all_due => Ok(()),
        now => Err(format!("{:?} too early", all_due - now)),
    })
    .await?;
    // Connecting declares the queue again.
    let second = fx.start(pipeline.config().clone()).await?;
    let found = second.drain(JOBS).await?;
    assert!(pushed.iter().all(|id| found.contains(id)), "{} of {JOBS}", found.len());
    second.expect_empty().await?;
    Ok(())
}

async fn an_exchange_at_a_push(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.connect(fx.configure().await?).await?;
    pipeline.push(fx.message("there")).await?;
    let operator = operator(&brokers).await?;
    operator.delete_exchange(names::exchange(pipeline.config()).expect("it has one")).await?;
    operator.close().await?;
    for _ in 0..2 {
        let answer = fx.within("a push", pipeline.push(fx.message("gone"))).await?;
        fx.expect_refused(answer, ErrorKind::NotFound)?;
    }
    let second = fx.start(pipeline.config().clone()).await?;
    let pushed = pipeline.push_eventually(1).await?;
    let found = second.drain(2).await?;
    assert!(found.contains(&pushed[0]), "{found:?}");
    Ok(())
}
