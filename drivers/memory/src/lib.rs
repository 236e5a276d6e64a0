#![doc = include_str!("docs.md")]

mod config;
mod constructor;
mod driver;
mod leases;
mod room;
mod storage;

pub use config::MemoryConfig;
pub use constructor::{MemoryConstructor, constructor};
pub use storage::DeadLetter;

/// What `driver:` selects.
pub const NAME: &str = "memory";
