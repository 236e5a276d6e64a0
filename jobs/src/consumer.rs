//! Taking jobs without a worker.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use jobs_core::{Job, Queue};

/// Takes jobs of some pipelines, one call at a time: made by [`Jobs::consumer`](crate::Jobs::consumer).
///
/// Several consumers of one pipeline share its jobs. Whoever takes a job settles it: a job that is
/// dropped goes back to the broker, and the attempt counts.
#[derive(Clone, Debug)]
pub struct Consumer {
    queue: Queue,
    pipelines: Arc<[Arc<str>]>,
}

impl Consumer {
    pub(crate) fn new(queue: Queue, pipelines: Arc<[Arc<str>]>) -> Self {
        Self { queue, pipelines }
    }

    /// The next job: the one with the lowest priority among those at hand, pipelines with equal
    /// ones in turn. `None` once [`Jobs::shutdown`](crate::Jobs::shutdown) was called.
    ///
    /// Pipelines that are paused, or do not consume yet, give none.
    ///
    /// # Cancel safety
    /// Cancel safe: no job is lost.
    pub async fn next(&self) -> Option<Job> {
        self.queue.pop_from(&self.pipelines).await
    }

    /// The same as a stream, which ends after [`Jobs::shutdown`](crate::Jobs::shutdown).
    #[must_use]
    pub fn into_stream(self) -> BoxStream<'static, Job> {
        stream::unfold(self, |consumer| async move {
            let job = consumer.next().await?;
            Some((job, consumer))
        })
        .boxed()
    }
}
