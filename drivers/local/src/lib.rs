#![doc = include_str!("docs.md")]

mod codec;
mod config;
mod constructor;
mod consumers;
mod database;
mod dead;
mod driver;
mod error;
mod group;
mod inbox;
mod leases;
mod open;
mod owners;
mod receipts;
mod store;
mod writer;

pub use config::{Durability, LeaseStorage, LocalConfig};
pub use constructor::{LocalConstructor, constructor};
pub use dead::{DeadLetter, DeadLetters};

/// What `driver:` selects.
pub const NAME: &str = "local";
