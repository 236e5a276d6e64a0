//! The options as they are written, in RoadRunner's two shapes.

use std::num::{NonZeroU8, NonZeroU16};
use std::time::Duration;

use jobs_core::options;
use lapin::ExchangeKind;
use lapin::uri::AMQPUri;
use serde::Deserialize;
use serde::de::{Deserializer, Error, Unexpected};
use serde_json::{Map, Value};

use super::QueueType;

/// What both shapes have in the same place.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Common {
    #[serde(default, rename = "version", deserialize_with = "version")]
    pub(super) _version: u64,
    #[serde(default, deserialize_with = "address")]
    pub(super) addr: AMQPUri,
    pub(super) tls: Option<Tls>,
    pub(super) prefetch: Option<NonZeroU16>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) push_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) connect_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) heartbeat: Option<Duration>,
    #[serde(default, deserialize_with = "options::size")]
    pub(super) max_payload: Option<usize>,
    #[serde(default, deserialize_with = "options::seconds")]
    pub(super) redial_timeout: Option<Duration>,
    #[serde(rename = "consume_all")]
    pub(super) _consume_all: Option<bool>,
}

impl Common {
    /// Its fields, to take them out of all options.
    pub(super) const NAMES: [&str; 10] = [
        "version",
        "addr",
        "tls",
        "prefetch",
        "push_timeout",
        "connect_timeout",
        "heartbeat",
        "max_payload",
        "redial_timeout",
        "consume_all",
    ];
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    #[serde(default)]
    pub(super) key: String,
    #[serde(default)]
    pub(super) cert: String,
    #[serde(default)]
    pub(super) root_ca: String,
    #[serde(rename = "client_auth_type")]
    pub(super) _client_auth_type: Option<ClientAuthType>,
}

/// How a server verifies its clients. RoadRunner takes it, and a client has no use for it.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ClientAuthType {
    NoClientCert,
    RequestClientCert,
    RequireAnyClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

/// The types every broker has.
#[derive(Clone, Copy, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(super) enum ExchangeType {
    Direct,
    Fanout,
    Topic,
    Headers,
}

impl From<ExchangeType> for ExchangeKind {
    fn from(kind: ExchangeType) -> Self {
        match kind {
            ExchangeType::Direct => Self::Direct,
            ExchangeType::Fanout => Self::Fanout,
            ExchangeType::Topic => Self::Topic,
            ExchangeType::Headers => Self::Headers,
        }
    }
}

/// Queue and exchange in the flat shape. Empty text means that an option is not set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    #[serde(default)]
    pub(super) queue: String,
    #[serde(default)]
    pub(super) exchange: String,
    pub(super) exchange_type: Option<ExchangeType>,
    #[serde(default)]
    pub(super) routing_key: String,
    pub(super) durable: Option<bool>,
    #[serde(default)]
    pub(super) exclusive: bool,
    #[serde(default)]
    pub(super) queue_auto_delete: bool,
    pub(super) queue_declare: Option<bool>,
    #[serde(default)]
    pub(super) delete_queue_on_stop: bool,
    #[serde(default)]
    pub(super) queue_headers: Map<String, Value>,
    pub(super) queue_type: Option<QueueType>,
    pub(super) delivery_limit: Option<i64>,
    /// Empty text is the default exchange.
    pub(super) dead_letter_exchange: Option<String>,
    pub(super) dead_letter_routing_key: Option<String>,
    pub(super) max_priority: Option<NonZeroU8>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) consumer_timeout: Option<Duration>,
    #[serde(default)]
    pub(super) consumer_id: String,
    #[serde(default)]
    pub(super) multiple_ack: bool,
    pub(super) requeue_on_fail: Option<bool>,
    pub(super) exchange_durable: Option<bool>,
    #[serde(default)]
    pub(super) exchange_auto_delete: bool,
    pub(super) exchange_declare: Option<bool>,
}

/// Queue and exchange in the nested shape, `version: 2`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nested {
    #[serde(default)]
    queue: Queue,
    #[serde(default)]
    exchange: Exchange,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Queue {
    #[serde(default)]
    name: String,
    #[serde(default)]
    routing_key: String,
    durable: Option<bool>,
    #[serde(default)]
    exclusive: bool,
    #[serde(default)]
    auto_delete: bool,
    declare: Option<bool>,
    #[serde(default)]
    delete_on_stop: bool,
    #[serde(default)]
    headers: Map<String, Value>,
    #[serde(rename = "type")]
    kind: Option<QueueType>,
    delivery_limit: Option<i64>,
    dead_letter_exchange: Option<String>,
    dead_letter_routing_key: Option<String>,
    max_priority: Option<NonZeroU8>,
    #[serde(default, deserialize_with = "options::duration")]
    consumer_timeout: Option<Duration>,
    #[serde(default)]
    consumer_id: String,
    #[serde(default)]
    multiple_ack: bool,
    requeue_on_fail: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    #[serde(default)]
    name: String,
    #[serde(rename = "type")]
    kind: Option<ExchangeType>,
    durable: Option<bool>,
    #[serde(default)]
    auto_delete: bool,
    declare: Option<bool>,
}

impl From<Nested> for Target {
    fn from(Nested { queue, exchange }: Nested) -> Self {
        Self {
            queue: queue.name,
            exchange: exchange.name,
            exchange_type: exchange.kind,
            routing_key: queue.routing_key,
            durable: queue.durable,
            exclusive: queue.exclusive,
            queue_auto_delete: queue.auto_delete,
            queue_declare: queue.declare,
            delete_queue_on_stop: queue.delete_on_stop,
            queue_headers: queue.headers,
            queue_type: queue.kind,
            delivery_limit: queue.delivery_limit,
            dead_letter_exchange: queue.dead_letter_exchange,
            dead_letter_routing_key: queue.dead_letter_routing_key,
            max_priority: queue.max_priority,
            consumer_timeout: queue.consumer_timeout,
            consumer_id: queue.consumer_id,
            multiple_ack: queue.multiple_ack,
            requeue_on_fail: queue.requeue_on_fail,
            exchange_durable: exchange.durable,
            exchange_auto_delete: exchange.auto_delete,
            exchange_declare: exchange.declare,
        }
    }
}

/// Where the nested shape has an option of [`Target`].
pub(super) fn nested_place(option: &str) -> String {
    match option {
        "queue" | "exchange" => format!("{option}.name"),
        "delete_queue_on_stop" => "queue.delete_on_stop".to_owned(),
        _ => match option.split_once('_') {
            Some((map @ ("queue" | "exchange"), name)) => format!("{map}.{name}"),
            _ => format!("queue.{option}"),
        },
    }
}

fn version<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let version = u64::deserialize(from)?;
    let expected = "0 or 1 (flat options) or 2 (nested)";
    let wrong = || D::Error::invalid_value(Unexpected::Unsigned(version), &expected);
    (version <= 2).then_some(version).ok_or_else(wrong)
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<AMQPUri, D::Error> {
    // The reader of options cuts a problem with an address at `, found`, as it may hold a password.
    read_address(&String::deserialize(from)?)
        .map_err(|expected| D::Error::custom(format_args!("expected {expected}, found another")))
}

/// The client's own reader, with what that overlooks: it takes `localhost` where it finds no host
/// name, as in `[::1]`, and ignores parameters it does not know.
fn read_address(text: &str) -> Result<AMQPUri, &'static str> {
    const PARAMETERS: [&str; 5] =
        ["frame_max", "channel_max", "heartbeat", "connection_timeout", "auth_mechanism"];
    let expected = "an address such as `amqp://user:password@host:5672/vhost` or `amqps://…`";
    let mut uri: AMQPUri = text.parse().map_err(|_| expected)?;
    let (_, rest) = text.split_once("://").ok_or(expected)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if let Some((host, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        uri.authority.host = host.to_owned();
    }
    if uri.vhost.is_empty() {
        // Everyone writes `amqp://host/` for the default one.
        uri.vhost = "/".to_owned();
    }
    if uri.vhost.len() > 255 {
        return Err("a virtual host of at most 255 bytes");
    }
    let query = text.split_once('?').map_or("", |(_, query)| query);
    let mut names = query.split('&').filter_map(|parameter| parameter.split('=').next());
    if names.any(|name| !name.is_empty() && !PARAMETERS.contains(&name)) {
        return Err("no parameter but `frame_max`, `channel_max`, `heartbeat`, \
                    `connection_timeout` and `auth_mechanism`");
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use lapin::uri::AMQPScheme;

    use super::*;

    #[test]
    fn an_address_is_read_as_people_mean_it() {
        let read = |text| read_address(text).expect(text);
        for text in ["amqp://", "amqp://localhost", "amqp://guest:guest@localhost:5672/"] {
            assert_eq!(read(text), AMQPUri::default(), "{text}");
        }
        let uri = read("amqps://me:p%40ss@[::1]:5000/%2Fjobs?heartbeat=7");
        assert_eq!((uri.scheme, uri.authority.host.as_str()), (AMQPScheme::AMQPS, "::1"));
        assert_eq!((uri.authority.port, uri.vhost.as_str()), (5000, "/jobs"));
        assert_eq!(uri.authority.userinfo.password, "p@ss");
        assert_eq!(uri.query.heartbeat, Some(7));
        assert_eq!(read("amqp://127.0.0.1").authority.host, "127.0.0.1");
        assert_eq!(read("amqps://host").authority.port, 5671);
    }

    #[test]
    fn an_address_that_would_be_misread_is_refused() {
        let long = format!("amqp://host/{}", "v".repeat(256));
        for text in [
            "",
            "host:5672",
            "amqp:/host:5672",
            "http://host",
            "amqp://me:se#cret@host",
            "amqp://host/?cacertfile=ca.pem",
            "amqp://host/?heartbeat=soon",
            "amqp://host:99999/",
            &long,
        ] {
            assert!(read_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_option_has_its_place_in_the_nested_shape() {
        for (flat, nested) in [
            ("queue", "queue.name"),
            ("exchange", "exchange.name"),
            ("exchange_type", "exchange.type"),
            ("exchange_auto_delete", "exchange.auto_delete"),
            ("queue_headers", "queue.headers"),
            ("queue_type", "queue.type"),
            ("delete_queue_on_stop", "queue.delete_on_stop"),
            ("routing_key", "queue.routing_key"),
            ("dead_letter_exchange", "queue.dead_letter_exchange"),
        ] {
            assert_eq!(nested_place(flat), nested);
        }
    }
}
