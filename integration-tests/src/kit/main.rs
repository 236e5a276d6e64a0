//! `cargo kit`: benchmarks, soaks and tables over the drivers of this suite.

mod bench;

use std::alloc::System;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

/// Counts allocations, for `bench`.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("the system allows threads");
    runtime.block_on(async {
        match command {
            Command::Bench { driver } => bench::run(&driver).await,
        }
    })
}
