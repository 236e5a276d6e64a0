use jobs_core::{Capabilities, KafkaOptions};
use lapin::protocol::basic::parse_properties;
use lapin::types::{DecimalValue, FieldArray};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NO_LEVELS: Option<NonZeroU8> = None;

fn table(entries: impl IntoIterator<Item = (&'static str, AMQPValue)>) -> BasicProperties {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(name.into(), value);
    }
    BasicProperties::default().with_headers(table)
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
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

/// Properties and body of a stored message.
fn stored(message: &Value) -> (BasicProperties, Vec<u8>) {
    /// Class, weight and size of the body.
    const BEFORE: usize = 2 + 2 + 8;
    let header = hex(&message["content_header_hex"]);
    let (rest, properties) = parse_properties(&header[BEFORE..]).expect("properties");
    assert!(rest.is_empty());
    (properties, hex(&message["body_hex"]))
}

fn pushed(job: &Value) -> Message {
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
    let mut read = 0;
    for record in roadrunner() {
        let expected = pushed(&record["pushed"]);
        for place in ["stored", "stored_while_delayed"] {
            let Some(message) = record.get(place) else { continue };
            let (properties, body) = stored(message);
            let Decoded { message, attempt } = decode(&properties, body);
            assert_same(&message, &expected);
            assert_eq!((message.priority(), attempt), (expected.priority(), 1));
            assert_eq!(message.delay(), Duration::ZERO);
            read += 1;
        }
    }
    assert_eq!(read, 6);
}

#[test]
fn our_jobs_are_written_as_roadrunner_writes_them() {
    for record in roadrunner() {
        // What it delivers after a delay bears what the broker added.
        let message = record.get("stored_while_delayed").unwrap_or(&record["stored"]);
        let (expected, _) = stored(message);
        let found = encode(&pushed(&record["pushed"]), "cap-amqp", 7, 1, NO_LEVELS);
        let timestamp = found.timestamp().expect("written");
        assert!(timestamp >= expected.timestamp().expect("written") - 86_400 * 365 * 2);
        assert_eq!(found, expected.with_timestamp(timestamp));
    }
}

#[test]
fn a_requeued_copy_of_roadrunner_is_read_without_what_it_picked_up() {
    let json = json!({
        "tenant": ["acme"], "rr_id": ["old"], "rr_headers": ["{}"], "rr_priority": ["10"],
        "x-first-death-queue": ["delayed"], "x-delivery-count": ["3"], "jobs-hop-4": ["due"],
        "Traceparent": ["00-1-2-01"], "jobs-attempt": ["2"],
    });
    let properties = table([
        (wire::ID, text("new")),
        (wire::HEADERS, AMQPValue::ByteArray(json.to_string().as_bytes().into())),
    ]);
    let Decoded { message, attempt } = decode(&properties, Vec::new());
    assert_eq!((message.id().as_str(), attempt), ("new", 2));
    assert_eq!(entries(message.headers()), [("Traceparent", "00-1-2-01"), ("tenant", "acme")]);
}

// What we write.

#[test]
fn delays_are_written_in_seconds_rounded_up() {
    for (delay, seconds) in [
        (Duration::ZERO, 0),
        (Duration::from_millis(1), 1),
        (Duration::from_secs(2), 2),
        (Duration::from_millis(2_001), 3),
        (Duration::from_secs(1 << 40), i32::MAX),
        (Duration::MAX, i32::MAX),
    ] {
        assert_eq!(whole_seconds(delay), seconds, "{delay:?}");
    }
}

#[test]
fn a_message_without_a_priority_has_the_pipelines() {
    let read = |message, pipeline| {
        let properties = encode(&message, "p", pipeline, 1, NonZeroU8::new(10));
        (decode(&properties, Vec::new()).message.priority(), *properties.priority())
    };
    assert_eq!(read(Message::new("a", ""), 3), (Some(3), Some(8)));
    assert_eq!(read(Message::new("a", "").with_priority(1), 3), (Some(1), Some(10)));
}

#[test]
fn levels_of_priority_keep_the_common_ones_apart() {
    let levels = |most, priorities: &[i64]| -> Vec<u8> {
        let most = NonZeroU8::new(most).expect("not zero");
        priorities.iter().map(|priority| level(*priority, most)).collect()
    };
    assert_eq!(levels(10, &[i64::MIN, 1, 2, 9, 10, 11, 12, i64::MAX]), [10, 10, 9, 2, 1, 0, 0, 0]);
    assert_eq!(levels(255, &[0, 1, 10, 256, 257]), [255, 255, 246, 0, 0]);
    assert_eq!(levels(2, &[1, 9, 10, 11]), [2, 2, 1, 0]);
    assert_eq!(levels(1, &[1, 10, 11]), [1, 1, 0]);
}

#[test]
fn the_attempt_is_written_from_the_second_on_and_cannot_be_pushed() {
    let forged = Message::new("a", "").with_header("jobs-attempt", "7").with_header("b", "c");
    for attempt in [1, 2, u32::MAX] {
        let decoded = decode(&encode(&forged, "p", 10, attempt, NO_LEVELS), Vec::new());
        assert_eq!(decoded.attempt, attempt);
        assert_eq!(entries(decoded.message.headers()), [("b", "c")]);
    }
}

#[test]
fn headers_must_leave_room_in_their_frame() {
    const FRAME: u32 = 128 << 10;
    let fits = |bytes: usize, frame| {
        let message = Message::new("a", "").with_header("h", "x".repeat(bytes));
        super::fits(&encode(&message, "p", 10, 1, NO_LEVELS), frame)
    };
    assert!(fits(0, 4096) && fits(1024, 4096) && !fits(2048, 4096));
    assert!(fits(111 << 10, FRAME) && !fits(112 << 10, FRAME) && !fits(1 << 20, FRAME));
}

#[test]
fn an_id_is_found_in_what_we_wrote_only() {
    let message = Message::new("a", "").with_id("ключ");
    assert_eq!(id_of(&encode(&message, "p", 10, 1, NO_LEVELS)), Some("ключ"));
    assert_eq!(id_of(&BasicProperties::default()), None);
    assert_eq!(id_of(&table([(wire::ID, AMQPValue::LongInt(1))])), None);
}

// What others write.

#[test]
fn a_message_without_headers_gets_defaults() {
    let read = || decode(&BasicProperties::default(), b"body".to_vec());
    let Decoded { message, attempt } = read();
    assert_eq!((message.name(), attempt), (wire::FOREIGN_NAME, 1));
    assert_eq!((message.priority(), message.auto_ack()), (None, false));
    assert_eq!(&message.payload()[..], b"body");
    assert!(message.headers().is_empty());
    assert_ne!(message.id(), read().message.id(), "a fresh one");
}

#[test]
fn headers_of_foreign_messages_become_text() {
    let inner = {
        let mut table = FieldTable::default();
        table.insert("inner".into(), AMQPValue::Boolean(true));
        table
    };
    let list = vec![text("one"), AMQPValue::LongInt(-2), AMQPValue::Void];
    let decimal = |scale, value| AMQPValue::DecimalValue(DecimalValue { scale, value });
    let properties = table([
        ("a", AMQPValue::ShortShortUInt(200)),
        ("b", AMQPValue::Float(1.5)),
        ("c", AMQPValue::Double(-0.000_004)),
        ("d", decimal(2, 1234)),
        ("e", decimal(3, 7)),
        ("f", decimal(0, 7)),
        ("g", AMQPValue::Timestamp(1_795_254_686)),
        ("h", AMQPValue::Timestamp(u64::MAX)),
        ("i", AMQPValue::ByteArray(b"\xffz".to_vec().into())),
        ("j", AMQPValue::FieldArray(list.into())),
        ("k", AMQPValue::FieldTable(inner)),
        ("l", AMQPValue::Void),
        ("x-own", AMQPValue::LongUInt(u32::MAX)),
        ("x-death", AMQPValue::FieldArray(FieldArray::default())),
        ("x-last-death-reason", text("expired")),
        ("x-first-death-cause", text("mine")),
        ("jobs-hop-to", text("due")),
    ]);
    let message = decode(&properties, Vec::new()).message;
    let expected = [
        ("a", "200"),
        ("b", "1.50000"),
        ("c", "-0.00000"),
        ("d", "12.34"),
        ("e", "0.007"),
        ("f", "7"),
        ("g", "2026-11-21T09:51:26Z"),
        ("h", "18446744073709551615"),
        ("i", "\u{fffd}z"),
        ("j", "one"),
        ("j", "-2"),
        ("inner", "true"),
        ("x-first-death-cause", "mine"),
        ("x-own", "4294967295"),
    ];
    assert_eq!(entries(message.headers()), expected);
}

#[test]
fn numbers_and_text_are_taken_in_any_type() {
    let properties = table([
        (wire::ID, AMQPValue::LongLongInt(42)),
        (wire::NAME, AMQPValue::ByteArray(b"job".to_vec().into())),
        (wire::PRIORITY, text(" 7 ")),
        (wire::AUTO_ACK, text("true")),
        (wire::HEADERS, text(r#"{"a":"b","n":[1,-2,1.5,null,true,["x"]],"m":{"deep":1}}"#)),
    ]);
    let message = decode(&properties, Vec::new()).message;
    assert_eq!((message.id().as_str(), message.name()), ("42", "job"));
    assert_eq!((message.priority(), message.auto_ack()), (Some(7), true));
    let expected = [("a", "b"), ("n", "1"), ("n", "-2"), ("n", "1.5"), ("n", "true"), ("n", "x")];
    assert_eq!(entries(message.headers()), expected);
    for priority in [AMQPValue::ShortShortInt(-3), AMQPValue::ShortInt(-3), AMQPValue::LongInt(-3)]
    {
        let properties = table([(wire::PRIORITY, priority)]);
        assert_eq!(decode(&properties, Vec::new()).message.priority(), Some(-3));
    }
    for none in [AMQPValue::Void, AMQPValue::LongInt(0), text("high")] {
        assert_eq!(decode(&table([(wire::PRIORITY, none)]), Vec::new()).message.priority(), None);
    }
}

#[test]
fn texts_that_no_broker_carries_are_replaced() {
    let long = "x".repeat(256);
    for bad in ["", "a\nb", "\u{85}", &long] {
        let json = json!({"good": ["1"], bad: ["2"]}).to_string();
        let properties = table([
            (wire::ID, text(bad)),
            (wire::NAME, text(bad)),
            (wire::HEADERS, AMQPValue::ByteArray(json.into_bytes().into())),
        ]);
        let message = decode(&properties, Vec::new()).message;
        assert_eq!((message.id().as_str().len(), message.name()), (36, wire::FOREIGN_NAME));
        assert_eq!(entries(message.headers()), [("good", "1")], "{bad:?}");
    }
}

#[test]
fn headers_beside_ours_are_kept_but_not_those_of_brokers() {
    let read = |json: &[u8]| {
        let properties = table([
            (wire::ID, text("id")),
            (wire::HEADERS, AMQPValue::ByteArray(json.into())),
            ("traceparent", text("00-1-2-01")),
            ("both", text("theirs")),
            ("x-shovelled", AMQPValue::Boolean(true)),
        ]);
        let message = decode(&properties, Vec::new()).message;
        entries(message.headers()).iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>()
    };
    assert_eq!(read(br#"{"both":["ours"]}"#), ["both=ours", "traceparent=00-1-2-01"]);
    for none in [&b"{}"[..], b"null", b"", b"[1]", b"{\"a\":", b"\xff"] {
        assert_eq!(read(none), ["both=theirs", "traceparent=00-1-2-01"], "{none:?}");
    }
    let lossy = read(b"{\"a\":[\"\xff\"]}");
    assert!(lossy.contains(&"a=\u{fffd}".to_owned()), "{lossy:?}");
    let deep = [b"{\"a\":".to_vec(), vec![b'['; 100_000]].concat();
    assert_eq!(read(&deep).len(), 2);
}

#[test]
fn redeliveries_of_a_quorum_queue_count() {
    let attempt = |header: &str, count| {
        let json = json!({"jobs-attempt": [header]}).to_string().into_bytes();
        let headers = (wire::HEADERS, AMQPValue::ByteArray(json.into()));
        decode(&table([headers, (DELIVERY_COUNT, count)]), Vec::new()).attempt
    };
    assert_eq!(attempt("1", AMQPValue::LongLongInt(0)), 1);
    assert_eq!(attempt("3", AMQPValue::LongInt(2)), 5);
    assert_eq!(attempt("0", AMQPValue::LongInt(-5)), 1);
    assert_eq!(attempt("-4", text("2")), 3);
    assert_eq!(attempt("4294967295", AMQPValue::LongLongInt(i64::MAX)), u32::MAX);
    assert_eq!(attempt("99999999999", AMQPValue::LongLongInt(i64::MAX)), u32::MAX);
}

#[test]
fn values_nested_without_end_are_cut() {
    let mut value = text("deep");
    for _ in 0..1_000 {
        value = AMQPValue::FieldArray(vec![text("shallow"), value].into());
    }
    let headers = decode(&table([("a", value)]), Vec::new()).message.headers().clone();
    assert!(headers.len() < 20 && headers.get_all("a").all(|text| text == "shallow"));
}

// Any message, any table, any bytes.

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,8}", r"\PC{1,63}", "[a-zA-Z_.-]{255}"]
}

fn any_header_name() -> impl Strategy<Value = String> {
    prop_oneof![any_text(), "[ab]", Just("x-own".into()), Just("rr_own".into())]
}

fn any_message() -> impl Strategy<Value = Message> {
    let headers = prop::collection::vec((any_header_name(), any::<String>()), 0..6);
    let rest = (any::<Option<i64>>(), any::<u64>(), any::<bool>(), any::<Vec<u8>>());
    (any_text(), any_text(), headers, rest).prop_map(
        |(id, name, headers, (priority, delay, auto_ack, payload))| {
            Message::new(name, payload)
                .with_id(id)
                .with_headers(headers.into_iter().collect())
                .with_priority(priority.unwrap_or(0))
                .with_delay(Duration::from_millis(delay))
                .with_auto_ack(auto_ack)
                .with_kafka(KafkaOptions::default())
        },
    )
}

fn any_name() -> impl Strategy<Value = String> {
    let ours = [
        wire::ID,
        wire::NAME,
        wire::HEADERS,
        wire::PIPELINE,
        wire::DELAY,
        wire::PRIORITY,
        wire::AUTO_ACK,
        wire::ATTEMPT,
        DELIVERY_COUNT,
        "x-death",
        "jobs-hop-to",
    ];
    prop_oneof![
        3 => prop::sample::select(ours.to_vec()).prop_map(str::to_owned),
        1 => any::<String>().prop_map(|name| name.chars().take(60).collect()),
        1 => "[a-z]{250,255}",
    ]
}

fn any_value() -> impl Strategy<Value = AMQPValue> {
    let json = json!({"a": ["b"], "jobs-attempt": ["3"], "\n": [1], "rr_id": "x"}).to_string();
    let leaf = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u8>().prop_map(AMQPValue::ShortShortUInt),
        any::<i16>().prop_map(AMQPValue::ShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<f32>().prop_map(AMQPValue::Float),
        any::<f64>().prop_map(AMQPValue::Double),
        any::<(u8, u32)>()
            .prop_map(|(scale, value)| { AMQPValue::DecimalValue(DecimalValue { scale, value }) }),
        any_name().prop_map(|text| AMQPValue::ShortString(ShortString::from(text))),
        any::<String>().prop_map(|text| AMQPValue::LongString(text.into())),
        any::<Vec<u8>>().prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        any::<Vec<u8>>().prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
        Just(AMQPValue::ByteArray(json.into_bytes().into())),
        Just(AMQPValue::Void),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6)
                .prop_map(|items| AMQPValue::FieldArray(items.into())),
            any_table(inner).prop_map(AMQPValue::FieldTable),
        ]
    })
}

fn any_table(values: impl Strategy<Value = AMQPValue>) -> impl Strategy<Value = FieldTable> {
    prop::collection::btree_map(any_name().prop_map(ShortString::from), values, 0..8)
        .prop_map(FieldTable::from)
}

/// What is delivered can be pushed and requeued, and is the same job then.
fn assert_sound(properties: &BasicProperties) {
    let Decoded { message, attempt } = decode(properties, b"body".to_vec());
    assert!(attempt >= 1);
    assert!(Capabilities::default().admit(&message).is_ok(), "{message:?}");
    let again = decode(&encode(&message, "p", 10, attempt, NO_LEVELS), b"body".to_vec());
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
        most in any::<Option<NonZeroU8>>(),
    ) {
        let properties = encode(&message, &pipeline, priority, attempt, most);
        let decoded = decode(&properties, message.payload().to_vec());
        assert_same(&decoded.message, &message);
        let effective = message.priority().unwrap_or(priority);
        prop_assert_eq!(decoded.message.priority(), (effective != 0).then_some(effective));
        prop_assert_eq!(decoded.attempt, attempt);
        prop_assert_eq!(decoded.message.delay(), Duration::ZERO);
        prop_assert_eq!(properties.priority().is_some(), most.is_some());
    }

    #[test]
    fn sooner_is_never_lower(a in any::<i64>(), b in any::<i64>(), c in -300..300_i64,
        most in any::<NonZeroU8>(),
    ) {
        for (a, b) in [(a, b), (a, c), (c, c.saturating_add(1))] {
            let (low, high) = (level(a.max(b), most), level(a.min(b), most));
            prop_assert!(low <= high && high <= most.get());
        }
        if (1..=i64::from(most.get().max(10))).contains(&c) && most.get() >= 10 {
            prop_assert!(level(c, most) > level(c + 1, most), "strict where there is room");
        }
    }

    #[test]
    fn any_table_is_a_job(table in any_table(any_value())) {
        assert_sound(&BasicProperties::default().with_headers(table));
    }

    #[test]
    fn any_bytes_that_the_client_takes_are_a_job(
        flags in any::<[u8; 2]>(),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let bytes = [&flags[..], &bytes[..]].concat();
        if let Ok((_, properties)) = parse_properties(&bytes[..]) {
            assert_sound(&properties);
        }
    }

    #[test]
    fn damaged_messages_of_roadrunner_are_jobs(
        record in 0..5_usize,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut header = hex(&roadrunner()[record]["stored"]["content_header_hex"]).split_off(12);
        for (index, byte) in damage {
            let index = index.index(header.len());
            header[index] = byte;
        }
        if let Ok((_, properties)) = parse_properties(&header[..]) {
            assert_sound(&properties);
        }
    }
}
