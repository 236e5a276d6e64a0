//! `cargo kit soak`: random work, and a line of totals per driver.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use jobs_kit::{Fault, Soak, soak};

use crate::drivers::{Driver, select};

#[derive(Args)]
pub(crate) struct Arguments {
    /// The driver, or `all`.
    driver: String,
    /// How long messages are pushed.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Chooses the decisions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What happens to the broker meanwhile: `kill`, `cut`, `reset`, `stall`, separated by commas.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Fault>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let faults = arguments.faults.clone();
    let duration = Duration::from_secs(arguments.seconds);
    let soak = Soak { duration, seed: arguments.seed, faults };
    let mut sound = true;
    for driver in select(&arguments.driver)? {
        sound &= run_one(driver, &soak)?;
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_one(driver: &Driver, plan: &Soak) -> Result<bool, String> {
    let name = driver.name;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let totals = runtime.block_on(async {
        let harness = (driver.harness)();
        let unknown = plan.faults.iter().find(|fault| !harness.faults().contains(fault));
        match unknown {
            Some(fault) => Err(format!("{name} cannot suffer `{}`", fault.name())),
            None => soak(harness, plan).await.map_err(|error| format!("{name}: {error:?}")),
        }
    })?;
    println!("{name} {totals}");
    Ok(totals.is_sound())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::DRIVERS;

    #[test]
    fn no_driver_loses_a_job_in_three_seconds() {
        let plan = Soak { duration: Duration::from_secs(3), seed: 1, faults: Vec::new() };
        for driver in DRIVERS {
            assert_eq!(run_one(driver, &plan), Ok(true), "{}", driver.name);
        }
    }

    #[test]
    fn faults_a_driver_cannot_suffer_are_refused() {
        let plan = Soak { duration: Duration::ZERO, seed: 1, faults: vec![Fault::Kill] };
        let answer = run_one(&DRIVERS[0], &plan);
        assert_eq!(answer, Err("memory cannot suffer `kill`".to_owned()));
    }
}
