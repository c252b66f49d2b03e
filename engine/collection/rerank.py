"""Coarse to fine: a pool of Hamming neighbours, re-ranked by their fine features.

Lin et al., "Deep learning of binary hash codes for fast image retrieval", CVPR workshops 2015. Q queries, P items of a
pool, F feature dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.collection.bounded import search_bounded
from hashlight.engine.query import Query
from hashlight.engine.results import PAD_ID, RangeResult, RerankResult, Result, as_range, join_explanations

METRICS = ("l2", "cosine")

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
    metric : {"l2", "cosine"}
        Euclidean distance, or 1 - cosine, of the fine features.
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
    features: NDArray[np.floating[Any]] | None, rerank: Rerank | None, *, num_queries: int, k: int | None
) -> None:
    """Raise if re-ranking lacks the queries' features, features lack re-ranking, or they do not fit.

    Raises
    ------
    TypeError, ValueError
    """
    if (features is None) != (rerank is None):
        missing = "`features`, those of the queries" if features is None else "`rerank`, how to use them"
        raise ValueError(f"`rerank` and `features` go together: pass {missing}, too, or neither")
    if features is None or rerank is None:
        return
    if k is None:
        raise ValueError("`rerank` needs `k`, the number of answers to take from the pool, got a radius search")
    if rerank.pool is not None and rerank.pool < k:
        raise ValueError(f"`rerank` must have a `pool` of at least `k`, {k}, got {rerank.pool}")
    if not isinstance(features, np.ndarray) or features.dtype.kind != "f":
        raise TypeError(f"`features` must be an array of floats, got {getattr(features, 'dtype', type(features))}")
    if features.ndim != 2 or len(features) != num_queries:
        raise ValueError(f"`features` must have shape ({num_queries}, F), one row per query, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"`features` must be finite, got nan or inf in {(~np.isfinite(features)).sum()} places")


def rerank_ids(
    query_features: NDArray[np.floating[Any]],
    found: Result,
    features_of: Callable[[IdArray], NDArray[np.float16]],
    k: int,
    *,
    metric: str = "l2",
    max_items: int = MAX_POOL,
) -> RerankResult:
    """Re-rank pools, reading features a few queries at a time so that memory does not grow with the batch.

    Parameters
    ----------
    query_features, k, metric
        As in `rerank_pool`.
    found : SearchResult or RangeResult
        The pools of the queries.
    features_of : callable
        Returns the features (M, F) of M ids, none of them padding.
    max_items : int
        Maximum M.
    """
    pools = found if isinstance(found, RangeResult) else as_range(found)
    at_once = max(1, min(max_items, _VALUES_AT_ONCE // max(1, query_features.shape[1])))
    best = [_no_answers(0, k)]
    for run in _runs(np.diff(pools.lims), at_once):
        query_RF, pool_RP = query_features[run], _padded(pools, run)
        found_R = _no_answers(len(query_RF), k)
        for start in range(0, pool_RP.shape[1], at_once):
            part = _rerank_part(query_RF, pool_RP[:, start : start + at_once], features_of, k, metric)
            found_R = part if start == 0 else _nearest_of(found_R, part, k)
        best.append(found_R)
    return join_reranked(best)


def join_reranked(parts: Sequence[RerankResult]) -> RerankResult:
    """Join the answers to consecutive parts of a batch, without coverage."""
    return RerankResult(
        np.concatenate([part.distances for part in parts]),
        np.concatenate([part.ids for part in parts]),
        explain=join_explanations([part.explain for part in parts]),
    )


def _no_answers(num_queries: int, k: int) -> RerankResult:
    return RerankResult(np.full((num_queries, k), np.inf, np.float32), np.full((num_queries, k), PAD_ID, np.int64))


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


def _padded(pools: RangeResult, run: slice) -> NDArray[np.int64]:
    """Return the pools of some queries as rows (R, P), padded with -1 to the longest."""
    lims = pools.lims[run.start : run.stop + 1]
    size_R = np.diff(lims)
    pool_RP = np.full((len(size_R), int(size_R.max(initial=0))), PAD_ID, np.int64)
    pool_RP[np.arange(pool_RP.shape[1]) < size_R[:, None]] = pools.ids[lims[0] : lims[-1]]
    return pool_RP


def _nearest_of(first: RerankResult, second: RerankResult, k: int) -> RerankResult:
    distance_QM = np.concatenate([first.distances, second.distances], axis=1)
    id_QM = np.concatenate([first.ids, second.ids], axis=1)
    return _ordered(distance_QM, id_QM, k)


def _rerank_part(
    query_QF: NDArray[np.floating[Any]],
    pool_QP: NDArray[np.int64],
    features_of: Callable[[IdArray], NDArray[np.float16]],
    k: int,
    metric: str,
) -> RerankResult:
    there_QP = pool_QP != PAD_ID
    stored_MF = features_of(pool_QP[there_QP])
    if stored_MF.shape[1] != query_QF.shape[1]:
        raise ValueError(
            f"`features` must have {stored_MF.shape[1]} columns, as those of the collection, got {query_QF.shape[1]}"
        )
    pool_QPF = np.zeros((*pool_QP.shape, stored_MF.shape[1]), np.float16)
    pool_QPF[there_QP] = stored_MF
    return rerank_pool(query_QF, pool_QP, pool_QPF, k, metric=metric)


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
    if metric not in METRICS:
        raise ValueError(f"`metric` must be one of {', '.join(METRICS)}, got {metric!r}")
    distance_QP = _distances(query_features.astype(np.float32), pool_features.astype(np.float32), metric)
    return _ordered(distance_QP, pool_ids, k)


def _ordered(distance_QP: NDArray[np.float32], id_QP: NDArray[np.int64], k: int) -> RerankResult:
    """Return the k nearest of each row, ascending by (distance, id); undefined distances come last, before padding."""
    padding_QP = id_QP == PAD_ID
    distance_QP = np.where(np.isnan(distance_QP) | padding_QP, np.float32(np.inf), distance_QP)
    order_QP = np.lexsort((id_QP, distance_QP, padding_QP), axis=1)[:, :k]
    result = _no_answers(len(id_QP), k)
    result.distances[:, : order_QP.shape[1]] = np.take_along_axis(distance_QP, order_QP, axis=1)
    result.ids[:, : order_QP.shape[1]] = np.take_along_axis(id_QP, order_QP, axis=1)
    return result


def _distances(query_QF: NDArray[np.float32], pool_QPF: NDArray[np.float32], metric: str) -> NDArray[np.float32]:
    if metric == "l2":
        return np.asarray(np.linalg.norm(pool_QPF - query_QF[:, None], axis=2), np.float32)
    length_QP = np.linalg.norm(pool_QPF, axis=2) * np.linalg.norm(query_QF, axis=1)[:, None]
    product_QP = np.einsum("qpf,qf->qp", pool_QPF, query_QF)
    with np.errstate(invalid="ignore"):  # of stored features that are not finite
        cosine_QP = product_QP / np.maximum(length_QP, np.finfo(np.float32).tiny)
    return np.asarray(1.0 - cosine_QP, np.float32)
