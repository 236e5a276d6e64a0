//! The pipelines of an application, by name.

mod declare;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use futures::future::join_all;
use jobs_core::{Error, ErrorKind, Options, Queue, Registry, Result, State};

use crate::{Config, Consumer, PipelineHandle};

/// The pipelines of an application, connected. Cheap to clone: clones are the same pipelines.
///
/// Dropping it stops nothing: call [`shutdown`](Self::shutdown), or let a
/// [`Worker`](crate::Worker) do it.
#[derive(Clone, Debug)]
pub struct Jobs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Registry,
    sections: BTreeMap<String, Options>,
    consume: BTreeSet<String>,
    timeout: Duration,
    queue: Queue,
    pipelines: RwLock<Pipelines>,
}

#[derive(Debug, Default)]
struct Pipelines {
    by_name: BTreeMap<Arc<str>, PipelineHandle>,
    closed: bool,
    workers: usize,
    /// What each worker that takes jobs serves.
    serving: Vec<Served>,
}

/// The pipelines a worker serves; none: all of them.
pub(crate) type Served = Option<Arc<[Arc<str>]>>;

fn serves(served: &Served, pipeline: &PipelineHandle) -> bool {
    served.as_ref().is_none_or(|names| names.iter().any(|name| **name == *pipeline.name()))
}

impl Jobs {
    /// Reads a YAML file, checks it, connects its pipelines and runs those listed to consume.
    ///
    /// # Errors
    /// As [`Config::from_file`] and [`Config::connect`].
    ///
    /// # Cancel safety
    /// As [`Config::connect`].
    pub async fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Config::from_file(path)?.connect().await
    }

    /// As [`from_file`](Self::from_file), from YAML text.
    ///
    /// # Errors
    /// As [`Config::from_yaml`] and [`Config::connect`].
    pub async fn from_yaml(text: &str) -> Result<Self> {
        Config::from_yaml(text)?.connect().await
    }

    /// An empty configuration, to be filled in code and [connected](Config::connect).
    #[must_use]
    pub fn builder() -> Config {
        Config::new()
    }

    /// The pipeline of that name.
    ///
    /// # Errors
    /// `NotFound`, with the names there are; `Closed` after [`shutdown`](Self::shutdown).
    pub fn pipeline(&self, name: &str) -> Result<PipelineHandle> {
        let pipelines = self.read();
        match pipelines.by_name.get(name) {
            Some(found) => Ok(found.clone()),
            None if pipelines.closed => Err(closed("pipeline")),
            None => {
                let known: Vec<_> = pipelines.by_name.keys().map(|n| format!("`{n}`")).collect();
                let context = format!("no pipeline of this name among {}", known.join(", "));
                let error = Error::new(ErrorKind::NotFound, "pipeline");
                Err(error.with_pipeline(name).with_context(context))
            }
        }
    }

    /// The names of all pipelines, sorted.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<str>> {
        self.read().by_name.keys().cloned().collect()
    }

    /// The figures of all pipelines by name. One that fails does not fail the others.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn stat(&self) -> BTreeMap<Arc<str>, Result<State>> {
        let states = self.all().into_iter().map(|pipeline| async move {
            let state = pipeline.state().await;
            (pipeline.shared_name(), state)
        });
        join_all(states).await.into_iter().collect()
    }

    /// As [`PipelineHandle::pause`].
    ///
    /// # Errors
    /// As there, and `NotFound`.
    pub async fn pause(&self, name: &str) -> Result<()> {
        self.pipeline(name)?.pause().await
    }

    /// As [`PipelineHandle::resume`].
    ///
    /// # Errors
    /// As there, and `NotFound`.
    pub async fn resume(&self, name: &str) -> Result<()> {
        self.pipeline(name)?.resume().await
    }

    /// Takes jobs of these pipelines without a worker.
    ///
    /// # Errors
    /// `NotFound` for a name that no pipeline bears; `InvalidState` if no name is given; `Closed`
    /// after [`shutdown`](Self::shutdown).
    pub fn consumer<N: AsRef<str>>(&self, names: impl IntoIterator<Item = N>) -> Result<Consumer> {
        let names = names.into_iter();
        let names = names.map(|name| self.pipeline(name.as_ref()).map(|found| found.shared_name()));
        let names: Vec<_> = names.collect::<Result<_>>()?;
        if names.is_empty() {
            let context = "a consumer needs at least one pipeline";
            return Err(Error::new(ErrorKind::InvalidState, "consumer").with_context(context));
        }
        Ok(Consumer::new(self.queue().clone(), names.into()))
    }

    /// Stops all pipelines at once: nothing is handed out any more, pending pushes and settlements
    /// are flushed, connections closed. Jobs that are still with somebody go back to the broker.
    ///
    /// Idempotent. Afterwards every call answers `Closed`, and consumers and workers end. Takes at
    /// most about twice the configured timeout.
    ///
    /// # Errors
    /// What could not be flushed; everything is stopped all the same. If several pipelines fail, the
    /// error has the kind of the first and tells of all.
    ///
    /// # Cancel safety
    /// Call it again; it continues.
    pub async fn shutdown(&self) -> Result<()> {
        self.write().closed = true;
        self.queue().close();
        let stopping = self.all().into_iter().map(|pipeline| async move {
            let answer = pipeline.stop().await;
            self.write().by_name.remove(pipeline.name());
            answer
        });
        let failures: Vec<_> =
            join_all(stopping).await.into_iter().filter_map(Result::err).collect();
        match combined(failures) {
            None => Ok(()),
            Some(error) => {
                tracing::warn!(%error, "shutdown was not clean");
                Err(error)
            }
        }
    }

    /// # Errors
    /// `Closed` after a shutdown.
    pub(crate) fn open(&self) -> Result<()> {
        if self.read().closed { Err(closed("run worker")) } else { Ok(()) }
    }

    pub(crate) fn all(&self) -> Vec<PipelineHandle> {
        self.read().by_name.values().cloned().collect()
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.shared.queue
    }

    /// Counts a worker in.
    pub(crate) fn worker_started(&self, served: &Served) {
        let mut pipelines = self.write();
        pipelines.workers += 1;
        pipelines.serving.push(served.clone());
    }

    /// Notes that a worker takes no more jobs. Returns the pipelines that nobody serves any more.
    pub(crate) fn stop_serving(&self, served: &Served) -> Vec<PipelineHandle> {
        let mut pipelines = self.write();
        if let Some(index) = pipelines.serving.iter().position(|other| other == served) {
            pipelines.serving.swap_remove(index);
        }
        let others = &pipelines.serving;
        let deserted = |pipeline: &&PipelineHandle| {
            serves(served, pipeline) && !others.iter().any(|other| serves(other, pipeline))
        };
        pipelines.by_name.values().filter(deserted).cloned().collect()
    }

    /// Counts a worker out; true if it was the last.
    pub(crate) fn worker_ended(&self) -> bool {
        let mut pipelines = self.write();
        pipelines.workers -= 1;
        pipelines.workers == 0
    }

    fn read(&self) -> RwLockReadGuard<'_, Pipelines> {
        self.shared.pipelines.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Pipelines> {
        self.shared.pipelines.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_context("these jobs were shut down")
}

fn combined(mut failures: Vec<Error>) -> Option<Error> {
    if failures.len() < 2 {
        return failures.pop();
    }
    let all: Vec<_> = failures.iter().map(ToString::to_string).collect();
    Some(Error::new(failures[0].kind(), "shutdown").with_context(all.join("; ")))
}
