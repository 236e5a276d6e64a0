//! What went wrong last.

use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;

/// The failures of one pipeline that its driver met and went on from, for
/// [`State::last_error`](crate::State::last_error).
#[derive(Debug)]
pub struct Health {
    pipeline: Arc<str>,
    last_error: Mutex<Option<String>>,
}

impl Health {
    /// Of a pipeline that nothing happened to yet.
    #[must_use]
    pub fn new(pipeline: impl Into<Arc<str>>) -> Self {
        Self { pipeline: pipeline.into(), last_error: Mutex::default() }
    }

    /// The pipeline.
    #[must_use]
    pub fn pipeline(&self) -> &Arc<str> {
        &self.pipeline
    }

    /// Something failed, and will be tried again or comes back. It is logged as a warning.
    pub fn met(&self, error: &Error) {
        let text = error.with_sources();
        tracing::warn!(job.pipeline = %self.pipeline, error = text, "met a failure");
        self.note(text);
    }

    /// As [`met`](Self::met), in words, of what is logged elsewhere.
    pub fn note(&self, trouble: impl Into<String>) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble.into());
    }

    /// The last of them.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn the_last_failure_is_told_with_its_sources_once_each() {
        let health = Health::new("mail");
        assert_eq!(health.last_error(), None);
        let source = Error::new(ErrorKind::Timeout, "connect");
        let error = Error::new(ErrorKind::Connection, "push").with_source(source);
        health.met(&error);
        assert_eq!(
            health.last_error().as_deref(),
            Some("push: connection failed: connect: timed out")
        );
        health.met(&error.with_context("connect: timed out"));
        let told = health.last_error().unwrap_or_default();
        assert_eq!(told.matches("connect: timed out").count(), 1, "{told}");
        health.note("silence");
        assert_eq!(health.last_error().as_deref(), Some("silence"));
    }
}
