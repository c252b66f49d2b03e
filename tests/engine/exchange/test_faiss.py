"""Codes and ids go to FAISS and come back; FAISS itself is the oracle of what an index holds."""

from __future__ import annotations

import subprocess
import sys

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashlight.engine.collection.collection import Collection

ROWS, D = 60, 64
RNG = np.random.default_rng(11)
BYTES = RNG.integers(256, size=(ROWS, D // 8), dtype=np.uint8)
BYTES[7:12] = BYTES[3]
IDS = RNG.permutation(ROWS).astype(np.int64) * 11 + 2**41


def ivf():
    index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(D), D, 4)
    index.own_fields = False
    index.cp.min_points_per_centroid = 1
    index.train(BYTES)
    return index


FLAT, HASH = lambda: faiss.IndexBinaryFlat(D), lambda: faiss.IndexBinaryHash(D, 9)
MULTI, HNSW = lambda: faiss.IndexBinaryMultiHash(D, 3, 9), lambda: faiss.IndexBinaryHNSW(D, 8)
KINDS = {"flat": FLAT, "ivf": ivf, "hash": HASH, "multi hash": MULTI, "hnsw": HNSW}


def assert_holds(collection, ids, attribute=None):
    assert len(collection) == ROWS
    found = collection.get(ids)
    assert found["code"].to_pylist() == [row.tobytes() for row in BYTES]
    if attribute is not None:
        assert found["n"].to_pylist() == attribute


@pytest.mark.parametrize("kind", KINDS)
def test_numbered_codes_of_every_kind(tmp_path, kind):
    index = KINDS[kind]()
    index.add(BYTES)
    made = Collection.from_faiss(index, tmp_path / "c", attributes={"n": list(range(ROWS))}, tables=False)
    assert_holds(made, np.arange(ROWS), list(range(ROWS)))
    assert index.ntotal == ROWS


@pytest.mark.parametrize("make", [faiss.IndexBinaryIDMap, faiss.IndexBinaryIDMap2])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_a_map_over_every_kind_by_file(tmp_path, kind, make):
    inner = KINDS[kind]()
    index = make(inner)
    index.add_with_ids(BYTES, IDS)
    faiss.write_index_binary(index, str(tmp_path / "x.faiss"))
    for number, source in enumerate((index, tmp_path / "x.faiss", str(tmp_path / "x.faiss"))):
        path = tmp_path / f"c{number}"
        made = Collection.from_faiss(source, path, attributes={"n": list(range(ROWS))}, tables=False, shard_rows=25)
        assert len(made.shards) == 3
        assert_holds(made, IDS, list(range(ROWS)))


@pytest.mark.parametrize("kind", ["ivf", "hash"])
def test_ids_of_an_index_that_keeps_its_own(tmp_path, kind):
    index = KINDS[kind]()
    index.add_with_ids(BYTES, IDS)
    ascending = np.argsort(np.argsort(IDS)).tolist()
    made = Collection.from_faiss(index, tmp_path / "c", attributes={"n": list(range(ROWS))}, tables=False)
    assert_holds(made, IDS, ascending)


def test_an_index_from_a_bucket(tmp_path, bucket):
    made = Collection.from_numpy(BYTES, tmp_path / "a", ids=IDS, tables=False)
    made.to_faiss(bucket.uri("x.faiss"))
    assert_holds(Collection.from_faiss(bucket.uri("x.faiss"), tmp_path / "b", tables=False), IDS)


@pytest.mark.parametrize("case", ["negative", "repeated", "attributes", "bits", "kind", "float", "empty"])
def test_what_is_refused(tmp_path, case):
    ids, options, error = IDS.copy(), {}, ValueError
    index = faiss.IndexBinaryIDMap(faiss.IndexBinaryFlat(D))
    if case == "negative":
        ids[5], message = -3, "`ids` must be 0 or more.*got -3 in row 5"
    elif case == "repeated":
        ids[5], message = ids[9], f"`ids` must be distinct, got {ids[9]} more than once"
    elif case == "attributes":
        options, message = {"attributes": {"n": [1]}}, "must have 60 rows, one per code, got 1"
    elif case == "bits":
        options, message = {"bits": 10}, "8 bytes per code, 10-bit codes take 2 to 8|bits set past bit 9"
    elif case == "kind":
        index = faiss.IndexBinaryFromFloat(faiss.IndexFlatL2(D))
        error, message = TypeError, "IndexBinaryFromFloat does not give its codes back: expected IndexBinaryFlat"
    elif case == "float":
        index, error, message = faiss.IndexFlatL2(D), TypeError, "expected a binary index of FAISS.*got IndexFlatL2"
    else:
        message = "no rows"
    if case not in ("kind", "float", "empty"):
        index.add_with_ids(BYTES, ids)
    with pytest.raises(error, match=message):
        Collection.from_faiss(index, tmp_path / "c", **options)
    assert not (tmp_path / "c" / "CURRENT").exists()


@settings(max_examples=20, deadline=None)
@given(
    bits=st.integers(1, 200),
    ids=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=12, unique=True),
    shard_rows=st.integers(1, 12),
    data=st.data(),
)
def test_codes_and_ids_come_back_from_faiss(tmp_path_factory, bits, ids, shard_rows, data):
    path = tmp_path_factory.mktemp("f")
    sizes = st.lists(st.integers(0, 2**bits - 1), min_size=len(ids), max_size=len(ids))
    codes = [code.to_bytes(8 * -(-bits // 64), "little") for code in data.draw(sizes)]
    packed = np.frombuffer(b"".join(codes), np.uint8).reshape(len(ids), -1)
    made = Collection.from_numpy(packed, path / "a", ids=np.array(ids), bits=bits, tables=False, shard_rows=shard_rows)
    index = made.to_faiss(path / "x.faiss")
    assert type(index) is faiss.IndexBinaryIDMap2
    width = -(-bits // 8)
    assert (index.ntotal, index.d) == (len(ids), 8 * width)
    for number, id_ in enumerate(ids):
        assert index.reconstruct(id_).tobytes() == codes[number][:width]
    back = Collection.from_faiss(path / "x.faiss", path / "b", bits=bits if bits % 8 else None, tables=False)
    assert back.bits == bits
    assert back.get(ids)["code"].to_pylist() == codes


def test_an_exported_index_answers_as_the_collection(tmp_path):
    made = Collection.from_numpy(BYTES, tmp_path / "c", ids=IDS)
    found = made.to_faiss().range_search(BYTES[:20], 25)
    limits, distances, ids = found
    ours = made.range_search(BYTES[:20].view(np.uint64), 24)
    assert ours.lims.tolist() == limits.tolist()
    for start, stop in zip(limits[:-1].astype(int), limits[1:].astype(int), strict=True):
        theirs = sorted(zip(distances[start:stop].tolist(), ids[start:stop].tolist(), strict=True))
        assert list(zip(ours.distances[start:stop].tolist(), ours.ids[start:stop].tolist(), strict=True)) == theirs


def test_without_faiss_the_error_says_what_to_install(tmp_path):
    Collection.from_numpy(BYTES, tmp_path / "c", tables=False)
    script = (
        "import sys; sys.modules['faiss'] = None\nfrom hashlight import Collection, MissingDependencyError\n"
        "c = Collection.open(sys.argv[1])\nassert c.to_arrow().read_all().num_rows == 60\n"
        "try: c.to_faiss()\nexcept MissingDependencyError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "c")], capture_output=True, text=True, check=True
    )
    assert "needs faiss, which is not installed: pip install" in done.stdout


def test_the_codes_of_a_shard_are_themselves_an_index(tmp_path):
    made = Collection.from_numpy(BYTES, tmp_path / "a", tables=False)
    [file] = (tmp_path / "a" / "shards").glob("*/codes.faiss")
    again = Collection.from_faiss(file, tmp_path / "b", tables=False)
    assert pa.concat_tables([again.get([n]) for n in range(ROWS)])["code"].to_pylist() == [
        code.tobytes() for code in made.shards[0].codes_NW
    ]
