"""Radius search in bounded memory: how many answers a radius has is known only once they are found."""

from __future__ import annotations

from collections.abc import Iterator

from hashlight.engine.codes import CodeArray
from hashlight.engine.query import Query
from hashlight.engine.results import RangeResult
from hashlight.engine.storage.shard import Shard


def search_bounded(
    shard: Shard, queries_QW: CodeArray, radius: int, *, max_hits: int
) -> Iterator[tuple[slice, RangeResult]]:
    """Yield all that is within a radius of each query, for runs of queries in their order: (the run, its answers).

    Parameters
    ----------
    shard : Shard
    queries_QW : ndarray of uint64, shape (Q, W)
    radius : int
        Inclusive.
    max_hits : int
        Maximum answers of a run, or one per query of the run if that is more. A run of a single query has all of its
        answers.
    """
    waiting = [slice(0, len(queries_QW))]
    while waiting:
        run = waiting.pop()
        size = run.stop - run.start
        limit = None if size <= 1 else max(1, max_hits // size)
        found = shard.answer(queries_QW[run], Query(radius=radius, limit=limit, threads=1))
        assert isinstance(found, RangeResult), "of a radius"
        if found.truncated.any():
            middle = run.start + size // 2
            waiting += [slice(middle, run.stop), slice(run.start, middle)]
        else:
            yield run, found
