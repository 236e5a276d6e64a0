use super::*;

fn read(options: &[(&str, &str)]) -> Result<SqsConfig, Vec<String>> {
    let options = Options::from_pairs("p.config", options.iter().copied());
    let pipeline = Pipeline::with_options("p", "sqs", options).expect("common options");
    SqsConfig::read(&Options::default(), &pipeline)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn problems(options: &[(&str, &str)]) -> Vec<String> {
    read(options).expect_err("wrong")
}

/// Every option of the table, with a value that is not its default; and whether it changes anything.
const EVERY: [(&str, &str, bool); 24] = [
    ("key", "AKIDEXAMPLE", true),
    ("secret", "s3cret", true),
    ("session_token", "t0ken", true),
    ("region", "eu-central-1", true),
    ("endpoint", "http://127.0.0.1:9324", true),
    ("profile", "work", true),
    ("queue", "mail", true),
    ("queue_url", "https://sqs.eu-central-1.amazonaws.com/123456789012/other", true),
    ("skip_queue_declaration", "true", true),
    ("attributes", r#"{"VisibilityTimeout": 60}"#, true),
    ("tags", r#"{"team": "mail"}"#, true),
    ("message_group_id", "all", true),
    ("dead_letter", "dead", true),
    ("prefetch", "64", true),
    ("max_messages_in_flight", "7", true),
    ("receivers", "4", true),
    ("visibility_timeout", "60", true),
    ("wait_time_seconds", "20", true),
    ("error_visibility_timeout", "5", false),
    ("retain_failed_jobs", "true", false),
    ("max_lease", "1h", true),
    ("operation_timeout", "3s", true),
    ("connect_timeout", "2s", true),
    ("push_timeout", "5s", true),
];

/// What an option needs or is not taken without.
fn company(option: &str) -> &'static [(&'static str, &'static str)] {
    match option {
        "key" => &[("secret", "other")],
        "secret" => &[("key", "other")],
        "session_token" => &[("key", "other"), ("secret", "other")],
        _ => &[],
    }
}

#[test]
fn defaults_are_those_documented() {
    let config = read(&[]).expect("valid");
    assert_eq!((config.queue.as_str(), config.queue_url, config.fifo), ("default", None, false));
    assert_eq!((config.region, config.endpoint, config.credentials), (None, None, None));
    assert_eq!((config.profile, config.message_group_id, config.declare), (None, None, true));
    let retention = ("MessageRetentionPeriod".to_owned(), "1209600".to_owned());
    assert_eq!(config.attributes, BTreeMap::from([retention]));
    assert!(config.tags.is_empty());
    assert_eq!((config.prefetch.get(), config.receivers.get()), (10, 2));
    let times = [config.visibility_timeout, config.wait_time, config.operation_timeout];
    assert_eq!(times.map(|time| time.as_secs()), [30, 5, 10]);
    assert_eq!((config.connect_timeout.as_secs(), config.push_timeout.as_secs()), (10, 30));
    assert_eq!((config.dead_letter, config.max_lease), (None, None));
}

#[test]
fn every_option_of_the_table_is_read() {
    for (option, value, matters) in EVERY {
        let mut options = company(option).to_vec();
        let before = if options.is_empty() {
            read(&[]).expect("valid")
        } else if option == "session_token" {
            read(&options).expect("valid")
        } else {
            read(&[("key", "other"), ("secret", "other")]).expect("valid")
        };
        options.push((option, value));
        let after = read(&options).unwrap_or_else(|problems| panic!("{option}: {problems:?}"));
        assert_eq!(after != before, matters, "{option}");
    }
}

#[test]
fn the_table_has_every_option_and_no_other() {
    let page = include_str!("../docs.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let of_every_pipeline = ["priority", "max_running"];
    let documented: Vec<_> = rows
        .skip_while(|(option, _)| *option != "key")
        .map(|(option, _)| option)
        .take_while(|option| *option != "priority")
        .collect();
    let known = EVERY.map(|(option, _, _)| option);
    for option in known {
        assert!(documented.contains(&option), "{option} is not documented");
    }
    for option in documented {
        assert!(known.contains(&option) || of_every_pipeline.contains(&option), "{option}");
    }
}

#[test]
fn config_rejects_unknown_key() {
    let problems = problems(&[("visibilty_timeout", "1")]);
    assert!(problems[0].contains("expected one of `key`, `secret`"), "{problems:?}");
}

#[test]
fn debug_hides_secrets() {
    let config =
        read(&[("key", "AKIDEXAMPLE"), ("secret", "hunter2"), ("session_token", "hunter3")])
            .expect("valid");
    let shown = format!("{config:?} {config:#?}");
    assert!(!shown.contains("hunter") && !shown.contains("AKIDEXAMPLE"), "{shown}");
    let credentials = config.credentials.expect("given");
    assert_eq!(credentials.secret.expose_secret(), "hunter2");
    assert_eq!(credentials.session_token.expect("given").expose_secret(), "hunter3");
    for (option, value) in [
        ("endpoint", "https://me:hunter2@host"),
        ("queue_url", "https://me:hunter2@host/1/q"),
        ("dead_letter", "https://me:hunter2@host/1/q"),
    ] {
        let problems = problems(&[(option, value)]);
        assert!(!problems.iter().any(|problem| problem.contains("hunter")), "{problems:?}");
    }
}

#[test]
fn credentials_are_all_or_none() {
    for (options, option) in [
        (&[("key", "a")][..], "secret"),
        (&[("secret", "a")], "key"),
        (&[("session_token", "a")], "session_token"),
        (&[("key", "a"), ("secret", "b"), ("profile", "c")], "profile"),
    ] {
        let problems = problems(options);
        assert!(problems.len() == 1 && problems[0].contains(&format!("p.config.{option}")));
    }
    let empty = read(&[("key", ""), ("secret", ""), ("session_token", "")]).expect("not set");
    assert!(empty.credentials.is_none());
}

#[test]
fn equal_options_are_equal_and_others_are_not() {
    let config = |key, secret| read(&[("key", key), ("secret", secret)]).expect("valid");
    assert_eq!(config("a", "b"), config("a", "b"));
    assert_ne!(config("a", "b"), config("a", "c"));
    assert_ne!(config("a", "b"), config("c", "b"));
}

#[test]
fn a_queue_has_a_name_or_a_place() {
    let of = |options| {
        let config = read(options).expect("valid");
        (config.queue, config.fifo, config.declare)
    };
    assert_eq!(of(&[("queue", "a-B_9")]), ("a-B_9".into(), false, true));
    assert_eq!(of(&[("queue", "a.fifo")]), ("a.fifo".into(), true, true));
    assert_eq!(
        of(&[("queue_url", "http://h:1/000000000000/q.fifo")]),
        ("q.fifo".into(), true, false)
    );
    assert_eq!(of(&[("queue_url", "https://h/1/q"), ("queue", "q")]), ("q".into(), false, false));
    assert_eq!(of(&[("skip_queue_declaration", "true")]), ("default".into(), false, false));
    let long = "x".repeat(81);
    for name in ["a b", "ä", ".fifo", "a.b", "a.fifo.fifo", "https://h/1/q", &long] {
        assert_eq!(problems(&[("queue", name)]).len(), 1, "{name}");
    }
    for url in [
        "q",
        "ftp://h/1/q",
        "https://h",
        "https://h/",
        "https:///1/q",
        "https://h/1/q?a",
        "https://h/1/a b",
    ] {
        let problems = problems(&[("queue_url", url)]);
        assert!(problems[0].contains("p.config.queue_url"), "{url}: {problems:?}");
    }
    assert_eq!(problems(&[("queue_url", "https://h/1/q"), ("queue", "r")]).len(), 1);
}

#[test]
fn rejected_jobs_go_elsewhere() {
    let dead = |place| read(&[("queue", "q.fifo"), ("dead_letter", place)]).map(|c| c.dead_letter);
    assert_eq!(dead("d.fifo"), Ok(Some(DeadLetter::Name("d.fifo".into()))));
    let url = "https://sqs.eu-west-1.amazonaws.com/1/q.fifo";
    assert_eq!(dead(url), Ok(Some(DeadLetter::Url(url.into()))), "of another account");
    for place in ["q.fifo", "a b", "https://h"] {
        assert!(dead(place).is_err(), "{place}");
    }
    assert!(read(&[("queue_url", url), ("dead_letter", url)]).is_err());
}

#[test]
fn attributes_have_the_services_names_and_values() {
    let attributes = |queue, json| {
        read(&[("queue", queue), ("attributes", json)]).map(|config| config.attributes)
    };
    let found = attributes(
        "q.fifo",
        r#"{
        "visibilitytimeout": "60", "DelaySeconds": 5, "messageretentionperiod": 60,
        "contentbaseddeduplication": true, "deduplicationscope": "messagegroup",
        "fifothroughputlimit": "permessagegroupid", "fifoqueue": "TRUE",
        "kmsmasterkeyid": "alias/k", "redrivepolicy": {"maxReceiveCount": 3},
        "policy": "{\"Version\":\"2012-10-17\"}"
    }"#,
    );
    let expected = [
        ("ContentBasedDeduplication", "true"),
        ("DeduplicationScope", "messageGroup"),
        ("DelaySeconds", "5"),
        ("FifoQueue", "true"),
        ("FifoThroughputLimit", "perMessageGroupId"),
        ("KmsMasterKeyId", "alias/k"),
        ("MessageRetentionPeriod", "60"),
        ("Policy", r#"{"Version":"2012-10-17"}"#),
        ("RedrivePolicy", r#"{"maxReceiveCount":3}"#),
        ("VisibilityTimeout", "60"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(found, Ok(BTreeMap::from(expected)));
    let standard = attributes("q", r#"{"FifoQueue": false}"#).expect("as its name says");
    assert!(!standard.contains_key("FifoQueue"), "the service refuses `false`");
    for (queue, json) in [
        ("q", r#"{"DelaySeconds": 901}"#),
        ("q", r#"{"DelaySeconds": "soon"}"#),
        ("q", r#"{"MessageRetentionPeriod": 59}"#),
        ("q", r#"{"MaximumMessageSize": 1023}"#),
        ("q", r#"{"Redrive": "{}"}"#),
        ("q", r#"{"RedrivePolicy": "none"}"#),
        ("q", r#"{"RedrivePolicy": [1]}"#),
        ("q", r#"{"QueueArn": "arn"}"#),
        ("q", r#"{"KmsMasterKeyId": ""}"#),
        ("q", r#"{"SqsManagedSseEnabled": "maybe"}"#),
        ("q", r#"{"FifoQueue": true}"#),
        ("q", r#"{"ContentBasedDeduplication": true}"#),
        ("q.fifo", r#"{"FifoQueue": false}"#),
        ("q.fifo", r#"{"DeduplicationScope": "all"}"#),
        ("q.fifo", r#"{"FifoThroughputLimit": "perMessageGroupId"}"#),
        ("q", r#"{"DelaySeconds": 1, "delayseconds": 2}"#),
    ] {
        let problems = attributes(queue, json).expect_err("wrong");
        let path = "p.config.attributes.";
        assert!(problems.len() == 1 && problems[0].contains(path), "{json}: {problems:?}");
    }
}

#[test]
fn tags_are_text() {
    let tags = |json| read(&[("tags", json)]).map(|config| config.tags);
    let expected = [("Team".to_owned(), "mail".to_owned()), ("n".to_owned(), "1".to_owned())];
    assert_eq!(tags(r#"{"Team": "mail", "n": 1}"#), Ok(BTreeMap::from(expected)));
    let many: Vec<_> = (0..51).map(|n| format!("\"t{n}\": \"\"")).collect();
    for json in [&format!("{{{}}}", many.join(",")), r#"{"": "a"}"#, r#"{"a": [1]}"#] {
        assert_eq!(tags(json).expect_err("wrong").len(), 1, "{json}");
    }
}

#[test]
fn seconds_are_whole_and_roadrunners_zeros_have_a_meaning() {
    let visibility =
        |text| read(&[("visibility_timeout", text)]).map(|c| c.visibility_timeout.as_secs());
    assert_eq!((visibility("0"), visibility("500ms"), visibility("1")), (Ok(30), Ok(1), Ok(1)));
    assert_eq!((visibility("43200"), visibility("12h")), (Ok(43_200), Ok(43_200)));
    assert!(visibility("43201").is_err());
    let wait = |option, text| read(&[(option, text)]).map(|config| config.wait_time.as_secs());
    assert_eq!((wait("wait_time_seconds", "0"), wait("wait_time", "20")), (Ok(1), Ok(20)));
    assert_eq!(wait("wait_time", "1500ms"), Ok(2));
    assert!(wait("wait_time_seconds", "21").is_err());
    let prefetch = |options| read(options).map(|config| config.prefetch.get());
    assert_eq!(prefetch(&[("prefetch", "3")]), Ok(3));
    assert_eq!(prefetch(&[("prefetch", "10"), ("max_messages_in_flight", "100")]), Ok(100));
    assert_eq!(prefetch(&[("prefetch", "10"), ("max_messages_in_flight", "0")]), Ok(10));
}

#[test]
fn every_option_out_of_range_is_named() {
    let found = problems(&[
        ("region", "eu central"),
        ("endpoint", "127.0.0.1:9324"),
        ("message_group_id", "a b"),
        ("prefetch", "9999999999999999999"),
        ("receivers", "65"),
        ("max_lease", "13h"),
        ("operation_timeout", "0s"),
        ("connect_timeout", "2years"),
        ("push_timeout", "30"),
    ]);
    assert_eq!(found.len(), 9, "{found:#?}");
    assert!(read(&[("prefetch", "0")]).is_err() && read(&[("receivers", "0")]).is_err());
    assert!(read(&[("max_lease", "999ms")]).is_err());
}

#[test]
fn capabilities_follow_from_the_queue() {
    let of = |options| read(options).expect("valid").capabilities();
    let standard = of(&[]);
    assert_eq!((standard.delay, standard.ordering_key), (Support::Emulated, Support::None));
    assert_eq!((standard.reject, standard.acks_confirmed), (Support::None, false));
    assert_eq!((standard.max_batch, standard.max_delay), (Some(10), Some(A_YEAR)));
    assert_eq!(standard.max_payload, Some(MAX_MESSAGE - ENVELOPE));
    let fifo = of(&[("queue", "q.fifo"), ("dead_letter", "d.fifo")]);
    assert_eq!((fifo.delay, fifo.ordering_key), (Support::None, Support::Native));
    assert_eq!((fifo.reject, fifo.acks_confirmed, fifo.max_delay), (Support::Emulated, true, None));
    let small = of(&[("attributes", r#"{"MaximumMessageSize": 1024}"#)]);
    assert_eq!(small.max_payload, Some(512));
}
