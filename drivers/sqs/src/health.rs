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

    /// Something failed, and will be tried again or comes back.
    pub(crate) fn met(&self, error: &Error) {
        let text = describe(error);
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

/// An error with what caused it, for a text that no reporter walks.
pub(crate) fn describe(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
