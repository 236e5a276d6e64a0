//! Makes pipelines, and finds the file that several of them share.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use jobs_core::{
    Capabilities, Constructor, Driver, Error, ErrorKind, Options, Pipeline, Plan, Problem, Result,
    async_trait,
};
use tokio::sync::oneshot;

use crate::NAME;
use crate::config::LocalConfig;
use crate::database::Database;
use crate::dead::DeadLetters;
use crate::driver::{LocalDriver, STOP_TIMEOUT};
use crate::error::{Fault, closed};
use crate::inbox::{Inbox, Write};
use crate::open::{canonical, open};

/// Makes `local` pipelines. Those of one constructor and its clones that name the same file share a
/// writer thread; two constructors share a file as two processes do.
#[derive(Clone, Default)]
pub struct LocalConstructor {
    files: Arc<Mutex<HashMap<PathBuf, Slot>>>,
    pipelines: Arc<Mutex<Pipelines>>,
}

/// A file that some pipelines share. Locked while it is opened, on a thread that may wait; the lock
/// on all of them never is.
type Slot = Arc<Mutex<Weak<Database>>>;

/// Queue and file of the pipelines, by name.
type Pipelines = HashMap<Arc<str>, (i64, Weak<Inbox>)>;

/// A constructor without a file, to be registered.
#[must_use]
pub fn constructor() -> LocalConstructor {
    LocalConstructor::default()
}

impl LocalConstructor {
    /// The dead letters of a pipeline's queue.
    ///
    /// # Errors
    /// `NotFound` if no pipeline of that name is connected.
    pub fn dead_letters(&self, pipeline: &str) -> Result<DeadLetters> {
        let pipelines = lock(&self.pipelines);
        let found = pipelines.get(pipeline);
        let found = found.and_then(|(queue, inbox)| Some((*queue, inbox.upgrade()?)));
        found.map(|(queue, inbox)| DeadLetters::new(queue, inbox)).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "dead_letters")
                .with_driver(NAME)
                .with_pipeline(pipeline)
                .with_context("no pipeline of that name is connected")
        })
    }

    /// The file `config` names, opened if no pipeline has it. Blocks.
    fn database(&self, config: &LocalConfig) -> Result<Arc<Database>, Fault> {
        let path = canonical(&config.path)?;
        let slot = self.slot(&path);
        let mut file = lock(&slot);
        let wanted = config.of_file();
        if let Some(database) = file.upgrade() {
            if database.options == wanted {
                return Ok(database);
            }
            let context = format!("`{}` is open with other options", path.display());
            return Err(Fault::new(ErrorKind::InvalidState, context));
        }
        let opened = open(&path, wanted)?;
        if opened.path != path {
            let mut files = lock(&self.files);
            files.remove(&path);
            files.insert(opened.path.clone(), Arc::clone(&slot));
        }
        let database = Arc::new(Database::start(opened, config.push_timeout)?);
        *file = Arc::downgrade(&database);
        Ok(database)
    }

    fn slot(&self, path: &Path) -> Slot {
        let mut files = lock(&self.files);
        let in_use = |slot: &Slot| {
            // Somebody opens it, or has it open.
            Arc::strong_count(slot) > 1
                || slot.try_lock().map_or(true, |file| file.strong_count() > 0)
        };
        files.retain(|_, slot| in_use(slot));
        Arc::clone(files.entry(path.to_owned()).or_default())
    }

    fn remember(&self, pipeline: Arc<str>, queue: i64, inbox: &Arc<Inbox>) {
        let mut pipelines = lock(&self.pipelines);
        pipelines.retain(|_, (_, inbox)| inbox.strong_count() > 0);
        pipelines.insert(pipeline, (queue, Arc::downgrade(inbox)));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Constructor for LocalConstructor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, shared: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>> {
        let config = LocalConfig::read(shared, &pipeline)?;
        Ok(Box::new(LocalPlan { constructor: self.clone(), pipeline, config }))
    }
}

impl fmt::Debug for LocalConstructor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalConstructor").finish_non_exhaustive()
    }
}

struct LocalPlan {
    constructor: LocalConstructor,
    pipeline: Pipeline,
    config: LocalConfig,
}

impl LocalPlan {
    async fn connected(self) -> Result<LocalDriver> {
        let Self { constructor, pipeline, config } = self;
        let opening = {
            let (constructor, config) = (constructor.clone(), config.clone());
            // If nobody waits any more the file is closed again.
            tokio::task::spawn_blocking(move || constructor.database(&config))
        };
        let opened = opening.await.map_err(|_| closed("connect"))?;
        let database = opened.map_err(|fault| fault.error("connect"))?;
        let queue = match queue(&database.inbox, &config.queue).await {
            Ok(queue) => queue,
            Err(error) => {
                // Who stopped meanwhile left the end of the file to this.
                if let Some(mut last) = Arc::into_inner(database) {
                    let _ = last.close(STOP_TIMEOUT).await;
                }
                return Err(error);
            }
        };
        constructor.remember(pipeline.shared_name(), queue, &database.inbox);
        Ok(LocalDriver::new(&pipeline, config, database, queue))
    }
}

/// The number of a queue in the file.
async fn queue(inbox: &Inbox, name: &str) -> Result<i64> {
    let (reply, answer) = oneshot::channel();
    let write = Write::Queue { name: name.to_owned(), reply };
    inbox.write(write).map_err(|_| closed("connect"))?;
    let queue = answer.await.map_err(|_| closed("connect"))?;
    queue.map_err(|fault| fault.error("connect"))
}

#[async_trait]
impl Plan for LocalPlan {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities()
    }

    async fn connect(self: Box<Self>) -> Result<Arc<dyn Driver>> {
        let pipeline = self.pipeline.shared_name();
        let driver = self.connected().await;
        let driver = driver.map_err(|e| e.with_driver(NAME).with_pipeline(pipeline))?;
        Ok(Arc::new(driver))
    }
}
