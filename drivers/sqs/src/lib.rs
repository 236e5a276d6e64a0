#![doc = include_str!("docs.md")]

mod coalescer;
mod codec;
mod config;
mod connection;
mod constructor;
mod consumer;
mod delays;
mod driver;
mod error;
mod groups;
mod outbox;
mod publisher;
mod settlements;
mod topology;
mod visibility;

pub use config::SqsConfig;
pub use constructor::{SqsConstructor, constructor};

/// What `driver:` selects.
pub const NAME: &str = "sqs";
