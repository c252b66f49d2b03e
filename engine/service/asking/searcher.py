"""The interface that gateways and in-process clients query: one collection, local or behind shard servers.

`CollectionSearcher` answers from a `Collection` that is open here, `engine.service.routing.router.ClusterRouter` from
shard servers. Both give the same answers.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.errors import DeadlineExceededError, NotReadyError
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.places.opening import open_place
from hashlight.engine.query import Query
from hashlight.engine.results import Coverage, RangeResult, RerankResult, Result, SearchResult
from hashlight.engine.storage.shard import Shard
from hashlight.engine.storage.versions import read_current

logger = logging.getLogger(__name__)

_SAMPLED_ROWS = 64


class Searcher(ABC):
    """Answers queries over one collection. Thread-safe.

    Every answer carries `coverage`. All methods may raise, besides their own errors:

    TypeError, ValueError
        An argument is invalid or does not fit the collection.
    DeadlineExceededError
        There was no answer within `timeout_s`.
    OverloadedError
        The server is overloaded; `retry_after_s` says when to try again.
    NoShardError
        No shard answered.
    """

    @property
    @abstractmethod
    def bits(self) -> int:
        """True number of bits in a code."""

    @property
    @abstractmethod
    def fingerprint(self) -> str | None:
        """Fingerprint of the encoder that made the codes, if known."""

    @property
    @abstractmethod
    def version(self) -> int:
        """Version of the collection being served."""

    @abstractmethod
    def answer(
        self,
        queries: CodeArray,
        query: Query,
        *,
        rerank: Rerank | None = None,
        features: NDArray[np.floating[Any]] | None = None,
        timeout_s: float | None = None,
        allow_partial: bool,
    ) -> Result | RerankResult:
        """Answer the same query for each of several codes.

        Parameters
        ----------
        queries : ndarray of uint64, shape (Q, W)
        query : Query
        rerank : Rerank, optional
            With `query.k`: re-rank the nearest codes by fine features.
        features : ndarray of float, shape (Q, F), with `rerank` only
        timeout_s : float, optional
            By default a long time chosen by the searcher.
        allow_partial : bool
            Answer from the shards that respond; `coverage` names the others.

        Raises
        ------
        IncompleteError
            If shards are missing and `allow_partial` is false.
        """

    def search(
        self,
        queries: CodeArray,
        k: int = 10,
        *,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        explain: bool = False,
        allow_partial: bool = True,
        **more: Any,
    ) -> SearchResult | RerankResult:
        """Find the k nearest codes of each query; `more` are the other keywords of `answer`."""
        query = Query(k=k, filter=filter, parameters=Parameters.of(parameters), explain=explain)
        return cast(SearchResult | RerankResult, self.answer(queries, query, allow_partial=allow_partial, **more))

    def range_search(
        self,
        queries: CodeArray,
        radius: int = 4,
        limit: int | None = None,
        *,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        explain: bool = False,
        after: tuple[int, int] | None = None,
        allow_partial: bool = False,
        **more: Any,
    ) -> RangeResult:
        """Find every code within a radius of each query; `more` are the other keywords of `answer`."""
        lists = Parameters.of(parameters)
        query = Query(radius=radius, limit=limit, filter=filter, parameters=lists, explain=explain, after=after)
        return cast(RangeResult, self.answer(queries, query, allow_partial=allow_partial, **more))

    @abstractmethod
    def get(
        self, ids: IdArray | Sequence[int], *, timeout_s: float | None = None, without: Container[str] = ()
    ) -> pa.Table:
        """Return `id`, `code` and the attributes of some ids, in the order requested.

        `without` names shards to skip: they have just failed to answer, and the ids are in other shards.

        Raises
        ------
        IdNotFoundError
            If the collection lacks one of them.
        IncompleteError
            If an id may be in a shard that does not answer.
        """

    @abstractmethod
    def thumbnail(self, id: int, *, timeout_s: float | None = None) -> bytes | None:
        """Return the thumbnail of an item, None if it has none; errors as in `get`."""

    @abstractmethod
    def features_of(self, ids: IdArray, *, timeout_s: float | None = None) -> NDArray[np.float16]:
        """Return the fine features of some ids, (M, F), in the order requested; errors as in `get`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe the collection in plain types for JSON.

        `bits`, `rows`, `shards`, `version`, `encoder` (fingerprint or None), `attributes` (name -> type), `features`
        (whether there are any for re-ranking).
        """

    @abstractmethod
    def ready(self) -> Coverage:
        """Make a test search in every shard, and read an item; return which shards can answer.

        Raises
        ------
        NotReadyError
            If none can, or not even a partial answer could be given.
        """

    @abstractmethod
    def close(self) -> None:
        """Release connections and files."""


class CollectionSearcher(Searcher):
    """Answers from a collection that is open in this process.

    A search cannot be interrupted; one that takes longer than `timeout_s` raises when it ends.
    """

    def __init__(self, collection: Collection | str | Path) -> None:
        self._collection = collection if isinstance(collection, Collection) else Collection.open(collection)
        self._renewing = threading.Lock()

    def __repr__(self) -> str:
        """Name the collection."""
        return f"CollectionSearcher({self._collection!r})"

    @property
    def bits(self) -> int:
        """True number of bits in a code."""
        return self._collection.bits

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the encoder that made the codes, if known."""
        return self._collection.fingerprint

    @property
    def version(self) -> int:
        """Version of the open collection."""
        return self._collection.version

    def answer(
        self,
        queries: CodeArray,
        query: Query,
        *,
        rerank: Rerank | None = None,
        features: NDArray[np.floating[Any]] | None = None,
        timeout_s: float | None = None,
        allow_partial: bool,
    ) -> Result | RerankResult:
        """See `Searcher.answer`; all shards are local, so no answer is partial."""
        deadline_s = _deadline(timeout_s)
        found = self._collection.answer(queries, query, rerank=rerank, features=features)
        _check_time(deadline_s, timeout_s)
        return found

    def get(
        self, ids: IdArray | Sequence[int], *, timeout_s: float | None = None, without: Container[str] = ()
    ) -> pa.Table:
        """See `Searcher.get`."""
        return self._collection.get(ids)

    def thumbnail(self, id: int, *, timeout_s: float | None = None) -> bytes | None:
        """See `Searcher.thumbnail`."""
        picture = self._collection.thumbnails_of(np.array([id], np.int64))[0]
        if picture is None:
            self._collection.get([id])  # raises if the id does not exist
        return picture

    def features_of(self, ids: IdArray, *, timeout_s: float | None = None) -> NDArray[np.float16]:
        """See `Searcher.features_of`."""
        return self._collection.features_of(ids)

    def describe(self) -> dict[str, Any]:
        """See `Searcher.describe`."""
        return describe_collection(self._collection)

    def ready(self) -> Coverage:
        """See `Searcher.ready`; no answer is partial, so every shard must be well."""
        collection = self._collection
        try_search(collection)
        shards, codes = len(collection.shards), len(collection)
        return Coverage(shards=shards, answered=shards, codes=codes, searched=codes, version=collection.version)

    def renew(self) -> bool:
        """Open the live version if it has changed; return whether it had.

        Queries in progress finish on the version they started with.
        """
        with self._renewing:
            location = self._collection.location
            # The manifests and not their numbers, which begin anew when a collection is built again.
            if read_current(open_place(location)) == self._collection.manifest:
                return False
            self._collection = Collection.open(location, index=self._collection.index, reuse=self._collection)
            return True

    def close(self) -> None:
        """See `Searcher.close`; maps are released by their last reader."""


def describe_collection(collection: Collection) -> dict[str, Any]:
    """Describe an open collection; see `Searcher.describe`."""
    return {
        "bits": collection.bits,
        "rows": len(collection),
        "shards": len(collection.shards),
        "version": collection.version,
        "encoder": collection.fingerprint,
        "attributes": {field.name: str(field.type) for field in collection.schema},
        "features": collection.num_features is not None,
    }


def try_search(collection: Collection) -> None:
    """Search each shard for a few of its own codes and ids, and read an item, so that everything is loaded.

    Raises
    ------
    NotReadyError
        If a shard does not find the codes in one of its tables or by a scan, or its ids are not those of its rows.
    """
    owners: dict[int, str] = {}
    for shard in collection.shards:
        if fault := shard.index.find_fault(shard.codes_NW):
            raise _not_ready(shard, collection, f"does not find its own codes ({fault})")
        rows_R = np.unique(np.linspace(0, shard.rows - 1, _SAMPLED_ROWS).astype(np.int64))
        if shard.alive is not None:
            rows_R = rows_R[shard.alive.allows(rows_R)]
        if fault := _fault_of_ids(shard, rows_R):
            raise _not_ready(shard, collection, f"has ids that are not those of its codes ({fault})")
        for id_ in shard.ids_N[rows_R].tolist():
            # Only a sample, but the ids of one shard in the place of another's are sampled at the same rows.
            if owners.setdefault(id_, shard.name) != shard.name:
                raise _not_ready(shard, collection, f"has id {id_}, which is also in shard {owners[id_]}")
    collection.get(list(owners)[-1:])


def _fault_of_ids(shard: Shard, rows_R: NDArray[np.int64]) -> str | None:
    """Check that ids of some rows are found there, and ascend among equal codes; return what is wrong, or None."""
    found_R = shard.rows_of(shard.ids_N[rows_R])
    if (wrong_R := found_R != rows_R).any():
        row, found = rows_R[wrong_R][0], found_R[wrong_R][0]
        return f"id {shard.ids_N[row]} of row {row} is found at row {found}; -1 is nowhere"
    rows_R = rows_R[rows_R < shard.rows - 1]
    equal_R = (shard.codes_NW[rows_R] == shard.codes_NW[rows_R + 1]).all(axis=1)
    rows_R = rows_R[equal_R & (shard.ids_N[rows_R] >= shard.ids_N[rows_R + 1])]
    if len(rows_R):
        return f"rows {rows_R[0]} and {rows_R[0] + 1} have the same code, and their ids do not ascend"
    return None


def _not_ready(shard: Shard, collection: Collection, fault: str) -> NotReadyError:
    return NotReadyError(f"shard {shard.name} of {collection.path} {fault}: build the collection again")


def _deadline(timeout_s: float | None) -> float:
    deadline_s = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    _check_time(deadline_s, timeout_s)
    return deadline_s


def _check_time(deadline_s: float, timeout_s: float | None) -> None:
    if time.monotonic() >= deadline_s:
        raise DeadlineExceededError(
            f"no answer within {timeout_s:g} s: give more time (`timeout_s`), or ask for fewer queries at a time"
        )
