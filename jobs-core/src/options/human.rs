//! Durations and sizes as people write them.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// Marks, to the options reader, a value whose bare number deserves a warning.
pub(super) const NANOSECONDS: &str = "jobs_core::options::duration";
pub(super) const SECONDS: &str = "jobs_core::options::seconds";

/// Reads a duration such as `500ms`, `30s` or `1h 30m`; a bare number counts nanoseconds.
///
/// For `#[serde(deserialize_with = "options::duration")]`, on `Duration` and `Option<Duration>`.
///
/// # Errors
/// Text that is no duration, and negative numbers.
pub fn duration<'de, D: Deserializer<'de>, T: From<Duration>>(from: D) -> Result<T, D::Error> {
    from.deserialize_newtype_struct(NANOSECONDS, DurationVisitor(Duration::from_nanos)).map(T::from)
}

/// As [`duration()`], but a bare number counts seconds: for options that RoadRunner defines so.
///
/// # Errors
/// Text that is no duration, and negative numbers.
pub fn seconds<'de, D: Deserializer<'de>, T: From<Duration>>(from: D) -> Result<T, D::Error> {
    from.deserialize_newtype_struct(SECONDS, DurationVisitor(Duration::from_secs)).map(T::from)
}

/// Reads a size such as `64KiB` or `1MB` into bytes; a bare number counts bytes.
///
/// For `#[serde(deserialize_with = "options::size")]`, on `usize` and `Option<usize>`.
///
/// # Errors
/// Text that is no size, negative numbers, and more than the address space holds.
pub fn size<'de, D: Deserializer<'de>, T: From<usize>>(from: D) -> Result<T, D::Error> {
    from.deserialize_any(SizeVisitor).map(T::from)
}

struct DurationVisitor(fn(u64) -> Duration);

impl<'de> Visitor<'de> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration such as `500ms`, `30s` or `1m`")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, from: D) -> Result<Duration, D::Error> {
        from.deserialize_any(self)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Duration, E> {
        Ok(self.0(number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        match text.trim().parse() {
            Ok(number) => Ok(self.0(number)),
            Err(_) => humantime::parse_duration(text)
                .map_err(|_| E::invalid_value(Unexpected::Str(text), &self)),
        }
    }
}

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as `65536`, `64KiB` or `1MB`")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<usize, E> {
        usize::try_from(number).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<usize, E> {
        let size: ByteSize =
            text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))?;
        self.visit_u64(size.as_u64())
    }
}
