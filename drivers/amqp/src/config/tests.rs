use std::collections::BTreeMap;

use lapin::types::AMQPValue;
use lapin::uri::AMQPScheme;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn read_over(shared: Value, options: Value) -> Result<AmqpConfig, Vec<String>> {
    let shared = Options::from_value("amqp", shared).expect("a map");
    let options = Options::from_value("p.config", options).expect("a map");
    let pipeline = Pipeline::with_options("p", "amqp", options).expect("common options");
    AmqpConfig::read(&shared, &pipeline)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn read(options: Value) -> Result<AmqpConfig, Vec<String>> {
    read_over(json!({}), options)
}

fn valid(options: Value) -> AmqpConfig {
    read(options).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// The paths of all problems, sorted.
fn wrong(options: Value) -> Vec<String> {
    let problems = read(options).expect_err("wrong");
    let path = |problem: &String| problem.split('`').nth(1).expect("a path").to_owned();
    let mut paths: Vec<_> = problems.iter().map(path).collect();
    paths.sort();
    paths
}

fn arguments(config: &AmqpConfig) -> BTreeMap<&str, &AMQPValue> {
    let arguments = &config.queue.as_ref().expect("a queue").arguments;
    arguments.into_iter().map(|(name, value)| (name.as_str(), value)).collect()
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

#[test]
fn defaults_are_those_documented() {
    let config = valid(json!({"queue": "mail"}));
    let queue = config.queue.as_ref().expect("a queue");
    assert_eq!((queue.name.as_str(), config.routing_key.as_str()), ("mail", "mail"));
    assert_eq!((queue.kind, queue.durable, queue.declare), (QueueType::Classic, true, true));
    assert_eq!((queue.exclusive, queue.auto_delete, queue.delete_on_stop), (false, false, false));
    assert_eq!(arguments(&config), BTreeMap::from([("x-queue-type", &text("classic"))]));
    assert!(config.exchange.is_none() && queue.dead_letter.is_none());
    assert_eq!((config.prefetch.get(), config.max_priority), (10, None));
    assert_eq!((&config.consumer_id, config.consumer_timeout), (&None, None));
    assert_eq!((config.push_timeout, config.max_payload), (Duration::from_secs(30), 16 << 20));
    let ConnectionConfig { uri, tls, connect_timeout, heartbeat } = &config.connection;
    assert_eq!((uri.scheme.clone(), uri.vhost.as_str(), tls), (AMQPScheme::AMQP, "/", &None));
    assert_eq!((*connect_timeout, heartbeat.as_secs()), (Duration::from_secs(30), 10));
    let query = (uri.query.heartbeat, uri.query.connection_timeout);
    assert_eq!(query, (Some(10), Some(30_000)));
}

#[test]
fn every_option_is_read() {
    let config = valid(json!({
        "version": 1, "addr": "amqps://me:secret@mq/jobs", "prefetch": 7, "redial_timeout": 60,
        "tls": {
            "key": "key.pem", "cert": "cert.pem", "root_ca": "ca.pem",
            "client_auth_type": "no_client_cert",
        },
        "queue": "q", "exchange": "x", "exchange_type": "topic", "routing_key": "a.*",
        "durable": true, "exclusive": false, "queue_auto_delete": false, "exchange_durable": false,
        "exchange_auto_delete": true, "delete_queue_on_stop": false, "multiple_ack": true,
        "requeue_on_fail": true, "queue_headers": {"x-max-length": 5}, "consumer_id": "me",
        "exchange_declare": false, "queue_declare": false, "consume_all": true,
        "queue_type": "quorum", "delivery_limit": 3, "dead_letter_exchange": "dead",
        "dead_letter_routing_key": "d", "consumer_timeout": "2m", "push_timeout": "3s",
        "connect_timeout": "4s", "heartbeat": "5s", "max_payload": "1MiB",
    }));
    let queue = config.queue.clone().expect("a queue");
    assert_eq!((queue.name.as_str(), queue.kind), ("q", QueueType::Quorum));
    assert_eq!((queue.declare, queue.delete_on_stop), (false, false));
    let dead = DeadLetter { exchange: "dead".into(), routing_key: Some("d".into()) };
    assert_eq!(queue.dead_letter, Some(dead));
    let expected = ExchangeConfig {
        name: "x".into(),
        kind: ExchangeKind::Topic,
        durable: false,
        auto_delete: true,
        declare: false,
    };
    assert_eq!((config.exchange.as_ref(), config.routing_key.as_str()), (Some(&expected), "a.*"));
    let expected = BTreeMap::from([
        ("x-consumer-timeout", AMQPValue::LongInt(120_000)),
        ("x-dead-letter-exchange", text("dead")),
        ("x-dead-letter-routing-key", text("d")),
        ("x-delivery-limit", AMQPValue::LongInt(3)),
        ("x-max-length", AMQPValue::LongInt(5)),
        ("x-queue-type", text("quorum")),
    ]);
    assert_eq!(arguments(&config), expected.iter().map(|(name, value)| (*name, value)).collect());
    assert_eq!((config.prefetch.get(), config.consumer_id.as_deref()), (7, Some("me")));
    assert_eq!(config.consumer_timeout, Some(Duration::from_secs(120)));
    assert_eq!((config.push_timeout, config.max_payload), (Duration::from_secs(3), 1 << 20));
    let ConnectionConfig { uri, tls, connect_timeout, heartbeat } = config.connection;
    let identity = Some(("cert.pem".into(), "key.pem".into()));
    assert_eq!(tls, Some(TlsConfig { root_ca: Some("ca.pem".into()), identity }));
    assert_eq!((connect_timeout.as_secs(), heartbeat.as_secs()), (4, 5));
    assert_eq!((uri.query.heartbeat, uri.query.connection_timeout), (Some(5), Some(4_000)));
}

#[test]
fn both_shapes_and_flat_text_read_alike() {
    let flat = valid(json!({
        "queue": "q", "exchange": "x", "exchange_type": "fanout", "exchange_durable": true,
        "exchange_auto_delete": true, "exchange_declare": false, "routing_key": "k",
        "durable": false, "exclusive": true, "queue_auto_delete": true, "queue_declare": true,
        "delete_queue_on_stop": true, "multiple_ack": true, "requeue_on_fail": true,
        "queue_headers": {"x-expires": 9}, "consumer_id": "c", "prefetch": 3, "max_priority": 9,
        "dead_letter_exchange": "", "dead_letter_routing_key": "d", "consumer_timeout": "90s",
    }));
    let text = valid(json!({
        "queue": "q", "exchange": "x", "exchange_type": "fanout", "exchange_durable": "true",
        "exchange_auto_delete": "true", "exchange_declare": "false", "routing_key": "k",
        "durable": "false", "exclusive": "true", "queue_auto_delete": "true",
        "queue_declare": "true", "delete_queue_on_stop": "true", "multiple_ack": "true",
        "requeue_on_fail": "true", "queue_headers": "{\"x-expires\": 9}", "consumer_id": "c",
        "prefetch": "3", "max_priority": "9", "dead_letter_exchange": "", "version": "0",
        "dead_letter_routing_key": "d", "consumer_timeout": "90s",
    }));
    let nested = valid(json!({
        "version": 2, "prefetch": 3,
        "exchange": {
            "name": "x", "type": "fanout", "durable": true, "auto_delete": true, "declare": false,
        },
        "queue": {
            "name": "q", "routing_key": "k", "durable": false, "exclusive": true,
            "auto_delete": true, "declare": true, "delete_on_stop": true, "multiple_ack": true,
            "requeue_on_fail": true, "headers": {"x-expires": 9}, "consumer_id": "c",
            "max_priority": 9, "dead_letter_exchange": "", "dead_letter_routing_key": "d",
            "consumer_timeout": "90s", "type": "classic",
        },
    }));
    for other in [text, nested] {
        assert_eq!(format!("{flat:?}"), format!("{other:?}"));
    }
}

#[test]
fn all_problems_are_reported_with_the_path_the_user_wrote() {
    let flat = json!({
        "addr": "http://me:secret@host", "prefetch": 0, "prefech": 1, "queue_typ": "quorum",
        "exchange_type": "x-delayed", "max_priority": 256, "consumer_timeout": "soon",
        "tls": {"ca": "x"}, "version": 3,
    });
    let expected = [
        "p.config.addr",
        "p.config.consumer_timeout",
        "p.config.exchange_type",
        "p.config.max_priority",
        "p.config.prefech",
        "p.config.prefetch",
        "p.config.queue_typ",
        "p.config.tls.ca",
        "p.config.version",
    ];
    assert_eq!(wrong(flat), expected);
    let nested = json!({
        "version": 2, "durable": true, "queue": {"name": "q", "typ": 1}, "exchange": {"kind": "x"},
    });
    let expected = ["p.config.durable", "p.config.exchange.kind", "p.config.queue.typ"];
    assert_eq!(wrong(nested), expected);
    let nested = json!({
        "version": "2", "heartbeat": "100ms", "exchange": {"name": "x".repeat(256)},
        "queue": {
            "name": "q", "type": "quorum", "durable": false, "auto_delete": true,
            "exclusive": true, "delivery_limit": 5, "headers": {"x-queue-type": "classic"},
            "consumer_timeout": 60,
        },
    });
    let expected = [
        "p.config.exchange.name",
        "p.config.heartbeat",
        "p.config.queue.auto_delete",
        "p.config.queue.consumer_timeout",
        "p.config.queue.delivery_limit",
        "p.config.queue.durable",
        "p.config.queue.exclusive",
        "p.config.queue.headers.x-queue-type",
    ];
    assert_eq!(wrong(nested), expected);
}

#[test]
fn the_shared_section_counts_unless_the_pipeline_says_otherwise() {
    let shared = json!({"addr": "amqp://a", "heartbeat": "7s", "tls": {"cert": "c"}});
    let problems = read_over(shared, json!({"queue": "q"})).expect_err("no key, no amqps");
    assert!(problems.iter().any(|p| p.starts_with("`amqp.tls`")), "{problems:?}");
    assert!(problems.iter().any(|p| p.starts_with("`amqp.addr`")), "{problems:?}");
    let shared = json!({"addr": "amqp://a", "heartbeat": "7s"});
    let config = read_over(shared, json!({"queue": "q", "addr": "amqp://b"})).expect("valid");
    assert_eq!(config.connection.uri.authority.host, "b");
    assert_eq!(config.connection.heartbeat, Duration::from_secs(7));
}

#[test]
fn a_password_is_shown_nowhere() {
    let addr = "amqp://me:hunter2@host";
    let shown = format!("{:?}", valid(json!({"queue": "q", "addr": addr})));
    assert!(shown.contains("\"me\"") && !shown.contains("hunter2"), "{shown}");
    let wrong_ones = [
        json!({"queue": "q", "addr": "amqp://me:hunter2"}),
        json!({"queue": "q", "addr": "amqp://me:hunter2@host/?hunter2=1"}),
        json!({"queue": "q", "addr": "amqp://me:1?hunter2@host"}),
        json!({"queue": "q", "addr": addr, "tls": {"root_ca": "ca.pem"}}),
        json!({"queue": "q", "addr": ["hunter2"]}),
    ];
    for options in wrong_ones {
        let problems = read(options.clone()).expect_err(&options.to_string());
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(!problems[0].contains("hunter2"), "{problems:?}");
        assert!(problems[0].contains("expected"), "{problems:?}");
    }
}

#[test]
fn an_address_may_set_heartbeat_and_timeout() {
    let of = |options: Value| {
        let connection = valid(options).connection;
        (connection.heartbeat.as_secs(), connection.connect_timeout.as_secs())
    };
    let addr = "amqp://host/?heartbeat=3&connection_timeout=4000";
    assert_eq!(of(json!({"queue": "q", "addr": addr})), (3, 4));
    let options = json!({"queue": "q", "addr": addr, "heartbeat": "5s", "connect_timeout": "6s"});
    assert_eq!(of(options), (5, 6));
    for heartbeat in ["0s", "1500ms", "65536s", "10"] {
        let paths = wrong(json!({"queue": "q", "heartbeat": heartbeat}));
        assert_eq!(paths, ["p.config.heartbeat"], "{heartbeat}");
    }
    assert_eq!(
        wrong(json!({"queue": "q", "addr": "amqp://h?heartbeat=0"})),
        ["p.config.heartbeat"]
    );
}

#[test]
fn a_pipeline_needs_somewhere_to_push_to() {
    let routed = |options| valid(options).routing_key;
    assert_eq!(routed(json!({"queue": "q", "exchange": "x"})), "q");
    assert_eq!(routed(json!({"queue": "", "routing_key": "elsewhere"})), "elsewhere");
    assert_eq!(routed(json!({"queue": "q", "routing_key": "q"})), "q");
    assert_eq!(routed(json!({"exchange": "x", "exchange_type": "fanout"})), "");
    assert_eq!(routed(json!({"exchange": "x", "exchange_type": "headers"})), "");
    assert_eq!(wrong(json!({})), ["p.config.queue"]);
    assert_eq!(wrong(json!({"exchange": "x"})), ["p.config.routing_key"]);
    assert_eq!(wrong(json!({"exchange": "x", "exchange_type": "topic"})), ["p.config.routing_key"]);
    assert_eq!(wrong(json!({"queue": "q", "routing_key": "k"})), ["p.config.routing_key"]);
    assert_eq!(wrong(json!({"queue": "q", "exchange_type": "topic"})), ["p.config.exchange_type"]);
    assert_eq!(wrong(json!({"version": 2})), ["p.config.queue.name"]);
}

#[test]
fn quorum_queues_take_what_they_can_do() {
    let config = valid(json!({"queue": "q", "queue_type": "quorum"}));
    let none = AMQPValue::LongInt(-1);
    assert_eq!(arguments(&config)["x-delivery-limit"], &none, "else the broker has a limit of 20");
    let with = |option: &str, value: Value| {
        wrong(json!({"queue": "q", "queue_type": "quorum", option: value}))
    };
    for (option, value) in [
        ("exclusive", json!(true)),
        ("queue_auto_delete", json!(true)),
        ("durable", json!(false)),
        ("delete_queue_on_stop", json!(true)),
        ("max_priority", json!(5)),
        ("delivery_limit", json!(0)),
        ("delivery_limit", json!(-2)),
    ] {
        assert_eq!(with(option, value), [format!("p.config.{option}")]);
    }
    assert_eq!(wrong(json!({"queue": "q", "delivery_limit": 5})), ["p.config.delivery_limit"]);
    assert!(
        !arguments(&valid(json!({"queue": "q", "delivery_limit": -1})))
            .contains_key("x-delivery-limit")
    );
}

#[test]
fn queue_headers_set_what_has_an_option_of_its_own() {
    let config = valid(json!({
        "queue": "q", "delivery_limit": 5, "dead_letter_exchange": "dead",
        "queue_headers": {
            "x-queue-type": "quorum", "x-delivery-limit": 5, "x-consumer-timeout": 60000,
            "x-dead-letter-exchange": "dead",
        },
    }));
    let queue = config.queue.as_ref().expect("a queue");
    assert_eq!(queue.kind, QueueType::Quorum);
    assert_eq!(queue.dead_letter.as_ref().map(|dead| dead.exchange.as_str()), Some("dead"));
    assert_eq!(config.consumer_timeout, Some(Duration::from_secs(60)));
    assert_eq!(arguments(&config).len(), 4);
    let config = valid(json!({"queue": "q", "queue_headers": {"x-max-priority": 3}}));
    assert_eq!(config.max_priority, NonZeroU8::new(3));
    let paths = wrong(json!({
        "queue": "q", "max_priority": 4, "dead_letter_exchange": "a", "queue_type": "classic",
        "queue_headers": {
            "x-max-priority": 3, "x-dead-letter-exchange": "b", "x-queue-type": "quorum",
        },
    }));
    let expected = ["x-dead-letter-exchange", "x-max-priority", "x-queue-type"];
    assert_eq!(paths, expected.map(|name| format!("p.config.queue_headers.{name}")));
}

#[test]
fn rejected_jobs_must_not_come_back() {
    let dead = ["p.config.dead_letter_exchange"];
    assert_eq!(wrong(json!({"queue": "q", "dead_letter_exchange": ""})), dead);
    let key = json!({"queue": "q", "dead_letter_exchange": "", "dead_letter_routing_key": "q"});
    assert_eq!(wrong(key), dead);
    let same = json!({"queue": "q", "exchange": "x", "dead_letter_exchange": "x"});
    assert_eq!(wrong(same), dead);
    let fanout = json!({
        "queue": "q", "exchange": "x", "exchange_type": "fanout", "dead_letter_exchange": "x",
        "dead_letter_routing_key": "other",
    });
    assert_eq!(wrong(fanout), dead);
    let lonely = json!({"queue": "q", "dead_letter_routing_key": "d"});
    assert_eq!(wrong(lonely), ["p.config.dead_letter_routing_key"]);
    valid(json!({"queue": "q", "dead_letter_exchange": "", "dead_letter_routing_key": "d"}));
    valid(json!({"queue": "q", "exchange": "x", "dead_letter_exchange": "d"}));
}

#[test]
fn tls_needs_an_address_that_says_so_and_a_key_for_its_certificate() {
    let tls = |addr: &str, tls: Value| json!({"queue": "q", "addr": addr, "tls": tls});
    let config = valid(tls("amqps://h", json!({"root_ca": "ca.pem", "key": "", "cert": ""})));
    let expected = TlsConfig { root_ca: Some("ca.pem".into()), identity: None };
    assert_eq!(config.connection.tls, Some(expected));
    assert_eq!(valid(tls("amqp://h", json!({}))).connection.tls, None);
    assert_eq!(wrong(tls("amqps://h", json!({"key": "k"}))), ["p.config.tls"]);
    assert_eq!(wrong(tls("amqp://h", json!({"root_ca": "ca"}))), ["p.config.addr"]);
    let odd = json!({"root_ca": "ca", "client_auth_type": "odd"});
    assert_eq!(wrong(tls("amqps://h", odd)), ["p.config.tls.client_auth_type"]);
}

#[test]
fn capabilities_are_what_the_configuration_can_do() {
    let of = |options| valid(options).capabilities();
    let plain = of(json!({"queue": "q"}));
    assert_eq!((plain.delay, plain.requeue), (Support::Emulated, Support::Emulated));
    assert_eq!((plain.priority, plain.reject), (Support::None, Support::None));
    assert_eq!((plain.durable, plain.uncounted_release), (true, true));
    assert_eq!((plain.max_payload, plain.max_delay), (Some(16 << 20), Some(A_YEAR)));
    let quorum = of(json!({"queue": "q", "queue_type": "quorum"}));
    assert_eq!((quorum.durable, quorum.uncounted_release), (true, false));
    let more = of(json!({
        "queue": "q", "max_priority": 10, "queue_headers": {"x-dead-letter-exchange": "dead"},
    }));
    assert_eq!((more.priority, more.reject), (Support::Native, Support::Native));
    assert!(!of(json!({"queue": "q", "durable": false})).durable);
    for option in ["exclusive", "queue_auto_delete"] {
        let passing = of(json!({"queue": "q", option: true}));
        assert_eq!((passing.delay, passing.durable), (Support::None, false), "{option}");
    }
    let push_only = of(json!({"routing_key": "elsewhere"}));
    assert_eq!((push_only.delay, push_only.requeue), (Support::Emulated, Support::None));
    assert!(valid(json!({"queue": "q", "exclusive": true})).pausable());
    assert!(!valid(json!({"queue": "q", "queue_auto_delete": true})).pausable());
}

#[test]
fn equal_options_share_a_connection() {
    let of = |options| valid(options).connection;
    let first = of(json!({"queue": "a", "addr": "amqp://h/"}));
    assert_eq!(first, of(json!({"queue": "b", "addr": "amqp://h:5672/%2f", "heartbeat": "10s"})));
    for other in [
        json!({"queue": "a", "addr": "amqp://me:x@h/"}),
        json!({"queue": "a", "addr": "amqp://h/", "heartbeat": "11s"}),
        json!({"queue": "a", "addr": "amqps://h:5672/"}),
    ] {
        assert!(first != of(other));
    }
}

fn any_option() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        (-2..300_i64).prop_map(|value| json!(value)),
        any::<f64>().prop_map(|value| json!(value)),
        ".{0,12}".prop_map(|value| json!(value)),
        "[0-9]{1,3}(s|ms)?".prop_map(|value| json!(value)),
        "amqps?://[a-z:@/?&=0-9]{0,20}".prop_map(|value| json!(value)),
        prop::sample::select(vec!["quorum", "classic", "topic", "fanout", "q", "x"])
            .prop_map(|value| json!(value)),
    ];
    let names = ["name", "type", "durable", "x-queue-type", "x-max-priority", "key", "root_ca"];
    let name = prop_oneof![prop::sample::select(names.to_vec()).prop_map(str::to_owned), ".{0,9}"];
    leaf.prop_recursive(3, 16, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|list| json!(list)),
            prop::collection::btree_map(name.clone(), inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn any_options_end_in_a_config_or_in_problems(
        values in prop::collection::vec(prop::option::weighted(0.3, any_option()), 32),
    ) {
        let names = [
            "version", "addr", "tls", "prefetch", "push_timeout", "connect_timeout", "heartbeat",
            "max_payload", "redial_timeout", "consume_all", "queue", "exchange", "exchange_type",
            "routing_key", "durable", "exclusive", "queue_auto_delete", "queue_declare",
            "delete_queue_on_stop", "queue_headers", "queue_type", "delivery_limit",
            "dead_letter_exchange", "dead_letter_routing_key", "max_priority", "consumer_timeout",
            "consumer_id", "multiple_ack", "requeue_on_fail", "exchange_durable",
            "exchange_auto_delete", "exchange_declare",
        ];
        let written = names.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?)));
        let pipeline = Pipeline::new("p", "amqp");
        let pipeline = written.fold(pipeline, |p, (name, value)| p.with_option(name, value));
        match AmqpConfig::read(&Options::default(), &pipeline) {
            Ok(config) => drop(config.capabilities()),
            Err(problems) => prop_assert!(!problems.is_empty()),
        }
    }
}
