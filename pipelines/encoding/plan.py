"""The plan of an encode job: the work list of its corpus, in which units stay as long as their entries do.

When the corpus has changed since the job was begun, the new list is grouped as the old one was: a unit whose entries
are all there and unchanged keeps its number, by which its codes are found, and other entries make new units, with
numbers of their own. So what is unchanged is not encoded again, and one image that is gone, or was written again,
costs its unit. A tar that has not changed stays divided as it was, whatever the size of units is now. The rows of the
codes are then in the order of the units, not of the listing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.places.place import Place
from hashlight.pipelines.codes.parts import PLAN
from hashlight.pipelines.codes.summary import SUMMARY
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.kinds.webdataset import START, STOP, range_id
from hashlight.pipelines.corpora.listing import EMBEDDINGS, SHARDS
from hashlight.pipelines.corpora.work import Units, WorkList, WorkWriter, cut, digest_of

# Old units whose entries are being found; beyond so many, the one that was begun first is given up.
_MAX_OPEN = 256
_PLACE = "__place"


def put_plan(output: Place, path: Path, unit_images: int, where: str) -> None:
    """Publish a work list as the plan of a folder of codes, grouped as the plan that is there.

    Parameters
    ----------
    output : Place
    path : Path
        The work list.
    unit_images : int
        Images of a new unit.
    where : str
        What the work list is called in messages.
    """
    if not output.exists(PLAN):
        output.put_file(PLAN, path)
        return
    with output.open(PLAN) as old_raw, pa.memory_map(str(path)) as new_raw:
        old, new = WorkList(old_raw, output.path(PLAN)), WorkList(new_raw, where)
        if old.summary.digest == new.summary.digest:
            return
        with output.scratch(PLAN) as grouped:
            _write_grouped(new, old, grouped, unit_images)
            output.remove(SUMMARY)
            output.put_file(PLAN, grouped)


def _write_grouped(new: WorkList, old: WorkList, path: Path, unit_images: int) -> None:
    units = old.units()
    numbers = itertools.count(int(units.numbers.max()) + 1)
    matching = _Matching(old, units)
    size, listed = unit_images, new.read_all()
    if new.summary.kind == EMBEDDINGS:
        size = 1
    if new.summary.kind == SHARDS:
        size, listed = 1, matching.divide_shards(listed, new.summary.id_rule)
    with WorkWriter(path) as work:

        def others() -> Iterator[pa.Table]:
            for place, entries in matching.divide(listed):
                if place is None:
                    yield entries
                else:
                    work.add(entries, int(units.numbers[place]))

        for entries in cut(others(), size):
            # Rows of one file are read in ascending order.
            work.add(entries.sort_by(_PLACE).drop_columns([_PLACE]), next(numbers))
        work.finish(new.summary)


class _Matching:
    """Finds the units of an old list among the entries of a new one, in one pass over both."""

    def __init__(self, old: WorkList, units: Units) -> None:
        self._old = old
        self._units = units
        self._order = np.argsort(units.firsts)
        # By the place of the unit: the tables of its entries found so far, and the number that are still missing.
        self._found: dict[int, list[pa.Table]] = {}
        self._missing: dict[int, int] = {}
        # The open unit that an entry belongs to, by the entry's id.
        self._owner: dict[int, int] = {}

    def divide(self, tables: Iterable[pa.Table]) -> Iterator[tuple[int | None, pa.Table]]:
        """Yield old units that are whole and unchanged, with their places, and others, with None."""
        count = 0
        for plain in tables:
            table = plain.append_column(_PLACE, pa.array(np.arange(count, count + len(plain))))
            count += len(plain)
            owners = self._find_owners(table["id"].to_numpy())
            for place in np.unique(owners).tolist():
                some = table.filter(pa.array(owners == place))
                if place < 0:
                    yield None, some
                    continue
                self._found[place].append(some)
                self._missing[place] -= len(some)
            for place in [place for place, missing in self._missing.items() if not missing]:
                yield self._close(place)
            while len(self._found) > _MAX_OPEN:
                yield self._close(next(iter(self._found)))
        for place in list(self._found):
            yield self._close(place)

    def divide_shards(self, ranges: Iterable[pa.Table], ids: IdRule) -> Iterator[pa.Table]:
        """Yield the ranges of tars, of one that is unchanged those of the old list."""
        is_kept = False
        for entry in ranges:
            if entry[START][0].as_py() == 0:
                kept = self._old_ranges(entry, ids)
                is_kept = bool(kept)
                yield from kept
            if not is_kept:
                yield entry

    def _old_ranges(self, first: pa.Table, ids: IdRule) -> list[pa.Table]:
        """Return all ranges that the old list has of the tar of an entry; none if it has changed."""
        others = ["id", START, STOP]
        found: list[pa.Table] = []
        start = 0
        while start >= 0:
            id_ = range_id(first["uri"][0].as_py(), start, ids)
            place = int(self._nearest(np.array([id_]))[0])
            entry = self._old.read(place)
            is_same = entry.schema == first.schema and entry.drop_columns(others).equals(first.drop_columns(others))
            if not is_same or (entry["id"][0].as_py(), entry[START][0].as_py()) != (id_, start):
                return []
            found.append(entry)
            start = entry[STOP][0].as_py()
        return found

    def _nearest(self, ids: np.ndarray) -> NDArray[np.int64]:
        """Return for each id the place of the unit that begins with it, or of another."""
        firsts = self._units.firsts
        return self._order[np.minimum(np.searchsorted(firsts, ids, sorter=self._order), len(firsts) - 1)]

    def _find_owners(self, ids: np.ndarray) -> np.ndarray:
        """Return the place of the unit that each entry belongs to, or -1."""
        firsts, nearest = self._units.firsts, self._nearest(ids)
        owners = np.full(len(ids), -1, np.int64)
        for row, (id_, place) in enumerate(zip(ids.tolist(), nearest.tolist(), strict=True)):
            if firsts[place] == id_:
                self._open(place)
            owners[row] = self._owner.pop(id_, -1)
        return owners

    def _open(self, place: int) -> None:
        ids = self._old.read(place)["id"].to_pylist()
        self._found[place], self._missing[place] = [], len(ids)
        self._owner.update(dict.fromkeys(ids, place))

    def _close(self, place: int) -> tuple[int | None, pa.Table]:
        entries = pa.concat_tables(self._found.pop(place))
        if self._missing.pop(place):
            for id_ in self._old.read(place)["id"].to_pylist():
                self._owner.pop(id_, None)
            return None, entries
        plain = entries.drop_columns([_PLACE])
        return (place, plain) if digest_of(plain) == self._units.digests[place] else (None, entries)
