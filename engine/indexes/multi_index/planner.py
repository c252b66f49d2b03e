"""Scan or tables: the cost of each, from constants measured on this machine.

The cost of a scan is proportional to the rows that may be returned; the queries of a batch share the cost of loading
their codes. If they are few, a scan goes from one to the next by their numbers: a gather. The cost of
the tables is that of the buckets looked up and the candidates read. For a radius search the candidates are counted
before any code is read, from the bucket sizes (or a sample of them), because learned codes crowd into few buckets. For
kNN the tables are probed in steps, each priced before it is taken; a query is scanned when its remaining steps would
cost more than a scan.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import platformdirs
from llvmlite.binding import get_host_cpu_features, get_host_cpu_name
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray
from hashlight.engine.indexes.answers import empty_heaps
from hashlight.engine.indexes.masks import LISTED_SHARE, RowMask
from hashlight.engine.indexes.multi_index.probe import TableProbe
from hashlight.engine.indexes.multi_index.tables import Tables
from hashlight.engine.indexes.scan import ScanIndex
from hashlight.engine.kernels.arguments import Budget, Prices, Work
from hashlight.engine.kernels.compiling import kernels_digest
from hashlight.engine.kernels.scan import WORTH_READING
from hashlight.engine.places.files import write_atomically

log = logging.getLogger(__name__)

TRIAL = 0.07  # share of a scan that may be spent on finding out whether the tables are cheaper
RANGE_TRIAL = 0.15  # the same for a radius search, if all candidates were near
NEAR_ROWS = 2**16
FAR_ROWS = 2**22
SCANNED_TOGETHER = 32
PICKED_SHARE = 8
NEAR_RADIUS = 7
REPEATS = 7
TESTED_LOOKUPS = 600.0  # of a query, when the cost of a mask is measured
WORTH_COUNTING_NS = 60_000.0
WORTH_TRYING_NS = 100_000.0  # compared with this, a wasted kernel call costs little
WORTH_MEASURING = 500_000  # rows from which a wrong choice is noticeable
WORTH_ASKING_NS = 50_000.0  # of a scan that takes less, a call of the tables in vain would be a good part
SKIPPED_ROW_NS = 0.01  # passing over 64 rows that may not be returned takes half a nanosecond


class Span(NamedTuple):
    """The rows that a scan goes to.

    Attributes
    ----------
    rows : int
        All.
    allowed : int
        Those that may be returned.
    by : {"row", "mask", "list"}
        How it finds them: without a mask, by passing over it, or from a list.
    """

    rows: int
    allowed: int
    by: Literal["row", "mask", "list"] = "row"

    @classmethod
    def of(cls, mask: RowMask | None, rows: int) -> Self:
        """Return the rows that a mask allows."""
        if mask is None:
            return cls(rows, rows)
        return cls(rows, mask.count, "list" if mask.is_listed else "mask")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Costs:
    """The costs on one machine, in nanoseconds. Compared by identity, so that derived values can be cached cheaply.

    Attributes
    ----------
    word_ns : float
        Comparing one word of one code with one query, in a large batch.
    load_ns : float
        Loading one word of one code, once for the whole batch.
    near_lookup_ns, far_lookup_ns : float
        Looking up one bucket, in tables that fit into the cache and in tables that do not.
    candidate_ns : float
        One entry of a bucket.
    tested_ns : float
        Additional cost of an entry that its sketch did not dismiss, if its row is looked up in a mask.
    near_ns : float
        Additional cost of an entry within the radius: checking whether other tables had it, and writing it as a hit.
    pick_ns : float
        Additional cost of loading a row that a mask allows.
    gather_ns : float
        Loading the first word of a row from a list.
    """

    word_ns: float = 0.1
    load_ns: float = 0.25
    near_lookup_ns: float = 5.0
    far_lookup_ns: float = 16.0
    candidate_ns: float = 0.6
    tested_ns: float = 2.0
    near_ns: float = 25.0
    pick_ns: float = 1.0
    gather_ns: float = 4.0

    def lookup_ns(self, distinct: int) -> float:
        """Return the cost of a lookup in tables over `distinct` codes, interpolated on a log scale."""
        far = (math.log2(max(distinct, 1)) - math.log2(NEAR_ROWS)) / (math.log2(FAR_ROWS) - math.log2(NEAR_ROWS))
        return self.near_lookup_ns + min(max(far, 0.0), 1.0) * (self.far_lookup_ns - self.near_lookup_ns)

    def read_ns(self, distinct: int, words: int) -> float:
        """Return the cost of reading the code of an entry that its sketch did not dismiss."""
        return self.lookup_ns(distinct) * (1 + (words - 1) / 4)

    def scan_ns(self, span: Span, words: int, queries: int) -> float:
        """Return the cost of a scan for each of the `queries` that share it."""
        if queries == 1 and span.by == "mask" and span.allowed * WORTH_READING >= span.rows:
            return span.rows * words * (self.word_ns + self.load_ns)
        return self.compare_ns(span, words) + self.load_all_ns(span, words) / max(queries, 1)

    def compare_ns(self, span: Span, words: int) -> float:
        """Return the cost of comparing the rows of a scan with each of many queries."""
        return span.allowed * words * self.word_ns

    def load_all_ns(self, span: Span, words: int) -> float:
        """Return the cost of loading the rows of a scan, once for all queries."""
        if span.by == "list":
            return span.allowed * (self.gather_ns + (words - 1) * self.load_ns)
        picked = span.rows * SKIPPED_ROW_NS + span.allowed * self.pick_ns if span.by == "mask" else 0.0
        return span.allowed * words * self.load_ns + picked


def split_by_cost(table_ns_Q: NDArray[np.floating[Any]], costs: Costs, span: Span, words: int) -> NDArray[np.bool_]:
    """Return which queries (Q,) the tables should answer, given their costs there.

    The most expensive queries share a scan if that lowers the total: every number of scanned queries is tried, and the
    lowest total wins.
    """
    costliest_Q = np.argsort(-table_ns_Q, kind="stable")
    left = table_ns_Q.sum() - np.concatenate([[0.0], np.cumsum(table_ns_Q[costliest_Q])])
    scanned = np.arange(len(left))
    together = scanned * costs.compare_ns(span, words) + (scanned > 0) * costs.load_all_ns(span, words)
    best = int(np.argmin(left + together))
    by_tables_Q = np.ones(len(table_ns_Q), np.bool_)
    by_tables_Q[costliest_Q[:best]] = False
    return by_tables_Q


def plan_range(
    probe: TableProbe, queries_QW: CodeArray, radius: int, costs: Costs, span: Span
) -> NDArray[np.bool_] | bool:
    """Return which queries (Q,) of a radius search the tables should answer; one bool if it is all or none.

    Candidates are not counted if the lookups alone cost more than a scan, if even the fullest buckets cost less, or if
    all buckets are about equally full. Nor are they if the whole scan is so short that counting, with its own cache
    misses, would take a good part of it: the query is then assumed to lie among the stored codes. Codes of candidates
    are sampled only if the choice depends on how many of them are near.
    """
    num_queries, words = queries_QW.shape
    plan = probe.plan(radius)
    prices = _prices(costs, plan.lookups, probe.tables.distinct, span, words, num_queries)
    if prices.lookups_ns > prices.scan_ns:
        return False
    each_ns = prices.candidate_ns + prices.read_ns + prices.near_ns
    if prices.lookups_ns + plan.max_candidates * each_ns < prices.shared_scan_ns:
        return True
    if probe.even:
        return prices.lookups_ns + plan.mean * prices.candidate_ns < prices.shared_scan_ns
    if num_queries * prices.shared_scan_ns < WORTH_COUNTING_NS:
        return prices.lookups_ns + probe.crowd(radius) * each_ns < prices.shared_scan_ns
    price_Q = probe.price_radius(queries_QW, radius, prices)
    return bool(price_Q[0] < prices.scan_ns) if num_queries == 1 else split_by_cost(price_Q, costs, span, words)


def trial_budget(probe: TableProbe, radius: int, costs: Costs, span: Span, words: int) -> int:
    """Return how many candidates one query may meet in the tables before planning is worthwhile; 0 to plan at once.

    Most queries are answered within this budget, without a plan. If the mean of all queries exceeds it, a trial would
    most often be in vain.
    """
    plan = probe.plan(radius)
    budget = _trial_budget(costs, plan.lookups, probe.tables.distinct, span, words)
    return budget if plan.mean <= budget else 0


@lru_cache(maxsize=1024)
def _trial_budget(costs: Costs, lookups: int, distinct: int, span: Span, words: int) -> int:
    prices = _prices(costs, lookups, distinct, span, words, 1)
    if prices.scan_ns < WORTH_TRYING_NS:
        return 0
    left_ns = RANGE_TRIAL * prices.scan_ns - prices.lookups_ns
    return max(0, int(left_ns / (prices.candidate_ns + prices.read_ns + prices.near_ns)))


# Cached, because for one query among thousands of codes this arithmetic would take longer than the search.
@lru_cache(maxsize=1024)
def _prices(costs: Costs, lookups: int, distinct: int, span: Span, words: int, num_queries: int) -> Prices:
    return Prices(
        lookups_ns=lookups * costs.lookup_ns(distinct),
        candidate_ns=costs.candidate_ns,
        read_ns=costs.read_ns(distinct, words),
        near_ns=costs.near_ns,
        scan_ns=costs.scan_ns(span, words, 1),
        shared_scan_ns=costs.scan_ns(span, words, num_queries),
    )


def plan_nearest(costs: Costs, span: Span, distinct: int, words: int, sharing: int, likely_radius: int) -> Budget:
    """Return the budget of a kNN query in the tables before it joins a scan shared by `sharing` queries."""
    scan_ns = costs.scan_ns(span, words, sharing)
    return Budget(
        mask_ns=costs.lookup_ns(distinct),
        candidate_ns=costs.candidate_ns,
        tested_ns=0.0 if span.by == "row" else costs.tested_ns,
        read_ns=costs.read_ns(distinct, words),
        scan_ns=scan_ns,
        trial_ns=TRIAL * scan_ns,
        likely_radius=likely_radius,
    )


@lru_cache(maxsize=1024)
def likely_radius(bits: int, rows: int, k: int) -> int:
    """Return the expected distance of the k-th of `rows` uniform codes; learned codes are nearer.

    Examples
    --------
    >>> likely_radius(64, 10_000_000, 10)
    14
    """
    return int(np.searchsorted(_share_within(bits), k / max(rows, 1)))


@cache
def _share_within(bits: int) -> NDArray[np.float64]:
    """Return the share of uniform codes within each distance 0..bits."""
    log_choices = [math.lgamma(bits + 1) - math.lgamma(d + 1) - math.lgamma(bits - d + 1) for d in range(bits + 1)]
    return np.cumsum(np.exp(np.array(log_choices) - bits * math.log(2)))


def current_costs(rows: int) -> Costs:
    """Return this machine's costs: the stored ones, new ones if `rows` justify a second of measuring, or defaults."""
    global _costs, _stored_costs_read
    if _costs is not None or (_stored_costs_read and rows < WORTH_MEASURING):
        return _costs or Costs()
    with _lock:
        if not _stored_costs_read:
            _costs, _stored_costs_read = _load(), True
        if _costs is None and rows >= WORTH_MEASURING:
            _costs = _measure_and_store()
        return _costs or Costs()


def has_stored_costs() -> bool:
    """Return whether this machine's costs have been measured."""
    return _load() is not None


def calibrate() -> Costs:
    """Measure the costs on this machine, which takes about a second, and store them in the user's cache folder.

    If the folder cannot be written, the costs apply to this process only.
    """
    global _costs
    with _lock:
        _costs = _measure_and_store()
        return _costs


def _forget_lock() -> None:
    """Make a new lock in a forked child: a thread that does not exist there may have held the old one."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)

_lock = threading.Lock()
_costs: Costs | None = None
_stored_costs_read = False  # whether the cache folder has been read; `_costs` is None if it had no costs


def _measure_and_store() -> Costs:
    costs = _measure()
    path = machine_file("costs")
    try:
        write_machine_file(path, asdict(costs))
    except OSError as error:
        log.warning("the costs of this machine cannot be stored in %s (%s)", path, error)
    return costs


def write_machine_file(path: Path, content: dict[str, Any]) -> None:
    """Replace a file of measurements."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content).encode())


def _load() -> Costs | None:
    try:
        costs = Costs(**json.loads(machine_file("costs").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    sane = all(isinstance(value, float) and 0 < value < 1e6 for value in asdict(costs).values())
    return costs if sane else None


def machine_file(kind: str) -> Path:
    """Return where measurements are stored: a file for each CPU (machines may share a home folder) and kernel hash."""
    parts = get_host_cpu_name(), sorted(get_host_cpu_features().items()), kernels_digest()
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    return Path(platformdirs.user_cache_dir("hashlight")) / f"{kind}-{name}.json"


def _measure() -> Costs:
    """Time scans of one and of many queries, then lookups in small and large tables, sparse and crowded."""
    rng = np.random.default_rng(0)
    codes_NW = np.sort(rng.integers(2**64, size=(FAR_ROWS, 1), dtype=np.uint64), axis=0)
    ids_N = np.arange(FAR_ROWS)
    queries_QW = rng.integers(2**64, size=(SCANNED_TOGETHER, 1), dtype=np.uint64)
    scan = ScanIndex(codes_NW=codes_NW, ids_N=ids_N, bits=64)
    alone_ns = _min_ns(lambda: scan.range_search(queries_QW[:1], 2, threads=1)) / FAR_ROWS
    together_ns = _min_ns(lambda: scan.range_search(queries_QW, 2, threads=1)) / FAR_ROWS
    word_ns = max((together_ns - alone_ns) / (SCANNED_TOGETHER - 1), 1e-3)
    sparse_ns, sparse_entries = _lookup_ns(_probe(codes_NW, [21, 21, 22]), queries_QW, 8)
    crowded = _probe(codes_NW, [16, 16, 16, 16])
    crowded_ns, crowded_entries = _lookup_ns(crowded, queries_QW, 7)
    candidate_ns = float(max((crowded_ns - sparse_ns) / (crowded_entries - sparse_entries), 0.1))
    far_lookup_ns = float(max(sparse_ns - sparse_entries * candidate_ns, 0.5))
    few_NW = np.ascontiguousarray(codes_NW[:: FAR_ROWS // NEAR_ROWS])
    near_ns, near_entries = _lookup_ns(_probe(few_NW, [16, 16, 16, 16]), queries_QW, 11)
    near_lookup_ns = max(near_ns - near_entries * candidate_ns, 0.5)
    return Costs(
        word_ns=float(word_ns),
        load_ns=float(max(alone_ns - word_ns, 1e-3)),
        near_lookup_ns=float(near_lookup_ns),
        far_lookup_ns=far_lookup_ns,
        candidate_ns=candidate_ns,
        tested_ns=_tested_ns(crowded, queries_QW, far_lookup_ns, candidate_ns),
        near_ns=_near_ns(rng, near_lookup_ns, candidate_ns),
        pick_ns=float(max(_allowed_ns(scan, queries_QW, rng, PICKED_SHARE) - alone_ns, 0.1)),
        gather_ns=float(max(_allowed_ns(scan, queries_QW, rng, 2 * LISTED_SHARE) - word_ns, 0.1)),
    )


def _allowed_ns(scan: ScanIndex, queries_QW: CodeArray, rng: np.random.Generator, share: int) -> float:
    """Return the time of a scan for each allowed row, if one in `share` is."""
    mask = RowMask.of(rng.integers(share, size=len(scan)) == 0)
    return _min_ns(lambda: scan.range_search(queries_QW[:1], 2, threads=1, mask=mask)) / mask.count


def _tested_ns(probe: TableProbe, queries_QW: CodeArray, lookup_ns: float, candidate_ns: float) -> float:
    """Return what looking a candidate's row up in a mask costs, from searches that find none of those it allows."""
    mask = RowMask.of(np.arange(FAR_ROWS) == 0)
    budget = Budget(
        mask_ns=1.0,
        candidate_ns=0.0,
        tested_ns=0.0,
        read_ns=0.0,
        scan_ns=0.0,
        trial_ns=TESTED_LOOKUPS,
        likely_radius=64,
    )

    def run() -> Work:
        bound_Q = np.full(len(queries_QW), 64, np.int32)
        return probe.nearest(queries_QW, bound_Q, mask, empty_heaps(len(queries_QW), 2), budget)[1]

    work = run()
    other_ns = float(work.probes_Q.sum()) * lookup_ns + float(work.candidates_Q.sum()) * candidate_ns
    return float(max((_min_ns(run) - other_ns) / float(work.candidates_Q.sum()), 0.1))


def _near_ns(rng: np.random.Generator, lookup_ns: float, candidate_ns: float) -> float:
    """Return what a near candidate costs beyond reading it, from queries within crowds of which half is near.

    Each code occurs one to seven times, as learned codes do: most of the time goes into mispredicted branches.
    """
    centres_QW = rng.integers(2**64, size=(SCANNED_TOGETHER, 1), dtype=np.uint64)
    noise = np.bitwise_and.reduce(rng.integers(2**64, size=(4, NEAR_ROWS, 1), dtype=np.uint64))
    crowded_NW = centres_QW[np.arange(NEAR_ROWS) % SCANNED_TOGETHER] ^ noise
    codes_NW = np.sort(np.repeat(crowded_NW, rng.integers(1, 8, NEAR_ROWS), axis=0)[:NEAR_ROWS], axis=0)
    probe = TableProbe(codes_NW, np.arange(NEAR_ROWS), Tables.build(codes_NW, bits=64, widths=[16, 16, 16, 16]))
    queries_QW = codes_NW[rng.permutation(NEAR_ROWS)[: 8 * SCANNED_TOGETHER]]
    run = partial(probe.within, queries_QW, np.arange(len(queries_QW)), NEAR_RADIUS, None)
    work = run()[1]
    only_near = Prices(
        lookups_ns=0.0, candidate_ns=0.0, read_ns=0.0, near_ns=1.0, scan_ns=math.inf, shared_scan_ns=-1.0
    )
    near = float(probe.price_radius(queries_QW, NEAR_RADIUS, only_near).sum())
    other_ns = float(work.probes_Q.sum()) * lookup_ns + float(work.candidates_Q.sum()) * (candidate_ns + lookup_ns)
    return float(max((_min_ns(run) - other_ns) / near, 1.0))


def _lookup_ns(probe: TableProbe, queries_QW: CodeArray, radius: int) -> tuple[float, float]:
    """Return the time of a lookup, including the work on its entries, and the mean number of entries it meets."""
    run = partial(probe.within, queries_QW, np.arange(len(queries_QW)), radius, None)
    work = run()[1]
    lookups = float(work.probes_Q.sum())
    return _min_ns(run) / lookups, work.candidates_Q.sum() / lookups


def _probe(codes_NW: CodeArray, widths: list[int]) -> TableProbe:
    return TableProbe(codes_NW, np.arange(len(codes_NW)), Tables.build(codes_NW, bits=64, widths=widths))


def _min_ns(run: Callable[[], object]) -> float:
    """Return the minimum time of several runs on this thread, because other programs can only add to it.

    It is the time of the processor: on a busy machine, every run may have to wait for it.
    """
    run()
    times = []
    for _ in range(REPEATS):
        start = time.thread_time_ns()
        run()
        times.append(time.thread_time_ns() - start)
    return float(min(times))
