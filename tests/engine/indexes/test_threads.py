"""Threads: results in order, and never more running threads than cores."""

import subprocess
import sys
import threading
import time

import pytest

from hashlight.engine.indexes import threads
from hashlight.engine.indexes.threads import cut, run_parts, usable_cores


def test_parts_come_back_in_order():
    parts = cut(100, 7, least=2)
    assert [n for part in run_parts(lambda part: range(part.start, part.stop), parts) for n in part] == list(range(100))


def test_no_more_threads_run_than_there_are_cores():
    at_work, most, lock = 0, 0, threading.Lock()

    def work(part):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.002)
        with lock:
            at_work -= 1

    def call(number):
        for _ in range(5):
            run_parts(work, [slice(0, 1)] if number % 2 else [slice(0, 1), slice(1, 2), slice(2, 3)])

    callers = [threading.Thread(target=call, args=(number,)) for number in range(12)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert 1 <= most <= usable_cores()
    assert threads._free_slots().qsize() == usable_cores()


def test_a_part_may_run_a_single_part_itself():
    inner = run_parts(lambda _: run_parts(lambda part: part.start, [slice(3, 4)]), cut(40, None, least=1))
    assert {start for starts in inner for start in starts} == {3}


def test_a_failing_part_releases_its_slot():
    for _ in range(3 * usable_cores()):
        with pytest.raises(ZeroDivisionError):
            run_parts(lambda part: 1 // part.start, [slice(0, 1)])
    assert threads._free_slots().qsize() == usable_cores()


def test_parts_of_parts_do_not_wait_for_each_other():
    """As many parts as the pool has threads, each of several parts: none may wait for a thread that another holds."""
    child = """
from hashlight.engine.indexes.threads import run_parts, usable_cores
parts = [slice(n, n + 1) for n in range(2 * usable_cores())]
inner = [slice(n, n + 1) for n in range(3)]
deep = lambda part: run_parts(lambda below: (part.start, below.start), inner)
expected = [(n, [[(m, k) for k in range(3)] for m in range(3)]) for n in range(2 * usable_cores())]
print(run_parts(lambda part: (part.start, run_parts(deep, inner)), parts) == expected)
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout == "True\n", done.stderr
