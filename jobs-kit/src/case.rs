//! One case: what it proves, and how it ends.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::panic::Location;
use std::pin::Pin;

use crate::{Feature, Fixture};

/// What a case returns.
pub type CaseResult = Result<(), CaseError>;

/// Why a case did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CaseError {
    /// It could not be tried here, for this reason.
    Ignored(String),
    /// The driver does not do what the case demands.
    Failed(String),
}

impl CaseError {
    /// A case that cannot be tried with this harness.
    #[must_use]
    pub fn ignored(reason: impl Into<String>) -> Self {
        Self::Ignored(reason.into())
    }
}

impl fmt::Display for CaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ignored(reason) => write!(f, "ignored: {reason}"),
            Self::Failed(message) => f.write_str(message),
        }
    }
}

/// Fails the case, and tells the place of the `?`.
impl<E: Error + Any> From<E> for CaseError {
    #[track_caller]
    fn from(error: E) -> Self {
        Self::Failed(format!("{}: {}", Location::caller(), chain(&error)))
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

type Body = dyn Fn(Fixture) -> Pin<Box<dyn Future<Output = CaseResult>>> + Send + Sync;

/// One case of the suite.
pub struct Case {
    name: &'static str,
    invariants: &'static [u8],
    proves: &'static str,
    needs: &'static [Feature],
    body: Box<Body>,
}

impl Case {
    /// A case named `group::case`, with the invariants of [`jobs_core::Driver`] and the sentence of
    /// the contract that it proves.
    pub fn new<F: Future<Output = CaseResult> + 'static>(
        name: &'static str,
        invariants: &'static [u8],
        proves: &'static str,
        body: impl Fn(Fixture) -> F + Send + Sync + 'static,
    ) -> Self {
        let body =
            Box::new(move |fx| -> Pin<Box<dyn Future<Output = CaseResult>>> { Box::pin(body(fx)) });
        Self { name, invariants, proves, needs: &[], body }
    }

    /// Names what the case cannot do without. Where the pipeline does not offer it, the kit asserts
    /// that it is refused instead; where the harness does not, the case is ignored.
    #[must_use]
    pub fn needs(mut self, features: &'static [Feature]) -> Self {
        self.needs = features;
        self
    }

    /// `group::case`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Numbers of the invariants it is a proof of.
    #[must_use]
    pub fn invariants(&self) -> &'static [u8] {
        self.invariants
    }

    /// The sentence of the contract it proves.
    #[must_use]
    pub fn proves(&self) -> &'static str {
        self.proves
    }

    /// What it cannot do without.
    #[must_use]
    pub fn features(&self) -> &'static [Feature] {
        self.needs
    }

    /// True if it causes faults, see [`Harness::apart`](crate::Harness::apart).
    #[must_use]
    pub fn causes_faults(&self) -> bool {
        self.needs.iter().any(|feature| matches!(feature, Feature::Fault(_)))
    }

    async fn missing(&self, fx: &Fixture) -> jobs_core::Result<Option<Feature>> {
        if self.needs.is_empty() {
            return Ok(None);
        }
        let config = fx.configure().await?;
        let capabilities = fx.plan(config.clone())?.capabilities();
        let available = |f: &Feature| f.is_available(fx.harness(), &config, &capabilities);
        Ok(self.needs.iter().copied().find(|feature| !available(feature)))
    }

    pub(crate) async fn prove(&self, fx: Fixture) -> CaseResult {
        match self.missing(&fx).await? {
            Some(feature) => feature.expect_refused(fx).await,
            None => (self.body)(fx).await,
        }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .field("invariants", &self.invariants)
            .field("proves", &self.proves)
            .finish_non_exhaustive()
    }
}
