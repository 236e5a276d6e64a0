//! `cargo kit faults`: every case that causes faults, again and again.

use std::process::ExitCode;

use clap::Args;
use jobs_kit::Repeated;

use crate::drivers::select;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The driver, or `all`.
    driver: String,
    /// How often each case runs.
    #[arg(long, default_value_t = 20)]
    times: u32,
}

/// Prints a line per case, and the failures below it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let mut sound = true;
    for driver in select(&arguments.driver)? {
        (driver.suite)().repeat_faults(arguments.times, |repeated| {
            println!("{} {}", driver.name, line(repeated));
            repeated.failures.iter().for_each(|failure| println!("  {failure}"));
            sound &= repeated.failures.is_empty();
        });
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn line(Repeated { name, passed, failures, ignored, .. }: &Repeated) -> String {
    match ignored {
        Some(reason) => format!("{name} ignored: {reason}"),
        None => format!("{name} passed={passed} failed={}", failures.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_or_tells_why_not() {
        let mut repeated = Repeated::default();
        repeated.name = "a::b::c".into();
        repeated.passed = 19;
        repeated.failures = vec!["late".into()];
        assert_eq!(line(&repeated), "a::b::c passed=19 failed=1");
        repeated.ignored = Some("no fault `kill`".into());
        assert_eq!(line(&repeated), "a::b::c ignored: no fault `kill`");
    }
}
