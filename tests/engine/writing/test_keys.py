"""Idempotency keys: kept for a day, bounded, and found again after a restart."""

from __future__ import annotations

import dataclasses
import sqlite3
import time

import numpy as np
import pytest

from hashlight.engine.errors import CorruptDataError, NotReadyError
from hashlight.engine.writing.keys import KEPT_S, KeyReusedError, Keys, Made
from hashlight.engine.writing.records import Key, Logged
from hashlight.engine.writing.writes import Delete

DAY_S = 24 * 3600


def logged(number, *, age_s=0.0, key=None):
    at = time.time() - age_s
    return Logged(number, Delete(np.array([number])), (8, None), at, Key(key or f"k{number}", f"digest {number}"))


def found(keys, number):
    return keys.find(Key(f"k{number}", f"digest {number}"))


def test_keys_of_logged_writes_and_of_committed_ones_are_found(tmp_path):
    keys = Keys(tmp_path)
    keys.note([logged(1), logged(2), Logged(3, Delete(np.array([1])), (8, None))])
    assert (found(keys, 1), found(keys, 2), found(keys, 3)) == (Made(1, None), Made(2, None), None)
    keys.settle(1, version=7)
    assert (found(keys, 1), found(keys, 2)) == (Made(1, 7), Made(2, None))
    for digest in ("digest 2", ""):
        with pytest.raises(KeyReusedError, match="'k1' came with another request"):
            keys.find(Key("k1", digest))
    keys.close()
    again = Keys(tmp_path)
    assert (found(again, 1), found(again, 2), len(again)) == (Made(1, 7), None, 1)
    again.close()


def test_they_are_forgotten_after_a_day_and_the_latest_stay(tmp_path):
    assert KEPT_S > DAY_S
    keys = Keys(tmp_path, max_keys=3)
    keys.note([logged(1, age_s=KEPT_S + 60), logged(2, age_s=DAY_S)])
    keys.settle(2, version=1)
    assert (found(keys, 1), found(keys, 2)) == (None, Made(2, 1))
    keys.note([logged(number, age_s=10 - number) for number in range(3, 6)])
    keys.settle(9, version=2)
    assert [found(keys, number) is not None for number in range(1, 6)] == [False, False, True, True, True]
    assert len(keys) == 3
    keys.close()


def test_a_log_that_is_read_again_makes_no_key_count_twice(tmp_path):
    """Killed after keys were stored and before the log was shortened: all of them are noted and stored once more."""
    keys = Keys(tmp_path, max_keys=4)
    keys.note([logged(number, age_s=10 - number) for number in range(1, 4)])
    keys.settle(3, version=1)
    keys.close()
    again = Keys(tmp_path, max_keys=4)
    again.note([logged(number, age_s=10 - number) for number in range(1, 5)])
    again.settle(4, version=1)
    assert [found(again, number) for number in range(1, 5)] == [Made(number, 1) for number in range(1, 5)]
    assert len(again) == 4
    again.close()


def test_a_database_that_cannot_be_opened_is_an_error_of_the_system(tmp_path):
    (tmp_path / "keys.sqlite").mkdir()
    with pytest.raises(OSError, match=r"unable to open.*keys\.sqlite"):
        Keys(tmp_path)


def test_closed_keys_are_not_called_damaged(tmp_path):
    keys = Keys(tmp_path)
    keys.close()
    with pytest.raises(NotReadyError, match="try again"):
        found(keys, 1)


def test_a_damaged_database_says_what_to_do(tmp_path):
    (tmp_path / "keys.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(CorruptDataError, match=r"keys\.sqlite is damaged .*: remove it"):
        Keys(tmp_path)


def test_what_was_deleted_is_found_again_also_beside_keys_of_an_earlier_release(tmp_path):
    old = sqlite3.connect(tmp_path / "keys.sqlite")
    old.execute(
        "CREATE TABLE keys (key TEXT PRIMARY KEY, digest TEXT NOT NULL, number INTEGER NOT NULL, "
        "version INTEGER NOT NULL, written_s REAL NOT NULL) WITHOUT ROWID"
    )
    old.execute("INSERT INTO keys VALUES ('k1', 'digest 1', 1, 2, ?)", (time.time(),))
    old.commit()
    old.close()
    for _ in range(2):
        keys = Keys(tmp_path)
        keys.note([dataclasses.replace(logged(2), deleted=7)])
        assert (found(keys, 1), found(keys, 2)) == (Made(1, 2, None), Made(2, None, 7))
        keys.settle(2, version=3)
        assert (found(keys, 1), found(keys, 2)) == (Made(1, 2, None), Made(2, 3, 7))
        keys.close()


def test_a_disk_that_fails_keeps_what_is_to_be_stored(tmp_path, monkeypatch):
    keys = Keys(tmp_path)
    keys.note([logged(1)])
    database = keys._database

    class Full:
        def __getattr__(self, name):
            return getattr(database, name)

        def executemany(self, *_):
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(keys, "_database", Full())
    with pytest.raises(OSError, match="disk is full"):
        keys.settle(1, version=3)
    assert found(keys, 1) == Made(1, None)
    monkeypatch.undo()
    keys.settle(1, version=3)
    assert found(keys, 1) == Made(1, 3)
    keys.close()
