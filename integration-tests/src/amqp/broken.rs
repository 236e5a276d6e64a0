//! Connections and channels that break at the worst moment.

use std::sync::Arc;

use jobs_core::ErrorKind;
use jobs_kit::proxy::{Direction, End, Trap};
use jobs_kit::{Case, CaseResult, Fault, Feature, Fixture};

use super::case;
use crate::rabbitmq::{Brokers, Method, RabbitMq, method};

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    const RESET: &[Feature] = &[Feature::Fault(Fault::Reset)];
    /// Of a broker that is ours.
    const OURS: &[Feature] = &[Feature::Fault(Fault::Kill)];
    vec![
        case(
            brokers,
            "broken::between_publish_and_confirm",
            &[1],
            "a push whose confirm did not come says that the message may be stored",
            between_publish_and_confirm,
        )
        .needs(RESET),
        case(
            brokers,
            "broken::before_publish",
            &[1],
            "a message that did not leave is not lost without a word",
            before_publish,
        )
        .needs(RESET),
        case(
            brokers,
            "broken::before_delivery",
            &[3],
            "a job whose delivery did not arrive comes again",
            before_delivery,
        )
        .needs(RESET),
        case(
            brokers,
            "broken::between_delivery_and_ack",
            &[3, 7],
            "a job whose ack did not arrive comes again, and its old receipt is refused",
            between_delivery_and_ack,
        )
        .needs(RESET),
        case(
            brokers,
            "broken::a_channel_by_a_soft_error",
            &[3, 7, 9],
            "a channel that the broker closes is opened again, and its receipts are refused",
            a_channel_by_a_soft_error,
        )
        .needs(OURS),
    ]
}

fn trap(broker: &RabbitMq, direction: Direction, chosen: Method) -> Trap {
    let is_chosen = move |frame: &[u8]| method(frame) == Some(chosen);
    broker.control.proxy().trap_frame(direction, End::Reset, is_chosen)
}

async fn between_publish_and_confirm(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let trap = trap(brokers.own().await?, Direction::ToClient, Method::BASIC_ACK);
    let message = fx.message("confirmed, but who knows");
    let answer = fx.within("a push", pipeline.push(message.clone())).await?;
    fx.within("the trap", trap.sprung()).await?;
    let error = answer.expect_err("the confirm did not come");
    assert!(error.is_retryable() && error.may_be_stored(), "{error:?}");
    let found = pipeline.drain(1).await?;
    assert_eq!(found, [message.id().clone()], "the broker had it");
    pipeline.expect_empty().await?;
    Ok(())
}

async fn before_publish(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let trap = trap(brokers.own().await?, Direction::ToServer, Method::BASIC_PUBLISH);
    let message = fx.message("left, but did not arrive");
    let answer = fx.within("a push", pipeline.push(message.clone())).await?;
    fx.within("the trap", trap.sprung()).await?;
    // The driver cannot know that it did not arrive.
    let error = answer.expect_err("the confirm did not come");
    assert!(error.is_retryable() && error.may_be_stored(), "{error:?}");
    pipeline.expect_empty().await?;
    let pushed = pipeline.push_eventually(1).await?;
    assert_eq!(pipeline.drain(1).await?, pushed);
    Ok(())
}

async fn before_delivery(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let trap = trap(brokers.own().await?, Direction::ToClient, Method::BASIC_DELIVER);
    let pushed = pipeline.push_eventually(1).await?;
    fx.within("the trap", trap.sprung()).await?;
    let found = pipeline.drain(1).await?;
    assert_eq!(found, pushed);
    pipeline.expect_empty().await?;
    Ok(())
}

async fn between_delivery_and_ack(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline_of(4).await?;
    pipeline.push_numbered(2).await?;
    let mut held = pipeline.take(2).await?;
    let trap = trap(brokers.own().await?, Direction::ToServer, Method::BASIC_ACK);
    // Nobody confirms an ack: that it was sent is all the driver can know.
    let first = held.remove(0);
    let id = first.id().clone();
    drop(fx.within("an ack", first.ack()).await?);
    fx.within("the trap", trap.sprung()).await?;
    let again = pipeline.take(2).await?;
    assert!(again.iter().any(|job| *job.id() == id), "its ack did not arrive");
    for stale in held {
        let Err(refused) = stale.ack().await else { panic!("a stale receipt was taken") };
        assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}");
    }
    for job in again {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

/// The broker closes the channel of a consumer that holds a job for longer than this.
const CONSUMER_TIMEOUT: &str = "1000";

async fn a_channel_by_a_soft_error(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let broker = brokers.own().await?;
    set_consumer_timeout(broker, CONSUMER_TIMEOUT, "500").await?;
    let answer = closed_by_timeout(fx).await;
    set_consumer_timeout(broker, "1800000", "60000").await?;
    answer
}

async fn set_consumer_timeout(broker: &RabbitMq, timeout: &str, look_every: &str) -> CaseResult {
    let set = format!(
        "application:set_env(rabbit, consumer_timeout, {timeout}), \
         application:set_env(rabbit, channel_tick_interval, {look_every})."
    );
    broker.control(&["eval", &set]).await?;
    Ok(())
}

async fn closed_by_timeout(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(4).await?;
    let pushed = pipeline.push_numbered(1).await?;
    let stale = pipeline.next().await?;
    // It comes again when the channel is closed.
    let again = pipeline.next().await?;
    assert_eq!(*again.id(), pushed[0]);
    let Err(refused) = stale.ack().await else { panic!("a stale receipt was taken") };
    assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}");
    // If its channel is closed too before it is acknowledged, it comes once more.
    drop(again.ack().await);
    pipeline.push_eventually(1).await?;
    pipeline.drain(1).await?;
    Ok(())
}
