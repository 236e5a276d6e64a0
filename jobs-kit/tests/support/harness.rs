//! How the kit makes pipelines of this driver.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jobs_core::{
    Capabilities, Constructor, Driver, Options, Pipeline, Plan, Problem, Registry, Result,
    async_trait,
};
use jobs_kit::{Fault, Harness};
use serde::Deserialize;

use super::link::Link;
use super::storage::Storage;
use super::{Config, Defect, NAME, SmallDriver};

/// The driver as the kit sees it. Clones have the same broker.
#[derive(Clone)]
pub(crate) struct Small {
    registry: Registry,
    broker: Arc<Broker>,
    prefetch: u32,
    deadline: Duration,
}

/// What stands for a broker: it outlives its connections, and the driver.
struct Broker {
    defect: Option<Defect>,
    link: Arc<Link>,
    queues: Mutex<BTreeMap<String, Arc<Storage>>>,
}

impl Broker {
    fn queue(&self, name: &str) -> Arc<Storage> {
        let mut queues = self.queues.lock().expect("nothing panics under this lock");
        let new = || Arc::new(Storage::new(self.defect, Arc::clone(&self.link)));
        Arc::clone(queues.entry(name.to_owned()).or_insert_with(new))
    }
}

impl Small {
    /// An honest one, or one with a defect. Waits that end badly end soon.
    pub(crate) fn new(defect: Option<Defect>) -> Self {
        let link = Arc::default();
        let broker = Arc::new(Broker { defect, link, queues: Mutex::default() });
        let mut registry = Registry::new();
        registry.register(SmallConstructor(Arc::clone(&broker))).expect("the only driver");
        let deadline = Duration::from_secs(if defect.is_some() { 2 } else { 30 });
        Self { registry, broker, prefetch: 100, deadline }
    }

    #[allow(dead_code, reason = "used by one of two tests")]
    pub(crate) fn can_be_reached(&self) -> bool {
        self.broker.link.epoch().is_some()
    }

    /// With another prefetch than cases would choose.
    #[allow(dead_code, reason = "used by one of two tests")]
    pub(crate) fn with_prefetch(self, prefetch: u32) -> Self {
        Self { prefetch, ..self }
    }
}

#[async_trait]
impl Harness for Small {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        Ok(Pipeline::new(name, NAME).with_option("prefetch", self.prefetch))
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

    fn faults(&self) -> &[Fault] {
        &Fault::ALL
    }

    /// Each case has a harness of its own, and that its broker.
    fn apart(&self) -> Option<Arc<dyn Harness>> {
        Some(Arc::new(self.clone()))
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        self.broker.link.begin(fault);
        let queues = self.broker.queues.lock().expect("nothing panics under this lock");
        queues.values().for_each(|queue| queue.disconnect(fault == Fault::Kill));
        Ok(())
    }

    async fn end(&self, _: Fault) -> Result<()> {
        self.broker.link.end();
        Ok(())
    }

    fn silence(&self) -> Duration {
        Duration::from_millis(200)
    }
}

struct SmallConstructor(Arc<Broker>);

impl Constructor for SmallConstructor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, shared: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>> {
        let config = read(shared, pipeline)?;
        let storage = self.0.queue(config.pipeline.name());
        Ok(Box::new(SmallPlan { config, storage }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    prefetch: Option<NonZeroUsize>,
    max_lease: Option<u64>,
    #[serde(default, deserialize_with = "jobs_core::options::duration")]
    push_timeout: Option<Duration>,
}

fn read(shared: &Options, pipeline: Pipeline) -> Result<Config, Vec<Problem>> {
    let settings: Settings = pipeline.parse(shared)?;
    Ok(Config {
        prefetch: settings.prefetch.map_or(100, NonZeroUsize::get),
        max_lease: settings.max_lease.map(Duration::from_millis),
        push_timeout: settings.push_timeout.unwrap_or(Duration::from_secs(30)),
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
        let driver = SmallDriver::new(self.config, self.storage);
        driver.connected("connect").await?;
        Ok(Arc::new(driver))
    }
}
