//! Limits: of deliveries, of memory, and of what is on its way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs_core::ErrorKind;
use jobs_kit::proxy::Direction;
use jobs_kit::{Case, CaseResult, Fault, Feature, Fixture};

use super::{case, names};
use crate::rabbitmq::{Brokers, RabbitMq};

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    /// Of a broker that is ours, behind a proxy.
    const OURS: &[Feature] = &[Feature::Fault(Fault::Kill), Feature::Fault(Fault::Cut)];
    vec![
        Case::new(
            "limits::forty_releases",
            &[1],
            "releasing a job does not destroy it, however often",
            forty_releases,
        )
        .needs(&[Feature::Fault(Fault::Cut)]),
        case(
            brokers,
            "limits::pushes_without_confirms",
            &[],
            "concurrent pushes share round trips: none waits for the confirm of another",
            pushes_without_confirms,
        )
        .needs(&[Feature::Fault(Fault::Cut)]),
        case(
            brokers,
            "limits::a_memory_alarm",
            &[1],
            "a connection that the broker blocks is Throttled after push_timeout, and left if it dies; \
             what has time waits and is stored once",
            a_memory_alarm,
        )
        .needs(OURS),
    ]
}

async fn forty_releases(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let pushed = pipeline.push_numbered(1).await?;
    for _ in 0..40 {
        pipeline.next().await?.release().await?;
    }
    assert_eq!(pipeline.ack_next(1).await?, pushed);
    pipeline.expect_empty().await?;
    Ok(())
}

async fn pushes_without_confirms(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    const PUSHES: u32 = 1_024;
    let broker = brokers.own().await?;
    // The broker is not to be taken for dead while it cannot be heard.
    let pipeline = fx.connect(fx.configure().await?.with_option("heartbeat", "6s")).await?;
    let operator = broker.operator().await?;
    broker.control.proxy().hold(Direction::ToClient);
    let arrive = async {
        let queue = names::queue(pipeline.config());
        let arrived = fx.eventually("all arrive", async || match operator.ready(queue).await {
            Ok(PUSHES) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let arrived = arrived.await;
        broker.control.proxy().restore();
        arrived
    };
    let messages = (0..PUSHES).map(|_| fx.message("unconfirmed")).collect();
    let pushes = fx.within("the pushes", pipeline.push_batch(messages));
    let (pushed, arrived) = tokio::join!(pushes, arrive);
    arrived?;
    for pushed in pushed? {
        pushed?;
    }
    operator.close().await?;
    Ok(())
}

async fn a_memory_alarm(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    const PUSH_TIMEOUT: Duration = Duration::from_secs(1);
    /// More than the client is handed at once.
    const MANY: usize = 300;
    let broker = brokers.own().await?;
    let config = fx.configure().await?.with_option("push_timeout", "1s");
    let pipeline = fx.start(config).await?;
    pipeline.push_numbered(1).await?;
    pipeline.ack_next(1).await?;
    // On the same connection, which the push of the first blocks.
    let other = fx.connect(fx.configure().await?.with_option("push_timeout", "1s")).await?;
    let idle = fx.connect(fx.configure().await?.with_option("push_timeout", "1s")).await?;
    let patient = fx.connect(fx.configure().await?).await?;
    set_watermark(broker, "0.0001").await?;
    let start = Instant::now();
    let blocked = fx.within("a push", pipeline.push(fx.message("blocked"))).await;
    let waited = start.elapsed();
    let many = (0..MANY).map(|_| fx.message("patient")).collect();
    let waiting = fx.within("pushes that wait", patient.push_batch(many));
    let meanwhile = async {
        let kept = fx.within("a push", other.push(fx.message("kept"))).await;
        let idle_kept = fx.within("a push", idle.push(fx.message("kept"))).await;
        let start = Instant::now();
        let stopped = other.stop().await;
        let stopping = start.elapsed();
        // A connection that dies while it is blocked.
        let cut = fx.inject(Fault::Cut).await;
        let over = set_watermark(broker, "0.6").await;
        (kept, idle_kept, stopped, stopping, cut, over)
    };
    let (stored, (kept, idle_kept, stopped, stopping, cut, over)) =
        tokio::join!(waiting, meanwhile);
    over?;
    cut?;
    let error = blocked?.expect_err("the broker takes nothing");
    assert_eq!(error.kind(), ErrorKind::Throttled, "{error:?}");
    assert!(error.is_retryable() && waited >= PUSH_TIMEOUT, "after {waited:?}: {error:?}");
    for kept in [kept?, idle_kept?] {
        let error = kept.expect_err("the broker takes nothing");
        assert_eq!(error.kind(), ErrorKind::Throttled, "{error:?}");
        assert!(error.is_retryable() && !error.may_be_stored(), "{error:?}");
    }
    stopped?;
    assert!(stopping < Duration::from_secs(5), "nothing was to be flushed: {stopping:?}");
    for stored in stored? {
        stored?;
    }
    patient.run().await?;
    patient.ack_next(MANY).await?;
    patient.expect_empty().await?;
    idle.push_eventually(1).await?;
    let pushed = pipeline.push_eventually(1).await?;
    let found = pipeline.drain(1).await?;
    assert!(found.contains(&pushed[0]), "{found:?}");
    Ok(())
}

async fn set_watermark(broker: &RabbitMq, fraction: &str) -> CaseResult {
    broker.control(&["set_vm_memory_high_watermark", fraction]).await?;
    Ok(())
}
