//! The command line.

use std::path::PathBuf;

pub(crate) const HELP: &str = "\
Hashes every file of a directory, one job per file, and checks that none was forgotten.

usage: quickstart [DIR] [--sums]
       quickstart --resume FILE [--sums]
       quickstart [DIR] --config FILE [--pipeline NAME] [--sums]

  DIR              the directory; default: the current one
  --resume FILE    goes on with a run that ended half-way, even by `kill -9`, in the file it named.
                   Nothing is pushed twice, and what is done is not done again, except what was in
                   hand at that moment. If not all files were pushed yet, the directory is listed
                   again, in the same order, and pushing goes on behind as many files as were
                   pushed: until then the directory should stay as it is
  --config FILE    takes the pipeline from a configuration file: any driver, and no --resume
  --pipeline NAME  the pipeline's name; default: files
  --sums           prints a line for each file, as sha256sum does

Without --config the jobs are in a scratch file, by the driver `local`. It is named at the start and
removed when every job was handled.";

pub(crate) struct Options {
    pub(crate) directory: PathBuf,
    pub(crate) resume: Option<PathBuf>,
    pub(crate) config: Option<PathBuf>,
    pub(crate) pipeline: String,
    pub(crate) sums: bool,
}

impl Options {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut directory, mut resume, mut config, mut pipeline) = (None, None, None, None);
        let mut sums = false;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value\n\n{HELP}"));
            match arg.as_str() {
                "--resume" => resume = Some(value()?.into()),
                "--config" => config = Some(value()?.into()),
                "--pipeline" => pipeline = Some(value()?),
                "--sums" => sums = true,
                flag if flag.starts_with('-') => return Err(format!("no option {arg}\n\n{HELP}")),
                path => directory = Some(path.into()),
            }
        }
        if resume.is_some() && (directory.is_some() || config.is_some() || pipeline.is_some()) {
            return Err(format!("--resume FILE says it all: the file knows the rest\n\n{HELP}"));
        }
        let directory = directory.unwrap_or_else(|| ".".into());
        let pipeline = pipeline.unwrap_or_else(|| "files".into());
        Ok(Self { directory, resume, config, pipeline, sums })
    }
}
