"""Coarse to fine: a pool of Hamming neighbours, exact by their codes, in an order that tells them apart.

By fine features (Lin et al., "Deep learning of binary hash codes for fast image retrieval", CVPR workshops 2015), which
are stored beside the codes; or by asymmetric distance (Gordo, Perronnin, Gong & Lazebnik, "Asymmetric distances for
binary embeddings", TPAMI 2014), for which nothing is stored: the query's projections, whose signs are its bits, say by
their size how much each bit counts. The nearest have the largest inner product of the projections with the stored bits
as signs, +1 and -1.

Q queries, P items of a pool, M items of several pools, F feature dimensions, B bits, W words of a code, E bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.collection.bounded import search_bounded
from hashlight.engine.query import Query
from hashlight.engine.results import (
    PAD_DISTANCE,
    PAD_ID,
    RangeResult,
    RerankResult,
    Result,
    as_range,
    join_explanations,
)

FEATURE_METRICS = ("l2", "cosine")
ASYMMETRIC = "asymmetric"
METRICS = (*FEATURE_METRICS, ASYMMETRIC)

# Orders by name: that of the pool itself, and the asymmetric one of a pool of suitable size.
HAMMING = "hamming"
Order = Literal["hamming", "asymmetric"]

# Of a pool whose size was not chosen: at least so many, and so many for each answer.
_LEAST_POOL, _POOL_PER_ANSWER = 100, 10

_TABLE_VALUES = 2**20  # of tables in memory at a time: 8 MB

# Number of float32 feature values in memory at a time: 64 MB, and as much again for their differences.
_VALUES_AT_ONCE = 2**24

MAX_POOL = 2**20  # codes; a radius that takes most of a collection would bring all of its features into memory


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rerank:
    """How a pool is chosen and ordered.

    Attributes
    ----------
    pool : int or None
        Take this many nearest codes, at least k, or all if there are fewer; more than 2**20 are refused.
    radius : int or None
        Or take all codes within this distance; more than 2**20 are refused. Exactly one of the two is given.
    metric : {"l2", "cosine", "asymmetric"}
        Euclidean distance, or 1 - cosine, of the fine features; or the inner product of the query's projections with
        the bits, equal ones by (Hamming distance, id).
    """

    pool: int | None = None
    radius: int | None = None
    metric: str = "l2"

    def __post_init__(self) -> None:
        if (self.pool is None) == (self.radius is None):
            raise ValueError(f"give one of `pool` and `radius`, got pool {self.pool} and radius {self.radius}")
        if self.pool is not None and self.pool < 1:
            raise ValueError(f"`pool` must be at least 1, got {self.pool}")
        if self.radius is not None and self.radius < 0:
            raise ValueError(f"`radius` must be at least 0, got {self.radius}")
        if self.metric not in METRICS:
            raise ValueError(f"`metric` must be one of {', '.join(METRICS)}, got {self.metric!r}")

    @property
    def by_features(self) -> bool:
        """Whether fine features are compared; otherwise projections with codes."""
        return self.metric in FEATURE_METRICS

    @classmethod
    def asymmetric(cls, k: int, *, most: int = MAX_POOL) -> Rerank:
        """Return the asymmetric order of a pool that suits `k` answers, of no more than `most` codes, or `k`."""
        return cls(pool=max(k, min(most, max(_LEAST_POOL, _POOL_PER_ANSWER * k))), metric=ASYMMETRIC)


def check_order(rerank: Rerank | Order | None) -> None:
    """Raise ValueError unless this is an order that a service gives: a name, or a pool by its size."""
    if isinstance(rerank, str) and rerank not in get_args(Order):
        raise ValueError(f"`rerank` must be a Rerank, 'asymmetric' or 'hamming', got {rerank!r}")
    if isinstance(rerank, Rerank) and rerank.pool is None:
        raise ValueError(f"`rerank` must name a `pool`, got one of radius {rerank.radius}")


def as_rerank(rerank: Rerank | Literal["asymmetric"] | None, k: int | None) -> Rerank | None:
    """Return what a name stands for; ValueError for another name than "asymmetric"."""
    if not isinstance(rerank, str):
        return rerank
    if rerank != ASYMMETRIC:
        raise ValueError(f"`rerank` must be a Rerank or {ASYMMETRIC!r}, got {rerank!r}")
    return Rerank.asymmetric(k or 1)


def one_of(
    features: NDArray[np.floating[Any]] | None,
    projections: NDArray[np.floating[Any]] | None,
    rerank: Rerank | None,
) -> NDArray[np.floating[Any]] | None:
    """Return what the queries are ordered by, features or projections; ValueError for the one that is not."""
    wanted, other, name = features, projections, "projections"
    if rerank is not None and rerank.metric == ASYMMETRIC:
        wanted, other, name = projections, features, "features"
    if other is not None:
        order = "Hamming order" if rerank is None else f"`rerank` by {rerank.metric}"
        raise ValueError(f"`{name}` have no use in {order}: leave them out, or pass the `rerank` that they are for")
    return wanted


def pool_query(query: Query, rerank: Rerank, *, rows: int) -> Query:
    """Return the query that fetches the pool from `rows` codes.

    Raises
    ------
    ValueError
        If the pool is larger than `MAX_POOL`.
    """
    if rerank.radius is not None:
        return query._replace(k=None, radius=rerank.radius)
    pool = min(rerank.pool or query.k or 1, max(1, rows))
    if pool > MAX_POOL:
        raise ValueError(
            f"`rerank` takes at most {MAX_POOL} codes a query, got a `pool` of {rerank.pool}: use a smaller one"
        )
    return query._replace(k=pool)


def find_pools(
    search: Callable[[CodeArray, Query], Result], queries_QW: CodeArray, query: Query
) -> Iterator[tuple[slice, Result]]:
    """Yield the pools of runs of queries, in order, so that those of a run have at most `MAX_POOL` codes in all.

    Parameters
    ----------
    search : callable
        Answers a batch of queries.
    queries_QW : ndarray of uint64, shape (Q, W)
    query : Query
        From `pool_query`.

    Raises
    ------
    ValueError
        If more than `MAX_POOL` codes are within the radius of one query.
    """
    if query.k is not None:
        size = max(1, MAX_POOL // query.k)
        for start in range(0, max(1, len(queries_QW)), size):
            run = slice(start, start + size)
            yield run, search(queries_QW[run], query)
        return
    for run, found in search_bounded(search, queries_QW, query, max_hits=MAX_POOL, max_hits_of_one=MAX_POOL):
        if found.truncated.any():
            raise ValueError(
                f"`rerank` takes at most {MAX_POOL} codes a query, got more within `radius` {query.radius} of query "
                f"{run.start}: use a smaller `radius`, or a `pool` of the nearest"
            )
        yield run, found


def check_query_features(
    features: NDArray[np.floating[Any]] | None, rerank: Rerank | None, *, num_queries: int, k: int | None, bits: int
) -> None:
    """Raise if re-ranking lacks the queries' features or projections, they lack re-ranking, or they do not fit.

    Raises
    ------
    TypeError, ValueError
    """
    name = "projections" if rerank is not None and rerank.metric == ASYMMETRIC else "features"
    if (features is None) != (rerank is None):
        missing = f"`{name}`, those of the queries" if features is None else "`rerank`, how to use them"
        raise ValueError(f"`rerank` and `{name}` go together: pass {missing}, too, or neither")
    if features is None or rerank is None:
        return
    if k is None:
        raise ValueError("`rerank` needs `k`, the number of answers to take from the pool, got a radius search")
    if rerank.pool is not None and rerank.pool < k:
        raise ValueError(f"`rerank` must have a `pool` of at least `k`, {k}, got {rerank.pool}")
    if not isinstance(features, np.ndarray) or features.dtype.kind != "f":
        raise TypeError(f"`{name}` must be an array of floats, got {getattr(features, 'dtype', type(features))}")
    width = bits if name == "projections" else "F"
    if features.ndim != 2 or len(features) != num_queries or width not in ("F", features.shape[1]):
        raise ValueError(f"`{name}` must have shape ({num_queries}, {width}), one row per query, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"`{name}` must be finite, got nan or inf in {(~np.isfinite(features)).sum()} places")


class _Ranked(NamedTuple):
    """Items of some queries: `keys` (R, P) that they are ordered by, of equal ones by (`distances`, `ids`)."""

    keys: NDArray[np.floating[Any]]
    distances: NDArray[np.int32]
    ids: NDArray[np.int64]


def rerank_ids(
    query_values: NDArray[np.floating[Any]],
    found: Result,
    stored_of: Callable[[IdArray], NDArray[Any]],
    k: int,
    *,
    metric: str = "l2",
    max_items: int = MAX_POOL,
) -> RerankResult:
    """Re-rank pools, reading what is stored a few queries at a time so that memory does not grow with the batch.

    Parameters
    ----------
    query_values : ndarray of float, shape (Q, F) or (Q, B)
        Features, or projections for "asymmetric".
    found : SearchResult or RangeResult
        The pools of the queries.
    stored_of : callable
        Returns the features (M, F) of M ids, none of them padding, or their codes (M, W) for "asymmetric".
    k, metric
        As in `rerank_pool`.
    max_items : int
        Maximum M.
    """
    pools = found if isinstance(found, RangeResult) else as_range(found)
    at_once = max(1, min(max_items, _VALUES_AT_ONCE // max(1, query_values.shape[1])))
    best = [_as_result(_nothing(0), k, metric)]
    for run in _runs(np.diff(pools.lims), at_once):
        query_RF, (id_RP, distance_RP) = query_values[run], _padded(pools, run)
        found_R = _nothing(len(query_RF))
        for start in range(0, id_RP.shape[1], at_once):
            some = slice(start, start + at_once)
            keys_RP = _keys(query_RF, id_RP[:, some], stored_of, metric)
            found_R = _first(_joined(found_R, _Ranked(keys_RP, distance_RP[:, some], id_RP[:, some])), k, metric)
        best.append(_as_result(found_R, k, metric))
    return join_reranked(best)


def join_reranked(parts: Sequence[RerankResult]) -> RerankResult:
    """Join the answers to consecutive parts of a batch, without coverage."""
    return RerankResult(
        np.concatenate([part.distances for part in parts]),
        np.concatenate([part.ids for part in parts]),
        explain=join_explanations([part.explain for part in parts]),
    )


def _runs(size_Q: NDArray[np.int64], at_once: int) -> Iterator[slice]:
    """Cut the queries into runs whose pools, padded to the largest of the run, have at most `at_once` items in all.

    A query whose pool is larger is a run of its own.
    """
    start, widest = 0, 0
    for place, size in enumerate(size_Q.tolist()):
        if place > start and (place + 1 - start) * max(widest, size) > at_once:
            yield slice(start, place)
            start, widest = place, 0
        widest = max(widest, size)
    if start < len(size_Q):
        yield slice(start, len(size_Q))


def _padded(pools: RangeResult, run: slice) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the pools of some queries, ids and distances, as rows (R, P), padded to the longest."""
    lims = pools.lims[run.start : run.stop + 1]
    size_R = np.diff(lims)
    there_RP = np.arange(int(size_R.max(initial=0))) < size_R[:, None]
    id_RP = np.full(there_RP.shape, PAD_ID, np.int64)
    distance_RP = np.full(there_RP.shape, PAD_DISTANCE, np.int32)
    id_RP[there_RP] = pools.ids[lims[0] : lims[-1]]
    distance_RP[there_RP] = pools.distances[lims[0] : lims[-1]]
    return id_RP, distance_RP


def _nothing(num_queries: int) -> _Ranked:
    shape = num_queries, 0
    return _Ranked(np.empty(shape), np.empty(shape, np.int32), np.empty(shape, np.int64))


def _joined(first: _Ranked, second: _Ranked) -> _Ranked:
    return _Ranked(
        np.concatenate([first.keys, second.keys], axis=1),
        np.concatenate([first.distances, second.distances], axis=1),
        np.concatenate([first.ids, second.ids], axis=1),
    )


def _keys(
    query_RF: NDArray[np.floating[Any]],
    id_RP: NDArray[np.int64],
    stored_of: Callable[[IdArray], NDArray[Any]],
    metric: str,
) -> NDArray[np.floating[Any]]:
    """Return what the items of some pools are ordered by, (R, P)."""
    there_RP = id_RP != PAD_ID
    stored_M = stored_of(id_RP[there_RP])
    if metric == ASYMMETRIC:
        keys_RP = np.full(id_RP.shape, np.inf)
        keys_RP[there_RP] = -inner_products(query_RF, stored_M, there_RP.sum(axis=1))
        return keys_RP
    if stored_M.shape[1] != query_RF.shape[1]:
        raise ValueError(
            f"`features` must have {stored_M.shape[1]} columns, as those of the collection, got {query_RF.shape[1]}"
        )
    feature_RPF = np.zeros((*id_RP.shape, stored_M.shape[1]), np.float32)
    feature_RPF[there_RP] = stored_M
    return _distances(query_RF.astype(np.float32), feature_RPF, metric)


def inner_products(
    projection_QB: NDArray[np.floating[Any]], code_MW: CodeArray, count_Q: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the inner product of each query's projections with the bits, as +1 and -1, of its codes, (M,).

    By tables of all 256 values of a byte, so that a code costs one look-up a byte; the sum is in the order of the
    bytes, so that it does not depend on the other codes.

    Parameters
    ----------
    projection_QB : ndarray of float, shape (Q, B)
    code_MW : ndarray of uint64, shape (M, W)
        Those of the first query, then those of the second, ...
    count_Q : ndarray of int64, shape (Q,)
        How many each query has.
    """
    num_bytes = -(-projection_QB.shape[1] // 8)
    byte_ME = code_MW.astype("<u8").view(np.uint8).reshape(len(code_MW), -1)[:, :num_bytes]
    lims = np.concatenate([[0], np.cumsum(count_Q)])
    product_M = np.zeros(len(code_MW))
    at_once = max(1, _TABLE_VALUES // (256 * num_bytes))
    for start in range(0, len(count_Q), at_once):
        queries = slice(start, start + at_once)
        items = slice(lims[start], lims[min(start + at_once, len(count_Q))])
        table_QEV = _tables(projection_QB[queries])
        query_I = np.repeat(np.arange(len(table_QEV)), count_Q[queries])
        for byte in range(num_bytes):
            product_M[items] += table_QEV[query_I, byte, byte_ME[items, byte]]
    return product_M


def _tables(projection_QB: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the inner product of eight projections with each value of a byte, (Q, E, 256)."""
    num_bytes = -(-projection_QB.shape[1] // 8)
    padded_QB = np.zeros((len(projection_QB), 8 * num_bytes))
    padded_QB[:, : projection_QB.shape[1]] = projection_QB
    projection_QE8 = padded_QB.reshape(len(padded_QB), num_bytes, 8)
    table_QEV = np.zeros((len(padded_QB), num_bytes, 1))
    for bit in range(8):
        one_QE = projection_QE8[:, :, bit, None]
        table_QEV = np.concatenate([table_QEV - one_QE, table_QEV + one_QE], axis=2)
    return table_QEV


def rerank_pool(
    query_features: NDArray[np.floating[Any]],
    pool_ids: NDArray[np.int64],
    pool_features: NDArray[np.floating[Any]],
    k: int,
    *,
    metric: str = "l2",
) -> RerankResult:
    """Order each query's pool by the distance of fine features, and keep the nearest.

    Parameters
    ----------
    query_features : ndarray of float, shape (Q, F)
    pool_ids : ndarray of int64, shape (Q, P)
        -1 where a pool has no more items.
    pool_features : ndarray of float, shape (Q, P, F)
        float16 as stored is enough; distances are computed in float32.
    k : int
    metric : {"l2", "cosine"}

    Raises
    ------
    ValueError
        If the shapes do not fit, or `metric` is unknown.
    """
    if pool_features.shape != (*pool_ids.shape, query_features.shape[-1]) or len(query_features) != len(pool_ids):
        raise ValueError(
            f"`pool_features` must have shape {(*pool_ids.shape, query_features.shape[-1])} for `pool_ids` of shape "
            f"{pool_ids.shape} and `query_features` of shape {query_features.shape}, got {pool_features.shape}"
        )
    if metric not in FEATURE_METRICS:
        raise ValueError(f"`metric` must be one of {', '.join(FEATURE_METRICS)}, got {metric!r}")
    distance_QP = _distances(query_features.astype(np.float32), pool_features.astype(np.float32), metric)
    pool = _Ranked(distance_QP, np.zeros(pool_ids.shape, np.int32), pool_ids)
    return _as_result(_first(pool, k, metric), k, metric)


def _first(items: _Ranked, k: int, metric: str) -> _Ranked:
    """Return the k first of each row, ascending; those of undefined distance come last, before padding."""
    padding_QP = items.ids == PAD_ID
    key_QP = np.where(np.isnan(items.keys) | padding_QP, np.inf, items.keys)
    ties = (items.ids, items.distances) if metric == ASYMMETRIC else (items.ids,)
    order_QP = np.lexsort((*ties, key_QP, padding_QP), axis=1)[:, :k]
    keys, distances, ids = (np.take_along_axis(part, order_QP, axis=1) for part in (key_QP, *items[1:]))
    return _Ranked(keys, distances, ids)


def _as_result(items: _Ranked, k: int, metric: str) -> RerankResult:
    """Return items in their order, padded to k."""
    asymmetric = metric == ASYMMETRIC
    shape = len(items.ids), k
    distance_QK: NDArray[Any] = (
        np.full(shape, PAD_DISTANCE, np.int32) if asymmetric else np.full(shape, np.inf, np.float32)
    )
    id_QK = np.full(shape, PAD_ID, np.int64)
    width = items.ids.shape[1]
    distance_QK[:, :width] = items.distances if asymmetric else items.keys
    id_QK[:, :width] = items.ids
    return RerankResult(distance_QK, id_QK)


def _distances(query_QF: NDArray[np.float32], pool_QPF: NDArray[np.float32], metric: str) -> NDArray[np.float32]:
    if metric == "l2":
        return np.asarray(np.linalg.norm(pool_QPF - query_QF[:, None], axis=2), np.float32)
    length_QP = np.linalg.norm(pool_QPF, axis=2) * np.linalg.norm(query_QF, axis=1)[:, None]
    product_QP = np.einsum("qpf,qf->qp", pool_QPF, query_QF)
    with np.errstate(invalid="ignore"):  # of stored features that are not finite
        cosine_QP = product_QP / np.maximum(length_QP, np.finfo(np.float32).tiny)
    return np.asarray(1.0 - cosine_QP, np.float32)
