//! The harness of the in-process driver.

use std::time::Duration;

use jobs_core::{Pipeline, Registry, Result, async_trait};
use jobs_kit::Harness;

/// One configuration of the driver.
pub(crate) struct Memory {
    registry: Registry,
    options: &'static [(&'static str, &'static str)],
}

impl Memory {
    /// A harness whose pipelines have these options.
    #[must_use]
    pub(crate) fn new(options: &'static [(&'static str, &'static str)]) -> Self {
        let mut registry = Registry::new();
        registry.register(jobs_memory::constructor()).expect("the only driver");
        Self { registry, options }
    }
}

#[async_trait]
impl Harness for Memory {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        let pipeline = Pipeline::new(name, jobs_memory::NAME);
        Ok(self.options.iter().fold(pipeline, |p, (name, value)| p.with_option(*name, *value)))
    }

    fn with_max_lease(&self, pipeline: Pipeline, max_lease: Duration) -> Option<Pipeline> {
        Some(pipeline.with_option("max_lease", format!("{}ms", max_lease.as_millis())))
    }

    fn with_capacity(
        &self,
        pipeline: Pipeline,
        capacity: u32,
        push_timeout: Duration,
    ) -> Option<Pipeline> {
        let push_timeout = format!("{}ms", push_timeout.as_millis());
        Some(pipeline.with_option("capacity", capacity).with_option("push_timeout", push_timeout))
    }

    /// Jobs are delivered within the push.
    fn quiet(&self) -> Duration {
        Duration::from_millis(50)
    }

    fn max_lease(&self) -> Duration {
        Duration::from_millis(300)
    }
}
