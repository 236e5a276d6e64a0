//! From what is written to what holds: defaults, and the checks of options against each other.

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use jobs_core::{Options, Problem};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPScheme, AMQPUri};
use serde_json::Value;

use super::written::{Common, ExchangeType, Nested, Target, Tls, nested_place};
use super::{
    A_YEAR, AmqpConfig, ConnectionConfig, DeadLetter, ExchangeConfig, QueueConfig, QueueType,
    TlsConfig, arguments,
};

/// RabbitMQ 4 takes no larger message unless configured so; earlier versions took 128 MiB.
const MAX_PAYLOAD: usize = 16 << 20;

const THIRTY_SECONDS: Duration = Duration::from_secs(30);

/// The broker looks once a minute, so less would mean little; and `60`, which counts nanoseconds, is
/// a mistake.
const SHORTEST_CONSUMER_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn resolve(options: &Options) -> Result<AmqpConfig, Vec<Problem>> {
    let nested = match options.get("version") {
        Some(Value::Number(version)) => version.as_u64() == Some(2),
        Some(Value::String(version)) => version.trim() == "2",
        _ => false,
    };
    let mut rest = options.clone();
    let common = rest.take(&Common::NAMES).parse::<Common>();
    let target = if nested { rest.parse::<Nested>().map(Target::from) } else { rest.parse() };
    let (common, target) = match (common, target) {
        (Ok(common), Ok(target)) => (common, target),
        (common, target) => {
            let problems = [common.err(), target.err()];
            return Err(problems.into_iter().flatten().flatten().collect());
        }
    };
    let mut check = Check { options, nested, problems: Vec::new() };
    let config = check.config(common, target);
    if check.problems.is_empty() { Ok(config) } else { Err(check.problems) }
}

struct Check<'a> {
    options: &'a Options,
    nested: bool,
    problems: Vec<Problem>,
}

impl Check<'_> {
    /// Where an option stands, given its flat name.
    fn path(&self, option: &str) -> String {
        if !self.nested || Common::NAMES.contains(&option) {
            return self.options.path_of(option);
        }
        let place = nested_place(option);
        let (map, name) = place.split_once('.').expect("a map and a name");
        format!("{}.{name}", self.options.path_of(map))
    }

    fn problem(&mut self, option: &str, message: impl Into<String>) {
        self.problems.push(Problem::new(self.path(option), message));
    }

    fn require(&mut self, holds: bool, option: &str, expected: &str) {
        if !holds {
            self.problem(option, expected);
        }
    }

    /// Says what an option does not do.
    fn ignored(&self, ignored: bool, option: &str, reason: &str) {
        if ignored {
            tracing::warn!(path = self.path(option), "option has no effect: {reason}");
        }
    }

    fn config(&mut self, common: Common, mut target: Target) -> AmqpConfig {
        let redials = common.redial_timeout.is_some();
        self.ignored(redials, "redial_timeout", "a lost connection is made again for ever");
        self.ignored(target.multiple_ack, "multiple_ack", "an ack never covers another job");
        let dropped = target.requeue_on_fail == Some(false);
        self.ignored(dropped, "requeue_on_fail", "only a rejected job is dropped or dead-lettered");

        let mut arguments = self.arguments(&mut target);
        self.names(&target);
        self.queue_type(&target);
        let exchange = self.exchange(&target);
        self.routing(&target, exchange.as_ref());
        let dead_letter = self.dead_letter(&target);
        self.delivery_limit(&target, dead_letter.is_some(), &mut arguments);
        let timeout = target.consumer_timeout;
        self.time("consumer_timeout", timeout, SHORTEST_CONSUMER_TIMEOUT, A_YEAR);
        self.time("push_timeout", common.push_timeout, Duration::from_millis(1), A_YEAR);

        let Target { queue: name, mut routing_key, max_priority, .. } = target;
        if routing_key.is_empty() {
            routing_key.clone_from(&name);
        }
        let queue = (!name.is_empty()).then(|| QueueConfig {
            name,
            kind: target.queue_type.unwrap_or_default(),
            durable: target.durable.unwrap_or(true),
            exclusive: target.exclusive,
            auto_delete: target.queue_auto_delete,
            declare: target.queue_declare.unwrap_or(true),
            delete_on_stop: target.delete_queue_on_stop,
            arguments,
            dead_letter,
        });
        AmqpConfig {
            queue,
            exchange,
            routing_key,
            max_priority,
            prefetch: common.prefetch.unwrap_or(NonZeroU16::new(10).expect("not zero")),
            consumer_id: (!target.consumer_id.is_empty()).then_some(target.consumer_id),
            consumer_timeout: target.consumer_timeout,
            push_timeout: common.push_timeout.unwrap_or(THIRTY_SECONDS),
            max_payload: common.max_payload.unwrap_or(MAX_PAYLOAD),
            connection: self.connection(
                common.addr,
                common.tls,
                common.connect_timeout,
                common.heartbeat,
            ),
        }
    }

    /// The arguments of the declaration, but for the delivery limit. Options that `queue_headers`
    /// sets are set in `target`.
    fn arguments(&mut self, target: &mut Target) -> FieldTable {
        let headers = std::mem::take(&mut target.queue_headers);
        let path = self.path("queue_headers");
        let (known, mut table) = arguments::read(&path, headers, &mut self.problems);
        let mut agree = Agree { check: self, path };
        agree.on("queue_type", "x-queue-type", &mut target.queue_type, known.queue_type);
        let limit = &mut target.delivery_limit;
        agree.on("delivery_limit", "x-delivery-limit", limit, known.delivery_limit);
        let exchange = &mut target.dead_letter_exchange;
        let found = known.dead_letter_exchange;
        agree.on("dead_letter_exchange", "x-dead-letter-exchange", exchange, found);
        let key = &mut target.dead_letter_routing_key;
        let found = known.dead_letter_routing_key;
        agree.on("dead_letter_routing_key", "x-dead-letter-routing-key", key, found);
        agree.on("max_priority", "x-max-priority", &mut target.max_priority, known.max_priority);
        let timeout = &mut target.consumer_timeout;
        let found = known.consumer_timeout.map(Duration::from_millis);
        agree.on("consumer_timeout", "x-consumer-timeout", timeout, found);

        let mut insert = |name: &str, value| _ = table.insert(name.into(), value);
        let kind = match target.queue_type.unwrap_or_default() {
            QueueType::Classic => "classic",
            QueueType::Quorum => "quorum",
        };
        insert("x-queue-type", AMQPValue::LongString(kind.into()));
        if let Some(exchange) = &target.dead_letter_exchange {
            insert("x-dead-letter-exchange", AMQPValue::LongString(exchange.as_str().into()));
        }
        if let Some(key) = &target.dead_letter_routing_key {
            insert("x-dead-letter-routing-key", AMQPValue::LongString(key.as_str().into()));
        }
        if let Some(levels) = target.max_priority {
            insert("x-max-priority", arguments::integer(levels.get().into()));
        }
        if let Some(timeout) = target.consumer_timeout {
            let milliseconds = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
            insert("x-consumer-timeout", arguments::integer(milliseconds));
        }
        table
    }

    /// The protocol carries names of at most 255 bytes.
    fn names(&mut self, target: &Target) {
        let names = [
            ("queue", &target.queue),
            ("exchange", &target.exchange),
            ("routing_key", &target.routing_key),
            ("consumer_id", &target.consumer_id),
        ];
        let dead = [
            ("dead_letter_exchange", &target.dead_letter_exchange),
            ("dead_letter_routing_key", &target.dead_letter_routing_key),
        ];
        let dead = dead.into_iter().filter_map(|(option, name)| Some((option, name.as_ref()?)));
        for (option, name) in names.into_iter().chain(dead) {
            if name.len() > 255 {
                let message = format!("expected at most 255 bytes, found {}", name.len());
                self.problem(option, message);
            }
        }
    }

    fn queue_type(&mut self, target: &Target) {
        if target.queue_type.unwrap_or_default() == QueueType::Quorum {
            let expected = "expected `false`: a quorum queue cannot be exclusive";
            self.require(!target.exclusive, "exclusive", expected);
            let expected = "expected `false`: a quorum queue cannot delete itself";
            self.require(!target.queue_auto_delete, "queue_auto_delete", expected);
            let expected = "expected `true`: a quorum queue is always durable";
            self.require(target.durable.unwrap_or(true), "durable", expected);
            let expected = "expected `false`: no broker can tell whether a quorum queue is empty \
                            when deleting it";
            self.require(!target.delete_queue_on_stop, "delete_queue_on_stop", expected);
            let expected = "expected none: only a classic queue has levels of priority";
            self.require(target.max_priority.is_none(), "max_priority", expected);
        } else if target.durable == Some(false) && !target.exclusive && !target.queue.is_empty() {
            tracing::warn!(
                path = self.path("durable"),
                "from 4.3 on RabbitMQ refuses a queue that is neither durable nor exclusive"
            );
        }
    }

    fn exchange(&mut self, target: &Target) -> Option<ExchangeConfig> {
        let kind = target.exchange_type.unwrap_or(ExchangeType::Direct);
        if target.exchange.is_empty() {
            let expected = "expected `direct`, as the default exchange is, or an `exchange`";
            self.require(kind == ExchangeType::Direct, "exchange_type", expected);
            return None;
        }
        Some(ExchangeConfig {
            name: target.exchange.clone(),
            kind: kind.into(),
            durable: target.exchange_durable.unwrap_or(true),
            auto_delete: target.exchange_auto_delete,
            declare: target.exchange_declare.unwrap_or(true),
        })
    }

    fn routing(&mut self, target: &Target, exchange: Option<&ExchangeConfig>) {
        let Target { queue, routing_key, exchange_type, .. } = target;
        let needs_none =
            matches!(exchange_type, Some(ExchangeType::Fanout | ExchangeType::Headers));
        match exchange {
            None if queue.is_empty() && routing_key.is_empty() => {
                self.problem("queue", "expected a queue, or where else to push to");
            }
            None if !queue.is_empty() && !routing_key.is_empty() && routing_key != queue => {
                let expected = "expected none, or an `exchange`: the default exchange delivers to \
                                the queue that the routing key names";
                self.problem("routing_key", expected);
            }
            Some(_) if queue.is_empty() && routing_key.is_empty() && !needs_none => {
                let expected = "is required: there is no `queue` to take it from";
                self.problem("routing_key", expected);
            }
            _ => {}
        }
    }

    fn dead_letter(&mut self, target: &Target) -> Option<DeadLetter> {
        let routing_key = target.dead_letter_routing_key.clone();
        let Some(exchange) = target.dead_letter_exchange.clone() else {
            let expected = "expected a `dead_letter_exchange` too, which may be empty";
            self.require(routing_key.is_none(), "dead_letter_routing_key", expected);
            return None;
        };
        let Target { queue, .. } = target;
        let own = if target.routing_key.is_empty() { queue } else { &target.routing_key };
        let dead = routing_key.as_ref().unwrap_or(own);
        // What a broker can route in other ways, with patterns and bindings of others, is not seen.
        let to_all = matches!(target.exchange_type, Some(ExchangeType::Fanout));
        let comes_back = match exchange.as_str() {
            "" => dead == queue,
            exchange => exchange == target.exchange && (to_all || dead == own),
        };
        if comes_back {
            let expected = "expected another exchange, or a `dead_letter_routing_key` of another \
                            queue: rejected jobs would come back for ever";
            self.problem("dead_letter_exchange", expected);
        }
        Some(DeadLetter { exchange, routing_key })
    }

    fn delivery_limit(&mut self, target: &Target, dead_letter: bool, arguments: &mut FieldTable) {
        /// Without this the broker has a limit of 20 and destroys a job that reaches it.
        const NONE: i64 = -1;
        let limit = target.delivery_limit.unwrap_or(NONE);
        let quorum = target.queue_type.unwrap_or_default() == QueueType::Quorum;
        if limit < NONE {
            self.problem("delivery_limit", format!("expected -1 (none) or more, found {limit}"));
        } else if limit != NONE && !quorum {
            let expected = format!("expected -1, or `queue_type: quorum`, found {limit}");
            self.problem("delivery_limit", expected);
        } else if limit != NONE && !dead_letter {
            let expected = "expected a `dead_letter_exchange` too: at its limit a job is destroyed";
            self.problem("delivery_limit", expected);
        }
        if quorum {
            arguments.insert("x-delivery-limit".into(), arguments::integer(limit));
        }
    }

    fn time(&mut self, option: &str, found: Option<Duration>, least: Duration, most: Duration) {
        if let Some(found) = found.filter(|found| !(least..=most).contains(found)) {
            let expected =
                format!("expected {least:?} to {most:?} (a bare number counts nanoseconds)");
            self.problem(option, format!("{expected}, found {found:?}"));
        }
    }

    fn connection(
        &mut self,
        mut uri: AMQPUri,
        tls: Option<Tls>,
        connect_timeout: Option<Duration>,
        heartbeat: Option<Duration>,
    ) -> ConnectionConfig {
        let tls = tls.and_then(|tls| self.tls(&uri, tls));
        let of_addr = uri.query.connection_timeout.map(Duration::from_millis);
        let connect_timeout = connect_timeout.or(of_addr).unwrap_or(THIRTY_SECONDS);
        self.time("connect_timeout", Some(connect_timeout), Duration::from_millis(1), A_YEAR);
        let of_addr = uri.query.heartbeat.map(|seconds| Duration::from_secs(seconds.into()));
        let heartbeat = heartbeat.or(of_addr).unwrap_or(Duration::from_secs(10));
        let seconds = u16::try_from(heartbeat.as_secs()).unwrap_or(0);
        if seconds == 0 || heartbeat.subsec_nanos() != 0 {
            let expected = "expected whole seconds from 1s to 65535s (a bare number counts \
                            nanoseconds; without a heartbeat a dead broker goes unnoticed)";
            self.problem("heartbeat", format!("{expected}, found {heartbeat:?}"));
        }
        uri.query.heartbeat = Some(seconds);
        uri.query.connection_timeout = u64::try_from(connect_timeout.as_millis()).ok();
        ConnectionConfig { uri, tls, connect_timeout, heartbeat }
    }

    fn tls(&mut self, uri: &AMQPUri, Tls { key, cert, root_ca, .. }: Tls) -> Option<TlsConfig> {
        let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
        let (root_ca, cert, key) = (path(root_ca), path(cert), path(key));
        if root_ca.is_none() && cert.is_none() && key.is_none() {
            return None;
        }
        let expected = "expected `amqps://…`: `tls` is set";
        self.require(uri.scheme == AMQPScheme::AMQPS, "addr", expected);
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => {
                self.problem("tls", "expected both `cert` and `key`, or neither");
                None
            }
        };
        Some(TlsConfig { root_ca, identity })
    }
}

/// Options that `queue_headers`, at `path`, may set too.
struct Agree<'a, 'b> {
    check: &'a mut Check<'b>,
    path: String,
}

impl Agree<'_, '_> {
    fn on<T: PartialEq>(
        &mut self,
        option: &str,
        argument: &str,
        chosen: &mut Option<T>,
        found: Option<T>,
    ) {
        if found.is_some() && chosen.is_some() && *chosen != found {
            let other = self.check.path(option);
            let path = format!("{}.{argument}", self.path);
            self.check.problems.push(Problem::new(path, format!("contradicts `{other}`")));
        }
        if chosen.is_none() {
            *chosen = found;
        }
    }
}
