//! All cases on all configurations, as a test program.

mod run;

use std::fmt;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::Arguments;

use crate::{Case, Harness, cases};

pub use run::Repeated;
use run::{MakeHarness, Run};

/// The conformance suite of one driver.
///
/// Cases run in parallel. Those that cause faults run one after another on a thread of their own,
/// each several times.
#[must_use = "a suite does nothing until it is run"]
pub struct Suite {
    configurations: Vec<Configuration>,
    gaps: Vec<Gap>,
    threads: Option<NonZeroUsize>,
    fault_runs: u32,
}

struct Configuration {
    name: String,
    harness: MakeHarness,
    /// Beginnings of the names of the kit's cases that it runs.
    only: Option<Vec<String>>,
    own: Vec<Arc<Case>>,
}

struct Gap {
    configuration: String,
    case: String,
    reason: String,
}

impl Default for Suite {
    fn default() -> Self {
        Self { configurations: Vec::new(), gaps: Vec::new(), threads: None, fault_runs: 3 }
    }
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
        self.configurations.push(Configuration {
            name: name.into(),
            harness: Arc::new(move || Arc::new(harness())),
            only: None,
            own: Vec::new(),
        });
        self
    }

    /// Of the kit's cases, a configuration runs only those whose names begin with one of these,
    /// such as `push::`.
    ///
    /// # Panics
    /// If there is no such configuration.
    pub fn only(mut self, configuration: &str, names: &[&str]) -> Self {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.find(configuration).only = Some(names);
        self
    }

    /// Adds cases of the driver's own to a configuration.
    ///
    /// # Panics
    /// If there is no such configuration.
    pub fn cases(mut self, configuration: &str, cases: impl IntoIterator<Item = Case>) -> Self {
        self.find(configuration).own.extend(cases.into_iter().map(Arc::new));
        self
    }

    fn find(&mut self, name: &str) -> &mut Configuration {
        let found = self.configurations.iter_mut().find(|known| known.name == name);
        found.unwrap_or_else(|| panic!("no configuration `{name}`"))
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

    /// How many cases run at once, unless the program's arguments say. Default: one per core; more
    /// are better where cases mostly wait for a broker.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// How often a case that causes faults runs; its first failure is its answer. Default: 3.
    pub fn fault_runs(mut self, runs: u32) -> Self {
        self.fault_runs = runs;
        self
    }

    /// Runs what the program's arguments select, and reports it as `cargo test` does.
    ///
    /// Return the answer from `main`, so that everything on its stack is dropped.
    ///
    /// # Panics
    /// If a known gap names no configuration or case of this suite.
    pub fn run(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        arguments.test_threads = arguments.test_threads.or(self.threads.map(NonZeroUsize::get));
        run::report(self.runs(), &arguments)
    }

    /// Runs each case that causes faults so many times, whatever fails, and reports each when it is
    /// done.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn repeat_faults(self, times: u32, report: impl FnMut(&Repeated) + Send) {
        run::repeat_faults(self.runs(), times, report);
    }

    fn runs(&self) -> Vec<Run> {
        let kit: Vec<_> = cases::all().into_iter().map(Arc::new).collect();
        let broker = Arc::default();
        let mut runs = Vec::new();
        for configuration in &self.configurations {
            for case in configuration.select(&kit) {
                let name = format!("{}::{}", configuration.name, case.name());
                let gap = self.gap(&name).map(|gap| gap.reason.clone());
                let harness = Arc::clone(&configuration.harness);
                let times = if case.causes_faults() { self.fault_runs } else { 1 };
                let broker = Arc::clone(&broker);
                let configuration = configuration.name.clone();
                runs.push(Run { name, configuration, case, harness, gap, broker, times });
            }
        }
        for gap in &self.gaps {
            let known = runs.iter().any(|run| gap.is_of(&run.name));
            assert!(known, "no case `{}::{}` to have a gap", gap.configuration, gap.case);
        }
        runs
    }

    fn gap(&self, run: &str) -> Option<&Gap> {
        self.gaps.iter().find(|gap| gap.is_of(run))
    }
}

impl Gap {
    fn is_of(&self, run: &str) -> bool {
        run.strip_prefix(&self.configuration).and_then(|rest| rest.strip_prefix("::"))
            == Some(self.case.as_str())
    }
}

impl Configuration {
    fn select<'a>(&'a self, kit: &'a [Arc<Case>]) -> impl Iterator<Item = Arc<Case>> + 'a {
        let begins = |case: &Case, names: &Vec<String>| {
            names.iter().any(|name| case.name().starts_with(name.as_str()))
        };
        let selected =
            move |case: &&Arc<Case>| self.only.as_ref().is_none_or(|names| begins(case, names));
        kit.iter().filter(selected).chain(&self.own).cloned()
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.configurations.iter().map(|configuration| &configuration.name);
        f.debug_list().entries(names).finish()
    }
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

    fn names(suite: &Suite) -> Vec<String> {
        suite.runs().into_iter().map(|run| run.name).collect()
    }

    #[test]
    fn a_test_per_configuration_and_case() {
        let suite = Suite::new()
            .configuration("a", Nothing::default)
            .configuration("b", Nothing::default)
            .known_gap("a", "push::works_before_run", "reason");
        let names = names(&suite);
        assert_eq!(names.len(), 2 * cases::all().len());
        assert!(names.contains(&"b::push::works_before_run".to_owned()));
    }

    #[test]
    fn a_configuration_may_have_fewer_cases_and_its_own() {
        let suite = Suite::new()
            .configuration("a", Nothing::default)
            .only("a", &["push::works", "batch::empty_answers_empty"])
            .cases("a", [Case::new("own::case", &[], "a thing", async |_| Ok(()))]);
        let expected =
            ["a::push::works_before_run", "a::batch::empty_answers_empty", "a::own::case"];
        assert_eq!(names(&suite), expected);
    }

    #[test]
    #[should_panic(expected = "no case `a::push::works_after_run` to have a gap")]
    fn a_gap_in_no_case_is_refused() {
        let suite = Suite::new().configuration("a", Nothing::default);
        suite.known_gap("a", "push::works_after_run", "reason").runs();
    }
}
