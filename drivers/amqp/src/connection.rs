//! Connections, shared by the pipelines of one address and made anew when they break.

use std::fmt;
use std::io;
use std::mem;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use jobs_core::{Error, ErrorKind, Result};
use lapin::tcp::{AsyncTcpStream, OwnedIdentity, OwnedTLSConfig};
use lapin::uri::AMQPScheme;
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::NAME;
use crate::config::{ConnectionConfig, TlsConfig};
use crate::error::{closed_one_before, mapped, timed_out};
use crate::topology::Side;

/// How long a broker may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often to look if a connection is still there while a channel is being opened.
const LOST_POLL: Duration = Duration::from_millis(50);

/// The connections that pipelines with equal connection options share. A broker that is short of
/// memory stops reading from connections that publish: so consuming has one of its own.
#[derive(Debug)]
pub(crate) struct Connections {
    config: ConnectionConfig,
    publishing: Link,
    consuming: Link,
    /// Pipelines that use them.
    users: AtomicUsize,
}

/// A connection that is made when it is asked for and found broken.
pub(crate) struct Link {
    purpose: &'static str,
    slot: tokio::sync::Mutex<Slot>,
    /// Attempts to connect that were begun.
    attempts: AtomicU64,
}

#[derive(Default)]
struct Slot {
    open: Option<Arc<Open>>,
    /// With the number of its attempt.
    failure: Option<(u64, Failure)>,
}

/// A connection that was made. It ends when nobody holds it any more.
struct Open {
    connection: Connection,
    socket: Socket,
    /// No channel can be opened on it any more, those that are open go on.
    worn_out: AtomicBool,
}

/// Hangs up when it is dropped. The client keeps a thread for every connection until its socket
/// ends, also for one that was given up because the broker is silent.
struct Socket(socket2::Socket);

/// Why the last attempt failed, for those who waited for it.
#[derive(Clone)]
enum Failure {
    Client(lapin::Error),
    Timeout,
    Tls(String),
}

/// A connection, and the number of the attempt that made it.
#[derive(Clone)]
pub(crate) struct Live {
    open: Arc<Open>,
    pub(crate) number: u64,
}

/// Connections by their options, held weakly.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory(Arc<Mutex<Vec<Weak<Connections>>>>);

impl Directory {
    /// The connections with these options, opened when first used. Whoever gets them
    /// [leaves](Connections::leave) them.
    pub(crate) fn join(&self, config: &ConnectionConfig) -> Arc<Connections> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|connections| connections.strong_count() > 0);
        let found = known.iter().filter_map(Weak::upgrade).find(|found| found.config == *config);
        let connections = found.unwrap_or_else(|| {
            let connections = Arc::new(Connections::new(config.clone()));
            known.push(Arc::downgrade(&connections));
            connections
        });
        connections.users.fetch_add(1, Ordering::AcqRel);
        connections
    }
}

impl Connections {
    fn new(config: ConnectionConfig) -> Self {
        let link = Link::new;
        let (publishing, consuming) = (link("publishing"), link("consuming"));
        Self { config, publishing, consuming, users: AtomicUsize::new(0) }
    }

    /// How long connecting, and each step after it, may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.config.connect_timeout
    }

    pub(crate) async fn consuming(&self) -> Result<Live> {
        self.get(Side::Consuming).await
    }

    async fn get(&self, side: Side) -> Result<Live> {
        match side {
            Side::Publishing => self.publishing.get(&self.config).await,
            Side::Consuming => self.consuming.get(&self.config).await,
        }
    }

    /// Opens a channel, on a new connection if the one there is has worn out.
    pub(crate) async fn channel(
        &self,
        side: Side,
        operation: &'static str,
    ) -> Result<(Live, Channel)> {
        let mut live = self.get(side).await?;
        let mut opened = live.channel(operation, self.timeout()).await;
        if opened.is_err() && live.is_worn_out() {
            live = self.get(side).await?;
            opened = live.channel(operation, self.timeout()).await;
        }
        Ok((live, opened?))
    }

    /// A pipeline uses them no more.
    pub(crate) fn leave(&self) {
        self.users.fetch_sub(1, Ordering::AcqRel);
    }

    /// Closes what is open, unless a pipeline uses it. Waits until the deadline for those who hold it.
    pub(crate) async fn close_unused(&self, deadline: Instant) {
        let unused = || self.users.load(Ordering::Acquire) == 0;
        tokio::join!(
            self.publishing.close_if(unused, deadline),
            self.consuming.close_if(unused, deadline)
        );
    }
}

impl Link {
    fn new(purpose: &'static str) -> Self {
        Self { purpose, slot: tokio::sync::Mutex::default(), attempts: AtomicU64::new(0) }
    }

    /// The open connection, else a new one. Of those who wait at the same time one tries, and all
    /// get its answer; an attempt that was begun before they asked says nothing of the broker now.
    async fn get(&self, config: &ConnectionConfig) -> Result<Live> {
        let begun = self.attempts.load(Ordering::Acquire);
        let mut slot = self.slot.lock().await;
        if let Some(open) = slot.open.as_ref().filter(|open| open.is_usable()) {
            let number = self.attempts.load(Ordering::Acquire);
            return Ok(Live { open: Arc::clone(open), number });
        }
        if let Some((_, failure)) = slot.failure.as_ref().filter(|(number, _)| *number > begun) {
            return Err(failure.clone().into());
        }
        if let Some(open) = mem::take(&mut *slot).open {
            open.give_up();
        }
        let number = self.attempts.fetch_add(1, Ordering::AcqRel) + 1;
        let attempt = timeout(config.connect_timeout, self.connect(config)).await;
        match attempt.unwrap_or(Err(Failure::Timeout)) {
            Ok((connection, socket)) => {
                let worn_out = AtomicBool::new(false);
                let open = Arc::new(Open { connection, socket, worn_out });
                slot.open = Some(Arc::clone(&open));
                Ok(Live { open, number })
            }
            Err(failure) => {
                slot.failure = Some((number, failure.clone()));
                Err(failure.into())
            }
        }
    }

    /// The client is given a stream that is open: of each attempt of its own that fails before
    /// that, it leaves tasks behind.
    async fn connect(&self, config: &ConnectionConfig) -> Result<(Connection, Socket), Failure> {
        let tls = read_tls(config.tls.clone()).await?;
        let name = format!("jobs {}", self.purpose);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = lapin::runtime::default_runtime()?;
        let (host, port) = (config.uri.authority.host.clone(), config.uri.authority.port);
        let addresses = runtime.to_socket_addrs((host.clone(), port));
        let mut stream = AsyncTcpStream::connect(&runtime, addresses).await?;
        let socket = match &stream {
            AsyncTcpStream::Plain(stream) => {
                Socket(socket2::SockRef::from(stream.get_ref()).try_clone()?)
            }
            _ => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        };
        if config.uri.scheme == AMQPScheme::AMQPS {
            stream = stream.into_tls(&host, tls.as_ref()).await?;
        }
        let stream = Mutex::new(Some(stream));
        let give = async move |_, _| {
            let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
            stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected).into())
        };
        let uri = config.uri.clone();
        Ok((Connection::connector(uri, runtime, give, properties).await?, socket))
    }

    /// # Cancel safety
    /// What was open is closed, but without a goodbye.
    async fn close_if(&self, unused: impl Fn() -> bool, deadline: Instant) {
        let Ok(mut slot) = timeout_at(deadline, self.slot.lock()).await else { return };
        // Whoever begins to use it waits for this slot.
        let Some(open) = slot.open.take_if(|_| unused()) else { return };
        drop(slot);
        if !open.connection.status().connected() {
            return;
        }
        let goodbye = open.connection.close(200, "stopped".into());
        match timeout(CLOSE_TIMEOUT, goodbye).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "closing a connection"),
            Err(_) => tracing::warn!(purpose = self.purpose, "the broker did not say goodbye"),
        }
    }
}

impl Open {
    fn is_usable(&self) -> bool {
        self.connection.status().connected() && !self.worn_out.load(Ordering::Acquire)
    }

    /// Hangs up, unless there may be channels that still work.
    fn give_up(&self) {
        if !self.connection.status().connected() {
            self.socket.hang_up();
        }
    }
}

impl Live {
    pub(crate) fn connection(&self) -> &Connection {
        &self.open.connection
    }

    fn is_worn_out(&self) -> bool {
        self.open.worn_out.load(Ordering::Acquire)
    }

    /// Opens a channel.
    ///
    /// The client never forgets that the broker closed a channel: once it has used up all numbers and
    /// begins again, it refuses those. Then the next channel is opened on another connection.
    pub(crate) async fn channel(
        &self,
        operation: &'static str,
        limit: Duration,
    ) -> Result<Channel> {
        // The client leaves those without an answer who ask when the connection is just being lost.
        let lost = async {
            while self.connection().status().connected() {
                sleep(LOST_POLL).await;
            }
            io::Error::from(io::ErrorKind::ConnectionAborted).into()
        };
        let opened = async {
            tokio::select! {
                biased;
                opened = self.connection().create_channel() => opened,
                error = lost => Err(error),
            }
        };
        match timeout(limit, opened).await {
            Ok(Err(error))
                if self.connection().status().connected() && closed_one_before(&error) =>
            {
                self.open.worn_out.store(true, Ordering::Release);
                tracing::debug!(%error, "the connection has worn out");
                let error = Error::new(ErrorKind::Connection, operation).with_driver(NAME);
                Err(error.with_context("the connection has no more channels").transient())
            }
            Ok(answer) => answer.map_err(|error| mapped(operation, &error)),
            Err(_) => Err(timed_out(operation)),
        }
    }
}

/// Closes a channel. One that is only dropped is closed by the client in a task, which may never end if
/// the connection is closed meanwhile.
pub(crate) async fn close(channel: Channel) {
    if channel.status().connected() {
        // A broker that does not answer notices when the connection ends.
        let _ = timeout(CLOSE_TIMEOUT, channel.close(200, "done".into())).await;
    }
}

/// Bounds a call of the client and maps its error.
pub(crate) async fn within<T>(
    limit: Duration,
    operation: &'static str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(|error| mapped(operation, &error)),
        Err(_) => Err(timed_out(operation)),
    }
}

async fn read_tls(config: Option<TlsConfig>) -> Result<OwnedTLSConfig, Failure> {
    let Some(config) = config else { return Ok(OwnedTLSConfig::default()) };
    let read = tokio::task::spawn_blocking(move || {
        let file = |path: &std::path::Path| {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        let cert_chain = config.root_ca.as_deref().map(file).transpose()?;
        let cert_chain = cert_chain.map(String::from_utf8).transpose();
        let identity = match &config.identity {
            None => None,
            Some((pem, key)) => Some(OwnedIdentity::PKCS8 { pem: file(pem)?, key: file(key)? }),
        };
        let cert_chain = cert_chain.map_err(|error| format!("`root_ca` is not PEM: {error}"))?;
        Ok(OwnedTLSConfig { identity, cert_chain })
    });
    read.await.unwrap_or_else(|error| Err(error.to_string())).map_err(Failure::Tls)
}

impl From<lapin::Error> for Failure {
    fn from(error: lapin::Error) -> Self {
        Self::Client(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Client(error.into())
    }
}

impl Socket {
    fn hang_up(&self) {
        // If that fails the peer has hung up already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.hang_up();
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Client(error) => mapped("connect", &error),
            Failure::Timeout => timed_out("connect"),
            Failure::Tls(context) => {
                Self::new(ErrorKind::Config, "connect").with_driver(NAME).with_context(context)
            }
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("purpose", &self.purpose).finish_non_exhaustive()
    }
}
