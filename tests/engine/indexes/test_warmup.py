"""After the warm-up no kernel needs compiling."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np
from hashlight.engine.indexes.histogram import LabelSets, distance_histogram, graded_histogram
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes import warmup
from hashlight.engine.indexes.scan import ScanIndex
from hashlight.engine.kernels.components import find_roots, join_edges
import hashlight.engine.kernels, importlib, pkgutil

warmup.warm(costs=False)
names = [found.name for found in pkgutil.iter_modules(hashlight.engine.kernels.__path__)]
modules = [importlib.import_module(f"hashlight.engine.kernels.{name}") for name in names]
kernels = [(m.__name__, n, k) for m in modules for n, k in vars(m).items() if hasattr(k, "signatures")]
before = [len(kernel.signatures) for _, _, kernel in kernels]
rng = np.random.default_rng(0)
for words in (1, 2, 3):
    codes = rng.integers(2**8, size=(3000, words), dtype=np.uint64)
    codes[:1500] = codes[0]
    bits, ids, queries = 64 * words, np.arange(3000), rng.integers(2**8, size=(9, words), dtype=np.uint64)
    mask = rng.random(3000) < 0.5
    for index in (ScanIndex.build(codes, ids, bits=bits), MultiIndex.build(codes, ids, bits=bits)):
        for some in (queries, queries[:1]):
            for given in ({}, {"mask": mask}, {"explain": True}, {"threads": 1}):
                index.search(some, 3, **given)
                index.search(some, 900, **given)
                index.range_search(some, 2, **given)
                index.range_search(some, 30, **given)
                index.range_search(some, 30, 7, **given)
labels = np.zeros(9, np.int64)
distance_histogram(queries, queries, query_labels=labels, code_labels=labels, bits=bits)
several = LabelSets(np.arange(10), rng.integers(70, size=9))
graded_histogram(queries, queries, query_labels=several, code_labels=several, bits=bits)
parent = np.arange(9)
join_edges(parent, np.zeros(9, np.int64), rng.integers(9, size=5), rng.integers(9, size=5))
find_roots(parent)
after = [len(kernel.signatures) for _, _, kernel in kernels]
assert len(kernels) > 20
print([name[:2] for name, old, new in zip(kernels, before, after) if new != old])
"""


def test_no_kernel_is_compiled_after_the_warm_up():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_compiling_is_announced_where_nothing_is_compiled(tmp_path):
    script = """
import logging
from hashlight.engine.indexes import warmup

logging.basicConfig(level=logging.INFO)
warmup.warm(costs=False)
"""
    told = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                              env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)})  # fmt: skip
        told.append("compiling the search kernels" in done.stderr)
    assert told == [True, False]
