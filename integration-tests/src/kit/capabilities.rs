//! `cargo kit capabilities`: the table of the README, from the drivers' own values.

use std::process::ExitCode;
use std::time::Duration;

use jobs_core::{Attempts, Capabilities, Lease, Support};

use crate::drivers::DRIVERS;

/// A row: what it is called, and how it reads.
type Row = (&'static str, fn(&Capabilities) -> String);

const ROWS: &[Row] = &[
    ("delay", |c| support(c.delay)),
    ("longest delay", |c| c.max_delay.map_or_else(|| "no limit".into(), days)),
    ("priority at the broker", |c| support(c.priority)),
    ("dead letters", |c| dead_letters(c.reject)),
    ("requeue, also with headers", |c| support(c.requeue)),
    ("batch", |c| support(c.batch)),
    ("ordering key", |c| support(c.ordering_key)),
    ("lease extension on request", |c| support(c.extend)),
    ("lease", |c| lease(c.lease).into()),
    ("survives a restart", |c| yes(c.durable).into()),
    ("acks confirmed", |c| yes(c.acks_confirmed).into()),
    ("attempts", |c| attempts(c.attempts).into()),
    ("release is not counted", |c| yes(c.uncounted_release).into()),
    ("largest payload", |c| c.max_payload.map_or_else(|| "no limit".into(), mebibytes)),
];

pub(crate) fn run() -> Result<ExitCode, String> {
    print!("{}", table());
    Ok(ExitCode::SUCCESS)
}

/// The table for default options.
pub(crate) fn table() -> String {
    let columns: Vec<_> = DRIVERS.iter().map(|driver| (driver.capabilities)()).collect();
    let names: Vec<_> = DRIVERS.iter().map(|driver| format!("`{}`", driver.name)).collect();
    let mut table = format!("| | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for (name, read) in ROWS {
        let cells: Vec<_> = columns.iter().map(read).collect();
        table.push_str(&format!("| {name} | {} |\n", cells.join(" | ")));
    }
    table
}

fn support(support: Support) -> String {
    match support {
        Support::None => "refused".into(),
        how => format!("{how:?}").to_lowercase(),
    }
}

fn dead_letters(support: Support) -> String {
    match support {
        Support::None => "with options".into(),
        other => self::support(other),
    }
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn lease(lease: Lease) -> &'static str {
    match lease {
        Lease::Connection => "while connected",
        Lease::Timed => "timed, extended",
        Lease::Fixed => "fixed time",
        other => panic!("the table has no word for {other:?}"),
    }
}

fn attempts(attempts: Attempts) -> &'static str {
    match attempts {
        Attempts::Exact => "exact",
        Attempts::AtLeast => "at least",
        Attempts::Flag => "first or not",
        other => panic!("the table has no word for {other:?}"),
    }
}

fn days(delay: Duration) -> String {
    match delay.as_secs() {
        seconds if seconds >= 86_400 => format!("{} days", seconds / 86_400),
        seconds => format!("{seconds} s"),
    }
}

fn mebibytes(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_shows_this_table() {
        let readme = include_str!("../../../README.md");
        let table = super::table();
        assert!(readme.contains(&table), "put the output of `cargo kit capabilities` there");
    }
}
