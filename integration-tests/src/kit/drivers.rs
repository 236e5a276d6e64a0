//! The drivers the command knows, each with its harness.

use std::sync::Arc;

use jobs_kit::Harness;

use crate::bench;
use crate::memory::Memory;

/// A driver of this suite.
pub(crate) struct Driver {
    pub(crate) name: &'static str,
    pub(crate) harness: fn() -> Arc<dyn Harness>,
    /// Prints the lines of its benchmark.
    pub(crate) bench: fn(),
}

/// All drivers, in the order of the tables.
pub(crate) const DRIVERS: &[Driver] = &[Driver {
    name: jobs_memory::NAME,
    harness: || Arc::new(Memory::new(&[])),
    bench: bench::memory::run,
}];

/// The driver of that name, or all of them.
///
/// # Errors
/// A message that lists the names, if there is none.
pub(crate) fn select(name: &str) -> Result<Vec<&'static Driver>, String> {
    let selected: Vec<_> =
        DRIVERS.iter().filter(|driver| name == "all" || driver.name == name).collect();
    if selected.is_empty() {
        let names: Vec<_> = DRIVERS.iter().map(|driver| driver.name).collect();
        return Err(format!("no driver `{name}`; expected `all` or one of {names:?}"));
    }
    Ok(selected)
}
