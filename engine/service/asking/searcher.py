"""What a gateway or an in-process client asks: one collection, in this process or behind shard servers.

`CollectionSearcher` answers from a `Collection` that is open here, `engine.service.routing.router.ClusterRouter` from
shard servers. Both give the same answers.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.errors import DeadlineExceededError, NotReadyError
from hashlight.engine.places.opening import open_place
from hashlight.engine.query import Query
from hashlight.engine.results import RangeResult, RerankResult, Result, SearchResult
from hashlight.engine.storage.manifest import read_current

logger = logging.getLogger(__name__)


class Searcher(ABC):
    """Answers over one collection. Several threads may use one searcher at once.

    Every answer carries `coverage`. The errors of all methods, beside their own:

    TypeError, ValueError
        An argument is wrong in itself or does not fit the collection.
    DeadlineExceededError
        There was no answer within `timeout_s`.
    OverloadedError
        More is asked than can be answered; `retry_after_s` says when to try again.
    NoShardError
        No shard answered.
    """

    @property
    @abstractmethod
    def bits(self) -> int:
        """True number of bits of a code."""

    @property
    @abstractmethod
    def fingerprint(self) -> str | None:
        """Fingerprint of the encoder that made the codes, if one did."""

    @property
    @abstractmethod
    def version(self) -> int:
        """Version of the collection that is served now."""

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
        """Answer one query for each of several codes.

        Parameters
        ----------
        queries : ndarray of uint64, shape (Q, W)
        query : Query
        rerank : Rerank, optional
            With `query.k`: the nearest by fine features among the nearest codes.
        features : ndarray of float, shape (Q, F), with `rerank` only
        timeout_s : float, optional
            From now; without it a long time of the searcher's own.
        allow_partial : bool
            Answer from the shards that can, and say in `coverage` which did not.

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
        explain: bool = False,
        allow_partial: bool = True,
        **more: Any,
    ) -> SearchResult | RerankResult:
        """Find the k nearest codes of each query; `more` are the other keywords of `answer`."""
        query = Query(k=k, filter=filter, explain=explain)
        return cast(SearchResult | RerankResult, self.answer(queries, query, allow_partial=allow_partial, **more))

    def range_search(
        self,
        queries: CodeArray,
        radius: int = 4,
        limit: int | None = None,
        *,
        filter: str | None = None,
        explain: bool = False,
        allow_partial: bool = False,
        **more: Any,
    ) -> RangeResult:
        """Find every code within a radius of each query; `more` are the other keywords of `answer`."""
        query = Query(radius=radius, limit=limit, filter=filter, explain=explain)
        return cast(RangeResult, self.answer(queries, query, allow_partial=allow_partial, **more))

    @abstractmethod
    def get(
        self, ids: IdArray | Sequence[int], *, timeout_s: float | None = None, without: Container[str] = ()
    ) -> pa.Table:
        """Return `id`, `code` and the attributes of some ids, in the order asked.

        `without` names shards that need not be asked: they did not answer just now, and the ids are of others.

        Raises
        ------
        IdNotFoundError
            If the collection lacks one of them.
        IncompleteError
            If it may be in a shard that does not answer.
        """

    @abstractmethod
    def thumbnail(self, id: int, *, timeout_s: float | None = None) -> bytes | None:
        """Return the small encoded picture of an item, None if it has none; errors as in `get`."""

    @abstractmethod
    def features_of(self, ids: IdArray, *, timeout_s: float | None = None) -> NDArray[np.float16]:
        """Return the fine features of some ids, (M, F), in the order asked; errors as in `get`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what is served, in plain types for JSON.

        `bits`, `rows`, `shards`, `version`, `encoder` (fingerprint or None), `attributes` (name -> type), `features`
        (whether there are fine ones to re-rank by).
        """

    @abstractmethod
    def ready(self) -> None:
        """Make one real search in every shard, and read an item.

        Raises
        ------
        NotReadyError
            If any shard cannot answer.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and files."""


class CollectionSearcher(Searcher):
    """Answers from a collection that is open in this process.

    A search here cannot be interrupted; one that took longer than `timeout_s` raises when it ends.
    """

    def __init__(self, collection: Collection | str | Path) -> None:
        self._collection = collection if isinstance(collection, Collection) else Collection.open(collection)
        self._renewing = threading.Lock()

    def __repr__(self) -> str:
        """Name the collection."""
        return f"CollectionSearcher({self._collection!r})"

    @property
    def bits(self) -> int:
        """True number of bits of a code."""
        return self._collection.bits

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the encoder that made the codes, if one did."""
        return self._collection.fingerprint

    @property
    def version(self) -> int:
        """Version of the collection that is open."""
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
        """See `Searcher.answer`; every shard is here, so no answer is partial."""
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
            self._collection.get([id])  # an id that is not there is an error
        return picture

    def features_of(self, ids: IdArray, *, timeout_s: float | None = None) -> NDArray[np.float16]:
        """See `Searcher.features_of`."""
        return self._collection.features_of(ids)

    def describe(self) -> dict[str, Any]:
        """See `Searcher.describe`."""
        return describe_collection(self._collection)

    def ready(self) -> None:
        """See `Searcher.ready`."""
        try_search(self._collection)

    def renew(self) -> bool:
        """Open the live version if it is another than the one that is open, and say whether it was.

        Queries under way end with the version they began with.
        """
        with self._renewing:
            location = self._collection.location
            if read_current(open_place(location)).version == self.version:
                return False
            self._collection = Collection.open(location)
            return True

    def close(self) -> None:
        """See `Searcher.close`; maps go with their last reader."""


def describe_collection(collection: Collection) -> dict[str, Any]:
    """Return what `Searcher.describe` says of an open collection."""
    first = collection.shards[0]
    schema = pa.schema([]) if first.attributes is None else first.attributes.schema
    return {
        "bits": collection.bits,
        "rows": len(collection),
        "shards": len(collection.shards),
        "version": collection.version,
        "encoder": collection.fingerprint,
        "attributes": {field.name: str(field.type) for field in schema},
        "features": first.features_NF is not None,
    }


def try_search(collection: Collection) -> None:
    """Look in each shard for a few of its own codes, and read an item: what a first answer loads is loaded then.

    Raises
    ------
    NotReadyError
        If a shard does not find them, in any of its tables or by a scan.
    """
    for shard in collection.shards:
        if fault := shard.index.find_fault(shard.codes_NW):
            raise NotReadyError(
                f"shard {shard.name} of {collection.path} does not find its own codes ({fault}): "
                "build the collection again"
            )
    collection.get(collection.shards[-1].ids_N[:1])


def _deadline(timeout_s: float | None) -> float:
    deadline_s = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    _check_time(deadline_s, timeout_s)
    return deadline_s


def _check_time(deadline_s: float, timeout_s: float | None) -> None:
    if time.monotonic() >= deadline_s:
        raise DeadlineExceededError(
            f"no answer within {timeout_s:g} s: give more time (`timeout_s`), or ask for fewer queries at a time"
        )
