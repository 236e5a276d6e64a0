//! What is wrong, for those who ask and those whose patience ends.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jobs_core::{Error, ErrorKind};

use crate::NAME;
use crate::error::timed_out;

/// The troubles of one pipeline.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<Troubles>);

#[derive(Debug, Default)]
struct Troubles {
    /// Why nothing is being published now.
    publishing: Option<(ErrorKind, String)>,
    /// The last failure that was met and gone on from.
    last_error: Option<String>,
}

impl Health {
    /// Publishing is not possible.
    pub(crate) fn cannot_publish(&self, kind: ErrorKind, trouble: &str) {
        let mut troubles = self.lock();
        troubles.publishing = Some((kind, trouble.to_owned()));
        troubles.last_error = Some(trouble.to_owned());
    }

    /// Publishing is possible, again.
    pub(crate) fn can_publish(&self) {
        self.lock().publishing = None;
    }

    /// Something failed, and will be tried again.
    pub(crate) fn met(&self, error: &Error) {
        self.lock().last_error = Some(error.with_sources());
    }

    pub(crate) fn last_error(&self) -> Option<String> {
        self.lock().last_error.clone()
    }

    /// The error of a push whose time is over.
    pub(crate) fn too_late(&self) -> Error {
        match self.lock().publishing.clone() {
            None => timed_out("push").with_context("no confirm within `push_timeout`"),
            Some((kind, trouble)) => {
                let error = Error::new(kind, "push").with_driver(NAME);
                error.with_context(format!("{trouble}, until `push_timeout`")).transient()
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Troubles> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
