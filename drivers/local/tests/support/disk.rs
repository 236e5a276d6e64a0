//! A disk that can be full and lose its power: a file system in a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use jobs_kit::{CaseError, Unexpected};
use tempfile::TempDir;

/// Room enough for some seconds of work.
const SIZE: u64 = 64 << 20;
/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: what is not on the disk now never will be.
/// Source: `fs/ext4/ext4.h` of Linux; the number is that of x86, Arm and RISC-V. In Perl, for this
/// suite has no unsafe code.
const SHUT_DOWN: &str = "open(my $root, '<', $ARGV[0]) or die $!; \
                         my $how = pack('L', 2); ioctl($root, 0x8004587D, $how) or die $!";

/// Set in the program that [`apart`] starts.
const APART: &str = "JOBS_LOCAL_APART";

/// Runs this program again where its mounts are its own, and returns how that ended: no other program
/// keeps one busy, and none outlives it. None in there, and where that is not possible.
pub(crate) fn apart() -> Option<ExitCode> {
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--"]);
        command
    };
    if std::env::var_os(APART).is_some() || !unshare().arg("true").output().ok()?.status.success() {
        return None;
    }
    let program = std::env::current_exe().ok()?;
    let again = unshare().arg(program).args(std::env::args_os().skip(1)).env(APART, "1").status();
    Some(if again.ok()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An ext4 file system of its own, mounted below a scratch directory.
pub(crate) struct Disk {
    directory: TempDir,
    mounted: bool,
}

impl Disk {
    /// Makes and mounts one. Ignores the case, with the reason, where that cannot be done.
    pub(crate) fn new() -> Result<Self, CaseError> {
        let directory = tempfile::tempdir()?;
        File::create(directory.path().join("image"))?.set_len(SIZE)?;
        fs::create_dir(directory.path().join("root"))?;
        let mut disk = Self { directory, mounted: false };
        let unavailable = |what: &str, error| {
            let reason = format!("needs root, loop devices, mkfs.ext4 and perl; {what}: {error}");
            CaseError::ignored(reason)
        };
        let image = disk.image();
        // Nothing is kept for root.
        let made = command("mkfs.ext4", &["-q".as_ref(), "-m".as_ref(), "0".as_ref(), &image]);
        made.map_err(|error| unavailable("mkfs.ext4", error))?;
        disk.mount().map_err(|error| unavailable("mount", error))?;
        command("perl", &["-e".as_ref(), "1".as_ref()]).map_err(|e| unavailable("perl", e))?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Where it is mounted.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.root().join("jobs.db")
    }

    fn mount(&mut self) -> Result<(), Unexpected> {
        command("mount", &["-o".as_ref(), "loop".as_ref(), &self.image(), &self.root()])?;
        self.mounted = true;
        Ok(())
    }

    /// Fails everything from now on, and forgets what was not synced.
    pub(crate) fn lose_power(&self) -> Result<(), Unexpected> {
        command("perl", &["-e".as_ref(), SHUT_DOWN.as_ref(), &self.root()])
    }

    /// Takes it away and mounts it again, with what it has. Nobody may have files on it open.
    pub(crate) fn restart(&mut self) -> Result<(), Unexpected> {
        command("umount", &[&self.root()])?;
        self.mounted = false;
        self.mount()
    }

    /// Leaves that many bytes free, in a file that can be removed.
    pub(crate) fn fill(&self, left: u64) -> Result<PathBuf, CaseError> {
        let filler = self.root().join("filler");
        let stat = rustix::fs::statvfs(self.root())?;
        let free = (stat.f_bavail * stat.f_frsize).saturating_sub(left);
        rustix::fs::fallocate(
            File::create(&filler)?,
            rustix::fs::FallocateFlags::empty(),
            0,
            free,
        )?;
        Ok(filler)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.mounted || command("umount", &[&self.root()]).is_ok() {
            return;
        }
        // Files of a case that failed may be open: it goes when they are closed.
        if command("umount", &["--lazy".as_ref(), &self.root()]).is_err() {
            self.directory.disable_cleanup(true);
        }
    }
}

fn command(program: &str, arguments: &[&Path]) -> Result<(), Unexpected> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| Unexpected::new(format!("{program}: {error}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Unexpected::new(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}
