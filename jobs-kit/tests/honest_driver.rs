//! The whole suite on the driver that the defects are made in, without any.

mod support;

use std::num::NonZeroUsize;
use std::process::ExitCode;

use jobs_kit::Suite;
use support::Small;

fn main() -> ExitCode {
    Suite::new()
        .configuration("honest", || Small::new(None))
        .configuration("prefetch_1", || Small::new(None).with_prefetch(1))
        .threads(NonZeroUsize::new(8).expect("not zero"))
        .fault_runs(1)
        .run()
}
