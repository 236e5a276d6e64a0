//! `cargo kit`: benchmarks, soaks and tables over the drivers of this suite.

mod bench;

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
    },
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    match command {
        Command::Bench { driver } => bench::run(&driver),
    }
}
