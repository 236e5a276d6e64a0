//! The embedded driver under the conformance kit.

mod support;

use std::process::ExitCode;

use jobs_core::{Constructor, Options, Pipeline, Plan, Problem};
use jobs_kit::Suite;
use support::Local;

/// Makes each pipeline as another process would: nothing but the file is shared.
struct Apart;

impl Constructor for Apart {
    fn name(&self) -> &'static str {
        jobs_local::NAME
    }

    fn plan(&self, shared: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>> {
        jobs_local::constructor().plan(shared, pipeline)
    }
}

fn main() -> ExitCode {
    Suite::new()
        .configuration("full", || Local::new(&[]))
        .configuration("normal", || Local::new(&[("durability", "normal")]))
        .configuration("memory", || Local::new(&[("lease_storage", "memory")]))
        .configuration("apart", || Local::with(Apart, &[]))
        .run()
}
