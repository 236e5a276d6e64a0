//! What can be wrong with an address or a queue: each is an error of its own.

use std::sync::Arc;

use jobs_core::{ErrorKind, Pipeline};
use jobs_kit::{Case, CaseError, CaseResult, Fixture};
use lapin::uri::AMQPUri;

use super::{case, names};
use crate::rabbitmq::{Brokers, is_given};

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        case(brokers, "errors::a_wrong_password", &[], "Denied", |fx, brokers| {
            wrong_address(fx, brokers, ErrorKind::Denied, |uri| {
                uri.authority.userinfo.password = "wrong".into();
            })
        }),
        case(brokers, "errors::a_missing_virtual_host", &[], "NotFound", |fx, brokers| {
            wrong_address(fx, brokers, ErrorKind::NotFound, |uri| uri.vhost = "missing".into())
        }),
        case(
            brokers,
            "errors::a_virtual_host_without_access",
            &[],
            "Denied: the virtual host is there",
            a_virtual_host_without_access,
        ),
        case(
            brokers,
            "errors::a_missing_permission",
            &[],
            "Denied: the user may log in and do nothing",
            a_missing_permission,
        ),
        case(
            brokers,
            "errors::another_topology",
            &[],
            "InvalidState: the queue exists with other arguments",
            another_topology,
        ),
        case(
            brokers,
            "errors::no_tls",
            &[],
            "Connection, and for good: a broker that does not speak TLS will not learn it",
            no_tls,
        ),
        case(
            brokers,
            "errors::nobody_listens",
            &[],
            "Connection, and transient: the broker may be about to start",
            nobody_listens,
        ),
    ]
}

/// Demands that connecting fails so, for good.
async fn expect_refused(fx: &Fixture, config: Pipeline, kind: ErrorKind) -> CaseResult {
    let answer = fx.within("connect", fx.connect(config)).await?;
    fx.expect_refused(answer, kind)?;
    Ok(())
}

async fn wrong_address(
    fx: Fixture,
    brokers: Arc<Brokers>,
    kind: ErrorKind,
    change: fn(&mut AMQPUri),
) -> CaseResult {
    let url = brokers.shared().await?.url_with(change);
    let config = fx.configure().await?.with_option("addr", url);
    expect_refused(&fx, config, kind).await
}

/// A configuration for a user of its own, who has no rights.
async fn as_stranger(fx: &Fixture, brokers: &Brokers) -> Result<(Pipeline, String), CaseError> {
    if is_given() {
        return Err(CaseError::ignored("users of a broker that is somebody else's"));
    }
    let broker = brokers.shared().await?;
    let config = fx.configure().await?;
    let user = config.name().to_owned();
    broker.control(&["add_user", &user, "password"]).await?;
    let url = broker.url_with(|uri| {
        uri.authority.userinfo.username = user.clone();
        uri.authority.userinfo.password = "password".into();
    });
    Ok((config.with_option("addr", url), user))
}

async fn a_virtual_host_without_access(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let (config, _) = as_stranger(&fx, &brokers).await?;
    expect_refused(&fx, config, ErrorKind::Denied).await
}

async fn a_missing_permission(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let (config, user) = as_stranger(&fx, &brokers).await?;
    let broker = brokers.shared().await?;
    broker.control(&["set_permissions", "--vhost", "/", &user, "^$", "^$", "^$"]).await?;
    expect_refused(&fx, config, ErrorKind::Denied).await
}

async fn another_topology(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let config = fx.configure().await?;
    let operator = brokers.shared().await?.operator().await?;
    operator.declare_other(names::queue(&config)).await?;
    operator.close().await?;
    expect_refused(&fx, config, ErrorKind::InvalidState).await
}

async fn no_tls(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let url = brokers.shared().await?.url().replacen("amqp://", "amqps://", 1);
    let config = fx.configure().await?.with_option("addr", url);
    expect_refused(&fx, config, ErrorKind::Connection).await
}

async fn nobody_listens(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    // The discard port: nobody has it open any more.
    let url = brokers.shared().await?.url_with(|uri| {
        uri.authority.host = "127.0.0.1".into();
        uri.authority.port = 9;
    });
    let config = fx.configure().await?.with_option("addr", url);
    let config = config.with_option("connect_timeout", "2s");
    let error = fx.within("connect", fx.connect(config)).await?.expect_err("nobody is there");
    let kinds = [ErrorKind::Connection, ErrorKind::Timeout];
    assert!(kinds.contains(&error.kind()) && error.is_retryable(), "{error:?}");
    Ok(())
}
