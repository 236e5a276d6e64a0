//! How the kit makes pipelines of this driver.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Pipeline, Registry, Result, async_trait};
use jobs_kit::{Fault, Harness};
use serde_json::json;

use crate::elasticmq::{ElasticMq, KEY, Operator, REGION, Servers, is_given};
use crate::moto::Moto;

/// One configuration of the driver.
#[derive(Clone)]
pub struct Sqs {
    place: Place,
    registry: Registry,
    kind: Kind,
    faults: Vec<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Standard,
    Fifo,
    Prefetch1,
}

/// Which of the servers.
#[derive(Clone)]
enum Place {
    Shared(Arc<Servers>),
    /// The one that is disturbed.
    Apart(Arc<Servers>),
    Moto(Arc<OnceMoto>),
}

/// A moto that is started when it is first asked for.
#[derive(Debug, Default)]
pub struct OnceMoto(tokio::sync::OnceCell<Moto>);

impl OnceMoto {
    /// The process.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn get(&self) -> Result<&Moto> {
        self.0.get_or_try_init(async || Moto::start()).await
    }
}

impl Sqs {
    fn new(place: Place, kind: Kind, faults: &[Fault]) -> Self {
        let mut registry = Registry::new();
        registry.register(jobs_sqs::constructor()).expect("the only driver");
        Self { place, registry, kind, faults: faults.to_vec() }
    }

    /// A standard queue.
    #[must_use]
    pub fn standard(servers: &Arc<Servers>) -> Self {
        let mut faults = Fault::ALL.to_vec();
        if is_given() {
            faults.retain(|fault| *fault != Fault::Kill);
        }
        Self::new(Place::Shared(Arc::clone(servers)), Kind::Standard, &faults)
    }

    /// A FIFO queue, and another for dead letters.
    #[must_use]
    pub fn fifo(servers: &Arc<Servers>) -> Self {
        Self::new(Place::Shared(Arc::clone(servers)), Kind::Fifo, &[Fault::Cut])
    }

    /// One job at a time in the process, and a queue for dead letters.
    #[must_use]
    pub fn prefetch_1(servers: &Arc<Servers>) -> Self {
        Self::new(Place::Shared(Arc::clone(servers)), Kind::Prefetch1, &[Fault::Cut])
    }

    /// A standard queue of another implementation.
    #[must_use]
    pub fn moto(moto: &Arc<OnceMoto>) -> Self {
        Self::new(Place::Moto(Arc::clone(moto)), Kind::Standard, &[])
    }

    async fn server(&self) -> Result<Option<&ElasticMq>> {
        match &self.place {
            Place::Shared(servers) => servers.shared().await.map(Some),
            Place::Apart(servers) if self.faults.contains(&Fault::Kill) => {
                servers.own().await.map(Some)
            }
            Place::Apart(servers) => servers.proxied().await.map(Some),
            Place::Moto(_) => Ok(None),
        }
    }

    async fn disturbed(&self) -> Result<&ElasticMq> {
        Ok(self.server().await?.expect("moto suffers no faults"))
    }

    async fn url(&self) -> Result<String> {
        match (&self.place, self.server().await?) {
            (Place::Moto(moto), _) => Ok(moto.get().await?.url()),
            (_, Some(server)) => Ok(server.url()),
            (_, None) => unreachable!("only moto is none"),
        }
    }

    async fn operator(&self) -> Result<Operator> {
        match (&self.place, self.server().await?) {
            (Place::Moto(moto), _) => Ok(moto.get().await?.operator()),
            (_, Some(server)) => Ok(server.operator()),
            (_, None) => unreachable!("only moto is none"),
        }
    }
}

/// An option of a pipeline, as text.
pub(super) fn option<'a>(pipeline: &'a Pipeline, name: &str) -> &'a str {
    pipeline.options().get(name).and_then(|value| value.as_str()).unwrap_or_default()
}

#[async_trait]
impl Harness for Sqs {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        let pipeline = Pipeline::new(name, jobs_sqs::NAME)
            .with_option("endpoint", self.url().await?)
            .with_option("region", REGION)
            .with_option("key", KEY)
            .with_option("secret", KEY)
            // A stop waits for a request that is under way.
            .with_option("wait_time_seconds", 1);
        // ElasticMQ takes no larger messages, and does not tell.
        let pipeline = match self.place {
            Place::Moto(_) => pipeline,
            _ => pipeline.with_option("attributes", json!({ "MaximumMessageSize": 262_144 })),
        };
        let pipeline = match self.kind {
            Kind::Standard => pipeline.with_option("queue", name),
            Kind::Fifo => pipeline
                .with_option("queue", format!("{name}.fifo"))
                .with_option("dead_letter", format!("{name}-dead.fifo")),
            Kind::Prefetch1 => pipeline
                .with_option("queue", name)
                .with_option("dead_letter", format!("{name}-dead"))
                .with_option("prefetch", 1),
        };
        Ok(match self.place {
            // So that a silent server is noticed soon.
            Place::Apart(_) => pipeline
                .with_option("operation_timeout", "2s")
                .with_option("push_timeout", "2s")
                .with_option("visibility_timeout", 5),
            Place::Shared(_) | Place::Moto(_) => pipeline,
        })
    }

    async fn clean_up(&self, pipeline: &Pipeline) -> Result<()> {
        let operator = self.operator().await?;
        let queue = option(pipeline, "queue");
        operator.delete(queue).await?;
        // Where long delays were spent, if there were any.
        operator.delete(&format!("{queue}-delays")).await?;
        match option(pipeline, "dead_letter") {
            "" => Ok(()),
            queue => operator.delete(queue).await,
        }
    }

    fn with_max_lease(&self, pipeline: Pipeline, max_lease: Duration) -> Option<Pipeline> {
        Some(pipeline.with_option("max_lease", format!("{}ms", max_lease.as_millis())))
    }

    /// The service counts seconds; one would be short on a busy machine.
    fn max_lease(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// The service promises no order, and in a FIFO queue each job without a key is its own group.
    fn keeps_order(&self) -> bool {
        false
    }

    fn quiet(&self) -> Duration {
        Duration::from_millis(200)
    }

    /// A server that starts again takes ten seconds, and a driver may wait as long between two
    /// attempts.
    fn deadline(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn faults(&self) -> &[Fault] {
        &self.faults
    }

    fn apart(&self) -> Option<Arc<dyn Harness>> {
        let place = match &self.place {
            Place::Shared(servers) | Place::Apart(servers) => Place::Apart(Arc::clone(servers)),
            Place::Moto(_) => return None,
        };
        Some(Arc::new(Self { place, ..self.clone() }))
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        self.disturbed().await?.control.begin(fault).await
    }

    async fn end(&self, fault: Fault) -> Result<()> {
        self.disturbed().await?.control.end(fault).await
    }

    /// One request for a job: the time it waits at the server, and `operation_timeout`.
    fn silence(&self) -> Duration {
        Duration::from_secs(5)
    }
}

impl fmt::Debug for Sqs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqs").field("kind", &self.kind).finish_non_exhaustive()
    }
}
