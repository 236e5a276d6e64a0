-- Content of jobs: written when pushed, deleted when done. Where a job is, is in the other tables, so
-- that handing it out and back does not write its payload again.
CREATE TABLE jobs (
    seq      INTEGER PRIMARY KEY,
    queue    INTEGER NOT NULL REFERENCES queues,
    id       TEXT NOT NULL,
    name     TEXT NOT NULL,
    priority INTEGER,                    -- the message's own, if it has one
    auto_ack INTEGER NOT NULL,
    pushed   INTEGER NOT NULL,           -- milliseconds since 1970, as all times here
    headers  TEXT,                       -- JSON: [["name","value"],…]
    payload  BLOB NOT NULL
) STRICT;

-- Jobs that can be handed out, in this order.
CREATE TABLE ready (
    queue    INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    place    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    PRIMARY KEY (queue, priority, place)
) STRICT, WITHOUT ROWID;

-- Jobs that wait for their time.
CREATE TABLE delayed (
    due      INTEGER NOT NULL,
    place    INTEGER NOT NULL,
    queue    INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    PRIMARY KEY (due, place)
) STRICT, WITHOUT ROWID;

-- Jobs that were handed out and are not settled.
CREATE TABLE leased (
    seq      INTEGER PRIMARY KEY,
    queue    INTEGER NOT NULL,
    owner    INTEGER NOT NULL,           -- the process that has it
    token    INTEGER NOT NULL,           -- its number for the delivery
    until    INTEGER NOT NULL,           -- not before; 0: as long as the owner's
    priority INTEGER NOT NULL,
    place    INTEGER NOT NULL,
    attempt  INTEGER NOT NULL
) STRICT;

-- Jobs that were rejected.
CREATE TABLE dead (
    queue    INTEGER NOT NULL,
    place    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    died     INTEGER NOT NULL,
    PRIMARY KEY (queue, place)
) STRICT, WITHOUT ROWID;

-- The queues, with the number of rows each has in the tables above.
CREATE TABLE queues (
    queue    INTEGER PRIMARY KEY,
    name     TEXT NOT NULL UNIQUE,
    ready    INTEGER NOT NULL DEFAULT 0,
    delayed  INTEGER NOT NULL DEFAULT 0,
    leased   INTEGER NOT NULL DEFAULT 0,
    dead     INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Processes that have the file open, and when the leases of each end unless it extends them.
CREATE TABLE owners (
    owner    INTEGER PRIMARY KEY,
    until    INTEGER NOT NULL
) STRICT;

-- The next number for a job, a place or an owner: none is ever used twice.
CREATE TABLE sequence (next INTEGER NOT NULL) STRICT;
INSERT INTO sequence VALUES (1);
