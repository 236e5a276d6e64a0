//! What several tests need.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

pub mod scripted;

use std::time::Duration;

use jobs::{Config, Jobs, Json, Message, Payload, Pipeline};

pub const SECOND: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds, and says what did not happen.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let all = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, all).await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

/// Waits for `future`, but not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

pub fn memory(name: &str) -> Pipeline {
    Pipeline::new(name.to_owned(), "memory")
}

/// Consuming pipelines of the memory driver.
pub async fn consuming<const N: usize>(names: [&str; N]) -> Jobs {
    let config = names.iter().fold(Config::new(), |config, name| config.pipeline(memory(name)));
    config.consume(names).connect().await.expect("memory connects")
}

pub fn number(name: &'static str, number: u64) -> Message {
    Json(number).message(name).expect("numbers are JSON")
}

pub async fn push(jobs: &Jobs, pipeline: &str, message: Message) {
    jobs.pipeline(pipeline).expect("exists").push(message).await.expect("pushed");
}
