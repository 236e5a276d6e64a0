//! Connections that break at the worst moment.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Bytes, ErrorKind};
use jobs_kit::proxy::{Direction, End, Trap};
use jobs_kit::{Case, CaseResult, Fault, Feature, Fixture, Proxy};

use super::{case, ours};
use crate::beanstalkd::{Beanstalkd, Servers};

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    const RESET: &[Feature] = &[Feature::Fault(Fault::Reset)];
    vec![
        case(
            servers,
            "broken::between_put_and_inserted",
            &[1],
            "a push whose answer did not come says that the message may be stored",
            between_put_and_inserted,
        )
        .needs(RESET),
        case(
            servers,
            "broken::before_put",
            &[1],
            "a message that did not leave is not lost without a word",
            before_put,
        )
        .needs(RESET),
        case(
            servers,
            "broken::before_reserved",
            &[3],
            "a job whose delivery did not arrive comes again",
            before_reserved,
        )
        .needs(RESET),
        case(
            servers,
            "broken::between_reserved_and_delete",
            &[3, 7],
            "a job whose deletion did not arrive comes again, and other receipts of its connection are \
             refused",
            between_reserved_and_delete,
        )
        .needs(RESET),
        case(
            servers,
            "broken::between_copy_and_delete",
            &[5],
            "a requeue that is cut between copy and deletion gives a duplicate, never a loss",
            between_copy_and_delete,
        )
        .needs(RESET),
        case(
            servers,
            "broken::half_an_answer",
            &[1, 8],
            "a reply that ends half way, before its end or behind it, is a lost connection",
            half_an_answer,
        )
        .needs(RESET),
        case(
            servers,
            "broken::half_a_job",
            &[3, 8],
            "a job whose bytes end half way comes again",
            half_a_job,
        )
        .needs(RESET),
        case(
            servers,
            "broken::a_time_to_run_that_ends",
            &[2, 7],
            "a reservation that cannot be renewed ends; the job runs elsewhere, and its old receipt is \
             refused",
            a_time_to_run_that_ends,
        )
        .needs(RESET),
    ]
}

fn trap(server: &Beanstalkd, direction: Direction, word: &'static str) -> Trap {
    let is_chosen = move |frame: &[u8]| frame.starts_with(word.as_bytes());
    server.control.proxy().trap_frame(direction, End::Reset, is_chosen)
}

async fn between_put_and_inserted(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let trap = trap(servers.own().await?, Direction::ToClient, "INSERTED");
    let message = fx.message("stored, but who knows");
    let answer = fx.within("a push", pipeline.push(message.clone())).await?;
    fx.within("the trap", trap.sprung()).await?;
    let error = answer.expect_err("the answer did not come");
    assert!(error.is_retryable() && error.may_be_stored(), "{error:?}");
    assert_eq!(pipeline.drain(1).await?, [message.id().clone()], "the server had it");
    pipeline.expect_empty().await?;
    Ok(())
}

async fn before_put(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let trap = trap(servers.own().await?, Direction::ToServer, "put ");
    let answer = fx.within("a push", pipeline.push(fx.message("left, but did not arrive"))).await?;
    fx.within("the trap", trap.sprung()).await?;
    // The driver cannot know that it did not arrive.
    let error = answer.expect_err("the answer did not come");
    assert!(error.is_retryable() && error.may_be_stored(), "{error:?}");
    pipeline.expect_empty().await?;
    let pushed = pipeline.push_eventually(1).await?;
    assert_eq!(pipeline.drain(1).await?, pushed);
    Ok(())
}

async fn before_reserved(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let trap = trap(servers.own().await?, Direction::ToClient, "RESERVED");
    let pushed = pipeline.push_eventually(1).await?;
    fx.within("the trap", trap.sprung()).await?;
    let job = pipeline.next().await?;
    assert_eq!((job.id(), job.attempt()), (&pushed[0], 2), "the server counted");
    job.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn between_reserved_and_delete(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let config = fx.configure_prefetch(4).await?.with_option("connections", 1);
    let pipeline = fx.start(config).await?;
    pipeline.push_numbered(2).await?;
    let mut held = pipeline.take(2).await?;
    let trap = trap(servers.own().await?, Direction::ToServer, "delete ");
    let first = held.remove(0);
    let id = first.id().clone();
    let Err(refused) = fx.within("an ack", first.ack()).await? else {
        panic!("nobody confirmed it")
    };
    assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}");
    drop(refused);
    fx.within("the trap", trap.sprung()).await?;
    let again = pipeline.take(2).await?;
    assert!(again.iter().any(|job| *job.id() == id), "its deletion did not arrive");
    for stale in held {
        let Err(refused) = stale.ack().await else { panic!("a stale receipt was taken") };
        assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}");
    }
    for job in again {
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn between_copy_and_delete(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let pushed = pipeline.push_numbered(1).await?;
    let job = pipeline.next().await?;
    let trap = trap(servers.own().await?, Direction::ToServer, "delete ");
    drop(fx.within("a requeue", job.requeue(Duration::ZERO)).await?);
    fx.within("the trap", trap.sprung()).await?;
    let found = pipeline.drain(2).await?;
    assert_eq!(found, [pushed[0].clone(), pushed[0].clone()], "the original and its copy");
    pipeline.expect_empty().await?;
    Ok(())
}

async fn half_an_answer(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let proxy = servers.own().await?.control.proxy();
    let config = fx.configure().await?.with_option("connections", 1);
    let pipeline = fx.connect(config).await?;
    let mut pushed = pipeline.push_eventually(1).await?;
    for count in [0, 1, 8, 9, 10, 11] {
        let trap = proxy.trap_byte(Direction::ToClient, End::Reset, count);
        // What the trap springs on may be a question whether the connection lives.
        let message = fx.message("half answered");
        match fx.within("a push", pipeline.push(message.clone())).await? {
            Ok(()) => pushed.push(message.id().clone()),
            // Whether it may be stored depends on what the trap sprang on.
            Err(error) => assert!(error.is_retryable(), "{error:?}"),
        }
        fx.within("the trap", trap.sprung()).await?;
        pushed.extend(pipeline.push_eventually(1).await?);
    }
    pipeline.run_eventually().await?;
    let found = pipeline.drain(pushed.len()).await?;
    for id in &pushed {
        assert!(found.contains(id), "{id} was stored, and is lost");
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn half_a_job(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let server = servers.own().await?;
    let pipeline = fx.connect(fx.configure_prefetch(1).await?).await?;
    let message = fx.message(Bytes::from(vec![b'x'; 20_000]));
    pipeline.push(message.clone()).await?;
    // Behind the answers to `use`, `watch` and `ignore`.
    let trap = server.control.proxy().trap_byte(Direction::ToClient, End::Close, 10_000);
    pipeline.run().await?;
    fx.within("the trap", trap.sprung()).await?;
    let job = pipeline.next().await?;
    assert_eq!((job.id(), job.payload()), (message.id(), message.payload()));
    job.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

/// A proxy that forwards nothing. It does again when this is dropped: other cases use it, too.
struct Stalled<'a>(&'a Proxy);

impl<'a> Stalled<'a> {
    fn new(proxy: &'a Proxy) -> Self {
        proxy.stall();
        Self(proxy)
    }
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        self.0.restore();
    }
}

/// Lets the time to run of a reserved job end. beanstalkd 1.13 overlooks an end that it looks at in
/// the very microsecond (`conn_timeout` asks for `deadline_at < now`), which it does about every
/// second time, as it does not sleep in the last millisecond. One that was paused meanwhile looks late.
async fn end_time_to_run(fx: &Fixture, server: &Beanstalkd, id: u64) -> CaseResult {
    const NEAR: Duration = Duration::from_secs(2);
    let mut operator = server.operator().await?;
    fx.eventually("the time to run is almost over", async || {
        let stats = operator.stats(&format!("stats-job {id}")).await;
        let stats = stats.map_err(|error| error.to_string())?;
        let left = stats.get("time-left").and_then(|left| left.parse::<u64>().ok());
        match left {
            // Whole seconds, rounded down.
            Some(left) if left < NEAR.as_secs() => Ok(()),
            _ => Err(format!("{stats:?}")),
        }
    })
    .await?;
    server.control.begin(Fault::Stall).await?;
    tokio::time::sleep(NEAR).await;
    server.control.end(Fault::Stall).await?;
    Ok(())
}

async fn a_time_to_run_that_ends(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    ours()?;
    let server = servers.own().await?;
    let config = fx.configure().await?.with_option("time_to_run", "5s");
    let pipeline = fx.start(config).await?;
    let pushed = pipeline.push_numbered(1).await?;
    let stale = pipeline.next().await?;
    // Only the way to it is silent: it goes on counting.
    let stalled = Stalled::new(server.control.proxy());
    end_time_to_run(&fx, server, stale.position().expect("its number")).await?;
    let mut operator = server.operator().await?;
    let tube = pipeline.config().name().to_owned();
    let ready = fx.eventually("the job is ready again", async || {
        let stats = operator.stats(&format!("stats-tube {tube}")).await;
        match stats.map_err(|error| error.to_string())?.get("current-jobs-ready") {
            Some(ready) if ready == "1" => Ok(()),
            found => Err(format!("{found:?}")),
        }
    });
    ready.await?;
    let before = operator.figure("cmd-delete").await?;
    let Err(refused) = fx.within("an ack", stale.ack()).await? else {
        panic!("a stale receipt was taken")
    };
    assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}");
    drop(refused);
    drop(stalled);
    let again = pipeline.next().await?;
    assert_eq!((again.id(), again.attempt()), (&pushed[0], 2));
    again.ack().await?;
    // The original, replaced by a copy that knows its attempt, and the copy.
    fx.eventually("both are deleted", async || {
        match operator.figure("cmd-delete").await.map_err(|error| error.to_string())? {
            found if found == before + 2 => Ok(()),
            found => Err(format!("{found} deletions, {before} before")),
        }
    })
    .await?;
    pipeline.expect_empty().await?;
    let after = operator.figure("cmd-delete").await?;
    assert_eq!(after, before + 2, "nobody deleted it for the stale one");
    Ok(())
}
