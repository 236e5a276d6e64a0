//! `cargo kit`: benchmarks, soaks and tables over the drivers of this suite.

mod bench;
mod capabilities;
mod drivers;
mod faults;
#[path = "../../../drivers/local/tests/support/mod.rs"]
mod local;
#[path = "../../../drivers/memory/tests/support/mod.rs"]
mod memory;
mod soak;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "kit", about = "Benchmarks, soaks and tables over the drivers of this suite")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compares a driver with its bare client, in alternating pairs.
    Bench {
        /// The driver, or `all`.
        driver: String,
        /// A page to write the figures to, with the machine and the versions they are of.
        #[arg(long)]
        page: Option<PathBuf>,
    },
    /// Pushes and settles at random and keeps books on every message.
    Soak(soak::Arguments),
    /// What `soak` starts to kill it.
    #[command(hide = true)]
    Toil(soak::Toil),
    /// Runs every case that causes faults again and again, in every configuration.
    Faults(faults::Arguments),
    /// Prints what each driver can do with default options.
    Capabilities,
}

fn main() -> ExitCode {
    // A case of Kafka's suite starts its program again, to kill it.
    if let Some(ended) = integration_tests::kafka::victim() {
        return ended;
    }
    let Arguments { command } = Arguments::parse();
    let answer = match command {
        Command::Bench { driver, page } => bench::run(&driver, page.as_deref()),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Toil(arguments) => soak::toil_on(&arguments),
        Command::Faults(arguments) => faults::run(&arguments),
        Command::Capabilities => capabilities::run(),
    };
    answer.unwrap_or_else(|error| {
        eprintln!("kit: {error}");
        ExitCode::FAILURE
    })
}
