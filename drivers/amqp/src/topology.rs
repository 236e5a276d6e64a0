//! What the driver declares at the broker.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, ExchangeKind, Result};

use crate::codec::HOP_HEADER_PREFIX;
use crate::config::{AmqpConfig, ExchangeConfig, QueueConfig};
use crate::delays::{self, Hop, Level};

/// The queue and exchange of a pipeline, and the levels its delayed messages wait in.
#[derive(Debug)]
pub(crate) struct Topology {
    queue: Option<QueueConfig>,
    exchange: Option<ExchangeConfig>,
    /// Where pushes go.
    pushes: Arc<Target>,
    /// What the names of its levels start with.
    delays: String,
}

/// Where a message is to be published.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
}

/// Where a delayed message goes when it is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Destination {
    /// Where every push goes.
    Exchange,
    /// The pipeline's own queue: a copy of a job must not reach other queues of the exchange.
    Queue,
}

/// What a binding leads to.
#[derive(Debug, PartialEq)]
enum End<'a> {
    Queue(&'a str),
    Exchange(&'a str),
}

/// Which of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Publishing,
    Consuming,
}

impl Topology {
    pub(crate) fn new(config: &AmqpConfig) -> Self {
        let exchange = config.exchange.as_ref().map_or("", |exchange| exchange.name.as_str());
        let routing_key = config.routing_key.as_str().into();
        let pushes = Target { exchange: exchange.into(), routing_key };
        Self {
            queue: config.queue.clone(),
            exchange: config.exchange.clone(),
            pushes: Arc::new(pushes),
            delays: delays_of(config),
        }
    }

    /// Where pushes go, with another routing key if the message brings one.
    pub(crate) fn pushes(&self, routing_key: Option<ShortString>) -> Arc<Target> {
        match routing_key {
            None => Arc::clone(&self.pushes),
            Some(routing_key) => {
                Arc::new(Target { exchange: self.pushes.exchange.clone(), routing_key })
            }
        }
    }

    /// True if every push has this routing key, unless it brings another.
    pub(crate) fn pushes_with(&self, routing_key: &ShortString) -> bool {
        self.pushes.routing_key == *routing_key
    }

    /// The pipeline's queue, past its exchange.
    pub(crate) fn copies(&self) -> Arc<Target> {
        let queue = self.queue.as_ref().map_or("", |queue| queue.name.as_str());
        Arc::new(Target { exchange: "".into(), routing_key: queue.into() })
    }

    /// Declares queue, exchange and the binding between them, as far as the configuration says.
    ///
    /// An exclusive queue belongs to the connection that declares it, which must be the one that
    /// consumes.
    pub(crate) async fn declare(&self, channel: &Channel, side: Side) -> Result<()> {
        if let Some(exchange) = self.exchange.as_ref().filter(|exchange| exchange.declare) {
            let options = ExchangeDeclareOptions {
                durable: exchange.durable,
                auto_delete: exchange.auto_delete,
                ..Default::default()
            };
            let (name, kind) = (exchange.name.as_str().into(), exchange.kind.clone());
            channel.exchange_declare(name, kind, options, FieldTable::default()).await?;
        }
        let ours =
            |queue: &&QueueConfig| queue.declare && (side == Side::Consuming || !queue.exclusive);
        let Some(queue) = self.queue.as_ref().filter(ours) else { return Ok(()) };
        let options = QueueDeclareOptions {
            durable: queue.durable,
            exclusive: queue.exclusive,
            auto_delete: queue.auto_delete,
            ..Default::default()
        };
        let (name, arguments) = (queue.name.as_str(), queue.arguments.clone());
        channel.queue_declare(name.into(), options, arguments).await?;
        if self.exchange.is_some() {
            let Target { exchange, routing_key: key } = Target::clone(&self.pushes);
            let options = QueueBindOptions::default();
            channel.queue_bind(name.into(), exchange, key, options, FieldTable::default()).await?;
        }
        Ok(())
    }

    /// Declares where delayed messages end, as far as this pipeline declares where they go.
    pub(crate) async fn declare_due(&self, channel: &Channel) -> Result<()> {
        declare_headers_exchange(channel, &self.due().into()).await?;
        match (&self.queue, &self.exchange) {
            // Somebody else's queue, which need not exist yet.
            (None, None) => Ok(()),
            _ => self.bind_due(channel, Destination::Exchange).await,
        }
    }

    /// Declares where messages with this destination end. Fails with `NotFound` if it does not exist.
    ///
    /// Not only once: a queue that was deleted and declared again is not bound any more.
    pub(crate) async fn renew_due(&self, channel: &Channel, to: Destination) -> Result<()> {
        declare_headers_exchange(channel, &self.due().into()).await?;
        self.bind_due(channel, to).await
    }

    async fn bind_due(&self, channel: &Channel, to: Destination) -> Result<()> {
        let (due, none) = (ShortString::from(self.due()), ShortString::from(""));
        for (end, arguments) in self.ends(to) {
            match end {
                End::Queue(queue) => {
                    let (queue, options) = (queue.into(), QueueBindOptions::default());
                    channel
                        .queue_bind(queue, due.clone(), none.clone(), options, arguments)
                        .await?;
                }
                End::Exchange(name) => {
                    let (name, options) = (name.into(), ExchangeBindOptions::default());
                    let bound =
                        channel.exchange_bind(name, due.clone(), none.clone(), options, arguments);
                    bound.await?;
                }
            }
        }
        Ok(())
    }

    /// What the due exchange is bound to for messages with this destination, and by which headers.
    fn ends(&self, to: Destination) -> Vec<(End<'_>, FieldTable)> {
        let via = |to| matching(to_header(to));
        match (&self.queue, &self.exchange) {
            // Without an exchange of its own everything goes to the queue.
            (None, None) => vec![(End::Queue(self.pushes.routing_key.as_str()), any())],
            (Some(queue), None) => vec![(End::Queue(&queue.name), any())],
            (None, Some(exchange)) => vec![(End::Exchange(&exchange.name), via(to))],
            (Some(queue), Some(exchange)) => {
                let copies = (End::Queue(queue.name.as_str()), via(Destination::Queue));
                match to {
                    Destination::Queue => vec![copies],
                    // The queue is not where they end, but it must exist.
                    Destination::Exchange => vec![copies, (End::Exchange(&exchange.name), via(to))],
                }
            }
        }
    }

    /// The headers that make a message wait for `delay` and then go there.
    pub(crate) fn way(delay: Duration, to: Destination) -> Vec<(String, String)> {
        let hops = delays::hops(delay).into_iter().map(Hop::header);
        hops.chain(std::iter::once(to_header(to))).collect()
    }

    /// Declares where a hop leads, and its binding.
    pub(crate) async fn declare_hop(&self, channel: &Channel, hop: Hop) -> Result<()> {
        let from: ShortString =
            hop.from.map_or_else(|| self.delays.clone(), |l| self.level(l)).into();
        if hop.from.is_none() {
            declare_headers_exchange(channel, &from).await?;
        }
        let arguments = matching(hop.header());
        let Some(level) = hop.to else {
            let options = ExchangeBindOptions::default();
            return channel
                .exchange_bind(self.due().into(), from, "".into(), options, arguments)
                .await;
        };
        let name: ShortString = self.level(level).into();
        declare_headers_exchange(channel, &name).await?;
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.clone(), options, level_arguments(level, &name)).await?;
        let options = QueueBindOptions::default();
        channel.queue_bind(name, from, "".into(), options, arguments).await
    }

    /// The exchange that delayed messages are published to.
    pub(crate) fn entry(&self) -> ShortString {
        self.delays.as_str().into()
    }

    /// The queue of a level, and the exchange behind it.
    pub(crate) fn level(&self, level: Level) -> String {
        format!("{}.{level}", self.delays)
    }

    fn due(&self) -> String {
        format!("{}.due", self.delays)
    }

    pub(crate) fn deletes_on_stop(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.delete_on_stop)
    }

    /// Deletes the queue if nothing is in it and nobody consumes it.
    pub(crate) async fn delete_queue(&self, channel: &Channel) -> Result<()> {
        let queue = self.queue.as_ref().map_or("", |queue| queue.name.as_str());
        let options = QueueDeleteOptions { if_empty: true, if_unused: true, ..Default::default() };
        channel.queue_delete(queue.into(), options).await.map(drop)
    }

    /// Makes sure that what delayed messages are for exists.
    pub(crate) async fn check_target(&self, channel: &Channel) -> Result<()> {
        match (&self.queue, &self.exchange) {
            (Some(queue), _) => ready(channel, &queue.name).await.map(drop),
            (None, Some(exchange)) => exists(channel, &exchange.name, exchange.kind.clone()).await,
            (None, None) => ready(channel, self.pushes.routing_key.as_str()).await.map(drop),
        }
    }

    /// Fails with `NotFound` if nothing was ever delayed.
    pub(crate) async fn check_delays(&self, channel: &Channel) -> Result<()> {
        exists(channel, &self.delays, ExchangeKind::Headers).await
    }
}

/// Levels belong to one target: when it is gone, what is due for it waits in them, and the levels of
/// other pipelines go on. Pipelines with the same target share them.
fn delays_of(config: &AmqpConfig) -> String {
    let queue = config.queue.as_ref().map_or("", |queue| queue.name.as_str());
    let target = match &config.exchange {
        None if queue.is_empty() => config.routing_key.clone(),
        None => queue.to_owned(),
        Some(exchange) => {
            let parts = [exchange.name.as_str(), config.routing_key.as_str(), queue];
            let name = if queue.is_empty() { config.routing_key.as_str() } else { queue };
            format!("{}.{name}.{:016x}", exchange.name, fingerprint(&parts))
        }
    };
    // The longest suffix is `.due`.
    match format!("jobs.delay.{target}") {
        name if name.len() <= 250 => name,
        _ => format!("jobs.delay.{:016x}", fingerprint(&[&target])),
    }
}

/// FNV-1a, which is the same in every build: names at the broker outlive this process.
fn fingerprint(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain(std::iter::once(0xff)));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The number of ready messages in a queue.
pub(crate) async fn ready(channel: &Channel, queue: &str) -> Result<u64> {
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = channel.queue_declare(queue.into(), options, FieldTable::default()).await?;
    Ok(queue.message_count().into())
}

async fn exists(channel: &Channel, exchange: &str, kind: ExchangeKind) -> Result<()> {
    let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
    channel.exchange_declare(exchange.into(), kind, options, FieldTable::default()).await
}

async fn declare_headers_exchange(channel: &Channel, name: &ShortString) -> Result<()> {
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel
        .exchange_declare(name.clone(), ExchangeKind::Headers, options, FieldTable::default())
        .await
}

/// Nothing confirmed may be lost on its way from level to level, so the levels of classic queues are
/// quorum queues too: only these pass messages on with confirms.
/// Source: <https://www.rabbitmq.com/docs/quorum-queues#dead-lettering>
fn level_arguments(level: Level, exchange: &ShortString) -> FieldTable {
    let time_to_live = i64::try_from(delays::time_to_live(level)).expect("35 bits at most");
    let mut arguments = FieldTable::default();
    arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(time_to_live));
    for (name, value) in [
        ("x-queue-type", "quorum"),
        ("x-dead-letter-exchange", exchange.as_str()),
        ("x-dead-letter-strategy", "at-least-once"),
        ("x-overflow", "reject-publish"),
    ] {
        arguments.insert(name.into(), text(value));
    }
    arguments
}

fn to_header(to: Destination) -> (String, String) {
    let to = match to {
        Destination::Exchange => "exchange",
        Destination::Queue => "queue",
    };
    (format!("{HOP_HEADER_PREFIX}to"), to.to_owned())
}

/// Arguments of a binding that takes messages with this header.
fn matching((name, value): (String, String)) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-match".into(), text("all"));
    arguments.insert(name.into(), text(value));
    arguments
}

/// Arguments of a binding that takes every message.
fn any() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-match".into(), text("all"));
    arguments
}

pub(crate) fn text(value: impl Into<LongString>) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

#[cfg(test)]
pub(crate) mod tests {
    use jobs_core::{Options, Pipeline};
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn topology(options: Value) -> Topology {
        let options = Options::from_value("p.config", options).expect("a map");
        let pipeline = Pipeline::with_options("p", "amqp", options).expect("common options");
        let shared = Options::from_value("amqp", json!({})).expect("a map");
        Topology::new(&AmqpConfig::read(&shared, &pipeline).expect("valid"))
    }

    /// Where a message that is due ends, given what its header says.
    fn ends(options: Value, to: Destination) -> Vec<String> {
        let (name, value) = to_header(to);
        let takes = |binding: &FieldTable| {
            let mut wanted = binding.inner().iter().filter(|(name, _)| name.as_str() != "x-match");
            wanted.all(|(key, wanted)| key.as_str() == name && *wanted == text(value.as_str()))
        };
        let topology = topology(options);
        let ends = topology.ends(to).into_iter().filter(|(_, binding)| takes(binding));
        ends.map(|(end, _)| format!("{end:?}")).collect()
    }

    #[test]
    fn what_is_due_ends_in_one_place_in_every_shape() {
        use Destination::{Exchange, Queue};
        let consumed = json!({ "queue": "q" });
        let pushed = json!({ "routing_key": "q" });
        let both = json!({ "queue": "q", "exchange": "x" });
        let only_exchange = json!({ "exchange": "x", "routing_key": "k" });
        assert_eq!(ends(consumed.clone(), Exchange), [r#"Queue("q")"#]);
        assert_eq!(ends(consumed, Queue), [r#"Queue("q")"#]);
        assert_eq!(ends(pushed, Exchange), [r#"Queue("q")"#]);
        assert_eq!(ends(both.clone(), Exchange), [r#"Exchange("x")"#]);
        assert_eq!(ends(both, Queue), [r#"Queue("q")"#]);
        assert_eq!(ends(only_exchange, Exchange), [r#"Exchange("x")"#]);
    }
}
