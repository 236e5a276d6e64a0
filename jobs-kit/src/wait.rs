//! Waiting with a deadline, and futures that are dropped half way.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// Something that had to happen did not, or the reverse.
#[derive(Debug)]
pub struct Unexpected(String);

impl Unexpected {
    /// Says what was expected, and what happened.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unexpected {}

/// Awaits `future`, at most for `deadline`.
pub(crate) async fn within<T>(
    deadline: Duration,
    what: &str,
    future: impl Future<Output = T>,
) -> Result<T, Unexpected> {
    let late = || Unexpected(format!("{what}: nothing happened within {deadline:?}"));
    timeout(deadline, future).await.map_err(|_| late())
}

/// Asks again and again until the answer is `Ok`, at most for `deadline`; then fails with the last.
pub(crate) async fn eventually<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, Unexpected> {
    let end = Instant::now() + deadline;
    loop {
        let last = match condition().await {
            Ok(answer) => return Ok(answer),
            Err(last) => last,
        };
        if Instant::now() >= end {
            return Err(Unexpected(format!("{what}: not within {deadline:?}, found {last}")));
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Polls `future` at most `polls` times, each time it asks for it, and drops it; `None` unless it
/// was ready before.
///
/// Zero polls drop a future that never ran. A future that has not asked to be polled for `patience`
/// is dropped where it stands.
pub async fn poll_times<F: Future>(
    future: F,
    polls: usize,
    patience: Duration,
) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    let limited = poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    timeout(patience, limited).await.unwrap_or(None)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn polls_as_often_as_told() {
        let reached = Cell::new(0);
        let steps = || async {
            for step in 1..=3 {
                reached.set(step);
                tokio::task::yield_now().await;
            }
        };
        for polls in 0..=3 {
            reached.set(0);
            assert_eq!(poll_times(steps(), polls, PATIENCE).await, None);
            assert_eq!(reached.get(), polls);
        }
        assert_eq!(poll_times(steps(), 4, PATIENCE).await, Some(()));
    }

    #[tokio::test]
    async fn gives_up_on_a_future_that_is_never_woken() {
        let stuck = std::future::pending::<()>();
        assert_eq!(poll_times(stuck, 2, Duration::from_millis(1)).await, None);
    }

    #[tokio::test]
    async fn tells_the_last_answer() {
        let never = eventually(Duration::ZERO, "a thing", async || Err::<(), _>("nothing".into()));
        let error = never.await.expect_err("never");
        assert_eq!(error.to_string(), "a thing: not within 0ns, found nothing");
    }
}
