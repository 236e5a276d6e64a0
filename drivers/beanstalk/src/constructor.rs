//! Makes pipelines.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, Weak};

use jobs_core::{
    Capabilities, Constructor, Driver, Error, ErrorKind, Options, Pipeline, Plan, Problem, Result,
    async_trait,
};

use crate::NAME;
use crate::buried::Buried;
use crate::config::BeanstalkConfig;
use crate::driver::BeanstalkDriver;
use crate::pool::lock;
use crate::publisher::Publisher;
use crate::strays::Strays;

/// Makes `beanstalk` pipelines. Each has connections of its own, because a connection is bound to
/// its tube and to the jobs it has reserved.
#[derive(Clone, Default)]
pub struct BeanstalkConstructor {
    pipelines: Arc<Mutex<HashMap<Arc<str>, Place>>>,
    strays: Arc<Strays>,
}

/// The tube of a pipeline, and who asks the server for it.
#[derive(Clone)]
struct Place {
    tube: String,
    publisher: Weak<Publisher>,
}

/// A constructor to be registered.
#[must_use]
pub fn constructor() -> BeanstalkConstructor {
    BeanstalkConstructor::default()
}

impl BeanstalkConstructor {
    /// The rejected jobs in the tube of a pipeline.
    ///
    /// # Errors
    /// `NotFound` if no pipeline of that name is connected.
    pub fn buried(&self, pipeline: &str) -> Result<Buried> {
        let place = lock(&self.pipelines).get(pipeline).cloned();
        let found = place.and_then(|place| Some((place.tube, place.publisher.upgrade()?)));
        let (tube, publisher) = found.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "buried")
                .with_driver(NAME)
                .with_pipeline(pipeline)
                .with_context("no pipeline of that name is connected")
        })?;
        Ok(Buried::new(pipeline.into(), tube, publisher))
    }

    fn remember(&self, pipeline: Arc<str>, tube: String, publisher: &Arc<Publisher>) {
        let mut pipelines = lock(&self.pipelines);
        pipelines.retain(|_, place| place.publisher.strong_count() > 0);
        pipelines.insert(pipeline, Place { tube, publisher: Arc::downgrade(publisher) });
    }
}

impl Constructor for BeanstalkConstructor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn plan(&self, shared: &Options, pipeline: Pipeline) -> Result<Box<dyn Plan>, Vec<Problem>> {
        let config = BeanstalkConfig::read(shared, &pipeline)?;
        Ok(Box::new(BeanstalkPlan { constructor: self.clone(), pipeline, config }))
    }
}

impl fmt::Debug for BeanstalkConstructor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeanstalkConstructor").finish_non_exhaustive()
    }
}

struct BeanstalkPlan {
    constructor: BeanstalkConstructor,
    pipeline: Pipeline,
    config: BeanstalkConfig,
}

#[async_trait]
impl Plan for BeanstalkPlan {
    fn capabilities(&self) -> Capabilities {
        self.config.capabilities()
    }

    async fn connect(self: Box<Self>) -> Result<Arc<dyn Driver>> {
        let Self { constructor, pipeline, config } = *self;
        let tube = config.tube.clone();
        let driver = BeanstalkDriver::connect(&pipeline, config, &constructor.strays).await;
        let named = |error: Error| error.with_driver(NAME).with_pipeline(pipeline.shared_name());
        let driver = driver.map_err(named)?;
        constructor.remember(pipeline.shared_name(), tube, driver.publisher());
        Ok(Arc::new(driver))
    }
}
