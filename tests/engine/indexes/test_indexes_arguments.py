"""Invalid arguments of indexes, and their error messages."""

import subprocess
import sys

import numpy as np
import pytest

from hashlight.engine.errors import MissingDependencyError
from hashlight.engine.indexes.base import MAX_ROWS, check_rows
from hashlight.engine.indexes.faiss.flat import FaissFlatIndex
from hashlight.engine.indexes.faiss.multi_hash import FaissMultiHashIndex
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.scan import ScanIndex
from tests.engine.indexes.test_indexes_exact import make_case

KINDS = [ScanIndex, MultiIndex, FaissFlatIndex, FaissMultiHashIndex]


@pytest.fixture(params=KINDS)
def index(request):
    codes, ids, _ = make_case(1, 20, 64)
    return request.param.build(codes, ids, bits=64)


ONE = np.zeros((1, 1), np.uint64)
BAD_SEARCHES = [
    (lambda index: index.search([[1]], 1), TypeError, "uint64 array of shape .N, 1., got list"),
    (lambda index: index.search(ONE.astype(np.int64), 1), TypeError, "dtype uint64, got int64"),
    (lambda index: index.search(ONE[0], 1), ValueError, r"shape \(N, 1\), got \(1,\)"),
    (lambda index: index.search(np.zeros((1, 2), np.uint64), 1), ValueError, "2 words per code .128 bits., 64-bit"),
    (lambda index: index.search(np.zeros((4, 1), np.uint64)[::2], 1), ValueError, "C-contiguous, got strides .16, 8."),
    (lambda index: index.search(ONE, 0), ValueError, "`k` must be at least 1 and at most 2147483647, got 0"),
    (lambda index: index.search(ONE, float("nan")), TypeError, "`k` must be a whole number, got nan"),
    (lambda index: index.search(ONE, True), TypeError, "`k` must be a whole number, got True"),
    (lambda index: index.range_search(ONE, 65), ValueError, "0 to 64 .the codes have 64 bits., got 65"),
    (lambda index: index.range_search(ONE, -1), ValueError, "`radius` must be 0 to 64 .*got -1"),
    (
        lambda index: index.range_search(ONE, 1, 0),
        ValueError,
        "`limit` must be None or at least 1 .*got 0",
    ),
    (lambda index: index.search(ONE, 1, mask=np.ones(19, bool)), ValueError, r"shape \(20,\).*got shape \(19,\)"),
    (lambda index: index.search(ONE, 1, mask=np.ones(20)), TypeError, "`mask` must be a bool array.*got float64"),
    (lambda index: index.range_search(ONE, 1, mask=np.ones(40, bool)[::2]), ValueError, "contiguous.*strides .2,."),
    (lambda index: index.search(ONE, 1, threads=0), ValueError, "`threads` must be at least 1 or None, got 0"),
    (lambda index: index.search(ONE, 1, threads=1.5), TypeError, "`threads` must be a whole number, got 1.5"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD_SEARCHES)
def test_bad_searches_are_refused(index, call, error, words):
    with pytest.raises(error, match=words):
        call(index)


CODES, IDS = np.zeros((3, 1), np.uint64), np.arange(3)
BAD_BUILDS = [
    ({"bits": 0}, ValueError, "`bits` must be 1 to 1024, got 0"),
    ({"bits": 1025}, ValueError, "`bits` must be 1 to 1024, got 1025"),
    ({"bits": 65}, ValueError, "1 word per code .64 bits., 65-bit codes have 2 words"),
    ({"codes_NW": CODES.astype(np.float64)}, TypeError, "dtype uint64, got float64"),
    ({"codes_NW": CODES + np.uint64(2**60), "bits": 60}, ValueError, "bits set past bit 59 in 3 of 3 rows"),
    ({"ids_N": np.array([0, 1, -2])}, ValueError, "0 or more .*got -2 in row 2"),
    ({"ids_N": np.array([4, 1, 4])}, ValueError, "distinct, got 4 more than once"),
    ({"ids_N": np.arange(4)}, ValueError, r"`ids` must have shape \(3,\)"),
    ({"ids_N": np.arange(3.0)}, TypeError, "int64"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("changes", "error", "words"), BAD_BUILDS)
def test_bad_builds_are_refused(kind, changes, error, words):
    arguments = {"codes_NW": CODES, "ids_N": IDS, "bits": 64} | changes
    with pytest.raises(error, match=words):
        kind.build(arguments["codes_NW"], arguments["ids_N"], bits=arguments["bits"])


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_rows_for_a_shard_are_refused_before_they_are_read(kind, tmp_path):
    (tmp_path / "codes").touch()
    with (tmp_path / "codes").open("r+b") as file:
        file.truncate(2**32 * 8)  # a sparse file
    codes = np.memmap(tmp_path / "codes", np.uint64, "r", 0, (2**32, 1))
    with pytest.raises(ValueError, match="at most 4294967295 codes, got 4294967296"):
        kind.build(codes, IDS, bits=64)
    assert check_rows(MAX_ROWS) == 2**32 - 1


def test_mapped_arrays_of_the_wrong_shape_or_dtype_are_refused():
    with pytest.raises(ValueError, match=r"uint64 of shape \(3, 2\) for 128-bit codes, got uint64 of shape \(3, 1\)"):
        ScanIndex(codes_NW=CODES, ids_N=IDS, bits=128)
    with pytest.raises(ValueError, match=r"int64 of shape \(3,\), got int32"):
        ScanIndex(codes_NW=CODES, ids_N=IDS.astype(np.int32), bits=64)


def test_an_unknown_plan_is_refused():
    with pytest.raises(ValueError, match=r"`plan` must be one of .*got 'best'"):
        MultiIndex.build(CODES, IDS, bits=64).search(ONE, 1, plan="best")


@pytest.mark.parametrize(("kind", "plan"), [(FaissFlatIndex, "faiss-flat"), (FaissMultiHashIndex, "faiss-multi-hash")])
def test_faiss_explanations_have_the_index_and_the_time(kind, plan):
    index = kind.build(CODES, IDS, bits=64)
    queries = np.concatenate([ONE, ONE])
    for found in (index.search(queries, 1, explain=True), index.range_search(queries, 3, explain=True)):
        assert found.explain.plans == (plan, plan)
        assert found.explain.probes.tolist() == found.explain.candidates.tolist() == [0, 0]
        assert (found.explain.seconds > 0).all()
    assert index.search(queries, 1).explain is None


@pytest.mark.parametrize("kind", [FaissFlatIndex, FaissMultiHashIndex])
def test_without_faiss_the_error_says_what_to_install(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        MissingDependencyError, match=r"a FAISS index needs faiss, .*hashlight\[cpu\]' or .*hashlight\[gpu\]'"
    ):
        kind.build(CODES, IDS, bits=64)


def test_importing_the_indexes_neither_imports_faiss_nor_compiles():
    program = """
import sys
import hashlight.engine.indexes.multi_index.index
import hashlight.engine.indexes.faiss.flat, hashlight.engine.indexes.faiss.multi_hash
import hashlight.engine.kernels.multi_index as kernels
assert "faiss" not in sys.modules
assert not kernels.knn_tables.signatures and not kernels.range_tables.signatures
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_repr_of_an_index_describes_it():
    codes, ids, _ = make_case(1, 20, 64)
    assert repr(ScanIndex.build(codes, ids, bits=64)).startswith("ScanIndex(64 bits, 20 codes, ")
    assert "20 codes" in repr(FaissFlatIndex.build(codes, ids, bits=64))
    assert "distinct, tables of " in repr(MultiIndex.build(codes, ids, bits=64))
