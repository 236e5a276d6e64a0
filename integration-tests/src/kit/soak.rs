//! `cargo kit soak`: random work, and a line of totals per driver.

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Args;
use jobs_kit::{Fault, Soak, Totals, soak, soak_killed, toil};

use crate::drivers::{Driver, Shared, select};

/// How long a process lives that is killed, in milliseconds.
const LIVES: std::ops::Range<u64> = 100..2_000;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The driver, or `all` at once.
    driver: String,
    /// How long messages are pushed.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Chooses the decisions.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What happens to the broker meanwhile, or to the process where there is none: `kill`, `cut`, `reset`, `stall`, `rebalance`, separated by commas.
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Fault>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, String> {
    let faults = arguments.faults.clone();
    let duration = Duration::from_secs(arguments.seconds);
    let soak = Soak::new(duration, arguments.seed).with_faults(faults);
    let sound = run_all(&select(&arguments.driver)?, &soak)?;
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All at once, each with a runtime of its own.
fn run_all(drivers: &[&Driver], plan: &Soak) -> Result<bool, String> {
    std::thread::scope(|scope| {
        let soaks = drivers.iter().map(|driver| scope.spawn(|| run_one(driver, plan)));
        let soaks: Vec<_> = soaks.collect();
        let answers = soaks.into_iter().map(|soak| match soak.join() {
            Ok(answer) => answer,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        answers.collect::<Result<Vec<_>, _>>().map(|sound| sound.iter().all(|sound| *sound))
    })
}

fn run_one(driver: &Driver, plan: &Soak) -> Result<bool, String> {
    let name = driver.name;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let totals = runtime.block_on(async {
        if let (Some(shared), [Fault::Kill]) = (driver.shared, &plan.faults[..]) {
            return kill(driver, shared, plan).await;
        }
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

/// Kills the process that works, for as long as the soak lasts.
async fn kill(driver: &Driver, shared: Shared, plan: &Soak) -> Result<Totals, String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = directory.path().join("soak");
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let child = |seed: u64| {
        let mut command = Command::new(&program);
        command.args(["toil", driver.name, "--seed", &seed.to_string(), "--path"]).arg(&path);
        command
    };
    let end = Instant::now() + plan.duration;
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let lives = std::iter::from_fn(|| {
        let left = end.checked_duration_since(Instant::now())?;
        Some(left.min(Duration::from_millis(random.u64(LIVES))))
    });
    let totals = soak_killed(shared(&path), plan.seed, lives, child).await;
    totals.map_err(|error| format!("{}: {error:?}", driver.name))
}

#[derive(Args)]
pub(crate) struct Toil {
    driver: String,
    #[arg(long)]
    seed: u64,
    #[arg(long)]
    path: PathBuf,
}

/// What a process does that is to be killed.
pub(crate) fn toil_on(arguments: &Toil) -> Result<ExitCode, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    for driver in select(&arguments.driver)? {
        let shared = driver.shared.ok_or_else(|| format!("{} has a broker", driver.name))?;
        let toiled = toil(shared(&arguments.path), arguments.seed, std::io::stdout());
        runtime.block_on(toiled).map_err(|error| format!("{error:?}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::DRIVERS;

    #[test]
    fn no_driver_loses_a_job_in_three_seconds() {
        let plan = Soak::new(Duration::from_secs(3), 1);
        assert_eq!(run_all(&select("all").unwrap_or_default(), &plan), Ok(true));
    }

    #[test]
    fn faults_a_driver_cannot_suffer_are_refused() {
        let plan = Soak::new(Duration::ZERO, 1).with_faults(vec![Fault::Kill]);
        let answer = run_one(&DRIVERS[0], &plan);
        assert_eq!(answer, Err("memory cannot suffer `kill`".to_owned()));
    }
}
