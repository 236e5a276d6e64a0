//! Kafka brokers to test on.

mod guest;
mod operator;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Error, ErrorKind, Result};
use jobs_kit::{Container, Ports, Proxy, Ready};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::metadata::MetadataTopic;
use testcontainers::{ContainerRequest, GenericImage, ImageExt};
use tokio::sync::{Mutex, OnceCell};

use crate::control::{Control, not_started, wrong};
use crate::images::image;

pub use guest::Guest;
pub use operator::{Committed, Group, Operator, Raw, headers};
pub use tls::{Authority, PASSWORD, STRANGER, USER};

/// Where a broker is that is not ours to start: `host:port`, several separated by commas.
const BROKERS: &str = "JOBS_KAFKA_BROKERS";
/// What the image is started with. The public image has to be told, ours knows.
const DEFAULTS: &str = include_str!("../../compose/kafka/kafka.env");
/// A client is sent to the address that its listener advertises, so that each way in has its own.
const PORT: u16 = 9092;
const PROXIED: u16 = 9094;
const ENCRYPTED: u16 = 9095;
const INSIDE: u16 = 9096;
/// What a start may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(180);
/// What one question to a broker may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The brokers of one configuration, each started when it is first asked for.
#[derive(Debug, Default)]
pub struct Brokers {
    shared: Arc<OnceCell<Broker>>,
    own: OnceCell<Broker>,
    encrypted: Arc<OnceCell<(Broker, Authority)>>,
}

/// One broker, behind a proxy if it is to be disturbed.
#[derive(Debug)]
pub struct Broker {
    /// Without the proxy.
    address: String,
    /// How it is disturbed.
    pub control: Control,
}

/// True if the broker is somebody else's. It sends its clients to itself, past any proxy, so that it
/// cannot be cut off either.
#[must_use]
pub fn is_given() -> bool {
    std::env::var_os(BROKERS).is_some()
}

impl Brokers {
    /// For another configuration, which has all but the disturbed one in common with this.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            own: OnceCell::new(),
            encrypted: Arc::clone(&self.encrypted),
        }
    }

    /// The one that cases share.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn shared(&self) -> Result<&Broker> {
        self.shared.get_or_try_init(Broker::start).await
    }

    /// The one that is disturbed, by one case at a time.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn own(&self) -> Result<&Broker> {
        self.own.get_or_try_init(Broker::start_proxied).await
    }

    /// One that speaks TLS too and asks who is there, and who signed its certificate.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn encrypted(&self) -> Result<&(Broker, Authority)> {
        self.encrypted.get_or_try_init(Broker::start_encrypted).await
    }
}

impl Broker {
    /// Starts one, unless the environment names one.
    ///
    /// # Errors
    /// The engine's, or it is not ready in time.
    pub async fn start() -> Result<Self> {
        if let Ok(address) = std::env::var(BROKERS) {
            return Ok(Self { address, control: Control::default() });
        }
        let ports = Ports::reserve(&[PORT])?;
        let listeners = [Listener::new("PLAINTEXT", PORT, ports.address(PORT).to_string())];
        Self::contain(ports, &listeners, request()?, None).await
    }

    async fn start_proxied() -> Result<Self> {
        if is_given() {
            return Self::start().await;
        }
        let ports = Ports::reserve(&[PORT, PROXIED])?;
        // Before the broker, which has to know where it is.
        let proxy = Proxy::start(ports.address(PROXIED));
        let proxy = proxy.map_err(|error| wrong("start a proxy", error))?;
        let listeners = [
            Listener::new("PLAINTEXT", PORT, ports.address(PORT).to_string()),
            Listener::new("PROXIED", PROXIED, proxy.address().to_string()),
        ];
        Self::contain(ports, &listeners, request()?, Some(proxy)).await
    }

    async fn start_encrypted() -> Result<(Self, Authority)> {
        let authority = Authority::new().map_err(|error| wrong("make certificates", error))?;
        let ports = Ports::reserve(&[PORT, ENCRYPTED])?;
        let place = format!("localhost:{}", ports.address(ENCRYPTED).port());
        let listeners = [
            Listener::new("PLAINTEXT", PORT, ports.address(PORT).to_string()),
            Listener::new("ENCRYPTED", ENCRYPTED, place),
        ];
        let broker =
            Self::contain(ports, &listeners, authority.configure(request()?), None).await?;
        for (user, password) in [(USER, PASSWORD), (STRANGER, PASSWORD)] {
            broker.add_user(user, password).await?;
        }
        Ok((broker, authority))
    }

    async fn contain(
        ports: Ports,
        listeners: &[Listener],
        request: ContainerRequest<GenericImage>,
        proxy: Option<Proxy>,
    ) -> Result<Self> {
        /// Several that start at once keep each other, on a small machine, from answering in time.
        static STARTING: Mutex<()> = Mutex::const_new(());
        let _starting = STARTING.lock().await;
        let address = ports.address(PORT).to_string();
        let ready: Ready = Arc::new(|address| Box::pin(serves(address)));
        let request = Listener::configure(listeners, request);
        let container = Container::start_on(ports, request, ready, DEADLINE).await;
        let container =
            container.map_err(|error| not_started(error, "start Kafka", "kafka", BROKERS))?;
        Ok(Self { address, control: Control { proxy, ..Control::of(container) } })
    }

    /// Where a driver connects: to the proxy, if there is one.
    #[must_use]
    pub fn brokers(&self) -> String {
        let proxied = self.control.proxy.as_ref().map(|proxy| proxy.address().to_string());
        proxied.unwrap_or_else(|| self.address.clone())
    }

    /// Where its TLS is, if it was started with that.
    #[must_use]
    pub fn encrypted(&self) -> String {
        let address = self.control.container.as_ref().map(|container| container.address(ENCRYPTED));
        format!("localhost:{}", address.map_or(ENCRYPTED, |address| address.port()))
    }

    /// Past the proxy, to look and to do what operators do.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator::new(&self.address)
    }

    /// Another member of a group that consumes a topic, past the proxy. It reads and settles nothing.
    ///
    /// # Errors
    /// The client's, or it does not become one in time.
    pub async fn guest(&self, group: &str, topic: &str) -> Result<Guest> {
        Guest::join(&self.address, group, topic).await
    }

    /// Runs one of Kafka's own tools inside, by the name of its class, and returns what it writes.
    ///
    /// # Errors
    /// If the broker is not ours, or the tool fails.
    pub async fn tool(&self, class: &str, arguments: &[&str]) -> Result<String> {
        let place = format!("localhost:{INSIDE}");
        // Small and quickly started: these run for a second or two.
        let java = ["java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
        let tool = ["-cp", "/opt/kafka/libs/*", class, "--bootstrap-server", &place];
        let line = java.iter().chain(&tool).chain(arguments);
        self.control.container()?.run(line.copied()).await
    }

    async fn add_user(&self, user: &str, password: &str) -> Result<()> {
        let secret = format!("SCRAM-SHA-512=[password={password}]");
        let user =
            ["--alter", "--add-config", &secret, "--entity-type", "users", "--entity-name", user];
        self.tool("kafka.admin.ConfigCommand", &user).await.map(drop)
    }
}

/// A way into a broker.
struct Listener {
    name: &'static str,
    port: u16,
    /// Where clients are sent to.
    advertised: String,
}

impl Listener {
    fn new(name: &'static str, port: u16, advertised: String) -> Self {
        Self { name, port, advertised }
    }

    /// With those that every broker has.
    fn configure(
        listeners: &[Self],
        request: ContainerRequest<GenericImage>,
    ) -> ContainerRequest<GenericImage> {
        let inside = Self::new("INSIDE", INSIDE, format!("localhost:{INSIDE}"));
        let (mut bound, mut advertised) = (vec!["CONTROLLER://:9093".to_owned()], Vec::new());
        let mut protocols = vec!["CONTROLLER:PLAINTEXT".to_owned()];
        for Self { name, port, advertised: place } in listeners.iter().chain([&inside]) {
            bound.push(format!("{name}://:{port}"));
            advertised.push(format!("{name}://{place}"));
            let protocol = if *port == ENCRYPTED { "SASL_SSL" } else { "PLAINTEXT" };
            protocols.push(format!("{name}:{protocol}"));
        }
        request
            // It sends to itself, too: marks of transactions.
            .with_env_var("KAFKA_INTER_BROKER_LISTENER_NAME", inside.name)
            .with_env_var("KAFKA_LISTENERS", bound.join(","))
            .with_env_var("KAFKA_ADVERTISED_LISTENERS", advertised.join(","))
            .with_env_var("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP", protocols.join(","))
    }
}

fn request() -> Result<ContainerRequest<GenericImage>> {
    let mut request: ContainerRequest<GenericImage> = image("JOBS_KAFKA_IMAGE")?.into();
    let defaults = DEFAULTS.lines().filter(|line| !line.starts_with('#'));
    for (name, value) in defaults.filter_map(|line| line.split_once('=')) {
        request = request.with_env_var(name, value);
    }
    Ok(request
        // A topic that a case has deleted must not come back because somebody asks for it.
        .with_env_var("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
        .with_env_var("KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS", "1000")
        .with_env_var("KAFKA_HEAP_OPTS", "-Xms128m -Xmx512m"))
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Broker, "operate").with_source(error)
}

/// Runs where blocking harms nobody: so are most calls of this client, and the drop of all its values.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(failed(error)))
}

fn admin(address: &str) -> Result<AdminClient<DefaultClientContext>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address).set("reconnect.backoff.max.ms", "500");
    config.create().map_err(failed)
}

/// Expects that the broker is admitted to its cluster, and that each partition it has is led by it.
async fn serves(address: SocketAddr) -> Result<(), String> {
    let asked = blocking(move || {
        let admin = admin(&address.to_string())?;
        let metadata = admin.inner().fetch_metadata(None, PATIENCE).map_err(failed)?;
        let mut partitions = metadata.topics().iter().flat_map(MetadataTopic::partitions);
        match metadata.brokers().is_empty() || partitions.any(|partition| partition.leader() < 0) {
            true => Err(wrong("ask a broker", "it is not admitted yet")),
            false => Ok(()),
        }
    });
    asked.await.map_err(|error| format!("{error:?}"))
}
