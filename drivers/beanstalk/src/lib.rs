#![doc = include_str!("docs.md")]

mod buried;
mod codec;
mod config;
mod connection;
mod constructor;
mod consumer;
mod driver;
mod epoch;
mod error;
mod freshness;
mod pool;
mod publisher;
mod reservations;
mod strays;

pub use buried::{Buried, BuriedJob};
pub use config::{Address, BeanstalkConfig};
pub use constructor::{BeanstalkConstructor, constructor};

/// What `driver:` selects.
pub const NAME: &str = "beanstalk";
