//! How a handler says that its work failed.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

type BoxError = Box<dyn StdError + Send + Sync>;

/// A handler's failure, and what is to become of the job.
///
/// Whatever implements [`std::error::Error`] turns into one with `?`; then the worker's
/// [`Policy`](crate::Policy) for errors decides. Other errors, such as boxed ones and text, are
/// given to [`retry`](Self::retry), [`reject`](Self::reject) and so on. The text of the error and of
/// its sources is logged.
///
/// ```
/// use std::time::Duration;
/// use jobs::{Bytes, Context, HandlerError};
///
/// async fn import(payload: Bytes, _: Context) -> Result<(), HandlerError> {
///     let text = str::from_utf8(&payload).map_err(HandlerError::reject)?; // never again
///     let count: u32 = text.parse()?;                                     // as the policy says
///     if count > 1_000 {
///         return Err(HandlerError::retry_after(Duration::from_secs(60), "too many at once"));
///     }
///     Ok(())
/// }
/// ```
///
/// It is no [`std::error::Error`] itself: that is what lets `?` take every type that is.
pub struct HandlerError {
    pub(super) wish: Wish,
    source: BoxError,
}

/// What the handler asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Whatever the worker does with errors.
    Default,
    Retry,
    RetryAfter(Duration),
    Reject,
    Release,
}

impl HandlerError {
    /// Run again later, with a delay that grows with the attempt, whatever the policy says.
    #[must_use]
    pub fn retry(error: impl Into<BoxError>) -> Self {
        Self { wish: Wish::Retry, source: error.into() }
    }

    /// Run again after `delay`, shortened to the longest delay the pipeline can do.
    #[must_use]
    pub fn retry_after(delay: Duration, error: impl Into<BoxError>) -> Self {
        Self { wish: Wish::RetryAfter(delay), source: error.into() }
    }

    /// Never run again: dead-lettered where that is configured, else discarded.
    #[must_use]
    pub fn reject(error: impl Into<BoxError>) -> Self {
        Self { wish: Wish::Reject, source: error.into() }
    }

    /// The job was not started: goes back at once, and the attempt does not count where the broker
    /// allows.
    #[must_use]
    pub fn release(error: impl Into<BoxError>) -> Self {
        Self { wish: Wish::Release, source: error.into() }
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self { wish: Wish::Default, source: error.into() }
    }
}

/// The error and its sources, joined by `: `.
impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)?;
        let mut source = self.source.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError")
            .field("wish", &self.wish)
            .field("source", &self.source)
            .finish()
    }
}
