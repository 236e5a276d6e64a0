//! Bodies of jobs: our envelope, RoadRunner's gob, and whatever others put.
//!
//! ```text
//! jobs/1 {"i":"0199…","n":"email.send","p":10,"t":30}⏎
//! ann@example.org
//! ```
//!
//! The client makes a `String` of a body unchecked, so a payload that is no UTF-8 is written in
//! base64. An envelope has no lengths: a header is JSON on one line, the payload is the rest.

mod gob;

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use jobs_core::{Bytes, Headers, JobId, Message, wire};
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

/// What an envelope begins with. A later version that we cannot read has another number.
const MARK: &[u8] = b"jobs/1 ";

/// What else the envelope says besides the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Counted from 1.
    pub(crate) attempt: u32,
    /// The priority at the server.
    pub(crate) priority: u32,
    /// In seconds.
    pub(crate) time_to_run: u32,
}

/// What a body means.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// One that can be pushed again: its texts are valid, and it has no delay.
    pub(crate) message: Message,
    /// None if the body does not tell: it is not of this suite.
    pub(crate) terms: Option<Terms>,
}

/// The first line. Values that are the usual ones are left out.
#[derive(Serialize, Deserialize)]
struct Header<'a> {
    #[serde(borrow, rename = "i")]
    id: Cow<'a, str>,
    #[serde(borrow, rename = "n")]
    name: Cow<'a, str>,
    /// The message's priority, else the pipeline's that it was pushed to.
    #[serde(rename = "p")]
    priority: i64,
    #[serde(rename = "t")]
    time_to_run: u32,
    /// The priority at the server, where that does not follow from the other.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    server_priority: Option<u32>,
    #[serde(rename = "a", default = "first", skip_serializing_if = "is_first")]
    attempt: u32,
    #[serde(rename = "x", default, skip_serializing_if = "is_false")]
    auto_ack: bool,
    #[serde(rename = "b", default, skip_serializing_if = "is_false")]
    base64: bool,
    #[serde(rename = "h", default, skip_serializing_if = "Entries::is_empty")]
    headers: Entries,
}

fn first() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_first(attempt: &u32) -> bool {
    *attempt <= 1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A list of pairs, because names may repeat and their order counts.
#[derive(Default)]
struct Entries(Headers);

impl Entries {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Entries {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(None)?;
        for pair in self.0.iter().filter(|(name, _)| *name != wire::ATTEMPT) {
            list.serialize_element(&pair)?;
        }
        list.end()
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_seq(EntriesVisitor).map(Self)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Headers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("headers as pairs of texts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Headers, A::Error> {
        let mut headers = Headers::new();
        while let Some((name, value)) = list.next_element::<(String, String)>()? {
            if !wire::is_valid(&name) {
                return Err(A::Error::custom("no name of a header"));
            }
            headers.append(name, value);
        }
        Ok(headers)
    }
}

/// The priority at the server, where 0 is the most urgent: those below and beyond its range share
/// the ends.
pub(crate) fn server_priority(priority: i64) -> u32 {
    u32::try_from(priority.max(0)).unwrap_or(u32::MAX)
}

/// The body of a message. `priority` is the pipeline's, for a message without one of its own.
pub(crate) fn encode(message: &Message, priority: i64, terms: Terms) -> Vec<u8> {
    let priority = message.priority().unwrap_or(priority);
    let payload = message.payload();
    let base64 = std::str::from_utf8(payload).is_err();
    let header = Header {
        id: Cow::Borrowed(message.id().as_str()),
        name: Cow::Borrowed(message.name()),
        priority,
        time_to_run: terms.time_to_run,
        server_priority: Some(terms.priority).filter(|own| *own != server_priority(priority)),
        attempt: terms.attempt,
        auto_ack: message.auto_ack(),
        base64,
        headers: Entries(message.headers().clone()),
    };
    let mut body =
        Vec::with_capacity(128 + payload.len() + usize::from(base64) * payload.len() / 2);
    body.extend_from_slice(MARK);
    serde_json::to_writer(&mut body, &header).expect("text and numbers into memory");
    body.push(b'\n');
    if base64 {
        body.extend_from_slice(BASE64.encode(payload).as_bytes());
    } else {
        body.extend_from_slice(payload);
    }
    body
}

/// Never fails: what is of neither this suite nor RoadRunner is delivered as it is.
pub(crate) fn decode(body: &Bytes) -> Decoded {
    if let Some(decoded) = envelope(body) {
        return decoded;
    }
    let message = gob::read(body).map_or_else(|| foreign(body), from_roadrunner);
    Decoded { message, terms: None }
}

fn envelope(body: &Bytes) -> Option<Decoded> {
    let text = body.strip_prefix(MARK)?;
    let end = text.iter().position(|byte| *byte == b'\n')?;
    let header: Header<'_> = serde_json::from_slice(&text[..end]).ok()?;
    if !wire::is_valid(&header.id) || !wire::is_valid(&header.name) {
        return None;
    }
    let payload = body.slice(MARK.len() + end + 1..);
    let payload = match header.base64 {
        true => Bytes::from(BASE64.decode(&payload).ok()?),
        false => payload,
    };
    let mut message = Message::known(&*header.id, header.name.into_owned(), payload)
        .with_priority(header.priority)
        .with_auto_ack(header.auto_ack);
    if !header.headers.is_empty() {
        message = message.with_headers(header.headers.0);
    }
    let priority = header.server_priority.unwrap_or_else(|| server_priority(header.priority));
    let attempt = header.attempt.max(1);
    let terms = Terms { attempt, priority, time_to_run: header.time_to_run };
    Some(Decoded { message, terms: Some(terms) })
}

fn foreign(body: &Bytes) -> Message {
    Message::known(JobId::random(), wire::FOREIGN_NAME, body.clone())
}

/// What cannot be pushed again counts as missing.
fn from_roadrunner(item: gob::Item) -> Message {
    let id = wire::is_valid(&item.id).then(|| JobId::from(item.id));
    let name = match wire::is_valid(&item.name) {
        true => Cow::Owned(item.name),
        false => Cow::Borrowed(wire::FOREIGN_NAME),
    };
    let headers = item.headers.into_iter().filter(|(name, _)| wire::is_valid(name));
    Message::known(id.unwrap_or_else(JobId::random), name, item.payload)
        .with_headers(headers.collect())
        .with_priority(item.priority)
        .with_auto_ack(item.auto_ack)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const TERMS: Terms = Terms { attempt: 1, priority: 10, time_to_run: 30 };

    fn body(message: &Message, terms: Terms) -> Bytes {
        Bytes::from(encode(message, 10, terms))
    }

    fn same(found: &Message, pushed: &Message) -> bool {
        found.id() == pushed.id()
            && found.name() == pushed.name()
            && found.payload() == pushed.payload()
            && found.headers() == pushed.headers()
            && found.auto_ack() == pushed.auto_ack()
    }

    #[test]
    fn an_envelope_is_short_and_readable() {
        let message = Message::known("id-1", "email.send", "ann@example.org");
        let expected =
            "jobs/1 {\"i\":\"id-1\",\"n\":\"email.send\",\"p\":10,\"t\":30}\nann@example.org";
        assert_eq!(body(&message, TERMS), expected);
        let binary = message.with_payload(vec![0xff, 0]).with_header("a", "b").with_auto_ack(true);
        let terms = Terms { attempt: 3, priority: 0, time_to_run: 5 };
        let expected = "jobs/1 {\"i\":\"id-1\",\"n\":\"email.send\",\"p\":10,\"t\":5,\"s\":0,\"a\":3,\
                        \"x\":true,\"b\":true,\"h\":[[\"a\",\"b\"]]}\n/wA";
        assert_eq!(body(&binary, terms), expected);
    }

    #[test]
    fn priorities_outside_the_servers_share_its_ends() {
        let mapped = [i64::MIN, -1, 0, 10, 4_294_967_295, 4_294_967_296, i64::MAX];
        assert_eq!(mapped.map(server_priority), [0, 0, 0, 10, u32::MAX, u32::MAX, u32::MAX]);
    }

    #[test]
    fn what_is_not_quite_an_envelope_is_foreign() {
        for text in [
            "",
            "jobs/1",
            "jobs/1 {}\n",
            "jobs/2 {\"i\":\"a\",\"n\":\"b\",\"p\":1,\"t\":5}\nx",
            "jobs/1 {\"i\":\"a\",\"n\":\"b\",\"p\":1,\"t\":5}",
            "jobs/1 {\"i\":\"\",\"n\":\"b\",\"p\":1,\"t\":5}\nx",
            "jobs/1 {\"i\":\"a\",\"n\":\"b\",\"p\":1,\"t\":5,\"b\":true}\n%",
            "jobs/1 {\"i\":\"a\",\"n\":\"b\",\"p\":1,\"t\":5,\"h\":[[\"\\n\",\"\"]]}\nx",
            "{\"json\": true}",
        ] {
            let decoded = decode(&Bytes::from_static(text.as_bytes()));
            assert!(decoded.terms.is_none(), "{text}");
            assert_eq!(decoded.message.name(), wire::FOREIGN_NAME, "{text}");
            assert_eq!(decoded.message.payload(), text, "{text}");
        }
    }

    fn hex(text: &str) -> Bytes {
        let digits = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
        digits.map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect()
    }

    /// Bodies that RoadRunner wrote.
    #[test]
    fn roadrunners_jobs_are_read() {
        let fixture: Value =
            serde_json::from_str(include_str!("../tests/fixtures/roadrunner.json")).expect("JSON");
        let records = fixture["records"].as_array().expect("records");
        assert_eq!(records.len(), 5);
        for record in records {
            let pushed = &record["pushed"];
            let body = hex(record["stored"]["body_hex"].as_str().expect("text"));
            let Decoded { message, terms } = decode(&body);
            assert!(terms.is_none(), "the server's count is asked for");
            assert_eq!(message.id().as_str(), pushed["id"]);
            assert_eq!(message.name(), pushed["name"]);
            assert_eq!(message.priority(), pushed["priority"].as_i64());
            assert_eq!(Value::from(message.auto_ack()), pushed["auto_ack"]);
            assert_eq!(message.payload(), &hex(pushed["payload_hex"].as_str().expect("text")));
            // Version 5 writes none.
            assert!(message.headers().is_empty() && message.delay().is_zero());
        }
    }

    fn text() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9 äß☃\"\\\\]{1,20}"
    }

    fn message() -> impl Strategy<Value = Message> {
        let payload = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            ".{0,300}".prop_map(String::into_bytes)
        ];
        let headers = proptest::collection::vec((text(), ".{0,20}"), 0..4);
        (text(), text(), payload, headers, any::<i64>(), any::<bool>()).prop_map(
            |(id, name, payload, headers, priority, auto_ack)| {
                Message::known(id, name, payload)
                    .with_headers(headers.into_iter().collect())
                    .with_priority(priority)
                    .with_auto_ack(auto_ack)
            },
        )
    }

    proptest! {
        #[test]
        fn a_message_comes_back_as_it_was(
            message in message(),
            attempt in 1..u32::MAX,
            priority in any::<u32>(),
            time_to_run in 5..u32::MAX,
        ) {
            let terms = Terms { attempt, priority, time_to_run };
            let body = body(&message, terms);
            prop_assert!(std::str::from_utf8(&body).is_ok(), "the client demands it");
            let decoded = decode(&body);
            prop_assert!(same(&decoded.message, &message));
            prop_assert_eq!(decoded.message.priority(), message.priority().or(Some(10)));
            prop_assert_eq!(decoded.terms, Some(terms));
        }

        #[test]
        fn any_bytes_make_a_message(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let body = Bytes::from(bytes);
            let decoded = decode(&body);
            prop_assert!(jobs_core::Capabilities::default().admit(&decoded.message).is_ok());
        }

        #[test]
        fn a_broken_envelope_makes_a_message(
            message in message(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut body = body(&message, TERMS).to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            let decoded = decode(&Bytes::from(body));
            prop_assert!(jobs_core::Capabilities::default().admit(&decoded.message).is_ok());
        }
    }
}
