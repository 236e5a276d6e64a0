//! What FIFO queues promise beyond the kit's cases.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{ErrorKind, Outcome};
use jobs_kit::{Case, CaseError, CaseResult, Fixture, TestPipeline};

use super::harness::option;
use super::{case, finish, gated};
use crate::elasticmq::Servers;
use crate::gate::{Deed, MakeDeed};

const JOBS: usize = 12;

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        Case::new(
            "fifo::one_group_runs_one_by_one",
            &[4],
            "with message_group_id jobs run in the order they were pushed, one at a time",
            one_group_runs_one_by_one,
        ),
        Case::new(
            "fifo::groups_run_side_by_side",
            &[4],
            "a job that is held holds up its own group only",
            groups_run_side_by_side,
        ),
        Case::new(
            "fifo::a_release_keeps_the_order",
            &[4],
            "giving a job back gives back the later ones of its group that were not started",
            |fx| goes_back(fx, Some(Outcome::Release)),
        ),
        Case::new(
            "fifo::a_requeue_keeps_the_order",
            &[4],
            "requeueing a job unchanged keeps its place in its group",
            |fx| goes_back(fx, Some(Outcome::requeue())),
        ),
        Case::new(
            "fifo::a_drop_keeps_the_order",
            &[3, 4],
            "a job that is dropped comes again before the later ones of its group",
            |fx| goes_back(fx, None),
        ),
        Case::new(
            "fifo::a_copy_goes_to_the_end",
            &[4, 5],
            "a requeue with other headers is a copy behind the others of its group, in whose order \
             nothing changes",
            a_copy_goes_to_the_end,
        ),
        Case::new(
            "fifo::copies_are_not_swallowed",
            &[5],
            "the service does not take copies for duplicates of their original, also for awkward ids",
            copies_are_not_swallowed,
        ),
        Case::new(
            "fifo::an_id_is_stored_once",
            &[],
            "a message that is pushed twice is stored once",
            an_id_is_stored_once,
        ),
        case(
            servers,
            "fifo::sends_of_unknown_fate",
            &[1],
            "what nobody answered for is sent again, as the service knows it again",
            sends_of_unknown_fate,
        ),
        case(
            servers,
            "fifo::a_failure_stops_its_group",
            &[1],
            "behind a message that was not stored no later one of its group is",
            a_failure_stops_its_group,
        ),
        case(
            servers,
            "fifo::dead_letters",
            &[],
            "a rejected job is in the queue for dead letters, whole",
            dead_letters,
        ),
    ]
}

/// A pipeline with one group, and its jobs pushed.
async fn one_group(fx: &Fixture) -> Result<TestPipeline, CaseError> {
    let config = fx.configure_prefetch(10).await?.with_option("message_group_id", "all");
    let pipeline = fx.start(config).await?;
    pipeline.push_numbered(JOBS).await?;
    Ok(pipeline)
}

fn number(job: &jobs_core::Job) -> usize {
    std::str::from_utf8(job.payload()).ok().and_then(|text| text.parse().ok()).expect("a number")
}

async fn one_group_runs_one_by_one(fx: Fixture) -> CaseResult {
    let pipeline = one_group(&fx).await?;
    for expected in 0..JOBS {
        let job = pipeline.next().await?;
        assert_eq!(number(&job), expected);
        if expected % 5 == 0 {
            pipeline.expect_quiet().await?;
        }
        job.ack().await?;
    }
    finish(&pipeline).await
}

async fn groups_run_side_by_side(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(10).await?;
    for key in ["held", "free", "held", "free"] {
        pipeline.push(fx.message(key).with_ordering_key(key)).await?;
    }
    let first = pipeline.next().await?;
    let second = pipeline.next().await?;
    assert_ne!(first.message().ordering_key(), second.message().ordering_key());
    let key = second.message().ordering_key().map(str::to_owned);
    second.ack().await?;
    let third = pipeline.next().await?;
    assert_eq!(third.message().ordering_key(), key.as_deref());
    third.ack().await?;
    pipeline.expect_quiet().await?;
    first.ack().await?;
    pipeline.ack_next(1).await?;
    finish(&pipeline).await
}

/// By this outcome, or by a drop.
async fn goes_back(fx: Fixture, outcome: Option<Outcome>) -> CaseResult {
    let pipeline = one_group(&fx).await?;
    for expected in 0..JOBS {
        let job = pipeline.next().await?;
        assert_eq!(number(&job), expected);
        if expected % 3 > 0 {
            job.ack().await?;
            continue;
        }
        let attempt = job.attempt();
        match &outcome {
            Some(outcome) => job.settle(outcome.clone()).await?,
            None => drop(job),
        }
        let again = pipeline.next().await?;
        assert_eq!(number(&again), expected, "no later one overtakes it");
        assert!(again.attempt() > attempt, "the service counts");
        again.ack().await?;
    }
    finish(&pipeline).await
}

async fn a_copy_goes_to_the_end(fx: Fixture) -> CaseResult {
    let pipeline = one_group(&fx).await?;
    let headers = [("changed", "yes")].into_iter().collect();
    let first = pipeline.next().await?;
    first.settle(Outcome::Requeue { delay: Duration::ZERO, headers: Some(headers) }).await?;
    for expected in 1..JOBS {
        let job = pipeline.next().await?;
        assert_eq!(number(&job), expected);
        job.ack().await?;
    }
    let copy = pipeline.next().await?;
    assert_eq!((number(&copy), copy.headers().get("changed")), (0, Some("yes")));
    assert!(copy.attempt() >= 2, "{copy:?}");
    copy.ack().await?;
    finish(&pipeline).await
}

async fn copies_are_not_swallowed(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(10).await?;
    let long = "x".repeat(255);
    for id in ["plain", "with#2", "with blanks", "ümläute ☃", long.as_str()] {
        let unique = format!("{id}-{}", jobs_core::JobId::random());
        let unique = if id.len() > 100 { id.to_owned() } else { unique };
        pipeline.push(fx.message("copied").with_id(unique.as_str())).await?;
        for turn in 0..4 {
            let job = pipeline.next().await?;
            assert_eq!(job.id().as_str(), unique);
            let headers = [("turn", turn.to_string())].into_iter().collect();
            job.settle(Outcome::Requeue { delay: Duration::ZERO, headers: Some(headers) }).await?;
        }
        let last = pipeline.next().await?;
        assert_eq!((last.id().as_str(), last.headers().get("turn")), (unique.as_str(), Some("3")));
        last.ack().await?;
    }
    finish(&pipeline).await
}

async fn an_id_is_stored_once(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(10).await?;
    let message = fx.message("once");
    for _ in 0..3 {
        pipeline.push(message.clone()).await?;
    }
    assert_eq!(pipeline.drain(1).await?, [message.id().clone()]);
    finish(&pipeline).await
}

async fn sends_of_unknown_fate(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.start(config.with_option("push_timeout", "20s")).await?;
    let deeds: [MakeDeed; 5] = [
        || Deed::refuse(500, "InternalError", "as the test wants it"),
        || Deed::Drop,
        || Deed::DropAnswer,
        || Deed::ShortAnswer,
        || Deed::Silence,
    ];
    for (number, deed) in deeds.into_iter().enumerate() {
        gate.next("SendMessage", 1, deed);
        let sent = gate.count("SendMessage");
        let pushed = pipeline.push_numbered(1).await?;
        assert_eq!(gate.count("SendMessage"), sent + 2, "{number}: it is sent again");
        assert_eq!(pipeline.drain(1).await?, pushed, "{number}: and stored once");
    }
    finish(&pipeline).await
}

async fn a_failure_stops_its_group(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.start(config).await?;
    // The first request has the whole group in it, as far as one request can have.
    gate.rule(|action, body| {
        let is_bad = |entry: &serde_json::Value| entry["MessageBody"] == "bad 3";
        let entries = body["Entries"].as_array().map_or(&[][..], Vec::as_slice);
        match action.starts_with("SendMessage") && entries.iter().any(is_bad) {
            true => Deed::refuse(400, "InvalidMessageContents", "as the test wants it"),
            false => Deed::Pass,
        }
    });
    let mut messages = Vec::new();
    for number in 0..25 {
        let message = fx.message(format!("good {number}")).with_ordering_key("good");
        messages.push(message);
        let word = if number == 3 { "bad" } else { "after" };
        messages.push(fx.message(format!("{word} {number}")).with_ordering_key("bad"));
    }
    let answers = fx.within("a batch", pipeline.push_batch(messages.clone())).await?;
    let mut stored = Vec::new();
    let mut has_failed = false;
    for (message, answer) in messages.iter().zip(answers) {
        let is_bad = message.ordering_key() == Some("bad");
        match answer {
            Ok(()) => {
                assert!(!(is_bad && has_failed), "{message:?} is behind one that failed");
                stored.push(message.id().clone());
            }
            Err(error) => {
                has_failed |= is_bad;
                assert!(!error.may_be_stored(), "{error:?}");
                let itself = message.payload() == "bad 3";
                assert!(!itself || error.kind() == ErrorKind::InvalidMessage, "{error:?}");
            }
        }
    }
    assert!(has_failed, "the bad one is refused");
    let mut found = pipeline.drain(stored.len()).await?;
    found.sort();
    stored.sort();
    assert_eq!(found, stored);
    finish(&pipeline).await
}

async fn dead_letters(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let pipeline = fx.pipeline_of(10).await?;
    pipeline.push(fx.message("dead").with_ordering_key("key")).await?;
    pipeline.next().await?.reject().await?;
    let operator = servers.shared().await?.operator();
    let found = operator.receive(option(pipeline.config(), "dead_letter"), 0).await?;
    let bodies: Vec<_> = found.iter().filter_map(|message| message.body.as_deref()).collect();
    assert_eq!(bodies, ["dead"]);
    assert_eq!(pipeline.state().await?.dead.unwrap_or(1), 1);
    finish(&pipeline).await
}
