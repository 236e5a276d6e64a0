//! Opening a file: ours, a new one, or none that this driver may touch.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jobs_core::ErrorKind;
use rusqlite::{Connection, OpenFlags};

use crate::codec::millis_after;
use crate::config::{Durability, FileOptions, LeaseStorage};
use crate::error::Fault;
use crate::owners::{Access, Others, Owner, directory};
use crate::store::Store;

const SCHEMA: &str = include_str!("schema.sql");
/// `JOBS` in ASCII: whose file it is.
const APPLICATION: i32 = 0x4A4F_4253;
/// Of the schema. A file with a higher one is refused, one with a lower one is brought up to it.
const VERSION: i32 = 1;

/// How long opening waits for other processes.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks whether another process still writes.
const LOCK_POLL: Duration = Duration::from_micros(500);
/// So many of them, and the writer looks what else there is to do.
const LOCK_POLLS: i32 = 80;
/// How long that takes at least.
pub(crate) const LOCK_WAIT: Duration = Duration::from_millis(40);
/// Of names that lead to one another.
const MOST_LINKS: usize = 40;
/// Pages in the log before they are written into the file.
const CHECKPOINT: u32 = 4_000;
/// What is kept of a log that once grew beyond that, in bytes.
const LOG_SIZE: u32 = 64 << 20;

/// A file that is open, with everything its writer needs.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) store: Store,
    pub(crate) owner: Arc<Owner>,
    pub(crate) access: Access,
    pub(crate) others: Others,
    pub(crate) path: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) options: FileOptions,
}

/// Tells a file from another of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Asks without opening: closing a file ends all locks on it that this process has.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// The one path of a file, with its directory made. A link is followed even if there is no file yet,
/// because that is where SQLite makes it.
pub(crate) fn canonical(path: &Path) -> Result<PathBuf, Fault> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let name = path.file_name().unwrap_or_default().to_owned();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        make_directory(&parent).map_err(|e| Fault::io("its directory cannot be made", e))?;
        match path.canonicalize() {
            Ok(path) if path.is_dir() => {
                let error = io::Error::from(io::ErrorKind::IsADirectory);
                return Err(Fault::io(&path.display().to_string(), error));
            }
            Ok(path) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match path.read_link() {
                Ok(target) => path = parent.join(target),
                Err(_) => {
                    let parent =
                        parent.canonicalize().map_err(|e| Fault::io("its directory", e))?;
                    return Ok(parent.join(name));
                }
            },
            Err(error) => return Err(Fault::io("it cannot be looked at", error)),
        }
    }
    Err(Fault::io("too many links", io::Error::from(io::ErrorKind::InvalidInput)))
}

/// Makes a directory and those above it, each synced: so that the file is found after a loss of
/// power.
fn make_directory(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(path);
    make_directory(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made.and_then(|()| sync_directory(parent)),
    }
}

/// So that what is in it is found after a loss of power.
fn sync_directory(path: &Path) -> io::Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

/// Opens a file, or makes it. Blocks.
pub(crate) fn open(path: &Path, options: FileOptions) -> Result<Opened, Fault> {
    let about = |fault: Fault| fault.about(&format!("option `path`: {}", path.display()));
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(|e| about(e.into()))?;
    // It is there now, and so it has one path and one identity for as long as it is open.
    let path = path.canonicalize().map_err(|e| Fault::io("it cannot be looked at", e))?;
    let identity = only_name(&path)?;
    connection.busy_timeout(OPEN_TIMEOUT)?;
    // Before anything is written.
    let is_empty = is_empty(&mut connection, &path).map_err(about)?;
    let owners = directory(&path);
    match fs::create_dir(&owners) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Fault::io("the directory of its owners cannot be made", error));
        }
        _ => {}
    }
    let alone = options.lease_storage == LeaseStorage::Memory;
    let access = gain_access(&owners, alone)?;
    configure(&connection, options, is_empty).map_err(about)?;
    if is_empty {
        create(&mut connection, &path).map_err(about)?;
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    sync_directory(directory).map_err(|e| Fault::io("its directory cannot be synced", e))?;
    let owner = Arc::new(register(&mut connection, &owners, options).map_err(about)?);
    connection.busy_handler(Some(wait_for_lock))?;
    if !Identity::of(&path).is_ok_and(|now| now == identity) {
        let context = format!("option `path`: {} was replaced while it was opened", path.display());
        return Err(Fault::new(ErrorKind::NotFound, context).transient());
    }
    let (store, others) = (Store::new(connection), Others::new(owners));
    Ok(Opened { store, owner, access, others, path, identity, options })
}

/// SQLite's own wait grows to 100 ms between two looks, with which a process that writes seldom
/// never gets its turn beside one that writes all the time.
fn wait_for_lock(times: i32) -> bool {
    std::thread::sleep(LOCK_POLL);
    times < LOCK_POLLS
}

/// Two names would have two logs, of which each process sees one.
fn only_name(path: &Path) -> Result<Identity, Fault> {
    let metadata = fs::metadata(path).map_err(|e| Fault::io("it cannot be looked at", e))?;
    if metadata.nlink() > 1 {
        let context = format!("option `path`: {} has other names (hard links)", path.display());
        return Err(Fault::new(ErrorKind::InvalidState, context));
    }
    Ok(Identity::from(&metadata))
}

/// Refuses files of others and of later versions; true if there is nothing in it.
fn is_empty(connection: &mut Connection, path: &Path) -> Result<bool, Fault> {
    // In one view: another process may just be making the file.
    let transaction = connection.transaction()?;
    check_whose(&transaction, path)
}

/// To be asked in a transaction.
fn check_whose(connection: &Connection, path: &Path) -> Result<bool, Fault> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i32>(0));
    let application = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    let refused = |what: String| {
        let context = format!("option `path`: {} {what}", path.display());
        Err(Fault::new(ErrorKind::InvalidState, context))
    };
    match (application, version) {
        (APPLICATION, 1..=VERSION) => Ok(false),
        (APPLICATION, _) => refused(format!(
            "has version {version} of the schema, and this driver knows up to {VERSION}"
        )),
        (0, 0) if tables == 0 => Ok(true),
        _ => refused("is a database of another program".into()),
    }
}

fn gain_access(owners: &Path, alone: bool) -> Result<Access, Fault> {
    let start = Instant::now();
    loop {
        let access = Access::new(owners, alone);
        match access.map_err(|e| Fault::io("its owners cannot be looked at", e))? {
            Some(access) => return Ok(access),
            // One that is just closing.
            None if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            None => {
                let context = "option `lease_storage`: with `memory` a file belongs to one \
                               process, and another has it open";
                return Err(Fault::new(ErrorKind::InvalidState, context));
            }
        }
    }
}

/// How long opening waits for a file that belongs to one process.
const PATIENCE: Duration = Duration::from_secs(1);

fn configure(connection: &Connection, options: FileOptions, is_empty: bool) -> Result<(), Fault> {
    if is_empty {
        // Only before there is a table.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    use_log(connection)?;
    let synchronous = match options.durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    // On macOS a sync does not reach the disk otherwise.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -16_384)?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", CHECKPOINT, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_SIZE, |_| Ok(()))?;
    Ok(())
}

/// Several that make the file at once get in each other's way, and SQLite does not wait here.
fn use_log(connection: &Connection) -> Result<(), Fault> {
    let start = Instant::now();
    loop {
        let mode = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))
            .map_err(Fault::from);
        match mode {
            Ok(mode) if mode == "wal" => return Ok(()),
            Ok(mode) => {
                let context = format!("SQLite has a journal of the kind `{mode}` there, not a log");
                return Err(Fault::new(ErrorKind::Unsupported, context));
            }
            Err(fault) if fault.is_transient() && start.elapsed() < OPEN_TIMEOUT => {
                std::thread::sleep(LOCK_POLL);
            }
            Err(fault) => return Err(fault),
        }
    }
}

fn create(connection: &mut Connection, path: &Path) -> Result<(), Fault> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    if check_whose(&transaction, path)? {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
        transaction.pragma_update(None, "user_version", VERSION)?;
    }
    Ok(transaction.commit()?)
}

/// Makes this process known, once its pipe is there and locked.
fn register(
    connection: &mut Connection,
    owners: &Path,
    options: FileOptions,
) -> Result<Owner, Fault> {
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let id = transaction.query_row(
        "UPDATE sequence SET next = next + 1 RETURNING next - 1",
        [],
        |row| row.get(0),
    )?;
    let owner =
        Owner::new(owners, id).map_err(|e| Fault::io("the pipe beside it cannot be made", e))?;
    let until = millis_after(SystemTime::now(), options.lease);
    transaction.execute("INSERT INTO owners VALUES (?1, ?2)", (id, until))?;
    transaction.commit()?;
    Ok(owner)
}
