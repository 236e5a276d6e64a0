//! Options, defaults and their checks.

use std::num::NonZeroUsize;
use std::time::Duration;

use jobs_core::{Attempts, Capabilities, Lease, Options, Pipeline, Problem, Support, options};
use serde::Deserialize;

/// The longest time this driver deals with, and the longest delay unless `max_delay` says less.
pub(crate) const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Less than that is a mistake: no job is handled before it is delivered again.
const SHORTEST_LEASE: Duration = Duration::from_millis(1);

/// The options of a `memory` pipeline.
///
/// All but `prefetch` and `push_timeout` belong to the queue: pipelines that share one must agree.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// Name of the queue. Default: the pipeline's name. Pipelines of one constructor that name the
    /// same queue share it.
    #[serde(default)]
    pub queue: String,
    /// Most jobs handed out or waiting for a worker. Default 100,000, as in RoadRunner.
    #[serde(default = "many")]
    pub prefetch: NonZeroUsize,
    /// Most jobs in the queue, whether ready, delayed or unsettled. Default 100,000. At the limit a
    /// push waits.
    #[serde(default = "many")]
    pub capacity: NonZeroUsize,
    /// How long a push waits for room. Default `30s`; then it fails as throttled.
    #[serde(default = "default_push_timeout", deserialize_with = "options::duration")]
    pub push_timeout: Duration,
    /// How long a job may be in this process, waiting for a worker or with one, without a sign of
    /// life. Default: none, for ever.
    #[serde(default, deserialize_with = "options::duration")]
    pub max_lease: Option<Duration>,
    /// Most dead letters kept; the oldest is discarded for a new one. Default 10,000.
    #[serde(default = "default_dead_letters")]
    pub dead_letters: usize,
    /// Largest payload. Default `16MiB`.
    #[serde(default = "default_max_payload", deserialize_with = "options::size")]
    pub max_payload: usize,
    /// Longest delay. Default ten years, and not more.
    #[serde(default = "default_max_delay", deserialize_with = "options::duration")]
    pub max_delay: Duration,
    /// Lowest priority a message may have. Default: any.
    #[serde(default = "lowest")]
    pub min_priority: i64,
    /// Highest priority a message may have. Default: any.
    #[serde(default = "highest")]
    pub max_priority: i64,
}

fn many() -> NonZeroUsize {
    NonZeroUsize::new(100_000).expect("not zero")
}

fn default_push_timeout() -> Duration {
    Duration::from_secs(30)
}

fn default_dead_letters() -> usize {
    10_000
}

fn default_max_payload() -> usize {
    16 << 20
}

fn default_max_delay() -> Duration {
    TEN_YEARS
}

fn lowest() -> i64 {
    i64::MIN
}

fn highest() -> i64 {
    i64::MAX
}

impl MemoryConfig {
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
        let at = |option: &str, message: String| Problem::new(options.path_of(option), message);
        let mut problems = Vec::new();
        let times = [
            ("max_delay", Some(self.max_delay)),
            ("max_lease", self.max_lease),
            ("push_timeout", Some(self.push_timeout)),
        ];
        for (option, found) in times {
            if let Some(found) = found.filter(|found| *found > TEN_YEARS) {
                problems.push(at(option, format!("expected at most ten years, found {found:?}")));
            }
        }
        if let Some(found) = self.max_lease.filter(|lease| *lease < SHORTEST_LEASE) {
            let expected = "expected at least 1ms (a bare number counts nanoseconds)";
            problems.push(at("max_lease", format!("{expected}, found {found:?}")));
        }
        if self.min_priority > self.max_priority {
            let expected = format!("expected at most `max_priority` ({})", self.max_priority);
            problems.push(at("min_priority", format!("{expected}, found {}", self.min_priority)));
        }
        let most = tokio::sync::Semaphore::MAX_PERMITS;
        for (option, value) in [("capacity", self.capacity), ("prefetch", self.prefetch)] {
            if value.get() > most {
                problems.push(at(option, format!("expected at most {most}, found {value}")));
            }
        }
        problems
    }

    /// The part that pipelines sharing a queue must agree on.
    pub(crate) fn of_queue(&self) -> Self {
        Self { prefetch: many(), push_timeout: Duration::ZERO, ..self.clone() }
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.delay = Support::Native;
        capabilities.priority = Support::Native;
        capabilities.reject = Support::Native;
        capabilities.requeue = Support::Native;
        capabilities.batch = Support::Native;
        capabilities.extend = Support::Native;
        capabilities.acks_confirmed = true;
        capabilities.attempts = Attempts::Exact;
        capabilities.uncounted_release = true;
        capabilities.lease =
            if self.max_lease.is_some() { Lease::Timed } else { Lease::Connection };
        capabilities.max_payload = Some(self.max_payload);
        capabilities.max_delay = Some(self.max_delay);
        capabilities.priorities = self.min_priority..=self.max_priority;
        capabilities
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<MemoryConfig, Vec<String>> {
        let options = Options::from_pairs("p.config", options.iter().copied());
        let pipeline = Pipeline::with_options("p", "memory", options).expect("no common options");
        MemoryConfig::read(&Options::default(), &pipeline)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn defaults_are_those_documented() {
        let config = read(&[]).expect("valid");
        assert_eq!((config.queue.as_str(), config.prefetch.get()), ("p", 100_000));
        assert_eq!((config.capacity.get(), config.dead_letters), (100_000, 10_000));
        assert_eq!((config.max_lease, config.push_timeout), (None, Duration::from_secs(30)));
    }

    #[test]
    fn config_rejects_unknown_key() {
        let problems = read(&[("prefech", "1")]).expect_err("typo");
        assert!(problems[0].contains("expected one of `queue`, `prefetch`"), "{problems:?}");
    }

    #[test]
    fn every_option_out_of_range_is_named() {
        let problems = read(&[
            ("max_delay", "11years"),
            ("max_lease", "60"),
            ("push_timeout", "11years"),
            ("min_priority", "2"),
            ("max_priority", "1"),
        ])
        .expect_err("wrong");
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(read(&[("prefetch", "0")]).is_err());
        assert!(read(&[("capacity", "18446744073709551615")]).is_err());
        assert!(read(&[("push_timeout", "-1s")]).is_err());
    }
}
