//! The one error type of drivers and pipelines, and the problems of a configuration.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// What a call on a driver or a pipeline answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type BoxError = Box<dyn StdError + Send + Sync>;

/// Why a call failed: its kind, what was being done and where, and what the client said.
///
/// The text never repeats the [`source`](StdError::source): a reporter walks the chain. A client's
/// own error is reached by downcasting the source.
///
/// ```
/// use jobs_core::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::Timeout, "push").with_pipeline("mail").transient();
/// assert_eq!(error.to_string(), "push on `mail`: timed out");
/// assert!(error.is_retryable() && !error.may_be_stored());
/// ```
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    driver: Option<&'static str>,
    pipeline: Option<Arc<str>>,
    context: Option<String>,
    transient: bool,
    may_be_stored: bool,
    problems: Vec<Problem>,
    source: Option<BoxError>,
}

/// The kinds of failure a caller can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A configuration is wrong; [`Error::problems`] lists everything that is.
    Config,
    /// No driver of that name is registered.
    UnknownDriver,
    /// The pipeline cannot do what was asked; its [`Capabilities`](crate::Capabilities) say so.
    Unsupported,
    /// The message breaks a rule that holds for every driver, such as an empty id.
    InvalidMessage,
    /// The payload is larger than the pipeline takes.
    PayloadTooLarge,
    /// A pipeline, queue, topic or exchange does not exist.
    NotFound,
    /// The call does not fit the state of the pipeline, such as running it twice.
    InvalidState,
    /// The driver was stopped.
    Closed,
    /// The right to this delivery ended: the job may be with another consumer already.
    LeaseLost,
    /// The queue is full or the broker asks to slow down.
    Throttled,
    /// The broker cannot be reached, or the connection broke.
    Connection,
    /// The answer did not come in time.
    Timeout,
    /// The broker refuses the credentials or the operation.
    Denied,
    /// Storage is full: disk, or a configured size.
    Full,
    /// Bytes could not be encoded or decoded.
    Codec,
    /// The broker answered with an error of its own.
    Broker,
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "wrong configuration",
            Self::UnknownDriver => "unknown driver",
            Self::Unsupported => "not supported",
            Self::InvalidMessage => "invalid message",
            Self::PayloadTooLarge => "payload too large",
            Self::NotFound => "not found",
            Self::InvalidState => "not possible in this state",
            Self::Closed => "closed",
            Self::LeaseLost => "lease lost",
            Self::Throttled => "throttled",
            Self::Connection => "connection failed",
            Self::Timeout => "timed out",
            Self::Denied => "denied",
            Self::Full => "storage full",
            Self::Codec => "codec failed",
            Self::Broker => "broker error",
        })
    }
}

impl Error {
    /// An error of `kind` met in `operation`, final until [`transient`](Self::transient) is said.
    #[must_use]
    pub fn new(kind: ErrorKind, operation: &'static str) -> Self {
        Self(Box::new(Inner {
            kind,
            operation,
            driver: None,
            pipeline: None,
            context: None,
            transient: false,
            may_be_stored: false,
            problems: Vec::new(),
            source: None,
        }))
    }

    /// The problems of a configuration as one error.
    ///
    /// Its kind is the kind all problems share, else [`ErrorKind::Config`].
    #[must_use]
    pub fn from_problems(operation: &'static str, problems: Vec<Problem>) -> Self {
        let kind = match problems.split_first() {
            Some((first, rest)) if rest.iter().all(|p| p.kind == first.kind) => first.kind,
            _ => ErrorKind::Config,
        };
        let mut error = Self::new(kind, operation);
        error.0.problems = problems;
        error
    }

    /// The error and what caused it, each told once: for a text that no reporter of sources walks.
    #[must_use]
    pub fn with_sources(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let told = cause.to_string();
            if !text.contains(&told) {
                text.push_str(": ");
                text.push_str(&told);
            }
            source = cause.source();
        }
        text
    }

    /// Names the driver.
    #[must_use]
    pub fn with_driver(mut self, driver: &'static str) -> Self {
        self.0.driver = Some(driver);
        self
    }

    /// Names the pipeline.
    #[must_use]
    pub fn with_pipeline(mut self, pipeline: impl Into<Arc<str>>) -> Self {
        self.0.pipeline = Some(pipeline.into());
        self
    }

    /// Says what exactly was wrong, and what was expected.
    #[must_use]
    pub fn with_context(mut self, context: impl Into<String>) -> Self {
        self.0.context = Some(context.into());
        self
    }

    /// Keeps the error of the client that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Marks a failure that may pass by itself: doing the same again can succeed.
    #[must_use]
    pub fn transient(mut self) -> Self {
        self.0.transient = true;
        self
    }

    /// Marks a failed push whose message the broker may have stored all the same.
    #[must_use]
    pub fn maybe_stored(mut self) -> Self {
        self.0.may_be_stored = true;
        self
    }

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was being done, such as `push`.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The driver, where one was involved.
    #[must_use]
    pub fn driver(&self) -> Option<&'static str> {
        self.0.driver
    }

    /// The pipeline, where one was involved.
    #[must_use]
    pub fn pipeline(&self) -> Option<&str> {
        self.0.pipeline.as_deref()
    }

    /// Everything that is wrong with a configuration; empty for other failures.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.0.problems
    }

    /// The problems of a configuration, taken out.
    #[must_use]
    pub fn into_problems(self) -> Vec<Problem> {
        self.0.problems
    }

    /// True if doing the same again can succeed.
    ///
    /// After a failed push look at [`may_be_stored`](Self::may_be_stored) too: a retry then may
    /// make a duplicate.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.transient
    }

    /// For a failed push: true if the broker may have stored the message, false if it certainly
    /// did not.
    #[must_use]
    pub fn may_be_stored(&self) -> bool {
        self.0.may_be_stored
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, operation, driver, pipeline, context, problems, .. } = &*self.0;
        f.write_str(operation)?;
        if let Some(pipeline) = pipeline {
            write!(f, " on `{pipeline}`")?;
        }
        if let Some(driver) = driver {
            write!(f, " ({driver})")?;
        }
        write!(f, ": {kind}")?;
        if let Some(context) = context {
            write!(f, ": {context}")?;
        }
        match problems.as_slice() {
            [] => Ok(()),
            [only] => write!(f, ": {only}"),
            all => all.iter().try_for_each(|problem| write!(f, "\n  - {problem}")),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Error");
        debug.field("message", &format_args!("{self}")).field("kind", &self.0.kind);
        if self.0.transient {
            debug.field("transient", &true);
        }
        if self.0.may_be_stored {
            debug.field("may_be_stored", &true);
        }
        if let Some(source) = &self.0.source {
            debug.field("source", source);
        }
        debug.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// One thing that is wrong in a configuration: where, and what was expected instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    kind: ErrorKind,
    path: String,
    message: String,
}

impl Problem {
    /// A problem at `path`, such as `jobs.pipelines.mail.config.prefetch`.
    ///
    /// The message says what was expected and what was found.
    #[must_use]
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Config, path: path.into(), message: message.into() }
    }

    /// Gives the problem a kind of its own, as an unknown driver has.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// The kind, [`ErrorKind::Config`] unless said otherwise.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Where the problem is: the keys from the root of the file, joined by dots.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What was expected, and what was found.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.path, self.message)
    }
}

const _: () = assert!(size_of::<Error>() == size_of::<usize>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_operation_pipeline_driver_kind_and_context() {
        let error = Error::new(ErrorKind::Denied, "connect")
            .with_driver("amqp")
            .with_pipeline("mail")
            .with_context("virtual host `/x`")
            .with_source(std::io::Error::other("ACCESS_REFUSED"));
        assert_eq!(
            error.to_string(),
            "connect on `mail` (amqp): denied: virtual host `/x`",
            "the source is not repeated"
        );
        let source = error.source().and_then(|s| s.downcast_ref::<std::io::Error>());
        assert!(source.is_some(), "the native error is reachable");
    }

    #[test]
    fn problems_decide_the_kind_they_share() {
        let typo = || Problem::new("a.b", "unknown option");
        let unknown = || Problem::new("a.driver", "no driver").with_kind(ErrorKind::UnknownDriver);
        let kind = |problems| Error::from_problems("declare", problems).kind();
        assert_eq!(kind(vec![unknown()]), ErrorKind::UnknownDriver);
        assert_eq!(kind(vec![typo(), unknown()]), ErrorKind::Config);
        let both = Error::from_problems("load", vec![typo(), unknown()]).to_string();
        assert!(both.contains("`a.b`: unknown option") && both.contains("`a.driver`"), "{both}");
    }
}
