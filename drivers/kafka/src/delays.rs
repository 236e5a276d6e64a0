//! Delayed jobs: a topic beside the pipeline's, whose partitions are waiting rooms.
//!
//! In partition k a record waits 16 ms × 4^k from the time it was stored, so that the first one is
//! always due first and nothing is held up behind it. Then it moves to the partition of what is left of
//! its delay, and at last to the topic it is meant for. The consumers of the pipeline's group do that.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jobs_core::{ErrorKind, Result};
use rdkafka::client::{Client, ClientContext};

use crate::config::KafkaConfig;
use crate::connection::{self, Topic};
use crate::hub::lock;

/// What the names of all delay topics begin with.
pub(crate) const PREFIX: &str = "jobs-delay.";
/// The longest name a topic can have.
const MAX_NAME: usize = 249;
/// How long a record waits in the first partition, in milliseconds.
const SHORTEST: u64 = 16;
/// Partitions of a delay topic: the last one waits for half a year, as often as needed.
pub(crate) const LEVELS: i32 = 16;

/// How long a record waits in a partition, in milliseconds.
pub(crate) fn wait(level: i32) -> u64 {
    SHORTEST << (2 * level.clamp(0, LEVELS - 1))
}

/// Where a record waits that has so many milliseconds left: never longer than these, unless there are
/// fewer than anything waits.
pub(crate) fn level(left: u64) -> i32 {
    (0..LEVELS).rev().find(|level| wait(*level) <= left).unwrap_or(0)
}

/// What to do with the first record of a waiting room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Look again in so many milliseconds.
    Wait(u64),
    /// On to another waiting room.
    Move(i32),
    /// It is due.
    Due,
}

/// Judges a record that was stored at `stored` and is due at `due`, both in milliseconds.
pub(crate) fn turn(in_level: i32, stored: u64, due: u64, now: u64) -> Turn {
    let left = due.saturating_sub(now);
    // Stored in the future: the clock was set back, and nobody knows how long it has waited.
    let over = if stored > now { now } else { stored.saturating_add(wait(in_level)) };
    match (left, over.saturating_sub(now)) {
        (0, _) => Turn::Due,
        (left, _) if left < SHORTEST => Turn::Wait(left),
        (left, 0) => Turn::Move(level(left)),
        (left, more) => Turn::Wait(more.min(left)),
    }
}

pub(crate) fn now() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Whole milliseconds, rounded up.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// The delay topic of a group and topic. `None` if its name would be too long.
pub(crate) fn topic(group: &str, topic: &str) -> Option<String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let name = match group.chars().all(legal) {
        true => format!("{PREFIX}{group}.{topic}"),
        // A group may be called anything, and two names must not become one.
        false => {
            let spelled: String = group.bytes().map(|byte| format!("{byte:02x}")).collect();
            format!("{PREFIX}.{spelled}.{topic}")
        }
    };
    (name.len() <= MAX_NAME).then_some(name)
}

/// The delay topic of one pipeline.
#[derive(Debug)]
pub(crate) struct Delays {
    pub(crate) topic: String,
    exists: AtomicBool,
    making: Mutex<()>,
}

impl Delays {
    pub(crate) fn new(topic: String) -> Self {
        Self { topic, exists: AtomicBool::new(false), making: Mutex::new(()) }
    }

    /// True if it is known to exist.
    pub(crate) fn exist(&self) -> bool {
        self.exists.load(Ordering::Acquire)
    }

    fn found(&self) {
        self.exists.store(true, Ordering::Release);
    }

    /// It is not known to exist any more.
    pub(crate) fn forget(&self) {
        self.exists.store(false, Ordering::Release);
    }

    /// Makes the topic unless it exists, and sees to it that the producer knows it, which else takes it for
    /// missing. True if it was not known before. Blocks.
    pub(crate) fn ensure<C: ClientContext>(
        &self,
        producer: &Client<C>,
        config: &KafkaConfig,
        deadline: Instant,
    ) -> Result<bool> {
        let _making = lock(&self.making);
        if self.exist() {
            return Ok(false);
        }
        connection::create_topic(config, &self.topic(config), deadline)?;
        connection::learn_of(producer, &self.topic, deadline)?;
        self.found();
        Ok(true)
    }

    /// Looks whether somebody made the topic. True if so, and it was not known before. Blocks.
    ///
    /// # Errors
    /// `InvalidState` if it is a topic of another kind.
    pub(crate) fn look<C: ClientContext>(
        &self,
        client: &Client<C>,
        config: &KafkaConfig,
        deadline: Instant,
    ) -> Result<bool> {
        if self.exist() {
            return Ok(false);
        }
        match connection::partitions(client, &self.topic, deadline) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
        connection::check_topic(config, &self.topic(config), deadline)?;
        self.found();
        Ok(true)
    }

    fn topic(&self, config: &KafkaConfig) -> Topic<'_> {
        Topic {
            name: &self.topic,
            partitions: LEVELS,
            replication: config.create.as_ref().map_or(-1, |create| create.replication_factor),
            options: &[
                // Delays may be longer than a topic keeps records by default.
                ("retention.ms", "-1"),
                ("retention.bytes", "-1"),
                ("cleanup.policy", "delete"),
                // So that the first of a waiting room is the one whose wait is over first.
                ("message.timestamp.type", "LogAppendTime"),
            ],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_delay_ends_early_and_each_soon(start in 0_u64..1 << 40, delay in 0_u64..1 << 36, late in 0_u64..5) {
            let due = start + delay;
            let (mut now, mut stored, mut room) = (start, start, level(delay));
            let mut moves = 0;
            loop {
                match turn(room, stored, due, now) {
                    Turn::Due => break,
                    Turn::Wait(more) => now += more,
                    Turn::Move(next) => {
                        prop_assert!(wait(next) <= due - now);
                        now += late;
                        (stored, room, moves) = (now, next, moves + 1);
                    }
                }
            }
            prop_assert!(now >= due, "early");
            prop_assert!(now <= due + late, "{} ms late", now - due);
            prop_assert!(moves <= 3 * LEVELS + 12, "{moves} moves");
        }
    }

    #[test]
    fn a_clock_set_back_holds_nothing_up() {
        assert_eq!(turn(0, 1_000_000, 1_000_500, 1_000), Turn::Move(level(999_500)));
    }

    #[test]
    fn names_are_different() {
        let names = [topic("g", "a.b"), topic("g.a", "b"), topic("g/a", "b"), topic("g", "b")];
        assert_eq!(names[0].as_deref(), Some("jobs-delay.g.a.b"));
        for (index, name) in names.iter().enumerate() {
            assert!(name.is_some() && !names[..index].contains(name), "{name:?}");
        }
        assert_eq!(topic(&"g".repeat(240), "topic"), None);
    }
}
