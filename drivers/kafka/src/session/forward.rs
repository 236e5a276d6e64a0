//! Records that waited for their time, on their way to where they belong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Session, TURN, Waiting};
use crate::codec;
use crate::delays::{self, Turn};
use crate::hub::lock;

/// Records of a delay partition that are on their way at once.
const MOVES: usize = 1_000;

impl Session {
    /// Moves records of a delay partition on whose time there is over. True if it did.
    pub(super) fn move_on(&mut self, index: usize) -> bool {
        for count in 0..TURN {
            let partition = &mut self.partitions[index];
            if partition.seek.is_some() {
                return true;
            }
            let lease = Arc::clone(&partition.lease);
            let Some(delay) = &mut partition.delay else { return false };
            let first = delay.first.take().or_else(|| lock(&delay.failed).pop_front());
            let failed = Arc::clone(&delay.failed);
            let Some(waiting) = first else {
                if lease.unsettled() >= MOVES {
                    // The answers to those wake this thread.
                    return count > 0;
                }
                let partition = &self.partitions[index];
                let fetched = match partition.queue.poll(Duration::ZERO) {
                    None => return count > 0,
                    Some(Err(found)) => {
                        let _ = self.trouble(&found);
                        return count > 0;
                    }
                    Some(Ok(message)) => self.read(partition, &message),
                };
                self.take(index, fetched, None);
                continue;
            };
            let now = delays::now();
            let (topic, number) =
                match delays::turn(lease.partition, waiting.stored, waiting.due, now) {
                    Turn::Wait(more) => {
                        self.wake_at(Some(Instant::now() + Duration::from_millis(more)));
                        if let Some(delay) = &mut self.partitions[index].delay {
                            delay.first = Some(waiting);
                        }
                        return count > 0;
                    }
                    Turn::Move(level) => (Arc::clone(&lease.topic), Some(level)),
                    Turn::Due => (waiting.target.topic.as_str().into(), waiting.target.partition),
                };
            let again = waiting.clone();
            let Waiting { offset, due, target, record, .. } = waiting;
            let record = match number {
                Some(_) if topic == lease.topic => codec::delayed(record, &target, due),
                _ => record,
            };
            lease.forward(offset, topic, number, record, move || lock(&failed).push_back(again));
        }
        true
    }
}
