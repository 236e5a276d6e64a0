//! The whole suite on the driver that the defects are made in, without any.

mod support;

use std::process::ExitCode;

use jobs_kit::Suite;
use support::Small;

fn main() -> ExitCode {
    Suite::new().configuration("honest", || Small::new(None)).run()
}
