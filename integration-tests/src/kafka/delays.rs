//! Delayed jobs, beyond what the kit asks of every driver.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs_core::{ErrorKind, State};
use jobs_kit::{Case, CaseResult, Fixture};

use super::case;
use crate::kafkad::Brokers;

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(
            brokers,
            "delays::due_jobs_move_while_paused",
            &[],
            "delayed jobs become due also while the pipeline is paused",
            due_jobs_move_while_paused,
        ),
        case(
            brokers,
            "delays::a_long_one_holds_up_no_short_one",
            &[],
            "a job that is due is not held up by those that are not",
            a_long_one_holds_up_no_short_one,
        ),
        case(
            brokers,
            "delays::outlive_all_consumers",
            &[1],
            "what is delayed while nobody consumes is delivered later, and never early",
            outlive_all_consumers,
        ),
        case(
            brokers,
            "delays::a_topic_of_another_kind_is_refused",
            &[8],
            "a delay topic that would not keep its records is refused",
            a_topic_of_another_kind_is_refused,
        ),
    ]
}

const SHORT: Duration = Duration::from_millis(200);

async fn due_jobs_move_while_paused(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    pipeline.pause().await?;
    pipeline.push(fx.message("due").with_delay(SHORT)).await?;
    let due = |state: &State| state.delayed == Some(0) && state.reserved == Some(1);
    pipeline.expect_state("it is due", due).await?;
    pipeline.expect_quiet().await?;
    pipeline.resume().await?;
    pipeline.ack_next(1).await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_long_one_holds_up_no_short_one(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    const LONG: Duration = Duration::from_secs(24 * 3600);
    let pipeline = fx.pipeline().await?;
    for delay in [LONG, LONG / 7, LONG / 100, Duration::from_secs(60)] {
        pipeline.push(fx.message("later").with_delay(delay)).await?;
    }
    for delay in [SHORT * 5, SHORT] {
        let start = Instant::now();
        pipeline.push(fx.message("soon").with_delay(delay)).await?;
        let job = pipeline.next().await?;
        let waited = start.elapsed();
        assert_eq!(job.payload(), "soon");
        assert!(waited >= delay && waited < delay + Duration::from_secs(15), "after {waited:?}");
        job.ack().await?;
    }
    pipeline.expect_state("the others wait", |state| state.delayed == Some(4)).await?;
    Ok(())
}

async fn outlive_all_consumers(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    const DELAY: Duration = Duration::from_secs(2);
    let producer = fx.connect(fx.configure().await?).await?;
    let start = Instant::now();
    producer.push(fx.message("late").with_delay(DELAY)).await?;
    for _ in 0..3 {
        let consumer = fx.start(producer.config().clone()).await?;
        consumer.stop().await?;
    }
    let last = fx.start(producer.config().clone()).await?;
    let job = last.next().await?;
    assert!(start.elapsed() >= DELAY, "after {:?}", start.elapsed());
    job.ack().await?;
    last.expect_empty().await?;
    Ok(())
}

async fn a_topic_of_another_kind_is_refused(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let config = fx.configure().await?;
    let topic = format!("jobs-delay.{name}.{name}", name = config.name());
    // As somebody would who does not know what it is for: kept for a week.
    brokers.shared().await?.operator().create_topic(&topic, 16).await?;
    let answer = async {
        let pipeline = fx.connect(config).await?;
        pipeline.push(fx.message("later").with_delay(SHORT)).await
    };
    let answer = fx.within("a push", answer).await?;
    fx.expect_refused(answer, ErrorKind::InvalidState)?;
    Ok(())
}
