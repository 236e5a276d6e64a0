//! Running the cases of a suite: as trials of a test program, or again and again.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{Case, CaseError, CaseResult, Harness, runner};

pub(super) type MakeHarness = Arc<dyn Fn() -> Arc<dyn Harness> + Send + Sync>;

/// A case on a configuration.
#[derive(Clone)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) configuration: String,
    pub(super) case: Arc<Case>,
    pub(super) harness: MakeHarness,
    /// Why it is known not to pass.
    pub(super) gap: Option<String>,
    pub(super) broker: Arc<RwLock<()>>,
    /// How often it runs in a test program.
    pub(super) times: u32,
}

/// What became of a case that was run again and again.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Repeated {
    /// `configuration::group::case`.
    pub name: String,
    /// How often it passed.
    pub passed: u32,
    /// Why it did not, the other times.
    pub failures: Vec<String>,
    /// Why it could not be tried at all.
    pub ignored: Option<String>,
}

type Answer = Result<Completion, Failed>;

impl Run {
    fn prove(&self) -> CaseResult {
        match &self.gap {
            Some(reason) => Err(CaseError::ignored(reason)),
            None => runner::run(&self.case, || (self.harness)(), &self.broker),
        }
    }

    /// Proves the case as often as it runs; the first answer that is not a success counts.
    fn answer(&self) -> Answer {
        for time in 1..=self.times {
            match self.prove() {
                Ok(()) => {}
                Err(CaseError::Ignored(reason)) => return Ok(Completion::ignored_with(reason)),
                Err(CaseError::Failed(message)) => return Err(self.failed(&message, time)),
            }
        }
        Ok(Completion::Completed)
    }

    fn failed(&self, message: &str, time: u32) -> Failed {
        let invariants: Vec<_> = self.case.invariants().iter().map(ToString::to_string).collect();
        let invariants = match invariants.as_slice() {
            [] => String::new(),
            numbers => format!(" (invariant {})", numbers.join(", ")),
        };
        let time = match self.times {
            1 => String::new(),
            times => format!("\nrun {time} of {times}"),
        };
        format!("{message}{time}\nproves: {}{invariants}", self.case.proves()).into()
    }

    fn repeat(&self, times: u32) -> Repeated {
        let mut repeated = Repeated { name: self.name.clone(), ..Repeated::default() };
        for _ in 0..times {
            match self.prove() {
                Ok(()) => repeated.passed += 1,
                Err(CaseError::Failed(message)) => repeated.failures.push(message),
                Err(CaseError::Ignored(reason)) => {
                    repeated.ignored = Some(reason);
                    break;
                }
            }
        }
        repeated
    }
}

pub(super) fn repeat_faults(runs: Vec<Run>, times: u32, report: impl FnMut(&Repeated) + Send) {
    let report = Mutex::new(report);
    let report = &report;
    let turn = |run: Run| {
        move || {
            let repeated = run.repeat(times);
            report.lock().unwrap_or_else(PoisonError::into_inner)(&repeated);
        }
    };
    let mut turns = Turns::default();
    for run in runs.into_iter().filter(|run| run.case.causes_faults()) {
        turns.add(run.configuration.clone(), turn(run));
    }
    thread::scope(|scope| turns.start(scope));
}

/// Runs what the arguments select: cases that cause faults in turn, beside the others unless there
/// is to be one thread only.
pub(super) fn report(runs: Vec<Run>, arguments: &Arguments) -> ExitCode {
    let one_by_one = arguments.test_threads == Some(1);
    let (in_turn, others): (Vec<_>, Vec<_>) =
        runs.into_iter().partition(|run| run.case.causes_faults() && !one_by_one);
    let mut trials: Vec<_> = others
        .into_iter()
        .map(|run| Trial::ignorable_test(run.name.clone(), move || run.answer()))
        .collect();
    let mut turns = Turns::default();
    // Last, so that no thread waits for them while there is something else to do.
    for run in in_turn {
        let (sender, answer) = channel();
        let trial = Trial::ignorable_test(run.name.clone(), move || {
            answer.recv().unwrap_or_else(|_| Err("it was not run".into()))
        });
        if !arguments.is_filtered_out(&trial) {
            // Nobody waits for the answer of a program that ends early.
            turns.add(run.configuration.clone(), move || drop(sender.send(run.answer())));
        }
        trials.push(trial);
    }
    let idle = arguments.list || arguments.bench;
    thread::scope(|scope| {
        if !idle {
            turns.start(scope);
        }
        libtest_mimic::run(arguments, trials).exit_code()
    })
}

/// What each configuration does one after another, beside the others.
#[derive(Default)]
struct Turns<'a>(BTreeMap<String, Vec<Box<dyn FnOnce() + Send + 'a>>>);

impl<'a> Turns<'a> {
    fn add(&mut self, configuration: String, turn: impl FnOnce() + Send + 'a) {
        self.0.entry(configuration).or_default().push(Box::new(turn));
    }

    fn start<'scope>(self, scope: &'scope thread::Scope<'scope, '_>)
    where
        'a: 'scope,
    {
        for turns in self.0.into_values() {
            scope.spawn(|| turns.into_iter().for_each(|turn| turn()));
        }
    }
}
