#![doc = include_str!("docs.md")]

mod codec;
mod config;
mod connection;
mod constructor;
mod consumer;
mod delays;
mod driver;
mod error;
mod hub;
mod inspector;
mod keeper;
mod lease;
mod offsets;
mod publisher;
mod session;

pub use config::KafkaConfig;
pub use constructor::{KafkaConstructor, constructor};

/// What `driver:` selects.
pub const NAME: &str = "kafka";
