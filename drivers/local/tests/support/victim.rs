//! Test programs that start themselves again, as a process that is killed.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use jobs_kit::toil;

use crate::support::Local;

pub(crate) type Options = &'static [(&'static str, &'static str)];

/// The configurations that are crashed.
pub(crate) const FULL: Options = &[];
pub(crate) const NORMAL: Options = &[("durability", "normal")];
pub(crate) const MEMORY: Options = &[("lease_storage", "memory")];
const ALL: [Options; 3] = [FULL, NORMAL, MEMORY];

const PATH: &str = "JOBS_LOCAL_PATH";
const SEED: &str = "JOBS_LOCAL_SEED";
const OPTIONS: &str = "JOBS_LOCAL_OPTIONS";

/// This program again, to work on a file until it is killed.
pub(crate) fn victim(path: &Path, options: Options, seed: u64) -> Command {
    let number = ALL.iter().position(|known| *known == options).expect("one of them");
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.env(PATH, path).env(SEED, seed.to_string()).env(OPTIONS, number.to_string());
    command
}

/// What this program does if it is the one that is to be killed.
pub(crate) fn played() -> Option<ExitCode> {
    let path = PathBuf::from(std::env::var_os(PATH)?);
    let number = |name| std::env::var(name).ok()?.parse().ok();
    let seed = number(SEED)?;
    let options = usize::try_from(number(OPTIONS)?).ok().and_then(|number| ALL.get(number))?;
    let runtime = tokio::runtime::Runtime::new().expect("the system allows threads");
    let harness = Arc::new(Local::at(&path, options));
    Some(match runtime.block_on(toil(harness, seed, std::io::stdout())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    })
}
