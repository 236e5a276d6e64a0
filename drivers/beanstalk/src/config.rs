//! Options, defaults and their checks.

use std::fmt;
use std::net::Ipv6Addr;
use std::num::NonZeroUsize;
use std::time::Duration;

use jobs_core::{Attempts, Capabilities, Lease, Options, Pipeline, Problem, Support, options};
use serde::Deserialize;

/// The longest time any option may have.
pub(crate) const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Less than that is a mistake: nothing is pushed or handled in it.
const SHORTEST_TIME: Duration = Duration::from_millis(1);

/// A reservation is renewed at half its time, and the server warns a second before its end.
const SHORTEST_TIME_TO_RUN: Duration = Duration::from_secs(5);

/// Longer ones are asked for in pieces, because a stop waits for the one that is under way.
const LONGEST_RESERVE: Duration = Duration::from_secs(5);

/// The most bytes of a tube's name. Source: beanstalkd's `doc/protocol.txt`.
const LONGEST_TUBE: usize = 200;

/// The largest `max-job-size` that a server can be started with. Source: beanstalkd's `dat.h`.
const LARGEST_JOB: usize = 1 << 30;

/// The port that is not named.
const PORT: u16 = 11300;

/// The server counts seconds in 32 bits.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(u32::MAX as u64);

/// The options of a `beanstalk` pipeline.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct BeanstalkConfig {
    /// The server. Default `tcp://127.0.0.1:11300`.
    #[serde(default)]
    pub addr: Address,
    /// How long one attempt to connect may take. Default `30s`.
    #[serde(default = "thirty_seconds", deserialize_with = "options::duration")]
    pub timeout: Duration,
    /// The tube that is pushed to and reserved from. Default `default`.
    #[serde(default = "default_tube")]
    pub tube: String,
    /// One priority at the server for all jobs. Default: none, each has its own.
    pub tube_priority: Option<u32>,
    /// How long one request for a job waits at the server, in whole seconds. Default `1s`.
    #[serde(default = "one_second", deserialize_with = "options::seconds")]
    pub reserve_timeout: Duration,
    /// Connections to push with, and as many to consume with. Default 4.
    #[serde(default = "four")]
    pub connections: NonZeroUsize,
    /// Most jobs in this process, handed out or waiting for a worker. Default 10.
    #[serde(default = "ten")]
    pub prefetch: NonZeroUsize,
    /// For how long a job belongs to its consumer without a sign of life, in whole seconds. Default
    /// `30s`, at least `5s`.
    #[serde(default = "thirty_seconds", deserialize_with = "options::duration")]
    pub time_to_run: Duration,
    /// How long a job may be in this process, waiting for a worker or with one, without a sign of
    /// life from its worker. Default: none, for ever.
    #[serde(default, deserialize_with = "options::duration")]
    pub max_lease: Option<Duration>,
    /// How long a push may take, and how long the server may be silent. Default `30s`.
    #[serde(default = "thirty_seconds", deserialize_with = "options::duration")]
    pub push_timeout: Duration,
    #[serde(rename = "consume_all")]
    _consume_all: Option<bool>,
}

/// Where a server is: a name or an IPv4 address, and a port.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Default for Address {
    fn default() -> Self {
        Self { host: "127.0.0.1".to_owned(), port: PORT }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp://{}:{}", self.host, self.port)
    }
}

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // What was found is not shown: such a value may hold a password.
        let refused =
            |why: &str| Err(format!("expected `tcp://host:port`{why}, found another address"));
        let Some(place) = text.strip_prefix("tcp://") else {
            let is_unix = text.starts_with("unix:");
            return refused(if is_unix { ": the client speaks no unix sockets" } else { "" });
        };
        let (host, port) = match place.rsplit_once(':') {
            // A colon in what is before it is one of an IPv6 address.
            Some((host, port)) if !place.ends_with(']') => (host, port.parse().ok()),
            _ => (place, Some(PORT)),
        };
        let is_ipv6 = |text: &str| {
            text.trim_start_matches('[').trim_end_matches(']').parse::<Ipv6Addr>().is_ok()
        };
        if is_ipv6(host) || is_ipv6(place) {
            return refused(": the client speaks IPv4 only");
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        match port {
            Some(port) if !host.is_empty() && port > 0 && host.chars().all(is_name) => {
                Ok(Self { host: host.to_owned(), port })
            }
            _ => refused(""),
        }
    }
}

fn default_tube() -> String {
    "default".to_owned()
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

fn thirty_seconds() -> Duration {
    Duration::from_secs(30)
}

fn four() -> NonZeroUsize {
    NonZeroUsize::new(4).expect("not zero")
}

fn ten() -> NonZeroUsize {
    NonZeroUsize::new(10).expect("not zero")
}

impl BeanstalkConfig {
    /// Reads and checks a pipeline's options.
    pub(crate) fn read(shared: &Options, pipeline: &Pipeline) -> Result<Self, Vec<Problem>> {
        let options = pipeline.options().over(shared);
        let config: Self = options.parse()?;
        let problems = config.problems(&options);
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    fn problems(&self, options: &Options) -> Vec<Problem> {
        /// Threads cost memory, and more of them gain nothing.
        const MOST_CONNECTIONS: usize = 256;
        let mut problems = Vec::new();
        let mut at = |option: &str, expected: &str, found: String| {
            let message = format!("expected {expected}, found {found}");
            problems.push(Problem::new(options.path_of(option), message));
        };
        if !is_tube(&self.tube) {
            let expected = format!(
                "1 to {LONGEST_TUBE} letters, digits or `-+/;.$_()`, not starting with `-`"
            );
            at("tube", &expected, format!("`{}`", self.tube));
        }
        let times = [
            ("timeout", Some(self.timeout), SHORTEST_TIME),
            ("push_timeout", Some(self.push_timeout), SHORTEST_TIME),
            ("max_lease", self.max_lease, SHORTEST_TIME),
            ("time_to_run", Some(self.time_to_run), SHORTEST_TIME_TO_RUN),
        ];
        for (option, found, least) in times {
            if let Some(found) = found.filter(|found| !(least..=A_YEAR).contains(found)) {
                let expected =
                    format!("{least:?} to {A_YEAR:?} (a bare number counts nanoseconds)");
                at(option, &expected, format!("{found:?}"));
            }
        }
        if self.reserve_timeout.is_zero() || self.reserve_timeout > A_YEAR {
            let expected =
                format!("more than 0s and at most {A_YEAR:?}: with 0s an idle tube is polled");
            at("reserve_timeout", &expected, format!("{:?}", self.reserve_timeout));
        }
        if self.connections.get() > MOST_CONNECTIONS {
            at("connections", &format!("at most {MOST_CONNECTIONS}"), self.connections.to_string());
        }
        let most = tokio::sync::Semaphore::MAX_PERMITS;
        if self.prefetch.get() > most {
            at("prefetch", &format!("at most {most}"), self.prefetch.to_string());
        }
        problems
    }

    /// How long one request for a job waits at the server: whole seconds.
    pub(crate) fn reserve(&self) -> Duration {
        Duration::from_secs(whole_seconds(self.reserve_timeout.min(LONGEST_RESERVE)).into())
    }

    /// A job needs a connection while it is unsettled, and no more jobs than `prefetch` are.
    pub(crate) fn consumers(&self) -> usize {
        self.connections.min(self.prefetch).get()
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.delay = Support::Native;
        capabilities.priority = match self.tube_priority {
            None => Support::Native,
            Some(_) => Support::None,
        };
        capabilities.reject = Support::Native;
        capabilities.requeue = Support::Emulated;
        capabilities.batch = Support::Emulated;
        capabilities.extend = Support::Native;
        // Narrowed when the server has told.
        capabilities.durable = true;
        capabilities.max_payload = Some(LARGEST_JOB);
        capabilities.acks_confirmed = true;
        capabilities.attempts = Attempts::AtLeast;
        capabilities.uncounted_release = true;
        capabilities.lease = match self.max_lease {
            None => Lease::Connection,
            Some(_) => Lease::Timed,
        };
        capabilities.max_delay = Some(LONGEST_DELAY);
        capabilities
    }
}

/// Rounded up: a job must not come early, nor a reservation end early.
pub(crate) fn whole_seconds(time: Duration) -> u32 {
    let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

fn is_tube(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-+/;.$_()".contains(&byte);
    (1..=LONGEST_TUBE).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<BeanstalkConfig, Vec<String>> {
        let options = Options::from_pairs("p.config", options.iter().copied());
        let pipeline = Pipeline::with_options("p", "beanstalk", options).expect("common options");
        BeanstalkConfig::read(&Options::default(), &pipeline)
            .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn defaults_are_those_documented() {
        let config = read(&[]).expect("valid");
        assert_eq!(config.addr.to_string(), "tcp://127.0.0.1:11300");
        assert_eq!((config.tube.as_str(), config.tube_priority), ("default", None));
        assert_eq!((config.connections.get(), config.prefetch.get()), (4, 10));
        let seconds = [config.timeout, config.reserve_timeout, config.time_to_run];
        assert_eq!(seconds.map(|time| time.as_secs()), [30, 1, 30]);
        assert_eq!((config.push_timeout.as_secs(), config.max_lease), (30, None));
    }

    #[test]
    fn every_option_is_read() {
        let config = read(&[
            ("addr", "tcp://queue.example:11301"),
            ("timeout", "2s"),
            ("tube", "a-b.c"),
            ("tube_priority", "7"),
            ("reserve_timeout", "3"),
            ("connections", "2"),
            ("prefetch", "5"),
            ("time_to_run", "5s"),
            ("max_lease", "1m"),
            ("push_timeout", "500ms"),
            ("consume_all", "true"),
        ]);
        let config = config.expect("valid");
        assert_eq!(config.addr.to_string(), "tcp://queue.example:11301");
        assert_eq!((config.tube.as_str(), config.tube_priority), ("a-b.c", Some(7)));
        assert_eq!(config.reserve(), Duration::from_secs(3), "a bare number counts seconds");
        assert_eq!((config.connections.get(), config.prefetch.get()), (2, 5));
        assert_eq!((config.timeout.as_secs(), config.time_to_run.as_secs()), (2, 5));
        assert_eq!(config.max_lease, Some(Duration::from_secs(60)));
        assert_eq!(config.push_timeout, Duration::from_millis(500));
        let capabilities = config.capabilities();
        assert_eq!((capabilities.priority, capabilities.lease), (Support::None, Lease::Timed));
    }

    #[test]
    fn config_rejects_unknown_key() {
        let problems = read(&[("tubes", "a")]).expect_err("typo");
        assert!(problems[0].contains("expected one of `addr`, `timeout`, `tube`"), "{problems:?}");
    }

    #[test]
    fn a_request_for_a_job_waits_whole_seconds_and_not_for_long() {
        let reserve = |text| read(&[("reserve_timeout", text)]).expect("valid").reserve();
        assert_eq!(reserve("500ms"), Duration::from_secs(1));
        assert_eq!(reserve("1500ms"), Duration::from_secs(2));
        assert_eq!(reserve("1h"), LONGEST_RESERVE);
    }

    #[test]
    fn every_option_out_of_range_is_named() {
        let long = "x".repeat(201);
        let problems = read(&[
            ("tube", &long),
            ("timeout", "30"),
            ("push_timeout", "0s"),
            ("max_lease", "2years"),
            ("time_to_run", "4s"),
            ("reserve_timeout", "0"),
            ("connections", "1000"),
        ]);
        assert_eq!(problems.expect_err("wrong").len(), 7);
        for tube in ["", "-a", "a b", "ä"] {
            assert_eq!(read(&[("tube", tube)]).expect_err("no tube").len(), 1, "{tube}");
        }
        assert!(read(&[("connections", "0")]).is_err() && read(&[("prefetch", "0")]).is_err());
        assert!(read(&[("tube_priority", "-1")]).is_err());
    }

    #[test]
    fn addresses_are_ipv4_or_names_and_others_are_told_why_not() {
        let place = |text| read(&[("addr", text)]).map(|config| config.addr.to_string());
        assert_eq!(place("tcp://h"), Ok("tcp://h:11300".into()));
        assert_eq!(place("tcp://10.0.0.1:1"), Ok("tcp://10.0.0.1:1".into()));
        for (text, why) in [
            ("unix:///run/beanstalkd.sock", "unix sockets"),
            ("tcp://[::1]:11300", "IPv4 only"),
            ("tcp://[::1]", "IPv4 only"),
            ("tcp://::1", "IPv4 only"),
            ("tcp://fe80::1:11300", "IPv4 only"),
            ("h:11300", "expected `tcp://host:port`"),
            ("tcp://:11300", "expected `tcp://host:port`"),
            ("tcp://h:0", "expected `tcp://host:port`"),
            ("tcp://h:port", "expected `tcp://host:port`"),
            ("tcp://me:secret@h:1", "expected `tcp://host:port`"),
        ] {
            let problems = place(text).expect_err("wrong");
            assert!(problems[0].contains(why), "{text}: {problems:?}");
        }
    }

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!(whole_seconds(Duration::ZERO), 0);
        assert_eq!(whole_seconds(Duration::from_nanos(1)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(2_001)), 3);
        assert_eq!(whole_seconds(Duration::MAX), u32::MAX);
    }
}
