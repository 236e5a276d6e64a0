//! Options of a pipeline: untyped at the door, typed one line later.
//!
//! A driver describes its options as a serde struct with `deny_unknown_fields` and calls
//! [`Pipeline::parse`](crate::Pipeline::parse) (or [`Options::parse`]). Real values and flat text
//! are read alike: `10` and `"10"`, `true` and `"true"`, a list and `"a,b"`, a map and its JSON
//! text. Durations and sizes are human text, read by [`duration`], [`seconds`] and [`size`].
//!
//! ```
//! use std::time::Duration;
//! use jobs_core::options::{self, Options};
//!
//! #[derive(Debug, serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Config {
//!     prefetch: u32,
//!     #[serde(deserialize_with = "options::duration")]
//!     lease: Duration,
//! }
//!
//! let options = Options::from_pairs("mail", [("prefetch", "10"), ("lease", "1m 30s")]);
//! let config: Config = options.parse()?;
//! assert_eq!((config.prefetch, config.lease), (10, Duration::from_secs(90)));
//!
//! let wrong = Options::from_pairs("mail", [("prefetch", "ten"), ("leese", "1m")]);
//! let problems = wrong.parse::<Config>().unwrap_err();
//! assert_eq!(problems.len(), 3, "{problems:?}"); // `prefetch`, `leese`, and `lease` is missing
//! # Ok::<(), Vec<jobs_core::Problem>>(())
//! ```

mod human;
mod reader;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Problem;

pub use human::{duration, seconds, size};

/// Named options with the place each came from. Names are not case-sensitive.
#[derive(Clone, Default, PartialEq)]
pub struct Options {
    path: Arc<str>,
    entries: BTreeMap<String, Entry>,
    /// Names that are valid here and were taken out, for the list in a problem.
    taken: BTreeSet<&'static str>,
}

#[derive(Clone, PartialEq)]
struct Entry {
    /// Path of the section the option was written in: sections can be laid over each other.
    section: Arc<str>,
    value: Value,
}

impl Options {
    /// No options; `path` is where problems say they were expected.
    #[must_use]
    pub fn new(path: impl Into<Arc<str>>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// Options given as flat text, as when a pipeline is declared at run time.
    #[must_use]
    pub fn from_pairs<K: Into<String>, V: Into<Value>>(
        path: impl Into<Arc<str>>,
        pairs: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let mut options = Self::new(path);
        pairs.into_iter().for_each(|(key, value)| options.set(key, value));
        options
    }

    /// Options given as a structured value, as a section of a file.
    ///
    /// # Errors
    /// A problem if `value` is neither a map nor null (an empty section), or has an option twice.
    pub fn from_value(path: impl Into<Arc<str>>, value: Value) -> Result<Self, Problem> {
        let path = path.into();
        match value {
            Value::Null => Ok(Self::new(path)),
            Value::Object(map) => {
                let mut options = Self::new(path);
                for (name, value) in map {
                    if options.get(&name).is_some() {
                        let message = "is set twice: names are not case-sensitive";
                        return Err(Problem::new(options.path_of(&name.to_lowercase()), message));
                    }
                    options.set(name, value);
                }
                Ok(options)
            }
            other => Err(Problem::new(
                &*path,
                format!("expected options as `name: value`, found {}", reader::describe(&other)),
            )),
        }
    }

    /// Where these options stand, such as `jobs.pipelines.mail.config`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Where an option stands, for a problem found after parsing: in the section it was written in.
    #[must_use]
    pub fn path_of(&self, name: &str) -> String {
        let section = self.entries.get(name).map_or(&self.path, |entry| &entry.section);
        format!("{section}.{name}")
    }

    /// True if there is no option.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sets an option.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<Value>) {
        let name = name.into().to_lowercase();
        let entry = Entry { section: Arc::clone(&self.path), value: value.into() };
        self.entries.insert(name, entry);
    }

    /// The raw value of an option.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.entries.get(&name.to_lowercase()).map(|entry| &entry.value)
    }

    /// Takes the named options out, so that they can be parsed apart.
    #[must_use]
    pub fn take(&mut self, names: &[&'static str]) -> Self {
        let mut taken = Self::new(Arc::clone(&self.path));
        for name in names {
            taken.entries.extend(self.entries.remove_entry(*name));
        }
        self.taken.extend(names);
        taken
    }

    /// These options laid over those of a shared section: where both have a name, this one counts,
    /// and a warning says so.
    #[must_use]
    pub fn over(&self, shared: &Self) -> Self {
        let mut merged = shared.clone();
        merged.path = Arc::clone(&self.path);
        merged.taken.clone_from(&self.taken);
        for (name, entry) in &self.entries {
            let previous = merged.entries.insert(name.clone(), entry.clone());
            if let Some(previous) = previous.filter(|previous| previous.value != entry.value) {
                tracing::warn!(
                    path = format!("{}.{name}", entry.section),
                    overridden = format!("{}.{name}", previous.section),
                    "option is set twice, the pipeline's own counts"
                );
            }
        }
        merged
    }

    /// Reads the options into a typed struct.
    ///
    /// A duration written as a bare number is read in the unit its option documents, with a
    /// warning.
    ///
    /// # Errors
    /// *All* problems, each with its path: unknown names (with the valid ones), wrong types, values
    /// out of range, missing options.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Vec<Problem>> {
        reader::parse(self)
    }
}

/// Shows the names only: values may be secrets.
impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("path", &self.path)
            .field("names", &self.entries.keys().collect::<Vec<_>>())
            .finish()
    }
}
