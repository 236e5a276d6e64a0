//! The harness of the embedded driver.
#![allow(dead_code, reason = "each test program uses its part")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use jobs_core::{Constructor, Pipeline, Registry, Result, async_trait};
use jobs_kit::Harness;
use tempfile::TempDir;

/// One configuration of the driver.
pub(crate) struct Local {
    registry: Registry,
    place: Place,
    options: &'static [(&'static str, &'static str)],
}

enum Place {
    /// A file for each pipeline.
    Scratch(TempDir),
    /// One queue in one file for all of them, also in other processes.
    Shared(PathBuf),
}

impl Local {
    /// A harness whose pipelines have these options.
    #[must_use]
    pub(crate) fn new(options: &'static [(&'static str, &'static str)]) -> Self {
        Self::with(jobs_local::constructor(), options)
    }

    /// As [`new`](Self::new), with pipelines made by another constructor.
    #[must_use]
    pub(crate) fn with(
        constructor: impl Constructor,
        options: &'static [(&'static str, &'static str)],
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory for scratch files");
        Self::placed(constructor, Place::Scratch(directory), options)
    }

    /// A harness whose pipelines are all on one queue in this file.
    #[must_use]
    pub(crate) fn at(path: &Path, options: &'static [(&'static str, &'static str)]) -> Self {
        Self::placed(jobs_local::constructor(), Place::Shared(path.to_owned()), options)
    }

    fn placed(
        constructor: impl Constructor,
        place: Place,
        options: &'static [(&'static str, &'static str)],
    ) -> Self {
        let mut registry = Registry::new();
        registry.register(constructor).expect("the only driver");
        Self { registry, place, options }
    }
}

#[async_trait]
impl Harness for Local {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        let (path, queue) = match &self.place {
            Place::Scratch(directory) => (directory.path().join(format!("{name}.db")), name),
            Place::Shared(path) => (path.clone(), "shared"),
        };
        let pipeline = Pipeline::new(name, jobs_local::NAME)
            .with_option("path", path.to_string_lossy().into_owned())
            .with_option("queue", queue);
        Ok(self.options.iter().fold(pipeline, |p, (name, value)| p.with_option(*name, *value)))
    }

    fn with_max_lease(&self, pipeline: Pipeline, max_lease: Duration) -> Option<Pipeline> {
        Some(pipeline.with_option("max_lease", format!("{}ms", max_lease.as_millis())))
    }

    fn max_lease(&self) -> Duration {
        Duration::from_millis(300)
    }
}
