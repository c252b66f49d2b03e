"""The interface that gateways and in-process clients query: one collection, local or behind shard servers.

`CollectionSearcher` answers from a `Collection` that is open here, `engine.service.routing.router.ClusterRouter` from
shard servers. Both give the same answers.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from hashlight.engine.codes import CodeArray, IdArray, check_limit
from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.errors import CollectionNotFoundError, DeadlineExceededError, NotReadyError, VersionGoneError
from hashlight.engine.features import FeatureValues
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.indexes.stopping import Stop, until
from hashlight.engine.places.opening import open_place
from hashlight.engine.query import Query
from hashlight.engine.results import Coverage, RangeResult, RerankResult, Result, SearchResult
from hashlight.engine.storage.shard import Shard
from hashlight.engine.storage.versions import read_current

logger = logging.getLogger(__name__)

_SAMPLED_ROWS = 64

# Values of one attribute that are counted at once: some 100 MB while they are put together.
MAX_VALUES_COUNTED = 1_000_000

# Earlier versions that stay open for those who read page after page.
_VERSIONS_KEPT = 4


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

    @property
    @abstractmethod
    def manifest(self) -> str:
        """Digest of the manifest of that version, which is that of no other, also of a collection built again."""

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
            With `query.k`: re-rank the nearest codes, by fine features or in asymmetric order.
        features : ndarray of float, shape (Q, F) or (Q, B), with `rerank` only
            The queries' fine features, or for the metric "asymmetric" their projections.
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

    def at(self, version: int, sequence: int = 0) -> Searcher:
        """Return a searcher of one version, which may be an earlier one; it stays at that version.

        Parameters
        ----------
        version : int
        sequence : int
            `Coverage.sequence`: with the pending writes that were on top of the version then; with none for 0.

        Raises
        ------
        VersionGoneError
            If that is not served any more.
        """
        if version != self.version or sequence:
            raise version_gone(version, self.version)
        return self

    def pinned(self) -> Searcher:
        """Return a searcher that stays at what is served now, if there is one; otherwise this."""
        return self

    @abstractmethod
    def count(
        self,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> tuple[int, Coverage]:
        """Return the number of items that satisfy `filter`, or of all, in all shards.

        Raises
        ------
        IncompleteError
            If shards are missing.
        """

    @abstractmethod
    def facets(
        self,
        column: str,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        limit: int = 100,
        timeout_s: float | None = None,
    ) -> tuple[pa.Table, Coverage]:
        """Count how often each value of an attribute occurs, as `Collection.facets` does.

        Raises
        ------
        ValueError
            If there is no such attribute, or it has more than a million different values.
        IncompleteError
            If shards are missing.
        """

    @abstractmethod
    def histogram(
        self,
        queries: CodeArray,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        timeout_s: float | None = None,
        allow_partial: bool = False,
    ) -> tuple[NDArray[np.int64], Coverage]:
        """Count how many items lie at each Hamming distance of each query, as `Collection.histogram` does.

        Parameters
        ----------
        queries : ndarray of uint64, shape (Q, W)
        filter, parameters, timeout_s, allow_partial
            As in `search`.

        Returns
        -------
        (ndarray of int64, shape (Q, bits + 1), Coverage)

        Raises
        ------
        IncompleteError
            If shards are missing and `allow_partial` is false.
        """

    @abstractmethod
    def sample(
        self, count: int, *, timeout_s: float | None = None, allow_partial: bool = False
    ) -> tuple[IdArray, CodeArray, Coverage]:
        """Return a random sample of the committed items, as `Collection.sample` does: ids (M,) and codes (M, W).

        Raises
        ------
        IncompleteError
            If shards are missing and `allow_partial` is false.
        """

    @abstractmethod
    def scan(
        self,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        after: int | None = None,
        limit: int,
        timeout_s: float | None = None,
    ) -> tuple[pa.Table, Coverage]:
        """Return stored items that satisfy `filter`, those of the lowest ids, ascending by id.

        Parameters
        ----------
        filter, parameters
            As in `search`.
        after : int, optional
            Only ids above this one.
        limit : int
            How many at most; fewer are all that there are.
        timeout_s : float, optional

        Returns
        -------
        (pyarrow.Table, Coverage)
            Columns as of `get`.

        Raises
        ------
        IncompleteError
            If shards are missing.
        """

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
    def features_of(self, ids: IdArray, *, timeout_s: float | None = None) -> FeatureValues:
        """Return the fine features of some ids, (M, F), in the order requested; errors as in `get`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe the collection in plain types for JSON.

        `bits`, `rows`, `shards`, `version`, `encoder` (fingerprint or None), `attributes` (name -> type), `features`
        (whether there are any for re-ranking).
        """

    def stats(self) -> dict[str, Any]:
        """Return statistics of a router over shard servers; nothing if there is none."""
        return {}

    @abstractmethod
    def reachable(self) -> Coverage:
        """Return which shards can be asked, as far as is known without asking; takes microseconds.

        Raises
        ------
        NotReadyError
            If none can.
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

    A search that takes longer than `timeout_s` ends within a block of codes; FAISS's indexes cannot be interrupted, and
    raise when they end.
    """

    def __init__(self, collection: Collection | str | Path) -> None:
        self._collection = collection if isinstance(collection, Collection) else Collection.open(collection)
        self._renewing = threading.Lock()
        self._earlier: dict[int, CollectionSearcher] = {}
        self._recall: Callable[[int, int], Collection | None] = lambda version, sequence: None
        self._opening = threading.Lock()

    def __repr__(self) -> str:
        """Name the collection."""
        return f"CollectionSearcher({self._collection!r})"

    @property
    def location(self) -> str:
        """Where the collection is."""
        return self._collection.location

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

    @property
    def manifest(self) -> str:
        """See `Searcher.manifest`."""
        return self._collection.committed.manifest.digest

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
        with until(deadline_s, Stop(), _too_late(timeout_s)):
            found = self._collection.answer(queries, query, rerank=rerank, features=features)
        _check_time(deadline_s, timeout_s)
        return found

    def pinned(self) -> CollectionSearcher:
        """See `Searcher.pinned`."""
        return copy.copy(self)

    def show(self, collection: Collection) -> None:
        """Answer from another open version of the collection from now on; queries in progress finish on theirs."""
        self._collection = collection

    def recall_by(self, recall: Callable[[int, int], Collection | None]) -> None:
        """Have `recall` return what was shown of a version with some pending writes, as long as that can be told."""
        self._recall = recall

    def at(self, version: int, sequence: int = 0) -> CollectionSearcher:
        """See `Searcher.at`; any version that the collection still has can be asked."""
        live = self._collection
        if (version, sequence) == (live.version, live.coverage.sequence):
            return CollectionSearcher(live)
        if sequence:
            if (recalled := self._recall(version, sequence)) is None:
                raise version_gone(version, live.version)
            return CollectionSearcher(recalled)
        if version == live.version:
            return CollectionSearcher(live.committed)
        with self._opening:
            found = self._earlier.pop(version, None)
            if found is None or found._collection.manifest.collection != live.manifest.collection:
                try:
                    earlier = Collection.open(live.location, version=version, index=live.index, reuse=live)
                except CollectionNotFoundError as error:
                    raise version_gone(version, live.version) from error
                found = CollectionSearcher(earlier)
            self._earlier[version] = found  # the last one asked for comes last
            while len(self._earlier) > _VERSIONS_KEPT:
                del self._earlier[next(iter(self._earlier))]
            return found

    def count(
        self,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> tuple[int, Coverage]:
        """See `Searcher.count`."""
        deadline_s, collection = _deadline(timeout_s), self._collection
        found = collection.count(filter, parameters), collection.coverage
        _check_time(deadline_s, timeout_s)
        return found

    def facets(
        self,
        column: str,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        limit: int = 100,
        timeout_s: float | None = None,
    ) -> tuple[pa.Table, Coverage]:
        """See `Searcher.facets`."""
        deadline_s, collection, limit = _deadline(timeout_s), self._collection, as_limit(limit)
        table = check_values(collection.facets(column, filter, parameters, limit=None), column)
        _check_time(deadline_s, timeout_s)
        return table.slice(0, limit), collection.coverage

    def histogram(
        self,
        queries: CodeArray,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        timeout_s: float | None = None,
        allow_partial: bool = False,
    ) -> tuple[NDArray[np.int64], Coverage]:
        """See `Searcher.histogram`."""
        deadline_s, collection = _deadline(timeout_s), self._collection
        with until(deadline_s, Stop(), _too_late(timeout_s)):
            counts_QD = collection.histogram(queries, filter=filter, parameters=parameters)
        return counts_QD, collection.coverage

    def sample(
        self, count: int, *, timeout_s: float | None = None, allow_partial: bool = False
    ) -> tuple[IdArray, CodeArray, Coverage]:
        """See `Searcher.sample`."""
        deadline_s, collection = _deadline(timeout_s), self._collection.committed
        with until(deadline_s, Stop(), _too_late(timeout_s)):
            ids_M = collection.sample(count)
            codes_MW = collection.codes_of(ids_M)
        return ids_M, codes_MW, collection.coverage

    def scan(
        self,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        after: int | None = None,
        limit: int,
        timeout_s: float | None = None,
    ) -> tuple[pa.Table, Coverage]:
        """See `Searcher.scan`."""
        deadline_s, collection = _deadline(timeout_s), self._collection
        table = scan_page(collection, filter, parameters, after=after, limit=as_limit(limit))
        _check_time(deadline_s, timeout_s)
        return table, collection.coverage

    def get(
        self, ids: IdArray | Sequence[int], *, timeout_s: float | None = None, without: Container[str] = ()
    ) -> pa.Table:
        """See `Searcher.get`."""
        return self._collection.get(ids)

    def thumbnail(self, id: int, *, timeout_s: float | None = None) -> bytes | None:
        """See `Searcher.thumbnail`."""
        collection = self._collection
        picture = collection.thumbnails_of(np.array([id], np.int64))[0]
        if picture is None:
            collection.get([id])  # raises if the id does not exist
        return picture

    def features_of(self, ids: IdArray, *, timeout_s: float | None = None) -> FeatureValues:
        """See `Searcher.features_of`."""
        return self._collection.features_of(ids)

    def describe(self) -> dict[str, Any]:
        """See `Searcher.describe`."""
        return describe_collection(self._collection)

    def reachable(self) -> Coverage:
        """See `Searcher.reachable`; the shards are in this process."""
        return self._collection.coverage

    def ready(self) -> Coverage:
        """See `Searcher.ready`; no answer is partial, so every shard must be well."""
        collection = self._collection
        try_search(collection)
        return collection.coverage

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


def scan_page(
    collection: Collection,
    filter: str | None,
    parameters: Mapping[str, ArrayLike] | None,
    *,
    after: int | None,
    limit: int,
) -> pa.Table:
    """Return the first items of a scan; see `Searcher.scan`."""
    reader = collection.scan(None, filter, parameters, batch_rows=limit, after=after)
    with contextlib.closing(reader):
        first = next(iter(reader), None)
    return pa.Table.from_batches([] if first is None else [first], reader.schema)


def as_limit(limit: int) -> int:
    """Return `limit` if it is a whole number of at least 1, or raise TypeError or ValueError."""
    checked = check_limit(limit)
    if checked is None:
        raise TypeError("`limit` must be a whole number, got None")
    return checked


def check_values(table: pa.Table, column: str) -> pa.Table:
    """Return the counted values of an attribute, or raise ValueError if there are too many."""
    if len(table) > MAX_VALUES_COUNTED:
        raise ValueError(
            f"`column` {column} has more than {MAX_VALUES_COUNTED} different values: count one of fewer, or narrow it "
            "down by a filter"
        )
    return table


def version_gone(version: int, served: int) -> VersionGoneError:
    """Return the error of a version that cannot be asked."""
    return VersionGoneError(
        f"version {version} is not served any more, version {served} is: begin again, or leave the version out to go "
        "on in the one that is served"
    )


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
    for shard in collection.shards[:]:
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
        raise DeadlineExceededError(_too_late(timeout_s))


def _too_late(timeout_s: float | None) -> str:
    seconds = "" if timeout_s is None else f" within {timeout_s:g} s"
    return f"no answer{seconds}: give more time (`timeout_s`), or ask for fewer queries at a time"
