//! The operations on the file, one statement or few each. No decisions.

use rusqlite::{CachedStatement, Connection, OptionalExtension, Params, Row, TransactionState};

use crate::codec::{Content, NewJob};

pub(crate) type Sql<T> = rusqlite::Result<T>;

/// The open file. Only its writer thread uses it.
#[derive(Debug)]
pub(crate) struct Store {
    connection: Connection,
}

/// Where a job stands: what goes with it from table to table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Standing {
    pub(crate) seq: i64,
    pub(crate) queue: i64,
    pub(crate) priority: i64,
    pub(crate) place: i64,
    pub(crate) attempt: u32,
}

/// Numbers of jobs of a queue, or by how much they change.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) ready: i64,
    pub(crate) delayed: i64,
    pub(crate) leased: i64,
    pub(crate) dead: i64,
}

/// A process that has the file open, and until when its leases last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OtherOwner {
    pub(crate) id: i64,
    pub(crate) until: i64,
}

/// A rejected job.
#[derive(Debug)]
pub(crate) struct DeadJob {
    pub(crate) standing: Standing,
    pub(crate) died: i64,
    pub(crate) content: Content,
}

impl Store {
    pub(crate) fn new(connection: Connection) -> Self {
        connection.set_prepared_statement_cache_capacity(64);
        Self { connection }
    }

    /// Closes the file; the last to do so writes everything into it and removes its log.
    pub(crate) fn close(self) -> Sql<()> {
        self.connection.close().map_err(|(_, error)| error)
    }

    fn prepare(&self, sql: &str) -> Sql<CachedStatement<'_>> {
        self.connection.prepare_cached(sql)
    }

    fn execute(&self, sql: &str, params: impl Params) -> Sql<usize> {
        self.prepare(sql)?.execute(params)
    }

    /// Begins to write. Waits for other processes, as long as the connection is set to.
    pub(crate) fn begin(&self) -> Sql<()> {
        self.execute("BEGIN IMMEDIATE", []).map(drop)
    }

    pub(crate) fn commit(&self) -> Sql<()> {
        self.execute("COMMIT", []).map(drop)
    }

    /// Some errors have rolled back already.
    pub(crate) fn roll_back(&self) {
        if self.connection.is_autocommit() {
            return;
        }
        if let Err(error) = self.execute("ROLLBACK", []) {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
    }

    /// True if the transaction has written anything.
    pub(crate) fn is_writing(&self) -> bool {
        let state = self.connection.transaction_state(None::<&str>);
        state.is_ok_and(|state| state == TransactionState::Write)
    }

    /// The next number, see `sequence`.
    pub(crate) fn next_number(&self) -> Sql<i64> {
        self.prepare("SELECT next FROM sequence")?.query_row([], |row| row.get(0))
    }

    pub(crate) fn set_next_number(&self, next: i64) -> Sql<()> {
        self.execute("UPDATE sequence SET next = ?1", [next]).map(drop)
    }

    /// The number of a queue, made if there is none of that name.
    pub(crate) fn queue(&self, name: &str) -> Sql<i64> {
        self.execute("INSERT OR IGNORE INTO queues (name) VALUES (?1)", [name])?;
        let sql = "SELECT queue FROM queues WHERE name = ?1";
        self.prepare(sql)?.query_row([name], |row| row.get(0))
    }

    pub(crate) fn counts(&self, queue: i64) -> Sql<Counts> {
        let sql = "SELECT ready, delayed, leased, dead FROM queues WHERE queue = ?1";
        let counts = |row: &Row<'_>| {
            let (ready, delayed) = (row.get(0)?, row.get(1)?);
            Ok(Counts { ready, delayed, leased: row.get(2)?, dead: row.get(3)? })
        };
        Ok(self.prepare(sql)?.query_row([queue], counts).optional()?.unwrap_or_default())
    }

    pub(crate) fn count(&self, queue: i64, by: Counts) -> Sql<()> {
        let sql = "UPDATE queues SET ready = ready + ?2, delayed = delayed + ?3, \
                   leased = leased + ?4, dead = dead + ?5 WHERE queue = ?1";
        self.execute(sql, (queue, by.ready, by.delayed, by.leased, by.dead)).map(drop)
    }

    pub(crate) fn insert_job(&self, seq: i64, queue: i64, job: &NewJob, now: i64) -> Sql<()> {
        let sql = "INSERT INTO jobs (seq, queue, id, name, priority, auto_ack, pushed, headers, \
                   payload) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let message = &job.message;
        let params = (
            seq,
            queue,
            message.id().as_str(),
            message.name(),
            message.priority(),
            message.auto_ack(),
            now,
            &job.headers,
            &message.payload()[..],
        );
        self.execute(sql, params).map(drop)
    }

    pub(crate) fn delete_job(&self, seq: i64) -> Sql<()> {
        self.execute("DELETE FROM jobs WHERE seq = ?1", [seq]).map(drop)
    }

    pub(crate) fn set_headers(&self, seq: i64, headers: Option<&str>) -> Sql<()> {
        self.execute("UPDATE jobs SET headers = ?2 WHERE seq = ?1", (seq, headers)).map(drop)
    }

    pub(crate) fn insert_ready(&self, job: &Standing) -> Sql<()> {
        let sql = "INSERT INTO ready (queue, priority, place, seq, attempt) \
                   VALUES (?1, ?2, ?3, ?4, ?5)";
        self.execute(sql, (job.queue, job.priority, job.place, job.seq, job.attempt)).map(drop)
    }

    /// False if it was not there.
    pub(crate) fn delete_ready(&self, job: &Standing) -> Sql<bool> {
        let sql = "DELETE FROM ready WHERE queue = ?1 AND priority = ?2 AND place = ?3";
        Ok(self.execute(sql, (job.queue, job.priority, job.place))? > 0)
    }

    /// Removes all of a queue up to this place.
    pub(crate) fn delete_ready_up_to(&self, last: &Standing) -> Sql<()> {
        let sql = "DELETE FROM ready WHERE queue = ?1 AND (priority, place) <= (?2, ?3)";
        self.execute(sql, (last.queue, last.priority, last.place)).map(drop)
    }

    /// Looks at the ready jobs of a queue from a place on, in order, until told to stop.
    pub(crate) fn each_ready(
        &self,
        queue: i64,
        (priority, place): (i64, i64),
        mut visit: impl FnMut(&Standing) -> bool,
    ) -> Sql<()> {
        let sql = "SELECT seq, queue, priority, place, attempt FROM ready \
                   WHERE queue = ?1 AND (priority, place) >= (?2, ?3) ORDER BY priority, place";
        let mut statement = self.prepare(sql)?;
        let mut rows = statement.query((queue, priority, place))?;
        while let Some(row) = rows.next()? {
            if !visit(&standing(row)?) {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn content(&self, seq: i64) -> Sql<Option<Content>> {
        let sql = "SELECT id, name, priority, auto_ack, headers, payload FROM jobs WHERE seq = ?1";
        self.prepare(sql)?.query_row([seq], |row| content(row, 0)).optional()
    }

    pub(crate) fn insert_delayed(&self, job: &Standing, due: i64) -> Sql<()> {
        let sql = "INSERT INTO delayed (due, place, queue, priority, seq, attempt) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let params = (due, job.place, job.queue, job.priority, job.seq, job.attempt);
        self.execute(sql, params).map(drop)
    }

    pub(crate) fn next_due(&self) -> Sql<Option<i64>> {
        self.prepare("SELECT min(due) FROM delayed")?.query_row([], |row| row.get(0))
    }

    /// The first of the jobs whose time has come, taken out.
    pub(crate) fn take_due(&self, now: i64, most: usize) -> Sql<Vec<Standing>> {
        let sql = "SELECT seq, queue, priority, place, attempt, due FROM delayed \
                   WHERE due <= ?1 ORDER BY due, place LIMIT ?2";
        let mut statement = self.prepare(sql)?;
        let due = |row: &Row<'_>| Ok((standing(row)?, row.get::<_, i64>(5)?));
        let rows: Vec<_> = statement.query_map((now, most), due)?.collect::<Sql<_>>()?;
        if let Some((last, due)) = rows.last() {
            let sql = "DELETE FROM delayed WHERE (due, place) <= (?1, ?2)";
            self.execute(sql, (due, last.place))?;
        }
        Ok(rows.into_iter().map(|(standing, _)| standing).collect())
    }

    pub(crate) fn insert_leased(&self, job: &Standing, owner: i64, token: u64) -> Sql<()> {
        let sql = "INSERT INTO leased (seq, queue, owner, token, until, priority, place, attempt) \
                   VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7)";
        let params = (job.seq, job.queue, owner, token, job.priority, job.place, job.attempt);
        self.execute(sql, params).map(drop)
    }

    /// False if the lease ended: whoever has the job now is left alone.
    pub(crate) fn delete_leased(&self, seq: i64, owner: i64, token: u64) -> Sql<bool> {
        let sql = "DELETE FROM leased WHERE seq = ?1 AND owner = ?2 AND token = ?3";
        Ok(self.execute(sql, (seq, owner, token))? > 0)
    }

    /// False if the lease ended.
    pub(crate) fn extend(&self, seq: i64, owner: i64, token: u64, until: i64) -> Sql<bool> {
        let sql = "UPDATE leased SET until = max(until, ?4) \
                   WHERE seq = ?1 AND owner = ?2 AND token = ?3";
        Ok(self.execute(sql, (seq, owner, token, until))? > 0)
    }

    /// Takes out the leases of an owner that do not last until `now`.
    pub(crate) fn take_leased(&self, owner: i64, now: i64) -> Sql<Vec<Standing>> {
        let sql = "DELETE FROM leased WHERE owner = ?1 AND until <= ?2 \
                   RETURNING seq, queue, priority, place, attempt";
        self.prepare(sql)?.query_map((owner, now), standing)?.collect()
    }

    pub(crate) fn insert_dead(&self, job: &Standing, now: i64) -> Sql<()> {
        let sql = "INSERT INTO dead (queue, place, seq, priority, attempt, died) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        self.execute(sql, (job.queue, job.place, job.seq, job.priority, job.attempt, now)).map(drop)
    }

    /// Rejected jobs of a queue after a place, oldest first.
    pub(crate) fn dead(&self, queue: i64, after: i64, most: i64) -> Sql<Vec<DeadJob>> {
        let sql = "SELECT d.seq, d.queue, d.priority, d.place, d.attempt, d.died, \
                   j.id, j.name, j.priority, j.auto_ack, j.headers, j.payload \
                   FROM dead d JOIN jobs j USING (seq) \
                   WHERE d.queue = ?1 AND d.place > ?2 ORDER BY d.place LIMIT ?3";
        let dead = |row: &Row<'_>| {
            let (standing, died) = (standing(row)?, row.get(5)?);
            Ok(DeadJob { standing, died, content: content(row, 6)? })
        };
        self.prepare(sql)?.query_map((queue, after, most), dead)?.collect()
    }

    /// Takes a rejected job out.
    pub(crate) fn take_dead(&self, queue: i64, place: i64) -> Sql<Option<Standing>> {
        let sql = "DELETE FROM dead WHERE queue = ?1 AND place = ?2 \
                   RETURNING seq, queue, priority, place, attempt";
        self.prepare(sql)?.query_row((queue, place), standing).optional()
    }

    /// Deletes some of a queue's rejected jobs, and tells how many.
    pub(crate) fn purge_dead(&self, queue: i64, most: usize) -> Sql<usize> {
        let sql = "DELETE FROM jobs WHERE seq IN \
                   (SELECT seq FROM dead WHERE queue = ?1 ORDER BY place LIMIT ?2)";
        self.execute(sql, (queue, most))?;
        let sql = "DELETE FROM dead WHERE queue = ?1 AND place IN \
                   (SELECT place FROM dead WHERE queue = ?1 ORDER BY place LIMIT ?2)";
        self.execute(sql, (queue, most))
    }

    /// Notes until when the leases of an owner last.
    pub(crate) fn set_owner(&self, owner: i64, until: i64) -> Sql<()> {
        let sql = "INSERT INTO owners VALUES (?1, ?2) ON CONFLICT DO UPDATE SET until = ?2";
        self.execute(sql, (owner, until)).map(drop)
    }

    pub(crate) fn delete_owner(&self, owner: i64) -> Sql<()> {
        self.execute("DELETE FROM owners WHERE owner = ?1", [owner]).map(drop)
    }

    /// When the leases of an owner end; none if it is not known any more.
    pub(crate) fn owner_until(&self, owner: i64) -> Sql<Option<i64>> {
        let sql = "SELECT until FROM owners WHERE owner = ?1";
        self.prepare(sql)?.query_row([owner], |row| row.get(0)).optional()
    }

    pub(crate) fn other_owners(&self, owner: i64) -> Sql<Vec<OtherOwner>> {
        let sql = "SELECT owner, until FROM owners WHERE owner <> ?1";
        let other = |row: &Row<'_>| Ok(OtherOwner { id: row.get(0)?, until: row.get(1)? });
        self.prepare(sql)?.query_map([owner], other)?.collect()
    }

    /// True if an owner has leases that do not last until `now` by themselves.
    pub(crate) fn has_leases(&self, owner: i64, now: i64) -> Sql<bool> {
        let sql = "SELECT 1 FROM leased WHERE owner = ?1 AND until <= ?2 LIMIT 1";
        self.prepare(sql)?.exists((owner, now))
    }

    /// Leases of owners that are not known any more.
    pub(crate) fn ownerless(&self) -> Sql<Vec<i64>> {
        let sql = "SELECT DISTINCT owner FROM leased WHERE owner NOT IN \
                   (SELECT owner FROM owners)";
        self.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
    }

    fn pragma(&self, name: &str) -> Sql<u64> {
        self.prepare(&format!("PRAGMA {name}"))?.query_row([], |row| row.get(0))
    }

    /// Bytes of the file that are in use.
    pub(crate) fn used(&self) -> Sql<u64> {
        let pages = self.pragma("page_count")?.saturating_sub(self.pragma("freelist_count")?);
        Ok(pages * self.pragma("page_size")?)
    }

    /// Pages of the file, and how many of them are free.
    pub(crate) fn pages(&self) -> Sql<(u64, u64)> {
        Ok((self.pragma("page_count")?, self.pragma("freelist_count")?))
    }

    /// Gives some free pages back to the file system.
    pub(crate) fn shrink(&self, pages: u64) -> Sql<()> {
        let sql = format!("PRAGMA incremental_vacuum({pages})");
        let mut statement = self.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    }

    /// Writes the log into the file and cuts it off, unless somebody reads.
    pub(crate) fn checkpoint(&self) -> Sql<()> {
        self.prepare("PRAGMA wal_checkpoint(TRUNCATE)")?.query_row([], |_| Ok(()))
    }
}

fn standing(row: &Row<'_>) -> Sql<Standing> {
    let attempt: i64 = row.get(4)?;
    Ok(Standing {
        seq: row.get(0)?,
        queue: row.get(1)?,
        priority: row.get(2)?,
        place: row.get(3)?,
        // What another program may have written there is brought into range.
        attempt: u32::try_from(attempt.max(1)).unwrap_or(u32::MAX),
    })
}

fn content(row: &Row<'_>, first: usize) -> Sql<Content> {
    Ok(Content {
        id: text(row, first)?,
        name: text(row, first + 1)?,
        priority: row.get(first + 2)?,
        auto_ack: row.get::<_, i64>(first + 3)? != 0,
        headers: row.get_ref(first + 4)?.as_bytes_or_null()?.map(lossy),
        payload: row.get(first + 5)?,
    })
}

/// SQLite does not check that text is text.
fn text(row: &Row<'_>, column: usize) -> Sql<String> {
    Ok(lossy(row.get_ref(column)?.as_bytes()?))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
