"""A collection as a plain dict: every change as a few lines of Python, and what every question must be answered."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from tests import oracles


class RefusedError(Exception):
    """The collection must not allow a change."""


class Row(NamedTuple):
    """Never changed, only replaced: versions share rows."""

    code: tuple[int, ...]
    attributes: dict[str, Any]
    features: tuple[float, ...] | None = None
    thumbnail: bytes | None = None


# Filters: the text, its parameters, the attributes that it needs, and what it selects, with SQL's nulls.
FILTERS = [
    ("label == 2", None, ("label",), lambda id_, row: row["label"] == 2),
    ("label is null", None, ("label",), lambda id_, row: row["label"] is None),
    ("not (label == 1 or name == 'b')", None, ("label", "name"), lambda id_, row: (
        row["label"] not in (None, 1) and row["name"] not in (None, "b"))),
    ("name like 'a%'", None, ("name",), lambda id_, row: (row["name"] or "").startswith("a")),
    ("'x' in tags", None, ("tags",), lambda id_, row: "x" in (row["tags"] or ())),
    ("id not in :seen", {"seen": [0, 3, 4, 9, 20, 31]}, (), lambda id_, row: id_ not in (0, 3, 4, 9, 20, 31)),
    ("id >= 6 and label < 3", None, ("label",), lambda id_, row: (
        id_ >= 6 and row["label"] is not None and row["label"] < 3)),
    ("price > 0.5 or label == 3", None, ("price", "label"), lambda id_, row: (
        (row["price"] or 0) > 0.5 or row["label"] == 3)),
    ("later in ('ant', 'bee')", None, ("later",), lambda id_, row: row["later"] in ("ant", "bee")),
    ("id < 0", None, (), lambda id_, row: False),
]  # fmt: skip


@dataclasses.dataclass
class Version:
    """What one version holds: rows by id, the types of attributes by name."""

    rows: dict[int, Row]
    types: dict[str, Any]

    def copy(self):
        return Version(dict(self.rows), dict(self.types))

    def select(self, number):
        """Return {id: row} of what a filter of `FILTERS` selects, of all for None."""
        if number is None:
            return self.rows
        _, _, needed, selects = FILTERS[number]
        if not self.types.keys() >= set(needed):
            raise RefusedError
        return {id_: row for id_, row in self.rows.items() if selects(id_, row.attributes)}

    def knn(self, queries, k, number):
        rows = self.select(number)
        if not rows:
            return np.full((len(queries), k), 2**31 - 1), np.full((len(queries), k), -1)
        return oracles.knn(queries, *_arrays(rows), k)

    def within(self, queries, radius, number, limit=None, after=None):
        """Return a list of (distance, id) for each query, and whether it was cut."""
        rows = self.select(number)
        if not rows:
            return [[]] * len(queries), [False] * len(queries)
        everything, _ = oracles.within_radius(queries, *_arrays(rows), radius)
        rest = [[pair for pair in pairs if after is None or pair > after] for pairs in everything]
        return [pairs[:limit] for pairs in rest], [limit is not None and len(pairs) > limit for pairs in rest]

    def facets(self, column, number):
        rows = self.select(number)
        if column not in self.types:
            raise RefusedError
        counts = collections.Counter()
        for row in rows.values():
            value = row.attributes[column]
            counts.update(set(value) if isinstance(value, list) else [value])
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0] is None, pair[0]))


def _arrays(rows):
    return np.array([row.code for row in rows.values()], np.uint64), np.array(list(rows), np.int64)


class History:
    """A collection with its versions; `change` is what a transaction of some operations should do."""

    def __init__(self, first: Version, number: int) -> None:
        self.versions = {number: first}
        self.live = number
        self.tags: dict[str, int] = {}
        self.oldest = 1
        self.next_id = max(first.rows, default=-1) + 1

    @property
    def now(self) -> Version:
        return self.versions[self.live]

    @property
    def kept(self) -> set[int]:
        """Numbers of the versions that can be opened."""
        return set(range(self.oldest, self.live + 1)) & self.versions.keys() | set(self.tags.values())

    def change(self, operations) -> Draft:
        draft = Draft(self)
        for name, arguments in operations:
            getattr(draft, name)(**arguments)
        return draft

    def commit(self, draft: Draft, number: int) -> None:
        """Note that a draft became a version, or that there was nothing to change."""
        if number == self.live:
            assert (draft.version, draft.tags, draft.oldest) == (self.now, self.tags, self.oldest), "no new version"
        else:
            for each in range(self.live + 1, number + 1):
                self.versions[each] = draft.version
                if each - draft.oldest >= 20:
                    draft.oldest = each - 10
            self.live, self.tags, self.oldest = number, draft.tags, draft.oldest
        self.next_id = draft.next_id


class Draft:
    """The next version while operations are applied to it, one after another."""

    def __init__(self, history: History) -> None:
        self._history = history
        self.version = history.now.copy()
        self.tags = dict(history.tags)
        self.oldest, self.next_id = history.oldest, history.next_id

    def _check_types(self, given):
        for name, kind in given.items():
            if self.version.types.get(name) != kind:
                raise RefusedError

    def add(self, rows, ids, types, shards=1, *, upsert=False):
        """`rows` have only attributes of `types`."""
        self._check_types(types)
        ids = range(self.next_id, self.next_id + len(rows)) if ids is None else ids
        if not upsert and set(ids) & self.version.rows.keys():
            raise RefusedError
        for id_, row in zip(ids, rows, strict=True):
            item = {name: row.attributes.get(name) for name in self.version.types}
            self.version.rows[id_] = row._replace(attributes=item)
            self.next_id = max(self.next_id, id_ + 1)

    def upsert(self, rows, ids, types, shards=1):
        self.add(rows, ids, types, upsert=True)

    def delete(self, ids):
        for id_ in ids:
            self.version.rows.pop(id_, None)

    def delete_where(self, number):
        self.delete(list(self.version.select(number)))

    def update(self, ids, types, items):
        self._check_types(types)
        if set(ids) - self.version.rows.keys():
            raise RefusedError
        for id_, item in zip(ids, items, strict=True):
            row = self.version.rows[id_]
            self.version.rows[id_] = row._replace(attributes={**row.attributes, **item})

    def set_column(self, name, kind, ids, values):
        if set(ids) - self.version.rows.keys():
            raise RefusedError
        if name not in self.version.types:
            for id_, row in self.version.rows.items():
                self.version.rows[id_] = row._replace(attributes={**row.attributes, name: None})
        self.version.types[name] = kind
        self.update(ids, {name: kind}, [{name: value} for value in values])

    def drop_column(self, name):
        if name not in self.version.types:
            raise RefusedError
        del self.version.types[name]
        for id_, row in self.version.rows.items():
            rest = {each: value for each, value in row.attributes.items() if each != name}
            self.version.rows[id_] = row._replace(attributes=rest)

    def tag(self, name, version=None):
        number = self._history.live if version is None else version
        if number not in self._history.kept or self.tags.get(name, number) != number:
            raise RefusedError
        self.tags[name] = number

    def untag(self, name):
        if name not in self.tags:
            raise RefusedError
        del self.tags[name]

    def rollback(self, version):
        number = self._history.tags.get(version) if isinstance(version, str) else version
        if number not in self._history.kept:
            raise RefusedError
        self.version = self._history.versions[number].copy()

    def prune(self, keep=None, older_than=None):
        oldest = self._history.live
        if keep is not None:
            oldest = min(oldest, oldest + 2 - keep)
        if older_than:  # all are younger
            oldest = self.oldest
        self.oldest = max(self.oldest, oldest)
