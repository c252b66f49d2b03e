"""The questions of the machine, put to a collection that is open here and to one that is served over HTTP."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from hashlight.engine.client.errors import IdNotFoundError
from tests.engine.living.model import Row

MOST = 5000  # more answers than a collection of the machine has rows


class Nearest(NamedTuple):
    """Answers (Q, k), padded as an open collection pads them; how many codes there are, and how many were searched."""

    distances: np.ndarray
    ids: np.ndarray
    codes: int
    searched: int


class Within(NamedTuple):
    """A list of (distance, id) for each query, whether it was cut, and what to go on after if it was."""

    pairs: list[list[tuple[int, int]]]
    cut: list[bool]
    next: list[Any]


class Opened:
    """Asks an open collection."""

    def __init__(self, collection):
        self._collection = collection

    def knn(self, queries, k, where):
        found = self._collection.search(queries, k, filter=where[0], parameters=where[1])
        return Nearest(found.distances, found.ids, found.coverage.codes, found.coverage.searched)

    def within(self, queries, radius, where, limit=None, after=None):
        found = self._collection.range_search(queries, radius, limit, filter=where[0], parameters=where[1], after=after)
        parts = [slice(*found.lims[query : query + 2]) for query in range(len(queries))]
        pairs = [pairs_of(found.distances[part], found.ids[part]) for part in parts]
        return Within(pairs, found.truncated.tolist(), [each[-1] if each else None for each in pairs])

    def scan(self, columns, where, page, after):
        return rows_of(self._collection.scan(columns, *where, batch_rows=page, after=after).read_all())

    def count(self, where):
        return self._collection.count(*where)

    def facets(self, column, where):
        return list(zip(*self._collection.facets(column, *where).to_pydict().values(), strict=True))

    def get(self, ids):
        table = self._collection.get(np.array(ids, np.int64))
        rows = rows_of(table, once=False)
        return [(id_, rows[id_].code, rows[id_].attributes) for id_ in table["id"].to_pylist()]

    def thumbnails(self, ids):
        return self._collection.thumbnails_of(np.array(ids, np.int64))

    def features(self, ids):
        return list(map(tuple, self._collection.features_of(np.array(ids, np.int64)).tolist()))


class Served:
    """Asks a server."""

    def __init__(self, client):
        self._client = client

    def knn(self, queries, k, where):
        found = self._client.search(queries, k, filter=where[0], parameters=where[1])
        distances, ids = np.full((len(queries), k), 2**31 - 1), np.full((len(queries), k), -1)
        for query, hits in enumerate(found):
            distances[query, : len(hits)], ids[query, : len(hits)] = hits.distances, hits.ids
        return Nearest(distances, ids, found.coverage.codes, found.coverage.searched)

    def within(self, queries, radius, where, limit=None, after=None):
        found = self._client.range_search(
            queries, radius, limit or MOST, filter=where[0], parameters=where[1], after=after
        )
        return Within(
            [pairs_of(hits.distances, hits.ids) for hits in found],
            [hits.truncated for hits in found],
            [hits.next for hits in found],
        )

    def scan(self, columns, where, page, after):
        """Read page after page; pages have all attributes."""
        rows: dict[int, Row] = {}
        while True:
            found = self._client.scroll(*where, after=after, limit=page)
            ids = [item.id for item in found]
            assert ids == sorted(set(ids))
            assert not rows.keys() & set(ids)
            for item in found:
                attributes = {name: item.attributes[name] for name in columns}
                rows[item.id] = Row(tuple(item.code.tolist()), attributes)
            if found.next is None:
                return rows
            after = found.next

    def count(self, where):
        return self._client.count(*where)

    def facets(self, column, where):
        return [(each.value, each.count) for each in self._client.facets(column, *where, limit=MOST)]

    def get(self, ids):
        return [(item.id, tuple(item.code.tolist()), item.attributes) for item in self._client.get(ids)]

    def thumbnails(self, ids):
        return [self._thumbnail(id_) for id_ in ids]

    def _thumbnail(self, id_):
        try:
            return self._client.thumbnail(id_)
        except IdNotFoundError:
            return None

    def features(self, ids):
        """Return None: a server keeps them to itself."""
        return None


def pairs_of(distances, ids):
    return list(zip(distances.tolist(), ids.tolist(), strict=True))


def rows_of(table, *, features=False, once=True):
    """Return {id: Row} of a table of stored rows, which ascend by id if each is there once."""
    ids = table["id"].to_pylist()
    assert not once or ids == sorted(set(ids))
    names = [name for name in table.column_names if name not in ("id", "code", "features", "thumbnail")]
    attributes = [dict(zip(names, values, strict=True)) for values in zip(
        *(table[name].to_pylist() for name in names), strict=True)] if names else [{} for _ in ids]  # fmt: skip
    codes = [tuple(np.frombuffer(code, "<u8").tolist()) for code in table["code"].to_pylist()]
    vectors = [tuple(vector) for vector in table["features"].to_pylist()] if features else [None] * len(ids)
    pictures = table["thumbnail"].to_pylist() if "thumbnail" in table.column_names else [None] * len(ids)
    return dict(zip(ids, map(Row, codes, attributes, vectors, pictures), strict=True))
