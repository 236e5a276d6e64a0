//! Processes that share a file: who is alive, and who has something to tell.
//!
//! Each has a named pipe in a directory beside the file, and holds a lock on it. The lock ends with
//! the process, however that ends: so a pipe that can be locked belongs to nobody. A byte in the
//! pipe wakes its owner, which sleeps there and needs no timer to look what others have written.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, mkfifoat};

use crate::store::OtherOwner;

/// Another process has written something.
const FROM_OTHERS: u8 = b'o';
/// This process has something to do.
const FROM_HERE: u8 = b'h';

/// The directory of a file's owners.
pub(crate) fn directory(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push("-owners");
    name.into()
}

fn pipe(directory: &Path, owner: i64) -> PathBuf {
    directory.join(owner.to_string())
}

/// For reading and writing, so that neither opening nor writing depends on the other end.
fn open(path: &Path) -> io::Result<File> {
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open(path)
}

/// This process, as long as this lives.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) id: i64,
    path: PathBuf,
    pipe: File,
}

impl Owner {
    /// Becomes the owner of that number. Nobody must know the number yet.
    pub(crate) fn new(directory: &Path, id: i64) -> io::Result<Self> {
        let path = pipe(directory, id);
        match mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP) {
            // A process that ended before it made its number known.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let pipe = open(&path)?;
        pipe.try_lock()?;
        Ok(Self { id, path, pipe })
    }

    /// Wakes this process's writer.
    pub(crate) fn ring(&self) {
        // A full pipe wakes as well.
        let _ = (&self.pipe).write(&[FROM_HERE]);
    }

    /// Sleeps until somebody rings, or for that long. Returns whether it was another process.
    pub(crate) fn sleep(&self, limit: Option<Duration>) -> bool {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut pipes = [PollFd::new(&self.pipe, PollFlags::IN)];
        // Interrupted or not: the caller looks, and comes back.
        let _ = poll(&mut pipes, limit.as_ref());
        self.answer()
    }

    /// Empties the pipe. Returns whether another process has rung.
    pub(crate) fn answer(&self) -> bool {
        let mut bytes = [0; 256];
        let mut others = false;
        while let Ok(count @ 1..) = (&self.pipe).read(&mut bytes) {
            others |= bytes[..count].contains(&FROM_OTHERS);
            if count < bytes.len() {
                break;
            }
        }
        others
    }

    /// Leaves no trace. Call it when nothing in the file names this owner any more.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What its pipe tells of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Nobody holds the lock.
    Ended,
    /// Somebody holds the lock.
    Lives,
    /// There is no pipe to ask, or it does not answer: only its signs of life count.
    Unknown,
}

/// The other processes that have the file open.
#[derive(Debug, Default)]
pub(crate) struct Others {
    directory: PathBuf,
    known: BTreeMap<i64, Other>,
}

#[derive(Debug)]
struct Other {
    pipe: Option<File>,
    /// Its last sign of life, and when that was seen first.
    until: i64,
    seen: Instant,
}

impl Others {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory, known: BTreeMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Takes note of who there is, with their last signs of life. Those that are new are told at
    /// once: what was written before is news to them as well.
    pub(crate) fn set(&mut self, owners: &[OtherOwner], now: Instant) {
        let mut before = std::mem::take(&mut self.known);
        for OtherOwner { id, until } in owners.iter().copied() {
            let known = before.remove(&id);
            let seen = known.as_ref().filter(|other| other.until == until).map(|other| other.seen);
            let pipe = known.and_then(|other| other.pipe).or_else(|| {
                let pipe = open(&pipe(&self.directory, id)).ok();
                ring(pipe.as_ref());
                pipe
            });
            self.known.insert(id, Other { pipe, until, seen: seen.unwrap_or(now) });
        }
    }

    /// For how long that process was watched without a sign of life.
    pub(crate) fn silence(&self, owner: OtherOwner, now: Instant) -> Duration {
        let known = self.known.get(&owner.id).filter(|other| other.until == owner.until);
        known.map_or(Duration::ZERO, |other| now.saturating_duration_since(other.seen))
    }

    pub(crate) fn ring(&self) {
        self.known.values().for_each(|other| ring(other.pipe.as_ref()));
    }

    pub(crate) fn life(&self, owner: i64) -> Life {
        let Ok(pipe) = open(&pipe(&self.directory, owner)) else { return Life::Unknown };
        // Shared: two that ask at once must not take each other for the owner.
        match pipe.try_lock_shared() {
            Ok(()) => Life::Ended,
            Err(TryLockError::WouldBlock) => Life::Lives,
            Err(TryLockError::Error(_)) => Life::Unknown,
        }
    }

    /// Removes what a dead owner left.
    pub(crate) fn bury(&mut self, owner: i64) {
        self.known.remove(&owner);
        let _ = std::fs::remove_file(pipe(&self.directory, owner));
    }
}

fn ring(pipe: Option<&File>) {
    if let Some(mut pipe) = pipe {
        let _ = pipe.write(&[FROM_OTHERS]);
    }
}

/// The right to use the file, shared or alone.
#[derive(Debug)]
pub(crate) struct Access(#[expect(dead_code, reason = "held for its lock")] File);

impl Access {
    /// None if another process has a right that excludes this one.
    pub(crate) fn new(directory: &Path, alone: bool) -> io::Result<Option<Self>> {
        let path = directory.join("access");
        let options = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        let locked = if alone { options.try_lock() } else { options.try_lock_shared() };
        match locked {
            Ok(()) => Ok(Some(Self(options))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(owners: &[i64]) -> Vec<OtherOwner> {
        owners.iter().map(|id| OtherOwner { id: *id, until: 0 }).collect()
    }

    #[test]
    fn silence_is_what_was_watched() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut others = Others::default();
        let sign = |until| OtherOwner { id: 1, until };
        assert_eq!(others.silence(sign(5), at(9)), Duration::ZERO, "not known yet");
        others.set(&[sign(5)], at(0));
        others.set(&[sign(5)], at(2));
        assert_eq!(others.silence(sign(5), at(3)), Duration::from_secs(3));
        assert_eq!(others.silence(sign(6), at(3)), Duration::ZERO, "a sign of life");
        others.set(&[sign(6)], at(3));
        assert_eq!(others.silence(sign(6), at(4)), Duration::from_secs(1));
    }

    #[test]
    fn an_owner_lives_as_long_as_its_lock() {
        let directory = tempfile::tempdir().unwrap();
        let others = Others::new(directory.path().to_owned());
        assert_eq!(others.life(7), Life::Unknown, "never was");
        let owner = Owner::new(directory.path(), 7).unwrap();
        assert_eq!([others.life(7), others.life(7)], [Life::Lives; 2]);
        assert!(Owner::new(directory.path(), 7).is_err(), "the number is taken");
        drop(owner);
        assert_eq!([others.life(7), others.life(7)], [Life::Ended; 2]);
        Owner::new(directory.path(), 7).unwrap().remove();
        assert!(!pipe(directory.path(), 7).exists());
    }

    #[test]
    fn a_sleeper_is_woken_and_told_by_whom() {
        let directory = tempfile::tempdir().unwrap();
        let owner = Owner::new(directory.path(), 1).unwrap();
        owner.ring();
        assert!(!owner.sleep(None), "rung before it slept");
        assert!(!owner.sleep(Some(Duration::from_millis(1))), "nobody");
        let mut others = Others::new(directory.path().to_owned());
        others.set(&known(&[1, 2]), Instant::now());
        assert!(owner.sleep(None), "the new one is told");
        others.set(&known(&[1]), Instant::now());
        assert!(!owner.sleep(Some(Duration::from_millis(1))), "it is not new any more");
        (0..100_000).for_each(|_| others.ring());
        assert!(owner.sleep(None), "a full pipe holds nobody up");
    }

    #[test]
    fn access_alone_excludes_others() {
        let directory = tempfile::tempdir().unwrap();
        let access = |alone| Access::new(directory.path(), alone).unwrap();
        let shared = (access(false), access(false));
        assert!(shared.0.is_some() && shared.1.is_some() && access(true).is_none());
        drop(shared);
        let alone = access(true);
        assert!(alone.is_some() && access(false).is_none() && access(true).is_none());
    }
}
