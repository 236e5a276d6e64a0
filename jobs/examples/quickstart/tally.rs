//! What was pushed, what came of it, and whether that adds up.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use jobs::JobId;
use tokio::sync::Notify;

const LARGEST: usize = 5;

/// What the handler finds out about a file.
pub(crate) struct Hashed {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) lines: u64,
    pub(crate) sha256: String,
}

#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) counts: Mutex<Counts>,
    pub(crate) complete: Notify,
    pub(crate) bar: Option<ProgressBar>,
}

#[derive(Default)]
pub(crate) struct Counts {
    /// Pushed and not yet handled.
    pub(crate) waiting: HashSet<JobId>,
    /// As many more were pushed by an earlier process of this run, and are not yet handled.
    pub(crate) found: usize,
    /// Those of them that were handled here.
    taken_up: HashSet<JobId>,
    /// Handled by earlier processes.
    pub(crate) before: usize,
    pub(crate) all_pushed: bool,
    pub(crate) pushed: usize,
    pub(crate) hashed: Vec<Hashed>,
    pub(crate) failures: Vec<String>,
    /// Delivered a second time, or left over from another run.
    pub(crate) surplus: usize,
}

impl Counts {
    /// Whether everything was pushed and handled.
    pub(crate) fn complete(&self) -> bool {
        self.all_pushed && self.missing() == 0
    }

    fn missing(&self) -> usize {
        self.waiting.len() + self.found
    }

    /// False if that job was handled before, or is of another run.
    fn handle(&mut self, id: &JobId) -> bool {
        if self.waiting.remove(id) {
            return true;
        }
        let is_found = self.found > 0 && self.taken_up.insert(id.clone());
        self.found -= usize::from(is_found);
        is_found
    }
}

impl Tally {
    pub(crate) fn done(&self, id: &JobId, hashed: Hashed) {
        self.update(|counts| match counts.handle(id) {
            true => counts.hashed.push(hashed),
            false => counts.surplus += 1,
        });
    }

    /// A job that cannot be done, or with no id a file that did not become one.
    pub(crate) fn fail(&self, id: Option<&JobId>, why: String) {
        self.update(|counts| match id.is_none_or(|id| counts.handle(id)) {
            true => counts.failures.push(why),
            false => counts.surplus += 1,
        });
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.counts.lock().expect("nobody panics with it");
        change(&mut counts);
        let handled = counts.hashed.len() + counts.failures.len();
        match &self.bar {
            Some(bar) => {
                bar.set_length(counts.pushed as u64);
                bar.set_position(handled as u64);
            }
            None if handled > 0 && handled.is_multiple_of(1000) => {
                eprintln!("{handled} of {} files so far", counts.pushed);
            }
            None => {}
        }
        if counts.complete() {
            self.complete.notify_one();
        }
    }
}

pub(crate) fn bar() -> Option<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} files, {per_sec}, {elapsed}");
    let bar = ProgressBar::new(0).with_style(style.expect("the template is valid"));
    (!bar.is_hidden()).then_some(bar)
}

/// Prints what was done; true if every file was hashed.
pub(crate) fn summary(counts: &Counts, began: Instant) -> bool {
    let seconds = began.elapsed().as_secs_f64();
    let bytes: u64 = counts.hashed.iter().map(|file| file.bytes).sum();
    let lines: u64 = counts.hashed.iter().map(|file| file.lines).sum();
    let (hashed, pushed) = (counts.hashed.len(), counts.pushed);
    println!("{hashed} files, {}, {lines} lines in {seconds:.2} s", HumanBytes(bytes));
    println!("{:.0} jobs/s, {} failures", hashed as f64 / seconds, counts.failures.len());
    counts.failures.iter().for_each(|why| println!("  failed: {why}"));
    let mut largest: Vec<_> = counts.hashed.iter().collect();
    largest.sort_by_key(|file| std::cmp::Reverse(file.bytes));
    for Hashed { path, bytes, sha256, .. } in largest.into_iter().take(LARGEST) {
        println!(
            "  {:>10}  {}…  {}",
            HumanBytes(*bytes).to_string(),
            &sha256[..12],
            path.display()
        );
    }
    if counts.surplus > 0 {
        println!("{} deliveries of other runs, or repeated", counts.surplus);
    }
    if counts.before > 0 {
        println!("{} more were done before this process", counts.before);
    }
    match counts.missing() {
        0 => println!("checked: all {pushed} pushed jobs were handled"),
        missing => println!("MISSING: {missing} of {pushed} pushed jobs were not handled"),
    }
    counts.complete() && counts.failures.is_empty()
}
