use std::collections::BTreeSet;

use proptest::prelude::*;
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::BaseConsumer;
use rdkafka::producer::BaseProducer;
use serde_json::{Value, json};

use super::*;

fn read_over(shared: Value, options: Value) -> Result<KafkaConfig, Vec<String>> {
    let shared = Options::from_value("kafka", shared).expect("a map");
    let options = Options::from_value("p.config", options).expect("a map");
    let pipeline = Pipeline::with_options("mail", "kafka", options).expect("common options");
    KafkaConfig::read(&shared, &pipeline)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

/// Options beside a broker's address.
fn read(options: Value) -> Result<KafkaConfig, Vec<String>> {
    read_over(json!({"brokers": ["mq:9092"]}), options)
}

fn valid(options: Value) -> KafkaConfig {
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

fn assert_settings(client: &ClientConfig, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(client.get(name), Some(*value), "{name}");
    }
}

/// The client takes the names, and the values together.
fn assert_accepted(config: &KafkaConfig) {
    let _: BaseProducer = config.producer().create().expect("a producer");
    let _: BaseConsumer = config.consumer().create().expect("a consumer");
    let _: AdminClient<DefaultClientContext> = config.client().create().expect("an operator");
}

#[test]
fn defaults_are_those_documented() {
    let config = valid(json!({"topics": ["orders"]}));
    assert_eq!(
        (&config.brokers[..], &config.topics[..]),
        (&["mq:9092".to_owned()][..], &["orders".to_owned()][..])
    );
    assert_eq!((config.topic.as_deref(), config.group.as_str()), (Some("orders"), "mail"));
    assert_eq!(
        (&config.instance, config.start, config.prefetch.get()),
        (&None, Start::Earliest, 100)
    );
    assert!(config.partitions.is_empty() && config.create.is_none() && config.consumes());
    assert_eq!((config.ordering, &config.dead_letter_topic), (Ordering::Unordered, &None));
    let milliseconds = [config.commit_interval, config.push_timeout, config.connect_timeout];
    assert_eq!(milliseconds.map(|time| time.as_millis()), [500, 30_000, 10_000]);
    assert_eq!(config.session_timeout, Duration::from_secs(45));
    assert_settings(
        &config.client(),
        &[
            ("bootstrap.servers", "mq:9092"),
            ("client.id", "mail"),
            ("security.protocol", "PLAINTEXT"),
            ("socket.timeout.ms", "15000"),
            ("socket.connection.setup.timeout.ms", "10000"),
            ("reconnect.backoff.ms", "100"),
            ("reconnect.backoff.max.ms", "1000"),
            ("topic.metadata.propagation.max.ms", "5000"),
            ("allow.auto.create.topics", "false"),
        ],
    );
    assert_settings(
        &config.producer(),
        &[
            ("bootstrap.servers", "mq:9092"),
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("linger.ms", "0"),
            ("compression.codec", "none"),
            ("partitioner", "murmur2_random"),
            ("request.timeout.ms", "10000"),
            ("message.timeout.ms", "30000"),
            ("message.max.bytes", "1000012"),
        ],
    );
    assert_settings(
        &config.consumer(),
        &[
            ("group.id", "mail"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "earliest"),
            ("enable.partition.eof", "false"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("session.timeout.ms", "45000"),
            ("heartbeat.interval.ms", "3000"),
            ("max.poll.interval.ms", "300000"),
            ("queued.min.messages", "10000"),
            ("queued.max.messages.kbytes", "16384"),
            ("fetch.min.bytes", "1"),
            ("fetch.max.bytes", "16777216"),
            ("max.partition.fetch.bytes", "1048576"),
        ],
    );
    assert_eq!(config.consumer().get("group.instance.id"), None);
    assert_eq!(config.consumer().get("topic.blacklist"), None);
    assert_accepted(&config);
}

fn everything() -> Value {
    json!({
        "brokers": ["a:1", "b", "[::1]:3"], "connect_timeout": "3s", "push_timeout": "20s",
        "tls": {
            "enable": true, "timeout": "4s", "key": "key.pem", "cert": "cert.pem",
            "root_ca": "ca.pem", "client_auth_type": "no_client_cert",
        },
        "sasl": {
            "mechanism": "SCRAM-SHA-512", "username": "me", "password": "hunter2", "zid": "",
            "nonce": [], "is_token": false, "access_key": "", "secret_key": "",
            "session_token": "", "user_agent": "",
        },
        "ping": {"timeout": "5s"}, "commit_interval": "2s", "auto_create_topics_enable": true,
        "topic_partitions": 6, "topic_replication_factor": 3, "topic": "out",
        "dead_letter_topic": "dead", "ordering": "key", "prefetch": 20_000,
        "producer_options": {
            "disable_idempotent": false, "required_acks": "AllISRAck",
            "max_message_bytes": 2_000_000, "request_timeout": "6s", "delivery_timeout": "7s",
            "transaction_timeout": "40s", "linger": "8ms", "compression_codec": "zstd",
            "partitioning_strategy": "Manual",
        },
        "consumer_options": {
            "topics": ["in", "^more-.*"], "consume_regexp": false, "consume_partitions": {},
            "consumer_offset": {"type": "AtEnd", "value": 0},
            "max_fetch_message_size": 500_000, "min_fetch_message_size": 2,
        },
        "group_options": {
            "group_id": "g", "instance_id": "i", "block_rebalance_on_poll": true,
            "session_timeout": "9s", "heartbeat_interval": "1s", "max_poll_interval": "10s",
        },
    })
}

#[test]
fn every_option_is_read() {
    let config = valid(everything());
    assert_eq!(config.topics, ["in", "^more-.*"]);
    assert_eq!((config.topic.as_deref(), config.group.as_str()), (Some("out"), "g"));
    assert_eq!((config.instance.as_deref(), config.start), (Some("i"), Start::AtEnd));
    assert_eq!((config.ordering, config.prefetch.get()), (Ordering::Key, 20_000));
    assert_eq!(config.create, Some(Create { partitions: 6, replication_factor: 3 }));
    assert_eq!(config.dead_letter_topic.as_deref(), Some("dead"));
    let seconds = [config.commit_interval, config.push_timeout, config.connect_timeout];
    assert_eq!(seconds.map(|time| time.as_secs()), [2, 20, 3]);
    assert_eq!(config.session_timeout, Duration::from_secs(9));
    assert_settings(
        &config.client(),
        &[
            ("bootstrap.servers", "a:1,b,[::1]:3"),
            ("security.protocol", "SASL_SSL"),
            ("socket.timeout.ms", "11000"),
            ("socket.connection.setup.timeout.ms", "4000"),
            ("ssl.ca.location", "ca.pem"),
            ("ssl.certificate.location", "cert.pem"),
            ("ssl.key.location", "key.pem"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "me"),
            ("sasl.password", "hunter2"),
        ],
    );
    assert_settings(
        &config.producer(),
        &[
            ("linger.ms", "8"),
            ("compression.codec", "zstd"),
            ("request.timeout.ms", "6000"),
            ("message.timeout.ms", "7000"),
            ("message.max.bytes", "2000000"),
        ],
    );
    assert_settings(
        &config.consumer(),
        &[
            ("group.id", "g"),
            ("group.instance.id", "i"),
            ("session.timeout.ms", "9000"),
            ("heartbeat.interval.ms", "1000"),
            ("max.poll.interval.ms", "10000"),
            ("queued.min.messages", "20000"),
            ("fetch.min.bytes", "2"),
            ("fetch.max.bytes", "500000"),
            ("max.partition.fetch.bytes", "500000"),
            ("topic.blacklist", "^jobs-delay[.],dead"),
        ],
    );
}

#[test]
fn text_reads_as_typed_values_do() {
    let typed = valid(everything());
    let text: serde_json::Map<String, Value> = everything()
        .as_object()
        .expect("a map")
        .iter()
        .map(|(name, value)| {
            let name = if name == "sasl" { "sasl_options" } else { name };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (name.to_owned(), json!(text))
        })
        .collect();
    let declared = valid(text.into());
    assert_eq!(format!("{typed:?}"), format!("{declared:?}"));
    assert_eq!(declared.client().get("sasl.password"), Some("hunter2"));
}

/// Names in the first column of the page's tables of options.
fn documented() -> BTreeSet<String> {
    let page = include_str!("../docs.md");
    let (_, tables) = page.split_once("# Options").expect("a section");
    let (tables, _) = tables.split_once("\n# ").expect("a next section");
    let rows = tables.lines().filter_map(|line| line.strip_prefix("| `"));
    let names = rows.flat_map(|row| row.split(" |").next().expect("a column").split(", "));
    names.map(|name| name.trim_matches('`').to_owned()).collect()
}

/// Names of the options in `value`, with those of the maps around them.
fn names(value: &Value) -> BTreeSet<String> {
    let maps = ["tls", "sasl", "ping", "producer_options", "consumer_options", "group_options"];
    let options = value.as_object().expect("a map").iter();
    options
        .flat_map(|(name, value)| match value {
            Value::Object(map) if maps.contains(&name.as_str()) => {
                map.keys().map(|inner| format!("{name}.{inner}")).collect()
            }
            _ => vec![name.clone()],
        })
        .collect()
}

#[test]
fn the_page_lists_the_options_that_are_read() {
    let mut known = names(&everything());
    known.extend(["topics".to_owned(), "sasl_options".to_owned()]);
    assert_eq!(documented(), known);
    // No list of all of them is complete, but for the one in a problem's text.
    let unknown = |options: Value| -> BTreeSet<String> {
        let problem = read(options).expect_err("unknown").join(" ");
        let (_, names) = problem.split_once("expected one of ").expect("a list");
        names.split(", ").map(|name| name.trim_matches('`').to_owned()).collect()
    };
    let mut expected = BTreeSet::new();
    for map in ["tls", "ping", "producer_options", "consumer_options", "group_options"] {
        let names = unknown(json!({map: {"?": 1}}));
        expected.extend(names.iter().map(|name| format!("{map}.{name}")));
    }
    let names = unknown(json!({"sasl": {"mechanism": "plain", "?": 1}}));
    expected.extend(names.iter().map(|name| format!("sasl.{name}")));
    let of_maps = |name: &String| known.iter().any(|of| of.starts_with(&format!("{name}.")));
    // Those of every pipeline are not on a driver's page.
    let of_all = |name: &String| ["priority", "max_running"].contains(&name.as_str());
    let own = unknown(json!({"?": 1})).into_iter().filter(|name| !of_maps(name) && !of_all(name));
    expected.extend(own);
    assert_eq!(documented(), expected);
}

#[test]
fn all_problems_are_reported_with_the_path_the_user_wrote() {
    let problems = wrong(json!({
        "brokers": "a:1", "prefetch": 0, "prefech": 1, "ordering": "strict", "push_timeout": "soon",
        "tls": {"ca": "x"}, "sasl": {"mechanism": "digest-md5"},
        "producer_options": {"compression_codec": "brotli"},
        "consumer_options": {"topics": ["a"], "consumer_offset": {"type": "Middle"}},
        "group_options": {"id": "x"},
    }));
    let expected = [
        "p.config.consumer_options.consumer_offset.type",
        "p.config.group_options.id",
        "p.config.ordering",
        "p.config.prefech",
        "p.config.prefetch",
        "p.config.producer_options.compression_codec",
        "p.config.push_timeout",
        "p.config.sasl.mechanism",
        "p.config.tls.ca",
    ];
    assert_eq!(problems, expected);
    let problems = wrong(json!({
        "topics": ["a b"], "dead_letter_topic": "..", "commit_interval": 5, "topic_partitions": 3,
        "tls": {"key": "k", "timeout": "10ms"}, "sasl": {"mechanism": "plain"},
        "producer_options": {
            "required_acks": "NoAck", "disable_idempotent": true, "max_message_bytes": 10,
        },
        "group_options": {"session_timeout": "500ms"},
    }));
    let expected = [
        "p.config.commit_interval",
        "p.config.dead_letter_topic",
        "p.config.group_options.session_timeout",
        "p.config.producer_options.disable_idempotent",
        "p.config.producer_options.max_message_bytes",
        "p.config.producer_options.required_acks",
        "p.config.sasl.password",
        "p.config.sasl.username",
        "p.config.tls",
        "p.config.tls.timeout",
        "p.config.topic_partitions",
        "p.config.topics",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn the_shared_section_counts_unless_the_pipeline_says_otherwise() {
    let shared = json!({"brokers": ["a"], "ping": {"timeout": "7s"}, "tls": {"cert": "c"}});
    let problems = read_over(shared, json!({})).expect_err("no key");
    assert!(problems.iter().any(|problem| problem.starts_with("`kafka.tls`")), "{problems:?}");
    let shared = json!({"brokers": ["a"], "ping": {"timeout": "7s"}});
    let config = read_over(shared, json!({"brokers": "b,c"})).expect("valid");
    assert_eq!(
        (config.brokers, config.connect_timeout.as_secs()),
        (vec!["b".to_owned(), "c".to_owned()], 7)
    );
}

#[test]
fn a_secret_is_shown_nowhere() {
    let config = valid(everything());
    assert!(!format!("{config:?} {:?}", config.client()).contains("hunter2"), "{config:?}");
    let sasl = |sasl: Value| json!({"sasl": sasl});
    for options in [
        sasl(json!({"mechanism": "hunter2"})),
        sasl(json!({"mechanism": ["hunter2"]})),
        sasl(json!({"mechanism": "plain", "username": "me", "password": ["hunter2"]})),
        sasl(json!({"mechanism": "plain", "username": "me", "password": "hunter2", "zid": "u"})),
        sasl(json!({"mechanism": "aws_msk_iam", "secret_key": "hunter2"})),
        sasl(json!("hunter2")),
    ] {
        let problems = read(options.clone()).expect_err(&options.to_string());
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(!problems[0].contains("hunter2"), "{problems:?}");
        assert!(problems[0].contains("expected"), "{problems:?}");
    }
}

#[test]
fn brokers_are_addresses() {
    for (brokers, good) in [
        (json!(["a", "b:1", "[::1]", "[::1]:9092"]), true),
        (json!([]), false),
        (json!(["a:b"]), false),
        (json!(["a:99999"]), false),
        (json!([":9092"]), false),
        (json!(["SSL://a:9092"]), false),
        (json!(["a b"]), false),
    ] {
        let read = read(json!({"brokers": brokers}));
        assert_eq!(read.is_ok(), good, "{brokers}");
    }
    let problems = read_over(json!({}), json!({"topics": ["a"]})).expect_err("no brokers");
    assert_eq!(problems, ["`p.config.brokers`: is required and missing"]);
}

#[test]
fn what_is_pushed_to_follows_from_what_is_consumed() {
    let topic = |options| valid(options).topic;
    let orders = Some("orders".to_owned());
    assert_eq!(topic(json!({"topics": "orders"})), orders);
    assert_eq!(topic(json!({"consumer_options": {"topics": ["orders"]}})), orders);
    assert_eq!(topic(json!({"topics": "a", "topic": "orders"})), orders);
    assert_eq!(topic(json!({"topics": ["a", "orders"]})), None);
    assert_eq!(topic(json!({"topics": ["^orders"]})), None);
    let fixed = json!({"orders": {"0": {"type": "AtStart"}}});
    assert_eq!(topic(json!({"consumer_options": {"consume_partitions": fixed}})), orders);
    // As with RoadRunner, each message may name a topic.
    let push_only = valid(json!({}));
    assert_eq!((push_only.topic.as_deref(), push_only.consumes()), (None, false));
    assert_accepted(&push_only);
}

#[test]
fn patterns_match_anywhere_as_those_of_roadrunner() {
    let topics = |regexp: bool| {
        let options = json!({"topics": ["a.*b", "^c"], "consume_regexp": regexp});
        read(json!({"consumer_options": options})).map(|config| config.topics)
    };
    assert_eq!(topics(true).expect("patterns"), ["^.*(a.*b)", "^c"]);
    assert!(topics(false).is_err(), "`*` is in no topic's name");
    let config = valid(json!({"topics": ["^orders-[a-z]+$"], "dead_letter_topic": "dead"}));
    assert_settings(&config.consumer(), &[("topic.blacklist", "^jobs-delay[.],dead")]);
    assert_accepted(&config);
    let lonely = json!({"consumer_options": {"consume_regexp": true}});
    assert_eq!(wrong(lonely), ["p.config.consumer_options.consume_regexp"]);
    let twice = json!({"topics": ["a"], "consumer_options": {"topics": ["a"]}});
    assert_eq!(wrong(twice), ["p.config.topics"]);
}

#[test]
fn partitions_may_be_fixed() {
    let read = |partitions: Value| json!({"consumer_options": {"consume_partitions": {"Orders": partitions}}});
    let config = valid(read(json!({
        "0": {"type": "AtStart"}, "1": {"type": "AtEnd"}, "2": {"type": "At", "value": 7},
    })));
    let fixed = BTreeMap::from([(0, Start::Earliest), (1, Start::AtEnd), (2, Start::Offset(7))]);
    assert_eq!(config.partitions, BTreeMap::from([("Orders".to_owned(), fixed)]));
    assert!(config.consumes() && config.topics.is_empty());
    assert_accepted(&config);
    let place = "p.config.consumer_options.consume_partitions.Orders";
    for (partitions, problem) in [
        (json!({"first": {"type": "AtStart"}}), format!("{place}.first")),
        (json!({"-1": {"type": "AtStart"}}), format!("{place}.-1")),
        (json!({"0": {"type": "Relative", "value": 1}}), format!("{place}.0.type")),
        (json!({"0": {"type": "AfterMilli", "value": 1}}), format!("{place}.0.type")),
        (json!({"0": {"type": "WithEpoch", "value": 1}}), format!("{place}.0.type")),
        (json!({"0": {"type": "At", "value": -1}}), format!("{place}.0.value")),
        (json!({}), place.to_owned()),
    ] {
        assert_eq!(wrong(read(partitions.clone())), [problem], "{partitions}");
    }
}

#[test]
fn shared_and_fixed_partitions_exclude_each_other() {
    let fixed = json!({"a": {"0": {"type": "AtStart"}}});
    let problems = wrong(json!({
        "topics": ["b"], "group_options": {"instance_id": "i"},
        "consumer_options": {
            "consume_partitions": fixed, "consumer_offset": {"type": "AtStart"},
        },
    }));
    let expected = [
        "p.config.consumer_options.consume_partitions",
        "p.config.consumer_options.consumer_offset",
        "p.config.group_options.instance_id",
    ];
    assert_eq!(problems, expected);
    for kind in ["At", "AfterMilli", "Relative", "WithEpoch"] {
        let offset = json!({"consumer_offset": {"type": kind, "value": 1}});
        let problems = wrong(json!({"topics": ["b"], "consumer_options": offset}));
        assert_eq!(problems, ["p.config.consumer_options.consumer_offset.type"], "{kind}");
    }
}

#[test]
fn rejected_jobs_must_not_come_back() {
    let dead = ["p.config.dead_letter_topic"];
    assert_eq!(wrong(json!({"topics": ["a"], "dead_letter_topic": "a"})), dead);
    assert_eq!(wrong(json!({"topic": "a", "dead_letter_topic": "a"})), dead);
    let fixed = json!({"consume_partitions": {"a": {"0": {"type": "AtEnd"}}}});
    assert_eq!(wrong(json!({"consumer_options": fixed, "dead_letter_topic": "a"})), dead);
}

#[test]
fn tls_is_on_where_it_is_said_or_files_are_given() {
    let protocol = |tls: Value| {
        let config = valid(json!({"tls": tls}));
        config.client().get("security.protocol").map(str::to_owned)
    };
    let ssl = Some("SSL".to_owned());
    assert_eq!(protocol(json!({"enable": true})), ssl);
    assert_eq!(protocol(json!({"root_ca": "ca.pem", "key": "", "cert": ""})), ssl);
    assert_eq!(protocol(json!({"key": "k", "cert": "c"})), ssl);
    assert_eq!(protocol(json!({})), Some("PLAINTEXT".to_owned()));
    assert_eq!(protocol(json!({"timeout": "5s"})), Some("PLAINTEXT".to_owned()));
    let off = json!({"tls": {"enable": false, "root_ca": "ca.pem"}});
    assert_eq!(wrong(off), ["p.config.tls.enable"]);
    assert_eq!(wrong(json!({"tls": {"cert": "c", "enable": true}})), ["p.config.tls"]);
    assert_accepted(&valid(json!({"tls": {"enable": true}})));
}

#[test]
fn mechanisms_are_there_or_refused() {
    let sasl = |mechanism: &str| json!({"sasl": {"mechanism": mechanism, "username": "me", "password": "x"}});
    for (written, found) in [
        ("plain", "PLAIN"),
        ("PLAIN", "PLAIN"),
        ("SCRAM-SHA-256", "SCRAM-SHA-256"),
        ("scram-sha-512", "SCRAM-SHA-512"),
    ] {
        let config = valid(sasl(written));
        let expected = [("sasl.mechanism", found), ("security.protocol", "SASL_PLAINTEXT")];
        assert_settings(&config.client(), &expected);
        assert_accepted(&config);
    }
    for refused in ["aws_msk_iam", "GSSAPI", "OAUTHBEARER", "digest"] {
        assert_eq!(wrong(sasl(refused)), ["p.config.sasl.mechanism"], "{refused}");
    }
    for (option, value) in [
        ("zid", json!("u")),
        ("nonce", json!("abc")),
        ("nonce", json!([1])),
        ("is_token", json!(true)),
        ("access_key", json!("a")),
        ("secret_key", json!("a")),
        ("session_token", json!("a")),
        ("user_agent", json!("a")),
    ] {
        let mut options = sasl("plain");
        options["sasl"][option] = value;
        assert_eq!(wrong(options), [format!("p.config.sasl.{option}")]);
    }
    let mut twice = sasl("plain");
    twice["sasl_options"] = twice["sasl"].clone();
    assert_eq!(wrong(twice), ["p.config.sasl_options"]);
}

#[test]
fn a_push_is_confirmed_by_all_and_in_time() {
    let producer = |options: Value| json!({"producer_options": options});
    for acks in ["NoAck", "LeaderAck"] {
        let problems = wrong(producer(json!({"required_acks": acks})));
        assert_eq!(problems, ["p.config.producer_options.required_acks"]);
    }
    let timeouts = |options: Value| {
        let config = valid(options);
        let delivery = config.producer().get("message.timeout.ms").map(str::to_owned);
        (config.push_timeout.as_millis(), delivery.expect("set"))
    };
    assert_eq!(timeouts(json!({"push_timeout": "5s"})), (5_000, "5000".into()));
    let delivery = producer(json!({"delivery_timeout": "4s"}));
    assert_eq!(timeouts(delivery), (4_000, "4000".into()));
    let both = json!({"push_timeout": "5s", "producer_options": {"delivery_timeout": "4s"}});
    assert_eq!(timeouts(both), (5_000, "4000".into()));
    assert_eq!(timeouts(json!({"push_timeout": "1500us"})), (1, "2".into()), "rounded up");
    let late = json!({"push_timeout": "5s", "producer_options": {"delivery_timeout": "6s"}});
    assert_eq!(wrong(late), ["p.config.producer_options.delivery_timeout"]);
    let slow = json!({"push_timeout": "5ms", "producer_options": {"linger": "5ms"}});
    assert_eq!(wrong(slow), ["p.config.producer_options.linger"]);
    assert_accepted(&valid(json!({"push_timeout": "1ms"})));
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        assert_accepted(&valid(producer(json!({"compression_codec": codec}))));
    }
}

#[test]
fn equal_keys_need_one_partition() {
    let of = |strategy: &str, ordering: &str| {
        let producer = json!({"partitioning_strategy": strategy});
        let options = json!({"topics": "a", "producer_options": producer, "ordering": ordering});
        read(options).map(|config| config.producer().get("partitioner").map(str::to_owned))
    };
    for strategy in ["Manual", "Uniform", "Sticky"] {
        assert_eq!(of(strategy, "key"), Ok(Some("murmur2_random".into())));
    }
    for strategy in ["RoundRobin", "LeastBackup"] {
        assert_eq!(of(strategy, "unordered"), Ok(Some("random".into())));
        assert!(of(strategy, "key").is_err() && of(strategy, "partition").is_err());
    }
}

#[test]
fn the_times_of_a_group_fit_together() {
    let group = |options: Value| json!({"topics": "a", "group_options": options});
    let short = valid(group(json!({"max_poll_interval": "6s"})));
    assert_settings(
        &short.consumer(),
        &[("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "2000")],
    );
    assert_accepted(&short);
    let long = valid(group(json!({"session_timeout": "10m"})));
    assert_settings(&long.consumer(), &[("max.poll.interval.ms", "600000")]);
    assert_accepted(&long);
    let contrary = group(json!({"session_timeout": "10s", "max_poll_interval": "9s"}));
    assert_eq!(wrong(contrary), ["p.config.group_options.max_poll_interval"]);
    let late = group(json!({"session_timeout": "5s", "heartbeat_interval": "5s"}));
    assert_eq!(wrong(late), ["p.config.group_options.heartbeat_interval"]);
}

#[test]
fn the_smallest_and_largest_sizes_are_taken() {
    for bytes in [1_000, 1_000_000_000] {
        let config = valid(json!({
            "prefetch": usize::MAX, "topics": "a",
            "producer_options": {"max_message_bytes": bytes},
            "consumer_options": {"max_fetch_message_size": bytes},
        }));
        assert_accepted(&config);
        let producer = config.producer();
        let room = producer.get("queue.buffering.max.kbytes").expect("set");
        let room: usize = room.parse().expect("a number");
        assert!(room >= (256 << 10) && room << 10 > bytes);
        let payload = config.capabilities().max_payload.expect("a limit");
        assert!(payload < bytes && payload >= bytes / 2);
    }
    let sizes = json!({"max_fetch_message_size": "2KiB", "min_fetch_message_size": "3KiB"});
    let paths = wrong(json!({"topics": "a", "consumer_options": sizes}));
    assert_eq!(paths, ["p.config.consumer_options.min_fetch_message_size"]);
}

#[test]
fn capabilities_are_what_the_configuration_can_do() {
    let of = |options| valid(options).capabilities();
    let plain = of(json!({"topics": "a"}));
    assert_eq!(
        (plain.delay, plain.priority, plain.reject),
        (Support::Emulated, Support::None, Support::None)
    );
    assert_eq!((plain.requeue, plain.batch), (Support::Emulated, Support::Native));
    assert_eq!((plain.ordering_key, plain.extend), (Support::None, Support::None));
    assert!(plain.durable && plain.uncounted_release && !plain.acks_confirmed);
    assert_eq!((plain.attempts, plain.lease), (Attempts::AtLeast, Lease::Timed));
    assert_eq!(
        (plain.max_payload, plain.max_delay),
        (Some(1_000_012 - (16 << 10)), Some(MAX_DELAY))
    );
    assert_eq!(of(json!({"topic": "a"})).delay, Support::Emulated);
    assert_eq!(of(json!({})).delay, Support::None, "there is no topic to name a delay's after");
    let of_consumer = |options: Value| of(json!({"consumer_options": options, "topic": "a"})).delay;
    assert_eq!(of_consumer(json!({"topics": ["b", "c"]})), Support::Emulated);
    assert_eq!(of_consumer(json!({"topics": ["^b"]})), Support::None, "it matches no delay topic");
    let fixed = json!({"consume_partitions": {"b": {"0": {"type": "AtStart"}}}});
    assert_eq!(of_consumer(fixed), Support::None, "nobody shares what is delayed");
    let dead = of(json!({"topics": "a", "dead_letter_topic": "dead"}));
    assert_eq!(dead.reject, Support::Emulated);
    for ordering in ["key", "partition"] {
        let ordered = of(json!({"topics": "a", "ordering": ordering}));
        assert_eq!(ordered.ordering_key, Support::Native);
    }
    assert_eq!(of(json!({"topic": "a"})).requeue, Support::None);
}

fn any_option() -> impl Strategy<Value = Value> {
    let words = ["plain", "key", "zstd", "AtEnd", "At", "NoAck", "a", "^a", "true", "[]", "{}"];
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|value| json!(value)),
        any::<i64>().prop_map(|value| json!(value)),
        (-2..300_i64).prop_map(|value| json!(value)),
        ".{0,12}".prop_map(|value| json!(value)),
        "[0-9]{1,3}(s|ms)?".prop_map(|value| json!(value)),
        prop::sample::select(words.to_vec()).prop_map(|value| json!(value)),
    ];
    let all = names(&everything());
    let inner = all.iter().filter_map(|name| name.split_once('.')).map(|(_, name)| name.to_owned());
    let inner: Vec<_> = inner.chain(["type", "value", "0", "a"].map(str::to_owned)).collect();
    leaf.prop_recursive(3, 16, 4, move |value| {
        let name = prop_oneof![4 => prop::sample::select(inner.clone()), 1 => ".{0,9}"];
        prop_oneof![
            prop::collection::vec(value.clone(), 0..4).prop_map(|list| json!(list)),
            prop::collection::btree_map(name, value, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn any_options_end_in_a_config_or_in_problems(
        values in prop::collection::vec(prop::option::weighted(0.2, any_option()), 19),
    ) {
        let names = [
            "tls", "sasl", "sasl_options", "ping", "connect_timeout", "push_timeout",
            "commit_interval", "auto_create_topics_enable", "topic_partitions",
            "topic_replication_factor", "topic", "topics", "dead_letter_topic", "ordering",
            "prefetch", "producer_options", "consumer_options", "group_options", "brokers",
        ];
        let written = names.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?)));
        let pipeline = Pipeline::new("p", "kafka").with_option("brokers", "a");
        let pipeline = written.fold(pipeline, |p, (name, value)| p.with_option(name, value));
        match KafkaConfig::read(&Options::default(), &pipeline) {
            Ok(config) => {
                prop_assert!(config.producer().create_native_config().is_ok());
                prop_assert!(config.consumer().create_native_config().is_ok());
                prop_assert!(config.capabilities().max_payload > Some(0));
            }
            Err(problems) => prop_assert!(!problems.is_empty()),
        }
    }
}
