//! How the kit makes pipelines of this driver.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Pipeline, Registry, Result, async_trait};
use jobs_kit::{Fault, Harness};
use serde_json::json;

use super::names;
use crate::rabbitmq::{Brokers, RabbitMq, is_given};

/// One configuration of the driver.
#[derive(Clone)]
pub struct Amqp {
    brokers: Arc<Brokers>,
    registry: Registry,
    kind: Kind,
    place: Place,
    faults: Vec<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Classic,
    Quorum,
    MaxPriority,
    Topic,
    Prefetch1,
    Tls,
}

/// Which of the brokers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Shared,
    Own,
    Encrypted,
}

impl Amqp {
    fn new(brokers: &Arc<Brokers>, kind: Kind) -> Self {
        let mut registry = Registry::new();
        registry.register(jobs_amqp::constructor()).expect("the only driver");
        let place = if kind == Kind::Tls { Place::Encrypted } else { Place::Shared };
        let mut faults = match kind {
            Kind::Classic | Kind::Quorum => Fault::ALL.to_vec(),
            Kind::MaxPriority | Kind::Topic | Kind::Prefetch1 => vec![Fault::Cut],
            Kind::Tls => Vec::new(),
        };
        if is_given() {
            faults.retain(|fault| *fault != Fault::Kill);
        }
        Self { brokers: Arc::clone(brokers), registry, kind, place, faults }
    }

    /// A classic queue.
    #[must_use]
    pub fn classic(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::Classic)
    }

    /// A quorum queue.
    #[must_use]
    pub fn quorum(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::Quorum)
    }

    /// A classic queue with priorities.
    #[must_use]
    pub fn max_priority(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::MaxPriority)
    }

    /// A topic exchange before the queue, and an exchange and queue for dead letters.
    #[must_use]
    pub fn topic(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::Topic)
    }

    /// One job at a time in the process.
    #[must_use]
    pub fn prefetch_1(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::Prefetch1)
    }

    /// Through TLS, with a certificate that a private authority signed.
    #[must_use]
    pub fn tls(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::Tls)
    }

    async fn broker(&self) -> Result<&RabbitMq> {
        match self.place {
            Place::Shared => self.brokers.shared().await,
            Place::Own => self.brokers.own().await,
            Place::Encrypted => Ok(&self.brokers.encrypted().await?.0),
        }
    }

    async fn declare_dead_letters(&self, name: &str) -> Result<()> {
        let operator = self.broker().await?.operator().await?;
        operator.declare_collector(name).await?;
        operator.close().await
    }

    /// The options of this configuration, for the queue called `name`.
    async fn configure(&self, name: &str) -> Result<Pipeline> {
        let pipeline = Pipeline::new(name, jobs_amqp::NAME).with_option("queue", name);
        Ok(match self.kind {
            Kind::Classic => pipeline.with_option("queue_type", "classic"),
            Kind::Quorum => pipeline.with_option("queue_type", "quorum"),
            Kind::MaxPriority => pipeline.with_option("max_priority", 20),
            Kind::Prefetch1 => pipeline.with_option("prefetch", 1),
            Kind::Topic => {
                let dead = format!("{name}-dead");
                self.declare_dead_letters(&dead).await?;
                pipeline
                    .with_option("exchange", format!("{name}-exchange"))
                    .with_option("exchange_type", "topic")
                    .with_option("routing_key", format!("kit.{name}"))
                    .with_option("dead_letter_exchange", dead)
            }
            Kind::Tls => {
                let (broker, authority) = self.brokers.encrypted().await?;
                pipeline
                    .with_option("addr", broker.encrypted_url())
                    .with_option("tls", json!({ "root_ca": authority.root() }))
            }
        })
    }
}

#[async_trait]
impl Harness for Amqp {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        let pipeline = self.configure(name).await?;
        let pipeline = match self.place {
            Place::Encrypted => pipeline,
            Place::Shared | Place::Own => pipeline.with_option("addr", self.broker().await?.url()),
        };
        // Own: the shortest there is, so that a stall is noticed soon. Shared: a task of the client
        // outlives its connection by half of it, and every case waits for that.
        let heartbeat = if self.place == Place::Own { "1s" } else { "2s" };
        Ok(pipeline.with_option("heartbeat", heartbeat))
    }

    async fn clean_up(&self, pipeline: &Pipeline) -> Result<()> {
        let operator = self.broker().await?.operator().await?;
        names::delete(&operator, pipeline).await?;
        operator.close().await
    }

    fn quiet(&self) -> Duration {
        Duration::from_millis(200)
    }

    /// A broker that starts again takes ten seconds, and a driver may wait as long between two
    /// attempts.
    fn deadline(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn faults(&self) -> &[Fault] {
        &self.faults
    }

    fn apart(&self) -> Option<Arc<dyn Harness>> {
        Some(Arc::new(Self { place: Place::Own, ..self.clone() }))
    }

    async fn sync(&self) -> Result<()> {
        self.broker().await?.sync().await
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        self.broker().await?.control.begin(fault).await
    }

    async fn end(&self, fault: Fault) -> Result<()> {
        self.broker().await?.control.end(fault).await
    }

    /// Both sides give up after two heartbeats without a word, and look once per heartbeat.
    fn silence(&self) -> Duration {
        Duration::from_secs(5)
    }
}

impl fmt::Debug for Amqp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, place, .. } = self;
        f.debug_struct("Amqp").field("kind", kind).field("place", place).finish_non_exhaustive()
    }
}
