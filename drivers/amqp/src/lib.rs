#![doc = include_str!("docs.md")]

mod acks;
mod codec;
mod config;
mod confirms;
mod connection;
mod constructor;
mod consumer;
mod delays;
mod driver;
mod error;
mod flights;
mod health;
mod inspector;
mod outbox;
mod publisher;
mod session;
mod settlements;
mod topology;

pub use config::AmqpConfig;
pub use constructor::{AmqpConstructor, constructor};

/// What `driver:` selects.
pub const NAME: &str = "amqp";
