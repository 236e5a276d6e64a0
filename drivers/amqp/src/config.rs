//! Options, defaults and their checks.

mod arguments;
mod resolve;
#[cfg(test)]
mod tests;
mod written;

use std::fmt;
use std::num::{NonZeroU8, NonZeroU16};
use std::path::PathBuf;
use std::time::Duration;

use jobs_core::{Attempts, Capabilities, Lease, Options, Pipeline, Problem, Support};
use lapin::ExchangeKind;
use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use serde::Deserialize;

/// The longest delay, and the longest time any option may have.
pub(crate) const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// The options of an `amqp` pipeline, read and checked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AmqpConfig {
    /// Pipelines with equal ones share their connections.
    pub(crate) connection: ConnectionConfig,
    /// None: the pipeline only pushes.
    pub(crate) queue: Option<QueueConfig>,
    /// None: the broker's default exchange, which delivers to the queue named by the routing key.
    pub(crate) exchange: Option<ExchangeConfig>,
    /// The queue's name unless said otherwise; empty where the exchange needs none.
    pub(crate) routing_key: String,
    /// Levels of priority at the broker, besides 0. Also known to pipelines that only push.
    pub(crate) max_priority: Option<NonZeroU8>,
    /// Most deliveries that are not settled.
    pub(crate) prefetch: NonZeroU16,
    /// None: the pipeline's name.
    pub(crate) consumer_id: Option<String>,
    /// None: the broker's, 30 minutes.
    pub(crate) consumer_timeout: Option<Duration>,
    /// How long a push may take.
    pub(crate) push_timeout: Duration,
    /// Largest payload.
    pub(crate) max_payload: usize,
}

/// A broker, how to reach it, and as whom.
#[derive(Clone, PartialEq)]
pub(crate) struct ConnectionConfig {
    /// With `heartbeat` and `connection_timeout` set from the options.
    pub(crate) uri: AMQPUri,
    /// What differs from the defaults of `amqps`.
    pub(crate) tls: Option<TlsConfig>,
    pub(crate) connect_timeout: Duration,
    /// Whole seconds, from 1.
    pub(crate) heartbeat: Duration,
}

/// Certificates, all PEM files that are read when connecting.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TlsConfig {
    /// Who may have signed the broker's certificate; none: the public authorities.
    pub(crate) root_ca: Option<PathBuf>,
    /// Our own certificate and its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

/// The queue that is consumed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct QueueConfig {
    pub(crate) name: String,
    pub(crate) kind: QueueType,
    pub(crate) durable: bool,
    pub(crate) exclusive: bool,
    pub(crate) auto_delete: bool,
    /// False: it must exist, and is bound by nobody but its owner.
    pub(crate) declare: bool,
    pub(crate) delete_on_stop: bool,
    /// Every argument of the declaration, ours included.
    pub(crate) arguments: FieldTable,
    /// Where rejected jobs go.
    pub(crate) dead_letter: Option<DeadLetter>,
}

/// Where the broker sends rejected jobs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeadLetter {
    /// Empty: the default exchange.
    pub(crate) exchange: String,
    /// None: the routing key the job was pushed with.
    pub(crate) routing_key: Option<String>,
}

/// How the broker keeps a queue.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum QueueType {
    #[default]
    Classic,
    Quorum,
}

/// The exchange that is pushed to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ExchangeConfig {
    pub(crate) name: String,
    pub(crate) kind: ExchangeKind,
    pub(crate) durable: bool,
    pub(crate) auto_delete: bool,
    /// False: it must exist.
    pub(crate) declare: bool,
}

impl AmqpConfig {
    /// Reads and checks a pipeline's options.
    pub(crate) fn read(shared: &Options, pipeline: &Pipeline) -> Result<Self, Vec<Problem>> {
        resolve::resolve(&pipeline.options().over(shared))
    }

    /// False if pausing would delete the queue with its jobs.
    pub(crate) fn pausable(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| !queue.auto_delete)
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let queue = self.queue.as_ref();
        let given = |condition: bool, support| if condition { support } else { Support::None };
        // A delayed job waits in durable queues beside the pipeline's own. Where that one goes away
        // by itself, they would be left behind with jobs that nobody expects any more.
        let stays = queue.is_none_or(|queue| !queue.exclusive && !queue.auto_delete);
        let mut capabilities = Capabilities::default();
        capabilities.delay = given(stays, Support::Emulated);
        capabilities.priority = given(self.max_priority.is_some(), Support::Native);
        capabilities.reject =
            given(queue.is_some_and(|queue| queue.dead_letter.is_some()), Support::Native);
        capabilities.requeue = given(queue.is_some(), Support::Emulated);
        capabilities.batch = Support::Emulated;
        capabilities.durable = stays && queue.is_none_or(|queue| queue.durable);
        capabilities.attempts = Attempts::AtLeast;
        capabilities.uncounted_release = queue.is_none_or(|q| q.kind == QueueType::Classic);
        capabilities.lease = Lease::Connection;
        capabilities.max_payload = Some(self.max_payload);
        capabilities.max_delay = Some(A_YEAR);
        capabilities
    }
}

/// Never shows the password.
impl fmt::Debug for ConnectionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPUri { scheme, authority, vhost, .. } = &self.uri;
        f.debug_struct("ConnectionConfig")
            .field("scheme", scheme)
            .field("host", &authority.host)
            .field("port", &authority.port)
            .field("vhost", vhost)
            .field("user", &authority.userinfo.username)
            .field("tls", &self.tls)
            .field("connect_timeout", &self.connect_timeout)
            .field("heartbeat", &self.heartbeat)
            .finish()
    }
}
