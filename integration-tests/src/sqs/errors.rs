//! What can be wrong with an address or credentials: each is an error of its own.

use std::sync::Arc;

use jobs_core::{Error, ErrorKind};
use jobs_kit::{Case, CaseError, CaseResult, Fixture};

use super::{case, finish, gated};
use crate::elasticmq::Servers;
use crate::gate::{Deed, MakeDeed};

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        case(
            servers,
            "errors::of_credentials",
            &[8],
            "credentials, region and clock: Denied, for good, each with its reason",
            of_credentials,
        ),
        case(
            servers,
            "errors::throttled",
            &[8],
            "Throttled, and transient: too many requests, or too many jobs in flight",
            throttled,
        ),
        case(
            servers,
            "errors::over_the_limit_of_jobs",
            &[9],
            "a queue with too many jobs in flight is asked again, and the reason is told",
            over_the_limit_of_jobs,
        ),
        Case::new(
            "errors::a_missing_queue",
            &[8],
            "NotFound: the queue is to exist, and does not",
            a_missing_queue,
        ),
        case(
            servers,
            "errors::a_queue_that_is_deleted",
            &[1, 8],
            "NotFound: the queue was deleted while it was used",
            a_queue_that_is_deleted,
        ),
        Case::new(
            "errors::nobody_listens",
            &[8],
            "Connection, and transient: the service may be back soon",
            nobody_listens,
        ),
        Case::new(
            "errors::an_unresolvable_name",
            &[8],
            "Connection, and transient: the network may be back soon",
            an_unresolvable_name,
        ),
        case(
            servers,
            "errors::silence",
            &[8],
            "Timeout: no request waits for ever, also the first",
            silence,
        ),
    ]
}

/// What connecting answers when the service answers so.
async fn connect(fx: &Fixture, servers: &Servers, deed: MakeDeed) -> Result<Error, CaseError> {
    let (gate, config) = gated(fx, servers).await?;
    gate.rule(move |_, _| deed());
    let config = config.with_option("connect_timeout", "2s");
    let answer = fx.within("connect", fx.connect(config)).await?;
    Ok(answer.map(drop).expect_err("the service refuses everything"))
}

/// An error with all that caused it.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text.to_lowercase()
}

async fn of_credentials(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let table: [(MakeDeed, &str); 6] = [
        (
            || {
                let message = "The security token included in the request is invalid.";
                Deed::refuse(403, "InvalidClientTokenId", message)
            },
            "invalid",
        ),
        (
            || {
                let message = "The request signature we calculated does not match.";
                Deed::refuse(403, "SignatureDoesNotMatch", message)
            },
            "signature",
        ),
        (
            || {
                let message = "Credential should be scoped to a valid region.";
                Deed::refuse(403, "InvalidSignatureException", message)
            },
            "region",
        ),
        (
            || {
                let message = "The security token included in the request is expired";
                Deed::refuse(403, "ExpiredToken", message)
            },
            "expired",
        ),
        (
            || {
                let message = "Signature expired: 20260101T000000Z is now earlier than that.";
                Deed::refuse(403, "RequestTimeTooSkewed", message)
            },
            "clock",
        ),
        (
            || {
                let message = "User is not authorized to perform: sqs:getqueueurl";
                Deed::refuse(403, "AccessDeniedException", message)
            },
            "not authorized",
        ),
    ];
    for (deed, reason) in table {
        let error = connect(&fx, &servers, deed).await?;
        assert_eq!(error.kind(), ErrorKind::Denied, "{reason}: {error:?}");
        assert!(!error.is_retryable() && told(&error).contains(reason), "{reason}: {error:?}");
    }
    Ok(())
}

async fn throttled(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let table: [MakeDeed; 3] = [
        || Deed::refuse(400, "ThrottlingException", "Rate exceeded"),
        || Deed::refuse(400, "RequestThrottled", "Request is throttled."),
        || Deed::refuse(403, "OverLimit", "Too many messages in flight"),
    ];
    for deed in table {
        let error = connect(&fx, &servers, deed).await?;
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Throttled, true), "{error:?}");
    }
    Ok(())
}

async fn over_the_limit_of_jobs(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.connect(config).await?;
    let pushed = pipeline.push_numbered(1).await?;
    gate.next("ReceiveMessage", usize::MAX, || {
        Deed::refuse(403, "OverLimit", "Too many messages in flight")
    });
    pipeline.run().await?;
    pipeline.expect_state("the reason", |state| state.last_error.is_some()).await?;
    pipeline.expect_quiet().await?;
    gate.open();
    assert_eq!(pipeline.ack_next(1).await?, pushed);
    finish(&pipeline).await
}

async fn a_missing_queue(fx: Fixture) -> CaseResult {
    let config = fx.configure().await?.with_option("skip_queue_declaration", true);
    let answer = fx.within("connect", fx.connect(config)).await?;
    fx.expect_refused(answer, ErrorKind::NotFound)?;
    Ok(())
}

async fn a_queue_that_is_deleted(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline_of(10).await?;
    pipeline.push_numbered(1).await?;
    pipeline.ack_next(1).await?;
    let operator = servers.shared().await?.operator();
    operator.delete(super::harness::option(pipeline.config(), "queue")).await?;
    let answer = fx.within("a push", pipeline.push(fx.message("nowhere"))).await?;
    fx.expect_refused(answer, ErrorKind::NotFound)?;
    fx.expect_refused(pipeline.state().await, ErrorKind::NotFound)?;
    pipeline.stop().await?;
    Ok(())
}

async fn nobody_listens(fx: Fixture) -> CaseResult {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    drop(listener);
    unreachable(&fx, &format!("http://{address}")).await
}

async fn an_unresolvable_name(fx: Fixture) -> CaseResult {
    unreachable(&fx, "http://no-such-name.invalid:9324").await
}

async fn unreachable(fx: &Fixture, endpoint: &str) -> CaseResult {
    let config = fx.configure().await?.with_option("endpoint", endpoint);
    let answer = fx.within("connect", fx.connect(config)).await?;
    let error = answer.expect_err("nobody is there");
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Connection, true), "{error:?}");
    Ok(())
}

async fn silence(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let error = connect(&fx, &servers, || Deed::Silence).await?;
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Timeout, true), "{error:?}");
    Ok(())
}
