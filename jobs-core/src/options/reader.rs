//! A serde deserializer over option values: lenient about text, exact about paths.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer,
    MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde_json::Value;

use super::{Options, human};
use crate::Problem;

/// Parses again and again, each time answering for the option that failed before, so that one call
/// finds every problem.
pub(super) fn parse<T: DeserializeOwned>(options: &Options) -> Result<T, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut answered = BTreeSet::new();
    loop {
        let failure = match T::deserialize(Root { options, answered: &answered }) {
            Ok(parsed) if problems.is_empty() => return Ok(parsed),
            Ok(_) => return Err(problems),
            Err(failure) => failure,
        };
        let Some(option) = failure.keys.last().cloned() else {
            // Nothing says which option it was, so it cannot be answered for.
            problems.push(Problem::new(options.path(), failure.message));
            return Err(problems);
        };
        if !answered.insert(option) {
            return Err(problems);
        }
        problems.push(failure.into_problem(options));
    }
}

/// What a value is, for a problem's text. Never shows text of a value that may be long.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) => format!("`{n}`"),
        Value::String(_) => "text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a map".into(),
    }
}

/// Why reading failed, and under which keys, innermost first.
#[derive(Debug)]
struct Failure {
    keys: Vec<String>,
    message: String,
    kind: FailureKind,
}

#[derive(Debug, PartialEq)]
enum FailureKind {
    Value,
    Missing,
    Unknown,
}

impl Failure {
    fn new(message: String) -> Self {
        Self { keys: Vec::new(), message, kind: FailureKind::Value }
    }

    fn under(mut self, key: &str) -> Self {
        // The innermost key of a missing or unknown field is known to serde, not to the caller.
        self.keys.push(key.to_owned());
        self
    }

    fn into_problem(self, options: &Options) -> Problem {
        let top = self.keys.last().map_or("", String::as_str);
        let section = options.entries.get(top).map_or(&options.path, |entry| &entry.section);
        let keys = self.keys.iter().rev().map(String::as_str);
        let path: Vec<_> = std::iter::once(&**section).chain(keys).collect();
        let mut message = self.message;
        match self.kind {
            FailureKind::Value if looks_secret(&self.keys) => {
                // Only our own texts are known to name the value at their end.
                match message.find(", found").filter(|_| message.starts_with("expected ")) {
                    Some(end) => message.truncate(end),
                    None => message = "is not valid".to_owned(),
                }
            }
            FailureKind::Unknown
                if self.keys.len() == 1
                    && !options.taken.is_empty()
                    && Arc::ptr_eq(section, &options.path) =>
            {
                message.push_str(", ");
                message.push_str(&list(options.taken.iter().copied()));
            }
            _ => {}
        }
        Problem::new(path.join("."), message)
    }
}

/// A wrong value is shown to the user, unless its name says that it should not be.
fn looks_secret(keys: &[String]) -> bool {
    let secret = [
        "secret", "pass", "pwd", "token", "key", "cred", "auth", "sasl", "addr", "url", "uri",
        "dsn",
    ];
    keys.iter().any(|key| secret.iter().any(|word| key.contains(word)))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<M: fmt::Display>(message: M) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Str(text) => format!("`{text}`"),
            Unexpected::Unsigned(n) => format!("`{n}`"),
            Unexpected::Signed(n) => format!("`{n}`"),
            Unexpected::Float(n) => format!("`{n}`"),
            Unexpected::Bool(b) => format!("`{b}`"),
            Unexpected::Unit => "nothing".into(),
            Unexpected::Seq => "a list".into(),
            Unexpected::Map => "a map".into(),
            other => other.to_string(),
        };
        Self::new(format!("expected {}, found {found}", plain(&expected.to_string())))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(found: &str, variants: &'static [&'static str]) -> Self {
        Self::new(format!("expected one of {}, found `{found}`", list(variants.iter().copied())))
    }

    fn unknown_field(field: &str, fields: &'static [&'static str]) -> Self {
        let message = match fields {
            [] => "unknown option, there are none here".to_owned(),
            fields => format!("unknown option, expected one of {}", list(fields.iter().copied())),
        };
        Self { keys: vec![field.to_owned()], message, kind: FailureKind::Unknown }
    }

    fn missing_field(field: &'static str) -> Self {
        let message = "is required and missing".to_owned();
        Self { keys: vec![field.to_owned()], message, kind: FailureKind::Missing }
    }
}

fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Serde names primitive types as Rust does; users of a configuration file do not.
fn plain(expected: &str) -> String {
    match expected {
        "u8" => "a whole number from 0 to 255".into(),
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" | "u64" | "usize" => "a whole number of at least 0".into(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a boolean" => "`true` or `false`".into(),
        "a string" | "str" => "text".into(),
        "a nonzero u8" => "a whole number from 1 to 255".into(),
        "a nonzero u16" => "a whole number from 1 to 65535".into(),
        other if other.starts_with("a nonzero") => "a whole number of at least 1".into(),
        other if other.starts_with("struct ") => "options as `name: value`".into(),
        other => other.into(),
    }
}

/// The options of a section as one struct.
struct Root<'a> {
    options: &'a Options,
    answered: &'a BTreeSet<String>,
}

impl<'de> Deserializer<'de> for Root<'_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_struct("", &[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let Self { options, answered } = self;
        let written = options.entries.iter().filter(|(name, _)| {
            // An unknown option was reported before, and nothing asks for it.
            !answered.contains(*name) || fields.contains(&name.as_str())
        });
        let missing = answered
            .iter()
            .filter(|name| !options.entries.contains_key(*name) && fields.contains(&name.as_str()));
        // Those answered for come last: one that takes no answer must not hide what is behind it.
        let (answered_for, open): (Vec<_>, Vec<_>) =
            written.partition(|(name, _)| answered.contains(*name));
        let entries: Vec<_> = open
            .into_iter()
            .chain(answered_for)
            .map(|(name, entry)| match answered.contains(name) {
                true => (name.as_str(), None),
                false => {
                    let path = format!("{}.{name}", entry.section);
                    (name.as_str(), Some(Reader { value: &entry.value, path }))
                }
            })
            .chain(missing.map(|name| (name.as_str(), None)))
            .collect();
        visitor.visit_map(Entries { entries: entries.into_iter(), next: None })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Keys with their values; no value stands for one that was answered for.
struct Entries<'a, I> {
    entries: I,
    next: Option<(&'a str, Option<Reader<'a>>)>,
}

impl<'a, 'de, I> MapAccess<'de> for Entries<'a, I>
where
    I: Iterator<Item = (&'a str, Option<Reader<'a>>)>,
{
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        self.next = self.entries.next();
        let Some((key, _)) = &self.next else { return Ok(None) };
        let key: StrDeserializer<'_, Failure> = (*key).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        match self.next.take().expect("serde asks for a key first") {
            (key, Some(reader)) => seed.deserialize(reader).map_err(|failure| failure.under(key)),
            (key, None) => seed.deserialize(AnyAnswer).map_err(|failure| failure.under(key)),
        }
    }
}

/// One value, read as whatever type is asked for.
#[derive(Clone)]
struct Reader<'a> {
    value: &'a Value,
    path: String,
}

impl Reader<'_> {
    fn text(&self) -> Option<&str> {
        self.value.as_str()
    }

    /// Text that should be a list or map: JSON, or for lists also `a,b`.
    fn structure(&self) -> Option<Value> {
        self.text().and_then(|text| serde_json::from_str(text).ok())
    }

    fn with<'b>(&self, value: &'b Value, key: &str) -> Reader<'b> {
        Reader { value, path: format!("{}.{key}", self.path) }
    }

    /// Reads a map. Keys that name a field in any case are that field's: names of options are not
    /// case-sensitive.
    fn read_map<'de, V: Visitor<'de>>(
        &self,
        fields: &[&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let parsed = self.structure();
        let map = self.value.as_object().or(parsed.as_ref().and_then(Value::as_object));
        let Some(map) = map else {
            let found = describe(self.value);
            return Err(Failure::new(format!("expected options as `name: value`, found {found}")));
        };
        let field = |key: &str| fields.iter().copied().find(|name| name.eq_ignore_ascii_case(key));
        let entries = map
            .iter()
            .map(|(key, value)| (field(key).unwrap_or(key.as_str()), Some(self.with(value, key))));
        visitor.visit_map(Entries { entries, next: None })
    }
}

macro_rules! from_text {
    ($($method:ident $visit:ident $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            match self.text().and_then(|text| text.trim().parse::<$type>().ok()) {
                Some(parsed) => visitor.$visit(parsed),
                None => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(b) => visitor.visit_bool(*b),
            Value::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(n), _) => visitor.visit_u64(n),
                (None, Some(n)) => visitor.visit_i64(n),
                (None, None) => visitor.visit_f64(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_str(text),
            Value::Array(_) => self.deserialize_seq(visitor),
            Value::Object(_) => self.deserialize_map(visitor),
        }
    }

    from_text! {
        deserialize_bool visit_bool bool,
        deserialize_i8 visit_i64 i64, deserialize_i16 visit_i64 i64,
        deserialize_i32 visit_i64 i64, deserialize_i64 visit_i64 i64,
        deserialize_u8 visit_u64 u64, deserialize_u16 visit_u64 u64,
        deserialize_u32 visit_u64 u64, deserialize_u64 visit_u64 u64
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        let parsed = self.text().and_then(|text| text.trim().parse::<f64>().ok());
        match parsed.filter(|number| number.is_finite()) {
            Some(parsed) => visitor.visit_f64(parsed),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        let is_number = match self.value {
            Value::Number(number) => number.as_u64() != Some(0),
            Value::String(text) => text.trim().parse::<u64>().is_ok_and(|number| number != 0),
            _ => false,
        };
        if let (true, human::NANOSECONDS | human::SECONDS) = (is_number, name) {
            let unit = if name == human::SECONDS { "seconds" } else { "nanoseconds" };
            tracing::warn!(path = self.path, "bare number counts {unit}; better write `30s`");
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.value {
            Value::Array(items) => visitor.visit_seq(Items { reader: &self, items, index: 0 }),
            Value::String(text) => {
                let items = match self.structure() {
                    Some(Value::Array(items)) => items,
                    _ if text.trim().is_empty() => Vec::new(),
                    _ => text.split(',').map(|item| item.trim().into()).collect(),
                };
                visitor.visit_seq(Items { reader: &self, items: &items, index: 0 })
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        self.read_map(&[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.read_map(fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match self.value {
            Value::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            other => Err(Failure::new(format!("expected text, found {}", describe(other)))),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct identifier
        ignored_any
    }
}

struct Items<'a> {
    reader: &'a Reader<'a>,
    items: &'a [Value],
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Failure;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Failure> {
        let Some(item) = self.items.get(self.index) else { return Ok(None) };
        let key = self.index.to_string();
        self.index += 1;
        seed.deserialize(self.reader.with(item, &key)).map_err(|f| f.under(&key)).map(Some)
    }
}

/// Answers anything with something, for an option whose problem is known already.
struct AnyAnswer;

impl<'de> Deserializer<'de> for AnyAnswer {
    type Error = Failure;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_u64(1)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_bool(false)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_str("")
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_str("")
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_none()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_seq(de::value::SeqDeserializer::new(std::iter::empty::<u64>()))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_map(AllAnswers { fields: &[] })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_map(AllAnswers { fields })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_enum(FirstVariant(variants.first().copied().unwrap_or_default()))
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}

struct AllAnswers {
    fields: &'static [&'static str],
}

impl<'de> MapAccess<'de> for AllAnswers {
    type Error = Failure;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Failure> {
        let Some((field, rest)) = self.fields.split_first() else { return Ok(None) };
        self.fields = rest;
        let key: StrDeserializer<'_, Failure> = (*field).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        seed.deserialize(AnyAnswer)
    }
}

struct FirstVariant(&'static str);

impl<'de> EnumAccess<'de> for FirstVariant {
    type Error = Failure;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Failure> {
        let name: StrDeserializer<'_, Failure> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for FirstVariant {
    type Error = Failure;

    fn unit_variant(self) -> Result<(), Failure> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Failure> {
        seed.deserialize(AnyAnswer)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, v: V) -> Result<V::Value, Failure> {
        AnyAnswer.deserialize_seq(v)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        AnyAnswer.deserialize_struct("", fields, visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU32;
    use std::time::Duration;

    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::json;

    use crate::options::{Options, duration, seconds, size};

    #[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Full,
        Normal,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Tls {
        cert: String,
        verify: bool,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        queue: String,
        prefetch: NonZeroU32,
        #[serde(default)]
        durable: bool,
        mode: Mode,
        #[serde(default)]
        topics: Vec<String>,
        #[serde(default)]
        partitions: Vec<u8>,
        #[serde(default)]
        arguments: BTreeMap<String, i64>,
        tls: Option<Tls>,
        #[serde(default, deserialize_with = "duration")]
        lease: Option<Duration>,
        #[serde(default, deserialize_with = "seconds")]
        redial_timeout: Duration,
        #[serde(default, deserialize_with = "size")]
        max: Option<usize>,
        password: Option<secrecy::SecretString>,
    }

    fn parse(value: serde_json::Value) -> Result<Config, Vec<String>> {
        let options = Options::from_value("p.config", value).expect("a map");
        options.parse().map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn real_values_and_flat_text_read_alike() {
        let real = parse(json!({
            "queue": "mail", "prefetch": 10, "durable": true, "mode": "normal",
            "topics": ["a", "b"], "partitions": [1, 2], "arguments": {"x-max": -3},
            "tls": {"cert": "c.pem", "verify": false}, "lease": "1m 30s",
            "redial_timeout": 60, "max": "64KiB",
        }))
        .expect("valid");
        let text = parse(json!({
            "QUEUE": "mail", "prefetch": "10", "durable": "true", "mode": "normal",
            "topics": "a, b", "partitions": "[1, 2]", "arguments": "{\"x-max\": -3}",
            "tls": "{\"Cert\": \"c.pem\", \"VERIFY\": \"false\"}", "lease": "90000000000",
            "redial_timeout": "60", "max": "65536",
        }))
        .expect("valid");
        for config in [&real, &text] {
            assert_eq!((config.queue.as_str(), config.prefetch.get()), ("mail", 10));
            assert_eq!((config.durable, config.mode), (true, Mode::Normal));
            assert!(config.password.is_none());
            assert_eq!(config.topics, ["a", "b"]);
            assert_eq!(config.partitions, [1, 2]);
            assert_eq!(config.arguments["x-max"], -3);
            assert_eq!(config.tls, Some(Tls { cert: "c.pem".into(), verify: false }));
            assert_eq!(config.lease, Some(Duration::from_secs(90)));
            assert_eq!(config.redial_timeout, Duration::from_secs(60));
            assert_eq!(config.max, Some(65_536));
        }
    }

    #[test]
    fn all_problems_are_found_at_once_each_with_its_path() {
        let problems = parse(json!({
            "prefech": 1, "prefetch": 0, "durable": "maybe", "mode": "fast",
            "partitions": [1, 300], "tls": {"cert": 7, "verify": true}, "lease": -5,
            "redial_timeout": "soon", "max": "big",
        }))
        .expect_err("wrong");
        let expected = [
            "`p.config.durable`: expected `true` or `false`, found `maybe`",
            "`p.config.lease`: expected a duration such as `500ms`, `30s` or `1m`, found `-5`",
            "`p.config.max`: expected a size such as `65536`, `64KiB` or `1MB`, found `big`",
            "`p.config.mode`: expected one of `full`, `normal`, found `fast`",
            "`p.config.partitions.1`: expected a whole number from 0 to 255, found `300`",
            "`p.config.prefetch`: expected a whole number of at least 1, found `0`",
            "`p.config.queue`: is required and missing",
            "`p.config.redial_timeout`: expected a duration such as `500ms`, `30s` or `1m`, \
             found `soon`",
            "`p.config.tls.cert`: expected text, found `7`",
        ];
        let mut known: Vec<_> = problems.iter().filter(|p| !p.contains("prefech")).collect();
        known.sort();
        assert_eq!(known, expected);
        let typo = problems.iter().find(|p| p.contains("prefech")).expect("reported");
        assert!(typo.contains("unknown option, expected one of `queue`, `prefetch`"), "{typo}");
    }

    #[test]
    fn an_option_that_takes_no_answer_hides_no_other_problem() {
        fn address<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
            let text = String::deserialize(from)?;
            let valid = text.starts_with("tcp://");
            valid.then_some(text).ok_or_else(|| serde::de::Error::custom("expected `tcp://…`"))
        }
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Strict {
            #[serde(deserialize_with = "address")]
            _a: String,
            _b: u8,
        }
        let options = Options::from_pairs("p", [("_a", "udp"), ("_b", "x"), ("_c", "")]);
        assert_eq!(options.parse::<Strict>().expect_err("wrong").len(), 3);
    }

    #[test]
    fn a_wrong_secret_is_not_shown() {
        let problems = parse(json!({"queue": "q", "prefetch": 1, "mode": "full", "password": 77}))
            .expect_err("not text");
        assert_eq!(problems, ["`p.config.password`: expected text"]);
    }

    #[test]
    fn a_wrong_address_is_not_shown_whatever_its_text_says() {
        fn address<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
            let text = String::deserialize(from)?;
            Err(serde::de::Error::custom(format!("`{text}` is no address")))
        }
        #[derive(Debug, Deserialize)]
        struct Remote {
            #[serde(rename = "addr", deserialize_with = "address")]
            _addr: String,
        }
        let options = Options::from_pairs("p", [("addr", "amqp://me:hunter2@h")]);
        let problems = options.parse::<Remote>().expect_err("wrong");
        assert_eq!(problems[0].message(), "is not valid");
    }

    #[test]
    fn an_option_set_twice_is_a_problem_and_blank_text_is_an_empty_list() {
        let twice = Options::from_value("p", json!({"Queue": "a", "queue": "b"}));
        assert_eq!(twice.expect_err("twice").path(), "p.queue");
        let topics = json!({"queue": "q", "prefetch": 1, "mode": "full", "topics": " "});
        assert!(parse(topics).expect("valid").topics.is_empty());
    }

    #[test]
    fn a_section_that_is_no_map_is_a_problem() {
        let problem = Options::from_value("p", json!([1])).expect_err("a list");
        assert_eq!(problem.message(), "expected options as `name: value`, found a list");
        assert!(Options::from_value("p", json!(null)).expect("empty").is_empty());
    }

    #[test]
    fn the_pipeline_wins_over_the_shared_section_and_problems_name_the_source() {
        let shared = Options::from_pairs("amqp", [("queue", json!("a")), ("mode", json!("odd"))]);
        let own = Options::from_pairs("p.config", [("queue", json!("b")), ("prefetch", json!(1))]);
        let problems = own.over(&shared).parse::<Config>().expect_err("odd");
        assert_eq!(problems[0].path(), "amqp.mode");
        let shared = Options::from_pairs("amqp", [("queue", json!("a")), ("mode", json!("full"))]);
        assert_eq!(own.over(&shared).parse::<Config>().expect("valid").queue, "b");
    }

    fn any_value() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|b| json!(b)),
            any::<i64>().prop_map(|n| json!(n)),
            any::<f64>().prop_map(|n| json!(n)),
            ".{0,12}".prop_map(|s| json!(s)),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|v| json!(v)),
                prop::collection::btree_map("[a-z]{1,5}", inner, 0..4).prop_map(|m| json!(m)),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_input_ends_in_a_config_or_in_problems(
            values in prop::collection::vec(any_value(), 13),
            extra in any_value(),
        ) {
            let names = [
                "queue", "prefetch", "durable", "mode", "topics", "partitions", "arguments", "tls",
                "lease", "redial_timeout", "max", "password",
            ];
            let mut options = Options::from_pairs("p", names.into_iter().zip(values));
            options.set("surprise", extra);
            let problems = options.parse::<Config>().expect_err("one name is unknown");
            prop_assert!(problems.iter().any(|p| p.path() == "p.surprise"));
        }
    }
}
