//! The in-process driver under the conformance kit.

mod support;

use std::process::ExitCode;

use jobs_kit::Suite;
use support::Memory;

fn main() -> ExitCode {
    Suite::new()
        .configuration("default", || Memory::new(&[]))
        .configuration("leases", || Memory::new(&[("max_lease", "10m")]))
        .configuration("limits", || {
            Memory::new(&[
                ("max_payload", "4KiB"),
                ("max_delay", "1h"),
                ("min_priority", "-5"),
                ("max_priority", "20"),
            ])
        })
        .run()
}
