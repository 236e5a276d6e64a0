//! The attributes and tags a queue is created with.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use jobs_core::Problem;
use serde_json::{Map, Value};

/// What an attribute may have for a value.
enum Kind {
    Number(RangeInclusive<u64>),
    Bool,
    /// One of these, in any case.
    Word(&'static [&'static str]),
    /// A JSON document, also written as a map.
    Json,
    Text,
    /// The service says it, and nobody sets it.
    ReadOnly,
}

/// Those of the service. Source: the API reference, `CreateQueue` and `GetQueueAttributes`.
const KNOWN: [(&str, Kind); 21] = [
    ("ApproximateNumberOfMessages", Kind::ReadOnly),
    ("ApproximateNumberOfMessagesDelayed", Kind::ReadOnly),
    ("ApproximateNumberOfMessagesNotVisible", Kind::ReadOnly),
    ("ContentBasedDeduplication", Kind::Bool),
    ("CreatedTimestamp", Kind::ReadOnly),
    ("DeduplicationScope", Kind::Word(&["messageGroup", "queue"])),
    ("DelaySeconds", Kind::Number(0..=900)),
    (FIFO, Kind::Bool),
    ("FifoThroughputLimit", Kind::Word(&["perQueue", "perMessageGroupId"])),
    ("KmsDataKeyReusePeriodSeconds", Kind::Number(60..=86_400)),
    ("KmsMasterKeyId", Kind::Text),
    ("LastModifiedTimestamp", Kind::ReadOnly),
    ("MaximumMessageSize", Kind::Number(1_024..=1_048_576)),
    (RETENTION, Kind::Number(60..=1_209_600)),
    ("Policy", Kind::Json),
    ("QueueArn", Kind::ReadOnly),
    ("ReceiveMessageWaitTimeSeconds", Kind::Number(0..=20)),
    ("RedriveAllowPolicy", Kind::Json),
    ("RedrivePolicy", Kind::Json),
    ("SqsManagedSseEnabled", Kind::Bool),
    ("VisibilityTimeout", Kind::Number(0..=43_200)),
];

const FIFO: &str = "FifoQueue";
const RETENTION: &str = "MessageRetentionPeriod";

/// Only a FIFO queue has these.
const OF_FIFO: [&str; 3] =
    ["ContentBasedDeduplication", "DeduplicationScope", "FifoThroughputLimit"];

/// What `attributes`, at `path`, say, by the service's names, with what every queue gets.
pub(super) fn read(
    path: &str,
    written: &Map<String, Value>,
    fifo: bool,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, String> {
    let mut attributes = BTreeMap::new();
    for (name, value) in written {
        let mut problem = |message: String| {
            problems.push(Problem::new(format!("{path}.{name}"), message));
        };
        let Some((known, kind)) = KNOWN.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))
        else {
            problem("no attribute of a queue".to_owned());
            continue;
        };
        if !fifo && OF_FIFO.contains(known) {
            problem("expected a FIFO queue, whose name ends in `.fifo`".to_owned());
            continue;
        }
        match kind.read(value) {
            Ok(value) if *known == FIFO && (value == "true") != fifo => {
                let expected = "expected what the queue's name says: that of a FIFO queue, and of \
                                no other, ends in `.fifo`";
                problem(expected.to_owned());
            }
            Ok(value) => {
                if attributes.insert((*known).to_owned(), value).is_some() {
                    problem("is set twice: names are not case-sensitive".to_owned());
                }
            }
            Err(expected) => problem(expected),
        }
    }
    let is = |name, value: &str| attributes.get(name).is_some_and(|found| found == value);
    if is("FifoThroughputLimit", "perMessageGroupId") && !is("DeduplicationScope", "messageGroup") {
        let expected = "expected `perQueue`, or `DeduplicationScope: messageGroup` too";
        problems.push(Problem::new(format!("{path}.FifoThroughputLimit"), expected));
    }
    if fifo {
        attributes.insert(FIFO.to_owned(), "true".to_owned());
    } else {
        // The service knows no `false`: it refuses the attribute for a standard queue.
        attributes.remove(FIFO);
    }
    // The service's own default, four days, is short for a job that waits for its worker.
    attributes.entry(RETENTION.to_owned()).or_insert_with(|| "1209600".to_owned());
    attributes
}

impl Kind {
    fn read(&self, value: &Value) -> Result<String, String> {
        let text = match value {
            Value::String(text) => text.trim().to_owned(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            Value::Object(_) if matches!(self, Self::Json) => return Ok(value.to_string()),
            _ => String::new(),
        };
        let found = || if text.is_empty() { "nothing".into() } else { format!("`{text}`") };
        match self {
            Self::ReadOnly => Err("cannot be set: the service says it".to_owned()),
            Self::Number(range) => match text.parse::<u64>() {
                Ok(number) if range.contains(&number) => Ok(number.to_string()),
                _ => {
                    let (least, most) = (range.start(), range.end());
                    Err(format!(
                        "expected a whole number from {least} to {most}, found {}",
                        found()
                    ))
                }
            },
            Self::Bool => match text.to_ascii_lowercase().as_str() {
                word @ ("true" | "false") => Ok(word.to_owned()),
                _ => Err(format!("expected `true` or `false`, found {}", found())),
            },
            Self::Word(words) => {
                let word = words.iter().find(|word| word.eq_ignore_ascii_case(&text));
                word.map(|word| (*word).to_owned()).ok_or_else(|| {
                    let words = words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>();
                    format!("expected one of {}, found {}", words.join(", "), found())
                })
            }
            Self::Json => match serde_json::from_str::<Map<String, Value>>(&text) {
                Ok(_) => Ok(text),
                Err(_) => Err("expected a JSON object".to_owned()),
            },
            Self::Text if text.is_empty() => Err("expected text, found nothing".to_owned()),
            Self::Text => Ok(text),
        }
    }
}

/// What `tags`, at `path`, say.
pub(super) fn tags(
    path: &str,
    written: Map<String, Value>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, String> {
    /// Source: the quotas of queues.
    const MOST: usize = 50;
    if written.len() > MOST {
        let message = format!("expected at most {MOST} tags, found {}", written.len());
        problems.push(Problem::new(path, message));
    }
    let mut tags = BTreeMap::new();
    for (name, value) in written {
        let value = match value {
            Value::String(text) => text,
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => {
                problems.push(Problem::new(format!("{path}.{name}"), "expected text"));
                continue;
            }
        };
        let fits = (1..=128).contains(&name.chars().count()) && value.chars().count() <= 256;
        if !fits {
            let expected = "expected a name of 1 to 128 characters and a value of at most 256";
            problems.push(Problem::new(format!("{path}.{name}"), expected));
        }
        tags.insert(name, value);
    }
    tags
}
