"""The router over shard servers: asks one replica of every group, merges exactly, and meets the caller's deadline."""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from hashlight.engine.codes import CodeArray, IdArray, check_codes, num_words
from hashlight.engine.collection.rerank import (
    ASYMMETRIC,
    Rerank,
    check_query_features,
    find_pools,
    join_reranked,
    pool_query,
    rerank_ids,
)
from hashlight.engine.collection.rows import merge_counts
from hashlight.engine.errors import (
    DeadlineExceededError,
    HashlightError,
    IdNotFoundError,
    IncompleteError,
    NoShardError,
    NotReadyError,
    OverloadedError,
)
from hashlight.engine.features import FeatureValues
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.ids import spread_ids
from hashlight.engine.query import Query
from hashlight.engine.results import Coverage, RerankResult, Result, merge
from hashlight.engine.service.asking.searcher import Searcher, as_limit, check_values
from hashlight.engine.service.protocol.cluster_map import ClusterMap
from hashlight.engine.service.protocol.security import Security
from hashlight.engine.service.protocol.wire import (
    MAX_ROWS_ASKED,
    Kind,
    Request,
    VersionNotServedError,
    as_values,
    decode_codes,
    decode_count,
    decode_features,
    decode_histogram,
    decode_result,
    decode_table,
)
from hashlight.engine.service.routing.fan_out import FanOut, Part
from hashlight.engine.service.routing.hedging import Delays, HedgeBudget
from hashlight.engine.service.routing.replica import END_S, PING_S, Replica
from hashlight.engine.service.telemetry.requests import context
from hashlight.engine.tracing import span

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0
REFRESH_S = 0.5  # between reads of the directory
_FIRST_PAUSE_S = 0.1  # the same, twice as long each time, until every group has had a server
CONNECT_S = 10.0
READY_S = 10.0
_PROMPT_S = 1.0  # for a test search, if any group answers by then
_FOR_RERANKING = 0.3  # share of the time, for a search that re-ranks
_KEPT_S = 2.0  # keep a replica of an older map for queries that started with it

Directory = Callable[[], ClusterMap]
Observer = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True, slots=True)
class _View:
    """A map and its replicas. A query keeps the view it started with, so no answer mixes versions."""

    map: ClusterMap
    replicas: tuple[tuple[Replica, ...], ...]

    @property
    def groups(self) -> dict[str, tuple[Replica, ...]]:
        """The replicas of each group, by the identity of its shards."""
        return {group.identity: replicas for group, replicas in zip(self.map.groups, self.replicas, strict=True)}

    def without(self, shards: Container[str]) -> _View:
        """Leave out the groups that have any of the named shards."""
        kept = [
            (group, replicas)
            for group, replicas in zip(self.map.groups, self.replicas, strict=True)
            if not any(shard in shards for shard in group.shards)
        ]
        # All of them, if the groups are others than when the shards failed.
        if len(kept) in (0, len(self.replicas)):
            return self
        groups, replicas = zip(*kept, strict=True)
        return _View(dataclasses.replace(self.map, groups=groups), replicas)


class ClusterRouter(Searcher):
    """Answers queries over shard servers. Thread-safe.

    Parameters
    ----------
    directory : callable or ClusterMap
        Returns the current map; it is called again and again, and at once when a server is lost.
    security : Security, optional
        As the servers'.
    timeout_s : float
        Default for callers that give none.
    refresh_s : float, optional
        Between calls of `directory`, if not half a second.
    connect_s : float
        How long to wait for the servers of a new map; later ones are used as soon as they connect.
    patient : bool
        Begin without servers: whatever is asked raises `NotReadyError` until the directory, which is read in the
        background at once and again and again, names some.
    observe : callable, optional
        Called with the name of a stage ("fan_out", "shard", "merge") and its seconds.
    age_s : callable, optional
        Returns how many seconds old is what `directory` returns, if that may go on with what it has known.

    Raises
    ------
    NoShardError
        If no server can be reached, unless `patient`.
    """

    def __init__(
        self,
        directory: Directory | ClusterMap,
        *,
        security: Security | None = None,
        timeout_s: float = TIMEOUT_S,
        refresh_s: float | None = None,
        connect_s: float = CONNECT_S,
        patient: bool = False,
        observe: Observer | None = None,
        age_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.budget = HedgeBudget()
        self._directory = directory if callable(directory) else lambda: directory
        self._security = security or Security()
        self._timeout_s = timeout_s
        self._refresh_s = refresh_s
        self._connect_s = connect_s
        self._observe = observe or (lambda stage, seconds: None)
        self._age_s = age_s
        self._delays = Delays()
        self._retries = self._queries = 0
        self._breakers_opened = 0  # of replicas that are gone
        self._read_s = time.monotonic()  # when the directory was last read
        self._replicas: dict[str, Replica] = {}
        self._retired: list[tuple[float, Replica]] = []
        self._ending: list[tuple[float, Replica]] = []  # closed, but their threads may not have ended
        self._renewing = threading.Lock()
        self._changed = threading.Condition()
        self._stale = threading.Event()
        self._looks_begun = self._looks_ended = 0
        self._asks_in_vain = False
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []
        self._opened: _View | None = None  # None until there are servers
        if patient:
            self._stale.set()
        else:
            self._open_first()
        self._threads = [
            threading.Thread(target=work, name=f"hashlight-router-{work.__name__}", daemon=True)
            for work in (self._keep_watch, self._keep_renewing)
        ]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        """Show the collection and its servers."""
        if self._opened is None:
            return "ClusterRouter(no shard servers yet)"
        return f"ClusterRouter(version {self.version}, {len(self._view.replicas)} groups, {self.stats()['replicas']})"

    @property
    def bits(self) -> int:
        """True number of bits in a code."""
        return int(self._view.map.about["bits"])

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the encoder that made the codes, if known."""
        fingerprint: str | None = self._view.map.about["encoder"]
        return fingerprint

    @property
    def version(self) -> int:
        """Version of the collection being served."""
        return self._view.map.version

    @property
    def manifest(self) -> str:
        """See `Searcher.manifest`."""
        return self._view.map.manifest

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
        """See `Searcher.answer`."""
        deadline_s = self._deadline(timeout_s)
        self._check_queries(queries)
        query = query.checked(bits=self.bits, rows=self._view.map.coverage.codes)
        check_query_features(features, rerank, num_queries=len(queries), k=query.k, bits=self.bits)
        if rerank is None or features is None:
            return self._found(None, queries, query, deadline_s, allow_partial=allow_partial)
        while True:
            view = self._view
            try:
                return self._reranked(view, queries, query, rerank, features, deadline_s, allow_partial=allow_partial)
            except VersionNotServedError:
                continue  # from the beginning, on the version that has replaced it

    def count(
        self,
        filter: str | None = None,
        parameters: Mapping[str, ArrayLike] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> tuple[int, Coverage]:
        """See `Searcher.count`."""
        request = Request.of_items(Kind.COUNT, filter, Parameters.of(parameters))
        bodies, coverage = self._of_all(request, timeout_s)
        return sum(map(decode_count, bodies)), coverage

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
        limit = as_limit(limit)
        request = Request.of_items(Kind.FACETS, filter, Parameters.of(parameters), column=column)
        bodies, coverage = self._of_all(request, timeout_s)
        whole = merge_counts([decode_table(body) for body in bodies], limit=None)
        return check_values(whole, column).slice(0, limit), coverage

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
        self._check_queries(queries)
        request = Request.of_items(Kind.HISTOGRAM, filter, Parameters.of(parameters), codes_QW=queries)
        bodies, coverage = self._of_all(request, timeout_s, allow_partial=allow_partial)
        counts_QD = np.zeros((len(queries), self.bits + 1), np.int64)
        for body in bodies:
            counts_QD += decode_histogram(body)
        return counts_QD, coverage

    def sample(
        self, count: int, *, timeout_s: float | None = None, allow_partial: bool = False
    ) -> tuple[IdArray, CodeArray, Coverage]:
        """See `Searcher.sample`."""
        request = Request.of_items(Kind.SAMPLE, None, None, limit=as_limit(count))
        bodies, coverage = self._of_all(request, timeout_s, allow_partial=allow_partial)
        found = [decode_codes(body) for body in bodies]
        ids_M = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in found)])
        codes_MW = np.concatenate([np.empty((0, num_words(self.bits)), np.uint64), *(codes for _, codes in found)])
        lowest = np.argsort(spread_ids(ids_M))[:count]
        return ids_M[lowest], codes_MW[lowest], coverage

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
        limit = as_limit(limit)
        request = Request.of_items(Kind.SCAN, filter, Parameters.of(parameters), limit=limit, after=after)
        bodies, coverage = self._of_all(request, timeout_s)
        table = pa.concat_tables([decode_table(body) for body in bodies])
        first = np.argsort(table["id"].to_numpy(), kind="stable")[:limit]
        return table.take(pa.array(first)), coverage

    def _of_all(
        self, request: Request, timeout_s: float | None, *, allow_partial: bool = False
    ) -> tuple[list[memoryview], Coverage]:
        """Return what every group answers; IncompleteError and others as in `_coverage` if one does not."""
        asked, parts = self._ask(request, self._deadline(timeout_s))
        coverage = _coverage(asked.map, parts, allow_partial=allow_partial)
        return [part.answer.body for part in parts if part.answer is not None], coverage

    def get(
        self, ids: IdArray | Sequence[int], *, timeout_s: float | None = None, without: Container[str] = ()
    ) -> pa.Table:
        """See `Searcher.get`."""
        return self._table(Kind.GET, np.asarray(ids, np.int64).reshape(-1), timeout_s, without)

    def thumbnail(self, id: int, *, timeout_s: float | None = None) -> bytes | None:
        """See `Searcher.thumbnail`."""
        table = self._table(Kind.THUMBNAILS, np.array([id], np.int64), timeout_s, ())
        picture: bytes | None = table["thumbnail"][0].as_py()
        return picture

    def features_of(self, ids: IdArray, *, timeout_s: float | None = None) -> FeatureValues:
        """See `Searcher.features_of`."""
        return self._features(None, ids, self._deadline(timeout_s), ())

    def describe(self) -> dict[str, Any]:
        """See `Searcher.describe`."""
        return dict(self._view.map.about)

    def reachable(self) -> Coverage:
        """See `Searcher.reachable`: a group can be asked if the connection to one of its servers is alive."""
        view = self._view
        there = [any(one.connected and not one.silent for one in replicas) for replicas in view.replicas]
        if all(there):
            return view.map.coverage
        reasons = ["; ".join(one.reason for one in replicas) or "no server has it" for replicas in view.replicas]
        coverage = _covered(view.map, reasons, there)
        if not any(there):
            raise NotReadyError(f"none of {coverage.shards} shards can be asked: no shard server is connected")
        return coverage

    def ready(self) -> Coverage:
        """See `Searcher.ready`; a group that is too busy counts as answering.

        Groups that take long are waited for only while no other has answered.
        """
        request = Request(Kind.READY, 0, 0, 0.0, np.zeros((0, 1), np.uint64))
        for within_s in (_PROMPT_S, READY_S):
            view, parts = self._ask(request, time.monotonic() + within_s)
            if any(part.answer is not None for part in parts):
                break
        there = [_is_there(part) for part in parts]
        coverage = _covered(view.map, _errors(parts), there)
        if not any(there):
            raise NotReadyError(f"none of {coverage.shards} shards can be searched: {_list(coverage.degraded)}")
        return coverage

    def stats(self) -> dict[str, Any]:
        """Return statistics for operators: queries, calls, hedges, retries, and the state of every replica."""
        view = self._opened
        groups = () if view is None else view.replicas
        opened = sum(replica.breakers_opened for replica in self._all_replicas())
        return {
            "version": None if view is None else view.map.version,
            "queries": self._queries,
            "calls": self.budget.calls,
            "hedges": self.budget.hedges,
            "retries": self._retries,
            "breakers_opened": self._breakers_opened + opened,
            "groups": len(groups),
            "map_age_s": max(time.monotonic() - self._read_s, self._age_s()),
            "replicas": [
                {"group": number, **replica.stats()} for number, replicas in enumerate(groups) for replica in replicas
            ],
        }

    def renew(self) -> bool:
        """Read the directory now; return whether another version is served now.

        Queries in progress finish on the version they started with.
        """
        with self._renewing:
            before = None if self._opened is None else self._opened.map
            with self._changed:
                self._looks_begun += 1
            try:
                fresh = self._directory()
                self._read_s = time.monotonic()
                if fresh != before:
                    self._opened = self._open_view(fresh)
                    self._retire()
            finally:
                with self._changed:
                    self._looks_ended += 1
                    self._changed.notify_all()
            return before is None or fresh.manifest != before.manifest

    def hurry(self) -> None:
        """Have the directory read at once."""
        self._stale.set()

    def close(self) -> None:
        """See `Searcher.close`; queries in progress fail."""
        self._closed.set()
        self._on_change()
        for replica in self._all_replicas():
            replica.close()
        for thread in self._threads:
            thread.join(END_S)
        until_s = time.monotonic() + END_S
        for replica in self._all_replicas():
            replica.close()  # also those of a map that came meanwhile
        for replica in [*self._all_replicas(), *(replica for _, replica in self._ending)]:
            replica.join(until_s)

    @property
    def _view(self) -> _View:
        """What is served; NotReadyError, which does not give addresses away, before there are servers."""
        if self._opened is None:
            raise NotReadyError("no shard server has been found yet: this server goes on looking, its log has more")
        return self._opened

    def _all_replicas(self) -> list[Replica]:
        return [*self._replicas.values(), *(replica for _, replica in self._retired)]

    def _found(
        self, view: _View | None, queries: CodeArray, query: Query, deadline_s: float, *, allow_partial: bool
    ) -> Result:
        """Return the merged answers of the groups of a view; None and errors as in `_ask`."""
        asked, parts = self._ask(Request.of_query(query, queries), deadline_s, view=view)
        coverage = _coverage(asked.map, parts, allow_partial=allow_partial)
        started_s = time.perf_counter()
        answers = [decode_result(query, part.answer.body) for part in parts if part.answer is not None]
        result = merge(answers, query)._replace(coverage=coverage)
        self._observe("merge", time.perf_counter() - started_s)
        return result

    def _reranked(
        self,
        view: _View,
        queries: CodeArray,
        query: Query,
        rerank: Rerank,
        features: NDArray[np.floating[Any]],
        deadline_s: float,
        *,
        allow_partial: bool,
    ) -> RerankResult:
        """Re-rank the pools of all queries, every one and what it is ordered by from one view; errors as in `_ask`."""
        pool = pool_query(query, rerank, rows=view.map.coverage.codes).checked(bits=int(view.map.about["bits"]))
        # A partial answer comes only when the search's time is up, and the features or codes still have to be read.
        search_until_s = deadline_s - _FOR_RERANKING * (deadline_s - time.monotonic())
        stored_of = self._codes if rerank.metric == ASYMMETRIC else self._features
        assert query.k is not None, "re-ranking was refused without"

        def search(queries: CodeArray, pool: Query) -> Result:
            return self._found(view, queries, pool, search_until_s, allow_partial=allow_partial)

        ordered, covered = [], []
        for run, found in find_pools(search, queries, pool):
            coverage = found.coverage
            assert coverage is not None, "a router's answers carry coverage"
            read = functools.partial(stored_of, view, deadline_s=deadline_s, without=coverage.degraded)
            part = rerank_ids(features[run], found, read, query.k, metric=rerank.metric, max_items=MAX_ROWS_ASKED)
            ordered.append(part._replace(explain=found.explain))
            covered.append(coverage)
        return join_reranked(ordered)._replace(coverage=min(covered, key=lambda coverage: coverage.searched))

    def _features(self, view: _View | None, ids: IdArray, deadline_s: float, without: Container[str]) -> FeatureValues:
        if not (view or self._view).map.about["features"]:
            raise ValueError("the collection has no fine features: encode with `--features`")
        asked, parts = self._ask_for_ids(view, Kind.FEATURES, ids, deadline_s, without)
        found = [decode_features(part.answer.body) for part in parts if part.answer is not None]
        place_M = _places_in(asked, parts, ids, [part_ids for part_ids, _ in found])
        return np.concatenate([values for _, values in found])[place_M]

    def _codes(self, view: _View, ids: IdArray, deadline_s: float, without: Container[str]) -> CodeArray:
        asked, parts = self._ask_for_ids(view, Kind.CODES, ids, deadline_s, without)
        found = [decode_codes(part.answer.body) for part in parts if part.answer is not None]
        place_M = _places_in(asked, parts, ids, [part_ids for part_ids, _ in found])
        return np.concatenate([values for _, values in found])[place_M]

    def _table(self, kind: Kind, ids: IdArray, timeout_s: float | None, without: Container[str]) -> pa.Table:
        """Return the stored data of some ids, in the order requested."""
        asked, parts = self._ask_for_ids(None, kind, ids, self._deadline(timeout_s), without)
        tables = [decode_table(part.answer.body) for part in parts if part.answer is not None]
        place_M = _places_in(asked, parts, ids, [table["id"].to_numpy() for table in tables])
        return pa.concat_tables(tables).take(place_M)

    def _ask_for_ids(
        self, view: _View | None, kind: Kind, ids: IdArray, deadline_s: float, without: Container[str]
    ) -> tuple[_View, list[Part]]:
        """Ask the groups of one view (None: the live one) for some ids; at least one answers."""
        if len(ids) > MAX_ROWS_ASKED:
            raise ValueError(f"`ids` must be at most {MAX_ROWS_ASKED} at once, got {len(ids)}")
        asked, parts = self._ask(Request(kind, 0, 0, 0.0, as_values(ids)), deadline_s, without, view=view)
        _coverage(asked.map, parts, allow_partial=True)
        return asked, parts

    def _ask(
        self, request: Request, deadline_s: float, without: Container[str] = (), *, view: _View | None = None
    ) -> tuple[_View, list[Part]]:
        """Ask the groups of a view, or of the live one, whichever that is then.

        Raises
        ------
        VersionNotServedError
            If servers have dropped the version of `view`, and another has replaced it: all that is asked of one version
            is to be asked again.
        """
        while True:
            current = view or self._view
            asked = current.without(without)
            parts = self._fan_out(asked, request, deadline_s)
            errors = [part.error for part in parts if part.answer is None]
            outdated = [error for error in errors if isinstance(error, VersionNotServedError)]
            if not outdated or not self._is_replaced(current, deadline_s):
                return asked, parts
            if view is not None:
                raise outdated[0]

    def _is_replaced(self, view: _View, deadline_s: float) -> bool:
        """Have the directory read, and wait for it at most until a deadline; return whether the view has changed."""
        with self._changed:
            look = self._looks_begun + 1  # a read in progress may have missed the change
            self._stale.set()
            self._changed.wait_for(
                lambda: self._view is not view or self._looks_ended >= look or self._closed.is_set(),
                max(0.0, deadline_s - time.monotonic()),
            )
        return self._view is not view

    def _fan_out(self, view: _View, request: Request, deadline_s: float) -> list[Part]:
        if self._closed.is_set():
            raise NotReadyError("this router is closed")
        self._queries += 1
        with span("fan_out", {"hashlight.groups": len(view.replicas)}, kind="CLIENT") as recorded:
            parts, retries = self._ask_all(view, request._replace(version=view.map.version), deadline_s)
            self._retries += retries
            if recorded is not None:
                recorded.set_attribute("hashlight.retries", retries)
                recorded.set_attribute("hashlight.answered", sum(part.answer is not None for part in parts))
        return parts

    def _ask_all(self, view: _View, request: Request, deadline_s: float) -> tuple[list[Part], int]:
        """Ask every group; return what each says, and how often another replica was asked after a failure."""
        started_s = time.perf_counter()
        request = request._replace(context=context())
        alike = (request.kind, len(request.values).bit_length(), request.number)
        fan_out = FanOut(
            view.groups,
            request,
            deadline_s=deadline_s,
            late_s=self._delays.late_s(alike),
            budget=self.budget,
        )
        parts = fan_out.run()
        answered = [part for part in parts if part.answer is not None]
        self._delays.add(alike, [part.answered_s for part in answered])
        self._observe("fan_out", time.perf_counter() - started_s)
        for part in answered:
            assert part.answer is not None
            self._observe("shard", part.answer.seconds)
        return parts, fan_out.retries

    def _check_queries(self, queries: CodeArray) -> None:
        check_codes(queries, bits=self.bits, name="queries")
        if len(queries) > MAX_ROWS_ASKED:
            raise ValueError(f"`queries` must be at most {MAX_ROWS_ASKED} at once, got {len(queries)}")

    def _deadline(self, timeout_s: float | None) -> float:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        if timeout_s <= 0:
            raise DeadlineExceededError(f"no time is left: `timeout_s` is {timeout_s:g}")
        return time.monotonic() + timeout_s

    def _open_first(self) -> None:
        """Connect to the servers that there are; NoShardError if none can be reached."""
        self._opened = self._open_view(self._directory())
        if not any(replica.connected for replica in self._replicas.values()):
            reasons = {replica.address: replica.reason for replica in self._replicas.values()}
            self.close()
            raise NoShardError(f"no shard server can be reached: {'; '.join(reasons.values())}", missing=reasons)

    def _open_view(self, fresh: ClusterMap) -> _View:
        """Connect to the new servers of a map, and wait a limited time for one of each group.

        Does not wait for a group whose servers are all known and lost.
        """
        unknown = {address for group in fresh.groups for address in group.replicas} - set(self._replicas)
        for address in unknown:
            self._replicas[address] = Replica(address, self._security, self._on_change)
        replicas = tuple(tuple(self._replicas[address] for address in group.replicas) for group in fresh.groups)

        def reachable() -> bool:
            return self._closed.is_set() or all(
                any(one.connected for one in group) or not any(one.address in unknown for one in group)
                for group in replicas
            )

        with self._changed:
            self._changed.wait_for(reachable, self._connect_s)
        return _View(fresh, replicas)

    def _retire(self) -> None:
        """Close replicas that are not in the live view, once they have no requests in progress."""
        live = {replica.address for group in self._view.replicas for replica in group}
        now_s = time.monotonic()
        for address in set(self._replicas) - live:
            self._retired.append((now_s, self._replicas.pop(address)))
        kept = [(since_s, one) for since_s, one in self._retired if one.load or now_s - since_s < _KEPT_S]
        for since_s, replica in self._retired:
            if (since_s, replica) not in kept:
                self._breakers_opened += replica.breakers_opened
                replica.close()
                self._ending.append((now_s, replica))
        self._retired = kept
        self._ending = [(since_s, replica) for since_s, replica in self._ending if not replica.ended]
        for since_s, replica in self._ending:
            if now_s - since_s > END_S:  # its server has not closed its side
                replica.break_off()

    def _on_change(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self._stale.set()

    def _keep_watch(self) -> None:
        while not self._closed.wait(PING_S):
            for replica in list(self._replicas.values()):
                replica.check()

    def _keep_renewing(self) -> None:
        usual_s = self._refresh_s or REFRESH_S
        pause_s = min(_FIRST_PAUSE_S, usual_s)
        while not self._closed.is_set():
            pause_s = usual_s if self._is_whole() else min(2 * pause_s, usual_s)
            self._stale.wait(pause_s)
            self._stale.clear()
            if self._closed.wait(PING_S / 10):
                return
            try:
                self.renew()
                with self._renewing:
                    self._retire()
                self._asks_in_vain = False
            except Exception as error:  # whatever a directory may raise, the known map still works
                if not self._asks_in_vain:
                    self._note_failure(error)
                self._asks_in_vain = True

    def _is_whole(self) -> bool:
        """Whether every group has a server."""
        return self._opened is not None and all(group.replicas for group in self._opened.map.groups)

    def _note_failure(self, error: Exception) -> None:
        if self._opened is not None:
            logger.warning("the directory cannot be read: continuing with the known map", exc_info=True)
        elif isinstance(error, NotReadyError):
            logger.warning("nothing can be answered yet: %s", error)
        else:
            logger.warning("nothing can be answered yet: the directory cannot be read", exc_info=True)


def _coverage(whole: ClusterMap, parts: Sequence[Part], *, allow_partial: bool) -> Coverage:
    """Return the coverage.

    Raises
    ------
    OverloadedError
        If any group was too busy; a partial answer would make the overload worse.
    DeadlineExceededError, NoShardError, IncompleteError
        If no group answered, or one did not and `allow_partial` is false.
    """
    if all(part.answer is not None for part in parts):
        return whole.coverage
    found = _covered(whole, _errors(parts), [part.answer is not None for part in parts])
    if not found.answered or not allow_partial or any(isinstance(part.error, OverloadedError) for part in parts):
        raise _error(found.degraded, parts, total=found.shards)
    return found


def _covered(whole: ClusterMap, reasons: Sequence[str], there: Sequence[bool]) -> Coverage:
    """Return the coverage of an answer from the groups that are there; the others are missing, with their reasons."""
    groups = list(zip(whole.groups, reasons, there, strict=True))
    answered = [group for group, _, is_there in groups if is_there]
    missing = {shard: reason for group, reason, is_there in groups if not is_there for shard in group.shards}
    return dataclasses.replace(
        whole.coverage,
        answered=sum(len(group.shards) for group in answered),
        searched=sum(group.rows for group in answered),
        degraded=missing,
    )


def _errors(parts: Sequence[Part]) -> list[str]:
    return [str(part.error) for part in parts]


def _is_there(part: Part) -> bool:
    """Return whether a group can answer; one that is too busy to make a test search can."""
    return part.answer is not None or isinstance(part.error, OverloadedError)


def _error(missing: Mapping[str, str], parts: Sequence[Part], *, total: int) -> HashlightError:
    """Return the error that is most useful to the caller."""
    failures = [part.error for part in parts if part.answer is None]
    busy = [error.retry_after_s for error in failures if isinstance(error, OverloadedError)]
    message = f"{len(missing)} of {total} shards did not answer: {_list(missing)}"
    if busy:
        return OverloadedError(message, retry_after_s=max(busy))
    if any(isinstance(error, DeadlineExceededError) for error in failures):
        return DeadlineExceededError(message)
    if len(missing) == total:
        return NoShardError(message, missing=missing)
    return IncompleteError(message, missing=missing)


def _list(missing: Mapping[str, str]) -> str:
    """Return the missing shards grouped by reason."""
    by_reason: dict[str, list[str]] = {}
    for shard, reason in missing.items():
        by_reason.setdefault(reason, []).append(shard)
    return "; ".join(f"{', '.join(shards)} ({reason})" for reason, shards in by_reason.items())


def _places_in(view: _View, parts: Sequence[Part], wanted_M: IdArray, held: Sequence[IdArray]) -> NDArray[np.int64]:
    """Return the position of each wanted id in the concatenated ids of the groups.

    Raises
    ------
    IdNotFoundError
        If one is in no group.
    IncompleteError, DeadlineExceededError, OverloadedError
        If one may be in a group that did not answer.
    """
    try:
        return _places(wanted_M, np.concatenate(held))
    except IdNotFoundError:
        _coverage(view.map, parts, allow_partial=False)
        raise


def _places(wanted_M: IdArray, held_N: IdArray) -> NDArray[np.int64]:
    """Return the position of each wanted id among the held ones.

    Raises
    ------
    IdNotFoundError
        If one is missing.
    """
    order_N = np.argsort(held_N, kind="stable")
    sorted_N = held_N[order_N]
    place_M = np.searchsorted(sorted_N, wanted_M)
    there_M = place_M < len(sorted_N)
    there_M[there_M] = sorted_N[place_M[there_M]] == wanted_M[there_M]
    if not there_M.all():
        raise IdNotFoundError.of(wanted_M[~there_M].tolist(), wanted=len(wanted_M))
    found_M: NDArray[np.int64] = order_N[place_M]
    return found_M
