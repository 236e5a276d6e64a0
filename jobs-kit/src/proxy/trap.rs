//! Breaking a connection at a chosen frame or byte.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::{Direction, End};

type Chosen = Box<dyn FnMut(&[u8]) -> bool + Send>;

/// Waits for a frame or byte, catches one, and is spent. It is disarmed when it is dropped.
pub struct Trap(oneshot::Receiver<()>);

impl Trap {
    /// Waits until it has caught what it was set for, and the connection is gone.
    ///
    /// # Cancel safety
    /// Not cancel safe: after a drop the trap is disarmed.
    pub async fn sprung(self) {
        // The sender is kept until then, unless the proxy is dropped: then nothing comes.
        if self.0.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl fmt::Debug for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trap")
    }
}

#[derive(Default)]
pub(super) struct Traps(Mutex<Vec<Armed>>);

struct Armed {
    direction: Direction,
    end: End,
    bait: Bait,
    sprung: oneshot::Sender<()>,
}

enum Bait {
    Frame(Chosen),
    /// How many bytes may pass until it springs.
    Byte(usize),
}

/// A connection that was caught: to be ended so, and then to be told.
pub(super) struct Caught {
    pub(super) end: End,
    pub(super) sprung: oneshot::Sender<()>,
}

impl Traps {
    pub(super) fn frame(&self, direction: Direction, end: End, chosen: Chosen) -> Trap {
        self.set(direction, end, Bait::Frame(chosen))
    }

    pub(super) fn byte(&self, direction: Direction, end: End, count: usize) -> Trap {
        self.set(direction, end, Bait::Byte(count))
    }

    fn set(&self, direction: Direction, end: End, bait: Bait) -> Trap {
        let (sprung, trap) = oneshot::channel();
        self.armed().push(Armed { direction, end, bait, sprung });
        Trap(trap)
    }

    fn armed(&self) -> MutexGuard<'_, Vec<Armed>> {
        let mut armed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        armed.retain(|trap| !trap.sprung.is_closed());
        armed
    }

    /// Whether a frame is caught.
    pub(super) fn inspect(&self, direction: Direction, frame: &[u8]) -> Option<Caught> {
        let chosen = |trap: &mut Armed| match &mut trap.bait {
            Bait::Frame(chosen) => trap.direction == direction && chosen(frame),
            Bait::Byte(_) => false,
        };
        take(&mut self.armed(), chosen)
    }

    /// How many of `count` bytes pass, and whether the next is caught.
    pub(super) fn count(&self, direction: Direction, count: usize) -> (usize, Option<Caught>) {
        let mut armed = self.armed();
        let mut passed = count;
        for trap in armed.iter().filter(|trap| trap.direction == direction) {
            if let Bait::Byte(left) = trap.bait {
                passed = passed.min(left);
            }
        }
        for trap in armed.iter_mut().filter(|trap| trap.direction == direction) {
            if let Bait::Byte(left) = &mut trap.bait {
                *left -= passed;
            }
        }
        if passed == count {
            return (passed, None);
        }
        let spent =
            |trap: &mut Armed| trap.direction == direction && matches!(trap.bait, Bait::Byte(0));
        (passed, take(&mut armed, spent))
    }
}

fn take(armed: &mut Vec<Armed>, chosen: impl FnMut(&mut Armed) -> bool) -> Option<Caught> {
    let index = armed.iter_mut().position(chosen)?;
    let Armed { end, sprung, .. } = armed.remove(index);
    Some(Caught { end, sprung })
}
