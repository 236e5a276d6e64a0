//! Options, defaults and their checks.

mod attributes;
mod resolve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use jobs_core::{
    Attempts, Capabilities, ExposeSecret, Lease, Options, Pipeline, Problem, Secret, Support,
};

/// The longest delay, and the longest time any option may have.
pub(crate) const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The longest delay that the service itself keeps.
pub(crate) const LONGEST_NATIVE_DELAY: Duration = Duration::from_secs(900);

/// A receive gives a right to its message for so long at most, however often it is extended.
pub(crate) const LONGEST_LEASE: Duration = Duration::from_secs(12 * 3600);

/// Entries of a batch.
pub(crate) const MAX_BATCH: usize = 10;

/// Bytes of a message and of a batch, attributes included.
pub(crate) const MAX_MESSAGE: usize = 1 << 20;

/// Of these bytes, kept for id, name and what else travels in attributes.
pub(crate) const ENVELOPE: usize = 1 << 10;

/// The options of an `sqs` pipeline, read and checked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SqsConfig {
    /// The queue's name; that of `queue_url` if only that is given.
    pub(crate) queue: String,
    /// Where the queue is. None: it is asked for by its name.
    pub(crate) queue_url: Option<String>,
    /// Whether it keeps order, as its name says.
    pub(crate) fifo: bool,
    /// None: the environment's.
    pub(crate) region: Option<String>,
    /// None: the region's.
    pub(crate) endpoint: Option<String>,
    /// None: the client's own chain.
    pub(crate) credentials: Option<Static>,
    /// The profile of the chain's files; none: the default one.
    pub(crate) profile: Option<String>,
    /// What the queue is created with, ours included, by the service's names.
    pub(crate) attributes: BTreeMap<String, String>,
    /// Tags it is created with.
    pub(crate) tags: BTreeMap<String, String>,
    /// The group of jobs without an ordering key; none: each has its own.
    pub(crate) message_group_id: Option<String>,
    /// False: the queue must exist.
    pub(crate) declare: bool,
    /// Most jobs in this process.
    pub(crate) prefetch: NonZeroUsize,
    /// The lease, in whole seconds.
    pub(crate) visibility_timeout: Duration,
    /// How long one request for messages waits at the service, in whole seconds from 1 to 20.
    pub(crate) wait_time: Duration,
    /// Requests for messages that wait at the service at once.
    pub(crate) receivers: NonZeroUsize,
    /// Where rejected jobs go.
    pub(crate) dead_letter: Option<DeadLetter>,
    /// How long one request may take, besides connecting and the time it is told to wait.
    pub(crate) operation_timeout: Duration,
    /// How long connecting may take.
    pub(crate) connect_timeout: Duration,
    /// How long a push may take.
    pub(crate) push_timeout: Duration,
    /// None: [`LONGEST_LEASE`].
    pub(crate) max_lease: Option<Duration>,
}

/// Credentials of the options.
#[derive(Clone)]
pub(crate) struct Static {
    pub(crate) key: String,
    pub(crate) secret: Secret,
    pub(crate) session_token: Option<Secret>,
}

/// The queue of rejected jobs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum DeadLetter {
    /// Made if it is missing, unless the pipeline's own queue must exist.
    Name(String),
    Url(String),
}

impl SqsConfig {
    /// Reads and checks a pipeline's options.
    pub(crate) fn read(shared: &Options, pipeline: &Pipeline) -> Result<Self, Vec<Problem>> {
        resolve::resolve(&pipeline.options().over(shared))
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let given = |condition: bool, support| if condition { support } else { Support::None };
        let mut capabilities = Capabilities::default();
        // A FIFO queue takes no delays, and a job that hops would lose its place in its group.
        capabilities.delay = given(!self.fifo, Support::Emulated);
        capabilities.reject = given(self.dead_letter.is_some(), Support::Emulated);
        capabilities.requeue = Support::Emulated;
        capabilities.batch = Support::Native;
        capabilities.max_batch = Some(MAX_BATCH);
        capabilities.ordering_key = given(self.fifo, Support::Native);
        capabilities.extend = Support::Native;
        capabilities.durable = true;
        // A standard queue may deliver again what was deleted.
        capabilities.acks_confirmed = self.fifo;
        capabilities.attempts = Attempts::AtLeast;
        capabilities.lease = Lease::Timed;
        capabilities.max_payload = Some(self.max_message() - ENVELOPE.min(self.max_message() / 2));
        capabilities.max_delay = (!self.fifo).then_some(A_YEAR);
        capabilities
    }

    /// Bytes of a message as far as the options tell. A server, or a queue that exists, may take
    /// less.
    pub(crate) fn max_message(&self) -> usize {
        let own = self.attributes.get("MaximumMessageSize").filter(|_| self.declare);
        own.and_then(|bytes| bytes.parse().ok()).unwrap_or(MAX_MESSAGE)
    }
}

impl PartialEq for Static {
    fn eq(&self, other: &Self) -> bool {
        let open = |secret: &Secret| secret.expose_secret().to_owned();
        self.key == other.key
            && open(&self.secret) == open(&other.secret)
            && self.session_token.as_ref().map(open) == other.session_token.as_ref().map(open)
    }
}

/// Never shows a part of the credentials.
impl fmt::Debug for Static {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Static").finish_non_exhaustive()
    }
}
