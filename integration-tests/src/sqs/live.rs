//! The kit on a queue of the real service, which somebody made and gave the name of.

use std::time::Duration;

use jobs_core::{Pipeline, Registry, Result, async_trait};
use jobs_kit::Harness;

/// The name of a queue that nobody else uses. Its region and credentials are those of the environment.
const QUEUE: &str = "JOBS_SQS_LIVE_QUEUE";
/// Another place than the region's, such as that of a local server.
const ENDPOINT: &str = "JOBS_SQS_LIVE_ENDPOINT";

/// The queue that is to be used, if there is one.
pub(super) fn queue() -> Option<String> {
    std::env::var(QUEUE).ok().filter(|queue| !queue.is_empty())
}

/// All pipelines are on the one queue: its cases run one after another, and leave nothing behind.
#[derive(Debug)]
pub(super) struct Live {
    registry: Registry,
    queue: String,
}

impl Live {
    pub(super) fn new(queue: &str) -> Self {
        let mut registry = Registry::new();
        registry.register(jobs_sqs::constructor()).expect("the only driver");
        Self { registry, queue: queue.to_owned() }
    }
}

#[async_trait]
impl Harness for Live {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        let pipeline = Pipeline::new(name, jobs_sqs::NAME)
            .with_option("queue", self.queue.as_str())
            .with_option("skip_queue_declaration", true)
            .with_option("wait_time_seconds", 2);
        Ok(match std::env::var(ENDPOINT) {
            Ok(endpoint) => pipeline.with_option("endpoint", endpoint),
            Err(_) => pipeline,
        })
    }

    /// What a case left, such as a delayed job, would be found by the next.
    async fn clean_up(&self, pipeline: &Pipeline) -> Result<()> {
        let driver = self.registry.connect(pipeline.clone()).await?;
        let queue = jobs_core::Queue::new();
        driver.run(queue.open_lane(pipeline)).await?;
        while let Ok(Some(job)) = tokio::time::timeout(self.quiet(), queue.pop()).await {
            // One that cannot be settled now comes again.
            drop(job.ack().await);
        }
        driver.stop().await
    }

    fn with_max_lease(&self, pipeline: Pipeline, max_lease: Duration) -> Option<Pipeline> {
        Some(pipeline.with_option("max_lease", format!("{}ms", max_lease.as_millis())))
    }

    fn keeps_order(&self) -> bool {
        false
    }

    fn max_lease(&self) -> Duration {
        Duration::from_secs(3)
    }

    /// The service is far away, and tells its figures late.
    fn quiet(&self) -> Duration {
        Duration::from_secs(3)
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(180)
    }
}
