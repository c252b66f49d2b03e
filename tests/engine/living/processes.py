"""A process that writes to a collection, or reads it, until a time has passed, and logs what it was told.

Run as `python -m tests.engine.living.processes ROLE NUMBER LOCATION SECONDS STEPS LOG`. A writer has ids of its own,
and some that it shares with others. Each row has a stamp that no other row has, as its attribute; a write is logged
before it begins, and again with its version when it is acknowledged.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import CollectionBusyError, IdNotFoundError

BITS = 32
IDS_EACH = 40


def codes_of(stamps):
    """Return the code of each stamp: few are distinct."""
    return np.array([[stamp % 5] for stamp in stamps], np.uint64)


class Log:
    def __init__(self, path):
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, **what):
        self._file.write(json.dumps(what) + "\n")
        self._file.flush()


class Writer:
    def __init__(self, number, location, log):
        self._rng = np.random.default_rng(number)
        self._number, self._location, self._log = number, location, log
        self._stamps = number * 1_000_000
        self._mine = set()

    def _own_ids(self, count):
        return (self._number * 1000 + self._rng.choice(IDS_EACH, count, replace=False)).tolist()

    def _new_stamps(self, count):
        self._stamps += count
        return list(range(self._stamps - count, self._stamps))

    def step(self):
        kind = self._rng.choice(["upsert", "number", "delete", "update", "where", "compact", "shared"],
                                p=[0.25, 0.15, 0.2, 0.15, 0.1, 0.05, 0.1])  # fmt: skip
        if kind == "compact":
            Collection.open(self._location).compact(full=bool(self._rng.integers(2)))
            return
        ids = self._own_ids(int(self._rng.integers(1, 6)))
        if kind == "update":
            ids = [id_ for id_ in ids if id_ in self._mine]
        if kind == "shared" or (kind == "delete" and self._rng.random() < 0.3):
            ids = self._rng.choice(8, 2, replace=False).tolist()
        stamps = [] if kind in ("delete", "where") else self._new_stamps(len(ids))
        about = {"writer": self._number, "kind": str(kind), "ids": ids, "stamps": stamps}
        self._log.write(begun=True, **about)
        try:
            with Transaction(self._location, tables=False) as change:
                self._record(change, kind, ids, stamps)
                done = change.commit()
        except CollectionBusyError as error:
            self._log.write(refused=str(error), **about)
            return
        self._log.write(version=done.version, added=done.added, deleted=done.deleted, **about)
        if kind in ("upsert", "delete", "where"):
            (self._mine.update if kind == "upsert" else self._mine.difference_update)(ids)

    def _record(self, change, kind, ids, stamps):
        if kind in ("upsert", "shared"):
            change.upsert(codes_of(stamps), np.array(ids), {"stamp": stamps})
        elif kind == "number":
            change.add(codes_of(stamps), attributes={"stamp": stamps})
        elif kind == "delete":
            change.delete(ids)
        elif kind == "where":
            change.delete_where("id in :some", {"some": ids})
        else:
            change.update(ids, {"stamp": stamps})


def read(location, log):
    """Open the live version and log what it holds; its answers must be those of its rows."""
    opened = Collection.open(location)
    items = opened.scan(["stamp"]).read_all()
    rows = dict(zip(items["id"].to_pylist(), items["stamp"].to_pylist(), strict=True))
    assert len(rows) == len(items) == len(opened)
    everything = opened.range_search(np.zeros((1, 1), np.uint64), BITS)
    assert sorted(everything.ids.tolist()) == list(rows)
    log.write(read=opened.version, commit=opened.manifest.commit, rows=sorted(rows.items()))


def main(role, number, location, seconds, least, path):
    log = Log(path)
    writer = Writer(int(number), location, log)
    until = time.monotonic() + float(seconds)
    steps = 0
    while time.monotonic() < until or steps < int(least):
        if role == "write":
            try:
                writer.step()
            except IdNotFoundError as error:  # no other process touches these ids
                log.write(wrong=str(error))
        else:
            read(location, log)
        steps += 1
    log.write(ended=True, steps=steps)


if __name__ == "__main__":
    main(*sys.argv[1:])
