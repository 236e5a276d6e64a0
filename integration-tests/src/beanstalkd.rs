//! beanstalkd servers to test on.

mod frames;
mod operator;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jobs_core::Result;
use jobs_kit::{Container, Proxy, Ready};
use testcontainers::{ContainerRequest, GenericImage, ImageExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use crate::control::{Control, not_started, wrong};
use crate::images::image;

pub use operator::Operator;

/// Where a server is that is not ours to start: `host:port` or `tcp://host:port`.
const URL: &str = "JOBS_BEANSTALK_ADDR";
const PORT: u16 = 11300;
/// What a start may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
const BINLOG: &str = "/var/lib/beanstalkd/binlog";

/// How a server is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Without files: its jobs are gone with it.
    Memory,
    /// `-b`: what it has is in files, which it syncs every 50 ms.
    Binlog,
    /// `-b -f0`: it syncs before each answer.
    Synced,
    /// With so little memory that it is soon out of it.
    Small,
}

impl Mode {
    fn command(self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::Memory => &["beanstalkd"],
            Self::Binlog => &["beanstalkd", "-b", BINLOG],
            Self::Synced => &["beanstalkd", "-b", BINLOG, "-f0"],
            Self::Small => &["sh", "-c", "ulimit -v 12000 && exec beanstalkd"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }
}

/// The servers of one configuration, each started when it is first asked for.
#[derive(Debug)]
pub struct Servers {
    mode: Mode,
    shared: OnceCell<Beanstalkd>,
    own: OnceCell<Beanstalkd>,
}

/// One server, behind a proxy if it is to be disturbed.
#[derive(Debug)]
pub struct Beanstalkd {
    /// Without the proxy.
    address: SocketAddr,
    /// How it is disturbed.
    pub control: Control,
}

/// True if the server is somebody else's: it can be cut off, but not killed.
#[must_use]
pub fn is_given() -> bool {
    std::env::var_os(URL).is_some()
}

impl Servers {
    /// Of this mode, unless they are somebody else's.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self { mode, shared: OnceCell::new(), own: OnceCell::new() }
    }

    /// The one that cases share.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn shared(&self) -> Result<&Beanstalkd> {
        self.shared.get_or_try_init(|| Beanstalkd::start(self.mode, false)).await
    }

    /// The one that is disturbed, by one case at a time.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn own(&self) -> Result<&Beanstalkd> {
        self.own.get_or_try_init(|| Beanstalkd::start(self.mode, true)).await
    }
}

impl Beanstalkd {
    /// Starts one, with a proxy before it if it is to be disturbed.
    ///
    /// # Errors
    /// The engine's, or it is not ready in time.
    pub async fn start(mode: Mode, disturbed: bool) -> Result<Self> {
        let mut server = match std::env::var(URL) {
            Ok(url) => Self::given(&url).await?,
            Err(_) => Self::contain(mode).await?,
        };
        if disturbed {
            let proxy = Proxy::start_framed(server.address, frames::length);
            server.control.proxy = Some(proxy.map_err(|error| wrong("start a proxy", error))?);
        }
        Ok(server)
    }

    async fn given(url: &str) -> Result<Self> {
        let place = url.strip_prefix("tcp://").unwrap_or(url);
        let mut found = tokio::net::lookup_host(place).await.map_err(|error| wrong(URL, error))?;
        let address = found.find(SocketAddr::is_ipv4);
        let address = address.ok_or_else(|| wrong(URL, "the host has no IPv4 address"))?;
        Ok(Self { address, control: Control::default() })
    }

    async fn contain(mode: Mode) -> Result<Self> {
        let image = image("JOBS_BEANSTALKD_IMAGE")?;
        let request: ContainerRequest<GenericImage> = image.with_cmd(mode.command());
        let ready: Ready = Arc::new(|address| Box::pin(answers(address)));
        let container = Container::start(request, &[PORT], ready, DEADLINE).await;
        let container =
            container.map_err(|error| not_started(error, "start beanstalkd", "beanstalk", URL))?;
        let address = container.address(PORT);
        Ok(Self { address, control: Control::of(container) })
    }

    /// Where a driver connects: to the proxy, if there is one.
    #[must_use]
    pub fn url(&self) -> String {
        format!("tcp://{}", self.control.way_to(self.address))
    }

    /// Where it is itself.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A connection past the proxy, to look and to do what operators do.
    ///
    /// # Errors
    /// If there is none to be had.
    pub async fn operator(&self) -> Result<Operator> {
        Operator::connect(self.address).await
    }

    /// Sends a signal to it, such as `USR1`, after which it takes no more jobs.
    ///
    /// # Errors
    /// If it is not ours, or the engine's.
    pub async fn signal(&self, name: &str) -> Result<()> {
        let kill = format!("kill -{name} 1");
        self.control.container()?.run(["sh", "-c", &kill]).await.map(drop)
    }
}

/// Asks something and expects the answer.
async fn answers(address: SocketAddr) -> Result<(), String> {
    let question = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"list-tube-used\r\n").await?;
        let mut answer = Vec::with_capacity(64);
        stream.read_buf(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), question).await;
    match answer.map_err(|_| "silence".to_owned())?.map_err(|error| error.to_string())? {
        answer if answer.starts_with(b"USING ") => Ok(()),
        answer => Err(String::from_utf8_lossy(&answer).into_owned()),
    }
}
