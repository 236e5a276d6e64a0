//! The options as they are written: RoadRunner's blocks, and our own beside them.

use std::collections::BTreeMap;
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::time::Duration;

use jobs_core::{Secret, options};
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use serde_json::Value;

use super::Ordering;

/// All of a pipeline's options. Empty text means that an option is not set.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    pub(super) brokers: Vec<String>,
    pub(super) tls: Option<Tls>,
    pub(super) sasl: Option<Sasl>,
    /// What a declaration calls `sasl`.
    pub(super) sasl_options: Option<Sasl>,
    #[serde(default)]
    pub(super) ping: Ping,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) connect_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) push_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) commit_interval: Option<Duration>,
    #[serde(default)]
    pub(super) auto_create_topics_enable: bool,
    pub(super) topic_partitions: Option<NonZeroU32>,
    pub(super) topic_replication_factor: Option<NonZeroU16>,
    #[serde(default)]
    pub(super) topic: String,
    #[serde(default)]
    pub(super) topics: Vec<String>,
    #[serde(default)]
    pub(super) dead_letter_topic: String,
    #[serde(default)]
    pub(super) ordering: Ordering,
    pub(super) prefetch: Option<NonZeroUsize>,
    #[serde(default)]
    pub(super) producer_options: Producer,
    #[serde(default)]
    pub(super) consumer_options: Consumer,
    #[serde(default)]
    pub(super) group_options: Group,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) enable: Option<bool>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) timeout: Option<Duration>,
    #[serde(default)]
    pub(super) key: String,
    #[serde(default)]
    pub(super) cert: String,
    #[serde(default)]
    pub(super) root_ca: String,
    #[serde(rename = "client_auth_type")]
    pub(super) _client_auth_type: Option<ClientAuthType>,
}

/// How a server verifies its clients. RoadRunner takes it, and a client has no use for it.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ClientAuthType {
    NoClientCert,
    RequestClientCert,
    RequireAnyClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sasl {
    pub(super) mechanism: Mechanism,
    #[serde(default)]
    pub(super) username: String,
    pub(super) password: Option<Secret>,
    #[serde(default)]
    pub(super) zid: String,
    #[serde(default, deserialize_with = "bytes")]
    pub(super) nonce: usize,
    #[serde(default)]
    pub(super) is_token: bool,
    pub(super) access_key: Option<Secret>,
    pub(super) secret_key: Option<Secret>,
    pub(super) session_token: Option<Secret>,
    #[serde(default)]
    pub(super) user_agent: String,
}

/// Ways to authenticate, in any case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mechanism {
    Plain,
    Sha256,
    Sha512,
    AwsMskIam,
    Gssapi,
    OauthBearer,
}

impl<'de> Deserialize<'de> for Mechanism {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match String::deserialize(from)?.to_ascii_lowercase().replace('_', "-").as_str() {
            "plain" => Ok(Self::Plain),
            "scram-sha-256" => Ok(Self::Sha256),
            "scram-sha-512" => Ok(Self::Sha512),
            "aws-msk-iam" => Ok(Self::AwsMskIam),
            "gssapi" => Ok(Self::Gssapi),
            "oauthbearer" => Ok(Self::OauthBearer),
            _ => {
                // The reader of options cuts a problem of `sasl` at `, found`.
                let expected = "expected `plain`, `SCRAM-SHA-256` or `SCRAM-SHA-512`, found other";
                Err(D::Error::custom(expected))
            }
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ping {
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) timeout: Option<Duration>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Producer {
    #[serde(default)]
    pub(super) disable_idempotent: bool,
    pub(super) required_acks: Option<Acks>,
    #[serde(default, deserialize_with = "options::size")]
    pub(super) max_message_bytes: Option<usize>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) request_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) delivery_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) transaction_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) linger: Option<Duration>,
    #[serde(default)]
    pub(super) compression_codec: Compression,
    #[serde(default)]
    pub(super) partitioning_strategy: Partitioning,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
pub(super) enum Acks {
    #[serde(rename = "NoAck")]
    Nobody,
    #[serde(rename = "LeaderAck")]
    Leader,
    #[serde(rename = "AllISRAck")]
    AllInSync,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Compression {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl Compression {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq)]
pub(super) enum Partitioning {
    Manual,
    #[default]
    Uniform,
    RoundRobin,
    LeastBackup,
    Sticky,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Consumer {
    #[serde(default)]
    pub(super) topics: Vec<String>,
    #[serde(default)]
    pub(super) consume_regexp: bool,
    /// Topic to partition to offset. Keys of maps are text, whatever they count.
    #[serde(default)]
    pub(super) consume_partitions: BTreeMap<String, BTreeMap<String, Offset>>,
    pub(super) consumer_offset: Option<Offset>,
    #[serde(default, deserialize_with = "options::size")]
    pub(super) max_fetch_message_size: Option<usize>,
    #[serde(default, deserialize_with = "options::size")]
    pub(super) min_fetch_message_size: Option<usize>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Offset {
    #[serde(rename = "type")]
    pub(super) kind: OffsetType,
    #[serde(default)]
    pub(super) value: i64,
}

#[derive(Clone, Copy, Deserialize, PartialEq)]
pub(super) enum OffsetType {
    At,
    AfterMilli,
    AtEnd,
    AtStart,
    Relative,
    WithEpoch,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    #[serde(default)]
    pub(super) group_id: String,
    #[serde(default)]
    pub(super) instance_id: String,
    #[serde(default, rename = "block_rebalance_on_poll")]
    pub(super) _block_rebalance_on_poll: bool,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) session_timeout: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) heartbeat_interval: Option<Duration>,
    #[serde(default, deserialize_with = "options::duration")]
    pub(super) max_poll_interval: Option<Duration>,
}

/// How many bytes there are, in text or in a list of numbers.
fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<usize, D::Error> {
    match Value::deserialize(from)? {
        Value::Null => Ok(0),
        Value::String(text) => Ok(text.len()),
        Value::Array(bytes) => Ok(bytes.len()),
        _ => Err(D::Error::custom("expected bytes, found other")),
    }
}
