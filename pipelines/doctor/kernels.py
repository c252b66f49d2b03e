"""A test of the kernels on this machine: whether they answer right, and as fast as they did when it was measured.

What is expected are the costs that the planner measured on this machine (`engine.indexes.multi_index.planner`), in time
of the processor. What is measured is the same, so that other programs do not matter, and the time that has passed, so
that they are noticed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.multi_index.planner import Costs, Span, current_costs, has_stored_costs, machine_file
from hashlight.engine.indexes.threads import usable_cores
from hashlight.engine.indexes.warmup import warm
from hashlight.engine.kernels.compiling import cache_folder
from hashlight.pipelines.doctor.findings import Asked, Finding

ROWS = 2**20
BITS = 64
RADIUS, K = 8, 10
_BATCH = 32
_CHECKED = 8
# Less than this share of what was measured before is told, and so is a core that this process had less of the time.
_SLOW = 0.5
_SHARED = 0.5


class Rate(NamedTuple):
    """How fast a kernel is.

    Attributes
    ----------
    name : str
    unit : str
        Of the rates, after "million".
    measured : float
        In time of the processor, at best.
    passed : float
        In time that has passed, in the middle.
    expected : float
        In time of the processor; 0 if nothing was measured before.
    """

    name: str
    unit: str
    measured: float
    passed: float
    expected: float


def kernels(asked: Asked) -> Iterator[Finding]:
    """Compile the kernels if need be, compare their answers with plain numpy's, and time them."""
    start = time.perf_counter()
    known = has_stored_costs()
    warm()
    seconds = time.perf_counter() - start
    yield Finding(
        check="kernels", state="ok", found=f"compiled, in {cache_folder()}", numbers={"seconds": round(seconds, 2)}
    )
    rng = np.random.default_rng(0)
    codes_NW = rng.integers(2**BITS, size=(ROWS, 1), dtype=np.uint64)
    queries_QW = codes_NW[:_BATCH] ^ np.uint64(0b1001)
    index = MultiIndex.build(codes_NW, np.arange(ROWS), bits=BITS)
    yield answers_of(index, codes_NW, queries_QW[:_CHECKED])
    costs = current_costs(ROWS) if known else None
    for rate in rates_of(index, queries_QW, costs, asked.seconds):
        yield speed_of(rate)
    yield cores_of(*gain_of(index, queries_QW, asked.seconds / 5), usable_cores())


def answers_of(index: MultiIndex, codes_NW: CodeArray, queries_QW: CodeArray) -> Finding:
    """Compare the answers of every kernel with those of a plain comparison with every code."""
    for query_W in queries_QW:
        distances_N = np.bitwise_count(codes_NW ^ query_W).sum(axis=1, dtype=np.int32)
        nearest_K = np.lexsort((np.arange(len(distances_N)), distances_N))[:K]
        within = np.flatnonzero(distances_N <= RADIUS)
        within = within[np.argsort(distances_N[within], kind="stable")]
        for plan in ("scan", "tables"):
            found = index.search(query_W[None], K, plan=plan)
            near = index.range_search(query_W[None], RADIUS, plan=plan)
            if not (_same(found.ids[0], nearest_K) and _same(near.ids, within)):
                advice = (
                    f"trust no answer of this machine: remove {cache_folder()} and look again. If it stays, its memory "
                    "or its processor is faulty"
                )
                text = f"the {plan} kernels answer wrong"
                return Finding(check="kernels", state="problem", found=text, advice=advice, numbers={"plan": plan})
    text = f"{len(queries_QW)} queries of {len(codes_NW):,} codes are answered right, by scan and by tables"
    return Finding(check="kernels", state="ok", found=text)


def _same(found: NDArray[np.int64], expected: NDArray[np.int64]) -> bool:
    return np.array_equal(found, expected)


def rates_of(index: MultiIndex, queries_QW: CodeArray, costs: Costs | None, seconds: float) -> Iterator[Rate]:
    """Time single queries and batches on one core, and yield rates with what `costs` lets expect."""
    one_QW, rows = queries_QW[:1], len(index)
    for name, batch_QW in (("single scans", one_QW), ("scans of a batch", queries_QW)):
        passed_s, used_s = _times(partial(index.range_search, batch_QW, RADIUS, plan="scan", threads=1), seconds / 4)
        work = len(batch_QW) * rows / 1e6
        expected = 0.0 if costs is None else 1e3 * rows / costs.scan_ns(Span.of(None, rows), 1, len(batch_QW))
        yield Rate(name, "codes/s", work / used_s, work / passed_s, expected)
    run = partial(index.range_search, queries_QW, RADIUS, plan="tables", threads=1)
    passed_s, used_s = _times(run, seconds / 4)
    explained = run(explain=True).explain
    assert explained is not None
    probes, candidates = float(explained.probes.sum()), float(explained.candidates.sum())
    expected = 0.0
    if costs is not None:
        candidate_ns = costs.candidate_ns + costs.read_ns(rows, 1)
        expected = 1e3 * probes / (probes * costs.lookup_ns(rows) + candidates * candidate_ns)
    yield Rate("lookups in tables", "buckets/s", probes / 1e6 / used_s, probes / 1e6 / passed_s, expected)


def _times(run: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Return the median of the time that a run takes, and the least time of the processor, repeating it for a while."""
    run()
    passed_s: list[float] = []
    used_s: list[float] = []
    until_s = time.perf_counter() + seconds
    while not passed_s or time.perf_counter() < until_s:
        start_s, start_ns = time.perf_counter(), time.thread_time_ns()
        run()
        used_s.append((time.thread_time_ns() - start_ns) / 1e9)
        passed_s.append(time.perf_counter() - start_s)
    return statistics.median(passed_s), max(min(used_s), 1e-9)


def speed_of(rate: Rate) -> Finding:
    """Judge the rate of a kernel by what was measured before, and by the time that has passed."""
    numbers = rate._asdict()
    found = f"{rate.name}: {rate.measured:,.0f} million {rate.unit} on one core"
    if rate.expected:
        found += f", expected {rate.expected:,.0f}"
    if rate.measured < _SLOW * rate.expected:
        advice = (
            "the processor is slower than when it was measured: look at its clock (power saving, heat) and at other "
            f"guests of its host; to measure it again, remove {machine_file('costs')} and run `hashlight warmup`"
        )
        return Finding(check="kernels", state="warning", found=found, advice=advice, numbers=numbers)
    if rate.passed < _SHARED * rate.measured:
        found += f", but {rate.passed:,.0f} in time that has passed"
        advice = "other programs use the cores, or the container's limit stops this one: end them, or raise it"
        return Finding(check="kernels", state="warning", found=found, advice=advice, numbers=numbers)
    return Finding(check="kernels", state="ok", found=found, numbers=numbers)


def gain_of(index: MultiIndex, queries_QW: CodeArray, seconds: float) -> tuple[float, float]:
    """Return the seconds that a batch takes on one core and on all, those that have passed."""
    alone_s, _ = _times(partial(index.range_search, queries_QW, RADIUS, plan="scan", threads=1), seconds / 2)
    together_s, _ = _times(partial(index.range_search, queries_QW, RADIUS, plan="scan"), seconds / 2)
    return alone_s, together_s


def cores_of(alone_s: float, together_s: float, cores: int) -> Finding:
    """Judge how much faster a batch is on all cores than on one."""
    gain = alone_s / together_s
    numbers = {"cores": cores, "gain": round(gain, 2)}
    found = f"{cores} cores scan {gain:.1f} times as fast as one" if cores > 1 else "one core"
    if cores > 1 and gain < _SHARED * cores:
        advice = (
            "other programs use the cores, the container's limit stops them, or they are threads of fewer cores "
            "(`lscpu`): end the programs, raise the limit, or count on less in `hashlight size`"
        )
        return Finding(check="kernels", state="warning", found=found, advice=advice, numbers=numbers)
    return Finding(check="kernels", state="ok", found=found, numbers=numbers)
