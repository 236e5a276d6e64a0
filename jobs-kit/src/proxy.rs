//! A TCP proxy that breaks connections on demand.

mod connection;
mod split;
mod trap;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jobs_core::{Error, ErrorKind, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::Fault;

pub use split::FrameLength;
pub use trap::Trap;
use trap::Traps;

/// Stands before a broker on this machine, forwards every byte, and breaks connections when it is
/// told to.
///
/// It runs on a thread of its own, so that one proxy serves the cases of a whole program, each of
/// which has its own runtime. At most 64 KiB per connection and direction wait in it.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Direction {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// How a connection ends, for both of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// Closed: what was forwarded arrives.
    Close,
    /// Reset: what was not read yet is thrown away.
    Reset,
}

struct Shared {
    target: SocketAddr,
    length: FrameLength,
    pace: watch::Sender<Pace>,
    connections: Mutex<Connections>,
    traps: Traps,
}

#[derive(Default)]
struct Connections {
    refused: bool,
    /// Tells each what to do; has a receiver as long as the connection lives.
    live: Vec<watch::Sender<Option<End>>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// By [`Direction`]: nothing is forwarded.
    held: [bool; 2],
    latency: Duration,
    bytes_per_second: Option<NonZeroU32>,
}

impl Proxy {
    /// A proxy before `target` on a free port of the loopback interface.
    ///
    /// # Errors
    /// If there is no port or no thread to be had.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        Self::start_framed(target, split::chunk)
    }

    /// As [`start`](Self::start), for a protocol whose frames [`trap_frame`](Self::trap_frame) is to
    /// see.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_framed(target: SocketAddr, length: FrameLength) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("proxy")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let shared = Arc::new(Shared {
            target,
            length,
            pace: watch::Sender::default(),
            connections: Mutex::default(),
            traps: Traps::default(),
        });
        runtime.spawn(accept(Arc::clone(&shared), listener));
        Ok(Self { address, shared, runtime: Some(runtime) })
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections go through it now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections().live.iter().filter(|live| !live.is_closed()).count()
    }

    /// Ends all connections, and returns when they are gone. New ones are served, see
    /// [`refuse`](Self::refuse).
    pub async fn break_all(&self, end: End) {
        let ending = std::mem::take(&mut self.shared.connections().live);
        for connection in &ending {
            connection.send_replace(Some(end));
        }
        for connection in &ending {
            connection.closed().await;
        }
    }

    /// Resets every new connection as soon as it is made, until [`restore`](Self::restore).
    pub fn refuse(&self) {
        self.shared.connections().refused = true;
    }

    /// Stops forwarding, in both directions and also on new connections, until
    /// [`restore`](Self::restore). Connections stay open; what is being written still arrives.
    pub fn stall(&self) {
        self.shared.pace.send_modify(|pace| pace.held = [true; 2]);
    }

    /// As [`stall`](Self::stall), but holds only what goes in this direction.
    pub fn hold(&self, direction: Direction) {
        self.shared.pace.send_modify(|pace| pace.held[direction as usize] = true);
    }

    /// Holds up each packet for `latency`, and forwards so many bytes per second at most on each
    /// connection and direction, until [`restore`](Self::restore).
    pub fn slow(&self, latency: Duration, bytes_per_second: Option<NonZeroU32>) {
        self.shared.pace.send_modify(|pace| {
            pace.latency = latency;
            pace.bytes_per_second = bytes_per_second;
        });
    }

    /// Serves new connections and forwards everything at once, as at the start. Traps stay.
    pub fn restore(&self) {
        self.shared.connections().refused = false;
        self.shared.pace.send_replace(Pace::default());
    }

    /// Ends the connection on which the next frame for which `chosen` is true comes along, instead
    /// of forwarding that frame. Frames before it are forwarded.
    ///
    /// `chosen` sees the frame from its beginning, at most 64 KiB of it.
    #[must_use = "a trap that is dropped catches nothing"]
    pub fn trap_frame(
        &self,
        direction: Direction,
        end: End,
        chosen: impl FnMut(&[u8]) -> bool + Send + 'static,
    ) -> Trap {
        self.shared.traps.frame(direction, end, Box::new(chosen))
    }

    /// Ends the connection on which the byte after the next `count` comes along, instead of
    /// forwarding that byte.
    #[must_use = "a trap that is dropped catches nothing"]
    pub fn trap_byte(&self, direction: Direction, end: End, count: usize) -> Trap {
        self.shared.traps.byte(direction, end, count)
    }

    /// Begins a fault, for [`Harness::begin`](crate::Harness::begin).
    ///
    /// # Errors
    /// `Unsupported` for [`Fault::Kill`] and [`Fault::Rebalance`]: the broker is somebody else's.
    pub async fn begin(&self, fault: Fault) -> Result<()> {
        let end = match fault {
            Fault::Cut => End::Close,
            Fault::Reset => End::Reset,
            Fault::Stall => {
                self.stall();
                return Ok(());
            }
            Fault::Kill | Fault::Rebalance => {
                return Err(Error::new(ErrorKind::Unsupported, "begin"));
            }
        };
        self.refuse();
        self.break_all(end).await;
        Ok(())
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a new connection, unless these are refused.
    fn enter(&self) -> Option<watch::Receiver<Option<End>>> {
        let mut connections = self.connections();
        if connections.refused {
            return None;
        }
        let (orders, receiver) = watch::channel(None);
        connections.live.retain(|live| !live.is_closed());
        connections.live.push(orders);
        Some(receiver)
    }
}

async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Too many open files, most likely: some will be closed.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        match shared.enter() {
            Some(orders) => {
                tokio::spawn(connection::serve(Arc::clone(&shared), client, orders));
            }
            None => drop_with(client, End::Reset),
        }
    }
}

fn drop_with(stream: TcpStream, end: End) {
    if end == End::Reset {
        // If that fails the connection is gone already.
        let _ = stream.set_zero_linger();
    }
    drop(stream);
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("address", &self.address)
            .field("target", &self.shared.target)
            .finish_non_exhaustive()
    }
}
