//! RabbitMQ brokers to test on.

mod frames;
mod operator;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::TryFutureExt;
use jobs_core::{Error, ErrorKind, Result};
use jobs_kit::{Container, Proxy, Ready};
use lapin::uri::AMQPUri;
use testcontainers::{ContainerRequest, GenericImage, ImageExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::control::{Control, not_started, wrong};
use crate::images::image;

pub use frames::{Method, method};
pub use operator::Operator;
pub use tls::Authority;

/// Where a broker is that is not ours to start.
const URL: &str = "JOBS_AMQP_URL";
const PORT: u16 = 5672;
const TLS_PORT: u16 = 5671;
/// By default the broker waits three minutes before it tries again to route what was due for a queue
/// that is gone.
const SETTINGS: &str = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 2000}]}].";
/// What a start may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// The brokers of one configuration, each started when it is first asked for.
#[derive(Debug, Default)]
pub struct Brokers {
    shared: Arc<OnceCell<RabbitMq>>,
    own: OnceCell<RabbitMq>,
    encrypted: OnceCell<(RabbitMq, Authority)>,
}

/// One broker, behind a proxy if it is to be disturbed.
#[derive(Debug)]
pub struct RabbitMq {
    uri: AMQPUri,
    /// Without the proxy.
    address: SocketAddr,
    /// How it is disturbed.
    pub control: Control,
}

/// True if the broker is somebody else's: it can be cut off, but not killed or asked for favours.
#[must_use]
pub fn is_given() -> bool {
    std::env::var_os(URL).is_some()
}

impl Brokers {
    /// For another configuration, which has the shared one in common with this.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), ..Self::default() }
    }

    /// The one that cases share.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn shared(&self) -> Result<&RabbitMq> {
        self.shared.get_or_try_init(|| RabbitMq::start(false)).await
    }

    /// The one that is disturbed, by one case at a time.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn own(&self) -> Result<&RabbitMq> {
        self.own.get_or_try_init(|| RabbitMq::start(true)).await
    }

    /// One that speaks TLS too, and who signed its certificate.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn encrypted(&self) -> Result<&(RabbitMq, Authority)> {
        self.encrypted.get_or_try_init(RabbitMq::start_encrypted).await
    }
}

impl RabbitMq {
    /// Starts one, with a proxy before it if it is to be disturbed.
    ///
    /// # Errors
    /// The engine's, or it is not ready in time.
    pub async fn start(disturbed: bool) -> Result<Self> {
        let mut broker = match std::env::var(URL) {
            Ok(url) => Self::given(&url).await?,
            Err(_) => {
                let ready: Ready = Arc::new(|address| Box::pin(speaks_amqp(address)));
                Self::contain(image("JOBS_RABBITMQ_IMAGE")?.into(), &[PORT], ready).await?
            }
        };
        if disturbed {
            let proxy = Proxy::start_framed(broker.address, frames::length);
            broker.control.proxy = Some(proxy.map_err(|e| wrong("start a proxy", e))?);
        }
        Ok(broker)
    }

    async fn given(url: &str) -> Result<Self> {
        let uri: AMQPUri = url.parse().map_err(|error: String| {
            Error::new(ErrorKind::Config, "connect").with_context(format!("{URL}: {error}"))
        })?;
        let (host, port) = (uri.authority.host.clone(), uri.authority.port);
        let mut found = tokio::net::lookup_host((host, port)).await.map_err(|e| wrong(URL, e))?;
        let address = found.next().ok_or_else(|| wrong(URL, "the host has no address"))?;
        Ok(Self { uri, address, control: Control::default() })
    }

    async fn contain(
        request: ContainerRequest<GenericImage>,
        ports: &[u16],
        ready: Ready,
    ) -> Result<Self> {
        // Else its files are kept under the name of its host, which is another after a restart.
        let request = request.with_env_var("RABBITMQ_NODENAME", "rabbit@localhost");
        let request =
            request.with_copy_to("/etc/rabbitmq/advanced.config", SETTINGS.as_bytes().to_vec());
        let container = Container::start(request, ports, ready, DEADLINE).await;
        let container =
            container.map_err(|error| not_started(error, "start RabbitMQ", "amqp", URL))?;
        let address = container.address(PORT);
        Ok(Self { uri: AMQPUri::default(), address, control: Control::of(container) })
    }

    async fn start_encrypted() -> Result<(Self, Authority)> {
        let authority = Authority::new().map_err(|error| wrong("make certificates", error))?;
        let mut request: ContainerRequest<GenericImage> = image("JOBS_RABBITMQ_IMAGE")?.into();
        for (path, content) in authority.files(TLS_PORT) {
            request = request.with_copy_to(path, content.into_bytes());
        }
        // It listens there last.
        let ready: Ready = Arc::new(|address| Box::pin(speaks(address).map_ok(drop)));
        let broker = Self::contain(request, &[TLS_PORT, PORT], ready).await?;
        Ok((broker, authority))
    }

    /// Where a driver connects: to the proxy, if there is one.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_with(|_| {})
    }

    /// As [`url`](Self::url), changed.
    #[must_use]
    pub fn url_with(&self, change: impl FnOnce(&mut AMQPUri)) -> String {
        self.url_of(self.control.way_to(self.address), change)
    }

    /// Where its TLS is, if it was started with that.
    #[must_use]
    pub fn encrypted_url(&self) -> String {
        let address = self.control.container.as_ref().map(|container| container.address(TLS_PORT));
        let port = address.map_or(TLS_PORT, |address| address.port());
        format!("amqps://guest:guest@localhost:{port}/%2f")
    }

    fn url_of(&self, address: SocketAddr, change: impl FnOnce(&mut AMQPUri)) -> String {
        let mut uri = self.uri.clone();
        uri.authority.host = address.ip().to_string();
        uri.authority.port = address.port();
        change(&mut uri);
        let (user, vhost) = (&uri.authority.userinfo, uri.vhost.replace('/', "%2f"));
        let (host, port) = (&uri.authority.host, uri.authority.port);
        format!("amqp://{}:{}@{host}:{port}/{vhost}", user.username, user.password)
    }

    /// A connection past the proxy, to look and to do what operators do.
    ///
    /// # Errors
    /// The client's.
    pub async fn operator(&self) -> Result<Operator> {
        Operator::connect(&self.url_of(self.address, |_| {})).await
    }

    /// Runs `rabbitmqctl` inside.
    ///
    /// # Errors
    /// If the broker is not ours, or the command fails.
    pub async fn control(&self, arguments: &[&str]) -> Result<String> {
        let container = self.control.container()?;
        container.run(["rabbitmqctl"].iter().chain(arguments).copied()).await
    }

    /// Writes the list of its quorum queues to the disk. RabbitMQ 4.0 leaves that to a buffer: a node
    /// that is killed within a second or so of declaring one starts it anew, empty and without a
    /// leader.
    ///
    /// # Errors
    /// As [`control`](Self::control).
    pub async fn sync(&self) -> Result<()> {
        self.control(&["eval", "[dets:sync(Table) || Table <- dets:all()]."]).await.map(drop)
    }
}

/// Says hello and expects `connection.start`. The port alone is open long before the broker is.
async fn speaks_amqp(address: SocketAddr) -> Result<(), String> {
    match speaks(address).await? {
        answer if method(&answer) == Some(Method::CONNECTION_START) => Ok(()),
        answer => Err(format!("{answer:?}")),
    }
}

/// Says hello and expects any answer: for TLS that is an alert.
async fn speaks(address: SocketAddr) -> Result<Vec<u8>, String> {
    let hello = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
        let mut answer = Vec::with_capacity(64);
        match stream.read_buf(&mut answer).await? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => std::io::Result::Ok(answer),
        }
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), hello).await;
    answer.map_err(|_| "silence".to_owned())?.map_err(|error| error.to_string())
}
