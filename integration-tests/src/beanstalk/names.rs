//! Names that lead nowhere.

use std::net::ToSocketAddrs;
use std::sync::Arc;

use jobs_core::ErrorKind;
use jobs_kit::{Case, CaseError, CaseResult, Fixture};

use super::case;
use crate::beanstalkd::Servers;

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        Case::new(
            "names::unresolvable",
            &[8],
            "a name that does not resolve is a transient Connection error",
            unresolvable,
        ),
        Case::new(
            "names::ipv6_only",
            &[8],
            "a name with IPv6 addresses only is refused with the reason",
            ipv6_only,
        ),
        Case::new(
            "names::nobody_listens",
            &[8],
            "Connection, and transient: the server may be about to start",
            nobody_listens,
        ),
        case(servers, "names::a_name", &[], "a name with an IPv4 address is connected to", a_name),
    ]
}

async fn connect(fx: &Fixture, address: String) -> Result<jobs_core::Error, CaseError> {
    let config = fx.configure().await?.with_option("addr", address);
    let answer = fx.within("connect", fx.connect(config)).await?;
    Ok(answer.map(drop).expect_err("nobody is there"))
}

async fn unresolvable(fx: Fixture) -> CaseResult {
    let error = connect(&fx, "tcp://no-such-name.invalid:11300".into()).await?;
    assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
    assert!(error.is_retryable() && error.to_string().contains("does not resolve"), "{error:?}");
    Ok(())
}

async fn ipv6_only(fx: Fixture) -> CaseResult {
    const NAME: &str = "ip6-localhost";
    let resolved = (NAME, 11300).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    match resolved {
        Ok(found) if !found.is_empty() && found.iter().all(std::net::SocketAddr::is_ipv6) => {}
        found => return Err(CaseError::ignored(format!("here `{NAME}` is {found:?}"))),
    }
    let error = connect(&fx, format!("tcp://{NAME}:11300")).await?;
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Unsupported, false), "{error:?}");
    assert!(error.to_string().contains("IPv4 only"), "{error:?}");
    Ok(())
}

async fn nobody_listens(fx: Fixture) -> CaseResult {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    drop(listener);
    let error = connect(&fx, format!("tcp://{address}")).await?;
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Connection, true), "{error:?}");
    Ok(())
}

async fn a_name(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let address = servers.shared().await?.address();
    if !address.ip().is_loopback() {
        return Err(CaseError::ignored("the server is somewhere else"));
    }
    let config = fx.configure().await?;
    let config = config.with_option("addr", format!("tcp://localhost:{}", address.port()));
    let pipeline = fx.start(config).await?;
    pipeline.push_numbered(1).await?;
    pipeline.ack_next(1).await?;
    Ok(())
}
