//! What is noted of a message, as a line for another process.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use jobs_core::JobId;

/// What is noted of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Pushing,
    Accepted,
    Uncertain,
    Delivered,
    Returning,
    Ending,
    Unanswered,
    Done,
    Dead,
}

impl Event {
    const LETTERS: [(Self, u8); 9] = [
        (Self::Pushing, b'p'),
        (Self::Accepted, b'a'),
        (Self::Uncertain, b'u'),
        (Self::Delivered, b'd'),
        (Self::Returning, b'r'),
        (Self::Ending, b'e'),
        (Self::Unanswered, b'n'),
        (Self::Done, b'o'),
        (Self::Dead, b'x'),
    ];

    /// It says that something was answered.
    pub(crate) fn is_answer(self) -> bool {
        matches!(self, Self::Accepted | Self::Done | Self::Dead)
    }

    fn letter(self) -> u8 {
        let found = Self::LETTERS.iter().find(|(event, _)| *event == self);
        found.expect("each has one").1
    }

    /// A line, ended, in one piece: of what was not written to the end, nothing counts.
    fn line(self, id: &JobId) -> Vec<u8> {
        let mut line = vec![self.letter(), b' '];
        line.extend_from_slice(id.as_str().as_bytes());
        line.push(b'\n');
        line
    }

    /// What a line says; none if it is not one of these, or not whole.
    pub(crate) fn read(line: &[u8]) -> Option<(Self, JobId)> {
        let (letter, rest) = line.split_first()?;
        let id = rest.strip_prefix(b" ")?.strip_suffix(b"\n")?;
        let (event, _) = Self::LETTERS.iter().find(|(_, known)| known == letter)?;
        Some((*event, JobId::from(std::str::from_utf8(id).ok()?)))
    }
}

/// Where a ledger repeats what is noted in it.
pub(super) struct Listener {
    sink: Mutex<Box<dyn Write + Send>>,
    gone: AtomicBool,
}

impl Listener {
    pub(super) fn new(sink: impl Write + Send + 'static) -> Self {
        Self { sink: Mutex::new(Box::new(sink)), gone: AtomicBool::new(false) }
    }

    pub(super) fn tell(&self, event: Event, id: &JobId) {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let told: io::Result<()> = sink.write_all(&event.line(id)).and_then(|()| sink.flush());
        if told.is_err() {
            self.gone.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("gone", &self.gone).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written_or_not_at_all() {
        let id = JobId::from("a b");
        for (event, _) in Event::LETTERS {
            let line = event.line(&id);
            assert_eq!(Event::read(&line), Some((event, id.clone())));
            assert_eq!(Event::read(&line[..line.len() - 1]), None, "not whole");
        }
        for line in [b"".as_slice(), b"\n", b"running 1 test\n", b"? a\n", b"a\xFF\n"] {
            assert_eq!(Event::read(line), None);
        }
    }
}
