//! How the kit makes pipelines of this driver.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Pipeline, Registry, Result, async_trait};
use jobs_kit::{Fault, Harness};

use crate::beanstalkd::{Beanstalkd, Servers, is_given};

/// One configuration of the driver.
#[derive(Clone)]
pub struct Beanstalk {
    servers: Arc<Servers>,
    registry: Registry,
    kind: Kind,
    /// On the server that is disturbed.
    apart: bool,
    faults: Vec<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Memory,
    Binlog,
    Prefetch1,
    OneConnection,
}

impl Beanstalk {
    fn new(servers: &Arc<Servers>, kind: Kind) -> Self {
        let mut registry = Registry::new();
        registry.register(jobs_beanstalk::constructor()).expect("the only driver");
        let mut faults = match kind {
            Kind::Binlog => Fault::ALL.to_vec(),
            Kind::Memory => vec![Fault::Cut, Fault::Reset, Fault::Stall],
            Kind::Prefetch1 | Kind::OneConnection => vec![Fault::Cut],
        };
        if is_given() {
            faults.retain(|fault| *fault != Fault::Kill);
        }
        Self { servers: Arc::clone(servers), registry, kind, apart: false, faults }
    }

    /// A server without files.
    #[must_use]
    pub fn memory(servers: &Arc<Servers>) -> Self {
        Self::new(servers, Kind::Memory)
    }

    /// A server with a binlog.
    #[must_use]
    pub fn binlog(servers: &Arc<Servers>) -> Self {
        Self::new(servers, Kind::Binlog)
    }

    /// One job at a time in the process.
    #[must_use]
    pub fn prefetch_1(servers: &Arc<Servers>) -> Self {
        Self::new(servers, Kind::Prefetch1)
    }

    /// One connection to push with, and one to consume with.
    #[must_use]
    pub fn one_connection(servers: &Arc<Servers>) -> Self {
        Self::new(servers, Kind::OneConnection)
    }

    async fn server(&self) -> Result<&Beanstalkd> {
        match self.apart {
            true => self.servers.own().await,
            false => self.servers.shared().await,
        }
    }
}

#[async_trait]
impl Harness for Beanstalk {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        let pipeline = Pipeline::new(name, jobs_beanstalk::NAME)
            .with_option("addr", self.server().await?.url())
            .with_option("tube", name);
        let pipeline = match self.kind {
            Kind::Memory | Kind::Binlog => pipeline,
            Kind::Prefetch1 => pipeline.with_option("prefetch", 1),
            Kind::OneConnection => pipeline.with_option("connections", 1),
        };
        // So that a silent server is noticed soon.
        let push_timeout = if self.apart { "2s" } else { "30s" };
        Ok(pipeline.with_option("push_timeout", push_timeout))
    }

    async fn clean_up(&self, pipeline: &Pipeline) -> Result<()> {
        self.server().await?.operator().await?.empty(pipeline.name()).await
    }

    fn with_max_lease(&self, pipeline: Pipeline, max_lease: Duration) -> Option<Pipeline> {
        Some(pipeline.with_option("max_lease", format!("{}ms", max_lease.as_millis())))
    }

    /// Connections that reserve at once may deliver out of turn.
    fn keeps_order(&self) -> bool {
        matches!(self.kind, Kind::Prefetch1 | Kind::OneConnection)
    }

    fn quiet(&self) -> Duration {
        Duration::from_millis(200)
    }

    /// A driver may wait as long between two attempts to connect.
    fn deadline(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn faults(&self) -> &[Fault] {
        &self.faults
    }

    fn apart(&self) -> Option<Arc<dyn Harness>> {
        Some(Arc::new(Self { apart: true, ..self.clone() }))
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        self.server().await?.control.begin(fault).await
    }

    async fn end(&self, fault: Fault) -> Result<()> {
        self.server().await?.control.end(fault).await
    }

    /// `push_timeout`, one request for a job, and the time between two looks.
    fn silence(&self) -> Duration {
        Duration::from_secs(5)
    }
}

impl fmt::Debug for Beanstalk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, apart, .. } = self;
        f.debug_struct("Beanstalk")
            .field("kind", kind)
            .field("apart", apart)
            .finish_non_exhaustive()
    }
}
