//! Makes pipelines, which share connections where their options agree.

use std::sync::Arc;

use jobs_core::{
    Capabilities, Constructor, Driver, Error, ErrorKind, Options, Pipeline, Plan, Problem, Result,
    Support, async_trait,
};
use tokio::time::Instant;

use crate::NAME;
use crate::config::AmqpConfig;
use crate::connection::Directory;
use crate::driver::AmqpDriver;

/// Makes `amqp` pipelines. Clones share connections; two constructors share nothing.
#[derive(Clone, Debug, Default)]
pub struct AmqpConstructor {
    connections: Directory,
}

/// A constructor without connections, to be registered.
#[must_use]
pub fn constructor() -> AmqpConstructor {
    AmqpConstructor::default()
}

impl Constructor for AmqpConstructor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, shared: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>> {
        let config = AmqpConfig::read(shared, &pipeline)?;
        Ok(Box::new(AmqpPlan { connections: self.connections.clone(), pipeline, config }))
    }
}

struct AmqpPlan {
    connections: Directory,
    pipeline: Pipeline,
    config: AmqpConfig,
}

#[async_trait]
impl Plan for AmqpPlan {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities()
    }

    async fn connect(self: Box<Self>) -> Result<Arc<dyn Driver>> {
        let directory = &self.connections;
        let config = Arc::new(self.config);
        let mut capabilities = config.capabilities();
        // All attempts share it.
        let deadline = Instant::now() + config.connection.connect_timeout;
        let connect = |capabilities: Capabilities| {
            let connections = directory.join(&config.connection);
            AmqpDriver::connect(&self.pipeline, &config, connections, capabilities, deadline)
        };
        let mut driver = connect(capabilities.clone()).await;
        // A connection that other pipelines opened may be gone without their knowing it yet.
        let lost = |error: &Error| error.kind() == ErrorKind::Connection && error.is_retryable();
        if driver.as_ref().is_err_and(lost) {
            driver = connect(capabilities.clone()).await;
        }
        let driver = match driver {
            // A user who may not make the queues of the levels still has all the rest.
            Err(error)
                if error.kind() == ErrorKind::Denied && capabilities.delay.is_available() =>
            {
                capabilities.delay = Support::None;
                let driver = connect(capabilities).await;
                if driver.is_ok() {
                    let pipeline = self.pipeline.name();
                    tracing::warn!(job.pipeline = pipeline, %error, "delays are not available");
                }
                driver
            }
            answer => answer,
        };
        let named =
            |error: Error| error.with_driver(NAME).with_pipeline(self.pipeline.shared_name());
        Ok(Arc::new(driver.map_err(named)?))
    }
}
