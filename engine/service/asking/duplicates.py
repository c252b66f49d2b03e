"""Groups of near-duplicates as `hashlight dedup` leaves them in a folder, local or in a bucket, read page by page.

`pipelines.dedup.dedup` says what the folder holds; of that, `job.json`, `dedup.json` and `clusters.parquet` are read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray, num_words
from hashlight.engine.errors import CorruptDataError, NotReadyError, ReadFailedError
from hashlight.engine.places.opening import open_place
from hashlight.engine.results import Coverage
from hashlight.engine.service.asking.searcher import Searcher

_SUMMARY, _JOB, _CLUSTERS = "dedup.json", "job.json", "clusters.parquet"
_COUNTS = ("codes", "pairs", "clusters", "members", "largest", "removable")
_MAX_BYTES = 1 << 20  # of what the job says about itself


class Group(NamedTuple):
    """A group of near-duplicates.

    Attributes
    ----------
    size : int
        Its items.
    ids : ndarray of int64, shape (M,)
        The representative, then others of the lowest ids, as many as were asked for.
    pairs : ndarray of int64, shape (M,)
        Of each, how many others are within the radius.
    """

    size: int
    ids: IdArray
    pairs: NDArray[np.int64]


class Member(NamedTuple):
    """An item of a group, and its distance from the representative; None if that is gone."""

    id: int
    pairs: int
    distance: int | None


class _Opened(NamedTuple):
    """What a finished job says, and where its groups begin.

    Attributes
    ----------
    said : bytes
        `dedup.json`, which is written last, and changes with whatever the job finds.
    about : dict
        Its counts, the `radius`, and the `version` of the collection in which they were found.
    starts : ndarray of int64, shape (G + 1,)
        Group g is rows [starts[g], starts[g + 1]) of the table.
    """

    said: bytes
    about: dict[str, int]
    starts: NDArray[np.int64]


class Duplicates:
    """The groups in a folder. Thread-safe.

    Parameters
    ----------
    location : str
        Of the folder; it need not be there yet, and may be filled anew.
    """

    def __init__(self, location: str) -> None:
        self._place = open_place(location)
        self._opening = threading.Lock()
        self._opened: _Opened | None = None

    def __str__(self) -> str:
        """Name the folder."""
        return str(self._place)

    def page(self, after: int, limit: int, members: int) -> tuple[dict[str, int], list[Group]]:
        """Return what the job found in all, and some of its groups, the largest first.

        Parameters
        ----------
        after : int
            Groups that are left out at the beginning.
        limit : int
            Groups at most.
        members : int
            Items of each at most.

        Raises
        ------
        NotReadyError
            If there are no groups in the folder, or not yet.
        CorruptDataError
            If they cannot be read.
        ReadFailedError
            If a bucket does not answer.
        """
        with self._reading(), self._opening:
            said = self._read(_SUMMARY)
            if self._opened is None or self._opened.said != said:
                self._opened = self._open(said)
            opened = self._opened
        edge_L1 = opened.starts[after : after + limit + 1]
        with self._reading(), self._table() as table:
            edges = itertools.pairwise(edge_L1.tolist())
            return opened.about, [_group(table, first, end, members) for first, end in edges]

    def _open(self, said: bytes) -> _Opened:
        about, job = json.loads(said), json.loads(self._read(_JOB))
        counts = {name: int(about[name]) for name in _COUNTS}
        starts, rows, last = [np.zeros(0, np.int64)], 0, -1
        with self._table() as table:
            for number in range(table.num_row_groups):
                cluster_R = _column(table.read_row_group(number, columns=["cluster"]), "cluster")
                is_new_R = np.diff(cluster_R, prepend=last) != 0
                starts.append(rows + np.flatnonzero(is_new_R))
                rows, last = rows + len(cluster_R), int(cluster_R[-1]) if len(cluster_R) else last
        start_G1 = np.append(np.concatenate(starts), rows)
        if len(start_G1) - 1 != counts["clusters"]:
            raise ValueError(f"{_CLUSTERS} has {len(start_G1) - 1} groups, {_SUMMARY} says {counts['clusters']}")
        return _Opened(said, {**counts, "radius": int(job["radius"]), "version": int(job["version"])}, start_G1)

    def _read(self, name: str) -> bytes:
        try:
            return self._place.read(name, max_bytes=_MAX_BYTES)
        except FileNotFoundError as error:
            raise NotReadyError(
                f"{self} has no groups of duplicates, or not yet: let `hashlight dedup` end that writes there"
            ) from error

    @contextlib.contextmanager
    def _table(self) -> Iterator[pq.ParquetFile]:
        with (
            self._place.open(_CLUSTERS) as raw,
            pq.ParquetFile(raw, page_checksum_verification=True, pre_buffer=False) as table,
        ):
            yield table

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn what goes wrong with what is read into one error."""
        try:
            yield
        except (NotReadyError, ReadFailedError):
            raise
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
            raise CorruptDataError(
                f"{self} cannot be read as groups of duplicates ({error}): find them again with `hashlight dedup "
                "--overwrite`"
            ) from error


def members_of(
    searcher: Searcher, groups: list[Group], *, timeout_s: float | None
) -> tuple[list[list[Member]], Coverage]:
    """Return the items of each group that are still there, in its order; errors as in `Searcher.scan`."""
    ids_M = np.unique(np.concatenate([np.empty(0, np.int64), *(group.ids for group in groups)]))
    found, coverage = searcher.scan("id in :ids", {"ids": ids_M}, limit=max(1, len(ids_M)), timeout_s=timeout_s)
    codes = b"".join(found["code"].to_pylist())
    codes_MW = np.frombuffer(codes, "<u8").reshape(len(found), num_words(searcher.bits))
    code_of = dict(zip(found["id"].to_pylist(), codes_MW, strict=True))
    return [_members(group, code_of) for group in groups], coverage


def _members(group: Group, code_of: dict[int, CodeArray]) -> list[Member]:
    kept_W = code_of.get(int(group.ids[0]))
    return [
        Member(id_, pairs, None if kept_W is None else int(np.bitwise_count(kept_W ^ code_of[id_]).sum()))
        for id_, pairs in zip(group.ids.tolist(), group.pairs.tolist(), strict=True)
        if id_ in code_of
    ]


def _group(table: pq.ParquetFile, first: int, end: int, members: int) -> Group:
    """Return the group in some rows of the table; its representative may come after those of the lowest ids."""
    rows = _rows(table, first, min(end, first + members))
    ids_M, pairs_M = _column(rows, "id"), _column(rows, "pairs")
    kept = int(_column(rows, "representative")[0])
    place = np.flatnonzero(ids_M == kept)
    if not len(place):
        ids_M, pairs_M = np.append(ids_M, kept), np.append(pairs_M, _pairs_of(table, first + members, end, kept))
        place = np.array([len(ids_M) - 1])
    order_M = np.append(place, np.delete(np.arange(len(ids_M)), place))[:members]
    return Group(end - first, ids_M[order_M], pairs_M[order_M])


def _pairs_of(table: pq.ParquetFile, first: int, end: int, id_: int) -> int:
    """Return how many pairs an item in some rows has."""
    for begin, stop, number in _row_groups(table, first, end):
        part = table.read_row_group(number, columns=["id", "pairs"]).slice(begin, stop - begin)
        place = np.flatnonzero(_column(part, "id") == id_)
        if len(place):
            return int(_column(part, "pairs")[place[0]])
    raise ValueError(f"representative {id_} is not in its group")


def _rows(table: pq.ParquetFile, first: int, end: int) -> pa.Table:
    names = ["id", "representative", "pairs"]
    return pa.concat_tables(
        [
            table.read_row_group(number, columns=names).slice(begin, stop - begin)
            for begin, stop, number in _row_groups(table, first, end)
        ]
    )


def _row_groups(table: pq.ParquetFile, first: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the row groups in which some rows are, each with the first and the end of the rows there."""
    begin = 0
    for number in range(table.num_row_groups):
        size = table.metadata.row_group(number).num_rows
        if begin < end and first < begin + size:
            yield max(0, first - begin), min(size, end - begin), number
        begin += size


def _column(table: pa.Table, name: str) -> NDArray[np.int64]:
    """Return a column of whole numbers; ValueError if it is something else."""
    table.validate(full=True)
    column = table[name]
    if column.type != pa.int64() or column.null_count:
        raise ValueError(f"expected whole numbers as {name}, got {column.type} with {column.null_count} nulls")
    values: NDArray[np.int64] = column.to_numpy()
    return values
