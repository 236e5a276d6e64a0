//! Limits of the service: of characters, bytes and attributes.

use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Bytes, ErrorKind, Headers, Message};
use jobs_kit::{Case, CaseResult, Fixture};

use super::case;
use crate::elasticmq::Servers;

pub(super) fn cases(servers: &Arc<Servers>) -> Vec<Case> {
    vec![
        Case::new("limits::every_byte", &[8], "payloads of any bytes arrive", every_byte),
        Case::new(
            "limits::every_text",
            &[8],
            "ids, names and headers of any characters that are allowed arrive",
            every_text,
        ),
        Case::new(
            "limits::the_largest_job",
            &[8],
            "a payload up to the server's limit arrives, a larger one is refused",
            the_largest_job,
        ),
        case(
            servers,
            "limits::batches_of_large_jobs",
            &[8],
            "messages that fit alone but not together are stored all the same, each once",
            batches_of_large_jobs,
        ),
    ]
}

async fn every_byte(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(10).await?;
    let all: Vec<u8> = (0..=u8::MAX).collect();
    let payloads = [
        Bytes::new(),
        Bytes::from(all.repeat(8)),
        Bytes::from_static(b" "),
        Bytes::from_static(b"\r\n"),
        Bytes::from_static("\u{1}äß☃".as_bytes()),
        Bytes::from_static("\u{fffe}\u{ffff}".as_bytes()),
        Bytes::from_static("\u{7f}\u{85}\u{fffd}\u{10ffff}".as_bytes()),
        Bytes::from_static(b"\xff"),
        Bytes::from_static(b"<a>&amp;</a>"),
    ];
    for payload in payloads {
        pipeline.push(fx.message(payload.clone())).await?;
        let job = pipeline.next().await?;
        assert_eq!(*job.payload(), payload);
        let headers: Headers = [("a", "copy")].into_iter().collect();
        let copy = jobs_core::Outcome::Requeue { delay: Duration::ZERO, headers: Some(headers) };
        job.settle(copy).await?;
        let again = pipeline.next().await?;
        assert_eq!(*again.payload(), payload, "as a copy");
        again.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn every_text(fx: Fixture) -> CaseResult {
    let pipeline = fx.pipeline_of(10).await?;
    let long = "ü".repeat(127);
    for text in ["plain", "with blanks", "☃ ümläut", "\u{fffe}\u{ffff}", "a.b/c#d\"e'\\", &long]
    {
        let mut headers = Headers::default();
        headers.append(text, text);
        headers.append(text, "again");
        headers.append("lines", "\u{0}\r\n\t\u{1f}\u{7f}");
        headers.append("empty", "");
        let id = format!("{text}{}", if text.len() > 200 { "" } else { "-1" });
        let message = Message::known(id.as_str(), text.to_owned(), "payload").with_headers(headers);
        pipeline.push(message.clone()).await?;
        let job = pipeline.next().await?;
        assert_eq!((job.id().as_str(), job.name()), (id.as_str(), text));
        assert_eq!(job.headers(), message.headers());
        job.ack().await?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn the_largest_job(fx: Fixture) -> CaseResult {
    /// What ElasticMQ takes of a message, which is less than the service does now.
    const MOST: usize = 256 << 10;
    let pipeline = fx.pipeline_of(10).await?;
    for (byte, written) in [(b'x', 1.0), (0xff, 4.0 / 3.0)] {
        let largest = (MOST as f64 / written) as usize;
        let payload = |size: usize| Bytes::from(vec![byte; size]);
        let fits = fx.message(payload(largest - 1_024));
        pipeline.push(fits.clone()).await?;
        let job = pipeline.next().await?;
        assert!(job.payload() == fits.payload(), "{} bytes came", job.payload().len());
        job.ack().await?;
        let answer = pipeline.push(fx.message(payload(largest + 1))).await;
        fx.expect_refused(answer, ErrorKind::PayloadTooLarge)?;
    }
    pipeline.expect_empty().await?;
    Ok(())
}

async fn batches_of_large_jobs(fx: Fixture, servers: Arc<Servers>) -> CaseResult {
    const JOBS: usize = 12;
    let (gate, config) = super::gated(&fx, &servers).await?;
    let pipeline = fx.start(config.with_option("push_timeout", "30s")).await?;
    let large = || fx.message(vec![b'x'; 100_000]);
    let messages: Vec<_> = (0..JOBS).map(|_| large()).collect();
    for answer in fx.within("a batch", pipeline.push_batch(messages.clone())).await? {
        answer?;
    }
    let mut ids: Vec<_> = messages.iter().map(|message| message.id().clone()).collect();
    let mut found = pipeline.drain(JOBS).await?;
    ids.sort();
    found.sort();
    assert_eq!(found, ids);
    // What the server takes is known now.
    let before = gate.count("SendMessage");
    for answer in fx.within("a batch", pipeline.push_batch(vec![large(), large(), large()])).await?
    {
        answer?;
    }
    assert_eq!(gate.count("SendMessage") - before, 2, "two fit in the first");
    pipeline.drain(3).await?;
    super::finish(&pipeline).await
}
