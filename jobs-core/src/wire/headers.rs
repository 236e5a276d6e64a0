//! The text of [`HEADERS`](super::HEADERS): a JSON object of text to lists of text.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The text of [`HEADERS`](super::HEADERS). Names stand in the order of their first value.
#[must_use]
pub fn write_headers<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut entries: Vec<_> = entries.into_iter().enumerate().collect();
    entries.sort_unstable_by_key(|(index, (name, _))| (*name, *index));
    let mut names: Vec<_> = entries.chunk_by(|(_, (a, _)), (_, (b, _))| a == b).collect();
    names.sort_unstable_by_key(|values| values[0].0);

    // As much as a few headers need.
    let mut json = Vec::with_capacity(64);
    json.push(b'{');
    for (index, values) in names.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        write_text(&mut json, values[0].1.0);
        json.push(b':');
        for (index, (_, (_, value))) in values.iter().enumerate() {
            json.push(if index == 0 { b'[' } else { b',' });
            write_text(&mut json, value);
        }
        json.push(b']');
    }
    json.push(b'}');
    json
}

fn write_text(json: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(json, text).expect("text into memory");
}

/// Reads the text of [`HEADERS`](super::HEADERS), also as others write it: single values for lists,
/// numbers for text, `null` for no headers. `None` if it is no JSON object.
#[must_use]
pub fn read_headers(json: &[u8]) -> Option<Vec<(String, String)>> {
    if json == b"{}" {
        return Some(Vec::new());
    }
    let entries: Entries = serde_json::from_slice(json)
        .or_else(|_| serde_json::from_str(&String::from_utf8_lossy(json)))
        .ok()?;
    Some(entries.0)
}

struct Entries(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(EntriesVisitor).map(Self)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("headers")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key()? {
            let first = entries.len();
            map.next_value_seed(&mut Values { name, first, entries: &mut entries })?;
        }
        Ok(entries)
    }
}

/// Adds what a name has, in lists of any depth.
struct Values<'a> {
    /// Until the first value takes it.
    name: String,
    first: usize,
    entries: &'a mut Vec<(String, String)>,
}

impl Values<'_> {
    fn add<E>(&mut self, value: String) -> Result<(), E> {
        let first = self.entries.get(self.first).map(|(name, _)| name.clone());
        let name = first.unwrap_or_else(|| std::mem::take(&mut self.name));
        self.entries.push((name, value));
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Values<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Values<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of text")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.add(value.to_owned())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.add(value.to_string())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.add(value.to_string())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.add(value.to_string())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.add(value.to_string())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(&mut *self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_once_in_the_order_of_their_first_value() {
        assert_eq!(write_headers([]), b"{}");
        let written = write_headers([("b", "1"), ("a", "2"), ("b", "\"\n")]);
        assert_eq!(written, br#"{"b":["1","\"\n"],"a":["2"]}"#);
        let read = [("b", "1"), ("b", "\"\n"), ("a", "2")];
        let read = read.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(read_headers(&written), Some(read.to_vec()));
    }
}
