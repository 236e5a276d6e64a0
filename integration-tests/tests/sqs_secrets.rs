//! Secrets of the SQS driver are never seen: in `Debug`, in errors, in logs.

use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use integration_tests::gate::{Deed, Gate};
use jobs_core::{Message, Pipeline, Queue, Registry};
use serde_json::json;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

const SECRET: &str = "wJalrXUtnFEMI-a-secret-key";
const TOKEN: &str = "IQoJb3JpZ2lu-a-session-token";

/// What was logged.
static LOGGED: Mutex<String> = Mutex::new(String::new());

struct Everything;

struct Text<'a>(&'a mut String);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Text takes all that is written.
        let _ = write!(self.0, "{field}={value:?} ");
    }
}

fn note(write: impl FnOnce(&mut Text<'_>)) {
    let mut text = String::new();
    write(&mut Text(&mut text));
    LOGGED.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
}

impl Subscriber for Everything {
    /// The client itself writes whole requests to its finest log.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("jobs") || *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        note(|text| span.record(text));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        note(|text| values.record(text));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        note(|text| event.record(text));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn expect_hidden(what: &str, text: &str) {
    for secret in [SECRET, TOKEN] {
        assert!(!text.contains(secret), "{what} shows {secret}: {text}");
    }
}

/// Answers as a queue does that has nothing, or refuses everything.
fn service(gate: &Gate, code: Option<&'static str>) {
    gate.rule(move |action, _| match (code, action) {
        (Some(code), _) => Deed::refuse(403, code, "refused"),
        (None, "CreateQueue" | "GetQueueUrl") => {
            Deed::Answer(200, json!({ "QueueUrl": "https://sqs/1/queue" }))
        }
        (None, "SendMessageBatch") => Deed::refuse(403, "SignatureDoesNotMatch", "refused"),
        (None, "ReceiveMessage") => Deed::refuse(403, "ExpiredToken", "refused"),
        (None, _) => Deed::Answer(200, json!({ "Attributes": {} })),
    });
}

#[tokio::test]
async fn secrets_are_never_seen() {
    tracing::subscriber::set_global_default(Everything).expect("the only test here");
    // Nothing is forwarded, and nobody listens there.
    let nobody = SocketAddr::from(([127, 0, 0, 1], 9));
    let gate = Gate::before(nobody).expect("a port is free");
    let mut registry = Registry::new();
    registry.register(jobs_sqs::constructor()).expect("the only driver");
    let pipeline = Pipeline::new("secret", jobs_sqs::NAME)
        .with_option("endpoint", gate.url())
        .with_option("region", "us-east-1")
        .with_option("key", "AKIDEXAMPLE")
        .with_option("secret", SECRET)
        .with_option("session_token", TOKEN)
        .with_option("queue", "queue")
        .with_option("wait_time_seconds", 1)
        .with_option("push_timeout", "2s");
    expect_hidden("a pipeline", &format!("{pipeline:?}"));
    let plan = registry.plan(&Default::default(), pipeline.clone());
    expect_hidden("a plan", &format!("{:?}", plan.map(drop)));
    let wrong = pipeline.clone().with_option("visibility_timeout", "for ever");
    let problems = registry.plan(&Default::default(), wrong).map(drop).expect_err("no number");
    expect_hidden("a problem", &format!("{problems:?}"));
    for code in ["InvalidClientTokenId", "SignatureDoesNotMatch", "ExpiredToken"] {
        service(&gate, Some(code));
        let error = registry.connect(pipeline.clone()).await.expect_err("it is refused");
        expect_hidden("an error", &format!("{error:?} {error}"));
    }
    service(&gate, None);
    let driver = registry.connect(pipeline.clone()).await.expect("it connects");
    expect_hidden("a driver", &format!("{driver:?} {registry:?}"));
    let error = driver.push(Message::new("a", "b")).await.expect_err("it is refused");
    expect_hidden("an error", &format!("{error:?} {error}"));
    let queue = Queue::new();
    driver.run(queue.open_lane(&pipeline)).await.expect("runs once");
    loop {
        let state = driver.state().await.expect("figures");
        expect_hidden("a state", &format!("{state:?}"));
        if state.last_error.is_some() {
            break;
        }
        tokio::task::yield_now().await;
    }
    driver.stop().await.expect("stops");
    let logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(logged.len() > 1_000, "something was logged: {logged}");
    expect_hidden("the log", &logged);
}
