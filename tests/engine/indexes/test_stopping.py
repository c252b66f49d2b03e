"""A search that is stopped ends within a block, and what it had found by then is never an answer."""

import threading
import time

import numpy as np
import pytest

from hashlight.engine.errors import DeadlineExceededError
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.scan import ScanIndex
from hashlight.engine.indexes.stopping import NEVER, Stop, StoppedError, current, stoppable, until
from hashlight.engine.indexes.threads import run_parts
from hashlight.engine.query import Query
from tests.oracles import clustered_codes, knn

BITS, ROWS = 64, 6000
QUERIES = {"nearest": Query(k=5), "within": Query(radius=6), "limited": Query(radius=6, limit=3)}


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(3)
    codes = clustered_codes(rng, ROWS, BITS)
    return codes, np.arange(ROWS), codes[:40] ^ np.uint64(5)


@pytest.fixture(scope="module", params=["scan", "tables"])
def index(request, arrays):
    codes, ids, _ = arrays
    if request.param == "scan":
        return ScanIndex.build(codes, ids, bits=BITS)
    built = MultiIndex.build(codes, ids, bits=BITS)
    built.plan = "tables"
    return built


class Flagged(Stop):
    """Set, but only kernels see it: what comes of a search that is stopped in the middle can be looked at."""

    def __init__(self):
        super().__init__()
        self.flag_1[0] = 1


@pytest.mark.parametrize("kind", QUERIES)
@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_look_at_the_flag(index, arrays, kind, threads):
    queries, query = arrays[2], QUERIES[kind]._replace(threads=threads)
    whole = index.answer(queries, query)
    assert (whole.ids >= 0).sum() > 40
    with stoppable(Flagged()):
        stopped = index.answer(queries, query)
    assert (stopped.ids >= 0).sum() == 0
    assert np.array_equal(index.answer(queries, query).ids, whole.ids)


@pytest.mark.parametrize("kind", QUERIES)
@pytest.mark.parametrize("threads", [1, 2])
def test_what_was_stopped_is_an_error(index, arrays, kind, threads):
    codes, ids, queries = arrays
    stop = Stop()
    stop.set(StoppedError("nobody waits"))
    with pytest.raises(StoppedError, match="nobody waits"), stoppable(stop):
        pytest.fail("it began")
    late = Stop()

    def ask():
        with stoppable(late):
            late.set(StoppedError("too late"))
            index.answer(queries, QUERIES[kind]._replace(threads=threads))

    with pytest.raises(StoppedError, match="too late"):
        ask()
    assert current() is NEVER
    assert (index.answer(queries, Query(k=5)).ids == knn(queries, codes, ids, 5)[1]).all()


def test_threads_that_help_are_stopped_too():
    begun, seen = threading.Barrier(2, timeout=60), []
    stop = Stop()

    def work(part):
        seen.append(current())
        if part.start < 2:
            begun.wait()
        if part.start == 0:
            stop.set(StoppedError("enough"))
        return part.start

    with pytest.raises(StoppedError, match="enough"), stoppable(stop):
        run_parts(work, [slice(one, one + 1) for one in range(2)])
    assert seen == [stop, stop]
    assert run_parts(lambda part: current(), [slice(0, 1), slice(1, 2)]) == [NEVER, NEVER]


def test_a_deadline_ends_what_runs_and_nothing_else():
    stop, other = Stop(), Stop()

    def wait():
        with until(time.monotonic() + 0.05, stop, "time is up"):
            while not stop.flag_1[0]:
                time.sleep(0.005)

    with pytest.raises(DeadlineExceededError, match="time is up"):
        wait()
    with until(time.monotonic() + 3600, other, "never"):
        pass
    with until(float("inf"), other, "never"):
        pass
    assert other.flag_1[0] == 0


def test_the_first_reason_counts():
    stop = Stop()
    stop.set(StoppedError("first"))
    stop.set(StoppedError("second"))
    with pytest.raises(StoppedError, match="first"):
        stop.check()
