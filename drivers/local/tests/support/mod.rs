//! The harness of the embedded driver.

use std::time::Duration;

use jobs_core::{Constructor, Pipeline, Registry, Result, async_trait};
use jobs_kit::Harness;
use tempfile::TempDir;

/// One configuration of the driver, with a file for each pipeline.
pub(crate) struct Local {
    registry: Registry,
    directory: TempDir,
    options: &'static [(&'static str, &'static str)],
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
        let mut registry = Registry::new();
        registry.register(constructor).expect("the only driver");
        let directory = tempfile::tempdir().expect("a directory for scratch files");
        Self { registry, directory, options }
    }
}

#[async_trait]
impl Harness for Local {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        let path = self.directory.path().join(format!("{name}.db"));
        let path = path.to_string_lossy().into_owned();
        let pipeline = Pipeline::new(name, jobs_local::NAME).with_option("path", path);
        Ok(self.options.iter().fold(pipeline, |p, (name, value)| p.with_option(*name, *value)))
    }

    fn with_max_lease(&self, pipeline: Pipeline, max_lease: Duration) -> Option<Pipeline> {
        Some(pipeline.with_option("max_lease", format!("{}ms", max_lease.as_millis())))
    }

    fn max_lease(&self) -> Duration {
        Duration::from_millis(300)
    }
}
