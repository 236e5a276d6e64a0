//! How the kit makes pipelines of this driver.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jobs_core::{Pipeline, Registry, Result, async_trait};
use jobs_kit::{Fault, Harness};
use serde_json::{Value, json};

use crate::kafkad::{Broker, Brokers, Guest, PASSWORD, USER, is_given};

/// One configuration of the driver.
#[derive(Clone)]
pub struct Kafka {
    brokers: Arc<Brokers>,
    registry: Registry,
    kind: Kind,
    place: Place,
    faults: Vec<Fault>,
    /// The topics of this case's pipelines, whose groups are called the same.
    topics: Arc<Mutex<Vec<String>>>,
    /// Members that have joined and are to leave again.
    guests: Arc<Mutex<Vec<Guest>>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    One,
    Six,
    Key,
    Prefetch1,
    Static,
    Tls,
}

/// Which of the brokers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Shared,
    Own,
    Encrypted,
}

/// A pipeline on a topic, and in a group, of its own name. Members that are silent are soon given up.
pub(super) fn pipeline(brokers: &str, name: &str) -> Pipeline {
    let group = json!({
        "group_id": name,
        "session_timeout": "6s",
        "heartbeat_interval": "500ms",
    });
    Pipeline::new(name, jobs_kafka::NAME)
        .with_option("brokers", json!([brokers]))
        .with_option("topics", json!([name]))
        .with_option("group_options", group)
        .with_option("commit_interval", "100ms")
        // For delays: the topics of pipelines are made by hand.
        .with_option("auto_create_topics_enable", true)
}

/// A value of one of the blocks of options, changed.
pub(super) fn with(
    pipeline: Pipeline,
    block: &str,
    name: &str,
    value: impl Into<Value>,
) -> Pipeline {
    let mut options = pipeline.options().get(block).cloned().unwrap_or_else(|| json!({}));
    options[name] = value.into();
    pipeline.with_option(block, options)
}

/// The topic for what a pipeline rejects, in the configuration that has one.
pub(super) fn dead(name: &str) -> String {
    format!("{name}-dead")
}

impl Kafka {
    fn new(brokers: &Arc<Brokers>, kind: Kind) -> Self {
        let mut registry = Registry::new();
        registry.register(jobs_kafka::constructor()).expect("the only driver");
        let place = if kind == Kind::Tls { Place::Encrypted } else { Place::Shared };
        let mut faults = match kind {
            Kind::One => Fault::ALL.to_vec(),
            Kind::Six | Kind::Key | Kind::Static => vec![Fault::Cut],
            Kind::Prefetch1 | Kind::Tls => Vec::new(),
        };
        if is_given() {
            faults.clear();
        }
        if kind != Kind::Tls {
            faults.push(Fault::Rebalance);
        }
        Self {
            brokers: Arc::clone(brokers),
            registry,
            kind,
            place,
            faults,
            topics: Arc::default(),
            guests: Arc::default(),
        }
    }

    /// One partition.
    #[must_use]
    pub fn one(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::One)
    }

    /// Six partitions, and a topic for dead letters.
    #[must_use]
    pub fn six(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::Six)
    }

    /// Six partitions, and jobs of one key in order.
    #[must_use]
    pub fn key(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::Key)
    }

    /// One job at a time in the process.
    #[must_use]
    pub fn prefetch_1(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::Prefetch1)
    }

    /// Static members of their group, which do not leave it when they stop; and no topics created.
    #[must_use]
    pub fn with_instances(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::Static)
    }

    /// Through TLS, with a password and a certificate that a private authority signed.
    #[must_use]
    pub fn tls(brokers: &Arc<Brokers>) -> Self {
        Self::new(brokers, Kind::Tls)
    }

    async fn broker(&self) -> Result<&Broker> {
        match self.place {
            Place::Shared => self.brokers.shared().await,
            Place::Own => self.brokers.own().await,
            Place::Encrypted => Ok(&self.brokers.encrypted().await?.0),
        }
    }

    fn partitions(&self) -> i32 {
        if matches!(self.kind, Kind::Six | Kind::Key) { 6 } else { 1 }
    }

    async fn configure(&self, name: &str) -> Result<Pipeline> {
        let broker = self.broker().await?;
        let pipeline = pipeline(&broker.brokers(), name);
        Ok(match self.kind {
            Kind::One => pipeline,
            Kind::Six => pipeline.with_option("dead_letter_topic", dead(name)),
            Kind::Key => pipeline.with_option("ordering", "key"),
            Kind::Prefetch1 => pipeline.with_option("prefetch", 1),
            Kind::Static => pipeline.with_option("auto_create_topics_enable", false),
            Kind::Tls => {
                let (_, authority) = self.brokers.encrypted().await?;
                let sasl =
                    json!({ "mechanism": "SCRAM-SHA-512", "username": USER, "password": PASSWORD });
                pipeline
                    .with_option("brokers", json!([broker.encrypted()]))
                    .with_option("tls", json!({ "root_ca": authority.root() }))
                    .with_option("sasl", sasl)
            }
        })
    }

    async fn join(&self) -> Result<()> {
        let broker = self.broker().await?;
        let topics = lock(&self.topics).clone();
        for topic in topics {
            let guest = broker.guest(&topic, &topic).await?;
            lock(&self.guests).push(guest);
        }
        Ok(())
    }

    async fn leave(&self) -> Result<()> {
        let guests = std::mem::take(&mut *lock(&self.guests));
        for guest in guests {
            guest.leave().await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Harness for Kafka {
    fn registry(&self) -> &Registry {
        &self.registry
    }

    async fn pipeline(&self, name: &str) -> Result<Pipeline> {
        let operator = self.broker().await?.operator();
        operator.create_topic(name, self.partitions()).await?;
        if self.kind == Kind::Six {
            operator.create_topic(&dead(name), 1).await?;
        }
        lock(&self.topics).push(name.to_owned());
        self.configure(name).await
    }

    /// Also the topic of its delays, whose name has its name in it.
    async fn clean_up(&self, pipeline: &Pipeline) -> Result<()> {
        let operator = self.broker().await?.operator();
        let topics = operator.topics(pipeline.name()).await?;
        operator.delete_topics(topics).await
    }

    /// Two static members may not be called the same.
    fn connection(&self, pipeline: Pipeline, number: usize) -> Pipeline {
        match self.kind {
            Kind::Static => {
                let instance = format!("{}-{number}", pipeline.name());
                with(pipeline, "group_options", "instance_id", instance)
            }
            _ => pipeline,
        }
    }

    /// Only what is in one partition is in order.
    fn keeps_order(&self) -> bool {
        self.partitions() == 1
    }

    fn changes_headers(&self) -> bool {
        self.kind != Kind::Key
    }

    fn quiet(&self) -> Duration {
        Duration::from_millis(300)
    }

    /// A broker that starts again takes ten seconds, and a group may wait as long for a member that
    /// is gone.
    fn deadline(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn faults(&self) -> &[Fault] {
        &self.faults
    }

    fn apart(&self) -> Option<Arc<dyn Harness>> {
        match is_given() {
            true => None,
            false => Some(Arc::new(Self { place: Place::Own, ..self.clone() })),
        }
    }

    async fn begin(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Rebalance => self.join().await,
            fault => self.broker().await?.control.begin(fault).await,
        }
    }

    async fn end(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Rebalance => self.leave().await,
            fault => self.broker().await?.control.end(fault).await,
        }
    }

    /// Longer than the group waits for a member that is silent.
    fn silence(&self) -> Duration {
        Duration::from_secs(7)
    }
}

fn lock<T>(values: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    values.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, place, .. } = self;
        f.debug_struct("Kafka").field("kind", kind).field("place", place).finish_non_exhaustive()
    }
}
