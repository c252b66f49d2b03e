"""From codes to complete answers: search, then read the stored items of the hits; the same for every client.

Shapes: Q queries, M hits.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.collection.rerank import HAMMING, Rerank
from hashlight.engine.errors import DeadlineExceededError, HashlightError, IdNotFoundError, NotReadyError
from hashlight.engine.filters.kinds import is_list
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.query import Query
from hashlight.engine.results import Coverage, Explanation, RangeResult, as_range
from hashlight.engine.service.asking.searcher import Searcher, as_limit, version_gone
from hashlight.engine.service.problems import RequestError

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
    features : ndarray of float, shape (Q, F) or (Q, B), or None
        With `rerank`: features, or projections.
    rerank : Rerank or None
    allow_partial : bool
    include : frozenset of str
        Any of "attributes" and "code": what to read for the hits.
    version : int or None
        The one that must answer; None: the one that is served.
    sequence : int
        With `version`: as in `Searcher.at`.
    """

    codes: CodeArray
    query: Query
    features: NDArray[np.floating[Any]] | None = None
    rerank: Rerank | None = None
    allow_partial: bool = False
    include: frozenset[str] = frozenset()
    version: int | None = None
    sequence: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What was found.

    Attributes
    ----------
    lims : ndarray of int64, shape (Q + 1,)
        The answers of query q are `ids[lims[q]:lims[q + 1]]`.
    ids : ndarray of int64, shape (M,)
    distances : ndarray of int32, or of float32 after re-ranking by features, shape (M,)
    order : str
        What the answers of a query are in order of: "hamming", or the metric of re-ranking. In asymmetric order the
        distances are Hamming distances, and need not ascend.
    truncated : ndarray of bool, shape (Q,)
    coverage : Coverage
    explain : Explanation or None
    items : pyarrow.Table or None
        M rows: `code` and the attributes, if requested.
    has_attributes : bool
        Whether they were requested: a collection may have none.
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
    has_attributes: bool = False
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    order: str = HAMMING


def _hold_anything(size: int) -> None:
    """Hold answers of any size."""


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
    VersionGoneError
        If `ask.version` is not served any more.
    """
    [found] = _answer_each(searcher, ask, [hold], timeout_s=timeout_s)
    if isinstance(found, Exception):
        raise found
    return found


def answer_each(
    searcher: Searcher, asks: Sequence[Ask], holds: Sequence[Hold], *, timeout_s: float | None
) -> list[Answer | Exception]:
    """Answer one request, or several of one query each that differ only in their codes; each as `answer` does.

    Each of `holds` is told the bytes of its own answer; if it raises, the error stands in the place of that answer.
    """
    joined = dataclasses.replace(asks[0], codes=np.concatenate([ask.codes for ask in asks]))
    return _answer_each(searcher, joined, holds, timeout_s=timeout_s)


def _answer_each(
    searcher: Searcher, ask: Ask, holds: Sequence[Hold], *, timeout_s: float | None
) -> list[Answer | Exception]:
    """Answer for all queries together if there is one hold, and otherwise for each of them."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    searcher = _at(searcher, ask.version, ask.sequence)
    for _ in range(_TRIES):
        start = time.perf_counter()
        found = _search(searcher, ask, _time_to_search(deadline_s, ask.include))
        _check_version(found.coverage, ask.version)
        searched = time.perf_counter()
        parts = [found] if len(holds) == 1 else split(found)
        shares = _Shares(holds, np.array([_HIT_BYTES * len(part.ids) for part in parts]))
        try:
            items = _items(searcher, parts, ask.include, deadline_s, shares)
        except IdNotFoundError:
            if searcher.version == found.coverage.version:
                raise
            continue
        if items is None or searcher.version == found.coverage.version:
            seconds = {"search": searched - start}
            if items is not None:
                seconds["items"] = time.perf_counter() - searched
            has = "attributes" in ask.include
            return [
                shares.refusals.get(number)
                or dataclasses.replace(part, items=items and items[number], has_attributes=has, seconds=dict(seconds))
                for number, part in enumerate(parts)
            ]
    raise NotReadyError(f"the collection changed {_TRIES} times during one request: try again")


class _Shares:
    """How many bytes each of several answers has, in addition to `size_A` for their hits, and who was refused more."""

    def __init__(self, holds: Sequence[Hold], size_A: NDArray[np.int64]) -> None:
        self._holds = holds
        self._size_A = size_A
        self.refusals: dict[int, Exception] = {}
        self.hold(np.zeros_like(size_A))

    @property
    def left(self) -> list[int]:
        """The numbers of the answers that were not refused."""
        return [number for number in range(len(self._holds)) if number not in self.refusals]

    def hold(self, more_A: NDArray[np.int64]) -> None:
        """Hold so many bytes more than those of the hits; an answer that may not gives back what it has."""
        for number in self.left:
            try:
                self._holds[number](int(self._size_A[number] + more_A[number]))
            except (HashlightError, RequestError) as error:
                self.refusals[number] = error
                self._holds[number](0)


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
    return Answer(**within._asdict(), order=HAMMING if ask.rerank is None else ask.rerank.metric)


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
    table = _stored(searcher, np.array(ids, np.int64), deadline_s, hold)
    codes = shorten_codes(table["code"], searcher.bits)
    return table.set_column(table.column_names.index("code"), "code", codes)


def _stored(searcher: Searcher, ids: IdArray, deadline_s: float | None, hold: Hold) -> pa.Table:
    """Read items of one version, not so many at once that `hold` comes too late."""
    searcher = searcher.pinned()
    for _ in range(_TRIES):
        version, parts = searcher.version, list[pa.Table]()
        for begin in range(0, max(1, len(ids)), _ITEMS):
            parts.append(searcher.get(ids[begin : begin + _ITEMS], timeout_s=_time_left(deadline_s)))
            hold(sum(part.nbytes for part in parts))
        if len(parts) == 1 or searcher.version == version:
            return _joined(parts)
    raise NotReadyError(f"the collection changed {_TRIES} times during one request: try again")


def stored_page(
    searcher: Searcher,
    filter: str | None,
    parameters: Parameters | None,
    *,
    after: int | None,
    limit: int,
    version: int | None,
    sequence: int = 0,
    timeout_s: float | None,
    hold: Hold = _hold_anything,
) -> tuple[pa.Table, Coverage]:
    """Return stored items in ascending order of their ids, as `stored_items` does, of one version.

    Parameters
    ----------
    searcher : Searcher
    filter : str or None
    parameters : Parameters or None
        Lists of ids that `filter` names.
    after : int or None
        Only ids above this one.
    limit : int
        How many at most; fewer are all that there are.
    version : int or None
        The one that must answer.
    sequence : int
        With `version`: as in `Searcher.at`.
    timeout_s : float or None
    hold : callable
        As in `answer`.

    Raises
    ------
    VersionGoneError
        If `version` is not served any more.
    NotReadyError
        If new versions keep going live during the request.
    """
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    searcher, limit = _at(searcher, version, sequence), as_limit(limit)
    for _ in range(_TRIES):
        parts: list[pa.Table] = []
        covered: list[Coverage] = []
        last, left = after, limit
        while left > 0 and (not parts or len(parts[-1]) == _ITEMS):
            table, coverage = searcher.scan(
                filter, parameters, after=last, limit=min(left, _ITEMS), timeout_s=_time_left(deadline_s)
            )
            _check_version(coverage, version)
            parts.append(table)
            covered.append(coverage)
            hold(sum(part.nbytes for part in parts))
            last, left = (table["id"][-1].as_py() if len(table) else last), left - len(table)
        if all(coverage.version == covered[0].version for coverage in covered):
            table = _joined(parts)
            codes = shorten_codes(table["code"], searcher.bits)
            return table.set_column(table.column_names.index("code"), "code", codes), covered[0]
    raise NotReadyError(f"the collection changed {_TRIES} times during one request: try again")


def _at(searcher: Searcher, version: int | None, sequence: int) -> Searcher:
    return searcher.pinned() if version is None else searcher.at(version, sequence)


def _check_version(coverage: Coverage, version: int | None) -> None:
    """Raise VersionGoneError if another version has answered than the one that must."""
    if version is not None and coverage.version != version:
        raise version_gone(version, coverage.version)


def shorten_codes(column: pa.ChunkedArray, bits: int) -> pa.Array:
    """Return codes as ceil(bits / 8) bytes, without the padding of the last word."""
    size = -(-bits // 8)
    return pa.array([code[:size] for code in column.to_pylist()], pa.binary(size))


def _items(
    searcher: Searcher,
    parts: Sequence[Answer],
    include: frozenset[str],
    deadline_s: float | None,
    shares: _Shares,
) -> list[pa.Table | None] | None:
    """Return the stored items of the hits of each answer, read once for all; None if none were requested.

    An answer that `shares` refuses gets None, and no more is read for it.
    """
    if not include or not shares.left:
        return None
    ids = np.concatenate([part.ids for part in parts])
    distinct_D, place_M = np.unique(ids, return_inverse=True)
    place_of = np.split(place_M, np.cumsum([len(part.ids) for part in parts])[:-1])
    takes_AD = np.zeros((len(parts), len(distinct_D)), np.bool_)
    for takes_D, place in zip(takes_AD, place_of, strict=True):
        takes_D[place] = True
    without = parts[0].coverage.degraded
    tables: list[pa.Table] = []
    num_rows = 0  # a table without columns does not tell
    row_D, read_D = np.full(len(distinct_D), -1, np.int64), np.zeros(len(distinct_D), np.int64)
    for begin in range(0, max(1, len(distinct_D)), _ITEMS):
        wanted = begin + np.flatnonzero(takes_AD[shares.left, begin : begin + _ITEMS].any(axis=0))
        if tables and not len(wanted):
            continue
        table = searcher.get(distinct_D[wanted], timeout_s=_time_left(deadline_s), without=without)
        row_D[wanted] = num_rows + np.arange(len(wanted))
        num_rows += len(wanted)
        tables.append(_included(table, include, searcher.bits))
        read_D[wanted] = bytes_of_rows(tables[-1], names=False) if tables[-1].num_columns else 0
        shares.hold(_sums(read_D, takes_AD))
    table = _joined(tables)
    text_A = np.array([_bytes_taken(table, row_D[place]) for place in place_of])
    shares.hold(_sums(read_D, takes_AD) + text_A)
    return [table.take(row_D[place]) if number in shares.left else None for number, place in enumerate(place_of)]


def _sums(size_D: NDArray[np.int64], takes_AD: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.array([size_D[takes_D].sum() for takes_D in takes_AD], np.int64)


def _included(table: pa.Table, include: frozenset[str], bits: int) -> pa.Table:
    """Return what is to be included of stored items."""
    table = table.drop_columns(["id"])
    if "attributes" not in include:
        table = table.select(["code"])
    if "code" not in include:
        return table.drop_columns(["code"])
    return table.set_column(table.column_names.index("code"), "code", shorten_codes(table["code"], bits))


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default")


def _bytes_taken(table: pa.Table, place_M: NDArray[np.int64]) -> int:
    """Return about how many bytes the rows at some places have in JSON."""
    if not table.num_columns:
        return 0
    return int(bytes_of_rows(table, names=True)[place_M[place_M >= 0]].sum())


def bytes_of_rows(table: pa.Table, *, names: bool) -> NDArray[np.int64]:
    """Return about how many bytes each row has, with the names that JSON repeats for each."""
    size_N = np.zeros(len(table), np.int64)
    for name, column in zip(table.column_names, table.columns, strict=True):
        size_N += len(name) + 4 if names else 0
        parts = [_bytes_of_values(chunk) for chunk in column.chunks]
        size_N += np.concatenate(parts) if parts else 0
    return size_N


def _bytes_of_values(values: pa.Array) -> NDArray[np.int64]:
    """Return about how many bytes each value has: exactly of texts, also of those in lists."""
    if any(is_one(values.type) for is_one in _BYTES):
        sizes: NDArray[np.int64] = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
        return sizes.astype(np.int64)
    if is_list(values.type):
        sums = np.concatenate([[0], np.cumsum(_bytes_of_values(values.flatten()))])
        counts = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        in_lists: NDArray[np.int64] = np.diff(sums[np.concatenate([[0], np.cumsum(counts)])])
        return in_lists
    if pa.types.is_struct(values.type) and values.type.num_fields:
        together: NDArray[np.int64] = np.sum([_bytes_of_values(part) for part in values.flatten()], axis=0)
        return together
    return np.full(len(values), values.nbytes // max(1, len(values)), np.int64)


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
