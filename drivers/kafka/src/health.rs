//! What went wrong last.

use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};

use jobs_core::Error;

/// The troubles of one pipeline.
#[derive(Debug)]
pub(crate) struct Health {
    pub(crate) pipeline: Arc<str>,
    last_error: Mutex<Option<String>>,
}

impl Health {
    pub(crate) fn new(pipeline: Arc<str>) -> Self {
        Self { pipeline, last_error: Mutex::default() }
    }

    /// Something failed, and will be tried again.
    pub(crate) fn met(&self, error: &Error) {
        let text = match error.source() {
            // The client's own words are in the context of some.
            Some(source) if !error.to_string().contains(&source.to_string()) => {
                format!("{error}: {source}")
            }
            _ => error.to_string(),
        };
        tracing::warn!(job.pipeline = %self.pipeline, error = text, "met a failure");
        self.note(text);
    }

    pub(crate) fn note(&self, trouble: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
