//! A named, configured stream of jobs on one broker.

use std::num::NonZeroUsize;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Options, Problem};

/// What is known of a pipeline before its driver reads the options: a name, the driver that serves
/// it, and what every pipeline has whatever the driver.
///
/// ```
/// use jobs_core::Pipeline;
///
/// let pipeline = Pipeline::new("mail", "memory").with_priority(5).with_option("prefetch", 100);
/// assert_eq!((pipeline.name(), pipeline.priority()), ("mail", 5));
/// ```
#[derive(Clone, Debug)]
pub struct Pipeline {
    name: Arc<str>,
    driver: String,
    priority: i64,
    max_running: Option<NonZeroUsize>,
    options: Options,
}

/// The options of every pipeline, whatever its driver.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    #[serde(default)]
    priority: i64,
    max_running: Option<NonZeroUsize>,
}

impl Pipeline {
    /// The priority of a pipeline that sets none.
    pub const DEFAULT_PRIORITY: i64 = 10;

    /// A pipeline without options.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, driver: impl Into<String>) -> Self {
        let name = name.into();
        let options = Options::new(Arc::clone(&name));
        Self {
            name,
            driver: driver.into(),
            priority: Self::DEFAULT_PRIORITY,
            max_running: None,
            options,
        }
    }

    /// A pipeline with the options of a file, or of a declaration at run time.
    ///
    /// `priority` (0 means none) and `max_running` are read here, the rest is the driver's.
    ///
    /// # Errors
    /// Every problem of these two options.
    pub fn with_options(
        name: impl Into<Arc<str>>,
        driver: impl Into<String>,
        mut options: Options,
    ) -> Result<Self, Vec<Problem>> {
        let common: Common = options.take(&["priority", "max_running"]).parse()?;
        let pipeline = Self::new(name, driver).with_priority(common.priority);
        Ok(Self { max_running: common.max_running, options, ..pipeline })
    }

    /// Sets an option of the driver. Those of every pipeline have methods of their own.
    #[must_use]
    pub fn with_option(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.options.set(name, value);
        self
    }

    /// Sets the priority of jobs that have none: smaller is sooner. 0 means the default, 10.
    #[must_use]
    pub fn with_priority(mut self, priority: i64) -> Self {
        self.priority = if priority == 0 { Self::DEFAULT_PRIORITY } else { priority };
        self
    }

    /// Limits how many of its jobs run at once in this process; by default only `prefetch` does.
    #[must_use]
    pub fn with_max_running(mut self, max_running: NonZeroUsize) -> Self {
        self.max_running = Some(max_running);
        self
    }

    /// The name: letters, digits, `.`, `_` and `-`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name, shared.
    #[must_use]
    pub fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// The name of the driver.
    #[must_use]
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// The priority of jobs that have none.
    #[must_use]
    pub fn priority(&self) -> i64 {
        self.priority
    }

    /// How many of its jobs may run at once in this process.
    #[must_use]
    pub fn max_running(&self) -> Option<NonZeroUsize> {
        self.max_running
    }

    /// The options the driver will read.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Reads the driver's options, laid over those of the driver's shared section.
    ///
    /// # Errors
    /// Every problem, see [`Options::parse`].
    pub fn parse<T: DeserializeOwned>(&self, shared: &Options) -> Result<T, Vec<Problem>> {
        self.options.over(shared).parse()
    }

    /// Checks what holds for every driver.
    pub(crate) fn validate(&self) -> Result<(), Problem> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !self.name.is_empty() && self.name.len() <= 255 && self.name.chars().all(allowed) {
            return Ok(());
        }
        let expected = "expected a pipeline name of 1 to 255 letters, digits, `.`, `_` or `-`";
        Err(Problem::new(self.options.path(), format!("{expected}, found `{}`", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_options_are_taken_out_and_zero_priority_means_none() {
        let options = Options::from_pairs(
            "mail",
            [("priority", "0"), ("max_running", "4"), ("prefetch", "1")],
        );
        let pipeline = Pipeline::with_options("mail", "memory", options).expect("valid");
        assert_eq!(pipeline.priority(), Pipeline::DEFAULT_PRIORITY);
        assert_eq!(pipeline.max_running(), NonZeroUsize::new(4));
        assert!(pipeline.options().get("priority").is_none());
        assert!(pipeline.options().get("prefetch").is_some());
    }

    #[test]
    fn a_typo_is_told_the_common_options_too() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Own {
            #[serde(rename = "prefetch")]
            _prefetch: Option<u32>,
        }
        let options = Options::from_pairs("mail", [("priorty", "1")]);
        let pipeline = Pipeline::with_options("mail", "memory", options).expect("unknown so far");
        let problems = pipeline.parse::<Own>(&Options::default()).expect_err("a typo");
        let list = "expected one of `prefetch`, `max_running`, `priority`";
        assert!(problems[0].message().ends_with(list), "{problems:?}");
    }

    #[test]
    fn wrong_common_options_are_all_reported() {
        let options = Options::from_pairs("mail", [("priority", "high"), ("max_running", "0")]);
        let problems = Pipeline::with_options("mail", "memory", options).expect_err("wrong");
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn names_are_checked() {
        assert!(Pipeline::new("a.b_c-1", "memory").validate().is_ok());
        for bad in ["", "a b", "a/b", "ä"] {
            assert!(Pipeline::new(bad, "memory").validate().is_err(), "{bad}");
        }
    }
}
