//! Makes pipelines, and finds the queue that several of them share.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use jobs_core::{
    Capabilities, Constructor, Driver, Error, ErrorKind, Options, Pipeline, Plan, Problem, Result,
    async_trait,
};

use crate::NAME;
use crate::config::MemoryConfig;
use crate::driver::MemoryDriver;
use crate::storage::{DeadLetter, Storage};

/// Makes `memory` pipelines. Clones share their queues; two constructors share nothing.
#[derive(Clone, Default)]
pub struct MemoryConstructor {
    queues: Arc<Mutex<HashMap<String, Weak<Storage>>>>,
}

/// A constructor with no queue yet, to be registered.
#[must_use]
pub fn constructor() -> MemoryConstructor {
    MemoryConstructor::default()
}

impl MemoryConstructor {
    /// The rejected jobs of a queue, oldest first; empty if no pipeline is on it.
    #[must_use]
    pub fn dead_letters(&self, queue: &str) -> Vec<DeadLetter> {
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let storage = queues.get(queue).and_then(Weak::upgrade);
        storage.map_or_else(Vec::new, |storage| storage.dead_letters())
    }

    /// The queue `config` names, made if no pipeline is on it.
    fn queue(&self, config: &MemoryConfig) -> Result<Arc<Storage>> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = config.of_queue();
        if let Some(storage) = queues.get(&config.queue).and_then(Weak::upgrade) {
            if *storage.config() == wanted {
                return Ok(storage);
            }
            let context = format!("queue `{}` is open with other options", config.queue);
            return Err(Error::new(ErrorKind::InvalidState, "connect").with_context(context));
        }
        queues.retain(|_, storage| storage.strong_count() > 0);
        let storage = Storage::new(wanted);
        queues.insert(config.queue.clone(), Arc::downgrade(&storage));
        Ok(storage)
    }
}

impl Constructor for MemoryConstructor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, shared: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>> {
        let config = MemoryConfig::read(shared, &pipeline)?;
        Ok(Box::new(MemoryPlan { constructor: self.clone(), pipeline, config }))
    }
}

impl fmt::Debug for MemoryConstructor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryConstructor").finish_non_exhaustive()
    }
}

struct MemoryPlan {
    constructor: MemoryConstructor,
    pipeline: Pipeline,
    config: MemoryConfig,
}

#[async_trait]
impl Plan for MemoryPlan {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities()
    }

    async fn connect(self: Box<Self>) -> Result<Arc<dyn Driver>> {
        let storage = self
            .constructor
            .queue(&self.config)
            .map_err(|error| error.with_driver(NAME).with_pipeline(self.pipeline.shared_name()))?;
        Ok(Arc::new(MemoryDriver::new(&self.pipeline, self.config, storage)))
    }
}
