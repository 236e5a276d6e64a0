//! From the client's errors to the suite's: the only place that maps.
//!
//! The client knows errors by text only: the name of a reply, in one of two variants.

use std::time::Duration;

use beanstalkc::BeanstalkcError;
use jobs_core::{Error, ErrorKind};

use crate::NAME;
use crate::config::Address;

/// What came instead of the reply that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// No such job, or it is not reserved by this connection.
    NotFound,
    /// A reservation of this connection is about to end.
    DeadlineSoon,
    /// No job came.
    TimedOut,
    /// Stored, but set aside: the server had no memory to queue it.
    Buried,
    JobTooBig,
    OutOfMemory,
    Draining,
    InternalError,
    BadFormat,
    /// Anything else: what comes next on this connection belongs to nobody knows what.
    Lost,
}

/// A command that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) reply: Reply,
    /// The connection cannot be used any more.
    lost: bool,
    source: BeanstalkcError,
}

impl From<BeanstalkcError> for Failure {
    fn from(source: BeanstalkcError) -> Self {
        let reply = reply(&source);
        Self { reply, lost: reply == Reply::Lost, source }
    }
}

fn reply(error: &BeanstalkcError) -> Reply {
    match error {
        // The replies that the client expects of this command.
        BeanstalkcError::CommandFailed(name) => match name.as_str() {
            "NotFound" => Reply::NotFound,
            "DeadlineSoon" => Reply::DeadlineSoon,
            "TimedOut" => Reply::TimedOut,
            "Buried" => Reply::Buried,
            "JobTooBig" => Reply::JobTooBig,
            "Draining" => Reply::Draining,
            _ => Reply::Lost,
        },
        // Of those that it does not expect, the ones that any command may get.
        BeanstalkcError::UnexpectedResponse(name) => match name.as_str() {
            "OutOfMemory" => Reply::OutOfMemory,
            "Draining" => Reply::Draining,
            "InternalError" => Reply::InternalError,
            "BadFormat" => Reply::BadFormat,
            _ => Reply::Lost,
        },
        BeanstalkcError::ConnectionError(_) => Reply::Lost,
    }
}

impl Failure {
    /// What the server would say to a body of that size.
    pub(crate) fn too_big() -> Self {
        BeanstalkcError::CommandFailed("JobTooBig".to_owned()).into()
    }

    /// Of a command with a body: a server that does not understand its line has not read the body, and
    /// would take it for commands.
    pub(crate) fn with_body(self) -> Self {
        Self { lost: self.lost || self.reply == Reply::BadFormat, ..self }
    }

    /// The connection cannot be used any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost
    }

    /// The error of a command that stores nothing.
    pub(crate) fn error(&self, operation: &'static str) -> Error {
        let transient = |kind, context: &str| (kind, true, context.to_owned());
        let (kind, is_transient, context) = match self.reply {
            Reply::OutOfMemory => transient(ErrorKind::Full, "the server is out of memory or disk"),
            Reply::Buried => transient(
                ErrorKind::Full,
                "the server is out of memory: it stored the job, but buried it",
            ),
            Reply::Draining => transient(
                ErrorKind::Throttled,
                "the server takes no more jobs: it is in drain mode, about to be replaced",
            ),
            Reply::InternalError => transient(ErrorKind::Broker, "internal error of the server"),
            Reply::Lost => transient(ErrorKind::Connection, "the connection broke"),
            Reply::DeadlineSoon | Reply::TimedOut => transient(ErrorKind::Timeout, "no job came"),
            Reply::JobTooBig => (
                ErrorKind::PayloadTooLarge,
                false,
                "larger than the server's `max-job-size`".to_owned(),
            ),
            Reply::BadFormat => {
                (ErrorKind::Broker, false, "the server did not understand the command".to_owned())
            }
            Reply::NotFound => (ErrorKind::NotFound, false, "no such job or tube".to_owned()),
        };
        let error = Error::new(kind, operation).with_driver(NAME).with_context(context);
        let error = error.with_source(self.source.clone());
        if is_transient { error.transient() } else { error }
    }

    /// The error of a put.
    pub(crate) fn of_put(&self) -> Error {
        let error = self.error("push");
        match self.reply {
            Reply::Buried | Reply::InternalError | Reply::Lost => error.maybe_stored(),
            _ => error,
        }
    }
}

/// The connection was lost before this was sent.
pub(crate) fn not_sent() -> Error {
    Error::new(ErrorKind::Connection, "push")
        .with_driver(NAME)
        .with_context("the connection broke before the message was sent")
        .transient()
}

/// The server cannot be reached.
pub(crate) fn unreachable(address: &Address, error: &BeanstalkcError) -> Error {
    Error::new(ErrorKind::Connection, "connect")
        .with_driver(NAME)
        .with_context(format!("{address}: {error}"))
        .with_source(error.clone())
        .transient()
}

/// The name cannot be resolved.
pub(crate) fn unresolved(address: &Address, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Connection, "connect")
        .with_driver(NAME)
        .with_context(format!("{address}: the name does not resolve: {error}"))
        .with_source(error)
        .transient()
}

/// The name has addresses that the client cannot connect to.
pub(crate) fn no_ipv4(address: &Address) -> Error {
    let context = format!("{address} has no IPv4 address, and the client speaks IPv4 only");
    Error::new(ErrorKind::Unsupported, "connect").with_driver(NAME).with_context(context)
}

/// The client did what it must not, which ended its connection.
pub(crate) fn panicked(operation: &'static str) -> Error {
    Error::new(ErrorKind::Connection, operation)
        .with_driver(NAME)
        .with_context("the client panicked on what the server sent")
        .transient()
}

/// The answer did not come in time.
pub(crate) fn timed_out(operation: &'static str) -> Error {
    Error::new(ErrorKind::Timeout, operation).with_driver(NAME).transient()
}

/// Nobody answered a push in time. `trouble` is what went wrong last.
pub(crate) fn too_late(limit: Duration, trouble: Option<String>) -> Error {
    let trouble = trouble.map(|trouble| format!(": {trouble}")).unwrap_or_default();
    timed_out("push")
        .with_context(format!("no answer for {limit:?} (option `push_timeout`){trouble}"))
}

/// The driver was stopped.
pub(crate) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation).with_driver(NAME)
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn failed(name: &str) -> Failure {
        BeanstalkcError::CommandFailed(name.into()).into()
    }

    fn unexpected(name: &str) -> Failure {
        BeanstalkcError::UnexpectedResponse(name.into()).into()
    }

    #[test]
    fn every_reply_has_its_outcome() {
        let table = [
            (failed("JobTooBig"), ErrorKind::PayloadTooLarge, false, false),
            (failed("Buried"), ErrorKind::Full, true, true),
            (failed("Draining"), ErrorKind::Throttled, true, false),
            (unexpected("Draining"), ErrorKind::Throttled, true, false),
            (unexpected("OutOfMemory"), ErrorKind::Full, true, false),
            (unexpected("InternalError"), ErrorKind::Broker, true, true),
            (unexpected("BadFormat"), ErrorKind::Broker, false, false),
            (unexpected("empty response"), ErrorKind::Connection, true, true),
            (unexpected("Reserved"), ErrorKind::Connection, true, true),
            (failed("HTTP/1.1"), ErrorKind::Connection, true, true),
            (failed("NotFound"), ErrorKind::NotFound, false, false),
            (failed("TimedOut"), ErrorKind::Timeout, true, false),
            (failed("DeadlineSoon"), ErrorKind::Timeout, true, false),
        ];
        for (failure, kind, transient, maybe_stored) in table {
            let error = failure.of_put();
            let found = (error.kind(), error.is_retryable(), error.may_be_stored());
            assert_eq!(found, (kind, transient, maybe_stored), "{failure:?}");
        }
    }

    #[test]
    fn only_what_the_server_says_to_any_command_leaves_the_connection_usable() {
        for usable in ["OutOfMemory", "Draining", "InternalError", "BadFormat"] {
            assert!(!unexpected(usable).is_lost(), "{usable}");
        }
        for lost in ["UnknownCommand", "ExpectedCRLF", "NotFound", "param not found: 0", ""] {
            assert!(unexpected(lost).is_lost(), "{lost}");
        }
        for usable in ["NotFound", "TimedOut", "DeadlineSoon", "Buried", "JobTooBig"] {
            assert!(!failed(usable).is_lost(), "{usable}");
        }
        assert!(unexpected("BadFormat").with_body().is_lost());
        assert!(!unexpected("OutOfMemory").with_body().is_lost());
        let broken = Failure::from(BeanstalkcError::ConnectionError("broken pipe".into()));
        assert!(broken.is_lost() && broken.error("settle").is_retryable());
    }

    #[test]
    fn the_native_error_is_reachable() {
        let error = failed("JobTooBig").of_put();
        let source = error.source().and_then(|source| source.downcast_ref::<BeanstalkcError>());
        assert!(
            matches!(source, Some(BeanstalkcError::CommandFailed(name)) if name == "JobTooBig")
        );
    }
}
