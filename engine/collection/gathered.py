"""Rows of many small shards in one index, in memory, so that a query costs one call and not one a shard.

Rows keep the numbers that they have when the shards are put one after another: n stands for row `n - start` of the
shard that begins at `start`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.indexes.base import Index
from hashlight.engine.indexes.histogram import Countable
from hashlight.engine.indexes.masks import RowMask
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.multi_index.tables import Tables
from hashlight.engine.indexes.order import sort_rows
from hashlight.engine.indexes.scan import ScanIndex
from hashlight.engine.indexes.threads import cut, run_aside, usable_cores

# A scan of so few codes takes a few microseconds, as long as the first lookups in tables.
_WORTH_TABLES = 4096
_SHARDS_PER_THREAD = 16


class Member(NamedTuple):
    """A shard of `rows` rows, of which the first is number `start`."""

    name: str
    start: int
    rows: int

    @property
    def span(self) -> slice:
        """The numbers of its rows."""
        return slice(self.start, self.start + self.rows)


class Gathered:
    """The rows of some shards, deleted ones included, in one index. Thread-safe; never changes.

    Parameters
    ----------
    names : sequence of str
        Of the shards.
    codes_NW : ndarray of uint64, shape (N, W)
    ids_N : ndarray of int64, shape (N,)
        An id may stand in several shards: alive in at most one of them.
    rows : sequence of int
        Of each shard; N in all.
    bits : int
    tables : bool
        Whether to build a multi-index; few codes do without, unless `plan` asks for it.
    plan : {"auto", "scan", "tables"}
        How the index answers.

    Attributes
    ----------
    members : tuple of Member
    place_N : ndarray of uint32, shape (N,)
        Where the index has row n.
    """

    def __init__(
        self,
        names: Sequence[str],
        rows: Sequence[int],
        codes_NW: CodeArray,
        ids_N: IdArray,
        *,
        bits: int,
        tables: bool,
        plan: str,
    ) -> None:
        starts = np.concatenate([[0], np.cumsum(rows)]).tolist()
        self.members = tuple(map(Member, names, starts, rows))
        self._start_S = np.array(starts[:-1], np.int64)
        order_N = sort_rows(codes_NW, ids_N)
        self.place_N = np.empty(len(order_N), np.uint32)
        self.place_N[order_N] = np.arange(len(order_N), dtype=np.uint32)
        self.index = _build_index(codes_NW[order_N], ids_N[order_N], bits, tables, plan)
        # Sorted as codes are, because that is ten times faster than `argsort`; rows of one id keep their order.
        by_id_N = sort_rows(ids_N.view(np.uint64)[:, None], np.arange(len(ids_N)))
        self._sorted_id_N, self._by_id_N = ids_N[by_id_N], by_id_N.astype(np.uint32)

    def __len__(self) -> int:
        """Return the number of rows, deleted ones included."""
        return len(self.place_N)

    def rows_of(self, member: Member) -> tuple[CodeArray, IdArray]:
        """Return the codes and ids of one shard, in its own order."""
        place_R = self.place_N[member.span]
        codes_NW, ids_N, _ = self.countable(None)
        return codes_NW[place_R], ids_N[place_R]

    def countable(self, mask: RowMask | None) -> Countable:
        """Return all rows, in the index's order, of which those in `mask` may answer."""
        index = self.index
        assert isinstance(index, MultiIndex | ScanIndex), "as built here"
        return Countable(index.codes_NW, index.ids_N, mask)

    def find(self, ids_M: IdArray, alive_N: NDArray[np.bool_] | None) -> NDArray[np.int64]:
        """Return the number of each id's row, -1 for ids that have none alive; `alive_N` is in the index's order."""
        at_M = np.searchsorted(self._sorted_id_N, ids_M, side="right") - 1
        # The row that came last is looked at first: a row that replaces others comes after them.
        while True:
            found_M = (at_M >= 0) & (self._sorted_id_N[at_M] == ids_M)
            row_M = np.where(found_M, self._by_id_N[at_M].astype(np.int64), -1)
            if alive_N is None:
                return row_M
            dead_M = found_M & ~alive_N[self.place_N[row_M]]
            if not dead_M.any():
                return row_M
            at_M = np.where(dead_M, at_M - 1, at_M)

    def split(self, row_M: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which member each numbered row belongs to, and its row there."""
        member_M = np.searchsorted(self._start_S, row_M, side="right") - 1
        return member_M, row_M - self._start_S[member_M]


Reader = Callable[[str], tuple[CodeArray, IdArray]]


def gather(
    names: Sequence[str], rows: Sequence[int], read: Reader, *, words: int, bits: int, tables: bool, plan: str
) -> Gathered:
    """Read shards in threads and gather their rows; `read` returns the codes and ids of one."""
    starts = np.concatenate([[0], np.cumsum(rows)]).tolist()
    codes_NW, ids_N = np.empty((starts[-1], words), np.uint64), np.empty(starts[-1], np.int64)

    def copy(part: slice) -> None:
        for number in range(part.start, part.stop):
            span = slice(starts[number], starts[number + 1])
            codes_NW[span], ids_N[span] = read(names[number])

    run_aside(copy, cut(len(names), None, least=_SHARDS_PER_THREAD))
    return Gathered(names, rows, codes_NW, ids_N, bits=bits, tables=tables, plan=plan)


def _build_index(codes_NW: CodeArray, ids_N: IdArray, bits: int, tables: bool, plan: str) -> Index:
    if plan == "scan" or not tables or (plan == "auto" and len(ids_N) < _WORTH_TABLES):
        return ScanIndex(codes_NW=codes_NW, ids_N=ids_N, bits=bits)
    built = Tables.build(codes_NW, bits=bits, threads=usable_cores())
    index = MultiIndex(codes_NW=codes_NW, ids_N=ids_N, tables=built, bits=bits)
    index.plan = "tables" if plan == "tables" else "auto"
    return index


class Plan(NamedTuple):
    """Which gathered rows a version takes over, and which shards it gathers anew, by name."""

    kept: list[Gathered]
    new: list[list[str]]


# Of gathered rows: within a factor of 4 of each other there are at most 3 groups. So a version that adds a small shard
# gathers its rows, and each row is gathered again once for every factor of 4 that the collection grows.
_GROUPS_OF_A_SIZE = 4
MAX_ROWS_TOGETHER = 2**22


def plan_groups(rows: dict[str, int], before: Sequence[Gathered]) -> Plan:
    """Plan how to gather small shards, of `rows` by name, reusing what another version has gathered.

    A group that lost more than half of its rows is not kept.
    """
    kept, known = [], set[str]()
    for group in before:
        names = [member.name for member in group.members if member.name in rows]
        if 2 * sum(rows[name] for name in names) > len(group):
            kept.append((group, names))
            known.update(names)
    new = [(None, names) for names in _runs([name for name in rows if name not in known], rows)]
    sized = [(sum(rows[name] for name in names), group, names) for group, names in [*kept, *new]]
    together = list(_merged(sized))
    return Plan(
        [group for _, group, _ in together if group is not None],
        [names for _, group, names in together if group is None],
    )


_Sized = tuple[int, Gathered | None, list[str]]


def _runs(names: list[str], rows: dict[str, int]) -> Iterator[list[str]]:
    run: list[str] = []
    total = 0
    for name in names:
        if run and total + rows[name] > MAX_ROWS_TOGETHER:
            yield run
            run, total = [], 0
        run.append(name)
        total += rows[name]
    if run:
        yield run


def _merged(groups: list[_Sized]) -> Iterator[_Sized]:
    """Merge groups of one size as long as there are too many, from the smallest up."""
    sizes: dict[int, list[_Sized]] = {}
    for group in groups:
        sizes.setdefault(_size_of(group[0]), []).append(group)
    for size in range(_size_of(MAX_ROWS_TOGETHER) + 1):
        here = sizes.get(size, [])
        total = sum(rows for rows, _, _ in here)
        if len(here) >= _GROUPS_OF_A_SIZE and total <= MAX_ROWS_TOGETHER:
            merged = (total, None, [name for _, _, names in here for name in names])
            sizes.setdefault(_size_of(total), []).append(merged)
        else:
            yield from here


def _size_of(rows: int) -> int:
    """Return the number of factors of 4 in `rows`."""
    return (rows.bit_length() - 1) // 2
