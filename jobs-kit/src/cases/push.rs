//! What is pushed is what is delivered.

use jobs_core::{ErrorKind, Message};

use super::{ids, sorted, text};
use crate::{Case, CaseResult, Fixture};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "push::delivers_what_was_pushed",
            &[1],
            "a push that returned Ok is delivered, with id, name, payload and headers",
            delivers_what_was_pushed,
        ),
        Case::new(
            "push::delivers_each_job_once",
            &[1, 2],
            "a job is delivered to one consumer, once, while that holds it",
            delivers_each_job_once,
        ),
        Case::new(
            "push::works_before_run",
            &[1],
            "a program that only pushes never calls run",
            works_before_run,
        ),
        Case::new(
            "push::keeps_every_byte_of_a_payload",
            &[1],
            "payloads are bytes, none has a meaning",
            keeps_every_byte_of_a_payload,
        ),
        Case::new(
            "push::takes_ids_and_names_up_to_255_bytes",
            &[1],
            "ids and names have 1 to 255 bytes of text",
            takes_ids_and_names_up_to_255_bytes,
        ),
        Case::new(
            "push::keeps_headers_in_order",
            &[1],
            "headers are an ordered multi-map of text",
            keeps_headers_in_order,
        ),
        Case::new(
            "push::takes_a_payload_at_the_limit",
            &[1, 8],
            "limits include their bound",
            takes_a_payload_at_the_limit,
        ),
    ]
}

async fn delivers_what_was_pushed(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let message = fx.message("payload").with_header("tenant", "acme");
    pipeline.push(message.clone()).await?;
    let job = pipeline.next().await?;
    assert_eq!((job.id(), job.name()), (message.id(), message.name()));
    assert_eq!((job.payload(), job.headers()), (message.payload(), message.headers()));
    assert_eq!((job.attempt(), job.pipeline()), (1, pipeline.config().name()));
    assert!(!job.message().auto_ack());
    job.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn delivers_each_job_once(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(10).await?;
    let second = pipeline.second().await?;
    let pushed = pipeline.push_numbered(10).await?;
    let mut jobs = Vec::new();
    while jobs.len() < pushed.len() {
        let job = fx.within("waiting for a job on either consumer", async {
            tokio::select! {
                job = pipeline.queue().pop() => job,
                job = second.queue().pop() => job,
            }
        });
        jobs.extend(job.await?);
    }
    assert_eq!(sorted(ids(&jobs)), sorted(pushed), "each job once");
    pipeline.expect_quiet().await?;
    second.expect_quiet().await?;
    for job in jobs {
        job.ack().await?;
    }
    second.expect_empty().await?;
    pipeline.expect_empty().await?;
    Ok(())
}

async fn works_before_run(fx: Fixture) -> CaseResult {
    let pipeline = fx.connect(fx.configure().await?).await?;
    let pushed = pipeline.push_numbered(3).await?;
    pipeline.expect_quiet().await?;
    pipeline.run().await?;
    assert_eq!(sorted(pipeline.ack_next(3).await?), sorted(pushed));
    pipeline.expect_empty().await?;
    Ok(())
}

async fn keeps_every_byte_of_a_payload(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let every: Vec<u8> = (0..=255).collect();
    for payload in [Vec::new(), vec![0], every, b"\xff\xfe<&>\r\n".to_vec()] {
        pipeline.push(fx.message(payload.clone())).await?;
        let job = pipeline.next().await?;
        assert_eq!(job.payload()[..], payload);
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn takes_ids_and_names_up_to_255_bytes(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let longest = "x".repeat(255);
    for text in ["1", "ключ/日本 \"'<&>", "a.b-c_d:e f", longest.as_str()] {
        let message = Message::new(text.to_owned(), "").with_id(text);
        pipeline.push(message.with_header(text, text)).await?;
        let job = pipeline.next().await?;
        assert_eq!((job.id().as_str(), job.name()), (text, text));
        assert_eq!(job.headers().get(text), Some(text));
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn keeps_headers_in_order(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline().await?;
    let message = Message::new("kit.case", "")
        .with_header("tag", "b")
        .with_header("Tag", "upper case")
        .with_header("tag", "a")
        .with_header("empty", "")
        .with_header("text", "line\n\"quoted\" ключ");
    pipeline.push(message.clone()).await?;
    let job = pipeline.next().await?;
    for (name, _) in message.headers().iter() {
        let (found, expected) = (job.headers().get_all(name), message.headers().get_all(name));
        assert_eq!(found.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "{name}");
    }
    assert_eq!(job.headers().len(), message.headers().len());
    job.ack().await?;
    Ok(())
}

async fn takes_a_payload_at_the_limit(fx: Fixture) -> CaseResult {
    /// Enough to need several packets, where there is no limit.
    const LARGE: usize = 1 << 20;
    let pipeline = fx.pipeline().await?;
    let limit = pipeline.driver().capabilities().max_payload;
    let payload = vec![b'x'; limit.unwrap_or(LARGE)];
    pipeline.push(fx.message(payload.clone())).await?;
    let job = pipeline.next().await?;
    assert!(job.payload()[..] == payload[..], "all {} bytes arrive", payload.len());
    job.ack().await?;
    if let Some(limit) = limit {
        let too_large = pipeline.push(fx.message(vec![b'x'; limit + 1])).await;
        fx.expect_refused(too_large, ErrorKind::PayloadTooLarge)?;
    }
    pipeline.push(fx.message("after")).await?;
    let after = pipeline.next().await?;
    assert_eq!(text(&after), "after");
    after.ack().await?;
    pipeline.expect_empty().await?;
    Ok(())
}
