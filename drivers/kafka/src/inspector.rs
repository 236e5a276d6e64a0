//! Figures for `State`, asked of the broker.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use jobs_core::{ErrorKind, Result};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};

use crate::connection::{self, Events, left};
use crate::error;
use crate::hub::{Hub, lock};
use crate::lease::Lease;
use crate::offsets::Above;

/// Jobs that are stored and not yet fetched.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// None for topics that are a pattern.
    pub(crate) reserved: Option<u64>,
    pub(crate) delayed: Option<u64>,
}

/// A client that reads the group's offsets and joins no group. Made when it is first used.
#[derive(Default)]
pub(crate) struct Inspector(Mutex<Option<Arc<BaseConsumer<Events>>>>);

impl Inspector {
    fn client(&self, hub: &Hub) -> Result<Arc<BaseConsumer<Events>>> {
        let mut place = lock(&self.0);
        if let Some(client) = &*place {
            return Ok(Arc::clone(client));
        }
        let mut config = hub.config.consumer();
        config.remove("group.instance.id");
        let client = BaseConsumer::from_config_and_context(&config, Events::new(&hub.health));
        let client = Arc::new(client.map_err(|found| error::failed("state", &found))?);
        *place = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Ends it. Blocks.
    pub(crate) fn close(&self) {
        let client = lock(&self.0).take();
        drop(client);
    }

    /// Asks. Blocks, about until the deadline at most.
    pub(crate) fn figures(
        &self,
        hub: &Hub,
        leases: &[Arc<Lease>],
        deadline: Instant,
    ) -> Result<Figures> {
        let figures = self.ask(hub, leases, deadline);
        if figures.is_err() {
            // A client may not recover from a broker that was silent (librdkafka's issue 5301): the next
            // question has another.
            self.close();
        }
        figures
    }

    fn ask(&self, hub: &Hub, leases: &[Arc<Lease>], deadline: Instant) -> Result<Figures> {
        let client = self.client(hub)?;
        let count =
            |topic: &str, only: Option<&[i32]>| count(&client, topic, only, leases, deadline);
        let mut figures = Figures::default();
        if hub.config.consumes() && !hub.config.topics.iter().any(|topic| topic.starts_with('^')) {
            let mut reserved = 0;
            for topic in &hub.config.topics {
                reserved += count(topic, None)?;
            }
            for (topic, partitions) in &hub.config.partitions {
                let only: Vec<_> = partitions.keys().copied().collect();
                reserved += count(topic, Some(&only))?;
            }
            figures.reserved = Some(reserved);
        }
        if let Some(delays) = &hub.delays {
            figures.delayed = match count(&delays.topic, None) {
                Err(error) if error.kind() == ErrorKind::NotFound => Some(0),
                counted => Some(counted?),
            };
        }
        Ok(figures)
    }
}

/// Records of a topic that the group has not fetched.
fn count(
    client: &BaseConsumer<Events>,
    topic: &str,
    only: Option<&[i32]>,
    leases: &[Arc<Lease>],
    deadline: Instant,
) -> Result<u64> {
    let all = connection::partitions(client.client(), topic, deadline)?;
    let all: Vec<i32> = (0..all).collect();
    let mut list = TopicPartitionList::new();
    for partition in only.unwrap_or(&all) {
        list.add_partition(topic, *partition);
    }
    let failed = |found| error::failed("state", &found);
    let committed = client.committed_offsets(list, left(deadline)).map_err(failed)?;
    let mut waiting = 0;
    for one in committed.elements() {
        let partition = one.partition();
        let (low, high) =
            client.fetch_watermarks(topic, partition, left(deadline)).map_err(failed)?;
        let lease =
            leases.iter().find(|lease| *lease.topic == *topic && lease.partition == partition);
        let beyond = match (lease.and_then(|lease| lease.position()), one.offset()) {
            (Some((next, parked)), _) => (high - next).max(0) + i64::try_from(parked).unwrap_or(0),
            (None, Offset::Offset(offset)) => {
                let above = Above::read(offset, one.metadata());
                (high - offset.max(low) - above.count()).max(0)
            }
            (None, _) => high - low,
        };
        waiting += beyond.cast_unsigned();
    }
    Ok(waiting)
}

impl std::fmt::Debug for Inspector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inspector").finish_non_exhaustive()
    }
}
