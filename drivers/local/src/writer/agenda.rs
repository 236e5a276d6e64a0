//! When the writer works, and at what: decided without touching the file.

use std::time::{Duration, Instant, SystemTime};

use crate::codec::millis;

/// How often the writer looks whether other processes live, while there are any.
const LOOK_AFTER_OTHERS: Duration = Duration::from_millis(500);
/// How often at most, however often they ring.
const ANSWER_OTHERS: Duration = Duration::from_millis(20);
/// Between attempts at what nobody waits for.
const RETRY: Duration = Duration::from_millis(100);
/// The longest sleep while a job is delayed: the clock may be set, and stands still in a suspend.
const WATCH_CLOCK: Duration = Duration::from_secs(60);
/// The longest sleep for what has a time: not every system can express years.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) clock: Instant,
    /// As in the file: milliseconds since 1970.
    pub(super) wall: i64,
}

impl Now {
    pub(super) fn take() -> Self {
        Self { clock: Instant::now(), wall: millis(SystemTime::now()) }
    }
}

/// What the writer sees when it asks what to do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Surroundings {
    /// The inbox takes nothing more.
    pub(super) closed: bool,
    /// Somebody waits for a transaction.
    pub(super) writes: bool,
    /// Nobody waits for it, but it is to be written.
    pub(super) pending: bool,
    /// There are leases that others must not take for ended.
    pub(super) holds: bool,
    /// Other processes have the file open.
    pub(super) shared: bool,
    /// When the first lease ends.
    pub(super) next_end: Option<Instant>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    EndLeases,
    LookAfterOthers,
    Write,
    /// See whether there are jobs for consumers, without a transaction that others may wait for.
    Look,
    Tidy,
    /// Until somebody rings, or for that long.
    Sleep(Option<Duration>),
    End,
}

/// What a transaction that was stored means for the next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    /// As it is in the file now.
    pub(super) next_due: Option<i64>,
    /// There may be more jobs for consumers.
    pub(super) look: bool,
    pub(super) kept_alive: bool,
    pub(super) wrote: bool,
}

/// What the writer has in mind.
#[derive(Debug)]
pub(super) struct Agenda {
    /// There may be jobs for consumers. Only looking in vain, or a transaction, ends that.
    look: bool,
    /// When the first delayed job is due.
    next_due: Option<i64>,
    /// When to say again that this process lives.
    keep_alive_at: Instant,
    /// None: it has to be done.
    looked_after_others: Option<Instant>,
    /// Another process has rung since: it may be a new one.
    rung: bool,
    /// When to try again what failed and nobody waits for.
    retry_at: Option<Instant>,
    /// Since when the file cannot be written.
    busy_since: Option<Instant>,
    /// Something was written since free pages were looked for.
    untidy: bool,
    /// The file is not where it was: there is nothing to do but to answer.
    gone: bool,
}

impl Agenda {
    pub(super) fn new(now: Now) -> Self {
        Self {
            look: true,
            next_due: None,
            keep_alive_at: now.clock,
            looked_after_others: None,
            rung: false,
            retry_at: None,
            busy_since: None,
            untidy: true,
            gone: false,
        }
    }

    pub(super) fn next(&self, now: Now, around: &Surroundings) -> Step {
        if around.next_end.is_some_and(|end| end <= now.clock) {
            return Step::EndLeases;
        }
        if !self.gone && !around.closed && self.must_look_after_others(now, around) {
            return Step::LookAfterOthers;
        }
        let rests = self.gone || self.retry(now).is_some();
        if around.writes || (around.pending && !rests) {
            return Step::Write;
        }
        if around.closed {
            return Step::End;
        }
        if !rests {
            if self.is_due(now) || self.must_keep_alive(now, around) {
                return Step::Write;
            }
            if self.look {
                return Step::Look;
            }
            if self.untidy {
                return Step::Tidy;
            }
        }
        Step::Sleep(self.sleep(now, around))
    }

    fn retry(&self, now: Now) -> Option<Instant> {
        self.retry_at.filter(|at| *at > now.clock)
    }

    fn is_due(&self, now: Now) -> bool {
        self.next_due.is_some_and(|due| due <= now.wall)
    }

    fn must_keep_alive(&self, now: Now, around: &Surroundings) -> bool {
        around.holds && self.keep_alive_is_due(now)
    }

    fn must_look_after_others(&self, now: Now, around: &Surroundings) -> bool {
        let at = self.others_at(around);
        self.looked_after_others.is_none() || at.is_some_and(|at| at <= now.clock)
    }

    fn others_at(&self, around: &Surroundings) -> Option<Instant> {
        let wait = match self.rung {
            true => ANSWER_OTHERS,
            false if around.shared => LOOK_AFTER_OTHERS,
            false => return None,
        };
        self.looked_after_others.map(|last| last + wait)
    }

    /// How long there is nothing to do unless somebody rings; none: for ever.
    fn sleep(&self, now: Now, around: &Surroundings) -> Option<Duration> {
        let until = |at: Instant| at.saturating_duration_since(now.clock);
        let end = around.next_end.map(until);
        let next = match self.retry(now) {
            _ if self.gone => end,
            Some(retry) => end.into_iter().chain([until(retry)]).min(),
            None => {
                let due = self.next_due.map(|due| {
                    let left = u64::try_from(due.saturating_sub(now.wall)).unwrap_or(0);
                    Duration::from_millis(left).min(WATCH_CLOCK)
                });
                let keep_alive = around.holds.then(|| until(self.keep_alive_at));
                let others = self.others_at(around).map(until);
                [due, keep_alive, end, others].into_iter().flatten().min()
            }
        };
        next.map(|next| next.min(DAY))
    }

    /// Delayed jobs may have to be made ready.
    pub(super) fn looks_for_due(&self, now: i64) -> bool {
        self.look || self.next_due.is_some_and(|due| due <= now)
    }

    pub(super) fn next_due(&self) -> Option<i64> {
        self.next_due
    }

    pub(super) fn keep_alive_is_due(&self, now: Now) -> bool {
        self.keep_alive_at <= now.clock
    }

    /// There may be jobs for consumers.
    pub(super) fn look(&mut self) {
        self.look = true;
    }

    /// A consumer came, which wants what dead processes left.
    pub(super) fn look_around(&mut self) {
        self.look = true;
        self.looked_after_others = None;
    }

    /// Another process wrote something, or came.
    pub(super) fn rung(&mut self) {
        self.look = true;
        self.rung = true;
    }

    pub(super) fn looked_after_others(&mut self, now: Now) {
        self.looked_after_others = Some(now.clock);
        self.rung = false;
    }

    /// Looked, and there are no jobs for consumers.
    pub(super) fn found_nothing(&mut self, next_due: Option<i64>) {
        self.look = false;
        self.next_due = next_due;
    }

    /// A transaction could not begin. Returns for how long none could.
    pub(super) fn not_begun(&mut self, now: Now) -> Duration {
        let since = *self.busy_since.get_or_insert(now.clock);
        now.clock.saturating_duration_since(since)
    }

    pub(super) fn begun(&mut self) {
        self.busy_since = None;
    }

    /// What failed is tried again, but not at once.
    pub(super) fn failed(&mut self, now: Now) {
        self.busy_since = None;
        self.look = true;
        self.retry_at = Some(now.clock + RETRY);
    }

    pub(super) fn done(&mut self, now: Now, done: &Done, lease: Duration) {
        self.next_due = done.next_due;
        self.look = done.look;
        self.untidy |= done.wrote;
        if done.kept_alive {
            self.keep_alive_at = now.clock + lease / 2;
        }
    }

    /// Free pages were looked for.
    pub(super) fn tidied(&mut self, more: bool) {
        self.untidy = more;
    }

    pub(super) fn gone(&mut self) {
        self.gone = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn start() -> Now {
        Now { clock: Instant::now(), wall: 1_000_000 }
    }

    fn later(now: Now, millis: u32) -> Now {
        let clock = now.clock + Duration::from_millis(millis.into());
        Now { clock, wall: now.wall + i64::from(millis) }
    }

    /// One that has nothing to do.
    fn idle(now: Now) -> Agenda {
        let mut agenda = Agenda::new(now);
        agenda.looked_after_others(now);
        agenda.found_nothing(None);
        agenda.tidied(false);
        agenda
    }

    const ALONE: Surroundings = Surroundings {
        closed: false,
        writes: false,
        pending: false,
        holds: false,
        shared: false,
        next_end: None,
    };

    #[test]
    fn whoever_has_nothing_to_do_sleeps_until_it_is_rung() {
        let now = start();
        let mut agenda = idle(now);
        assert_eq!(agenda.next(later(now, 999_999), &ALONE), Step::Sleep(None));
        assert_eq!(agenda.next(now, &Surroundings { closed: true, ..ALONE }), Step::End);
        let shared = Surroundings { shared: true, ..ALONE };
        assert_eq!(agenda.next(now, &shared), Step::Sleep(Some(LOOK_AFTER_OTHERS)));
        assert_eq!(agenda.next(later(now, 500), &shared), Step::LookAfterOthers);
        agenda.rung();
        assert_eq!(agenda.next(now, &ALONE), Step::Look, "for jobs at once");
        assert_eq!(agenda.next(later(now, 20), &ALONE), Step::LookAfterOthers);
    }

    #[test]
    fn a_file_that_is_busy_loses_no_wake_up() {
        let now = start();
        let mut agenda = idle(now);
        agenda.look();
        for tries in 0..5 {
            assert_eq!(agenda.next(now, &ALONE), Step::Look);
            assert_eq!(
                agenda.not_begun(later(now, 50 * tries)).as_millis(),
                50 * u128::from(tries)
            );
        }
        agenda.failed(now);
        assert_eq!(agenda.next(now, &ALONE), Step::Sleep(Some(RETRY)));
        assert_eq!(agenda.next(later(now, 100), &ALONE), Step::Look);
        agenda.found_nothing(None);
        assert_eq!(agenda.next(later(now, 100), &ALONE), Step::Sleep(None));
    }

    #[test]
    fn a_due_job_that_others_moved_is_forgotten() {
        let now = start();
        let mut agenda = idle(now);
        agenda.found_nothing(Some(now.wall + 300));
        assert_eq!(agenda.next(now, &ALONE), Step::Sleep(Some(Duration::from_millis(300))));
        let now = later(now, 300);
        assert!(agenda.looks_for_due(now.wall));
        assert_eq!(agenda.next(now, &ALONE), Step::Write);
        agenda.done(now, &Done::default(), RETRY);
        assert_eq!(agenda.next(now, &ALONE), Step::Sleep(None));
    }

    #[test]
    fn far_times_are_looked_at_again_in_case_the_clock_is_set() {
        let now = start();
        let mut agenda = idle(now);
        agenda.found_nothing(Some(i64::MAX));
        assert_eq!(agenda.next(now, &ALONE), Step::Sleep(Some(WATCH_CLOCK)));
        let set = Now { wall: i64::MAX, ..now };
        assert_eq!(agenda.next(set, &ALONE), Step::Write);
        agenda.found_nothing(None);
        let leased = Surroundings { next_end: Some(now.clock + 9 * DAY), ..ALONE };
        assert_eq!(agenda.next(now, &leased), Step::Sleep(Some(DAY)));
    }

    #[test]
    fn whoever_holds_jobs_gives_signs_of_life() {
        let now = start();
        let mut agenda = idle(now);
        let holds = Surroundings { holds: true, ..ALONE };
        assert_eq!(agenda.next(now, &holds), Step::Write);
        let done = Done { kept_alive: true, ..Done::default() };
        agenda.done(now, &done, Duration::from_secs(60));
        assert_eq!(agenda.next(now, &holds), Step::Sleep(Some(Duration::from_secs(30))));
    }

    #[test]
    fn once_the_file_is_gone_only_answers_are_given() {
        let now = start();
        let mut agenda = idle(now);
        agenda.look_around();
        agenda.failed(now);
        agenda.gone();
        let pending = Surroundings { pending: true, holds: true, shared: true, ..ALONE };
        assert_eq!(agenda.next(later(now, 9_999), &pending), Step::Sleep(None));
        assert_eq!(agenda.next(now, &Surroundings { writes: true, ..pending }), Step::Write);
    }

    proptest! {
        /// Whatever happened: a sleep is never empty, which would be a spin, and a look that was
        /// asked for comes.
        #[test]
        fn it_neither_spins_nor_forgets(
            events in prop::collection::vec((0..10_u8, 0..2_000_u32, any::<[bool; 4]>()), 0..40),
        ) {
            let mut now = start();
            let mut agenda = Agenda::new(now);
            let mut asked = true;
            for (event, wait, [pending, holds, shared, look]) in events {
                now = later(now, wait);
                match event {
                    0 => agenda.look(),
                    1 => agenda.look_around(),
                    2 => agenda.looked_after_others(now),
                    3 => agenda.found_nothing(Some(now.wall + i64::from(wait))),
                    4 => drop(agenda.not_begun(now)),
                    5 => agenda.failed(now),
                    6 => {
                        let next_due = Some(now.wall + i64::from(wait));
                        let done = Done { next_due, look, kept_alive: holds, wrote: look };
                        agenda.done(now, &done, RETRY);
                    }
                    7 => agenda.begun(),
                    8 => agenda.rung(),
                    _ => agenda.tidied(look),
                }
                asked = match event {
                    0 | 1 | 5 | 8 => true,
                    3 => false,
                    6 => look,
                    _ => asked,
                };
                let around = Surroundings { pending, holds, shared, ..ALONE };
                let step = agenda.next(now, &around);
                prop_assert!(step != Step::Sleep(Some(Duration::ZERO)));
                if let Step::Sleep(limit) = step {
                    let waits = agenda.retry(now).is_some();
                    prop_assert!(waits || !(asked || pending), "{:?}", agenda);
                    prop_assert!(!waits || limit.is_some());
                }
            }
        }
    }
}
