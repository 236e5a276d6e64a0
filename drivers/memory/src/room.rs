//! Places for jobs in a queue of bounded size, given out in turn.

use tokio::sync::Semaphore;

/// The count of free places. It lives under the queue's lock, so that a push that finds room needs
/// no other.
#[derive(Debug)]
pub(crate) struct Room {
    /// Not zero only if nobody waits.
    free: usize,
    /// Places that those who wait still lack.
    wanted: usize,
}

/// Where pushes wait for places, in turn. It holds the places given to those who wait.
#[derive(Debug)]
pub(crate) struct Waiting(Semaphore);

impl Room {
    pub(crate) fn new(places: usize) -> Self {
        Self { free: places, wanted: 0 }
    }

    /// Takes places, unless there are too few or others were first.
    pub(crate) fn try_take(&mut self, places: usize) -> bool {
        let enough = self.free >= places && self.wanted == 0;
        if enough {
            self.free -= places;
        }
        enough
    }

    /// Asks for places, to be awaited with [`Waiting::wait`].
    pub(crate) fn ask(&mut self, places: usize, waiting: &Waiting) {
        let now = self.free.min(places);
        self.free -= now;
        self.wanted += places - now;
        waiting.0.add_permits(now);
    }

    /// Gives a place back, or to whoever waits.
    pub(crate) fn leave(&mut self, waiting: &Waiting) {
        if self.wanted == 0 {
            self.free += 1;
        } else {
            self.wanted -= 1;
            waiting.0.add_permits(1);
        }
    }

    /// Withdraws what was asked for; the wait for it was dropped before.
    pub(crate) fn give_up(&mut self, places: usize, waiting: &Waiting) {
        let given = places.saturating_sub(self.wanted);
        self.wanted -= places - given;
        // All others have what they want: what is left belongs to nobody.
        let given = u32::try_from(given).expect("no more than was asked for");
        if let Ok(permit) = waiting.0.try_acquire_many(given) {
            permit.forget();
            self.free += given as usize;
        }
    }
}

impl Waiting {
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(0))
    }

    /// Waits for places that were asked for. If this is dropped, give up.
    pub(crate) async fn wait(&self, places: u32) {
        self.0.acquire_many(places).await.expect("never closed").forget();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll(wait: std::pin::Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
        wait.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn who_came_first_is_served_first_also_if_it_wants_more() {
        let (mut room, waiting) = (Room::new(2), Waiting::new());
        assert!(!room.try_take(3));
        room.ask(3, &waiting);
        let mut first = pin!(waiting.wait(3));
        assert!(poll(first.as_mut()).is_pending());
        assert!(!room.try_take(1), "others were first");
        room.leave(&waiting);
        assert!(poll(first).is_ready());
        assert!(!room.try_take(1));
        room.leave(&waiting);
        assert!(room.try_take(1));
    }

    #[test]
    fn places_of_one_that_gives_up_go_to_the_next_or_become_free() {
        let (mut room, waiting) = (Room::new(2), Waiting::new());
        room.ask(3, &waiting);
        room.ask(1, &waiting);
        let mut second = {
            let mut first = Box::pin(waiting.wait(3));
            assert!(poll(first.as_mut()).is_pending());
            let mut second = Box::pin(waiting.wait(1));
            assert!(poll(second.as_mut()).is_pending());
            second
        };
        room.give_up(3, &waiting);
        assert!(poll(second.as_mut()).is_ready());
        assert!(room.try_take(1), "one of the two places is left");
        assert!(!room.try_take(1));
    }
}
