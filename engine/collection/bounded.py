"""Radius search in bounded memory: how many answers a radius has is known only once they are found."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hashlight.engine.codes import CodeArray
from hashlight.engine.query import Query
from hashlight.engine.results import RangeResult, Result


def search_bounded(
    search: Callable[[CodeArray, Query], Result],
    queries_QW: CodeArray,
    query: Query,
    *,
    max_hits: int,
    max_hits_of_one: int | None = None,
) -> Iterator[tuple[slice, RangeResult]]:
    """Yield all that is within a radius of each query, for runs of queries in their order: (the run, its answers).

    Parameters
    ----------
    search : callable
        Answers a batch of queries, such as `engine.storage.shard.Shard.answer`.
    queries_QW : ndarray of uint64, shape (Q, W)
    query : Query
        With `radius`, without `limit`.
    max_hits : int
        Maximum answers of a run of several queries, or one per query if that is more.
    max_hits_of_one : int, optional
        Maximum answers of a run of a single query, whose `truncated` says whether there are more; all by default.
    """
    waiting = [slice(0, len(queries_QW))]
    while waiting:
        run = waiting.pop()
        size = run.stop - run.start
        limit = max_hits_of_one if size <= 1 else max(1, max_hits // size)
        found = search(queries_QW[run], query._replace(limit=limit))
        assert isinstance(found, RangeResult), "of a radius"
        if size > 1 and found.truncated.any():
            middle = run.start + size // 2
            waiting += [slice(middle, run.stop), slice(run.start, middle)]
        else:
            yield run, found
