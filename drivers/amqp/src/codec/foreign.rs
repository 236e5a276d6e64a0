//! Values of a header table that need not be what we would write.

use std::time::{Duration, UNIX_EPOCH};

use lapin::types::{AMQPValue, DecimalValue};

/// Deeper tables and lists hold nothing anybody would read as a header.
const MAX_DEPTH: usize = 16;

/// A value that is text or bytes.
pub(super) fn bytes(value: &AMQPValue) -> Option<&[u8]> {
    match value {
        AMQPValue::LongString(text) => Some(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => Some(bytes.as_slice()),
        AMQPValue::ShortString(text) => Some(text.as_str().as_bytes()),
        _ => None,
    }
}

/// A whole number of any width, or its decimal text.
pub(super) fn number(value: &AMQPValue) -> Option<i64> {
    match *value {
        AMQPValue::ShortShortInt(number) => Some(number.into()),
        AMQPValue::ShortShortUInt(number) => Some(number.into()),
        AMQPValue::ShortInt(number) => Some(number.into()),
        AMQPValue::ShortUInt(number) => Some(number.into()),
        AMQPValue::LongInt(number) => Some(number.into()),
        AMQPValue::LongUInt(number) => Some(number.into()),
        AMQPValue::LongLongInt(number) => Some(number),
        _ => str::from_utf8(bytes(value)?).ok()?.trim().parse().ok(),
    }
}

/// A truth value, or its text.
pub(super) fn boolean(value: &AMQPValue) -> Option<bool> {
    match value {
        AMQPValue::Boolean(boolean) => Some(*boolean),
        _ => str::from_utf8(bytes(value)?).ok()?.trim().parse().ok(),
    }
}

/// A single value as text, written as RoadRunner does.
pub(super) fn text(value: &AMQPValue) -> Option<String> {
    if let Some(bytes) = bytes(value) {
        return Some(String::from_utf8_lossy(bytes).into_owned());
    }
    match *value {
        AMQPValue::Boolean(boolean) => Some(boolean.to_string()),
        AMQPValue::Float(number) => Some(format!("{number:.5}")),
        AMQPValue::Double(number) => Some(format!("{number:.5}")),
        AMQPValue::DecimalValue(DecimalValue { scale, value }) => Some(decimal(scale, value)),
        AMQPValue::Timestamp(seconds) => Some(timestamp(seconds)),
        _ => number(value).map(|number| number.to_string()),
    }
}

/// Adds a value as headers: those of a list under its name, those of a table under their own.
pub(super) fn flatten(name: &str, value: &AMQPValue, headers: &mut Vec<(String, String)>) {
    flatten_at(MAX_DEPTH, name, value, headers);
}

fn flatten_at(left: usize, name: &str, value: &AMQPValue, headers: &mut Vec<(String, String)>) {
    let Some(deeper) = left.checked_sub(1) else { return };
    match value {
        AMQPValue::FieldArray(items) => {
            items.as_slice().iter().for_each(|item| flatten_at(deeper, name, item, headers));
        }
        AMQPValue::FieldTable(table) => {
            table.into_iter().for_each(|(name, value)| {
                flatten_at(deeper, name.as_str(), value, headers);
            });
        }
        single => headers.extend(text(single).map(|text| (name.to_owned(), text))),
    }
}

fn decimal(scale: u8, value: u32) -> String {
    let scale = usize::from(scale);
    let mut digits = format!("{value:0>width$}", width = scale + 1);
    if scale > 0 {
        digits.insert(digits.len() - scale, '.');
    }
    digits
}

fn timestamp(seconds: u64) -> String {
    /// The end of the year 9999, where RFC 3339 ends.
    const END: u64 = 253_402_300_800;
    match UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).filter(|_| seconds < END) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => seconds.to_string(),
    }
}
