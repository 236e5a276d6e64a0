//! Messages as they travel: RoadRunner's headers, and whatever others send.

mod foreign;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jobs_core::{Headers, JobId, Message, Pipeline, wire};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

/// Begins the names of the headers that bring a delayed job to its queue; they end there.
pub(crate) const HOP_HEADER_PREFIX: &str = "jobs-hop-";

/// What a quorum queue adds: how often it delivered the message before.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// What a delivery means.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// One that can be pushed again: its texts are valid, and it has no delay.
    pub(crate) message: Message,
    /// Counted from 1.
    pub(crate) attempt: u32,
}

/// What is published for a message, for its delivery as `attempt`.
///
/// `priority` is the pipeline's, for a message without one of its own.
pub(crate) fn encode(
    message: &Message,
    pipeline: &str,
    priority: i64,
    attempt: u32,
    max_priority: Option<NonZeroU8>,
) -> BasicProperties {
    let text = |text: &str| AMQPValue::LongString(LongString::from(text));
    let priority = message.priority().unwrap_or(priority);
    let number = (attempt > 1).then(|| attempt.to_string());
    let attempt = number.iter().map(|number| (wire::ATTEMPT, number.as_str()));
    let headers = message.headers().iter().filter(|(name, _)| !is_reserved(name));
    let headers = wire::write_headers(headers.chain(attempt));
    let table = BTreeMap::from([
        (wire::AUTO_ACK.into(), AMQPValue::Boolean(message.auto_ack())),
        (wire::DELAY.into(), AMQPValue::LongInt(whole_seconds(message.delay()))),
        (wire::HEADERS.into(), AMQPValue::ByteArray(headers.into())),
        (wire::ID.into(), text(message.id().as_str())),
        (wire::NAME.into(), text(message.name())),
        (wire::PIPELINE.into(), text(pipeline)),
        (wire::PRIORITY.into(), AMQPValue::LongLongInt(priority)),
    ]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let properties = BasicProperties::default()
        .with_content_type("application/octet-stream".into())
        .with_delivery_mode(2)
        .with_timestamp(now.as_secs())
        .with_headers(FieldTable::from(table));
    match max_priority {
        Some(most) => properties.with_priority(level(priority, most)),
        None => properties,
    }
}

/// Whether a message we wrote is one that every consumer can be sent.
///
/// Its properties travel in one frame. The broker closes the connection of whom publishes a larger
/// one; and one that grows too large on its way, by what delays and dead-lettering add, closes that
/// of its consumer at every delivery.
pub(crate) fn fits(properties: &BasicProperties, frame_max: u32) -> bool {
    /// Eight hops of a delay, with names of queues and exchanges, and the frame around it all.
    const RESERVE: usize = 16 << 10;
    /// Content type, mode, priority, timestamp and flags.
    const OTHERS: usize = 64;
    let size = |(name, value): (&ShortString, &AMQPValue)| {
        let value = foreign::bytes(value).map_or(8, |bytes| 4 + bytes.len());
        2 + name.as_str().len() + value
    };
    let size = OTHERS + properties.headers().iter().flatten().map(size).sum::<usize>();
    let max = usize::try_from(frame_max).unwrap_or(usize::MAX);
    size <= max - RESERVE.min(max / 2)
}

/// Rounded up, as a job must not come early.
fn whole_seconds(delay: Duration) -> i32 {
    let seconds = delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0));
    i32::try_from(seconds).unwrap_or(i32::MAX)
}

/// The broker's priority, where larger is sooner, for ours, where smaller is sooner.
///
/// With ten levels, those of 1 to 11 are all different; with more, those up to `most + 1`; with
/// less, those around the default of 10. Beyond these, priorities share the first or last level.
fn level(priority: i64, most: NonZeroU8) -> u8 {
    let most = i64::from(most.get());
    let level = most.max(Pipeline::DEFAULT_PRIORITY).saturating_add(1).saturating_sub(priority);
    u8::try_from(level.clamp(0, most)).expect("clamped")
}

/// Never fails: what is missing or makes no sense gets a default, so that every job can run, and
/// can run again.
pub(crate) fn decode(properties: &BasicProperties, body: Vec<u8>) -> Decoded {
    let mut found = Found::default();
    for (name, value) in properties.headers().iter().flatten() {
        found.add(name.as_str(), value);
    }
    found.decoded(body)
}

/// The id of a message that we published and the broker gave back.
pub(crate) fn id_of(properties: &BasicProperties) -> Option<&str> {
    match properties.headers().as_ref()?.inner().get(wire::ID)? {
        AMQPValue::LongString(id) => str::from_utf8(id.as_bytes()).ok(),
        _ => None,
    }
}

/// What a table of headers holds.
#[derive(Default)]
struct Found<'a> {
    id: Option<String>,
    name: Option<String>,
    /// True for a message of this suite or of RoadRunner.
    known: bool,
    headers: Vec<(String, String)>,
    others: Vec<(&'a str, &'a AMQPValue)>,
    priority: i64,
    auto_ack: bool,
    redeliveries: i64,
}

impl<'a> Found<'a> {
    fn add(&mut self, name: &'a str, value: &'a AMQPValue) {
        match name {
            wire::ID => (self.known, self.id) = (true, foreign::text(value)),
            wire::NAME => (self.known, self.name) = (true, foreign::text(value)),
            wire::HEADERS => {
                self.known = true;
                self.headers =
                    foreign::bytes(value).and_then(wire::read_headers).unwrap_or_default();
            }
            wire::PRIORITY => self.priority = foreign::number(value).unwrap_or_default(),
            wire::AUTO_ACK => self.auto_ack = foreign::boolean(value).unwrap_or_default(),
            DELIVERY_COUNT => self.redeliveries = foreign::number(value).unwrap_or_default(),
            _ => self.others.push((name, value)),
        }
    }

    fn decoded(mut self, body: Vec<u8>) -> Decoded {
        let attempt = self.headers.iter().find(|(name, _)| name == wire::ATTEMPT);
        let attempt = attempt.and_then(|(_, value)| value.parse().ok()).unwrap_or(1_u32).max(1);
        let redeliveries = u32::try_from(self.redeliveries.max(0)).unwrap_or(u32::MAX);
        self.add_others();
        self.headers.retain(|(name, _)| wire::is_valid(name) && !is_reserved(name));

        let id = self.id.filter(|id| wire::is_valid(id)).map_or_else(JobId::random, JobId::from);
        let name = self.name.filter(|name| wire::is_valid(name));
        let name = name.map_or(Cow::Borrowed(wire::FOREIGN_NAME), Cow::Owned);
        let mut message = Message::known(id, name, body);
        if !self.headers.is_empty() {
            message = message.with_headers(Headers::from_iter(self.headers));
        }
        message = message.with_priority(self.priority).with_auto_ack(self.auto_ack);
        Decoded { message, attempt: attempt.saturating_add(redeliveries) }
    }

    /// The headers that are not ours become text. Where we know the message, its own are all in
    /// `rr_headers`, and `x-…` is what brokers added on the way.
    fn add_others(&mut self) {
        let own = self.headers.len();
        for (name, value) in std::mem::take(&mut self.others) {
            let brokers = self.known && name.starts_with("x-");
            let shadowed = || self.headers[..own].iter().any(|(other, _)| other == name);
            if !brokers && !is_reserved(name) && !shadowed() {
                foreign::flatten(name, value, &mut self.headers);
            }
        }
    }
}

/// Headers with a meaning between us, RoadRunner and the broker, which users neither set nor see.
fn is_reserved(name: &str) -> bool {
    let stem =
        || name.strip_prefix("x-first-death-").or_else(|| name.strip_prefix("x-last-death-"));
    match name.as_bytes() {
        [b'j', b'o', b'b', b's', b'-', ..] if name.starts_with(HOP_HEADER_PREFIX) => true,
        [b'x', b'-', ..] => {
            ["x-death", DELIVERY_COUNT, "x-acquired-count"].contains(&name)
                || stem().is_some_and(|of| ["exchange", "queue", "reason"].contains(&of))
        }
        _ => wire::is_reserved(name),
    }
}
