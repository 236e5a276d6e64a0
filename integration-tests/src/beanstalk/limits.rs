//! Limits of the server: of sizes, of memory, and of its patience.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs_core::{Bytes, ErrorKind, Message, Pipeline};
use jobs_kit::{Case, CaseError, CaseResult, Fixture};

use super::{case, ours};
use crate::beanstalkd::{Beanstalkd, Mode, Servers};

const PUSH_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        Case::new("limits::every_byte", &[8], "payloads of any bytes arrive", every_byte),
        Case::new(
            "limits::the_largest_job",
            &[8],
            "a payload up to the server's limit less the envelope arrives, one byte more is refused",
            the_largest_job,
        ),
        case(
            servers,
            "limits::the_longest_tube",
            &[8],
            "a tube's name may have 200 bytes, and every character the server allows",
            the_longest_tube,
        ),
        Case::new(
            "limits::memory_full",
            &[1, 8],
            "a server without memory is Full after push_timeout, and works on when there is some",
            memory_full,
        ),
        Case::new(
            "limits::drain_mode",
            &[1, 8],
            "a server in drain mode is Throttled after push_timeout, and its jobs are worked off",
            drain_mode,
        ),
    ]
}

async fn every_byte(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let payloads = [
        Bytes::new(),
        Bytes::from(all.repeat(8)),
        Bytes::from_static(b"\r\n"),
        Bytes::from_static("jobs/1 {}\n\u{0}äß☃".as_bytes()),
        Bytes::from_static(b"\xff"),
    ];
    for payload in payloads {
        pipeline.push(fx.message(payload.clone())).await?;
        let job = pipeline.next().await?;
        assert_eq!(*job.payload(), payload);
        job.requeue(Duration::ZERO).await?;
        let again = pipeline.next().await?;
        assert_eq!(*again.payload(), payload, "as a copy");
        again.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn the_largest_job(fx: Fixture) -> CaseResult {
    /// What the server takes unless told otherwise.
    const MOST: usize = 65_535;
    let pipeline = fx.pipeline().await?;
    for byte in [b'x', 0xff] {
        // The envelope's size is the same for each of them.
        let message = |size| Message::known("id", "name", vec![byte; size]);
        let fits = async |size: usize| pipeline.push(message(size)).await;
        let (mut low, mut high) = (1_000, MOST);
        while high - low > 1 {
            let middle = low.midpoint(high);
            match fits(middle).await {
                Ok(()) => {
                    let job = pipeline.next().await?;
                    assert_eq!(job.payload()[..], vec![byte; middle][..]);
                    // A copy has room for its attempt.
                    job.requeue(Duration::ZERO).await?;
                    let again = pipeline.next().await?;
                    assert_eq!((again.payload().len(), again.attempt()), (middle, 2));
                    again.ack().await?;
                    low = middle;
                }
                refused => {
                    fx.expect_refused(refused, ErrorKind::PayloadTooLarge)?;
                    high = middle;
                }
            }
        }
        let written = if byte == b'x' { low } else { low.div_ceil(3) * 4 };
        // 256 bytes are left for the envelope, and 15 for the attempt.
        assert!(written > MOST - 300, "{low} bytes of {byte:#x} fit");
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn the_longest_tube(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let config = fx.configure().await?;
    let tube = format!("{:x<200}", format!("{}+/;.$_()", config.name()));
    let pipeline = fx.start(config.with_option("tube", tube.as_str())).await?;
    let pushed = pipeline.push_numbered(3).await?;
    assert_eq!(pipeline.state().await?.queue.len(), 200);
    assert_eq!(pipeline.drain(3).await?.len(), pushed.len());
    pipeline.expect_empty().await?;
    pipeline.stop().await?;
    servers.shared().await?.operator().await?.empty(&tube).await?;
    Ok(())
}

/// A pipeline on a server of its own.
async fn on(fx: &Fixture, server: &Beanstalkd) -> Result<Pipeline, CaseError> {
    let config = fx.configure().await?.with_option("addr", server.url());
    Ok(fx.harness().with_push_timeout(config, PUSH_TIMEOUT))
}

async fn memory_full(fx: Fixture) -> CaseResult {
    ours()?;
    let server = Beanstalkd::start(Mode::Small, false).await?;
    let pipeline = fx.start(on(&fx, &server).await?).await?;
    pipeline.pause().await?;
    let mut stored = 0;
    let error = loop {
        let start = Instant::now();
        match pipeline.push(fx.message(vec![b'x'; 60_000])).await {
            Ok(()) => stored += 1,
            Err(error) => {
                assert!(start.elapsed() >= PUSH_TIMEOUT, "it waits for room");
                break error;
            }
        }
        assert!(stored < 10_000, "that much memory it should not have");
    };
    assert_eq!(error.kind(), ErrorKind::Full, "{error:?}");
    assert!(error.is_retryable() && !error.may_be_stored(), "{error:?}");
    pipeline.resume().await?;
    pipeline.ack_next(stored).await?;
    pipeline.push_eventually(1).await?;
    pipeline.ack_next(1).await?;
    pipeline.expect_empty().await?;
    pipeline.stop().await?;
    Ok(())
}

async fn drain_mode(fx: Fixture) -> CaseResult {
    ours()?;
    let server = Beanstalkd::start(Mode::Memory, false).await?;
    let pipeline = fx.start(on(&fx, &server).await?).await?;
    let pushed = pipeline.push_numbered(3).await?;
    let mut jobs = pipeline.take(3).await?;
    server.signal("USR1").await?;
    let mut operator = server.operator().await?;
    fx.eventually("drain mode", async || match operator.stats("stats").await {
        Ok(stats) if stats.get("draining").is_some_and(|yes| yes == "true") => Ok(()),
        stats => Err(format!("{stats:?}")),
    })
    .await?;
    let start = Instant::now();
    let error = pipeline.push(fx.message("too late")).await.expect_err("it takes no more");
    assert_eq!(error.kind(), ErrorKind::Throttled, "{error:?}");
    assert!(error.is_retryable() && !error.may_be_stored(), "{error:?}");
    assert!(start.elapsed() >= PUSH_TIMEOUT, "it waits until that is over");
    // What it has is worked off, also what goes back.
    jobs.pop().expect("three").requeue(Duration::from_millis(1)).await?;
    drop(jobs.pop());
    jobs.pop().expect("one").release().await?;
    let found = pipeline.drain(3).await?;
    assert_eq!(found.len(), pushed.len());
    pipeline.expect_empty().await?;
    pipeline.stop().await?;
    Ok(())
}
