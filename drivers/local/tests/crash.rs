//! A process that is killed at random moments, again and again, on one file.

mod support;
#[path = "support/victim.rs"]
mod victim;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use jobs_kit::{Case, CaseResult, Suite, soak_killed};
use support::Local;
use victim::{FULL, MEMORY, NORMAL, Options, victim};

/// How long a process works at most.
const LIFE: u64 = 250;

fn main() -> ExitCode {
    if let Some(played) = victim::played() {
        return played;
    }
    let killed = |rounds, options| {
        let proves = "what returned Ok outlives a kill of the process at any moment";
        Case::new("crash::killed_again_and_again", &[1, 2, 3], proves, move |_| {
            is_killed(rounds, options)
        })
    };
    Suite::new()
        .configuration("full", || Local::new(FULL))
        .only("full", &[])
        .cases("full", [killed(100, FULL)])
        .configuration("normal", || Local::new(NORMAL))
        .only("normal", &[])
        .cases("normal", [killed(20, NORMAL)])
        .configuration("memory", || Local::new(MEMORY))
        .only("memory", &[])
        .cases("memory", [killed(20, MEMORY)])
        .run()
}

async fn is_killed(rounds: usize, options: Options) -> CaseResult {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("jobs.db");
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let lives = (0..rounds).map(|_| Duration::from_millis(random.u64(..LIFE)));
    let harness = Arc::new(Local::at(&path, options));
    let totals = soak_killed(harness, seed, lives, |seed| victim(&path, options, seed)).await?;
    println!("seed={seed} rounds={rounds} {totals}");
    assert!(totals.is_sound(), "seed={seed} {totals}");
    assert!(totals.done as usize > rounds, "it has worked: {totals}");
    assert_eq!(totals.pending, 0, "all is worked off: {totals}");
    Ok(())
}
