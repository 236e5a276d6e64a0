//! Options, defaults and their checks.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use jobs_core::{Attempts, Capabilities, Lease, Options, Pipeline, Problem, Support, options};
use serde::Deserialize;

/// The longest time this driver deals with, and the longest delay.
pub(crate) const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The largest payload: a job is in memory as a whole.
const MAX_PAYLOAD: usize = 16 << 20;

/// A lease is extended at half its time, which takes a sync.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

/// Less than that is a mistake: nothing is pushed or handled in it.
const SHORTEST_TIME: Duration = Duration::from_millis(1);

/// A file that holds less could not store a job.
const SMALLEST_FILE: usize = 256 << 10;

/// The options of a `local` pipeline.
///
/// `durability`, `lease`, `lease_storage` and `max_size` belong to the file: pipelines that share one
/// in a process must agree.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LocalConfig {
    /// The file. Required; it and its directory are created.
    pub path: PathBuf,
    /// Name of the queue in the file. Default: the pipeline's name.
    #[serde(default)]
    pub queue: String,
    /// Most jobs in this process, handed out or waiting for a worker. Default 100.
    #[serde(default = "default_prefetch")]
    pub prefetch: NonZeroUsize,
    /// What an answer waits for. Default `full`.
    #[serde(default)]
    pub durability: Durability,
    /// After how long without a sign of life the jobs of a process that hangs go to others; the same
    /// in all processes. Default `60s`, at least `1s`. Those of one that ended come back at once.
    #[serde(default = "default_lease", deserialize_with = "options::duration")]
    pub lease: Duration,
    /// How long a job may be in this process, waiting for a worker or with one, without a sign of
    /// life from its worker. Default: none, for ever.
    #[serde(default, deserialize_with = "options::duration")]
    pub max_lease: Option<Duration>,
    /// Where it is noted that a job was handed out. Default `durable`.
    #[serde(default)]
    pub lease_storage: LeaseStorage,
    /// About how many bytes of the file may be in use, at least `256KiB`. Default: none.
    #[serde(default, deserialize_with = "options::size")]
    pub max_size: Option<usize>,
    /// How long a push waits while another process writes or the disk is slow, and in the pipeline
    /// that opens the file, how long settlements of all of them do. Default `30s`, at least `1ms`.
    #[serde(default = "default_push_timeout", deserialize_with = "options::duration")]
    pub push_timeout: Duration,
}

/// What the answer to a push or a settlement waits for.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Durability {
    /// For the disk: what was answered outlives a loss of power.
    #[default]
    Full,
    /// For the operating system: what was answered outlives the process. A loss of power may take
    /// the last seconds; the file stays sound.
    Normal,
}

/// Where it is noted that a job was handed out.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LeaseStorage {
    /// In the file: the attempt count outlives a crash, and several processes may share the file.
    #[default]
    Durable,
    /// In this process: consuming writes less, but after a crash a job does not know that it was
    /// started. The file belongs to one process.
    Memory,
}

fn default_prefetch() -> NonZeroUsize {
    NonZeroUsize::new(100).expect("not zero")
}

fn default_lease() -> Duration {
    Duration::from_secs(60)
}

fn default_push_timeout() -> Duration {
    Duration::from_secs(30)
}

/// The options that pipelines on one file must agree on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct FileOptions {
    pub(crate) durability: Durability,
    pub(crate) lease: Duration,
    pub(crate) lease_storage: LeaseStorage,
    pub(crate) max_size: Option<usize>,
}

impl LocalConfig {
    /// Reads and checks a pipeline's options.
    pub(crate) fn read(shared: &Options, pipeline: &Pipeline) -> Result<Self, Vec<Problem>> {
        let options = pipeline.options().over(shared);
        let mut config: Self = options.parse()?;
        if config.queue.is_empty() {
            config.queue = pipeline.name().to_owned();
        }
        let problems = config.problems(&options);
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    fn problems(&self, options: &Options) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut at = |option: &str, expected: &str, found: String| {
            let message = format!("expected {expected}, found {found}");
            problems.push(Problem::new(options.path_of(option), message));
        };
        if self.path.file_name().is_none() {
            at("path", "the path of a file", format!("`{}`", self.path.display()));
        }
        let times = [
            ("lease", Some(self.lease)),
            ("max_lease", self.max_lease),
            ("push_timeout", Some(self.push_timeout)),
        ];
        for (option, found) in times {
            if let Some(found) = found.filter(|found| *found > TEN_YEARS) {
                at(option, "at most ten years", format!("{found:?}"));
            }
        }
        if self.lease < SHORTEST_LEASE {
            let expected = "at least 1s (a bare number counts nanoseconds)";
            at("lease", expected, format!("{:?}", self.lease));
        }
        let times = [("max_lease", self.max_lease), ("push_timeout", Some(self.push_timeout))];
        for (option, found) in times {
            if let Some(found) = found.filter(|found| *found < SHORTEST_TIME) {
                let expected = "at least 1ms (a bare number counts nanoseconds)";
                at(option, expected, format!("{found:?}"));
            }
        }
        if let Some(found) = self.max_size.filter(|size| *size < SMALLEST_FILE) {
            at("max_size", "at least 256KiB", format!("{found} bytes"));
        }
        let most = tokio::sync::Semaphore::MAX_PERMITS;
        if self.prefetch.get() > most {
            at("prefetch", &format!("at most {most}"), self.prefetch.to_string());
        }
        problems
    }

    pub(crate) fn of_file(&self) -> FileOptions {
        FileOptions {
            durability: self.durability,
            lease: self.lease,
            lease_storage: self.lease_storage,
            max_size: self.max_size,
        }
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.delay = Support::Native;
        capabilities.priority = Support::Native;
        capabilities.reject = Support::Native;
        capabilities.requeue = Support::Native;
        capabilities.batch = Support::Native;
        capabilities.extend = Support::Native;
        capabilities.durable = true;
        capabilities.acks_confirmed = true;
        capabilities.attempts = match self.lease_storage {
            LeaseStorage::Durable => Attempts::Exact,
            LeaseStorage::Memory => Attempts::AtLeast,
        };
        capabilities.uncounted_release = true;
        capabilities.lease = Lease::Timed;
        capabilities.max_payload = Some(MAX_PAYLOAD);
        capabilities.max_delay = Some(TEN_YEARS);
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<LocalConfig, Vec<String>> {
        let options = Options::from_pairs("p.config", options.iter().copied());
        let pipeline = Pipeline::with_options("p", "local", options).expect("no common options");
        LocalConfig::read(&Options::default(), &pipeline)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn defaults_are_those_documented() {
        let config = read(&[("path", "jobs.db")]).expect("valid");
        assert_eq!((config.queue.as_str(), config.prefetch.get()), ("p", 100));
        assert_eq!(config.durability, Durability::Full);
        assert_eq!(config.lease_storage, LeaseStorage::Durable);
        assert_eq!((config.lease, config.max_lease), (Duration::from_secs(60), None));
        assert_eq!((config.max_size, config.push_timeout), (None, Duration::from_secs(30)));
    }

    #[test]
    fn config_rejects_unknown_key() {
        let problems = read(&[("path", "jobs.db"), ("prefech", "1")]).expect_err("typo");
        assert!(
            problems[0].contains("expected one of `path`, `queue`, `prefetch`"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_path_is_required() {
        assert_eq!(read(&[]).expect_err("no path").len(), 1);
        for path in ["", "/", "a/.."] {
            assert_eq!(read(&[("path", path)]).expect_err("no file").len(), 1, "{path}");
        }
    }

    #[test]
    fn every_option_out_of_range_is_named() {
        let problems = read(&[
            ("path", "/"),
            ("lease", "60"),
            ("max_lease", "60"),
            ("max_size", "1KiB"),
            ("push_timeout", "11years"),
        ])
        .expect_err("wrong");
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(read(&[("path", "a"), ("durability", "none")]).is_err());
        assert!(read(&[("path", "a"), ("lease_storage", "disk")]).is_err());
    }

    #[test]
    fn attempts_are_exact_if_they_are_written_down() {
        let config = |storage| read(&[("path", "a"), ("lease_storage", storage)]).expect("valid");
        assert_eq!(config("durable").capabilities().attempts, Attempts::Exact);
        assert_eq!(config("memory").capabilities().attempts, Attempts::AtLeast);
    }
}
