"""Idempotency keys: which write was made under each, so that a second delivery of a request changes nothing.

The keys of writes that are in the log are read from there; those of later removed records are in a database beside it.
"""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from hashlight.engine.errors import CorruptDataError, HashlightError, NotReadyError
from hashlight.engine.writing.records import Key, Logged

KEPT_S = 26 * 3600.0  # a day and some time for clocks that differ
# The latest stay if there are more: some 400 MB.
MAX_KEYS = 2_000_000

_TABLE = (
    "CREATE TABLE IF NOT EXISTS keys (key TEXT PRIMARY KEY, digest TEXT NOT NULL, number INTEGER NOT NULL, "
    "version INTEGER NOT NULL, written_s REAL NOT NULL, deleted INTEGER) WITHOUT ROWID"
)


class KeyReusedError(HashlightError):
    """An idempotency key came with another request before."""


class Made(NamedTuple):
    """A write that will not be lost.

    Attributes
    ----------
    number : int
        Of its record in the log.
    version : int or None
        The first that has it; None while it is only in the log.
    deleted : int or None
        Of a deletion, the items that it found, if that is known.
    """

    number: int
    version: int | None
    deleted: int | None = None


class Keys:
    """The keys of one log. Thread-safe.

    Parameters
    ----------
    folder : Path
        Of the log, which the caller has locked.
    max_keys : int

    Raises
    ------
    CorruptDataError
        If the database is damaged.
    OSError
        If it cannot be read or written.
    """

    def __init__(self, folder: Path, *, max_keys: int = MAX_KEYS) -> None:
        self._path, self._max_keys = folder / "keys.sqlite", max_keys
        self._lock = threading.Lock()
        self._logged: dict[str, Logged] = {}
        with self._errors():
            self._database = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            with self._errors():
                # Nobody else opens it, and what it says has been committed.
                self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute("PRAGMA synchronous = FULL")
                self._database.execute(_TABLE)
                if "deleted" not in {row[1] for row in self._database.execute("PRAGMA table_info(keys)")}:
                    self._database.execute("ALTER TABLE keys ADD COLUMN deleted INTEGER")
                self._database.execute("CREATE INDEX IF NOT EXISTS by_time ON keys (written_s)")
                (self._count,) = self._database.execute("SELECT count(*) FROM keys").fetchone()
        except BaseException:
            self._database.close()
            raise

    def __len__(self) -> int:
        """Return how many are known."""
        return int(self._count) + len(self._logged)

    def find(self, key: Key) -> Made | None:
        """Return what was made under a key; None if nothing was.

        Raises
        ------
        KeyReusedError
            If another request came with it.
        """
        with self._lock, self._errors():
            if (logged := self._logged.get(key.text)) is not None:
                assert logged.key is not None, "noted by it"
                digest, made = logged.key.digest, Made(logged.number, None, logged.deleted)
            else:
                select = "SELECT digest, number, version, deleted FROM keys WHERE key = ?"
                row = self._database.execute(select, (key.text,)).fetchone()
                if row is None:
                    return None
                digest, made = row[0], Made(*row[1:])
        check_same(key, digest)
        return made

    def note(self, logged: Iterable[Logged]) -> None:
        """Remember the keys of writes that are in the log."""
        with self._lock:
            for one in logged:
                if one.key is not None:
                    self._logged[one.key.text] = one

    def settle(self, through: int, version: int) -> None:
        """Store the keys of writes that a version has, before their records are removed; forget those of old.

        Parameters
        ----------
        through : int
            Number of the last of them.
        version : int
            The first that has those whose keys are not stored yet.

        Raises
        ------
        OSError
            If they cannot be stored.
        """
        with self._lock, self._errors():
            rows = [
                (key, one.key.digest, one.number, version, one.written_s, one.deleted)
                for key, one in self._logged.items()
                if one.key is not None and one.number <= through
            ]
            if not rows:
                return
            with self._transaction():
                # A log that was read again has keys that were stored before it could be shortened.
                known = sum(
                    self._database.execute("SELECT 1 FROM keys WHERE key = ?", row[:1]).fetchone() is not None
                    for row in rows
                )
                self._database.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?, ?, ?, ?, ?)", rows)
                old = self._database.execute("DELETE FROM keys WHERE written_s < ?", (time.time() - KEPT_S,)).rowcount
                self._count += len(rows) - known - old
                if self._count > self._max_keys:
                    oldest = "SELECT key FROM keys ORDER BY written_s LIMIT ?"
                    more = (self._count - self._max_keys,)
                    self._count -= self._database.execute(f"DELETE FROM keys WHERE key IN ({oldest})", more).rowcount
            for key, *_ in rows:
                del self._logged[key]

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        before = self._count
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            self._count = before
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:  # it is closed
            raise NotReadyError(
                "this server ends, or another collection has taken the place of this one: try again"
            ) from error
        except sqlite3.OperationalError as error:
            raise OSError(errno.EIO, str(error), str(self._path)) from error
        except sqlite3.Error as error:
            raise CorruptDataError(
                f"{self._path} is damaged ({error}): remove it, and the idempotency keys of the last day are forgotten"
            ) from error


def check_same(key: Key, digest: str) -> None:
    """Raise KeyReusedError if the request of a key has another digest."""
    if key.digest != digest:
        raise KeyReusedError(
            f"`Idempotency-Key` {key.text!r} came with another request before: give each request a key of its own"
        )
