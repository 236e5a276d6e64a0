//! What is published where: pushes, copies of requeued jobs, and both with a delay.

use std::fmt;
use std::sync::Arc;

use jobs_core::{Backoff, Error, ErrorKind, Message, Result};
use lapin::BasicProperties;
use lapin::types::ShortString;
use tokio::time::{Instant, sleep, timeout_at};

use crate::NAME;
use crate::codec;
use crate::config::AmqpConfig;
use crate::error::timed_out;
use crate::flights::Publish;
use crate::inspector::Inspector;
use crate::publisher::{Publisher, lost_channel};
use crate::topology::{Destination, Target, Topology, text};

/// RoadRunner's drivers take this header out and publish with its value as the routing key.
const ROUTING_KEY: &str = "x-routing-key";

/// The way out of a pipeline.
pub(crate) struct Outbox {
    pub(crate) pipeline: Arc<str>,
    pub(crate) priority: i64,
    pub(crate) config: Arc<AmqpConfig>,
    pub(crate) topology: Arc<Topology>,
    pub(crate) inspector: Arc<Inspector>,
    pub(crate) publisher: Publisher,
}

impl Outbox {
    /// Publishes a message; returns when the broker has it.
    pub(crate) async fn push(&self, message: Message, deadline: Instant) -> Result<()> {
        let (message, target) = route(&self.topology, message)?;
        self.publish(message, 1, target, Destination::Exchange, deadline).await
    }

    /// Publishes a copy of a job, to run as this attempt, to the pipeline's own queue.
    pub(crate) async fn copy(&self, message: Message, attempt: u32) -> Result<()> {
        let deadline = Instant::now() + self.config.push_timeout;
        let target = self.topology.copies();
        self.publish(message, attempt, target, Destination::Queue, deadline).await
    }

    async fn publish(
        &self,
        message: Message,
        attempt: u32,
        target: Arc<Target>,
        to: Destination,
        deadline: Instant,
    ) -> Result<()> {
        let most = self.config.max_priority;
        let properties = codec::encode(&message, &self.pipeline, self.priority, attempt, most);
        if message.delay().is_zero() {
            let publish = Publish::new(target, message, properties);
            return self.publisher.publish(&publish, deadline).await.inspect_err(|error| {
                if error.kind() == ErrorKind::NotFound {
                    // When the queue is there again, delayed messages must find it.
                    self.inspector.distrust();
                }
            });
        }
        // Apart, because it is large, and the futures of all pushes would be.
        Box::pin(self.publish_delayed(message, properties, &target.routing_key, to, deadline)).await
    }

    async fn publish_delayed(
        &self,
        message: Message,
        properties: BasicProperties,
        key: &ShortString,
        to: Destination,
        deadline: Instant,
    ) -> Result<()> {
        let again = properties.clone();
        let delayed = self.delayed(message.clone(), properties, key, to, deadline).await?;
        match self.publisher.publish(&delayed, deadline).await {
            // Somebody deleted the levels. The next attempt declares them again.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.inspector.distrust();
                if error.may_be_stored() {
                    return Err(lost_channel().with_source(error));
                }
                let delayed = self.delayed(message, again, key, to, deadline).await?;
                self.publisher.publish(&delayed, deadline).await
            }
            answer => answer,
        }
    }

    /// Prepares the way of a delayed message. Its routing key stays, headers say where it goes.
    async fn delayed(
        &self,
        message: Message,
        properties: BasicProperties,
        routing_key: &ShortString,
        to: Destination,
        deadline: Instant,
    ) -> Result<Arc<Publish>> {
        let mut headers = properties.headers().clone().unwrap_or_default();
        let way = self.declare_delay(&message, to, deadline);
        for (name, value) in self.inspector.until_closed("push", way).await? {
            headers.insert(name.into(), text(value));
        }
        let target = Target { exchange: self.topology.entry(), routing_key: routing_key.clone() };
        Ok(Publish::new(Arc::new(target), message, properties.with_headers(headers)))
    }

    /// Tries again while the broker is away, as a push does.
    async fn declare_delay(
        &self,
        message: &Message,
        to: Destination,
        deadline: Instant,
    ) -> Result<Vec<(String, String)>> {
        let mut failures = 0;
        loop {
            let attempt =
                timeout_at(deadline, self.inspector.declare_delay(message.delay(), to)).await;
            let error = match attempt {
                Ok(Ok(headers)) => return Ok(headers),
                Ok(Err(error)) if !error.is_retryable() => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => return Err(timed_out("push")),
            };
            failures += 1;
            let wait = Backoff::RECONNECT.delay(failures);
            if Instant::now() + wait >= deadline {
                return Err(error);
            }
            sleep(wait).await;
        }
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

/// Where a push goes.
///
/// What is due ends where the bindings of the pipeline lead. Whether another key leads anywhere would
/// show then only, when nobody can be told.
fn route(topology: &Topology, message: Message) -> Result<(Message, Arc<Target>)> {
    let (message, routing_key) = take_routing_key(message);
    match routing_key {
        Some(key) if !message.delay().is_zero() && !topology.pushes_with(&key) => {
            let error = Error::new(ErrorKind::Unsupported, "push").with_driver(NAME);
            Err(error.with_context(format!(
                "a delayed message cannot have a `{ROUTING_KEY}` other than the pipeline's: `{key}`"
            )))
        }
        key => Ok((message, topology.pushes(key))),
    }
}

/// Takes the routing key out of the headers, if there is exactly one that AMQP can carry.
fn take_routing_key(message: Message) -> (Message, Option<ShortString>) {
    if message.headers().get(ROUTING_KEY).is_none() {
        return (message, None);
    }
    let mut headers = message.headers().clone();
    headers.remove(ROUTING_KEY);
    let mut keys = message.headers().get_all(ROUTING_KEY);
    let key = match (keys.next(), keys.next()) {
        (Some(key), None) if !key.is_empty() => ShortString::try_new(key).ok(),
        _ => None,
    };
    drop(keys);
    (message.with_headers(headers), key)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::topology::tests::topology;

    fn size<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// A batch moves thousands of them several times.
    #[test]
    fn the_future_of_a_push_is_small() {
        let size = size::<&'static Outbox, _, _, _>(Outbox::push);
        assert!(size <= 1024, "{size} bytes");
    }

    #[test]
    fn a_delayed_message_has_the_pipelines_routing_key() {
        let consumed = topology(json!({ "queue": "k" }));
        let exchanged = topology(json!({ "queue": "q", "exchange": "x", "routing_key": "k" }));
        for topology in [consumed, exchanged] {
            for (key, delay, expected) in [
                ("k", Duration::ZERO, Some("k")),
                ("other", Duration::ZERO, Some("other")),
                ("k", Duration::from_millis(1), Some("k")),
                ("other", Duration::from_millis(1), None),
            ] {
                let message = Message::new("a", "").with_header(ROUTING_KEY, key);
                match (route(&topology, message.with_delay(delay)), expected) {
                    (Ok((_, target)), Some(expected)) => {
                        assert_eq!(target.routing_key.as_str(), expected);
                    }
                    (Err(error), None) => assert_eq!(error.kind(), ErrorKind::Unsupported),
                    (answer, _) => panic!("{key} after {delay:?}: {answer:?}"),
                }
            }
        }
    }

    #[test]
    fn one_routing_key_replaces_the_pipelines_and_the_header_is_always_removed() {
        let message = |keys: &[&str]| {
            let message = Message::new("a", "").with_header("x", "1");
            keys.iter().fold(message, |message, key| message.with_header(ROUTING_KEY, *key))
        };
        let long = "k".repeat(256);
        for (keys, expected) in [
            (&[][..], None),
            (&["k"], Some("k")),
            (&[""], None),
            (&["a", "b"], None),
            (&[long.as_str()], None),
        ] {
            let (message, key) = take_routing_key(message(keys));
            assert_eq!(key.as_ref().map(ShortString::as_str), expected);
            assert_eq!(message.headers().len(), 1);
        }
    }
}
