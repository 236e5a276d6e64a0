//! ElasticMQ servers to test on.

pub(crate) mod frames;
mod operator;

use std::collections::BTreeSet;
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

pub use frames::{action, answers};
pub(crate) use operator::{KEY, REGION};
pub use operator::{Operator, Raw, client};

/// Where a server is that is not ours to start: `http://host:port`.
const URL: &str = "JOBS_SQS_ENDPOINT";
const PORT: u16 = 9324;
/// What a start may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// The servers of one configuration, each started when it is first asked for.
#[derive(Debug, Default)]
pub struct Servers {
    shared: Arc<OnceCell<ElasticMq>>,
    own: OnceCell<ElasticMq>,
    proxied: OnceCell<ElasticMq>,
}

/// One server, behind a proxy if it is to be disturbed.
#[derive(Debug)]
pub struct ElasticMq {
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
    /// For another configuration, which has the shared one in common with this.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), ..Self::default() }
    }

    /// The one that cases share.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn shared(&self) -> Result<&ElasticMq> {
        self.shared.get_or_try_init(|| ElasticMq::start(false)).await
    }

    /// The one that is disturbed and killed, by one case at a time.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn own(&self) -> Result<&ElasticMq> {
        self.own.get_or_try_init(|| ElasticMq::start(true)).await
    }

    /// The shared one behind a proxy, for faults of the network: starting another takes long.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn proxied(&self) -> Result<&ElasticMq> {
        let proxied = async || {
            let address = self.shared().await?.address;
            let control = Control { proxy: Some(proxy_before(address)?), ..Control::default() };
            Ok(ElasticMq { address, control })
        };
        self.proxied.get_or_try_init(proxied).await
    }
}

impl ElasticMq {
    /// Starts one, with a proxy before it if it is to be disturbed.
    ///
    /// # Errors
    /// The engine's, or it is not ready in time.
    pub async fn start(disturbed: bool) -> Result<Self> {
        let mut server = match std::env::var(URL) {
            Ok(url) => Self::given(&url).await?,
            Err(_) => Self::contain(image("JOBS_ELASTICMQ_IMAGE")?.into()).await?,
        };
        if disturbed {
            server.control.proxy = Some(proxy_before(server.address)?);
        }
        Ok(server)
    }

    async fn given(url: &str) -> Result<Self> {
        let place = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
        let mut found = tokio::net::lookup_host(place).await.map_err(|error| wrong(URL, error))?;
        let address = found.next().ok_or_else(|| wrong(URL, "the host has no address"))?;
        Ok(Self { address, control: Control::default() })
    }

    /// Starts one that keeps messages in memory only, and is several times as fast for that, unless the
    /// environment names one.
    ///
    /// # Errors
    /// The engine's, or it is not ready in time.
    pub async fn start_in_memory() -> Result<Self> {
        if let Ok(url) = std::env::var(URL) {
            return Self::given(&url).await;
        }
        let forget = "-Dmessages-storage.enabled=false";
        let request = image("JOBS_ELASTICMQ_IMAGE")?.with_env_var("JAVA_TOOL_OPTIONS", forget);
        Self::contain(request).await
    }

    async fn contain(request: ContainerRequest<GenericImage>) -> Result<Self> {
        let ready: Ready = Arc::new(|address| Box::pin(speaks_sqs(address)));
        let container = Container::start(request, &[PORT], ready, DEADLINE).await;
        let container =
            container.map_err(|error| not_started(error, "start ElasticMQ", "sqs", URL))?;
        let address = container.address(PORT);
        let control = Control { lacking: Some(lacking), ..Control::of(container) };
        Ok(Self { address, control })
    }

    /// Where a driver connects: to the proxy, if there is one.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.control.way_to(self.address))
    }

    /// Where it is itself.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bare client past the proxy, to look and to do what others do.
    #[must_use]
    pub fn operator(&self) -> Operator {
        Operator::at(&format!("http://{}", self.address))
    }
}

fn proxy_before(address: SocketAddr) -> Result<Proxy> {
    Proxy::start_framed(address, frames::length).map_err(|error| wrong("start a proxy", error))
}

/// What it has not restored since it was started last.
///
/// It answers before it does, as if there were neither queues nor messages, which the service never
/// does.
fn lacking(said: &str) -> Option<String> {
    const BEGUN: &str = "Started SQS rest server";
    let (before, since) = said.rsplit_once(BEGUN).unwrap_or(("", said));
    let name = |line: &str, begin: &str, end: &[char]| {
        let (_, name) = line.split_once(begin)?;
        name.split(end).next().map(str::to_owned)
    };
    let mut queues = BTreeSet::new();
    for line in before.lines() {
        queues.extend(name(line, "Creating queue CreateQueueData(", &[',']));
        if let Some(deleted) = name(line, "Deleting queue ", &[' ']) {
            queues.remove(&deleted);
        }
    }
    for line in since.lines().filter(|line| line.contains("Restored ")) {
        if let Some(restored) = name(line, " messages in queue ", &[' ']) {
            queues.remove(&restored);
        }
    }
    let lacks = !queues.is_empty();
    lacks.then(|| format!("not restored: {queues:?}; it said last: {}", since.trim_end()))
}

/// Asks for the queues and expects an answer. By hand: a client would leave a task behind.
async fn speaks_sqs(address: SocketAddr) -> Result<(), String> {
    const QUESTION: &str = "POST / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
        content-type: application/x-amz-json-1.0\r\nx-amz-target: AmazonSQS.ListQueues\r\n\
        content-length: 2\r\n\r\n{}";
    let question = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(QUESTION.as_bytes()).await?;
        let mut answer = Vec::with_capacity(256);
        stream.read_buf(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), question).await;
    match answer.map_err(|_| "silence".to_owned())?.map_err(|error| error.to_string())? {
        answer if answer.starts_with(b"HTTP/1.1 200 ") => Ok(()),
        answer => Err(String::from_utf8_lossy(&answer).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "\
        23:35:41.357 INFO  SQSRestServerBuilder - Started SQS rest server, bind address 0.0.0.0:9324\n\
        23:35:42.510 INFO  QueueManagerActor - Creating queue CreateQueueData(a,Some(30000),None)\n\
        23:35:42.610 INFO  QueueManagerActor - Creating queue CreateQueueData(b,Some(30000),None)\n\
        23:35:43.610 INFO  QueueManagerActor - Creating queue CreateQueueData(c,Some(30000),None)\n\
        23:35:44.610 INFO  QueueManagerActor - Deleting queue b\n";
    const SECOND: &str = "\
        23:36:41.357 INFO  SQSRestServerBuilder - Started SQS rest server, bind address 0.0.0.0:9324\n\
        23:36:42.510 INFO  QueueManagerActor - Creating queue CreateQueueData(a,Some(30000),None)\n\
        23:36:42.810 INFO  QueueManagerActor - Creating queue CreateQueueData(c,Some(30000),None)\n\
        23:36:43.510 INFO  QueueActor - Restored 1171 messages in queue a\n";
    const LAST: &str = "23:36:43.910 INFO  QueueActor - Restored 0 messages in queue c\n";

    #[test]
    fn it_lacks_what_it_had_until_it_says_that_it_is_restored() {
        assert_eq!(lacking(""), None);
        assert_eq!(lacking(FIRST), None, "it has not been killed");
        let lacked = lacking(&format!("{FIRST}{SECOND}")).expect("one queue");
        assert!(lacked.starts_with("not restored: {\"c\"}"), "{lacked}");
        assert_eq!(lacking(&format!("{FIRST}{SECOND}{LAST}")), None);
        let begun = SECOND.lines().next().expect("a line");
        assert!(lacking(&format!("{FIRST}{SECOND}{LAST}{begun}")).is_some(), "killed again");
    }
}
