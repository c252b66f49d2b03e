"""Coarse to fine: a pool of Hamming neighbours, re-ranked by their fine features.

Lin et al., "Deep learning of binary hash codes for fast image retrieval", CVPR workshops 2015. Q queries, P items of a
pool, F feature dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import IdArray
from hashlight.engine.query import Query
from hashlight.engine.results import PAD_ID, RerankResult, Result, SearchResult

METRICS = ("l2", "cosine")

# Number of float32 feature values in memory at a time: 64 MB, and as much again for their differences.
_VALUES_AT_ONCE = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rerank:
    """How a pool is chosen and ordered.

    Attributes
    ----------
    pool : int or None
        Take this many nearest codes, at least k.
    radius : int or None
        Or take all codes within this distance. Exactly one of the two is given.
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
    """Return the query that fetches the pool."""
    if rerank.radius is not None:
        return query._replace(k=None, radius=rerank.radius)
    return query._replace(k=min(rerank.pool or query.k or 1, max(1, rows)))


def pools_of(found: Result) -> NDArray[np.int64]:
    """Return the ids of answers as rows (Q, P), padded with -1 to the longest."""
    if isinstance(found, SearchResult):
        return found.ids
    counts_Q = np.diff(found.lims)
    pool_QP = np.full((len(counts_Q), int(counts_Q.max(initial=0))), PAD_ID, np.int64)
    pool_QP[np.arange(pool_QP.shape[1]) < counts_Q[:, None]] = found.ids
    return pool_QP


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
    pool_ids: NDArray[np.int64],
    features_of: Callable[[IdArray], NDArray[np.float16]],
    k: int,
    *,
    metric: str = "l2",
) -> RerankResult:
    """Re-rank pools, reading features a few queries at a time so that memory does not grow with the batch.

    Parameters
    ----------
    query_features, pool_ids, k, metric
        As in `rerank_pool`.
    features_of : callable
        Returns the features (M, F) of M ids, none of them padding.
    """
    step = max(1, _VALUES_AT_ONCE // max(1, pool_ids.shape[1] * query_features.shape[1]))
    parts = [
        _rerank_part(query_features[start : start + step], pool_ids[start : start + step], features_of, k, metric)
        for start in range(0, max(1, len(pool_ids)), step)
    ]
    return RerankResult(
        np.concatenate([part.distances for part in parts]), np.concatenate([part.ids for part in parts])
    )


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
    distance_QP[pool_ids == PAD_ID] = np.inf
    order_QP = np.lexsort((pool_ids, distance_QP), axis=1)[:, :k]
    result = RerankResult(
        np.full((len(pool_ids), k), np.inf, np.float32), np.full((len(pool_ids), k), PAD_ID, np.int64)
    )
    result.distances[:, : order_QP.shape[1]] = np.take_along_axis(distance_QP, order_QP, axis=1)
    result.ids[:, : order_QP.shape[1]] = np.take_along_axis(pool_ids, order_QP, axis=1)
    return result


def _distances(query_QF: NDArray[np.float32], pool_QPF: NDArray[np.float32], metric: str) -> NDArray[np.float32]:
    if metric == "l2":
        return np.asarray(np.linalg.norm(pool_QPF - query_QF[:, None], axis=2), np.float32)
    length_QP = np.linalg.norm(pool_QPF, axis=2) * np.linalg.norm(query_QF, axis=1)[:, None]
    product_QP = np.einsum("qpf,qf->qp", pool_QPF, query_QF)
    return np.asarray(1.0 - product_QP / np.maximum(length_QP, np.finfo(np.float32).tiny), np.float32)
