//! The arguments of a queue's declaration: those of `queue_headers`, and our own options.

use std::num::NonZeroU8;

use jobs_core::{Options, Problem};
use lapin::types::{AMQPValue, FieldArray, FieldTable, ShortString};
use serde::Deserialize;
use serde_json::{Map, Number, Value};

use super::QueueType;

/// The arguments that have an option of their own, as `queue_headers` may set them too.
#[derive(Default, Deserialize)]
pub(super) struct Known {
    #[serde(rename = "x-queue-type")]
    pub(super) queue_type: Option<QueueType>,
    #[serde(rename = "x-delivery-limit")]
    pub(super) delivery_limit: Option<i64>,
    #[serde(rename = "x-dead-letter-exchange")]
    pub(super) dead_letter_exchange: Option<String>,
    #[serde(rename = "x-dead-letter-routing-key")]
    pub(super) dead_letter_routing_key: Option<String>,
    #[serde(rename = "x-max-priority")]
    pub(super) max_priority: Option<NonZeroU8>,
    /// Milliseconds.
    #[serde(rename = "x-consumer-timeout")]
    pub(super) consumer_timeout: Option<u64>,
}

impl Known {
    const NAMES: [&str; 6] = [
        "x-queue-type",
        "x-delivery-limit",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-max-priority",
        "x-consumer-timeout",
    ];
}

/// What `queue_headers`, at `path`, says: the arguments we have an option for, and all others.
pub(super) fn read(
    path: &str,
    headers: Map<String, Value>,
    problems: &mut Vec<Problem>,
) -> (Known, FieldTable) {
    let mut arguments = FieldTable::default();
    for (name, value) in &headers {
        // The broker's own are in lower case, and names of options in any.
        let name = name.to_lowercase();
        if Known::NAMES.contains(&name.as_str()) {
            continue;
        }
        let result = short_string(&name).and_then(|name| Ok((name, to_amqp(value)?)));
        match result {
            Ok((name, value)) => _ = arguments.insert(name, value),
            Err(expected) => problems.push(Problem::new(format!("{path}.{name}"), expected)),
        }
    }
    let known = Options::from_value(path, Value::Object(headers))
        .map_err(|problem| vec![problem])
        .and_then(|mut options| options.take(&Known::NAMES).parse());
    let known = known.unwrap_or_else(|found| {
        problems.extend(found);
        Known::default()
    });
    (known, arguments)
}

/// A whole number in the narrower of the types that every broker and client reads.
pub(super) fn integer(number: i64) -> AMQPValue {
    i32::try_from(number).map_or(AMQPValue::LongLongInt(number), AMQPValue::LongInt)
}

fn short_string(name: &str) -> Result<ShortString, String> {
    ShortString::try_new(name)
        .map_err(|_| format!("expected a name of at most 255 bytes, found {}", name.len()))
}

/// How RoadRunner writes values of YAML. Whole numbers are never written as floating point, which
/// RabbitMQ refuses.
fn to_amqp(value: &Value) -> Result<AMQPValue, String> {
    Ok(match value {
        Value::Null => return Err("expected a value, found nothing".to_owned()),
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Number(number) => to_number(number)?,
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(to_amqp).collect::<Result<_, _>>()?;
            AMQPValue::FieldArray(FieldArray::from(items))
        }
        Value::Object(map) => {
            let mut table = FieldTable::default();
            for (name, value) in map {
                table.insert(short_string(name)?, to_amqp(value)?);
            }
            AMQPValue::FieldTable(table)
        }
    })
}

fn to_number(number: &Number) -> Result<AMQPValue, String> {
    /// Up to here every whole number has a floating point of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let too_large = || format!("expected at most {}, found {number}", i64::MAX);
    match (number.as_i64(), number.as_f64()) {
        (Some(whole), _) => Ok(integer(whole)),
        (None, Some(_)) if number.is_u64() => Err(too_large()),
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
        (None, Some(float)) if float.fract() == 0.0 && float.abs() <= EXACT => {
            Ok(integer(float as i64))
        }
        (None, Some(float)) => Ok(AMQPValue::Double(float)),
        (None, None) => Err(too_large()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table(headers: Value) -> Result<(Known, FieldTable), Vec<String>> {
        let Value::Object(headers) = headers else { panic!("a map") };
        let mut problems = Vec::new();
        let read = read("p.queue_headers", headers, &mut problems);
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        if problems.is_empty() { Ok(read) } else { Err(problems) }
    }

    #[test]
    fn values_get_types_that_the_broker_takes() {
        let (_, table) = table(json!({
            "x-max-length": 10, "X-Message-TTL": 3_000_000_000_i64, "x-expires": 60000.0,
            "x-single-active-consumer": true, "x-overflow": "reject-publish", "list": [1, "a"],
            "map": {"Inner": 1.5},
        }))
        .expect("valid");
        let get = |name: &str| table.inner().get(name).cloned().expect(name);
        assert_eq!(get("x-max-length"), AMQPValue::LongInt(10));
        assert_eq!(get("x-message-ttl"), AMQPValue::LongLongInt(3_000_000_000));
        assert_eq!(get("x-expires"), AMQPValue::LongInt(60_000));
        assert_eq!(get("x-single-active-consumer"), AMQPValue::Boolean(true));
        assert_eq!(get("x-overflow"), AMQPValue::LongString("reject-publish".into()));
        let list = vec![AMQPValue::LongInt(1), AMQPValue::LongString("a".into())];
        assert_eq!(get("list"), AMQPValue::FieldArray(list.into()));
        let mut inner = FieldTable::default();
        inner.insert("Inner".into(), AMQPValue::Double(1.5));
        assert_eq!(get("map"), AMQPValue::FieldTable(inner));
    }

    #[test]
    fn arguments_with_an_option_of_their_own_are_read_as_that() {
        let (known, table) = table(json!({
            "X-Queue-Type": "quorum", "x-delivery-limit": "5", "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "dead", "x-max-priority": 9, "x-consumer-timeout": 60000,
        }))
        .expect("valid");
        assert!(table.inner().is_empty());
        assert_eq!((known.queue_type, known.delivery_limit), (Some(QueueType::Quorum), Some(5)));
        assert_eq!(known.dead_letter_exchange.as_deref(), Some(""));
        assert_eq!(known.dead_letter_routing_key.as_deref(), Some("dead"));
        assert_eq!((known.max_priority, known.consumer_timeout), (NonZeroU8::new(9), Some(60_000)));
    }

    #[test]
    fn all_wrong_arguments_are_named() {
        let problems = table(json!({
            "x-queue-type": "stream", "x-max-priority": 256, "x-none": null,
            "x-large": u64::MAX, "l".repeat(256): 1,
        }))
        .err()
        .expect("wrong");
        let expected = [
            "`p.queue_headers.x-queue-type`: expected one of `classic`, `quorum`, found `stream`",
            "`p.queue_headers.x-max-priority`: expected a whole number from 1 to 255, found `256`",
            "`p.queue_headers.x-none`: expected a value, found nothing",
            "`p.queue_headers.x-large`: expected at most 9223372036854775807, \
             found 18446744073709551615",
        ];
        for expected in expected {
            assert!(problems.iter().any(|found| found == expected), "{expected} in {problems:#?}");
        }
        assert_eq!(problems.len(), expected.len() + 1, "{problems:#?}");
    }
}
