//! Makes pipelines, which share connections where their options agree.

use std::fmt;
use std::sync::Arc;

use jobs_core::{
    Capabilities, Constructor, Driver, Error, Options, Pipeline, Plan, Problem, Result, async_trait,
};

use crate::NAME;
use crate::config::SqsConfig;
use crate::connection::Directory;
use crate::driver::SqsDriver;

/// Makes `sqs` pipelines. Clones share connections; two constructors share nothing.
#[derive(Clone, Default)]
pub struct SqsConstructor {
    directory: Directory,
}

/// A constructor without connections, to be registered.
#[must_use]
pub fn constructor() -> SqsConstructor {
    SqsConstructor::default()
}

impl Constructor for SqsConstructor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, shared: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>> {
        let config = SqsConfig::read(shared, &pipeline)?;
        Ok(Box::new(SqsPlan { directory: self.directory.clone(), pipeline, config }))
    }
}

impl fmt::Debug for SqsConstructor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsConstructor").field("directory", &self.directory).finish()
    }
}

struct SqsPlan {
    directory: Directory,
    pipeline: Pipeline,
    config: SqsConfig,
}

#[async_trait]
impl Plan for SqsPlan {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities()
    }

    async fn connect(self: Box<Self>) -> Result<Arc<dyn Driver>> {
        let Self { directory, pipeline, config } = *self;
        let driver = SqsDriver::connect(&pipeline, config, &directory).await;
        let named = |error: Error| error.with_driver(NAME).with_pipeline(pipeline.shared_name());
        Ok(Arc::new(driver.map_err(named)?))
    }
}
