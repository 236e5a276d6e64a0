//! What networks and services do to single requests, and what becomes of the jobs.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{ErrorKind, Job, Outcome, Settle};
use jobs_kit::{Case, CaseError, CaseResult, Fixture, TestPipeline};
use serde_json::{Value, json};

use super::{case, finish, gated};
use crate::elasticmq::Servers;
use crate::gate::{Deed, MakeDeed};

/// In every kind of queue.
pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        case(
            servers,
            "faults::throttled_sends",
            &[1],
            "what was throttled was not stored, and is sent again until push_timeout",
            throttled_sends,
        ),
        case(
            servers,
            "faults::part_of_a_send",
            &[1, 8],
            "of a batch each caller gets the answer to its own message",
            part_of_a_send,
        ),
        case(
            servers,
            "faults::refused_receives",
            &[9],
            "a refused request for jobs is made again",
            |fx, servers| receives(fx, servers, &[internal_error, unavailable, throttled, skewed]),
        ),
        case(
            servers,
            "faults::lost_receives",
            &[3],
            "jobs whose delivery was lost come again",
            |fx, servers| {
                receives(fx, servers, &[|| Deed::Drop, || Deed::DropAnswer, || Deed::ShortAnswer])
            },
        ),
        case(
            servers,
            "faults::silent_receives",
            &[3, 9],
            "a request for jobs that is never answered is given up",
            |fx, servers| receives(fx, servers, &[|| Deed::Silence]),
        ),
        case(
            servers,
            "faults::a_duplicated_delivery",
            &[8],
            "a delivery that comes twice is settled twice, and leaves nothing behind",
            a_duplicated_delivery,
        ),
        case(
            servers,
            "faults::acks",
            &[2],
            "an ack that was refused or lost is made again, whatever the reason",
            acks,
        ),
        case(
            servers,
            "faults::part_of_the_acks",
            &[2],
            "of a batch of acks those that failed are made again",
            part_of_the_acks,
        ),
        case(
            servers,
            "faults::releases",
            &[3],
            "a release that was refused is made again, and one that was lost loses nothing",
            releases,
        ),
        case(
            servers,
            "faults::extensions",
            &[2],
            "an extension that was refused or lost is made again while the lease lasts",
            extensions,
        ),
        case(
            servers,
            "faults::a_stale_handle",
            &[7],
            "after its end a lease is refused without asking the service, which would agree",
            a_stale_handle,
        ),
    ]
}

/// Where the service cannot know a message again.
pub(super) fn standard_cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        case(
            servers,
            "faults::sends_of_unknown_fate",
            &[1],
            "a push that nobody answered says that the message may be stored, and is not repeated",
            sends_of_unknown_fate,
        ),
        case(
            servers,
            "faults::a_copy_of_unknown_fate",
            &[5],
            "a requeue whose copy nobody answered for loses nothing",
            a_copy_of_unknown_fate,
        ),
    ]
}

fn internal_error() -> Deed {
    Deed::refuse(500, "InternalError", "We encountered an internal error. Please try again.")
}

fn unavailable() -> Deed {
    Deed::refuse(503, "ServiceUnavailable", "The request has failed due to a temporary failure.")
}

fn throttled() -> Deed {
    Deed::refuse(400, "RequestThrottled", "Request is throttled.")
}

/// The clock of this machine was set while it ran.
fn skewed() -> Deed {
    Deed::refuse(403, "RequestTimeTooSkewed", "The difference between the times is too large.")
}

async fn sends_of_unknown_fate(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let deeds: [(MakeDeed, bool); 6] = [
        (internal_error, false),
        (unavailable, false),
        (|| Deed::Drop, false),
        (|| Deed::DropAnswer, true),
        (|| Deed::ShortAnswer, true),
        (|| Deed::Silence, true),
    ];
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.start(config).await?;
    for (number, (deed, is_stored)) in deeds.into_iter().enumerate() {
        gate.next("SendMessage", 1, deed);
        let sent = gate.count("SendMessage");
        let message = fx.message(number.to_string());
        let answer = fx.within("a push", pipeline.push(message.clone())).await?;
        let error = answer.expect_err("nobody confirmed it");
        assert!(error.is_retryable() && error.may_be_stored(), "{number}: {error:?}");
        assert_eq!(gate.count("SendMessage"), sent + 1, "{number}: it is not sent again");
        let found = pipeline.drain(usize::from(is_stored)).await?;
        let expected = if is_stored { vec![message.id().clone()] } else { Vec::new() };
        assert_eq!(found, expected, "{number}");
        let pushed = pipeline.push_eventually(1).await?;
        assert_eq!(pipeline.ack_next(1).await?, pushed, "{number}: it goes on");
    }
    finish(&pipeline).await
}

async fn throttled_sends(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.start(config).await?;
    gate.next("SendMessage", 3, throttled);
    let pushed = pipeline.push_numbered(1).await?;
    assert_eq!(gate.count("SendMessage"), 4);
    assert_eq!(pipeline.ack_next(1).await?, pushed);
    gate.next("SendMessage", usize::MAX, throttled);
    let answer = fx.within("a push", pipeline.push(fx.message("too much"))).await?;
    let error = answer.expect_err("the service takes nothing");
    assert_eq!(error.kind(), ErrorKind::Throttled, "{error:?}");
    assert!(error.is_retryable() && !error.may_be_stored(), "{error:?}");
    gate.open();
    finish(&pipeline).await
}

fn entries(body: &mut Value) -> &mut Vec<Value> {
    body["Entries"].as_array_mut().expect("a batch has entries")
}

/// Takes those entries out for which `chosen` is true, and answers for them that they failed so.
fn fail_entries(
    body: &mut Value,
    mut chosen: impl FnMut(&Value) -> bool,
    (code, is_senders_fault): (&'static str, bool),
) -> Deed {
    let (failed, rest): (Vec<_>, Vec<_>) =
        std::mem::take(entries(body)).into_iter().partition(|entry| chosen(entry));
    let is_empty = rest.is_empty();
    *entries(body) = rest;
    let fail = move |entry: Value| {
        json!({
            "Id": entry["Id"], "Code": code, "Message": "as the test wants it",
            "SenderFault": is_senders_fault,
        })
    };
    let failed: Vec<_> = failed.into_iter().map(fail).collect();
    if failed.is_empty() {
        return Deed::Pass;
    }
    if is_empty {
        return Deed::Answer(200, json!({ "Successful": [], "Failed": failed }));
    }
    Deed::change(move |mut answer| {
        answer["Failed"] = failed.into();
        answer
    })
}

async fn part_of_a_send(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.start(config).await?;
    let says = |word: &'static str| move |entry: &Value| entry["MessageBody"] == *word;
    let mut busy = 2;
    gate.rule(move |action, body| {
        if !action.starts_with("SendMessage") {
            return Deed::Pass;
        }
        if entries(body).iter().any(says("bad")) {
            return fail_entries(body, says("bad"), ("InvalidMessageContents", true));
        }
        if busy > 0 && entries(body).iter().any(says("later")) {
            busy -= 1;
            return fail_entries(body, says("later"), ("ThrottlingException", false));
        }
        Deed::Pass
    });
    let words = ["good", "bad", "good", "later", "good"];
    let messages: Vec<_> = words.iter().map(|word| fx.message(*word)).collect();
    let answers = fx.within("a batch", pipeline.push_batch(messages.clone())).await?;
    let mut stored = Vec::new();
    for ((word, message), answer) in words.iter().zip(messages).zip(answers) {
        if *word == "bad" {
            fx.expect_refused(answer, ErrorKind::InvalidMessage)?;
        } else {
            answer?;
            stored.push(message.id().clone());
        }
    }
    let mut found = pipeline.ack_next(stored.len()).await?;
    found.sort();
    stored.sort();
    assert_eq!(found, stored);
    finish(&pipeline).await
}

async fn receives(fx: Fixture, servers: Arc<Servers>, deeds: &[MakeDeed]) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let producer = fx.connect(config).await?;
    for (number, deed) in deeds.iter().enumerate() {
        let pushed = producer.push_numbered(1).await?;
        let before = gate.count("ReceiveMessage");
        gate.next("ReceiveMessage", 1, *deed);
        let consumer = producer.second().await?;
        assert_eq!(consumer.ack_next(1).await?, pushed, "{number}");
        assert!(gate.count("ReceiveMessage") > before + 1, "{number}: it was asked again");
        finish(&consumer).await?;
    }
    producer.stop().await?;
    Ok(())
}

async fn a_duplicated_delivery(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.connect(config).await?;
    let pushed = pipeline.push_numbered(1).await?;
    gate.rule(|action, _| match action {
        "ReceiveMessage" => Deed::change(|mut answer| {
            if let Some(messages) = answer["Messages"].as_array_mut() {
                messages.extend_from_within(..);
            }
            answer
        }),
        // As the service does: a handle of a message that is gone is no failure.
        "DeleteMessageBatch" => Deed::change(succeed),
        _ => Deed::Pass,
    });
    pipeline.run().await?;
    let mut found = pipeline.drain(1).await?;
    found.dedup();
    assert_eq!(found, pushed);
    finish(&pipeline).await
}

/// What failed has succeeded.
fn succeed(mut answer: Value) -> Value {
    let failed = answer["Failed"].take();
    let ids = failed.as_array().into_iter().flatten().map(|entry| json!({ "Id": entry["Id"] }));
    let ids: Vec<_> = ids.collect();
    match answer["Successful"].as_array_mut() {
        Some(successful) => successful.extend(ids),
        None => answer["Successful"] = ids.into(),
    }
    answer["Failed"] = json!([]);
    answer
}

/// All that can happen to a request whose repetition does no harm.
const HARMLESS: [MakeDeed; 7] = [
    internal_error,
    unavailable,
    throttled,
    || Deed::Drop,
    || Deed::DropAnswer,
    || Deed::ShortAnswer,
    || Deed::Silence,
];

async fn acks(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    // Time for another request after one that nobody answered.
    let config = config.with_option("visibility_timeout", 30).with_option("push_timeout", "20s");
    let pipeline = fx.start(config).await?;
    for (number, deed) in HARMLESS.into_iter().enumerate() {
        pipeline.push_numbered(1).await?;
        let mut job = Some(pipeline.next().await?);
        let mut left = 1;
        gate.rule(move |action, _| match action {
            "DeleteMessage" | "DeleteMessageBatch" if left > 0 => {
                left -= 1;
                deed()
            }
            "DeleteMessageBatch" => Deed::change(succeed),
            _ => Deed::Pass,
        });
        fx.eventually("an ack", async || settle_again(&mut job, Job::ack).await).await?;
        gate.open();
        pipeline.expect_empty().await?;
        assert!(gate.count("DeleteMessage") >= 2 * (number + 1), "{number}: it was made again");
    }
    finish(&pipeline).await
}

/// Settles, and keeps the job if that may be tried again.
async fn settle_again(
    job: &mut Option<Job>,
    settle: impl FnOnce(Job) -> Settle,
) -> Result<(), String> {
    let Err(refused) = settle(job.take().expect("it came back")).await else { return Ok(()) };
    let text = format!("{:?}", refused.error());
    assert!(refused.error().is_retryable(), "{text}");
    *job = Some(refused.into_job());
    Err(text)
}

async fn part_of_the_acks(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    const JOBS: usize = 10;
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.start(config.with_option("visibility_timeout", 30)).await?;
    pipeline.push_numbered(JOBS).await?;
    let held = pipeline.take(JOBS).await?;
    let mut times = 3;
    gate.rule(move |action, body| {
        if action != "DeleteMessageBatch" || times == 0 {
            return Deed::Pass;
        }
        times -= 1;
        let mut index = 0;
        let every_other = |_: &Value| {
            index += 1;
            index % 2 == 0 || times == 0
        };
        fail_entries(body, every_other, ("InternalError", false))
    });
    let acks: Vec<_> = held.into_iter().map(Job::ack).collect();
    for ack in acks {
        fx.within("an ack", ack).await??;
    }
    gate.open();
    finish(&pipeline).await
}

async fn releases(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.start(config).await?;
    let pushed = pipeline.push_numbered(1).await?;
    for deed in HARMLESS {
        let mut job = Some(pipeline.next().await?);
        gate.next("ChangeMessageVisibility", 1, deed);
        let answer = fx.eventually("a release", async || {
            let Some(found) = job.take() else { return Ok(()) };
            match found.release().await {
                Ok(()) => Ok(()),
                // It was released, and may be with somebody else already.
                Err(refused) if refused.error().kind() == ErrorKind::LeaseLost => Ok(()),
                Err(refused) => {
                    let text = format!("{:?}", refused.error());
                    assert!(refused.error().is_retryable(), "{text}");
                    job = Some(refused.into_job());
                    Err(text)
                }
            }
        });
        answer.await?;
        gate.open();
    }
    assert_eq!(pipeline.ack_next(1).await?, pushed);
    finish(&pipeline).await
}

async fn extensions(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.start(config).await?;
    let others = [internal_error, throttled, || Deed::Drop, || Deed::DropAnswer];
    for deed in others as [MakeDeed; 4] {
        pipeline.push_numbered(1).await?;
        let held = pipeline.next().await?;
        let before = gate.count("ChangeMessageVisibility");
        gate.next("ChangeMessageVisibility", 1, deed);
        let extended = async || match gate.count("ChangeMessageVisibility") - before {
            found if found >= 2 => Ok(()),
            found => Err(format!("{found} requests")),
        };
        fx.eventually("an extension once more", extended).await?;
        // Longer than it was received for.
        pipeline.expect_quiet_for(Duration::from_secs(6)).await?;
        held.ack().await?;
    }
    finish(&pipeline).await
}

/// A job whose lease has ended.
async fn ended(fx: &Fixture, pipeline: &TestPipeline) -> Result<Job, CaseError> {
    let job = pipeline.next().await?;
    // Asking for nothing changes no lease, and tells when it has ended.
    fx.eventually("the lease ends", async || match job.extend(Duration::ZERO).await {
        Err(error) if error.kind() == ErrorKind::LeaseLost => Ok(()),
        answer => Err(format!("{answer:?}")),
    })
    .await?;
    Ok(job)
}

async fn a_stale_handle(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let config = config.with_option("max_lease", "2s");
    let pipeline = fx.start(fx.harness().with_prefetch(config, 1)).await?;
    // As the service does.
    gate.rule(|action, _| match action {
        "DeleteMessageBatch" | "ChangeMessageVisibilityBatch" => Deed::change(succeed),
        _ => Deed::Pass,
    });
    pipeline.push_numbered(1).await?;
    let stale = ended(&fx, &pipeline).await?;
    let asked = gate.count("");
    let receives = gate.count("ReceiveMessage");
    let Err(refused) = stale.ack().await else { panic!("a stale receipt was taken") };
    assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}");
    let stale = refused.into_job();
    let Err(refused) = stale.release().await else { panic!("a stale receipt was taken") };
    assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}");
    drop(refused);
    let others = gate.count("") - gate.count("ReceiveMessage");
    assert_eq!(others, asked - receives, "nothing was asked of the service");
    loop {
        // On a slow machine the next lease may end as well; then the job comes once more.
        match pipeline.next().await?.ack().await {
            Ok(()) => break,
            Err(refused) => assert_eq!(refused.error().kind(), ErrorKind::LeaseLost, "{refused}"),
        }
    }
    finish(&pipeline).await
}

async fn a_copy_of_unknown_fate(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    let (gate, config) = gated(&fx, &servers).await?;
    let pipeline = fx.start(config).await?;
    let deeds: [MakeDeed; 4] =
        [internal_error, || Deed::Drop, || Deed::DropAnswer, || Deed::Silence];
    for (number, deed) in deeds.into_iter().enumerate() {
        let pushed = pipeline.push_numbered(1).await?;
        let job = pipeline.next().await?;
        gate.next("SendMessage", 1, deed);
        let headers = [("changed", "yes")].into_iter().collect();
        let requeue = Outcome::Requeue { delay: Duration::ZERO, headers: Some(headers) };
        // If nobody knows whether the copy is stored the job comes back, and is given back.
        drop(fx.within("a requeue", job.settle(requeue)).await?);
        let mut found = pipeline.drain(1).await?;
        found.dedup();
        assert_eq!(found, pushed, "{number}");
        // A second one may be hidden still.
        let mut rest = pipeline.drain(0).await?;
        rest.retain(|id| *id != pushed[0]);
        assert!(rest.is_empty(), "{number}");
    }
    finish(&pipeline).await
}
