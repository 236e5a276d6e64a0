//! Messages as they travel: RoadRunner's attributes, and whatever others send.
//!
//! Bodies and attributes of type `String` are text without most control characters; what is not is
//! written in another way that an attribute of ours tells. `rr_headers` is bytes and takes all.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{
    Message as Received, MessageAttributeValue, MessageSystemAttributeName,
    SendMessageBatchRequestEntry,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use jobs_core::{Bytes, Headers, JobId, Message, wire};

use crate::config::{LONGEST_NATIVE_DELAY, SqsConfig};

/// How the body is written, where it is not the payload: [`IN_BASE64`] or [`EMPTY`].
const BODY: &str = "jobs-body";
const IN_BASE64: &str = "base64";
const EMPTY: &str = "empty";

/// When a job is due that is delayed for longer than the service can, in milliseconds since 1970.
const DUE: &str = "jobs-due";

/// The true id and name, in `rr_headers`, where they are no legal text.
const TRUE_ID: &str = "jobs-id";
const TRUE_NAME: &str = "jobs-name";

/// Headers that RoadRunner puts into `rr_headers` of a copy: the service's word on the original.
const OF_SERVICE: [&str; 9] = [
    "AWSTraceHeader",
    "ApproximateFirstReceiveTimestamp",
    "ApproximateReceiveCount",
    "DeadLetterQueueSourceArn",
    "MessageDeduplicationId",
    "MessageGroupId",
    "SenderId",
    "SentTimestamp",
    "SequenceNumber",
];

/// How a pipeline writes and reads messages.
#[derive(Clone, Debug)]
pub(crate) struct Codec {
    /// Of messages that have none.
    priority: i64,
    fifo: bool,
    /// Of messages without an ordering key.
    group: Option<String>,
}

/// What is sent for a message: each attempt makes an entry of it.
#[derive(Debug)]
pub(crate) struct Encoded {
    body: String,
    attributes: Vec<(Cow<'static, str>, Attribute)>,
    delay: Delay,
    order: Option<Order>,
}

#[derive(Debug)]
enum Attribute {
    Text(Cow<'static, str>),
    Number(String),
    Binary(Vec<u8>),
    /// As it came.
    Received(MessageAttributeValue),
}

#[derive(Clone, Copy, Debug)]
enum Delay {
    /// From when it is sent.
    For(Duration),
    /// One that was sent before, and says so.
    Until(SystemTime),
}

/// What a FIFO queue asks for.
#[derive(Clone, Debug)]
struct Order {
    group: String,
    deduplication: String,
}

/// What a delivery means.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// One that can be pushed again: its texts are valid, and it has no delay.
    pub(crate) message: Message,
    /// Counted from 1.
    pub(crate) attempt: u32,
    /// The group in a FIFO queue.
    pub(crate) group: Option<String>,
}

impl Encoded {
    /// Bytes as the service counts them: the body, and names, types and values of the attributes.
    pub(crate) fn size(&self) -> usize {
        let due = match self.delay {
            Delay::For(delay) if delay > LONGEST_NATIVE_DELAY => {
                DUE.len() + "Number".len() + u64::MAX.to_string().len()
            }
            _ => 0,
        };
        let attribute = |(name, value): &(Cow<'static, str>, Attribute)| name.len() + value.size();
        self.body.len() + due + self.attributes.iter().map(attribute).sum::<usize>()
    }

    /// The group in a FIFO queue.
    pub(crate) fn group(&self) -> Option<&str> {
        self.order.as_ref().map(|order| order.group.as_str())
    }

    /// The entry of a batch that is sent `now`.
    pub(crate) fn entry(
        &self,
        id: impl Into<String>,
        now: SystemTime,
    ) -> SendMessageBatchRequestEntry {
        let attributes = self.attributes.iter();
        let mut attributes: HashMap<String, MessageAttributeValue> =
            attributes.map(|(name, value)| (name.to_string(), value.build())).collect();
        let delay = match self.delay {
            Delay::For(delay) => {
                if delay > LONGEST_NATIVE_DELAY {
                    let due = now.checked_add(delay).map_or(u64::MAX, milliseconds);
                    let due = Attribute::Number(due.to_string());
                    attributes.insert(DUE.to_owned(), due.build());
                }
                delay
            }
            Delay::Until(due) => due.duration_since(now).unwrap_or_default(),
        };
        let seconds = i32::try_from(whole_seconds(delay.min(LONGEST_NATIVE_DELAY)));
        let order = self.order.clone();
        let (group, deduplication) = order.map(|order| (order.group, order.deduplication)).unzip();
        SendMessageBatchRequestEntry::builder()
            .id(id)
            .message_body(self.body.as_str())
            .set_message_attributes(Some(attributes).filter(|all| !all.is_empty()))
            .set_delay_seconds(seconds.ok().filter(|seconds| *seconds > 0))
            .set_message_group_id(group)
            .set_message_deduplication_id(deduplication)
            .build()
            .expect("it has an id and a body")
    }
}

impl Attribute {
    fn kind(&self) -> &str {
        match self {
            Self::Text(_) => "String",
            Self::Number(_) => "Number",
            Self::Binary(_) => "Binary",
            Self::Received(value) => value.data_type(),
        }
    }

    /// Bytes of its type and value.
    fn size(&self) -> usize {
        let value = match self {
            Self::Text(text) => text.len(),
            Self::Number(digits) => digits.len(),
            Self::Binary(bytes) => bytes.len(),
            Self::Received(value) => read_bytes(value).map_or(0, <[u8]>::len),
        };
        self.kind().len() + value
    }

    fn build(&self) -> MessageAttributeValue {
        let value = MessageAttributeValue::builder().data_type(self.kind());
        let value = match self {
            Self::Text(text) => value.string_value(text.as_ref()),
            Self::Number(digits) => value.string_value(digits),
            Self::Binary(bytes) => value.binary_value(Blob::new(bytes.as_slice())),
            Self::Received(value) => return value.clone(),
        };
        value.build().expect("it has a type")
    }
}

impl Codec {
    /// `priority` is the pipeline's.
    pub(crate) fn new(config: &SqsConfig, priority: i64) -> Self {
        Self { priority, fifo: config.fifo, group: config.message_group_id.clone() }
    }

    /// For a queue beside the pipeline's own.
    pub(crate) fn for_queue(&self, fifo: bool) -> Self {
        Self { fifo, ..self.clone() }
    }

    /// What is sent for a message, for its delivery as `attempt`.
    pub(crate) fn encode(&self, message: &Message, attempt: u32) -> Encoded {
        let mut ours = Vec::new();
        let id = legal(message.id().as_str(), TRUE_ID, &mut ours);
        let name = legal(message.name(), TRUE_NAME, &mut ours);
        if attempt > 1 {
            ours.push((wire::ATTEMPT, attempt.to_string()));
        }
        if let Some(key) = message.ordering_key() {
            ours.push((wire::ORDERING_KEY, key.to_owned()));
        }
        let delay = message.delay();
        let priority = message.priority().unwrap_or(self.priority);
        let headers = message.headers().iter().filter(|(name, _)| !is_reserved(name));
        // What is ours comes last.
        let ours = ours.iter().map(|(name, value)| (*name, value.as_str()));
        let headers = wire::write_headers(headers.chain(ours));
        let delayed = match delay {
            Duration::ZERO => Cow::Borrowed("0"),
            delay => Cow::Owned(whole_seconds(delay).to_string()),
        };
        let auto_ack = if message.auto_ack() { "true" } else { "false" };
        let (body, mark) = write_body(message.payload());
        let attributes = [
            (wire::ID, Attribute::Text(id.into_owned().into())),
            (wire::NAME, Attribute::Text(name.into_owned().into())),
            (wire::DELAY, Attribute::Text(delayed)),
            (wire::HEADERS, Attribute::Binary(headers)),
            (wire::PRIORITY, Attribute::Number(priority.to_string())),
            (wire::AUTO_ACK, Attribute::Text(auto_ack.into())),
        ];
        let mark = mark.map(|mark| (BODY, Attribute::Text(mark.into())));
        let attributes = attributes.into_iter().chain(mark);
        Encoded {
            body,
            attributes: attributes.map(|(name, value)| (name.into(), value)).collect(),
            delay: Delay::For(delay),
            order: self.fifo.then(|| Order {
                group: self.group_of(message),
                deduplication: deduplication(message.id().as_str(), attempt),
            }),
        }
    }

    fn group_of(&self, message: &Message) -> String {
        match (message.ordering_key(), &self.group) {
            (Some(key), _) => token(key),
            (None, Some(group)) => group.clone(),
            (None, None) => token(message.id().as_str()),
        }
    }

    /// When a message is due that is on its way through a long delay; none: it is a job already.
    pub(crate) fn due_of(message: &Received) -> Option<SystemTime> {
        let due = read_text(message.message_attributes()?.get(DUE)?)?;
        UNIX_EPOCH.checked_add(Duration::from_millis(due.trim().parse().ok()?))
    }

    /// A message that is not due, to be sent on as it is.
    pub(crate) fn hop(message: Received, due: SystemTime) -> Encoded {
        let attributes = message.message_attributes.unwrap_or_default();
        let attributes = attributes
            .into_iter()
            .map(|(name, value)| (name.into(), Attribute::Received(value)))
            .collect();
        Encoded {
            body: message.body.unwrap_or_default(),
            attributes,
            delay: Delay::Until(due),
            order: None,
        }
    }

    /// Never fails: what is missing or makes no sense gets a default, so that every job can run,
    /// and can run again.
    pub(crate) fn decode(&self, message: Received) -> Decoded {
        let mut found = Found::default();
        for (name, value) in message.message_attributes.unwrap_or_default() {
            found.add(name, &value);
        }
        let mut system = message.attributes.unwrap_or_default();
        let receives = system.get(&MessageSystemAttributeName::ApproximateReceiveCount);
        let receives = receives.map_or(1, |count| count.parse::<u32>().unwrap_or(1)).max(1);
        let group = system.remove(&MessageSystemAttributeName::MessageGroupId);

        let header = |name| found.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value);
        let attempt = header(wire::ATTEMPT).and_then(|text| text.parse::<u32>().ok());
        let attempt = attempt.unwrap_or(1).max(1).saturating_add(receives - 1);
        let valid = |text: Option<&String>| text.filter(|text| wire::is_valid(text)).cloned();
        let key = valid(header(wire::ORDERING_KEY));
        let id = valid(header(TRUE_ID)).or_else(|| valid(found.id.as_ref()));
        let id = id.or_else(|| valid(message.message_id.as_ref()));
        let name = valid(header(TRUE_NAME)).or_else(|| valid(found.name.as_ref()));

        let id = id.map_or_else(JobId::random, JobId::from);
        let name = name.map_or(Cow::Borrowed(wire::FOREIGN_NAME), Cow::Owned);
        let body = read_body(message.body.unwrap_or_default(), found.body.as_deref());
        let mut job = Message::known(id, name, body)
            .with_priority(found.priority)
            .with_auto_ack(found.auto_ack);
        let headers = found.headers();
        if !headers.is_empty() {
            job = job.with_headers(headers);
        }
        if self.fifo {
            // A copy of what others sent has to stay in its group.
            let others = || group.clone().filter(|group| *group != self.group_of(&job));
            if let Some(key) = key.or_else(others).filter(|key| wire::is_valid(key)) {
                job = job.with_ordering_key(key);
            }
        }
        Decoded { message: job, attempt, group }
    }
}

/// What the attributes of a message hold.
#[derive(Default)]
struct Found {
    id: Option<String>,
    name: Option<String>,
    body: Option<String>,
    /// What `rr_headers` holds, ours included.
    headers: Vec<(String, String)>,
    others: Vec<(String, String)>,
    priority: i64,
    auto_ack: bool,
}

impl Found {
    fn add(&mut self, name: String, value: &MessageAttributeValue) {
        let number = |text: String| text.trim().parse().ok();
        match name.as_str() {
            wire::ID => self.id = read_text(value),
            wire::NAME => self.name = read_text(value),
            wire::HEADERS => {
                self.headers = read_bytes(value).and_then(wire::read_headers).unwrap_or_default();
            }
            wire::PRIORITY => self.priority = read_text(value).and_then(number).unwrap_or_default(),
            wire::AUTO_ACK => {
                // What Go reads as true.
                let words = ["1", "t", "T", "true", "TRUE", "True"];
                self.auto_ack = read_text(value).is_some_and(|text| words.contains(&text.trim()));
            }
            BODY => self.body = read_text(value),
            _ => self.others.extend(read_text(value).map(|text| (name, text))),
        }
    }

    /// Those of `rr_headers`, then attributes that are neither ours nor shadowed by them.
    fn headers(mut self) -> Headers {
        let own = self.headers.len();
        self.others.sort_unstable();
        for (name, value) in std::mem::take(&mut self.others) {
            if !self.headers[..own].iter().any(|(other, _)| *other == name) {
                self.headers.push((name, value));
            }
        }
        self.headers.retain(|(name, _)| wire::is_valid(name) && !is_reserved(name));
        Headers::from_iter(self.headers)
    }
}

/// True if the service takes it for a group or a deduplication id.
pub(crate) fn is_token(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Begins what stands for a text that is no token.
const HASHED: &str = "jobs-hash-";

/// The text, or what stands for it.
fn token(text: &str) -> String {
    if is_token(text) && !text.starts_with(HASHED) { text.to_owned() } else { hashed(text) }
}

/// FNV-1a of 128 bits: equal wherever it is computed, and different for texts that are.
fn hashed(text: &str) -> String {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let hash = text.bytes().fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
    format!("{HASHED}{hash:032x}")
}

/// The id, and for a copy the attempt too: under the same one it would be taken for a duplicate, and
/// swallowed.
fn deduplication(id: &str, attempt: u32) -> String {
    /// Leaves room for `#` and any attempt.
    const LONGEST: usize = 128 - 11;
    let is_plain = id.len() <= LONGEST && !id.contains('#');
    let id = if is_plain { token(id) } else { hashed(id) };
    if attempt > 1 { format!("{id}#{attempt}") } else { id }
}

/// The body of a message, and how it is written if it is not the payload.
fn write_body(payload: &Bytes) -> (String, Option<&'static str>) {
    match str::from_utf8(payload) {
        // The service takes no empty body.
        Ok("") => (" ".to_owned(), Some(EMPTY)),
        Ok(text) if is_legal(text) => (text.to_owned(), None),
        _ => (BASE64.encode(payload), Some(IN_BASE64)),
    }
}

fn read_body(body: String, mark: Option<&str>) -> Bytes {
    match mark {
        Some(EMPTY) => Bytes::new(),
        Some(IN_BASE64) => BASE64.decode(&body).map_or_else(|_| Bytes::from(body), Bytes::from),
        _ => Bytes::from(body),
    }
}

/// What the service takes in text. Source: the API reference, `SendMessage`.
fn is_legal(text: &str) -> bool {
    let legal = |c: char| match c {
        '\t' | '\n' | '\r' => true,
        c => c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}'),
    };
    // Nearly every text has neither a control character nor one from the end of the first plane.
    let odd = text.bytes().fold(false, |odd, byte| odd | (byte < b' ') | (byte == 0xef));
    !odd || text.chars().all(legal)
}

/// The text as an attribute takes it. If that is another, the true one goes with the headers.
fn legal<'a>(
    text: &'a str,
    header: &'static str,
    headers: &mut Vec<(&'static str, String)>,
) -> Cow<'a, str> {
    if is_legal(text) {
        return Cow::Borrowed(text);
    }
    headers.push((header, text.to_owned()));
    Cow::Owned(
        text.chars()
            .map(|c| if is_legal(c.encode_utf8(&mut [0; 4])) { c } else { '\u{fffd}' })
            .collect(),
    )
}

fn read_bytes(value: &MessageAttributeValue) -> Option<&[u8]> {
    let text = value.string_value().map(str::as_bytes);
    text.or_else(|| value.binary_value().map(AsRef::as_ref))
}

fn read_text(value: &MessageAttributeValue) -> Option<String> {
    read_bytes(value).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// Rounded up, as a job must not come early.
fn whole_seconds(delay: Duration) -> u64 {
    delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0))
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Headers with a meaning between us, RoadRunner and the service, which users neither set nor see.
fn is_reserved(name: &str) -> bool {
    const OURS: [&str; 4] = [BODY, DUE, TRUE_ID, TRUE_NAME];
    wire::is_reserved(name) || OURS.contains(&name) || OF_SERVICE.contains(&name)
}
