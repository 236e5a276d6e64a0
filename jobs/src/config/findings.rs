//! What is noticed while reading: problems, which end the start, and warnings.

use jobs_core::Problem;

#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Findings {
    pub(super) fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::new(path, message));
    }

    pub(super) fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Problem::new(path, message));
    }

    /// Logs the warnings and hands out the problems.
    pub(super) fn report(&self) -> Vec<Problem> {
        for warning in &self.warnings {
            tracing::warn!(path = warning.path(), "{}", warning.message());
        }
        self.problems.clone()
    }

    /// The value, or none after its problems were noted.
    pub(super) fn note<T>(&mut self, answer: Result<T, Vec<Problem>>) -> Option<T> {
        answer.map_err(|problems| self.problems.extend(problems)).ok()
    }
}

/// Names as a problem shows them.
pub(super) fn list<T: AsRef<str>>(names: &[T]) -> String {
    match names {
        [] => "none".into(),
        names => {
            names.iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
        }
    }
}
