use aws_sdk_sqs::types::builders::MessageAttributeValueBuilder;
use jobs_core::Capabilities;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW: SystemTime = UNIX_EPOCH;

fn standard() -> Codec {
    Codec { priority: 10, fifo: false, group: None }
}

fn fifo(group: Option<&str>) -> Codec {
    Codec { priority: 10, fifo: true, group: group.map(str::to_owned) }
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

/// What the service delivers of what it was sent.
fn delivered(encoded: &Encoded, receives: &str) -> Received {
    let entry = encoded.entry("1", NOW);
    let group = entry.message_group_id.map(|g| (MessageSystemAttributeName::MessageGroupId, g));
    let count = (MessageSystemAttributeName::ApproximateReceiveCount, receives.to_owned());
    Received::builder()
        .message_id("9a5fae0e-5a34-4b4b-9f51-1e1b1ab3a6d0")
        .body(entry.message_body)
        .set_message_attributes(entry.message_attributes)
        .set_attributes(Some(group.into_iter().chain([count]).collect()))
        .build()
}

fn received(
    body: &str,
    attributes: impl IntoIterator<Item = (String, MessageAttributeValue)>,
) -> Received {
    Received::builder()
        .message_id("message-id")
        .body(body)
        .set_message_attributes(Some(attributes.into_iter().collect()))
        .build()
}

fn text(value: impl Into<String>) -> MessageAttributeValue {
    built(MessageAttributeValue::builder().data_type("String").string_value(value))
}

fn number(value: impl std::fmt::Display) -> MessageAttributeValue {
    built(MessageAttributeValue::builder().data_type("Number").string_value(value.to_string()))
}

fn binary(value: Vec<u8>) -> MessageAttributeValue {
    built(MessageAttributeValue::builder().data_type("Binary").binary_value(Blob::new(value)))
}

fn built(value: MessageAttributeValueBuilder) -> MessageAttributeValue {
    value.build().expect("it has a type")
}

fn with(name: &str, value: MessageAttributeValue) -> (String, MessageAttributeValue) {
    (name.to_owned(), value)
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

fn attributes(value: &Value, binary_field: &str) -> HashMap<String, MessageAttributeValue> {
    let value_of = |value: &Value| match value["DataType"].as_str().expect("a type") {
        "Binary" => {
            let text = value[binary_field].as_str().expect("base64");
            binary(BASE64.decode(text).expect("base64"))
        }
        "Number" => number(value["StringValue"].as_str().expect("text")),
        _ => text(value["StringValue"].as_str().expect("text")),
    };
    let all = value.as_object().expect("a map").iter();
    all.map(|(name, value)| (name.clone(), value_of(value))).collect()
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
        let stored = &record["stored"];
        let message = Received::builder()
            .message_id("another")
            .body(stored["body_text"].as_str().expect("text"))
            .set_message_attributes(Some(attributes(
                &stored["message_attributes"],
                "BinaryValue_base64",
            )))
            .attributes(MessageSystemAttributeName::ApproximateReceiveCount, "1")
            .attributes(MessageSystemAttributeName::SenderId, "127.0.0.1")
            .build();
        assert_eq!(Codec::due_of(&message), None);
        let Decoded { message, attempt, group } = standard().decode(message);
        assert_same(&message, &expected);
        assert_eq!((message.priority(), attempt, group), (expected.priority(), 1, None));
        assert_eq!(message.delay(), Duration::ZERO);
        read += 1;
    }
    assert_eq!(read, 5);
}

#[test]
fn our_jobs_are_written_as_roadrunner_writes_them() {
    for record in roadrunner() {
        let request = &record["sent_by_driver"][0]["request"];
        let entry = standard().encode(&pushed(&record["pushed"]), 1).entry("7", NOW);
        assert_eq!(entry.id, "7");
        assert_eq!(entry.message_body, request["MessageBody"].as_str().expect("text"));
        let expected = attributes(&request["MessageAttributes"], "BinaryValue");
        assert_eq!(entry.message_attributes, Some(expected));
        let delay = request["DelaySeconds"].as_i64().map(|s| i32::try_from(s).expect("few"));
        assert_eq!(entry.delay_seconds, delay);
        assert_eq!((entry.message_group_id, entry.message_deduplication_id), (None, None));
    }
}

#[test]
fn a_requeued_copy_of_roadrunner_is_read_without_what_it_picked_up() {
    let json = json!({
        "tenant": ["acme"], "rr_id": ["old"], "ApproximateReceiveCount": ["7"],
        "SentTimestamp": ["1795254473496"], "SenderId": ["127.0.0.1"], "jobs-due": ["1"],
        "Traceparent": ["00-1-2-01"], "jobs-attempt": ["2"],
    });
    let message = received(
        "",
        [
            with(wire::ID, text("new")),
            with(wire::PRIORITY, number(0)),
            with(wire::HEADERS, binary(json.to_string().into_bytes())),
        ],
    );
    let Decoded { message, attempt, .. } = standard().decode(message);
    assert_eq!((message.id().as_str(), attempt), ("new", 2));
    assert_eq!(message.priority(), None, "the pipeline's, not the most urgent");
    assert_eq!(entries(message.headers()), [("Traceparent", "00-1-2-01"), ("tenant", "acme")]);
}

// What we write.

#[test]
fn payloads_are_written_as_they_are_where_the_service_takes_them() {
    let written = |payload: &[u8]| write_body(&Bytes::copy_from_slice(payload));
    for plain in ["a", "\t\n\r ~\u{7f}\u{85}\u{d7ff}\u{e000}\u{fffd}\u{10000}\u{10ffff}", "<&>"] {
        assert_eq!(written(plain.as_bytes()), (plain.to_owned(), None));
    }
    assert_eq!(written(b""), (" ".to_owned(), Some(EMPTY)));
    for odd in [&b"\0"[..], b"a\x1f", b"\x0b", b"\xff\xfe", "\u{fffe}".as_bytes(), b"\xef\xbf\xbf"]
    {
        let (body, mark) = written(odd);
        assert!(is_legal(&body) && mark == Some(IN_BASE64), "{odd:?}");
        assert_eq!(&read_body(body, mark)[..], odd);
    }
}

#[test]
fn long_delays_are_told_and_cut_and_short_ones_left_to_the_service() {
    let entry = |seconds, now| {
        let message = Message::new("a", "b").with_delay(Duration::from_secs(seconds));
        let encoded = standard().encode(&message, 1);
        let entry = encoded.entry("1", now);
        let attributes = entry.message_attributes.expect("there are");
        let told = attributes[wire::DELAY].string_value().expect("text").to_owned();
        let due = attributes.get(DUE).map(|due| due.string_value().expect("text").to_owned());
        (entry.delay_seconds, told, due)
    };
    assert_eq!(entry(0, NOW), (None, "0".into(), None));
    assert_eq!(entry(900, NOW), (Some(900), "900".into(), None));
    let later = NOW + Duration::from_nanos(5_000_001);
    assert_eq!(entry(901, later), (Some(900), "901".into(), Some("901006".into())));
    let message = Message::new("a", "b").with_delay(Duration::from_millis(1_001));
    assert_eq!(standard().encode(&message, 1).entry("1", NOW).delay_seconds, Some(2));
}

#[test]
fn a_message_that_is_not_due_is_sent_on_as_it_is() {
    let message = Message::new("a", vec![0, 255]).with_delay(Duration::from_secs(2_000));
    let first = delivered(&standard().encode(&message, 3), "2");
    let due = Codec::due_of(&first).expect("delayed");
    assert_eq!(due, NOW + Duration::from_secs(2_000));
    for (elapsed, seconds) in [(900, Some(900)), (1_500, Some(500)), (2_000, None), (9_999, None)] {
        let hop = Codec::hop(first.clone(), due);
        assert!(hop.size() > 0 && hop.group().is_none());
        let entry = hop.entry("1", NOW + Duration::from_secs(elapsed));
        assert_eq!(
            (entry.message_attributes, entry.delay_seconds),
            (first.message_attributes.clone(), seconds)
        );
        assert_eq!(Some(entry.message_body), first.body);
    }
    assert_eq!(
        Codec::hop(first.clone(), due).entry("1", due - Duration::from_millis(1)).delay_seconds,
        Some(1)
    );
    let Decoded { message: job, attempt, .. } = standard().decode(first);
    assert_same(&job, &message);
    assert_eq!(attempt, 4);
}

#[test]
fn a_due_time_of_others_is_read_with_care() {
    let due = |text: &str| Codec::due_of(&received("a", [with(DUE, number(text))]));
    assert_eq!(due("1500"), Some(NOW + Duration::from_millis(1_500)));
    assert!(due("18446744073709551615").is_none_or(|due| due > SystemTime::now()));
    assert_eq!((due("soon"), due("-1"), due("18446744073709551616")), (None, None, None));
}

#[test]
fn attempts_add_what_the_service_counts() {
    let attempt = |written, receives: &str| {
        standard()
            .decode(delivered(&standard().encode(&Message::new("a", ""), written), receives))
            .attempt
    };
    assert_eq!((attempt(1, "1"), attempt(2, "1"), attempt(2, "3")), (1, 2, 4));
    assert_eq!((attempt(1, "0"), attempt(1, "-1"), attempt(1, "many")), (1, 1, 1));
    assert_eq!(attempt(u32::MAX, "4294967295"), u32::MAX);
    let forged = Message::new("a", "").with_header("jobs-attempt", "7").with_header("b", "c");
    let decoded = standard().decode(delivered(&standard().encode(&forged, 1), "1"));
    assert_eq!(decoded.attempt, 1);
    assert_eq!(entries(decoded.message.headers()), [("b", "c")]);
}

#[test]
fn groups_and_deduplication_ids_are_such_that_the_service_takes_them() {
    let order = |codec: &Codec, message: &Message, attempt| {
        let entry = codec.encode(message, attempt).entry("1", NOW);
        (entry.message_group_id.expect("FIFO"), entry.message_deduplication_id.expect("FIFO"))
    };
    let message = Message::new("a", "").with_id("id-1");
    assert_eq!(order(&fifo(None), &message, 1), ("id-1".into(), "id-1".into()));
    assert_eq!(order(&fifo(Some("g")), &message, 2), ("g".into(), "id-1#2".into()));
    let keyed = message.clone().with_ordering_key("k");
    assert_eq!(order(&fifo(Some("g")), &keyed, 1), ("k".into(), "id-1".into()));
    let long = "x".repeat(255);
    for odd in ["a b", "ключ", "\u{ffff}", "jobs-hash-0", &long] {
        let message = Message::new("a", "").with_id(odd).with_ordering_key(odd);
        let (group, deduplication) = order(&fifo(None), &message, u32::MAX);
        assert!(is_token(&group) && is_token(&deduplication), "{odd}: {deduplication}");
        assert!(
            group.starts_with(HASHED) && group.len() == 42 && deduplication.starts_with(&group)
        );
    }
    let of = |id: &str, attempt| deduplication(id, attempt);
    assert_ne!(of("a#2", 1), of("a", 2), "an id must not look like a copy of another");
    assert!(is_token(&of(&"x".repeat(117), u32::MAX)) && is_token(&of(&"x".repeat(118), u32::MAX)));
    // Source: the reference vectors of FNV.
    assert_eq!(hashed(""), "jobs-hash-6c62272e07bb014262b821756295c58d");
    assert_eq!(hashed("a"), "jobs-hash-d228cb696f1a8caf78912b704e4a8964");
    assert_eq!(standard().encode(&message, 1).group(), None);
    assert_eq!(fifo(None).encode(&keyed, 1).group(), Some("k"));
    assert_eq!(standard().for_queue(true).encode(&message, 1).group(), Some("id-1"));
    assert_eq!(fifo(Some("g")).for_queue(false).encode(&keyed, 1).group(), None);
}

#[test]
fn a_job_stays_in_its_group() {
    let grouped = |codec: &Codec, message: Received| {
        let Decoded { message, attempt, group } = codec.decode(message);
        let copy = codec.encode(&message, attempt + 1);
        assert_eq!(copy.group(), group.as_deref());
        message.ordering_key().map(str::to_owned)
    };
    let ours = Message::new("a", "");
    let keyed = ours.clone().with_ordering_key("ключ");
    for codec in [fifo(None), fifo(Some("g"))] {
        assert_eq!(grouped(&codec, delivered(&codec.encode(&ours, 1), "1")), None);
        let key = grouped(&codec, delivered(&codec.encode(&keyed, 1), "1"));
        assert_eq!(key.as_deref(), Some("ключ"));
        let mut foreign = received("a", []);
        let group = (MessageSystemAttributeName::MessageGroupId, "theirs".to_owned());
        foreign.attributes = Some([group].into());
        assert_eq!(grouped(&codec, foreign).as_deref(), Some("theirs"));
    }
}

#[test]
fn ids_and_names_that_are_no_text_for_the_service_are_kept() {
    let message = Message::new("a\u{ffff}", "").with_id("\u{fffe}b").with_header("\u{ffff}", "\0");
    let encoded = standard().encode(&message, 1);
    let attributes = encoded.entry("1", NOW).message_attributes.expect("there are");
    assert_eq!(attributes[wire::ID].string_value(), Some("\u{fffd}b"));
    assert_eq!(attributes[wire::NAME].string_value(), Some("a\u{fffd}"));
    assert_same(&standard().decode(delivered(&encoded, "1")).message, &message);
}

#[test]
fn sizes_are_counted_as_the_service_counts() {
    let message = Message::new("name", "body").with_id("id").with_priority(7);
    let names = "rr_id rr_job rr_delay rr_headers rr_priority rr_auto_ack";
    let types = "String String String Binary Number String";
    let values = "id name 0 {} 7 false";
    let expected: usize =
        [names, types, values, "body"].iter().flat_map(|line| line.split(' ')).map(str::len).sum();
    assert_eq!(standard().encode(&message, 1).size(), expected);
    let delayed = standard().encode(&message.with_delay(Duration::from_secs(10_000)), 1);
    let before = delayed.size();
    let entry = delayed.entry("1", SystemTime::now());
    let due = entry.message_attributes.expect("there are")[DUE].clone();
    let written = DUE.len() + "Number".len() + due.string_value().expect("text").len();
    assert!(before >= expected + written, "room for its due time");
}

// What others write.

#[test]
fn a_message_without_attributes_gets_defaults() {
    let empty = Received::builder().build();
    let Decoded { message, attempt, group } = standard().decode(empty);
    assert_eq!((message.name(), attempt, group), (wire::FOREIGN_NAME, 1, None));
    assert_eq!((message.priority(), message.auto_ack()), (None, false));
    assert_eq!((message.id().as_str().len(), message.payload().len()), (36, 0));
    let foreign = standard().decode(received("{\"a\":1}", [])).message;
    assert_eq!(foreign.id().as_str(), "message-id", "the same at each delivery");
    assert_eq!(&foreign.payload()[..], b"{\"a\":1}");
    assert!(foreign.headers().is_empty());
}

#[test]
fn attributes_of_others_are_headers() {
    let custom = MessageAttributeValue::builder().data_type("String.mine").string_value("d");
    let message = received(
        "a",
        [
            with("b", number("1.50")),
            with("a", text("x")),
            with("c", binary(b"\xffz".to_vec())),
            with("d", built(custom)),
            with("empty", built(MessageAttributeValue::builder().data_type("String"))),
            with("bad\n", text("x")),
            with("SenderId", text("x")),
            with(wire::PIPELINE, text("x")),
        ],
    );
    let expected = [("a", "x"), ("b", "1.50"), ("c", "\u{fffd}z"), ("d", "d")];
    assert_eq!(entries(standard().decode(message).message.headers()), expected);
    let json = br#"{"both":["ours"],"n":[1,-2,1.5,null,true,["x"]],"m":{"deep":1},"s":"t"}"#;
    let message = received(
        "a",
        [
            with(wire::HEADERS, text(String::from_utf8(json.to_vec()).expect("text"))),
            with("both", text("theirs")),
            with("traceparent", text("00-1-2-01")),
        ],
    );
    let expected = [
        ("both", "ours"),
        ("n", "1"),
        ("n", "-2"),
        ("n", "1.5"),
        ("n", "true"),
        ("n", "x"),
        ("s", "t"),
        ("traceparent", "00-1-2-01"),
    ];
    assert_eq!(entries(standard().decode(message).message.headers()), expected);
}

#[test]
fn numbers_and_text_are_taken_in_any_type() {
    let message = received(
        "aGk=",
        [
            with(wire::ID, number(42)),
            with(wire::NAME, binary(b"job".to_vec())),
            with(wire::PRIORITY, text(" -7 ")),
            with(wire::AUTO_ACK, text("T")),
            with(BODY, binary(b"base64".to_vec())),
        ],
    );
    let message = standard().decode(message).message;
    assert_eq!((message.id().as_str(), message.name()), ("42", "job"));
    assert_eq!((message.priority(), message.auto_ack()), (Some(-7), true));
    assert_eq!(&message.payload()[..], b"hi");
    for mark in [BODY, "other"] {
        let message = received("no base64!", [with(mark, text(IN_BASE64))]);
        assert_eq!(&standard().decode(message).message.payload()[..], b"no base64!");
    }
}

#[test]
fn texts_that_no_broker_carries_are_replaced() {
    let long = "x".repeat(256);
    for bad in ["", "a\nb", "\u{85}", &long] {
        let json = json!({"good": ["1"], bad: ["2"], "jobs-id": [bad], "jobs-ordering-key": [bad]});
        let message = received(
            "a",
            [
                with(wire::ID, text(bad)),
                with(wire::NAME, text(bad)),
                with(wire::HEADERS, binary(json.to_string().into_bytes())),
            ],
        );
        let message = fifo(None).decode(message).message;
        assert_eq!((message.id().as_str(), message.name()), ("message-id", wire::FOREIGN_NAME));
        assert_eq!(
            (entries(message.headers()), message.ordering_key()),
            (vec![("good", "1")], None)
        );
    }
}

// Any message, any attributes.

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z]{1,8}", r"\PC{1,63}", "[a-zA-Z_.-]{255}", "[a\u{fffe}\u{ffff}#]{1,5}"]
}

fn any_header_name() -> impl Strategy<Value = String> {
    prop_oneof![any_text(), "[ab]", Just("rr_own".into())]
}

fn any_message() -> impl Strategy<Value = Message> {
    let headers = prop::collection::vec((any_header_name(), any::<String>()), 0..6);
    let payload = prop_oneof![any::<Vec<u8>>(), any::<String>().prop_map(String::into_bytes)];
    let delay = prop_oneof![Just(0), 0..2_000_000_u64, any::<u64>()];
    let rest = (any::<Option<i64>>(), delay, any::<bool>(), payload, prop::option::of(any_text()));
    (any_text(), any_text(), headers, rest).prop_map(
        |(id, name, headers, (priority, delay, auto_ack, payload, key))| {
            let message = Message::new(name, payload)
                .with_id(id)
                .with_headers(headers.into_iter().collect())
                .with_priority(priority.unwrap_or(0))
                .with_delay(Duration::from_millis(delay))
                .with_auto_ack(auto_ack);
            match key {
                Some(key) => message.with_ordering_key(key),
                None => message,
            }
        },
    )
}

fn any_attribute() -> impl Strategy<Value = (String, MessageAttributeValue)> {
    let ours = [
        wire::ID,
        wire::NAME,
        wire::HEADERS,
        wire::PIPELINE,
        wire::DELAY,
        wire::PRIORITY,
        wire::AUTO_ACK,
        wire::ATTEMPT,
        BODY,
        DUE,
        "SenderId",
    ];
    let name = prop_oneof![
        3 => prop::sample::select(ours.to_vec()).prop_map(str::to_owned),
        1 => any::<String>(),
        1 => "[a-z]{250,260}",
    ];
    let headers = json!({"a": ["b"], "jobs-attempt": ["3"], "\n": [1], "jobs-id": ["x"],
        "jobs-ordering-key": ["k\u{ffff}"], "jobs-name": [""]});
    let value = prop_oneof![
        any::<String>().prop_map(text),
        any::<i64>().prop_map(number),
        any::<Vec<u8>>().prop_map(binary),
        Just(binary(headers.to_string().into_bytes())),
        prop::sample::select(vec![IN_BASE64, EMPTY, "true"]).prop_map(text),
        Just(built(MessageAttributeValue::builder().data_type(""))),
    ];
    (name, value)
}

/// What is delivered can be pushed and requeued, and is the same job then.
fn assert_sound(codec: &Codec, message: Received) {
    let Decoded { message, attempt, group } = codec.decode(message);
    assert!(attempt >= 1);
    let mut capabilities = Capabilities::default();
    capabilities.ordering_key = jobs_core::Support::Native;
    assert!(capabilities.admit(&message).is_ok(), "{message:?}");
    let again = codec.encode(&message, attempt);
    if codec.fifo && group.as_deref().is_some_and(is_token) && message.ordering_key().is_none() {
        assert_eq!(again.group(), group.as_deref());
    }
    let again = codec.decode(delivered(&again, "1"));
    assert_same(&again.message, &message);
    assert_eq!((again.attempt, again.message.ordering_key()), (attempt, message.ordering_key()));
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        message in any_message(),
        attempt in 1..=u32::MAX,
        group in prop::option::of("[a-z]{1,4}"),
        in_order in any::<bool>(),
    ) {
        let codec = Codec { priority: 3, fifo: in_order, group };
        let message = if in_order { message } else {
            // Refused by a standard queue.
            Message::new(message.name().to_owned(), message.payload().clone())
                .with_id(message.id().as_str())
                .with_headers(message.headers().clone())
                .with_priority(message.priority().unwrap_or(0))
                .with_delay(message.delay())
                .with_auto_ack(message.auto_ack())
        };
        let encoded = codec.encode(&message, attempt);
        let size = encoded.size();
        let entry = encoded.entry("1", NOW);
        let attributes = entry.message_attributes.expect("there are");
        prop_assert!(attributes.len() <= 10, "the service takes no more");
        prop_assert!(!entry.message_body.is_empty() && is_legal(&entry.message_body));
        prop_assert!(entry.message_body.len() < size);
        for value in attributes.values() {
            prop_assert!(read_bytes(value).is_some_and(|bytes| !bytes.is_empty()));
            prop_assert!(value.string_value().is_none_or(is_legal));
        }
        prop_assert!(entry.delay_seconds.is_none_or(|delay| (1..=900).contains(&delay)));
        let decoded = codec.decode(delivered(&encoded, "1"));
        assert_same(&decoded.message, &message);
        prop_assert_eq!(decoded.message.priority(), Some(message.priority().unwrap_or(3)));
        prop_assert_eq!(decoded.attempt, attempt);
        prop_assert_eq!(decoded.message.ordering_key(), message.ordering_key());
        prop_assert_eq!(decoded.message.delay(), Duration::ZERO);
    }

    #[test]
    fn any_attributes_are_a_job(
        attributes in prop::collection::vec(any_attribute(), 0..10),
        body in prop::option::of(any::<String>()),
        id in prop::option::of(any::<String>()),
        system in prop::collection::vec((0..3_usize, any::<String>()), 0..4),
        in_order in any::<bool>(),
    ) {
        use MessageSystemAttributeName as Name;
        let names =
            [Name::ApproximateReceiveCount, Name::MessageGroupId, Name::SentTimestamp];
        let message = Received::builder()
            .set_body(body)
            .set_message_id(id)
            .set_message_attributes(Some(attributes.into_iter().collect()))
            .set_attributes(Some(system.into_iter().map(|(i, v)| (names[i].clone(), v)).collect()))
            .build();
        let codec = Codec { priority: 10, fifo: in_order, group: None };
        if let Some(due) = Codec::due_of(&message) {
            let entry = Codec::hop(message.clone(), due).entry("1", NOW);
            prop_assert!(entry.delay_seconds.is_none_or(|delay| (1..=900).contains(&delay)));
        }
        assert_sound(&codec, message);
    }
}
