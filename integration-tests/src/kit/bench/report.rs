//! The lines of a benchmark, kept for a page that says where they come from.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::drivers::DRIVERS;

const CLIENTS: [&str; 6] = ["tokio", "lapin", "beanstalkc", "rdkafka", "aws-sdk-sqs", "rusqlite"];

const LOCK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock");
const IMAGES: &str = include_str!("../../../../compose/images.env");

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Prints a line, `driver op name=value name=value`, and keeps it for the page.
pub(super) fn say(line: String) {
    println!("{line}");
    LINES.lock().unwrap_or_else(PoisonError::into_inner).push(line);
}

/// Writes the page.
pub(super) fn write(page: &Path, command: &str) -> Result<(), String> {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let lines: Vec<_> = lines.iter().filter_map(|line| Measured::parse(line)).collect();
    let told = |error: std::io::Error| format!("{}: {error}", page.display());
    if let Some(folder) = page.parent() {
        std::fs::create_dir_all(folder).map_err(told)?;
    }
    std::fs::write(page, text(&lines, &place(command)?)).map_err(told)
}

/// One line, taken apart.
struct Measured<'a> {
    driver: &'a str,
    op: &'a str,
    figures: Vec<(&'a str, &'a str)>,
}

impl<'a> Measured<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (driver, op) = (words.next()?, words.next()?);
        Some(Self { driver, op, figures: words.filter_map(|word| word.split_once('=')).collect() })
    }

    fn names(&self) -> impl Iterator<Item = &'a str> {
        self.figures.iter().map(|(name, _)| *name)
    }
}

fn text(lines: &[Measured<'_>], place: &str) -> String {
    let mut text = format!(
        "# Benchmarks\n\nWritten by `make bench`. Each line with a `ratio` is the median of five alternating pairs of runs, \
         with {} bytes of payload: `raw` and `driver` are jobs per second of the bare client and of our driver, \
         `ratio` is the median of the ratios of the pairs, `cpu_us` and `raw_cpu_us` are microseconds of \
         processor time per job in this process. `allocs` are the allocations of our driver per job beyond the bare \
         client's; `requests` those to the service per 1,000 jobs; `ack_alone` is how long one ack takes to be \
         answered; `10ms` has handlers of ten milliseconds, beside a loop that runs them in order (three pairs); \
         `backlog` pushes a million jobs, opens their file again and runs them. The broker runs in a container \
         on the same machine.\n\n{place}",
        super::PAYLOAD
    );
    for driver in DRIVERS {
        let of_driver: Vec<_> = lines.iter().filter(|line| line.driver == driver.name).collect();
        if of_driver.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n## `{}` beside {}", driver.name, driver.beside);
        for table in of_driver.chunk_by(|one, other| one.names().eq(other.names())) {
            let names: Vec<_> = table[0].names().collect();
            let _ = writeln!(text, "\n| op | {} |", names.join(" | "));
            let _ = writeln!(text, "|{}", "---|".repeat(names.len() + 1));
            for line in table {
                let values: Vec<_> = line.figures.iter().map(|(_, value)| *value).collect();
                let _ = writeln!(text, "| {} | {} |", line.op, values.join(" | "));
            }
        }
    }
    text
}

/// The machine, the versions and the command.
fn place(command: &str) -> Result<String, String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let value = |text: &str, name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(':'));
        found.unwrap_or("unknown").trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let processor = value(&read("/proc/cpuinfo"), "model name");
    let memory = value(&read("/proc/meminfo"), "MemTotal");
    let system = said("uname", &["-sr"])?;
    let compiler = said("rustc", &["--version"])?;
    let images: Vec<_> = IMAGES
        .lines()
        .filter_map(|line| line.strip_prefix("JOBS_")?.split_once("_IMAGE="))
        .map(|(_, image)| image.trim_start_matches("jobs-"))
        .collect();
    let mut place = String::from("| | |\n|---|---|\n");
    for (what, value) in [
        ("command", format!("`{command}`")),
        ("machine", format!("{cores} cores of {processor}, {memory} of memory")),
        ("system", system),
        ("compiler", compiler),
        ("clients", versions(&read(LOCK)).into_iter().collect::<Vec<_>>().join(", ")),
        ("brokers", images.join(", ")),
    ] {
        let _ = writeln!(place, "| {what} | {value} |");
    }
    Ok(place)
}

fn said(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Of the clients, as they are locked.
fn versions(lock: &str) -> BTreeSet<String> {
    let lines: Vec<_> = lock.lines().collect();
    let quoted = |line: &str, name: &str| -> Option<String> {
        Some(line.strip_prefix(name)?.trim_start_matches(" = ").trim_matches('"').to_owned())
    };
    let package = |pair: &[&str]| {
        let (name, version) = (quoted(pair[0], "name")?, quoted(pair[1], "version")?);
        CLIENTS.contains(&name.as_str()).then(|| format!("{name} {version}"))
    };
    lines.windows(2).filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_kind_are_one_table() {
        let lines = [
            "sqs push config=standard concurrency=64 ratio=0.99",
            "sqs consume config=standard concurrency=64 ratio=1.01",
            "sqs push config=standard concurrency=64 ratio=0.98 requests=102",
        ];
        let lines: Vec<_> = lines.iter().filter_map(|line| Measured::parse(line)).collect();
        let text = text(&lines, "");
        let tables: Vec<_> = text.lines().filter(|line| line.starts_with("| op |")).collect();
        assert_eq!(tables.len(), 2, "{text}");
        assert!(text.contains("\n| consume | standard | 64 | 1.01 |\n"), "{text}");
    }

    #[test]
    fn the_versions_of_all_clients_are_found() {
        let lock = std::fs::read_to_string(LOCK).expect("the workspace has a lock file");
        assert_eq!(versions(&lock).len(), CLIENTS.len());
    }
}
