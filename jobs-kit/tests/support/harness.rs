//! How the kit makes pipelines of this driver.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobs_core::{
    Capabilities, Constructor, Driver, Options, Pipeline, Plan, Problem, Registry, Result,
    async_trait,
};
use jobs_kit::Harness;
use serde::Deserialize;

use super::storage::Storage;
use super::{Config, Defect, NAME, SmallDriver};

/// The driver as the kit sees it.
pub(crate) struct Small {
    registry: Registry,
    deadline: Duration,
}

impl Small {
    /// An honest one, or one with a defect. Waits that end badly end soon.
    pub(crate) fn new(defect: Option<Defect>) -> Self {
        let mut registry = Registry::new();
        let constructor = SmallConstructor { defect, queues: Mutex::default() };
        registry.register(constructor).expect("the only driver");
        let deadline = Duration::from_secs(if defect.is_some() { 2 } else { 30 });
        Self { registry, deadline }
    }
}

#[async_trait]
impl Harness for Small {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        Ok(Pipeline::new(name, NAME))
    }

    fn with_max_lease(&self, pipeline: Pipeline, max_lease: Duration) -> Option<Pipeline> {
        let millis = u64::try_from(max_lease.as_millis()).expect("not that long");
        Some(pipeline.with_option("max_lease", millis))
    }

    fn max_lease(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }
}

struct SmallConstructor {
    defect: Option<Defect>,
    queues: Mutex<BTreeMap<String, Arc<Storage>>>,
}

impl Constructor for SmallConstructor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, shared: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>> {
        let config = read(shared, pipeline)?;
        let mut queues = self.queues.lock().expect("nothing panics under this lock");
        let queue = queues.entry(config.pipeline.name().to_owned());
        let storage = queue.or_insert_with(|| Arc::new(Storage::new(self.defect)));
        Ok(Box::new(SmallPlan { config, storage: Arc::clone(storage) }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    prefetch: Option<NonZeroUsize>,
    max_lease: Option<u64>,
}

fn read(shared: &Options, pipeline: Pipeline) -> Result<Config, Vec<Problem>> {
    let settings: Settings = pipeline.parse(shared)?;
    Ok(Config {
        prefetch: settings.prefetch.map_or(100, NonZeroUsize::get),
        max_lease: settings.max_lease.map(Duration::from_millis),
        pipeline,
    })
}

struct SmallPlan {
    config: Config,
    storage: Arc<Storage>,
}

#[async_trait]
impl Plan for SmallPlan {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities()
    }

    async fn connect(self: Box<Self>) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(SmallDriver::new(self.config, self.storage)))
    }
}
