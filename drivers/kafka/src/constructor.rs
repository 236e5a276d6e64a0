//! Makes pipelines.

use std::sync::Arc;

use jobs_core::{
    Capabilities, Constructor, Driver, Error, Options, Pipeline, Plan, Problem, Result, Support,
    async_trait,
};

use crate::NAME;
use crate::config::KafkaConfig;
use crate::delays;
use crate::driver::KafkaDriver;

/// Makes `kafka` pipelines. Each has clients of its own: a member of a group consumes for one pipeline,
/// and a producer's limits are those of its pipeline.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct KafkaConstructor {}

/// A constructor to be registered.
#[must_use]
pub fn constructor() -> KafkaConstructor {
    KafkaConstructor::default()
}

impl Constructor for KafkaConstructor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, shared: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>> {
        let config = KafkaConfig::read(shared, &pipeline)?;
        Ok(Box::new(KafkaPlan { pipeline, config }))
    }
}

struct KafkaPlan {
    pipeline: Pipeline,
    config: KafkaConfig,
}

#[async_trait]
impl Plan for KafkaPlan {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.config.capabilities();
        let topic = self.config.topic.as_deref();
        if topic.and_then(|topic| delays::topic(&self.config.group, topic)).is_none() {
            capabilities.delay = Support::None;
        }
        capabilities
    }

    async fn connect(self: Box<Self>) -> Result<Arc<dyn Driver>> {
        let capabilities = self.capabilities();
        let Self { pipeline, config } = *self;
        let driver = KafkaDriver::connect(&pipeline, config, capabilities).await;
        let named = |error: Error| error.with_driver(NAME).with_pipeline(pipeline.shared_name());
        Ok(Arc::new(driver.map_err(named)?))
    }
}
