//! Questions and declarations, on a channel apart from the busy ones: a question about something that
//! does not exist closes its channel.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jobs_core::{ErrorKind, Result};
use lapin::Channel;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::connection::{Connections, close, within};
use crate::delays::{self, Hop, LEVELS, Level};
use crate::error::closed;
use crate::topology::{self, Destination, Side, Topology};

/// How often to look for levels that another process may have made. Each that does not exist costs a
/// channel, of which a connection has a limited number.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// How long the binding of the due exchange is trusted: it is gone with the queue, and is not there again
/// when somebody else declares that anew.
const BIND_AGAIN: Duration = Duration::from_secs(2);

/// Knows what is at the broker. Opens its channel when it is asked something.
pub(crate) struct Inspector {
    connections: Arc<Connections>,
    topology: Arc<Topology>,
    side: Side,
    slot: Mutex<Slot>,
    /// Held by whoever declares levels.
    declaring: Mutex<()>,
    /// What was declared may be missing.
    distrusted: AtomicBool,
    closing: CancellationToken,
}

#[derive(Default)]
struct Slot {
    channel: Option<Channel>,
    /// Something was asked on the channel and is not answered. If nobody waits any more, the answer is
    /// still to come: "not found" would close the channel under the next question.
    asking: bool,
    /// The connection of the channel, and the hops that were declared on it.
    connection: u64,
    declared: HashSet<Hop>,
    /// When the due exchange was bound for messages with these destinations.
    bound: HashMap<Destination, Instant>,
    /// Levels that exist, as far as is known.
    levels: BTreeSet<Level>,
    /// Those still to be looked for, and when that began.
    unseen: BTreeSet<Level>,
    looked: Option<Instant>,
}

impl Inspector {
    /// `side` is the connection to ask on: only that of an exclusive queue may ask about it.
    pub(crate) fn new(connections: Arc<Connections>, topology: Arc<Topology>, side: Side) -> Self {
        Self {
            connections,
            topology,
            side,
            slot: Mutex::default(),
            declaring: Mutex::default(),
            distrusted: AtomicBool::new(false),
            closing: CancellationToken::new(),
        }
    }

    /// Declares what the pipeline needs before anything else happens.
    pub(crate) async fn declare(&self) -> Result<()> {
        let (mut slot, channel) = self.open().await?;
        self.ask(&mut slot, "connect", self.topology.declare(&channel, self.side)).await
    }

    /// Messages that are ready in a queue.
    pub(crate) async fn ready(&self, queue: &str) -> Result<u64> {
        let (mut slot, channel) = self.open().await?;
        self.ask(&mut slot, "state", topology::ready(&channel, queue)).await
    }

    /// Makes sure that a delayed message finds where it goes, declares the levels of its way, and
    /// returns the headers that make it take this way.
    pub(crate) async fn declare_delay(
        &self,
        delay: Duration,
        to: Destination,
    ) -> Result<Vec<(String, String)>> {
        let (mut slot, channel) = self.open().await?;
        if self.distrusted.swap(false, Ordering::AcqRel) {
            slot.declared.clear();
            slot.bound.clear();
        }
        match slot.bound.get(&to).filter(|bound| bound.elapsed() < BIND_AGAIN) {
            Some(_) => {
                let found = self.topology.check_target(&channel);
                let found = self.ask(&mut slot, "push", found).await;
                found.inspect_err(|_| slot.bound.clear())?;
            }
            None => {
                self.renew_due(to).await?;
                slot.bound.insert(to, Instant::now());
            }
        }
        let hops = delays::hops(delay);
        let known = hops.iter().all(|hop| slot.declared.contains(hop));
        drop(slot);
        if !known {
            self.declare_hops(hops).await?;
        }
        Ok(Topology::way(delay, to))
    }

    /// On a channel of its own: the client keeps every binding in memory until the channel ends.
    async fn renew_due(&self, to: Destination) -> Result<()> {
        let (_live, channel) = self.connections.channel(self.side, "push").await?;
        let renewed = self.within("push", self.topology.renew_due(&channel, to)).await;
        close(channel).await;
        renewed
    }

    /// On a channel of its own: a queue without a leader does not answer, and what is asked after it
    /// on the same channel would wait as well.
    async fn declare_hops(&self, mut hops: Vec<Hop>) -> Result<()> {
        let _others = self.declaring.lock().await;
        // The others may have declared them meanwhile.
        let slot = self.slot.lock().await;
        hops.retain(|hop| !slot.declared.contains(hop));
        drop(slot);
        if hops.is_empty() {
            return Ok(());
        }
        let (live, channel) = self.connections.channel(self.side, "push").await?;
        for hop in hops {
            let declared = self.within("push", self.topology.declare_hop(&channel, hop)).await;
            declared.map_err(|error| match (error.kind(), hop.to) {
                (ErrorKind::Timeout, Some(level)) => {
                    let name = self.topology.level(level);
                    error.with_context(format!("the broker does not answer for `{name}`"))
                }
                _ => error,
            })?;
            let mut slot = self.slot.lock().await;
            if slot.connection == live.number {
                slot.declared.insert(hop);
            }
            slot.levels.extend(hop.to);
        }
        close(channel).await;
        Ok(())
    }

    /// Something is missing at the broker: declare everything again before the next delayed message.
    pub(crate) fn distrust(&self) {
        self.distrusted.store(true, Ordering::Release);
    }

    /// The messages that wait in the levels that are known.
    pub(crate) async fn delayed(&self) -> Result<u64> {
        let mut sum = 0;
        for level in self.levels_to_ask().await? {
            let (mut slot, channel) = self.open().await?;
            let name = self.topology.level(level);
            match self.ask(&mut slot, "state", topology::ready(&channel, &name)).await {
                Ok(ready) => {
                    slot.levels.insert(level);
                    sum += ready;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    slot.levels.remove(&level);
                }
                Err(error) => return Err(error),
            }
            slot.unseen.remove(&level);
        }
        Ok(sum)
    }

    /// Those that are known and those that were not looked for yet; from time to time all, if there
    /// may be any.
    async fn levels_to_ask(&self) -> Result<BTreeSet<Level>> {
        let (mut slot, channel) = self.open().await?;
        if slot.looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN) {
            match self.ask(&mut slot, "state", self.topology.check_delays(&channel)).await {
                Ok(()) => slot.unseen = (0..LEVELS).collect(),
                Err(error) if error.kind() == ErrorKind::NotFound => slot.unseen.clear(),
                Err(error) => return Err(error),
            }
            slot.looked = Some(Instant::now());
        }
        Ok(&slot.levels | &slot.unseen)
    }

    /// Deletes the queue if the configuration says so and it is empty.
    pub(crate) async fn delete_on_stop(&self, deadline: Instant) {
        if !self.topology.deletes_on_stop() {
            return;
        }
        let deleted = timeout_at(deadline, async {
            let (mut slot, channel) = self.open().await?;
            self.ask(&mut slot, "stop", self.topology.delete_queue(&channel)).await
        });
        match deleted.await {
            Ok(Ok(())) => {}
            // It has jobs: that is why deleting it was refused.
            Ok(Err(error)) if error.kind() == ErrorKind::InvalidState => {}
            // Stopped before.
            Ok(Err(error)) if error.kind() == ErrorKind::Closed => {}
            Ok(Err(error)) => tracing::warn!(%error, "the queue was not deleted"),
            Err(_) => tracing::warn!("the queue was not deleted in time"),
        }
    }

    /// Asks nothing any more, and closes the channel. What still waits for answers is given up.
    pub(crate) async fn close(&self, deadline: Instant) {
        self.closing.cancel();
        let closed = timeout_at(deadline, async {
            let channel = self.slot.lock().await.channel.take();
            if let Some(channel) = channel {
                close(channel).await;
            }
        });
        // A broker that does not answer notices when the connection ends.
        let _ = closed.await;
    }

    /// Works on something for which the broker is asked, until this is closed.
    pub(crate) async fn until_closed<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.closing.run_until_cancelled(work).await.unwrap_or_else(|| Err(closed(operation)))
    }

    /// The channel, for one caller at a time.
    async fn open(&self) -> Result<(MutexGuard<'_, Slot>, Channel)> {
        let mut slot = self.slot.lock().await;
        if self.closing.is_cancelled() {
            return Err(closed("stop"));
        }
        let usable = |channel: &&Channel| !slot.asking && channel.status().connected();
        if let Some(channel) = slot.channel.as_ref().filter(usable).cloned() {
            return Ok((slot, channel));
        }
        let (live, channel) = self.connections.channel(self.side, "connect").await?;
        if slot.connection != live.number {
            slot.connection = live.number;
            slot.declared.clear();
            slot.bound.clear();
        }
        slot.channel = Some(channel.clone());
        slot.asking = false;
        Ok((slot, channel))
    }

    /// Asks on the channel of the slot.
    async fn ask<T>(
        &self,
        slot: &mut Slot,
        operation: &'static str,
        question: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        slot.asking = true;
        let answer = self.within(operation, question).await;
        slot.asking = answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Timeout);
        answer
    }

    async fn within<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        within(self.connections.timeout(), operation, call).await
    }
}

impl std::fmt::Debug for Inspector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inspector").field("side", &self.side).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use jobs_core::{Options, Pipeline};

    use super::*;
    use crate::config::AmqpConfig;
    use crate::connection::Directory;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test(flavor = "multi_thread")]
    async fn closing_ends_questions_and_nothing_connects_after_it() {
        // Accepts connections, and says nothing.
        let broker = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = format!("amqp://{}/", broker.local_addr().expect("it is bound"));
        let pipeline = Pipeline::new("p", "amqp").with_option("queue", "q");
        let pipeline = pipeline.with_option("addr", address);
        let config = AmqpConfig::read(&Options::new("amqp"), &pipeline).expect("valid");
        let topology = Arc::new(Topology::new(&config));
        let connections = Directory::default().join(&config.connection);
        let inspector = Inspector::new(Arc::clone(&connections), topology, Side::Publishing);

        let deadline = Instant::now() + PATIENCE;
        let accepting = tokio::task::spawn_blocking(move || (broker.accept(), broker));
        let asking = inspector.until_closed("state", inspector.ready("q"));
        let closing = async {
            let (accepted, broker) = accepting.await.expect("no panic");
            inspector.close(deadline).await;
            (accepted.expect("a connection").0, broker)
        };
        let both = timeout_at(deadline, async { tokio::join!(asking, closing) }).await;
        let (answer, (mut stream, broker)) = both.expect("in time");
        assert_eq!(answer.expect_err("no answer came").kind(), ErrorKind::Closed);
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.read_to_end(&mut Vec::new()).expect("the attempt was given up");

        let again = inspector.ready("q").await.expect_err("it is closed");
        assert_eq!(again.kind(), ErrorKind::Closed);
        connections.leave();
        connections.close_unused(deadline).await;
        broker.set_nonblocking(true).expect("supported");
        assert!(broker.accept().is_err(), "it has connected again");
    }
}
