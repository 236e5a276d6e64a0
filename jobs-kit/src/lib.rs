#![doc = include_str!("docs.md")]

mod case;
pub mod cases;
mod feature;
mod fixture;
mod harness;
mod ledger;
mod pipeline;
mod runner;
mod soak;
mod suite;
mod wait;

pub use case::{Case, CaseError, CaseResult};
pub use feature::Feature;
pub use fixture::Fixture;
pub use harness::{Fault, Harness};
pub use ledger::{Ledger, Totals};
pub use pipeline::TestPipeline;
pub use runner::run_case;
pub use soak::{Soak, soak};
pub use suite::Suite;
pub use wait::{Unexpected, poll_times};
