"""From codes to complete answers: search, then read the stored items of the hits; the same for every client.

Shapes: Q queries, M hits.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.errors import DeadlineExceededError, IdNotFoundError, NotReadyError
from hashlight.engine.query import Query
from hashlight.engine.results import Coverage, Explanation, RangeResult, as_range
from hashlight.engine.service.asking.searcher import Searcher

_MANY = 1000

# Time reserved for the answer, as a share and at most in seconds: for reading items, or for sending only.
_FOR_ITEMS = (0.3, 1.0)
_FOR_SENDING = (0.1, 0.25)

# Of a hit, its id and distance, with what JSON adds.
_HIT_BYTES = 48
_ITEMS = 5_000  # read at once

Hold = Callable[[int], None]

_BYTES = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)

# If a version goes live between a search and the reading of its items, both are repeated.
_TRIES = 3


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One request, its queries turned into codes.

    Attributes
    ----------
    codes : ndarray of uint64, shape (Q, W)
    query : Query
    features : ndarray of float, shape (Q, F), or None
        With `rerank`.
    rerank : Rerank or None
    allow_partial : bool
    include : frozenset of str
        Any of "attributes" and "code": what to read for the hits.
    """

    codes: CodeArray
    query: Query
    features: NDArray[np.floating[Any]] | None = None
    rerank: Rerank | None = None
    allow_partial: bool = False
    include: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was found.

    Attributes
    ----------
    lims : ndarray of int64, shape (Q + 1,)
        The answers of query q are `ids[lims[q]:lims[q + 1]]`.
    ids : ndarray of int64, shape (M,)
    distances : ndarray of int32, or of float32 after re-ranking, shape (M,)
    truncated : ndarray of bool, shape (Q,)
    coverage : Coverage
    explain : Explanation or None
    items : pyarrow.Table or None
        M rows: `code` and the attributes, if requested.
    seconds : dict of str to float
        Time of each stage.
    """

    lims: NDArray[np.int64]
    ids: IdArray
    distances: NDArray[np.int32] | NDArray[np.float32]
    truncated: NDArray[np.bool_]
    coverage: Coverage
    explain: Explanation | None = None
    items: pa.Table | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def _hold_anything(size: int) -> None:
    """Hold answers of any size."""


def _hold_more(hold: Hold, size: int, more: int) -> None:
    hold(size + more)


def join(asks: Sequence[Ask]) -> Ask:
    """Combine requests that differ only in their codes and have no features."""
    return dataclasses.replace(asks[0], codes=np.concatenate([ask.codes for ask in asks]))


def split(found: Answer) -> list[Answer]:
    """Split into one answer for each query."""
    return [_of_query(found, query) for query in range(len(found.truncated))]


def _of_query(found: Answer, query: int) -> Answer:
    begin, end = found.lims[query : query + 2].tolist()
    return dataclasses.replace(
        found,
        lims=np.array([0, end - begin], np.int64),
        ids=found.ids[begin:end],
        distances=found.distances[begin:end],
        truncated=found.truncated[query : query + 1],
        explain=None if found.explain is None else found.explain.take(np.array([query])),
        items=None if found.items is None else found.items.slice(begin, end - begin),
    )


def answer(searcher: Searcher, ask: Ask, *, timeout_s: float | None, hold: Hold = _hold_anything) -> Answer:
    """Search, and read what is to be included.

    The search itself gets less than the whole time, so that a partial answer at its end is still in time. `hold` is
    told how many bytes the answer has so far, before more is read, and may raise.

    Raises
    ------
    DeadlineExceededError
        If `timeout_s` expires.
    NotReadyError
        If new versions keep going live during the request.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    for _ in range(_TRIES):
        start = time.perf_counter()
        found = _search(searcher, ask, _time_to_search(deadline_s, ask.include))
        searched = time.perf_counter()
        size = _HIT_BYTES * len(found.ids)
        hold(size)
        try:
            items = _items(searcher, found, ask.include, deadline_s, functools.partial(_hold_more, hold, size))
        except IdNotFoundError:
            if searcher.version == found.coverage.version:
                raise
            continue
        if items is None or searcher.version == found.coverage.version:
            seconds = {"search": searched - start}
            if items is not None:
                seconds["items"] = time.perf_counter() - searched
            return dataclasses.replace(found, items=items, seconds=seconds)
    raise NotReadyError(f"the collection changed {_TRIES} times during one request: try again")


def _time_to_search(deadline_s: float | None, include: frozenset[str]) -> float | None:
    left_s = _time_left(deadline_s)
    if left_s is None:
        return None
    share, most_s = _FOR_ITEMS if include else _FOR_SENDING
    return left_s - min(share * left_s, most_s)


def _search(searcher: Searcher, ask: Ask, timeout_s: float | None) -> Answer:
    query = ask.query
    if query.k is not None and query.k > _MANY:  # more than the number of codes would only be padding
        query = query._replace(k=max(1, min(query.k, searcher.describe()["rows"])))
    found = searcher.answer(
        ask.codes,
        query,
        rerank=ask.rerank,
        features=ask.features,
        timeout_s=timeout_s,
        allow_partial=ask.allow_partial,
    )
    within = found if isinstance(found, RangeResult) else as_range(found)
    assert within.coverage is not None, "a searcher's answers carry coverage"
    return Answer(**within._asdict())


def stored_items(
    searcher: Searcher, ids: Sequence[int], *, timeout_s: float | None, hold: Hold = _hold_anything
) -> pa.Table:
    """Return stored items in the order requested: `id`, `code` (ceil(bits / 8) bytes), attributes.

    Raises
    ------
    IdNotFoundError
        If the collection lacks one of them.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    table = _get(searcher, np.array(ids, np.int64), deadline_s, hold)
    codes = shorten_codes(table["code"], searcher.bits)
    return table.set_column(table.column_names.index("code"), "code", codes)


def shorten_codes(column: pa.ChunkedArray, bits: int) -> pa.Array:
    """Return codes as ceil(bits / 8) bytes, without the padding of the last word."""
    size = -(-bits // 8)
    return pa.array([code[:size] for code in column.to_pylist()], pa.binary(size))


def _get(
    searcher: Searcher, ids: IdArray, deadline_s: float | None, hold: Hold, without: Container[str] = ()
) -> pa.Table:
    """Read items, not so many at once that `hold` comes too late."""
    parts: list[pa.Table] = []
    for begin in range(0, max(1, len(ids)), _ITEMS):
        part = searcher.get(ids[begin : begin + _ITEMS], timeout_s=_time_left(deadline_s), without=without)
        parts.append(part)
        hold(sum(part.nbytes for part in parts))
    return parts[0] if len(parts) == 1 else pa.concat_tables(parts, promote_options="default")


def _items(
    searcher: Searcher, found: Answer, include: frozenset[str], deadline_s: float | None, hold: Hold
) -> pa.Table | None:
    """Return the stored items of the hits, each read once; None if none were requested."""
    if not include:
        return None
    distinct, place_M = np.unique(found.ids, return_inverse=True)
    table = _get(searcher, distinct, deadline_s, hold, found.coverage.degraded)
    table = table.drop_columns(["id"])
    if "attributes" not in include:
        table = table.select(["code"])
    if "code" not in include:
        table = table.drop_columns(["code"])
    else:
        codes = shorten_codes(table["code"], searcher.bits)
        table = table.set_column(table.column_names.index("code"), "code", codes)
    hold(table.nbytes + _bytes_taken(table, place_M))
    return table.take(place_M)


def _bytes_taken(table: pa.Table, place_M: NDArray[np.intp]) -> int:
    """Return about how many bytes the rows at some places have, with the names that JSON repeats for each."""
    times = np.bincount(place_M, minlength=len(table))
    size = 0
    for name, column in zip(table.column_names, table.columns, strict=True):
        size += len(place_M) * (len(name) + 4)
        if any(is_one(column.type) for is_one in _BYTES):
            size += int(np.dot(pc.fill_null(pc.binary_length(column), 0).to_numpy(), times))
        else:
            size += column.nbytes * len(place_M) // max(1, len(table))
    return size


def time_left(deadline_s: float) -> float:
    """Return the seconds until a deadline of `time.monotonic`.

    Raises
    ------
    DeadlineExceededError
        If there are none.
    """
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceededError(
            "no answer within the time given: allow more (`timeout_s`, over HTTP `timeout_ms`), or ask for less"
        )
    return left_s


def _time_left(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else time_left(deadline_s)
