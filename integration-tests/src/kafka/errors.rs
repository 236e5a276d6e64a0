//! What can be wrong with a cluster, a topic or a user: each is an error of its own.

use std::sync::Arc;

use jobs_core::{ErrorKind, Pipeline};
use jobs_kit::{Case, CaseResult, Fixture};
use serde_json::json;

use super::{case, harness};
use crate::kafkad::{Brokers, STRANGER};

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(
            brokers,
            "errors::an_unknown_topic",
            &[1],
            "NotFound, and nothing is stored",
            an_unknown_topic,
        ),
        case(
            brokers,
            "errors::nobody_listens",
            &[],
            "Connection, and transient: the broker may be about to start",
            nobody_listens,
        ),
        case(
            brokers,
            "errors::no_tls",
            &[],
            "a broker that does not speak TLS is no broker",
            no_tls,
        ),
        case(brokers, "errors::too_large", &[8], "PayloadTooLarge, before any I/O", too_large),
    ]
}

/// Of a broker that asks who is there.
pub(super) fn tls(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(brokers, "errors::a_wrong_password", &[], "Denied", a_wrong_password),
        case(
            brokers,
            "errors::a_missing_permission",
            &[],
            "Denied: the user may log in and do nothing",
            a_missing_permission,
        ),
        case(
            brokers,
            "errors::an_unknown_authority",
            &[],
            "a certificate that nobody we trust has signed is refused",
            an_unknown_authority,
        ),
    ]
}

async fn an_unknown_topic(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let config = fx.configure().await?;
    let unknown = format!("{}-unknown", config.name());
    let config = config
        .with_option("auto_create_topics_enable", false)
        .with_option("push_timeout", "5s")
        .with_option("topic", unknown.as_str());
    let answer = async { fx.connect(config).await?.push(fx.message("nowhere")).await };
    let answer = fx.within("a push", answer).await?;
    fx.expect_refused(answer, ErrorKind::NotFound)?;
    let found = brokers.shared().await?.operator().topics(&unknown).await?;
    assert!(found.is_empty(), "{found:?} was created");
    Ok(())
}

/// Demands that connecting fails, and says that it is no use to try again or that it may be.
async fn expect_no_connection(fx: &Fixture, config: Pipeline) -> CaseResult {
    let config = config.with_option("connect_timeout", "3s");
    let error = fx.within("connect", fx.connect(config)).await?.expect_err("nobody is there");
    let kinds = [ErrorKind::Connection, ErrorKind::Timeout];
    assert!(kinds.contains(&error.kind()), "{error:?}");
    Ok(())
}

async fn nobody_listens(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    // The discard port: nobody has it open any more.
    let config = fx.configure().await?.with_option("brokers", json!(["127.0.0.1:9"]));
    let config = config.with_option("connect_timeout", "3s");
    let error = fx.within("connect", fx.connect(config)).await?.expect_err("nobody is there");
    let kinds = [ErrorKind::Connection, ErrorKind::Timeout];
    assert!(kinds.contains(&error.kind()) && error.is_retryable(), "{error:?}");
    Ok(())
}

async fn no_tls(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let config = fx.configure().await?.with_option("tls", json!({ "enable": true }));
    expect_no_connection(&fx, config).await
}

async fn too_large(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let most = pipeline.driver().capabilities().max_payload.expect("there is a limit");
    let answer = pipeline.push(fx.message(vec![b'x'; most + 1])).await;
    fx.expect_refused(answer, ErrorKind::PayloadTooLarge)?;
    pipeline.push(fx.message(vec![b'x'; most])).await?;
    let job = pipeline.next().await?;
    assert_eq!(job.payload().len(), most);
    job.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn a_wrong_password(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let config = harness::with(fx.configure().await?, "sasl", "password", "wrong");
    let answer = fx.within("connect", fx.connect(config)).await?;
    fx.expect_refused(answer, ErrorKind::Denied)?;
    Ok(())
}

async fn a_missing_permission(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let config = harness::with(fx.configure().await?, "sasl", "username", STRANGER);
    let config = config.with_option("push_timeout", "5s");
    let answer = async { fx.connect(config).await?.push(fx.message("not allowed")).await };
    let answer = fx.within("a push", answer).await?;
    fx.expect_refused(answer, ErrorKind::Denied)?;
    Ok(())
}

async fn an_unknown_authority(fx: Fixture, _: Arc<Brokers>) -> CaseResult {
    let config = fx.configure().await?.with_option("tls", json!({ "enable": true }));
    expect_no_connection(&fx, config).await
}
