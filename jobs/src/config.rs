//! What an application wants: pipelines, the drivers' shared sections, and who consumes.

mod env;
mod file;
mod findings;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jobs_core::{Error, ErrorKind, Options, Pipeline, Plan, Problem, Registry, Result};

use crate::{Jobs, default_registry};
use findings::Findings;

/// A configuration: read from YAML, built in code, or both.
///
/// Mistakes are collected, not answered one by one: [`check`](Self::check) and
/// [`connect`](Self::connect) report all of them together, each with its path, before anything
/// connects.
///
/// ```
/// use jobs::{Config, Pipeline};
///
/// let config = Config::from_yaml("
/// version: '3'
/// jobs:
///   consume: [mail]
///   pipelines:
///     mail: { driver: memory, config: { prefetch: '${JOBS_DOC_PREFETCH:-100}' } }
/// ")?;
/// let config = config.pipeline(Pipeline::new("scratch", "memory"));
/// assert!(config.check().is_ok());
///
/// let wrong = Config::new().pipeline(Pipeline::new("a", "memry").with_option("prefetch", 1));
/// let error = wrong.check().unwrap_err();
/// assert_eq!(error.problems()[0].path(), "a.driver");
/// # Ok::<(), jobs::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Config {
    registry: Registry,
    timeout: Duration,
    consume: Vec<Listed>,
    pipelines: Vec<Pipeline>,
    /// Names of pipelines whose mistakes leave nothing to plan.
    broken: Vec<String>,
    sections: BTreeMap<String, Section>,
    problems: Vec<Problem>,
}

/// A name in `consume`; one from a file bears its path and must exist.
#[derive(Clone, Debug)]
struct Listed {
    name: String,
    path: Option<String>,
}

/// A root section. What is wrong in it matters only if it is a driver's.
#[derive(Clone, Debug)]
struct Section {
    options: Options,
    findings: Findings,
}

/// A pipeline that is ready to be connected.
pub(crate) type Planned = (Pipeline, Box<dyn Plan>);

impl Config {
    /// How long a call may take if nothing else is said: 60 s, as in RoadRunner.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

    /// No pipelines, and the drivers of [`default_registry`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            registry: default_registry(),
            timeout: Self::DEFAULT_TIMEOUT,
            consume: Vec::new(),
            pipelines: Vec::new(),
            broken: Vec::new(),
            sections: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    /// Reads a YAML file, in the shape that [the guide](crate::guide::configure) describes.
    ///
    /// # Errors
    /// `Config` if the file cannot be read or is no YAML (a key that stands twice included). All
    /// other mistakes are kept for [`check`](Self::check).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let text = std::fs::read_to_string(path.as_ref());
        let path = path.as_ref().display();
        let text = text.map_err(|error| {
            unreadable(format!("the file `{path}` cannot be read: {error}")).with_source(error)
        })?;
        file::read(&text, &environment).map_err(|why| unreadable(format!("`{path}`: {why}")))
    }

    /// Reads YAML text.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_yaml(text: &str) -> Result<Self> {
        Self::from_yaml_with(text, environment)
    }

    /// Reads YAML text with variables from elsewhere than the process environment.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_yaml_with(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        file::read(text, &variable).map_err(unreadable)
    }

    /// Replaces the drivers to choose from.
    #[must_use]
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// Sets the options that all pipelines of one driver share, as a root section of a file does.
    /// A pipeline's own options win.
    #[must_use]
    pub fn section(mut self, driver: impl Into<String>, options: Options) -> Self {
        let section = Section { options, findings: Findings::default() };
        self.sections.insert(driver.into(), section);
        self
    }

    /// Adds a pipeline.
    #[must_use]
    pub fn pipeline(mut self, pipeline: Pipeline) -> Self {
        if self.pipelines.iter().any(|other| other.name() == pipeline.name()) {
            let problem = Problem::new(pipeline.name(), "there are two pipelines of this name");
            self.problems.push(problem.with_kind(ErrorKind::InvalidState));
        }
        self.pipelines.push(pipeline);
        self
    }

    /// Names pipelines that start consuming at once. A name that no pipeline bears counts for one
    /// that is [declared](Jobs::declare) later. (In a file it is a mistake.)
    #[must_use]
    pub fn consume(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let names = names.into_iter().map(|name| Listed { name: name.into(), path: None });
        self.consume.extend(names);
        self
    }

    /// Bounds each call that connects, runs, pauses, resumes, stops or asks for the state of a
    /// pipeline. Default: 60 s. Pushes are bounded by their driver's `push_timeout`.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Checks everything that can be checked without connecting.
    ///
    /// # Errors
    /// One error with *all* [problems](Error::problems): shape of the file, variables, unknown
    /// drivers, options of every pipeline, names in `consume`. Its kind is the one all problems
    /// share (`UnknownDriver`, `InvalidState`), else `Config`.
    pub fn check(&self) -> Result<()> {
        self.plan().map(drop)
    }

    /// Checks, connects all pipelines at once, and runs those listed to consume.
    ///
    /// # Errors
    /// As [`check`](Self::check), before anything connects. Then the first failure to connect or
    /// run; whatever was connected by then is stopped before this returns.
    ///
    /// # Cancel safety
    /// Not cancel safe: drivers that were connected are dropped without being stopped.
    pub async fn connect(self) -> Result<Jobs> {
        Jobs::connect(self).await
    }

    pub(crate) fn plan(&self) -> Result<Vec<Planned>> {
        let mut problems = self.problems.clone();
        self.check_consumed(&mut problems);
        for (name, section) in &self.sections {
            match self.registry.contains(name) {
                true => problems.extend(section.findings.report()),
                false => tracing::warn!(section = name, "no driver of this name, section ignored"),
            }
        }
        let mut planned = Vec::new();
        for pipeline in &self.pipelines {
            match self.registry.plan(&self.shared(pipeline.driver()), pipeline.clone()) {
                Ok(plan) => planned.push((pipeline.clone(), plan)),
                // A mistake in a shared section shows in each pipeline that uses it.
                Err(more) => more.into_iter().for_each(|problem| {
                    if !problems.contains(&problem) {
                        problems.push(problem);
                    }
                }),
            }
        }
        match problems.is_empty() {
            true => Ok(planned),
            false => Err(Error::from_problems("configure", problems)),
        }
    }

    fn check_consumed(&self, problems: &mut Vec<Problem>) {
        if self.timeout.is_zero() {
            let message = "expected a duration above zero, found zero";
            problems.push(Problem::new("jobs.timeout", message));
        }
        let broken = self.broken.iter().map(String::as_str);
        let names: Vec<_> = self.pipelines.iter().map(Pipeline::name).chain(broken).collect();
        for Listed { name, path } in &self.consume {
            if let Some(path) = path.as_ref().filter(|_| !names.contains(&name.as_str())) {
                let known = findings::list(&names);
                let message = format!("no pipeline is named `{name}`, expected one of {known}");
                problems.push(Problem::new(path, message));
            }
        }
    }

    fn shared(&self, driver: &str) -> Options {
        self.sections.get(driver).map_or_else(Options::default, |found| found.options.clone())
    }

    /// What declaring a pipeline later needs.
    pub(crate) fn into_parts(self) -> Parts {
        let sections = self.sections.into_iter().map(|(name, found)| (name, found.options));
        Parts {
            registry: self.registry,
            timeout: self.timeout,
            consume: self.consume.into_iter().map(|listed| listed.name).collect(),
            sections: sections.collect(),
        }
    }
}

/// What is left of a configuration once its pipelines are connected.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) registry: Registry,
    pub(crate) timeout: Duration,
    pub(crate) consume: Vec<String>,
    pub(crate) sections: BTreeMap<String, Options>,
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn unreadable(context: String) -> Error {
    Error::new(ErrorKind::Config, "configure").with_context(context)
}
