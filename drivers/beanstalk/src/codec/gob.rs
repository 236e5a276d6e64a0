//! Go's gob, as far as RoadRunner's jobs need it: read, never written.
//!
//! A stream describes its types before it uses them, under numbers that differ from process to
//! process. So definitions are read, fields are found by their names, and what is not known is
//! skipped by its type. Source: <https://pkg.go.dev/encoding/gob>.

use std::collections::HashMap;

use jobs_core::{Bytes, JobId};

/// Types nested deeper than this are not RoadRunner's.
const DEEPEST: u32 = 16;
/// Its jobs have four types of six fields at most.
const MOST_TYPES: usize = 64;
const MOST_FIELDS: usize = 64;
/// Bytes of names in memory for each byte of the stream.
const MOST_COPIED: usize = 16;

/// RoadRunner's job.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Item {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) payload: Bytes,
    pub(super) headers: Vec<(String, String)>,
    pub(super) priority: i64,
    pub(super) auto_ack: bool,
}

/// The job of a stream that begins with one. Bytes behind it are ignored.
pub(super) fn read(stream: &Bytes) -> Option<Item> {
    let mut reader = Reader { bytes: stream, at: 0 };
    let mut types = Types::default();
    loop {
        let length = reader.length()?;
        let mut content = Reader { bytes: stream, at: reader.at };
        content.bytes = &stream[..reader.at.checked_add(length)?];
        reader.at += length;
        let number = content.int()?;
        if number > 0 {
            return types.item(&mut content, number, stream);
        }
        if types.0.len() == MOST_TYPES {
            return None;
        }
        let definition = content.definition()?;
        types.0.insert(number.checked_neg()?, definition);
    }
}

/// A user's type.
#[derive(Clone, Debug)]
enum Type {
    Struct(Vec<(String, i64)>),
    Map {
        key: i64,
        element: i64,
    },
    /// An array too: both are a count and elements.
    Slice {
        element: i64,
    },
    /// Marshals itself, into bytes.
    Opaque,
}

/// Numbers of the types that need no definition.
mod builtin {
    pub(super) const BOOL: i64 = 1;
    pub(super) const INT: i64 = 2;
    pub(super) const UINT: i64 = 3;
    pub(super) const FLOAT: i64 = 4;
    pub(super) const BYTES: i64 = 5;
    pub(super) const STRING: i64 = 6;
    pub(super) const COMPLEX: i64 = 7;
}

#[derive(Clone)]
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn uint(&mut self) -> Option<u64> {
        let first = self.byte()?;
        if first < 128 {
            return Some(first.into());
        }
        // The count of the bytes that follow, negated.
        let count = first.wrapping_neg();
        if count > 8 {
            return None;
        }
        (0..count).try_fold(0, |number: u64, _| Some(number << 8 | u64::from(self.byte()?)))
    }

    fn int(&mut self) -> Option<i64> {
        let number = self.uint()?;
        let half = i64::try_from(number >> 1).ok()?;
        Some(if number & 1 == 1 { !half } else { half })
    }

    /// A length of what is there.
    fn length(&mut self) -> Option<usize> {
        let length = usize::try_from(self.uint()?).ok()?;
        (length <= self.bytes.len() - self.at).then_some(length)
    }

    /// The place of a text or bytes.
    fn range(&mut self) -> Option<std::ops::Range<usize>> {
        let length = self.length()?;
        let start = self.at;
        self.at += length;
        Some(start..self.at)
    }

    fn text(&mut self) -> Option<String> {
        let range = self.range()?;
        Some(String::from_utf8_lossy(&self.bytes[range]).into_owned())
    }

    /// Reads a struct: `field` is called with the number of each field that is there, from 1.
    fn fields(&mut self, mut field: impl FnMut(&mut Self, u64) -> Option<()>) -> Option<()> {
        let mut number = 0_u64;
        loop {
            match self.uint()? {
                0 => return Some(()),
                step => number = number.checked_add(step)?,
            }
            field(self, number)?;
        }
    }

    /// What describes a type: a struct with one field for each kind of type.
    fn definition(&mut self) -> Option<Type> {
        let mut found = None;
        self.fields(|reader, kind| {
            found = Some(match kind {
                1 | 2 => reader.elements(|element, _| Type::Slice { element })?,
                3 => reader.structure()?,
                4 => reader.elements(|key, element| Type::Map { key, element })?,
                5..=7 => {
                    reader.fields(Self::common)?;
                    Type::Opaque
                }
                _ => return None,
            });
            Some(())
        })?;
        found
    }

    /// The first field of all definitions: a name and a number.
    fn common(&mut self, number: u64) -> Option<()> {
        if number != 1 {
            return None;
        }
        self.fields(|reader, number| match number {
            1 => reader.range().map(drop),
            2 => reader.int().map(drop),
            _ => None,
        })
    }

    fn elements(&mut self, make: impl Fn(i64, i64) -> Type) -> Option<Type> {
        let mut numbers = [0, 0];
        self.fields(|reader, number| {
            match number {
                2 => numbers[0] = reader.int()?,
                3 => numbers[1] = reader.int()?,
                _ => reader.common(number)?,
            }
            Some(())
        })?;
        Some(make(numbers[0], numbers[1]))
    }

    fn structure(&mut self) -> Option<Type> {
        let mut found = Vec::new();
        self.fields(|reader, number| {
            if number != 2 {
                return reader.common(number);
            }
            for _ in 0..reader.uint()? {
                if found.len() == MOST_FIELDS {
                    return None;
                }
                let mut field = (String::new(), 0);
                reader.fields(|reader, number| {
                    match number {
                        1 => field.0 = reader.text()?,
                        2 => field.1 = reader.int()?,
                        _ => return None,
                    }
                    Some(())
                })?;
                found.push(field);
            }
            Some(())
        })?;
        Some(Type::Struct(found))
    }
}

/// Types by their numbers.
#[derive(Default)]
struct Types(HashMap<i64, Type>);

impl Types {
    fn item(&self, reader: &mut Reader<'_>, number: i64, stream: &Bytes) -> Option<Item> {
        let Some(Type::Struct(fields)) = self.0.get(&number) else { return None };
        // Others have types of the same shape. RoadRunner's has these.
        let has = |name: &str| fields.iter().any(|(field, _)| field == name);
        if !has("Job") || !has("Ident") || !has("Payload") {
            return None;
        }
        let mut item = Item::default();
        self.named(reader, fields, |reader, name, kind| {
            match (name, kind) {
                ("Job", builtin::STRING) => item.name = reader.text()?,
                ("Ident", builtin::STRING) => item.id = reader.text()?,
                ("Payload", builtin::BYTES | builtin::STRING) => {
                    item.payload = stream.slice(reader.range()?);
                }
                ("Hdrs", _) if self.is_headers(kind) => item.headers = headers(reader)?,
                ("Options", _) => self.options(reader, kind, &mut item)?,
                _ => self.skip(reader, kind, 0)?,
            }
            Some(())
        })?;
        Some(item)
    }

    fn options(&self, reader: &mut Reader<'_>, number: i64, item: &mut Item) -> Option<()> {
        let Some(Type::Struct(fields)) = self.0.get(&number) else {
            return self.skip(reader, number, 0);
        };
        self.named(reader, fields, |reader, name, kind| {
            match (name, kind) {
                ("Priority", builtin::INT) => item.priority = reader.int()?,
                ("AutoAck", builtin::BOOL) => item.auto_ack = reader.uint()? != 0,
                _ => self.skip(reader, kind, 0)?,
            }
            Some(())
        })
    }

    /// Reads a struct, with the name and type of each field that is there.
    fn named(
        &self,
        reader: &mut Reader<'_>,
        fields: &[(String, i64)],
        mut field: impl FnMut(&mut Reader<'_>, &str, i64) -> Option<()>,
    ) -> Option<()> {
        reader.fields(|reader, number| {
            let index = usize::try_from(number - 1).ok()?;
            let (name, kind) = fields.get(index)?;
            field(reader, name, *kind)
        })
    }

    /// True for a map of text to lists of text.
    fn is_headers(&self, number: i64) -> bool {
        let Some(Type::Map { key: builtin::STRING, element }) = self.0.get(&number) else {
            return false;
        };
        matches!(self.0.get(element), Some(Type::Slice { element: builtin::STRING }))
    }

    fn skip(&self, reader: &mut Reader<'_>, number: i64, depth: u32) -> Option<()> {
        if depth == DEEPEST {
            return None;
        }
        match number {
            builtin::BOOL | builtin::INT | builtin::UINT | builtin::FLOAT => {
                reader.uint().map(drop)
            }
            builtin::BYTES | builtin::STRING => reader.range().map(drop),
            builtin::COMPLEX => {
                reader.uint()?;
                reader.uint().map(drop)
            }
            _ => match self.0.get(&number)? {
                Type::Opaque => reader.range().map(drop),
                Type::Struct(fields) => {
                    self.named(reader, fields, |reader, _, kind| self.skip(reader, kind, depth + 1))
                }
                // Each element takes a byte at least, so that a count too large ends soon.
                Type::Slice { element } => {
                    (0..reader.uint()?).try_for_each(|_| self.skip(reader, *element, depth + 1))
                }
                Type::Map { key, element } => (0..reader.uint()?).try_for_each(|_| {
                    self.skip(reader, *key, depth + 1)?;
                    self.skip(reader, *element, depth + 1)
                }),
            },
        }
    }
}

/// A name is written once for all of its values, and kept with each of them. So names that are too
/// long to be pushed again are left out, and nothing is RoadRunner's that would take much more
/// memory than its stream.
fn headers(reader: &mut Reader<'_>) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut left = MOST_COPIED * reader.bytes.len();
    for _ in 0..reader.uint()? {
        let name = reader.text()?;
        for _ in 0..reader.uint()? {
            let value = reader.text()?;
            if name.len() <= JobId::MAX_LEN {
                left = left.checked_sub(name.len())?;
                found.push((name.clone(), value));
            }
        }
    }
    // A map of Go has no order.
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Some(found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Definitions as an older Go writes them, with headers.
    const OLDER: &str = "\
        47ff81030101044974656d01ff8200010501034a6f62010c0001054964656e74010c0001075061796c6f6164010a\
        0001044864727301ff860001074f7074696f6e7301ff8800000024ff85040101136d61705b737472696e675d5b5d\
        737472696e6701ff8600010c01ff8400000cff83020102ff8400010c00004fff8703010107\
        4f7074696f6e7301ff8800010501085072696f726974790104000108506970656c696e65010c00010544656c6179\
        01040001074175746f41636b01020001055175657565010c000000";
    /// The same as a newer Go numbers them.
    const NEWER: &str = "\
        467f030101044974656d01ff8000010501034a6f62010c0001054964656e74010c0001075061796c6f6164010a\
        0001044864727301ff840001074f7074696f6e7301ff8600000024ff83040101136d61705b737472696e675d5b5d\
        737472696e6701ff8400010c01ff8200000cff81020102ff8200010c00004fff8503010107\
        4f7074696f6e7301ff8600010501085072696f726974790104000108506970656c696e65010c00010544656c6179\
        01040001074175746f41636b01020001055175657565010c000000";
    const FULL: &str = "\
        4dff820112736f6d652f7068702f6e616d657370616365010469642d3101077b2261223a317d0101047465737402\
        0274310274320101140106746573742d31010a0101010764656661756c740000";
    const SHORT: &str = "15ff8201016a01016901017001000101140101740000";
    const NEGATIVE: &str = "11ff8201016a01016903010102fe02580000";
    const BARE: &str = "09ff8201016a01016900";

    fn bytes(parts: &[&str]) -> Vec<u8> {
        let text = parts.concat();
        let digits = (0..text.len()).step_by(2).map(|at| &text[at..at + 2]);
        digits.map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect()
    }

    fn item(parts: &[&str]) -> Option<Item> {
        read(&Bytes::from(bytes(parts)))
    }

    fn full() -> Item {
        let header = |value: &str| ("test".to_owned(), value.to_owned());
        Item {
            id: "id-1".into(),
            name: "some/php/namespace".into(),
            payload: Bytes::from_static(b"{\"a\":1}"),
            headers: vec![header("t1"), header("t2")],
            priority: 10,
            auto_ack: true,
        }
    }

    #[test]
    fn jobs_are_read_whatever_the_numbers_of_their_types() {
        assert_eq!(item(&[OLDER, FULL]), Some(full()));
        let renumbered = FULL.replacen("ff82", "ff80", 1);
        assert_eq!(item(&[NEWER, &renumbered]), Some(full()));
        assert_eq!(item(&[OLDER, FULL, "deadbeef"]), Some(full()), "what is behind is ignored");
    }

    #[test]
    fn what_is_left_out_is_zero() {
        let expected = Item { id: "i".into(), name: "j".into(), ..Item::default() };
        assert_eq!(item(&[OLDER, BARE]), Some(expected));
        let short = item(&[OLDER, SHORT]).expect("a job");
        assert_eq!((&short.payload[..], short.priority), (&b"p"[..], 10));
        assert!(short.headers.is_empty() && !short.auto_ack);
        assert_eq!(item(&[OLDER, NEGATIVE]).map(|item| item.priority), Some(-1));
    }

    #[test]
    fn every_beginning_of_a_job_is_none() {
        let whole = bytes(&[OLDER, FULL]);
        for length in 0..whole.len() {
            assert_eq!(read(&Bytes::copy_from_slice(&whole[..length])), None, "{length}");
        }
    }

    #[test]
    fn hostile_lengths_are_refused() {
        for text in [
            // A message of 2^64 - 1 bytes, and one of nine bytes of length.
            "f8ffffffffffffffff",
            "f7ffffffffffffffffff",
            // A definition with 2^63 fields; one of the type with the smallest number.
            "12ff8103010102 0102 f88000000000000000",
            "0af8fffffffffffffffe00",
        ] {
            assert_eq!(item(&[&text.replace(' ', "")]), None, "{text}");
        }
        // A payload, then a list of headers, longer than what is there.
        assert_eq!(item(&[OLDER, "0bff820301f87fffffffffffff"]), None);
        assert_eq!(item(&[OLDER, "0dff820401f8ffffffffffffffff00"]), None);
    }

    fn uint(number: usize) -> Vec<u8> {
        let number = u16::try_from(number).expect("small").to_be_bytes();
        [&[0xfe], &number[..]].concat()
    }

    /// A job with one header of that many values, all empty.
    fn repeated(name: usize, values: usize) -> Bytes {
        let job = [0xff, 0x82, 0x04, 0x01].to_vec();
        let name = [uint(name), vec![b'n'; name]].concat();
        let values = [uint(values), vec![0; values], vec![0]].concat();
        let content = [job, name, values].concat();
        Bytes::from([bytes(&[OLDER]), uint(content.len()), content].concat())
    }

    #[test]
    fn a_name_of_many_values_takes_little_memory() {
        let few = read(&repeated(255, 10)).expect("a job");
        assert_eq!(few.headers.len(), 10);
        let long = read(&repeated(30_000, 30_000)).expect("a job");
        assert_eq!(long.headers, []);
        assert_eq!(read(&repeated(255, 60_000)), None);
    }

    proptest! {
        #[test]
        fn a_changed_byte_makes_no_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut stream = bytes(&[OLDER, FULL]);
            let at = at.index(stream.len());
            stream[at] = byte;
            read(&Bytes::from(stream));
        }

        #[test]
        fn any_bytes_behind_the_definitions_make_no_panic(
            tail in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let mut stream = bytes(&[OLDER]);
            stream.push(u8::try_from(tail.len() + 2).expect("few"));
            stream.extend([0xff, 0x82]);
            stream.extend(tail);
            read(&Bytes::from(stream));
        }
    }
}
