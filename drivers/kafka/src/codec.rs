//! Messages as they travel: RoadRunner's headers, and whatever others send.

mod detour;
#[cfg(test)]
mod tests;
mod text;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use jobs_core::{Bytes, Headers, KafkaOptions, Message, wire};
use rdkafka::message::{Header, OwnedHeaders};

pub(crate) use detour::{Origin, Target, dead_letter, delayed, undelayed};
use text::{header, is_reserved, number, shown};

/// Further values of headers that have several: RoadRunner knows one for each name.
const MORE_VALUES: &str = "jobs-headers";
/// The free text of a message.
const METADATA: &str = "jobs-metadata";

/// What is produced.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) payload: Bytes,
    pub(crate) headers: OwnedHeaders,
}

impl Record {
    /// Whether a broker that takes records of `max_message_bytes` takes this one, also with what
    /// delays and dead-lettering add.
    pub(crate) fn fits(&self, max_message_bytes: usize) -> bool {
        use rdkafka::message::Headers as _;
        /// The frame around a record, and up to five headers.
        const ADDED: usize = 2 << 10;
        /// Lengths of name and value.
        const LENGTHS: usize = 10;
        let headers = self.headers.iter();
        let headers = headers.map(|h| LENGTHS + h.key.len() + h.value.map_or(0, <[u8]>::len));
        let key = self.key.as_ref().map_or(0, Vec::len);
        let size = key + self.payload.len() + headers.sum::<usize>();
        size <= max_message_bytes - ADDED.min(max_message_bytes / 4)
    }
}

/// What a record means.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// One that can be pushed again: its texts are valid, and it has no delay. Its
    /// [`KafkaOptions`] say where it was read.
    pub(crate) message: Message,
    /// Counted from 1.
    pub(crate) attempt: u32,
}

/// Who pushes: what a message's pipeline adds to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender<'a> {
    pub(crate) pipeline: &'a str,
    /// For messages without a priority of their own.
    pub(crate) priority: i64,
}

/// What is produced for a message, for its delivery as `attempt`.
pub(crate) fn encode(message: &Message, sender: Sender<'_>, attempt: u32) -> Record {
    encode_with(message, sender, attempt, &[])
}

/// As [`encode`], with `added` in place of the headers of these names.
fn encode_with(
    message: &Message,
    Sender { pipeline, priority }: Sender<'_>,
    attempt: u32,
    added: &[(&str, &str)],
) -> Record {
    let headers = message.headers();
    let mut written = OwnedHeaders::new_with_capacity(headers.len() + added.len() + 5);
    let mut more: Vec<(&str, &str)> = Vec::new();
    let mut names = None;
    for (name, value) in headers.iter() {
        if is_reserved(name) || added.iter().any(|(other, _)| *other == name) {
            continue;
        }
        if headers.len() == 1 || names.get_or_insert_with(HashSet::new).insert(name) {
            written = insert(written, name, value);
        } else {
            more.push((name, value));
        }
    }
    let priority = message.priority().unwrap_or(priority);
    written = insert(written, wire::NAME, message.name());
    written = insert(written, wire::PIPELINE, pipeline);
    written = written.insert(Header { key: wire::PRIORITY, value: Some(&priority.to_le_bytes()) });
    // Without a key of its own a job lies where its id leads.
    let shown = || headers.get(wire::ORDERING_KEY).filter(|key| wire::is_valid(key));
    let key = message.ordering_key().or_else(shown);
    if key.is_some() {
        written = insert(written, wire::ID, message.id().as_str());
    }
    if message.auto_ack() {
        written = insert(written, wire::AUTO_ACK, "true");
    }
    if attempt > 1 {
        written = insert(written, wire::ATTEMPT, &attempt.to_string());
    }
    if !more.is_empty() {
        written = insert(written, MORE_VALUES, &text::write_more(&more));
    }
    if let Some(metadata) = message.kafka().map(|kafka| &kafka.metadata).filter(|m| !m.is_empty()) {
        written = insert(written, METADATA, metadata);
    }
    for (name, value) in added {
        written = insert(written, name, value);
    }
    let key = key.unwrap_or(message.id().as_str());
    Record {
        key: Some(key.as_bytes().to_vec()),
        payload: message.payload().clone(),
        headers: written,
    }
}

/// Empty text is a null value, as RoadRunner writes it.
fn insert(headers: OwnedHeaders, name: &str, value: &str) -> OwnedHeaders {
    let value = (!value.is_empty()).then_some(value);
    headers.insert(Header { key: name, value })
}

/// Never fails: what is missing or makes no sense gets a default, so that every job can run, and
/// can run again.
///
/// `topic` is the record's. `keyed` where keys keep jobs in order; elsewhere a key that is not the id becomes
/// a header.
pub(crate) fn decode<M: rdkafka::Message>(record: &M, topic: &Arc<str>, keyed: bool) -> Decoded {
    let mut found = Found::default();
    if let Some(headers) = record.headers() {
        for index in 0..rdkafka::message::Headers::count(headers) {
            if let Some((name, value)) = header(headers, index) {
                found.add(name, value.unwrap_or_default());
            }
        }
    }
    found.decoded(record, topic, keyed)
}

/// What the headers of a record hold.
#[derive(Default)]
struct Found<'a> {
    /// True for a job of this suite or of RoadRunner.
    known: bool,
    id: Option<&'a str>,
    name: Option<&'a str>,
    priority: i64,
    auto_ack: bool,
    attempt: u32,
    metadata: &'a str,
    more: &'a [u8],
    headers: Vec<(String, String)>,
}

impl<'a> Found<'a> {
    fn add(&mut self, name: &'a str, value: &'a [u8]) {
        let text = || str::from_utf8(value).unwrap_or_default();
        match name {
            wire::NAME => (self.known, self.name) = (true, Some(text())),
            wire::PIPELINE => self.known = true,
            wire::PRIORITY => (self.known, self.priority) = (true, number(value)),
            wire::ID => {
                (self.known, self.id) = (true, Some(text()).filter(|id| wire::is_valid(id)));
            }
            wire::AUTO_ACK => self.auto_ack = text() == "true",
            wire::ATTEMPT => self.attempt = text().parse().unwrap_or_default(),
            METADATA => self.metadata = text(),
            MORE_VALUES => self.more = value,
            name if !is_reserved(name) && wire::is_valid(name) => {
                self.headers.push((name.to_owned(), shown(value)));
            }
            _ => {}
        }
    }

    fn decoded<M: rdkafka::Message>(
        mut self,
        record: &M,
        topic: &Arc<str>,
        keyed: bool,
    ) -> Decoded {
        let key =
            record.key().and_then(|key| str::from_utf8(key).ok()).filter(|key| wire::is_valid(key));
        let (id, ordering_key) = match (self.id, key) {
            (Some(id), key) => (Cow::Borrowed(id), key),
            (None, Some(key)) if self.known => (Cow::Borrowed(key), None),
            (None, key) => (Cow::Owned(position(record)), key),
        };
        if !self.more.is_empty() {
            self.headers.extend(text::read_more(self.more));
        }
        if let Some(key) = ordering_key.filter(|_| !keyed) {
            self.headers.push((wire::ORDERING_KEY.to_owned(), key.to_owned()));
        }
        let name = match self.name.filter(|name| wire::is_valid(name)) {
            Some(name) => Cow::Owned(name.to_owned()),
            None => Cow::Borrowed(wire::FOREIGN_NAME),
        };
        let payload = record.payload().map_or_else(Bytes::new, Bytes::copy_from_slice);
        let mut kafka = KafkaOptions::default();
        kafka.topic = Arc::clone(topic);
        kafka.partition = Some(record.partition());
        kafka.offset = Some(record.offset());
        kafka.metadata = self.metadata.to_owned();
        let mut message = Message::known(&*id, name, payload)
            .with_priority(self.priority)
            .with_auto_ack(self.auto_ack)
            .with_kafka(kafka);
        if !self.headers.is_empty() {
            message = message.with_headers(Headers::from_iter(self.headers));
        }
        if let Some(key) = ordering_key.filter(|_| keyed) {
            message = message.with_ordering_key(key);
        }
        Decoded { message, attempt: self.attempt.max(1) }
    }
}

/// An id for a record that bears none: the same whenever it is read.
fn position<M: rdkafka::Message>(record: &M) -> String {
    /// The longest topic that leaves room for two numbers.
    const ROOM: usize = 220;
    let topic: String = record.topic().chars().take(ROOM).collect();
    format!("{topic}-{}-{}", record.partition(), record.offset())
}
