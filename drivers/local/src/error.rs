//! From the errors of SQLite and the file system to the suite's: the only place that maps.

use std::io;
use std::sync::Arc;

use jobs_core::{Error, ErrorKind};
use rusqlite::ErrorCode;

use crate::NAME;

/// What went wrong, for each of the callers that waited for the same transaction.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    kind: ErrorKind,
    transient: bool,
    maybe_stored: bool,
    context: Option<Arc<str>>,
    source: Option<Source>,
}

#[derive(Clone, Debug)]
enum Source {
    Sqlite(Arc<rusqlite::Error>),
    Io(Arc<io::Error>),
}

impl Fault {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<Arc<str>>) -> Self {
        let context = Some(context.into());
        Self { kind, transient: false, maybe_stored: false, context, source: None }
    }

    /// What happens to a file or directory that the option `path` names.
    pub(crate) fn io(what: &str, error: io::Error) -> Self {
        let (kind, transient) = classify_io(&error);
        let context = format!("option `path`: {what}: {error}");
        let source = Some(Source::Io(Arc::new(error)));
        Self { kind, transient, maybe_stored: false, context: Some(context.into()), source }
    }

    pub(crate) fn transient(mut self) -> Self {
        self.transient = true;
        self
    }

    /// The transaction may have been stored all the same.
    pub(crate) fn maybe_stored(mut self) -> Self {
        self.maybe_stored = true;
        self
    }

    /// Says what was being done, in front of what SQLite says.
    pub(crate) fn about(mut self, what: &str) -> Self {
        let said = self.context.take().unwrap_or_default();
        self.context = Some(format!("{what}: {said}").into());
        self
    }

    pub(crate) fn is_transient(&self) -> bool {
        self.transient
    }

    /// There is no room for it.
    pub(crate) fn is_full(&self) -> bool {
        self.kind == ErrorKind::Full
    }

    /// The error of one caller.
    pub(crate) fn error(&self, operation: &'static str) -> Error {
        let mut error = Error::new(self.kind, operation).with_driver(NAME);
        if let Some(context) = &self.context {
            error = error.with_context(&**context);
        }
        error = match &self.source {
            Some(Source::Sqlite(source)) => error.with_source(Arc::clone(source)),
            Some(Source::Io(source)) => error.with_source(Arc::clone(source)),
            None => error,
        };
        if self.transient {
            error = error.transient();
        }
        if self.maybe_stored { error.maybe_stored() } else { error }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.context {
            Some(context) => write!(f, "{}: {context}", self.kind),
            None => write!(f, "{}", self.kind),
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        let (kind, transient) = classify(error.sqlite_error_code());
        let context = Some(error.to_string().into());
        let source = Some(Source::Sqlite(Arc::new(error)));
        Self { kind, transient, maybe_stored: false, context, source }
    }
}

impl From<ErrorKind> for Fault {
    fn from(kind: ErrorKind) -> Self {
        Self { kind, transient: false, maybe_stored: false, context: None, source: None }
    }
}

/// The driver was stopped.
pub(crate) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_driver(NAME)
}

/// The answer did not come in time.
pub(crate) fn timed_out(operation: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, operation).with_driver(NAME).transient()
}

/// The kind, and whether doing the same again can succeed.
fn classify(code: Option<ErrorCode>) -> (ErrorKind, bool) {
    match code {
        // Settling jobs, or an operator, makes room.
        Some(ErrorCode::DiskFull) => (ErrorKind::Full, true),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (ErrorKind::Timeout, true),
        Some(ErrorCode::FileLockingProtocolFailed) => (ErrorKind::Timeout, true),
        Some(
            ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::CannotOpen
            | ErrorCode::AuthorizationForStatementDenied,
        ) => (ErrorKind::Denied, false),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => (ErrorKind::Codec, false),
        Some(ErrorCode::TooBig) => (ErrorKind::PayloadTooLarge, false),
        Some(ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory) => (ErrorKind::Broker, true),
        _ => (ErrorKind::Broker, false),
    }
}

fn classify_io(error: &io::Error) -> (ErrorKind, bool) {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (ErrorKind::Full, true),
        io::ErrorKind::NotFound => (ErrorKind::NotFound, false),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            (ErrorKind::Denied, false)
        }
        io::ErrorKind::IsADirectory
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::AlreadyExists
        | io::ErrorKind::InvalidInput => (ErrorKind::Config, false),
        io::ErrorKind::Unsupported => (ErrorKind::Unsupported, false),
        _ => (ErrorKind::Broker, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::ffi;

    fn failure(code: std::ffi::c_int) -> Fault {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()
    }

    #[test]
    fn every_answer_has_its_kind() {
        let table = [
            (ffi::SQLITE_FULL, ErrorKind::Full, true),
            (ffi::SQLITE_BUSY, ErrorKind::Timeout, true),
            (ffi::SQLITE_LOCKED, ErrorKind::Timeout, true),
            (ffi::SQLITE_PROTOCOL, ErrorKind::Timeout, true),
            (ffi::SQLITE_READONLY, ErrorKind::Denied, false),
            (ffi::SQLITE_PERM, ErrorKind::Denied, false),
            (ffi::SQLITE_CANTOPEN, ErrorKind::Denied, false),
            (ffi::SQLITE_NOTADB, ErrorKind::Codec, false),
            (ffi::SQLITE_CORRUPT, ErrorKind::Codec, false),
            (ffi::SQLITE_TOOBIG, ErrorKind::PayloadTooLarge, false),
            (ffi::SQLITE_IOERR_FSYNC, ErrorKind::Broker, true),
            (ffi::SQLITE_NOMEM, ErrorKind::Broker, true),
            (ffi::SQLITE_CONSTRAINT_PRIMARYKEY, ErrorKind::Broker, false),
        ];
        for (code, kind, transient) in table {
            let error = failure(code).error("push");
            assert_eq!((error.kind(), error.is_retryable()), (kind, transient), "{code}");
            assert!(!error.may_be_stored());
        }
        assert!(failure(ffi::SQLITE_IOERR_FSYNC).maybe_stored().error("push").may_be_stored());
    }

    #[test]
    fn the_native_error_is_reachable() {
        use std::error::Error as _;
        let error = failure(ffi::SQLITE_FULL).error("push");
        let source = error.source().and_then(|s| s.downcast_ref::<Arc<rusqlite::Error>>());
        assert_eq!(source.and_then(|s| s.sqlite_error_code()), Some(ErrorCode::DiskFull));
    }

    #[test]
    fn files_have_their_kinds_too() {
        let kind = |kind| Fault::io("x", io::Error::from(kind)).error("connect").kind();
        assert_eq!(kind(io::ErrorKind::PermissionDenied), ErrorKind::Denied);
        assert_eq!(kind(io::ErrorKind::ReadOnlyFilesystem), ErrorKind::Denied);
        assert_eq!(kind(io::ErrorKind::NotADirectory), ErrorKind::Config);
        assert_eq!(kind(io::ErrorKind::StorageFull), ErrorKind::Full);
        assert_eq!(kind(io::ErrorKind::TimedOut), ErrorKind::Broker);
    }
}
