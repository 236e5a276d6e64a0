#![doc = include_str!("docs.md")]

mod backoff;
mod capabilities;
mod driver;
mod error;
mod headers;
mod health;
mod job;
mod message;
pub mod options;
mod pipeline;
mod queue;
mod registry;
mod settle;
mod state;
pub mod wire;

pub use async_trait::async_trait;
pub use backoff::Backoff;
pub use bytes::Bytes;
pub use capabilities::{Attempts, Capabilities, Lease, Support};
pub use driver::{Constructor, Driver, Plan};
pub use error::{Error, ErrorKind, Problem, Result};
pub use headers::Headers;
pub use health::Health;
pub use job::{Delivery, Job, Receipt, Settle, SettleError};
pub use message::{JobId, KafkaOptions, Message};
pub use options::Options;
pub use pipeline::Pipeline;
pub use queue::{Credit, Inlet, Pop, PriorityFifo, Queue, Wakeup};
pub use registry::Registry;
pub use secrecy::ExposeSecret;
/// Text that is never shown: passwords, keys, tokens. Read it with [`ExposeSecret`].
pub use secrecy::SecretString as Secret;
pub use settle::{
    Acknowledger, Extender, Extending, Outcome, Refusal, Settler, Settling, Token, Unsettled,
};
pub use state::State;
