//! Whom a TLS connection trusts.

use std::sync::Arc;

use jobs_core::ErrorKind;
use jobs_kit::{Case, CaseResult, Fixture};
use serde_json::json;

use super::case;
use crate::rabbitmq::Brokers;

pub(super) fn cases(brokers: &Arc<Brokers>) -> Vec<Case> {
    vec![
        Case::new(
            "tls::an_unknown_authority_is_refused",
            &[],
            "a certificate that nobody we trust has signed is refused, for good",
            an_unknown_authority_is_refused,
        ),
        case(
            brokers,
            "tls::another_host_is_refused",
            &[],
            "a certificate of another host is refused, for good",
            another_host_is_refused,
        ),
    ]
}

async fn an_unknown_authority_is_refused(fx: Fixture) -> CaseResult {
    let config = fx.configure().await?.with_option("tls", json!({}));
    let answer = fx.within("connect", fx.connect(config)).await?;
    fx.expect_refused(answer, ErrorKind::Connection)?;
    Ok(())
}

async fn another_host_is_refused(fx: Fixture, brokers: Arc<Brokers>) -> CaseResult {
    let (broker, _) = brokers.encrypted().await?;
    let url = broker.encrypted_url().replacen("localhost", "127.0.0.2", 1);
    let config = fx.configure().await?.with_option("addr", url);
    let answer = fx.within("connect", fx.connect(config)).await?;
    let error = answer.expect_err("the certificate is for localhost");
    assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
    Ok(())
}
