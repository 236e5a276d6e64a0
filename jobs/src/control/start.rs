//! Connecting everything a configuration names.

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use jobs_core::{Queue, Result};

use super::{Jobs, Pipelines, Shared};
use crate::config::{Config, Planned};
use crate::pipeline::{PipelineHandle, within};

impl Jobs {
    pub(crate) async fn connect(config: Config) -> Result<Self> {
        let planned = config.plan()?;
        let parts = config.into_parts();
        let queue = Queue::new();
        let connected = connect_all(planned, &queue, parts.timeout).await?;
        let by_name = connected.into_iter().map(|handle| (handle.shared_name(), handle)).collect();
        let jobs = Self {
            shared: Arc::new(Shared {
                registry: parts.registry,
                sections: parts.sections,
                consume: BTreeSet::from_iter(parts.consume),
                timeout: parts.timeout,
                queue,
                pipelines: RwLock::new(Pipelines { by_name, ..Pipelines::default() }),
            }),
        };
        jobs.run_consumed().await?;
        Ok(jobs)
    }

    async fn run_consumed(&self) -> Result<()> {
        let mut consumed = self.all();
        consumed.retain(|pipeline| self.shared.consume.contains(pipeline.name()));
        let answers = join_all(consumed.iter().map(PipelineHandle::resume)).await;
        let Err(error) = answers.into_iter().collect::<Result<()>>() else { return Ok(()) };
        // The failure to start is what the caller needs; one to stop was logged.
        let _ = self.shutdown().await;
        Err(error)
    }
}

/// All or none: the first failure drops the connects under way and stops what was connected.
async fn connect_all(
    planned: Vec<Planned>,
    queue: &Queue,
    timeout: Duration,
) -> Result<Vec<PipelineHandle>> {
    let mut connected = Vec::with_capacity(planned.len());
    let mut connecting: FuturesUnordered<_> =
        planned.into_iter().map(|planned| connect(planned, queue, timeout)).collect();
    while let Some(answer) = connecting.next().await {
        match answer {
            Ok(handle) => connected.push(handle),
            Err(error) => {
                drop(connecting);
                join_all(connected.iter().map(|handle: &PipelineHandle| async move {
                    handle.log_failure(handle.stop().await);
                }))
                .await;
                return Err(error);
            }
        }
    }
    Ok(connected)
}

pub(super) async fn connect(
    (pipeline, plan): Planned,
    queue: &Queue,
    timeout: Duration,
) -> Result<PipelineHandle> {
    let answer = within(timeout, "connect", plan.connect()).await;
    let driver = answer.map_err(|error| error.with_pipeline(pipeline.shared_name()))?;
    Ok(PipelineHandle::new(pipeline, driver, queue.clone(), timeout))
}
