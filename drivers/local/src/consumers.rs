//! Who consumes from the file in this process, and whose turn it is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jobs_core::{Acknowledger, Credit, Inlet};

/// One pipeline that was run.
pub(crate) struct Consumer {
    pub(crate) id: u64,
    pub(crate) queue: i64,
    pub(crate) inlet: Arc<Inlet>,
    pub(crate) acknowledger: Arc<dyn Acknowledger>,
    pub(crate) max_lease: Option<Duration>,
    pub(crate) paused: bool,
}

/// All of this process. Those of one queue take turns.
#[derive(Debug, Default)]
pub(crate) struct Consumers {
    list: Vec<Consumer>,
    turn: usize,
    /// For leases in memory: where to look for ready jobs. All of a queue that stand before are
    /// handed out.
    positions: BTreeMap<i64, (i64, i64)>,
}

/// The right to hand a job to a consumer.
pub(crate) struct Place {
    pub(crate) consumer: u64,
    pub(crate) credit: Credit,
}

impl Consumers {
    pub(crate) fn attach(&mut self, consumer: Consumer) {
        self.list.push(consumer);
    }

    pub(crate) fn detach(&mut self, id: u64) -> Option<Consumer> {
        let index = self.list.iter().position(|consumer| consumer.id == id)?;
        Some(self.list.remove(index))
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Consumer> {
        self.list.iter().find(|consumer| consumer.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Consumer> {
        self.list.iter_mut().find(|consumer| consumer.id == id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Consumer> {
        self.list.iter()
    }

    pub(crate) fn take_all(&mut self) -> Vec<Consumer> {
        std::mem::take(&mut self.list)
    }

    /// The queues that somebody consumes now, each once.
    pub(crate) fn queues(&self) -> Vec<i64> {
        let active = self.list.iter().filter(|consumer| !consumer.paused);
        let mut queues: Vec<_> = active.map(|consumer| consumer.queue).collect();
        queues.sort_unstable();
        queues.dedup();
        queues
    }

    /// Credits for the jobs of a queue, at most so many, from its consumers in turn.
    pub(crate) fn places(&mut self, queue: i64, most: usize) -> Vec<Place> {
        let mut places = Vec::new();
        let mut idle = 0;
        while places.len() < most && idle < self.list.len() {
            self.turn = (self.turn + 1) % self.list.len();
            let consumer = &self.list[self.turn];
            let consumes = consumer.queue == queue && !consumer.paused;
            match consumes.then(|| consumer.inlet.try_credit()).flatten() {
                Some(credit) => {
                    idle = 0;
                    places.push(Place { consumer: consumer.id, credit });
                }
                None => idle += 1,
            }
        }
        places
    }

    /// Where to look for ready jobs of a queue.
    pub(crate) fn position(&self, queue: i64) -> (i64, i64) {
        self.positions.get(&queue).copied().unwrap_or((i64::MIN, i64::MIN))
    }

    /// All up to there are handed out.
    pub(crate) fn pass(&mut self, queue: i64, position: (i64, i64)) {
        self.positions.insert(queue, position);
    }

    /// A job is ready there.
    pub(crate) fn come_back(&mut self, queue: i64, position: (i64, i64)) {
        if let Some(current) = self.positions.get_mut(&queue) {
            *current = position.min(*current);
        }
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("id", &self.id)
            .field("queue", &self.queue)
            .field("inlet", &self.inlet)
            .field("paused", &self.paused)
            .finish_non_exhaustive()
    }
}
