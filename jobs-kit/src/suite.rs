//! All cases on all configurations, as a test program.

use std::fmt;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{Case, CaseError, Harness, cases, runner};

type MakeHarness = Arc<dyn Fn() -> Arc<dyn Harness> + Send + Sync>;

/// The conformance suite of one driver.
#[derive(Default)]
#[must_use = "a suite does nothing until it is run"]
pub struct Suite {
    configurations: Vec<(String, MakeHarness)>,
    gaps: Vec<Gap>,
}

struct Gap {
    configuration: String,
    case: String,
    reason: String,
}

impl Suite {
    /// A suite without configurations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a configuration. `harness` is called for each case, within the case's runtime.
    pub fn configuration<H: Harness>(
        mut self,
        name: impl Into<String>,
        harness: impl Fn() -> H + Send + Sync + 'static,
    ) -> Self {
        self.configurations.push((name.into(), Arc::new(move || Arc::new(harness()))));
        self
    }

    /// Reports a case as ignored. The reason says why it cannot pass, with a link to where the
    /// broker or its client is said to be so. Lowering a capability to silence a case is a defect.
    pub fn known_gap(
        mut self,
        configuration: impl Into<String>,
        case: impl Into<String>,
        reason: impl Into<String>,
    ) -> Self {
        self.gaps.push(Gap {
            configuration: configuration.into(),
            case: case.into(),
            reason: reason.into(),
        });
        self
    }

    /// Runs what the program's arguments select, and reports it as `cargo test` does.
    ///
    /// Return the answer from `main`, so that everything on its stack is dropped.
    ///
    /// # Panics
    /// If a known gap names no configuration or case of this suite.
    pub fn run(self) -> ExitCode {
        let arguments = Arguments::from_args();
        libtest_mimic::run(&arguments, self.trials()).exit_code()
    }

    fn trials(self) -> Vec<Trial> {
        let cases: Vec<_> = cases::all().into_iter().map(Arc::new).collect();
        for gap in &self.gaps {
            let known = self.configurations.iter().any(|(name, _)| *name == gap.configuration)
                && cases.iter().any(|case| case.name() == gap.case);
            assert!(known, "no case `{}::{}` to have a gap", gap.configuration, gap.case);
        }
        let broker = Arc::default();
        let mut trials = Vec::with_capacity(self.configurations.len() * cases.len());
        for (name, harness) in &self.configurations {
            for case in &cases {
                let gap = self.gap(name, case).map(str::to_owned);
                let (case, harness) = (Arc::clone(case), Arc::clone(harness));
                trials.push(trial(name, case, harness, gap, Arc::clone(&broker)));
            }
        }
        trials
    }

    fn gap(&self, configuration: &str, case: &Case) -> Option<&str> {
        let gap = self
            .gaps
            .iter()
            .find(|gap| gap.configuration == configuration && gap.case == case.name());
        gap.map(|gap| gap.reason.as_str())
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.configurations.iter().map(|(name, _)| name);
        f.debug_list().entries(names).finish()
    }
}

fn trial(
    configuration: &str,
    case: Arc<Case>,
    harness: MakeHarness,
    gap: Option<String>,
    broker: Arc<RwLock<()>>,
) -> Trial {
    let name = format!("{configuration}::{}", case.name());
    Trial::ignorable_test(name, move || {
        if let Some(reason) = gap {
            return Ok(Completion::ignored_with(reason));
        }
        match run_in_turn(&case, &harness, &broker) {
            Ok(()) => Ok(Completion::Completed),
            Err(CaseError::Ignored(reason)) => Ok(Completion::ignored_with(reason)),
            Err(CaseError::Failed(message)) => Err(failed(&case, &message)),
        }
    })
}

/// Configurations may share a broker: a case that disturbs it waits for all others, and they for it.
fn run_in_turn(case: &Case, harness: &MakeHarness, broker: &RwLock<()>) -> crate::CaseResult {
    if case.is_exclusive() {
        let _alone = broker.write().unwrap_or_else(PoisonError::into_inner);
        runner::run(case, || harness())
    } else {
        let _shared = broker.read().unwrap_or_else(PoisonError::into_inner);
        runner::run(case, || harness())
    }
}

fn failed(case: &Case, message: &str) -> Failed {
    let invariants: Vec<_> = case.invariants().iter().map(ToString::to_string).collect();
    let invariants = match invariants.as_slice() {
        [] => String::new(),
        numbers => format!(" (invariant {})", numbers.join(", ")),
    };
    format!("{message}\nproves: {}{invariants}", case.proves()).into()
}

#[cfg(test)]
mod tests {
    use jobs_core::{Pipeline, Registry, Result, async_trait};

    use super::*;

    #[derive(Default)]
    struct Nothing(Registry);

    #[async_trait]
    impl Harness for Nothing {
        fn registry(&self) -> &Registry {
            &self.0
        }

        async fn pipeline(&self, name: &str) -> Result<Pipeline> {
            Ok(Pipeline::new(name, "nothing"))
        }
    }

    #[test]
    fn a_test_per_configuration_and_case() {
        let suite = Suite::new()
            .configuration("a", Nothing::default)
            .configuration("b", Nothing::default)
            .known_gap("a", "push::works_before_run", "reason");
        let names: Vec<_> = suite.trials().iter().map(|trial| trial.name().to_owned()).collect();
        assert_eq!(names.len(), 2 * cases::all().len());
        assert!(names.contains(&"b::push::works_before_run".to_owned()));
    }

    #[test]
    #[should_panic(expected = "no case `a::push::works_after_run` to have a gap")]
    fn a_gap_in_no_case_is_refused() {
        let suite = Suite::new().configuration("a", Nothing::default);
        suite.known_gap("a", "push::works_after_run", "reason").trials();
    }
}
