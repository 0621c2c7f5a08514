"""Open an SQLite file as a Wattune database, and say in plain words what is wrong with it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wattune.errors import DatabaseError

# Raised whenever the tables change; a file with a higher number is refused.
SCHEMA_VERSION = 1

# "WATT": tells our files from other programs' SQLite files.
APPLICATION_ID = 0x57415454

_TABLES = """
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    candidate TEXT NOT NULL,
    problem TEXT NOT NULL,
    static_problem TEXT NOT NULL,
    operator TEXT NOT NULL,
    template TEXT NOT NULL,
    target TEXT NOT NULL,
    source_hash TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    mode TEXT NOT NULL,
    threads INTEGER NOT NULL,
    latency REAL,
    joules REAL,
    failure TEXT,
    created REAL NOT NULL,
    record TEXT NOT NULL,
    UNIQUE (candidate, mode, fingerprint, source_hash, created)
);
CREATE INDEX records_problem ON records (problem, mode, latency);
CREATE INDEX records_static_problem ON records (static_problem, mode, latency);
CREATE INDEX records_operator ON records (operator, template, source_hash);
CREATE INDEX records_fingerprint ON records (fingerprint, target, mode, threads);
CREATE INDEX records_joules ON records (problem, joules) WHERE joules IS NOT NULL;
CREATE INDEX records_failure ON records (failure) WHERE failure IS NOT NULL;
CREATE INDEX records_created ON records (created);
CREATE TABLE limits (fingerprint TEXT PRIMARY KEY, json TEXT NOT NULL);
CREATE TABLE state (name TEXT PRIMARY KEY, json TEXT NOT NULL);
"""

_DAMAGED = (
    "is damaged ({detail}); move it away and restore a copy, or rescue what is left with "
    "`sqlite3 FILE .recover`"
)
# Primary result codes of SQLite, and what a person can do about them.
_EXPLANATIONS = {
    sqlite3.SQLITE_NOTADB: "is not a database; give the path of another file",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_FULL: (
        "could not be written: the disk is full; free space and run again, "
        "what was added before is kept"
    ),
    sqlite3.SQLITE_BUSY: (
        "is locked by another process; wait until it is done, or stop it, and run again"
    ),
    sqlite3.SQLITE_LOCKED: "is locked by another reader of this process; finish reading first",
    sqlite3.SQLITE_READONLY: (
        "cannot be written: the file or its directory is read-only; "
        "make both writable, or copy the database elsewhere"
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened: check that it is a file and that it and its directory may be "
        "read and written"
    ),
    sqlite3.SQLITE_PERM: "may not be accessed; check the permissions",
    sqlite3.SQLITE_IOERR: "could not be read or written ({detail}); check the disk",
}

# What every database file starts with.
DATABASE_MAGIC = b"SQLite format 3"


def describe(path: Path, error: sqlite3.Error) -> DatabaseError:
    """Turn an SQLite error into one message that names the file and what to do."""
    # Extended codes keep the primary one in the low byte; errors of the Python module have none.
    code = getattr(error, "sqlite_errorcode", None)
    text = "failed: {detail}" if code is None else _EXPLANATIONS.get(code & 0xFF)
    return DatabaseError(f"database {path} {(text or 'failed: {detail}').format(detail=error)}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn every SQLite error inside into a `DatabaseError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise describe(path, error) from error


def open_file(path: Path, create: bool, read_only: bool, timeout: float) -> sqlite3.Connection:
    """Open and check the file; an absent one is created only where ``create`` allows it.

    Raises `DatabaseError` where the file is absent, damaged, of another program, of a newer
    schema, locked for ``timeout`` seconds, or not writable though it must be.
    """
    create = create and not read_only
    _check_place(path, create)
    with explained(path):
        connection = _connect(path, create, read_only, timeout)
        try:
            if create and _blank(connection):
                _initialise(connection)
            _check(connection, path)
            if not read_only:
                _prepare_writing(connection, timeout)
        except BaseException:
            connection.close()
            raise
    return connection


def _check_place(path: Path, create: bool) -> None:
    """Refuse what SQLite would answer with the same vague "unable to open"."""
    if path.is_dir():
        raise DatabaseError(f"database {path} is a directory; give the path of a file in it")
    if path.exists():
        return
    if not create:
        raise DatabaseError(f"database {path} does not exist; `wattune tune` creates one")
    if not path.parent.is_dir():
        raise DatabaseError(
            f"database {path} cannot be created: the directory {path.parent} does not exist"
        )


def _connect(path: Path, create: bool, read_only: bool, timeout: float) -> sqlite3.Connection:
    mode = "ro" if read_only else "rwc" if create else "rw"
    uri = path.absolute().as_uri()
    connection = sqlite3.connect(
        f"{uri}?mode={mode}", uri=True, timeout=timeout, isolation_level=None
    )
    if not read_only or Path(f"{path}-wal").exists():
        return connection
    try:
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            connection.close()
            raise
        # Reading a WAL database needs a -shm file beside it. On a read-only disk, where none can
        # be made, nobody can be writing either: promise SQLite that the file will not change.
        connection.close()
        return sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True, isolation_level=None)
    return connection


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def _blank(connection: sqlite3.Connection) -> bool:
    """Say whether the file holds nothing at all yet, as after a kill during its creation."""
    if _pragma(connection, "user_version") or _pragma(connection, "application_id"):
        return False
    return connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None


def _initialise(connection: sqlite3.Connection) -> None:
    """Create the tables in one transaction; of several processes the first one does it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _blank(connection):
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse another program's file, a newer schema, a damaged file."""
    if path.stat().st_size == 0:
        raise DatabaseError(f"database {path} is empty: it was truncated or never written")
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise DatabaseError(f"database {path} belongs to another program; give another path")
    version = _pragma(connection, "user_version")
    if version > SCHEMA_VERSION:
        raise DatabaseError(
            f"database {path} was written by a newer Wattune (schema {version}, this program "
            f"knows {SCHEMA_VERSION}); update Wattune, or export the records there"
        )
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        detail = " ".join(str(found).split())
        raise DatabaseError(f"database {path} {_DAMAGED.format(detail=detail)}")


def _prepare_writing(connection: sqlite3.Connection, timeout: float) -> None:
    # SQLite opens what it may not write as read-only, without a word: try now, not after hours.
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    finally:
        connection.execute("ROLLBACK")
    _switch_to_wal(connection, timeout)
    # In WAL mode NORMAL loses nothing when a process is killed; FULL would cost an fsync a record.
    connection.execute("PRAGMA synchronous = NORMAL")


def _switch_to_wal(connection: sqlite3.Connection, timeout: float) -> None:
    """Turn on the write-ahead log, which lets others read while one process writes.

    A file system that cannot do it (some network mounts) keeps its mode without an error; every
    mode survives the death of a process, so that is fine.
    """
    deadline = time.monotonic() + timeout
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # SQLite does not wait here by itself when several processes create the file at once.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
