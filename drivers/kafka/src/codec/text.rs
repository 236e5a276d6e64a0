//! Names and values of headers.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use jobs_core::wire;
use rdkafka::message::Headers;

use super::{METADATA, MORE_VALUES, detour};

/// A header by its number; none for one whose name nobody can read.
///
/// The client panics at a name that is no UTF-8. Brokers take such a record from whoever may
/// produce, and would hand it out again after every restart.
pub(super) fn header<H: Headers>(headers: &H, index: usize) -> Option<(&str, Option<&[u8]>)> {
    let header = catch_unwind(AssertUnwindSafe(|| headers.try_get(index)));
    header.ok().flatten().map(|header| (header.key, header.value))
}

/// Headers with a meaning between us and RoadRunner, which users neither set nor see.
pub(super) fn is_reserved(name: &str) -> bool {
    wire::is_reserved(name)
        || name.starts_with("jobs-")
            && ([MORE_VALUES, METADATA].contains(&name) || detour::is_of_a_delay(name))
}

/// A priority: eight bytes, the least significant first, as RoadRunner writes it; or decimal text.
/// 0 stands for none.
pub(super) fn number(value: &[u8]) -> i64 {
    match value.first_chunk::<8>() {
        Some(bytes) => i64::from_le_bytes(*bytes),
        None => str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0),
    }
}

/// A value as text. Bytes that are no UTF-8 are replaced.
pub(super) fn shown(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

pub(super) fn write_more(values: &[(&str, &str)]) -> String {
    serde_json::to_string(values).expect("text into memory")
}

/// What was written with [`write_more`]; nothing from anything else.
pub(super) fn read_more(json: &[u8]) -> Vec<(String, String)> {
    let values: Vec<(Cow<'_, str>, Cow<'_, str>)> =
        serde_json::from_slice(json).unwrap_or_default();
    let values = values.into_iter().filter(|(name, _)| wire::is_valid(name) && !is_reserved(name));
    values.map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}
