//! Options, defaults and their checks.

mod client;
mod resolve;
#[cfg(test)]
mod tests;
mod written;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use jobs_core::{Attempts, Capabilities, Lease, Options, Pipeline, Problem, Secret, Support};
use serde::Deserialize;

/// The longest delay.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(400 * 24 * 3600);

/// Most messages, and most KiB of them, that wait in a producer before it is full.
pub(crate) const MAX_QUEUED: usize = 100_000;
const MAX_QUEUED_KIB: usize = 256 << 10;

/// What of the largest record is kept for key and headers.
const FOR_HEADERS: usize = 16 << 10;

/// The options of a `kafka` pipeline, read and checked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KafkaConfig {
    /// Where the cluster is first asked for, each `host:port`.
    pub(crate) brokers: Vec<String>,
    client_id: String,
    tls: Option<TlsConfig>,
    sasl: Option<SaslConfig>,
    /// How long one connection to a broker may take.
    setup_timeout: Duration,
    /// Topics to consume as members of the group. Those starting with `^` are patterns.
    pub(crate) topics: Vec<String>,
    /// Partitions to consume without sharing them in the group; empty: `topics` counts. Not both.
    pub(crate) partitions: BTreeMap<String, BTreeMap<i32, Start>>,
    /// Where to push to, unless a message says otherwise.
    pub(crate) topic: Option<String>,
    /// Whose offsets are read and committed.
    pub(crate) group: String,
    /// The name of a static member.
    pub(crate) instance: Option<String>,
    /// Where a partition of `topics` is begun that the group has committed no offset of.
    pub(crate) start: Start,
    /// Most jobs in this process that are not settled.
    pub(crate) prefetch: NonZeroUsize,
    pub(crate) commit_interval: Duration,
    /// Where rejected jobs go.
    pub(crate) dead_letter_topic: Option<String>,
    pub(crate) ordering: Ordering,
    /// How long a push may take.
    pub(crate) push_timeout: Duration,
    /// How long connecting may take.
    pub(crate) connect_timeout: Duration,
    /// How missing topics are created; none: they must exist.
    pub(crate) create: Option<Create>,
    /// After what silence the group takes a member for dead.
    pub(crate) session_timeout: Duration,
    heartbeat_interval: Duration,
    max_poll_interval: Duration,
    /// Largest record: key, payload and headers.
    pub(crate) max_message_bytes: usize,
    producer: ProducerConfig,
    fetch: FetchConfig,
}

/// Where consuming a partition begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Start {
    /// With the oldest record there is.
    #[default]
    Earliest,
    /// With what is pushed from now on.
    AtEnd,
    /// With this offset.
    Offset(i64),
}

/// What order jobs are run in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ordering {
    /// All at once.
    #[default]
    Unordered,
    /// Those with equal keys one after the other.
    Key,
    /// Those of a partition one after the other.
    Partition,
}

/// How topics are created. Broker's defaults are written -1, as in the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Create {
    pub(crate) partitions: i32,
    pub(crate) replication_factor: i32,
}

/// Certificates, all paths of PEM files that are read when connecting.
#[derive(Clone, Debug, PartialEq)]
struct TlsConfig {
    /// Who may have signed the brokers' certificates; none: the public authorities.
    root_ca: Option<String>,
    /// Our own certificate and its key.
    identity: Option<(String, String)>,
}

#[derive(Clone)]
struct SaslConfig {
    /// As the protocol names it.
    mechanism: &'static str,
    username: String,
    password: Secret,
}

#[derive(Clone, Debug)]
struct ProducerConfig {
    compression: &'static str,
    partitioner: &'static str,
    linger: Duration,
    /// How long a broker may wait for its replicas.
    request_timeout: Duration,
    /// How long the client may try. Never longer than a push may take.
    delivery_timeout: Duration,
}

#[derive(Clone, Debug)]
struct FetchConfig {
    min_bytes: usize,
    max_bytes: usize,
}

impl KafkaConfig {
    /// Reads and checks a pipeline's options.
    pub(crate) fn read(shared: &Options, pipeline: &Pipeline) -> Result<Self, Vec<Problem>> {
        resolve::resolve(&pipeline.options().over(shared), pipeline.name())
    }

    /// False for a pipeline that only pushes.
    pub(crate) fn consumes(&self) -> bool {
        !self.topics.is_empty() || !self.partitions.is_empty()
    }

    /// True if some topics to consume are found by a pattern.
    pub(crate) fn has_patterns(&self) -> bool {
        self.topics.iter().any(|topic| topic.starts_with('^'))
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let given = |condition: bool, support| if condition { support } else { Support::None };
        let mut capabilities = Capabilities::default();
        // A delay topic is made when it is first needed, and consumed beside the topic it is for.
        let delayable = self.topic.is_some() && self.partitions.is_empty() && !self.has_patterns();
        capabilities.delay = given(delayable, Support::Emulated);
        capabilities.reject = given(self.dead_letter_topic.is_some(), Support::Emulated);
        capabilities.requeue = given(self.consumes(), Support::Emulated);
        capabilities.batch = Support::Native;
        capabilities.ordering_key = given(self.ordering != Ordering::Unordered, Support::Native);
        capabilities.durable = true;
        capabilities.attempts = Attempts::AtLeast;
        capabilities.uncounted_release = true;
        // The group's session, which outlives connections.
        capabilities.lease = Lease::Timed;
        capabilities.max_payload =
            Some(self.max_message_bytes - FOR_HEADERS.min(self.max_message_bytes / 2));
        capabilities.max_delay = Some(MAX_DELAY);
        capabilities
    }
}

/// Never shows the password.
impl fmt::Debug for SaslConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SaslConfig")
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}
