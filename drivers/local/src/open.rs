//! Opening a file: ours, a new one, or none that this driver may touch.

use std::fs::{self, File};
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
/// One wait for other processes that write; then the writer looks what else there is to do.
const LOCK_WAIT: Duration = Duration::from_millis(50);
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
    pub(crate) identity: Option<Identity>,
    pub(crate) options: FileOptions,
}

/// Tells a file from another of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// None if there is no file. Asks without opening: closing a file ends all locks on it that
    /// this process has.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// The one path of a file, with its directory made.
pub(crate) fn canonical(path: &Path) -> Result<PathBuf, Fault> {
    let name = path.file_name().unwrap_or_default();
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(|e| Fault::io("its directory cannot be made", e))?;
    match path.canonicalize() {
        Ok(path) if path.is_dir() => {
            let error = io::Error::from(io::ErrorKind::IsADirectory);
            Err(Fault::io(&path.display().to_string(), error))
        }
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = parent.canonicalize().map_err(|e| Fault::io("its directory", e))?;
            Ok(parent.join(name))
        }
        Err(error) => Err(Fault::io("it cannot be looked at", error)),
    }
}

/// Opens a file, or makes it. Blocks.
pub(crate) fn open(path: PathBuf, options: FileOptions) -> Result<Opened, Fault> {
    let about = |error: rusqlite::Error| {
        Fault::from(error).about(&format!("option `path`: {}", path.display()))
    };
    let is_new = !path.exists();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(&path, flags).map_err(about)?;
    connection.busy_timeout(OPEN_TIMEOUT).map_err(about)?;
    // Before anything is written.
    let is_empty = check_whose(&connection, &path)?;
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
        create(&mut connection, &path)?;
    }
    if is_new {
        sync_directory(&path)?;
    }
    let owner = Arc::new(register(&mut connection, &owners, options)?);
    connection.busy_timeout(LOCK_WAIT).map_err(about)?;
    let identity = Identity::of(&path);
    let (store, others) = (Store::new(connection), Others::new(owners));
    Ok(Opened { store, owner, access, others, path, identity, options })
}

/// Refuses files of others and of later versions; true if there is nothing in it.
fn check_whose(connection: &Connection, path: &Path) -> Result<bool, Fault> {
    let about = |error: rusqlite::Error| {
        Fault::from(error).about(&format!("option `path`: {}", path.display()))
    };
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i32>(0));
    let application = number("PRAGMA application_id").map_err(about)?;
    let version = number("PRAGMA user_version").map_err(about)?;
    let tables = number("SELECT count(*) FROM sqlite_schema").map_err(about)?;
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

fn configure(
    connection: &Connection,
    options: FileOptions,
    is_empty: bool,
) -> rusqlite::Result<()> {
    if is_empty {
        // Only before there is a table.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    let synchronous = match options.durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -16_384)?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", CHECKPOINT, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", LOG_SIZE, |_| Ok(()))?;
    Ok(())
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

/// So that the file itself is found after a loss of power.
fn sync_directory(path: &Path) -> Result<(), Fault> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let sync = File::open(directory).and_then(|directory| directory.sync_all());
    sync.map_err(|e| Fault::io("its directory cannot be synced", e))
}
