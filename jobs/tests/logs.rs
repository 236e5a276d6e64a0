//! What is logged: the documented fields, and never a payload, a header's value or a secret.
//!
//! One test in a binary of its own: the subscriber counts for the whole process.

#![allow(clippy::unwrap_used, reason = "in a test the panic is the report")]

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};

use common::{eventually, push};
use jobs::{Config, Context, HandlerError, Json, Message, Worker};
use tracing_subscriber::fmt::format::FmtSpan;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Stands for everything that must not be logged.
const SECRET: &str = "hunter2";

#[derive(serde::Serialize, serde::Deserialize)]
struct Login {
    password: u32,
}

async fn log_in(_: Json<Login>, context: Context) -> Result<(), HandlerError> {
    assert_eq!(context.headers().get("token"), Some(SECRET));
    Err(HandlerError::reject("the door is closed"))
}

#[tokio::test]
async fn fields_are_those_documented_and_nothing_confidential_is_logged() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();

    let yaml = "
        version: '2.7'
        memory: { capacity: 10 }
        vault: { password: '${SECRET}', other: $SECRET }
        jobs:
          num_pollers: 1
          consume: [mail]
          pipelines: { mail: { driver: memory, config: { queue: '${SECRET}', capacity: 9 } } }
    ";
    let config = Config::from_yaml_with(yaml, |_| Some(SECRET.to_owned())).unwrap();
    let jobs = config.connect().await.unwrap();
    let wrong = jobs.pipeline("mail").unwrap();
    let too_late = Message::new("login", SECRET).with_ordering_key(SECRET);
    assert!(wrong.push(too_late).await.is_err());

    let with = |payload: String| Message::new("login", payload).with_header("token", SECRET);
    push(&jobs, "mail", with("{\"password\": 7}".into()).with_id("first")).await;
    push(&jobs, "mail", with(format!("{{\"password\": \"{SECRET}\"}}")).with_id("second")).await;
    push(&jobs, "mail", Message::new("unknown", SECRET).with_id("third")).await;
    let (done, wait) = tokio::sync::oneshot::channel::<()>();
    let worker = Worker::new(&jobs).handle("login", log_in);
    let worker = tokio::spawn(worker.run_until(async move { drop(wait.await) }));
    let mail = jobs.pipeline("mail").unwrap();
    eventually("all have run", async || {
        let state = mail.state().await.unwrap();
        state.dead == Some(1) && state.delayed == Some(2)
    })
    .await;
    drop(done);
    worker.await.unwrap().unwrap();

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for expected in [
        "job.id=first job.name=\"login\" job.attempt=1 job.pipeline=\"mail\"",
        "outcome=\"reject\"",
        "outcome=\"requeue\"",
        "elapsed_ms=",
        "handler failed error=the door is closed",
        "payload cannot be decoded error=decode: codec failed: not the JSON expected, at line 1",
        "no handler has this name",
        "push failed job.id=",
        "section=\"vault\"",
        "path=\"jobs.num_pollers\"",
        "path=\"version\"",
        "option is set twice",
    ] {
        assert!(log.contains(expected), "{expected}\n{log}");
    }
    assert!(!log.contains(SECRET), "{log}");
}
