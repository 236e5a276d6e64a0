//! What a pipeline reports about itself.

use std::sync::Arc;

/// A snapshot of one pipeline. A figure is `None` where the broker cannot tell: never a made-up
/// zero. Each driver's page says which broker figure fills which field.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct State {
    /// The pipeline's name.
    pub pipeline: Arc<str>,
    /// The driver's name.
    pub driver: &'static str,
    /// The broker's name for where the jobs are: queue, topics, tube, file.
    pub queue: Arc<str>,
    /// The pipeline's priority.
    pub priority: i64,
    /// True if consuming, false if paused or not run yet.
    pub ready: bool,
    /// Jobs of this pipeline in this process: delivered here and unsettled.
    pub active: u64,
    /// Jobs waiting for their time.
    pub delayed: Option<u64>,
    /// Jobs at the broker, ready, not yet consumed.
    pub reserved: Option<u64>,
    /// Jobs delivered to any consumer and unsettled.
    pub in_flight: Option<u64>,
    /// Rejected jobs that are kept.
    pub dead: Option<u64>,
    /// The last failure the driver met and went on from.
    pub last_error: Option<String>,
}

impl State {
    /// A state with no figure known.
    #[must_use]
    pub fn new(pipeline: impl Into<Arc<str>>, driver: &'static str) -> Self {
        let pipeline = pipeline.into();
        Self {
            queue: Arc::clone(&pipeline),
            pipeline,
            driver,
            priority: crate::Pipeline::DEFAULT_PRIORITY,
            ready: false,
            active: 0,
            delayed: None,
            reserved: None,
            in_flight: None,
            dead: None,
            last_error: None,
        }
    }
}
