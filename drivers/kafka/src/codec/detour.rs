//! Records that do not go to their topic at once, or not any more: delays and dead letters.

use jobs_core::{Bytes, Message};
use rdkafka::message::{Header, Headers as _, OwnedHeaders};

use super::text::header;
use super::{Record, Sender, encode_with};

const TARGET_TOPIC: &str = "jobs-target-topic";
const TARGET_PARTITION: &str = "jobs-target-partition";
const DUE: &str = "jobs-due";

const ORIGIN_TOPIC: &str = "jobs-origin-topic";
const ORIGIN_PARTITION: &str = "jobs-origin-partition";
const ORIGIN_OFFSET: &str = "jobs-origin-offset";
const ORIGIN_PIPELINE: &str = "jobs-origin-pipeline";
const REASON: &str = "jobs-dead-reason";

/// More of a reason is not written.
const LONGEST_REASON: usize = 500;

/// Where a delayed record goes in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) topic: String,
    /// None: the one its key leads to.
    pub(crate) partition: Option<i32>,
}

/// Where a dead letter was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

/// True for the headers of a delay, which nobody but the driver writes.
pub(super) fn is_of_a_delay(name: &str) -> bool {
    [TARGET_TOPIC, TARGET_PARTITION, DUE].contains(&name)
}

/// What is produced for a job that is never run again. Its headers say where it was read and why it
/// is there, unlike those of a delay for everybody who reads it.
pub(crate) fn dead_letter(
    message: &Message,
    sender: Sender<'_>,
    attempt: u32,
    origin: Origin<'_>,
    reason: &str,
) -> Record {
    let (partition, offset) = (origin.partition.to_string(), origin.offset.to_string());
    let cut = reason.char_indices().map(|(at, _)| at).find(|at| *at >= LONGEST_REASON);
    let added = [
        (ORIGIN_PIPELINE, sender.pipeline),
        (ORIGIN_TOPIC, origin.topic),
        (ORIGIN_PARTITION, &partition),
        (ORIGIN_OFFSET, &offset),
        (REASON, &reason[..cut.unwrap_or(reason.len())]),
    ];
    encode_with(message, sender, attempt, &added)
}

/// A record on its way round by a delay topic: the same, and behind its headers where it goes, and
/// when, in milliseconds since 1970.
pub(crate) fn delayed(record: Record, target: &Target, due: u64) -> Record {
    let Record { key, payload, headers } = record;
    let partition = target.partition.map(|partition| partition.to_string());
    let due = due.to_string();
    let headers = headers
        .insert(Header { key: TARGET_TOPIC, value: Some(target.topic.as_str()) })
        .insert(Header { key: TARGET_PARTITION, value: partition.as_deref() })
        .insert(Header { key: DUE, value: Some(due.as_str()) });
    Record { key, payload, headers }
}

/// What [`delayed`] was given; none for a record of somebody else.
pub(crate) fn undelayed<M: rdkafka::Message>(record: &M) -> Option<(Target, u64, Record)> {
    let headers = record.headers()?;
    let own = headers.count().checked_sub(3)?;
    let text = |index, expected| {
        let (name, value) = header(headers, own + index)?;
        if name == expected { str::from_utf8(value.unwrap_or_default()).ok() } else { None }
    };
    let topic = text(0, TARGET_TOPIC).filter(|topic| !topic.is_empty())?.to_owned();
    let partition = match text(1, TARGET_PARTITION)? {
        "" => None,
        number => Some(number.parse().ok()?),
    };
    let due = text(2, DUE)?.parse().ok()?;
    let mut kept = OwnedHeaders::new_with_capacity(own);
    for index in 0..own {
        let (name, value) = header(headers, index)?;
        kept = kept.insert(Header { key: name, value });
    }
    let record = Record {
        key: record.key().map(<[u8]>::to_vec),
        payload: Bytes::copy_from_slice(record.payload().unwrap_or_default()),
        headers: kept,
    };
    Some((Target { topic, partition }, due, record))
}
