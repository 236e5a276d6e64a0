#![doc = include_str!("docs.md")]

mod case;
pub mod cases;
#[cfg(feature = "containers")]
mod container;
mod fault;
mod feature;
mod fixture;
mod harness;
mod ledger;
mod pipeline;
pub mod proxy;
mod runner;
mod soak;
mod suite;
mod wait;

pub use case::{Case, CaseError, CaseResult};
#[cfg(feature = "containers")]
pub use container::{Container, Ports, Ready};
pub use fault::Fault;
pub use feature::Feature;
pub use fixture::Fixture;
pub use harness::Harness;
pub use ledger::{Ledger, Totals};
pub use pipeline::TestPipeline;
pub use proxy::Proxy;
pub use runner::run_case;
pub use soak::{Soak, Victim, soak, soak_killed, toil, work_off};
pub use suite::{Repeated, Suite};
pub use wait::{Unexpected, poll_times};
