use std::time::Duration;

use jobs_core::Capabilities;
use proptest::prelude::*;
use rdkafka::Timestamp;
use rdkafka::message::{Headers as _, OwnedMessage};
use serde_json::Value;

use super::*;

const SENDER: Sender<'_> = Sender { pipeline: "p", priority: 10 };

/// A record as a consumer gets it, at partition 3, offset 42 of `orders`.
fn decode<M: rdkafka::Message>(record: &M, keyed: bool) -> Decoded {
    super::decode(record, &record.topic().into(), keyed)
}

fn stored(record: &Record) -> OwnedMessage {
    raw(record.key.as_deref(), Some(&record.payload), Some(record.headers.clone()))
}

fn raw(key: Option<&[u8]>, payload: Option<&[u8]>, headers: Option<OwnedHeaders>) -> OwnedMessage {
    let time = Timestamp::CreateTime(1_795_254_686_423);
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    OwnedMessage::new(owned(payload), owned(key), "orders".into(), time, 3, 42, headers)
}

fn headers<'a>(entries: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>) -> OwnedHeaders {
    let insert = |headers: OwnedHeaders, (key, value)| headers.insert(Header { key, value });
    entries.into_iter().fold(OwnedHeaders::new(), insert)
}

fn foreign<'a>(entries: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> OwnedMessage {
    let entries = entries.into_iter().map(|(name, value)| (name, Some(value)));
    raw(None, None, Some(headers(entries)))
}

fn written(record: &Record) -> Vec<(String, Option<Vec<u8>>)> {
    let entry =
        |header: Header<'_, &[u8]>| (header.key.to_owned(), header.value.map(<[u8]>::to_vec));
    record.headers.iter().map(entry).collect()
}

fn entries(headers: &Headers) -> Vec<(&str, &str)> {
    headers.iter().collect()
}

/// Headers with what survives: all values of a name in order, and names in order of their first.
fn grouped(headers: &Headers) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (name, value) in headers.iter() {
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => groups.push((name, vec![value])),
        }
    }
    groups
}

fn assert_same(found: &Message, expected: &Message) {
    assert_eq!((found.id(), found.name()), (expected.id(), expected.name()));
    assert_eq!(found.payload(), expected.payload());
    assert_eq!(grouped(found.headers()), grouped(expected.headers()));
    assert_eq!(found.auto_ack(), expected.auto_ack());
    assert_eq!(found.ordering_key(), expected.ordering_key());
    let metadata = |message: &Message| message.kafka().map(|kafka| kafka.metadata.clone());
    assert_eq!(metadata(found).unwrap_or_default(), metadata(expected).unwrap_or_default());
}

// What RoadRunner wrote, see the fixture.

fn roadrunner() -> Vec<Value> {
    let fixture = include_str!("../../tests/fixtures/roadrunner.json");
    let fixture: Value = serde_json::from_str(fixture).expect("JSON");
    fixture["records"].as_array().expect("a list").clone()
}

fn hex(value: &Value) -> Vec<u8> {
    let digits = value.as_str().expect("hexadecimal digits");
    let byte = |start| u8::from_str_radix(&digits[start..start + 2], 16).expect("a byte");
    (0..digits.len()).step_by(2).map(byte).collect()
}

fn stored_by_roadrunner(record: &Value) -> OwnedMessage {
    let stored = &record["stored"];
    let entries: Vec<_> = stored["headers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|header| (header["name"].as_str().expect("a name"), hex(&header["value_hex"])))
        .collect();
    let entries = entries.iter().map(|(name, value)| (*name, Some(&value[..])));
    let body = hex(&stored["body_hex"]);
    let body = (stored["value_is_null"] == false).then_some(&body[..]);
    raw(Some(&hex(&stored["key_hex"])), body, Some(headers(entries)))
}

fn pushed_to_roadrunner(record: &Value) -> Message {
    let job = &record["pushed"];
    let field = |name: &str| job[name].as_str().expect(name).to_owned();
    let mut message = Message::new(field("name"), hex(&job["payload_hex"]))
        .with_id(field("id"))
        .with_priority(job["priority"].as_i64().expect("a number"))
        .with_delay(Duration::from_secs(job["delay"].as_u64().expect("seconds")))
        .with_auto_ack(job["auto_ack"].as_bool().expect("a truth value"));
    for (name, values) in job["headers"].as_object().expect("a map") {
        for value in values.as_array().expect("a list") {
            message = message.with_header(name, value.as_str().expect("text"));
        }
    }
    message
}

#[test]
fn jobs_of_roadrunner_are_read_as_they_were_pushed() {
    let records = roadrunner();
    assert_eq!(records.len(), 5);
    for record in records {
        let expected = pushed_to_roadrunner(&record);
        let Decoded { message, attempt } = decode(&stored_by_roadrunner(&record), false);
        assert_eq!((message.id(), message.name()), (expected.id(), expected.name()));
        assert_eq!((message.payload(), attempt), (expected.payload(), 1));
        assert_eq!(message.priority(), expected.priority());
        // It writes neither more than one value of a header nor whether a job is settled at once.
        let first = |(name, values): (_, Vec<_>)| (name, values[0]);
        let mut kept: Vec<_> = grouped(expected.headers()).into_iter().map(first).collect();
        let mut found = entries(message.headers());
        kept.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, kept);
        assert_eq!((message.auto_ack(), message.ordering_key()), (false, None));
    }
}

#[test]
fn our_jobs_are_written_as_roadrunner_writes_them() {
    let sender = Sender { pipeline: "cap-kafka", priority: 7 };
    for record in roadrunner() {
        let found = encode(&pushed_to_roadrunner(&record), sender, 1);
        let expected = stored_by_roadrunner(&record);
        let expected_headers = Record {
            key: None,
            payload: Bytes::new(),
            headers: rdkafka::Message::headers(&expected).expect("headers").clone(),
        };
        assert_eq!(found.key.as_deref(), rdkafka::Message::key(&expected));
        assert_eq!(Some(&found.payload[..]), rdkafka::Message::payload(&expected));
        let is_ours = |name: &str| [MORE_VALUES, wire::AUTO_ACK].contains(&name);
        let (ours, mut others): (Vec<_>, Vec<_>) =
            written(&found).into_iter().partition(|(name, _)| is_ours(name));
        let mut theirs = written(&expected_headers);
        let job = record["job"].as_str().expect("a name");
        assert_eq!(ours.len(), usize::from(["2-headers", "5-auto_ack"].contains(&job)), "{job}");
        // It writes the headers of a job in random order, ahead of its own.
        let own = others.len() - 3;
        assert_eq!(others[own..], theirs[own..]);
        others.sort();
        theirs.sort();
        assert_eq!(others, theirs);
    }
}

// What we write.

#[test]
fn a_key_keeps_jobs_in_order_and_is_the_id_otherwise() {
    let plain = encode(&Message::new("a", "").with_id("i"), SENDER, 1);
    assert_eq!(plain.key.as_deref(), Some(&b"i"[..]));
    assert!(written(&plain).iter().all(|(name, _)| name != wire::ID));
    for key in ["k", "i"] {
        let message = Message::new("a", "").with_id("i").with_ordering_key(key);
        let record = encode(&message, SENDER, 1);
        assert_eq!(record.key.as_deref(), Some(key.as_bytes()));
        assert_same(&decode(&stored(&record), true).message, &message);
        // Where keys promise nothing the job can run, and run again, and its copy has the key.
        let read = decode(&stored(&record), false).message;
        assert_eq!((read.id().as_str(), read.ordering_key()), ("i", None));
        assert_eq!(entries(read.headers()), [(wire::ORDERING_KEY, key)]);
        let copy = encode(&read, SENDER, 2);
        assert_eq!(copy.key, record.key);
        assert_same(&decode(&stored(&copy), true).message, &message);
    }
    let odd = Message::new("a", "").with_id("i").with_header(wire::ORDERING_KEY, "\n");
    assert_eq!(encode(&odd, SENDER, 1).key.as_deref(), Some(&b"i"[..]));
}

#[test]
fn a_message_without_a_priority_has_the_pipelines() {
    let read = |message, priority| {
        let record = encode(&message, Sender { pipeline: "p", priority }, 1);
        decode(&stored(&record), false).message.priority()
    };
    assert_eq!(read(Message::new("a", ""), 3), Some(3));
    assert_eq!(read(Message::new("a", "").with_priority(-1), 3), Some(-1));
    let record = encode(&Message::new("a", "").with_priority(-1), SENDER, 1);
    assert!(written(&record).contains(&(wire::PRIORITY.to_owned(), Some(vec![0xff; 8]))));
}

#[test]
fn the_attempt_is_written_from_the_second_on_and_cannot_be_pushed() {
    let forged = Message::new("a", "").with_header(wire::ATTEMPT, "7").with_header("b", "c");
    for attempt in [1, 2, u32::MAX] {
        let record = encode(&forged, SENDER, attempt);
        let decoded = decode(&stored(&record), false);
        assert_eq!(decoded.attempt, attempt);
        assert_eq!(entries(decoded.message.headers()), [("b", "c")]);
        assert_eq!(written(&record).len(), 4 + usize::from(attempt > 1));
    }
}

#[test]
fn the_first_value_of_a_name_is_written_for_everybody() {
    let message = Message::new("a", "").with_headers(
        [("b", "1"), ("a", ""), ("b", "\"\n"), ("rr_id", "x"), ("b", "3")].into_iter().collect(),
    );
    let record = encode(&message, SENDER, 1);
    let found = written(&record);
    assert_eq!(found[0], ("b".into(), Some(b"1".to_vec())));
    assert_eq!(found[1], ("a".into(), None), "empty text is a null value");
    assert_eq!(found[5], (MORE_VALUES.into(), Some(br#"[["b","\"\n"],["b","3"]]"#.to_vec())));
    assert_eq!(found.len(), 6);
    let read = decode(&stored(&record), false).message;
    assert_eq!(grouped(read.headers()), [("b", vec!["1", "\"\n", "3"]), ("a", vec![""])]);
}

#[test]
fn a_record_must_leave_room_for_what_is_added() {
    let fits = |payload: usize, header: usize, max| {
        let message = Message::new("a", vec![0; payload]).with_header("h", "x".repeat(header));
        encode(&message, SENDER, 1).fits(max)
    };
    assert!(fits(0, 0, 1_000) && fits(600, 0, 1_000) && !fits(900, 0, 1_000));
    assert!(!fits(0, 900, 1_000) && fits(500_000, 490_000, 1_000_000));
    assert!(!fits(500_000, 500_000, 1_000_000));
    // The largest payload with the headers that are kept room for, and a dead letter of it.
    let message =
        Message::new("a", vec![0; 1_000_012 - (16 << 10)]).with_header("h", "x".repeat(8_000));
    let record = encode(&message, SENDER, 1);
    assert!(record.fits(1_000_012));
    let (topic, reason) = ("t".repeat(249), "r".repeat(5_000));
    let origin = Origin { topic: &topic, partition: i32::MAX, offset: i64::MAX };
    let sender = Sender { pipeline: &"p".repeat(200), priority: 1 };
    let size = |record: &Record| -> usize {
        let headers = written(record);
        headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len)).sum()
    };
    let dead = dead_letter(&message, sender, u32::MAX, origin, &reason);
    assert!(size(&dead) - size(&record) < 2 << 10, "{}", size(&dead) - size(&record));
}

// What others write.

#[test]
fn a_record_without_headers_gets_defaults() {
    for bare in [raw(None, None, None), raw(None, Some(b""), Some(OwnedHeaders::new()))] {
        let Decoded { message, attempt } = decode(&bare, true);
        assert_eq!((message.name(), attempt), (wire::FOREIGN_NAME, 1));
        assert_eq!(message.id().as_str(), "orders-3-42", "the same at every delivery");
        assert_eq!((message.priority(), message.auto_ack()), (None, false));
        assert!(message.payload().is_empty() && message.headers().is_empty());
        assert_eq!(message.ordering_key(), None);
        let kafka = message.kafka().expect("where it was read");
        assert_eq!((&*kafka.topic, kafka.metadata.as_str()), ("orders", ""));
        assert_eq!((kafka.partition, kafka.offset), (Some(3), Some(42)));
    }
}

#[test]
fn a_foreign_key_is_no_id() {
    let of = |key: &[u8], keyed| decode(&raw(Some(key), Some(b"x"), None), keyed).message;
    let keyed = of(b"customer", true);
    assert_eq!((keyed.id().as_str(), keyed.ordering_key()), ("orders-3-42", Some("customer")));
    let unkeyed = of(b"customer", false);
    assert_eq!((unkeyed.id().as_str(), unkeyed.ordering_key()), ("orders-3-42", None));
    assert_eq!(entries(unkeyed.headers()), [(wire::ORDERING_KEY, "customer")]);
    for odd in [&b""[..], b"\xff\xfe", b"a\nb", &[b'x'; 256]] {
        let message = of(odd, true);
        assert_eq!((message.id().as_str(), message.ordering_key()), ("orders-3-42", None));
    }
    // RoadRunner writes an empty id as it is.
    let nameless = raw(Some(b""), None, Some(headers([(wire::NAME, Some(&b"job"[..]))])));
    assert_eq!(decode(&nameless, false).message.id().as_str(), "orders-3-42");
}

#[test]
fn a_position_is_a_valid_id_whatever_the_topic() {
    let long = OwnedMessage::new(
        None,
        None,
        "t".repeat(249),
        Timestamp::NotAvailable,
        i32::MAX,
        i64::MAX,
        None,
    );
    let message = decode(&long, false).message;
    assert!(wire::is_valid(message.id().as_str()), "{}", message.id());
    assert!(message.id().as_str().ends_with("-2147483647-9223372036854775807"));
}

#[test]
fn headers_of_foreign_records_become_text() {
    let record = foreign([
        ("a", &b"1"[..]),
        ("a", b"2"),
        ("b", b"\xffz"),
        ("", b"nameless"),
        ("c\n", b"control"),
        ("traceparent", b"00-1-2-01"),
        ("jobs-target-topic", b"elsewhere"),
        ("jobs-due", b"0"),
        ("jobs-origin-topic", b"shown"),
        ("rr_headers", b"{}"),
    ]);
    let message = decode(&record, false).message;
    let expected = [
        ("a", "1"),
        ("a", "2"),
        ("b", "\u{fffd}z"),
        ("traceparent", "00-1-2-01"),
        ("jobs-origin-topic", "shown"),
    ];
    assert_eq!(entries(message.headers()), expected);
}

#[test]
fn a_header_whose_name_the_client_panics_at_is_left_out() {
    /// As the client's own, whose names cannot be made wrong from here.
    struct Unreadable;

    impl rdkafka::message::Headers for Unreadable {
        fn count(&self) -> usize {
            1
        }

        fn try_get(&self, _: usize) -> Option<Header<'_, &[u8]>> {
            let key = str::from_utf8(&[u8::MAX; 1][..]).expect("the client panics here too");
            Some(Header { key, value: None })
        }
    }

    assert!(header(&Unreadable, 0).is_none());
    assert!(header(&headers([("a", None)]), 0).is_some());
}

#[test]
fn values_that_make_no_sense_get_defaults() {
    let priority =
        |bytes: &[u8]| decode(&foreign([(wire::PRIORITY, bytes)]), false).message.priority();
    assert_eq!(priority(&5_i64.to_le_bytes()), Some(5));
    assert_eq!(priority(b"\x05\0\0\0\0\0\0\0tail"), Some(5));
    assert_eq!(priority(b" -3 "), Some(-3));
    for none in [&b""[..], b"\x05", b"high", &[0; 8], b"0"] {
        assert_eq!(priority(none), None, "{none:?}");
    }
    let attempt = |bytes: &[u8]| decode(&foreign([(wire::ATTEMPT, bytes)]), false).attempt;
    assert_eq!((attempt(b"3"), attempt(b"4294967295")), (3, u32::MAX));
    for one in [&b""[..], b"0", b"-4", b"99999999999", b"\xff"] {
        assert_eq!(attempt(one), 1, "{one:?}");
    }
    let auto_ack =
        |bytes: &[u8]| decode(&foreign([(wire::AUTO_ACK, bytes)]), false).message.auto_ack();
    assert!(auto_ack(b"true") && !auto_ack(b"1") && !auto_ack(b""));
    for bad in [&b""[..], b"a\nb", b"\xff", &[b'x'; 256]] {
        let message = decode(&foreign([(wire::ID, bad), (wire::NAME, bad)]), false).message;
        assert_eq!((message.id().as_str(), message.name()), ("orders-3-42", wire::FOREIGN_NAME));
    }
    let deep = [vec![b'['; 100_000]].concat();
    for bad in [&b"{}"[..], b"[1]", b"[[\"a\"]]", b"[[\"a\",1]]", b"\xff", &deep] {
        assert!(decode(&foreign([(MORE_VALUES, bad)]), false).message.headers().is_empty());
    }
    let reserved = br#"[["rr_id","x"],["\n","y"],["jobs-due","1"],["ok","z"]]"#;
    let message = decode(&foreign([(MORE_VALUES, &reserved[..])]), false).message;
    assert_eq!(entries(message.headers()), [("ok", "z")]);
}

#[test]
fn many_headers_take_no_time_worth_mentioning() {
    let message = Message::new("a", "")
        .with_headers((0..200_000).map(|number| (number.to_string(), "")).collect());
    let started = std::time::Instant::now();
    let read = decode(&stored(&encode(&message, SENDER, 1)), false).message;
    assert_eq!(read.headers().len(), 200_000);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

// Ways round.

#[test]
fn a_dead_letter_says_where_it_was_read_and_why_it_is_there() {
    let message = Message::new("a", "x").with_header("b", "c").with_ordering_key("k");
    let origin = |offset| Origin { topic: "orders", partition: 3, offset };
    let reason = "\u{e9}".repeat(400);
    let first = dead_letter(&message, SENDER, 4, origin(42), &reason);
    let read = decode(&stored(&first), true);
    assert_eq!((read.attempt, read.message.ordering_key()), (4, Some("k")));
    let expected = [
        ("b", "c"),
        ("jobs-origin-pipeline", "p"),
        ("jobs-origin-topic", "orders"),
        ("jobs-origin-partition", "3"),
        ("jobs-origin-offset", "42"),
        ("jobs-dead-reason", &reason[..500]),
    ];
    assert_eq!(entries(read.message.headers()), expected);
    // Rejected once more, it tells of the last time.
    let again = dead_letter(&read.message, SENDER, 5, origin(43), "");
    let read = decode(&stored(&again), true).message;
    assert_eq!(read.headers().get_all("jobs-origin-offset").collect::<Vec<_>>(), ["43"]);
    assert_eq!(read.headers().get("jobs-dead-reason"), Some(""));
    assert_eq!(read.headers().len(), 6);
}

#[test]
fn only_what_was_delayed_is_brought_back() {
    let target = Target { topic: "orders".into(), partition: None };
    let record = || encode(&Message::new("a", "x"), SENDER, 1);
    assert!(undelayed(&stored(&record())).is_none());
    assert!(undelayed(&raw(None, None, None)).is_none());
    let late = stored(&delayed(record(), &target, 7));
    assert!(undelayed(&late).is_some_and(|(to, due, _)| (to, due) == (target, 7)));
    let with = |topic: &[u8], partition: Option<&[u8]>, due: &[u8]| {
        let own = [
            ("jobs-target-topic", Some(topic)),
            ("jobs-target-partition", partition),
            ("jobs-due", Some(due)),
        ];
        undelayed(&raw(None, None, Some(headers(own))))
    };
    assert!(with(b"t", Some(b"1"), b"2").is_some() && with(b"t", None, b"2").is_some());
    assert!(with(b"", None, b"2").is_none() && with(b"\xff", None, b"2").is_none());
    assert!(with(b"t", Some(b"x"), b"2").is_none() && with(b"t", None, b"-1").is_none());
}

// Any message, any record, any bytes.

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,8}", r"\PC{1,63}", "[a-zA-Z_.-]{255}"]
}

fn any_header_name() -> impl Strategy<Value = String> {
    prop_oneof![any_text(), "[ab]", Just("x-own".into()), Just("rr_own".into())]
}

fn any_message() -> impl Strategy<Value = Message> {
    let headers = prop::collection::vec((any_header_name(), any::<String>()), 0..6);
    let options = (any::<Option<i64>>(), any::<u64>(), any::<bool>(), any::<String>());
    let key = prop::option::of(any_text());
    (any_text(), any_text(), headers, options, key, any::<Vec<u8>>()).prop_map(
        |(id, name, headers, (priority, delay, auto_ack, metadata), key, payload)| {
            let mut kafka = KafkaOptions::default();
            kafka.metadata = metadata;
            let message = Message::new(name, payload)
                .with_id(id)
                .with_headers(headers.into_iter().collect())
                .with_priority(priority.unwrap_or(0))
                .with_delay(Duration::from_millis(delay))
                .with_auto_ack(auto_ack)
                .with_kafka(kafka);
            key.into_iter().fold(message, Message::with_ordering_key)
        },
    )
}

fn any_name() -> impl Strategy<Value = String> {
    let ours = [
        wire::ID,
        wire::NAME,
        wire::HEADERS,
        wire::PIPELINE,
        wire::PRIORITY,
        wire::AUTO_ACK,
        wire::ATTEMPT,
        wire::ORDERING_KEY,
        MORE_VALUES,
        METADATA,
        "jobs-target-topic",
        "jobs-target-partition",
        "jobs-due",
        "jobs-origin-topic",
    ];
    prop_oneof![
        3 => prop::sample::select(ours.to_vec()).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => "[a-z]{250,257}",
    ]
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        any::<Vec<u8>>(),
        any::<i64>().prop_map(|number| number.to_le_bytes().to_vec()),
        any::<i64>().prop_map(|number| number.to_string().into_bytes()),
        "[a-z]{0,9}".prop_map(String::into_bytes),
        Just(br#"[["a","b"],["rr_id","c"]]"#.to_vec()),
    ]
}

fn any_headers() -> impl Strategy<Value = OwnedHeaders> {
    prop::collection::vec((any_name(), prop::option::of(any_bytes())), 0..8).prop_map(|entries| {
        headers(entries.iter().map(|(name, value)| (name.as_str(), value.as_deref())))
    })
}

prop_compose! {
    fn any_record()(
        key in prop::option::of(any_bytes()),
        payload in prop::option::of(any::<Vec<u8>>()),
        headers in prop::option::of(any_headers()),
    ) -> OwnedMessage {
        raw(key.as_deref(), payload.as_deref(), headers)
    }
}

/// What is delivered can be pushed and requeued, and is the same job then.
fn assert_sound(record: &OwnedMessage, keyed: bool) {
    let Decoded { message, attempt } = decode(record, keyed);
    assert!(attempt >= 1);
    let mut capabilities = Capabilities::default();
    if keyed {
        capabilities.ordering_key = jobs_core::Support::Native;
    }
    assert!(capabilities.admit(&message).is_ok(), "{message:?}");
    let copy = encode(&message, SENDER, attempt);
    let again = decode(&stored(&copy), keyed);
    assert_same(&again.message, &message);
    assert_eq!(again.attempt, attempt);
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        message in any_message(),
        pipeline in "[a-z]{1,8}",
        priority in any::<i64>(),
        attempt in 1..=u32::MAX,
    ) {
        let record = encode(&message, Sender { pipeline: &pipeline, priority }, attempt);
        let decoded = decode(&stored(&record), true);
        assert_same(&decoded.message, &message);
        let effective = message.priority().unwrap_or(priority);
        prop_assert_eq!(decoded.message.priority(), (effective != 0).then_some(effective));
        prop_assert_eq!(decoded.attempt, attempt);
        prop_assert_eq!(decoded.message.delay(), Duration::ZERO);
    }

    #[test]
    fn any_record_is_a_job(record in any_record(), keyed in any::<bool>()) {
        assert_sound(&record, keyed);
        if let Some((_, _, record)) = undelayed(&record) {
            assert_sound(&stored(&record), keyed);
        }
    }

    #[test]
    fn damaged_records_of_roadrunner_are_jobs(
        record in 0..5_usize,
        damage in prop::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..6),
        keyed in any::<bool>(),
    ) {
        let record = stored_by_roadrunner(&roadrunner()[record]);
        let all = rdkafka::Message::headers(&record).expect("headers");
        let mut damaged: Vec<_> = all.iter()
            .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
            .collect();
        for (header, at, byte) in damage {
            let index = header.index(damaged.len());
            let value = &mut damaged[index].1;
            if !value.is_empty() {
                let index = at.index(value.len());
                value[index] = byte;
                value.truncate(index + 3);
            }
        }
        let damaged = damaged.iter().map(|(name, value)| (name.as_str(), Some(&value[..])));
        assert_sound(&record.clone().replace_headers(Some(headers(damaged))), keyed);
    }

    #[test]
    fn a_delay_brings_back_what_was_delayed(
        record in any_record(),
        topic in "[a-zA-Z0-9._-]{1,249}",
        partition in prop::option::of(0..i32::MAX),
        due in any::<u64>(),
    ) {
        let headers = rdkafka::Message::headers(&record);
        let headers = headers.map_or_else(OwnedHeaders::new, OwnedHeaders::clone);
        let payload = rdkafka::Message::payload(&record).unwrap_or_default();
        let key = rdkafka::Message::key(&record).map(<[u8]>::to_vec);
        let before = Record { key, payload: Bytes::copy_from_slice(payload), headers };
        let (key, payload, all) = (before.key.clone(), before.payload.clone(), written(&before));
        let target = Target { topic, partition };
        let late = stored(&delayed(before, &target, due));
        let (to, at, after) = undelayed(&late).expect("a delayed record");
        prop_assert_eq!((to, at), (target, due));
        prop_assert_eq!((&after.key, &after.payload), (&key, &payload));
        prop_assert_eq!(written(&after), all);
    }
}
