//! One connection through the proxy.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::sleep;

use super::split::Splitter;
use super::trap::Caught;
use super::{Direction, End, Shared, drop_with};

/// Bytes that wait in the proxy at most, per direction.
const WINDOW: usize = 64 << 10;

/// Why forwarding ended before both sides had said all they had to say.
enum Broken {
    Caught(Caught),
    Lost,
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Lost
    }
}

/// Forwards until both sides are done, or the connection is to end.
pub(super) async fn serve(
    shared: Arc<Shared>,
    mut client: TcpStream,
    mut orders: watch::Receiver<Option<End>>,
) {
    let Ok(mut server) = TcpStream::connect(shared.target).await else {
        return drop_with(client, End::Reset);
    };
    let broken = tokio::select! {
        end = ordered(&mut orders) => Err((end, None)),
        done = forward(&shared, &mut client, &mut server) => done.map_err(|broken| match broken {
            Broken::Caught(Caught { end, sprung }) => (end, Some(sprung)),
            Broken::Lost => (End::Reset, None),
        }),
    };
    let (end, sprung) = broken.err().unwrap_or((End::Close, None));
    drop_with(client, end);
    drop_with(server, end);
    if let Some(sprung) = sprung {
        // Whoever set the trap may have dropped it just now.
        let _ = sprung.send(());
    }
}

async fn ordered(orders: &mut watch::Receiver<Option<End>>) -> End {
    match orders.wait_for(Option::is_some).await.ok().and_then(|order| *order) {
        Some(end) => end,
        // The proxy is gone, and so will be its tasks.
        None => std::future::pending().await,
    }
}

async fn forward(
    shared: &Shared,
    client: &mut TcpStream,
    server: &mut TcpStream,
) -> Result<(), Broken> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    let to_server = Pump::new(shared, Direction::ToServer).run(client_read, server_write);
    let to_client = Pump::new(shared, Direction::ToClient).run(server_read, client_write);
    tokio::try_join!(to_server, to_client).map(drop)
}

/// Forwards one direction.
struct Pump<'a> {
    shared: &'a Shared,
    direction: Direction,
    splitter: Splitter,
}

impl<'a> Pump<'a> {
    fn new(shared: &'a Shared, direction: Direction) -> Self {
        Self { shared, direction, splitter: Splitter::new(shared.length) }
    }

    async fn run(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> Result<(), Broken> {
        let mut window = vec![0; WINDOW];
        let mut filled = 0;
        loop {
            let read = from.read(&mut window[filled..]).await?;
            self.pace().await;
            if read == 0 {
                // The last frame may be incomplete: it goes as it came.
                to.write_all(&window[..filled]).await?;
                to.shutdown().await?;
                return Ok(());
            }
            filled += read;
            let (passed, caught) = self.pass(&window[..filled]);
            to.write_all(&window[..passed]).await?;
            if let Some(caught) = caught {
                return Err(Broken::Caught(caught));
            }
            window.copy_within(passed..filled, 0);
            filled -= passed;
            self.pay(passed).await;
        }
    }

    /// How many bytes may be forwarded, and whether the connection is caught then.
    fn pass(&mut self, bytes: &[u8]) -> (usize, Option<Caught>) {
        let mut caught = None;
        let passed = self.splitter.pass(bytes, bytes.len() == WINDOW, |frame| {
            caught = self.shared.traps.inspect(self.direction, frame);
            caught.is_none()
        });
        let (counted, spent) = self.shared.traps.count(self.direction, passed.bytes);
        (counted, spent.or(caught))
    }

    /// Waits as long as nothing is to be forwarded, and for the latency.
    async fn pace(&self) {
        let mut pace = self.shared.pace.subscribe();
        let flows = pace.wait_for(|pace| !pace.held[self.direction as usize]).await;
        // The proxy is gone with its tasks when this fails.
        let Ok(flowing) = flows.map(|pace| *pace) else {
            return;
        };
        if !flowing.latency.is_zero() {
            sleep(flowing.latency).await;
        }
    }

    /// Waits as long as so many bytes take.
    async fn pay(&self, bytes: usize) {
        let pace = *self.shared.pace.borrow();
        if let Some(rate) = pace.bytes_per_second {
            sleep(Duration::from_secs_f64(bytes as f64 / f64::from(rate.get()))).await;
        }
    }
}
