//! Topics that an operator deletes.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::ErrorKind;
use jobs_kit::{Case, CaseResult, Fixture};

use super::rebalance::ack_until_found;
use super::{case, delete};
use crate::kafkad::Brokers;

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(
            brokers,
            "gone::a_topic_while_consuming",
            &[9],
            "a topic that is deleted and made again is consumed again, from its beginning",
            a_topic_while_consuming,
        ),
        case(
            brokers,
            "gone::a_topic_at_a_push",
            &[1],
            "a push to a topic that is gone is NotFound, and stores nothing",
            a_topic_at_a_push,
        ),
        case(
            brokers,
            "gone::the_topic_of_delays",
            &[1],
            "a delay topic that somebody has deleted is made again by the next delay",
            the_topic_of_delays,
        ),
    ]
}

async fn a_topic_while_consuming(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let config = fx.configure().await?.with_option("auto_create_topics_enable", false);
    let pipeline = fx.start(config).await?;
    let operator = brokers.shared().await?.operator();
    let topic = pipeline.config().name().to_owned();
    pipeline.push_numbered(10).await?;
    pipeline.ack_next(10).await?;
    for _ in 0..2 {
        delete(&fx, &operator, &topic).await?;
        operator.create_topic(&topic, 1).await?;
        let pushed = pipeline.push_eventually(3).await?;
        ack_until_found(&pipeline, pushed).await?;
    }
    pipeline.drain(0).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_topic_at_a_push(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let config = fx.configure().await?.with_option("auto_create_topics_enable", false);
    let pipeline = fx.connect(config.with_option("push_timeout", "5s")).await?;
    pipeline.push(fx.message("there")).await?;
    let operator = brokers.shared().await?.operator();
    let topic = pipeline.config().name().to_owned();
    operator.delete_topics(vec![topic.clone()]).await?;
    // Until the client has heard of it, it sends to the broker that had it.
    fx.eventually("it is heard of", async || match pipeline.push(fx.message("gone")).await {
        Err(error) if error.kind() == ErrorKind::NotFound && !error.may_be_stored() => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await?;
    operator.create_topic(&topic, 1).await?;
    pipeline.push_eventually(1).await?;
    assert_eq!(operator.watermarks(&topic, 0).await?.1, 1, "only what was pushed since");
    Ok(())
}

async fn the_topic_of_delays(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let operator = brokers.shared().await?.operator();
    let topic = format!("jobs-delay.{name}.{name}", name = pipeline.config().name());
    for _ in 0..2 {
        let message = fx.message("later").with_delay(Duration::from_millis(100));
        let pushed = message.id().clone();
        // The client may end a producer that counted records of the topic before.
        fx.eventually("it is taken", async || {
            pipeline.push(message.clone()).await.map_err(|error| format!("{error:?}"))
        })
        .await?;
        ack_until_found(&pipeline, [pushed]).await?;
        delete(&fx, &operator, &topic).await?;
    }
    Ok(())
}
