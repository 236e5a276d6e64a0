//! Jobs of others: of RoadRunner, and of whoever puts bytes into a tube.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Headers, Outcome};
use jobs_kit::{Case, CaseResult, Fixture};

use super::case;
use crate::beanstalkd::Servers;

/// What RoadRunner's driver stored for a job.
const ROADRUNNER: &str = "\
    3c7f030101044974656d01ff8000010401034a6f62010c0001054964656e74010c0001075061796c6f6164010a0001\
    074f7074696f6e7301ff820000004fff81030101074f7074696f6e7301ff8200010501085072696f72697479010400\
    0108506970656c696e65010c00010544656c617901040001074175746f41636b01020001055175657565010c000000\
    30ff8001086170702e6d61696c010769642d30303033010568656c6c6f010106010d6361702d6265616e7374616c6b\
    0000";

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        case(
            servers,
            "foreign::raw_bytes",
            &[8],
            "a body of others is delivered as it is, and stays so; the server counts its attempts",
            raw_bytes,
        ),
        case(servers, "foreign::roadrunner", &[8], "RoadRunner's jobs are read", roadrunner),
    ]
}

async fn raw_bytes(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let mut operator = servers.shared().await?.operator().await?;
    let every_byte: Vec<u8> = (0..=u8::MAX).collect();
    let id = operator.put(pipeline.config().name(), &every_byte).await?;
    let outcomes =
        [Outcome::requeue(), Outcome::Release, Outcome::requeue_after(Duration::from_millis(10))];
    for (before, outcome) in outcomes.into_iter().enumerate() {
        let job = pipeline.next().await?;
        assert_eq!((job.name(), &job.payload()[..]), ("deduced_by_rr", &every_byte[..]));
        assert_eq!((job.position(), job.attempt() as usize), (Some(id), before + 1));
        job.settle(outcome).await?;
    }
    // With other headers it becomes one of ours.
    let headers: Headers = [("seen", "yes")].into_iter().collect();
    let job = pipeline.next().await?;
    let known = job.id().clone();
    job.settle(Outcome::Requeue { delay: Duration::ZERO, headers: Some(headers) }).await?;
    let job = pipeline.next().await?;
    assert_eq!((job.id(), &job.payload()[..], job.attempt()), (&known, &every_byte[..], 5));
    assert_eq!(job.headers().get("seen"), Some("yes"));
    job.ack().await?;
    operator.put(pipeline.config().name(), b"").await?;
    let empty = pipeline.next().await?;
    assert!(empty.payload().is_empty());
    drop(empty);
    let again = pipeline.next().await?;
    assert_eq!(again.attempt(), 2, "dropped");
    again.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn roadrunner(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let mut operator = servers.shared().await?.operator().await?;
    let digits = (0..ROADRUNNER.len()).step_by(2).map(|at| &ROADRUNNER[at..at + 2]);
    let body: Result<Vec<u8>, _> = digits.map(|byte| u8::from_str_radix(byte, 16)).collect();
    operator.put(pipeline.config().name(), &body?).await?;
    for attempt in 1..=2 {
        let job = pipeline.next().await?;
        assert_eq!((job.name(), job.id().as_str()), ("app.mail", "id-0003"));
        assert_eq!((&job.payload()[..], job.attempt()), (&b"hello"[..], attempt));
        assert_eq!(job.message().priority(), Some(3));
        match attempt {
            1 => job.requeue(Duration::ZERO).await?,
            _ => job.ack().await?,
        }
    }
    pipeline.expect_empty().await?;
    Ok(())
}
