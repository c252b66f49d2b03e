"""Features as they are kept: rounded as their definition says, the same again whatever they pass through, and searched
by what is kept; oracles are fractions and numpy in double precision."""

from __future__ import annotations

import json
import math
import struct
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hashlight.engine.collection.collection import Collection
from hashlight.engine.collection.rerank import Rerank
from hashlight.engine.features import KINDS, Features
from hashlight.engine.writing.pending import Pending
from hashlight.engine.writing.records import Logged
from hashlight.engine.writing.views import Views
from hashlight.engine.writing.writes import Put
from tests import independent, oracles

OTHERS = ["bfloat16", "int8"]
ROWS = 300


def single(bits):
    return struct.unpack("<f", struct.pack("<I", bits))[0]


def nearest_bfloat16(value):
    """The nearest number whose lower 16 bits are zero, of two the one that ends in an even bit, by fractions."""
    lower = struct.unpack("<I", struct.pack("<f", value))[0] & 0xFFFF0000
    both = [lower, lower + 0x10000]
    if not math.isfinite(single(both[1])):
        return single(lower)
    gaps = [abs(Fraction(single(bits)) - Fraction(value)) for bits in both]
    if gaps[0] == gaps[1]:
        return single(next(bits for bits in both if not bits & 0x10000))
    return single(both[gaps.index(min(gaps))])


FLOATS = st.floats(-(2.0**120), 2.0**120, width=32, allow_subnormal=False)


@settings(deadline=None)
@example([single(0x3F808000), single(0x3F818000), single(0xBF808000), single(0xBF818000)])  # in the middle of two
@given(st.lists(FLOATS, min_size=1, max_size=8))
def test_bfloat16_is_the_nearest_that_single_precision_has(values):
    kept = Features.of(np.array([values], np.float32), "bfloat16")[:]
    assert kept.tolist() == [[nearest_bfloat16(value) for value in values]]


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=8))
def test_int8_is_within_half_a_step_of_what_was_given(values):
    row = np.array([values], np.float32)
    kept = Features.of(row, "int8")
    (step,) = struct.unpack("<f", kept.packed[0, :4].tobytes())
    assert not int.from_bytes(kept.packed[0, :4].tobytes(), "little") % 2**7, "17 significant bits"
    largest = max(abs(Fraction(value)) for value in values)
    least = Fraction(2) ** -126
    assert Fraction(step) == least or largest / 127 * (1 - Fraction(1, 2**20)) <= step <= largest / 127 * (
        1 + Fraction(1, 2**15)
    )
    for value, (got,) in zip(values, kept[:].T.tolist(), strict=True):
        steps = Fraction(got) / Fraction(step)
        assert steps.denominator == 1
        assert abs(steps) <= 127
        assert abs(Fraction(got) - Fraction(value)) <= Fraction(step) * Fraction(500001, 1000000)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(rows=st.lists(st.lists(FLOATS.map(lambda one: one * 2.0**-105), min_size=3, max_size=3), min_size=1, max_size=5))
def test_what_is_kept_is_kept_again_as_it_is(kind, rows):
    kept = Features.of(np.array(rows, np.float32), kind)
    again = Features.of(kept[:], kind)
    assert again.packed.tobytes() == kept.packed.tobytes()
    # A row does not depend on the others.
    alone = [Features.of(np.array([row], np.float32), kind).packed.tobytes() for row in rows]
    assert b"".join(alone) == kept.packed.tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(kind, bad):
    values = np.ones((4, 3), np.float32)
    values[2, 1] = bad
    with pytest.raises(ValueError, match=f"`x` must be finite as {kind}, up to .*, got others in 1 rows, first 2"):
        Features.of(values, kind, name="x")
    assert np.isfinite(Features.of(values[:2], kind)[:]).all()


@pytest.mark.parametrize(
    ("kind", "largest", "larger"),
    [("float16", 65_504, 65_520), ("bfloat16", 3.38e38, 3.4e38), ("int8", 1.7e38, 1.71e38)],
)
def test_what_would_not_be_finite_is_refused(kind, largest, larger):
    assert np.isfinite(Features.of(np.array([[largest, 0]], np.float32), kind)[:]).all()
    with pytest.raises(ValueError, match=f"must be finite as {kind}"):
        Features.of(np.array([[larger, 0]], np.float32), kind)


def test_another_kind_is_refused():
    with pytest.raises(ValueError, match="must be one of float16, bfloat16, int8, got 'float8'"):
        Features.of(np.ones((1, 1), np.float32), "float8")


def made(rows=ROWS, dims=24):
    """Codes, ids, and embeddings in clusters, of which codes tell little."""
    rng = np.random.default_rng(7)
    centres = rng.standard_normal((15, dims))
    values = (centres[rng.integers(15, size=rows)] + 0.4 * rng.standard_normal((rows, dims))).astype(np.float32)
    return oracles.clustered_codes(rng, rows, 40), rng.permutation(rows) * 3 + 1, values


def reranked(collection, codes, ids, kept, queries):
    """Check the order of pools by what is kept, in double precision; near ties may stand either way."""
    pool = oracles.knn(codes[:20], codes, ids, 60)[1]
    found = collection.search(codes[:20], 8, rerank=Rerank(pool=60), features=queries)
    by_id = dict(zip(ids.tolist(), kept.astype(np.float64), strict=True))
    for query, taken, answered, distances in zip(
        queries.astype(np.float64), pool, found.ids, found.distances, strict=True
    ):
        expected = sorted(float(np.linalg.norm(by_id[id_] - query)) for id_ in taken.tolist())[:8]
        np.testing.assert_allclose(distances, expected, rtol=1e-5)
        np.testing.assert_allclose(
            [np.linalg.norm(by_id[id_] - query) for id_ in answered.tolist()], expected, rtol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_collection_orders_by_what_it_keeps_and_keeps_it(tmp_path, kind):
    codes, ids, values = made()
    created = Collection.create(
        tmp_path / "c", codes[:200], ids=ids[:200], bits=40, features=Features.of(values[:200], kind), shards=2
    )
    assert (created.features_as, created.num_features) == (kind, 24)
    collection = created.add(codes[200:], ids=ids[200:], features=values[200:])  # plain numbers are rounded
    kept = independent_features(tmp_path / "c", ids)
    queries = values[:20] + np.float32(0.1)
    reranked(collection, codes, ids, kept, queries)
    assert collection.features_of(ids).tolist() == kept.tolist()
    assert np.abs(kept - values).max() <= {"float16": 2e-3, "bfloat16": 2e-2, "int8": 3e-2}[kind]
    assert collection.features_of(ids[:0]).dtype == (np.float16 if kind == "float16" else np.float32)
    table = collection.get(ids[:2])
    assert "features" not in table.column_names
    (row,) = collection.scan(columns=["features"], filter=f"id == {ids[3]}").read_all().to_pylist()
    assert row["features"] == kept[3].tolist()
    # Updated, compacted, opened again: not a bit is lost.
    changed = collection.delete(ids[5:10].tolist()).set_column("n", list(range(4)), ids=ids[:4].tolist())
    changed = changed.update(ids[:4].tolist(), {"n": [9, 8, 7, 6]})
    changed.compact(full=True)
    left = np.concatenate([ids[:5], ids[10:]])
    opened = Collection.open(tmp_path / "c", verify=True)
    assert len(opened.shards) == 1
    assert opened.features_of(left).tolist() == np.concatenate([kept[:5], kept[10:]]).tolist()


def independent_features(folder, ids):
    read = independent.read_version(folder)
    return np.array([read.rows[id_]["features"] for id_ in ids.tolist()])


@pytest.mark.parametrize("kind", OTHERS)
def test_readers_that_do_not_know_the_kind_refuse_the_collection(tmp_path, kind):
    codes, ids, values = made(40)
    Collection.create(tmp_path / "c", codes, ids=ids, bits=40, features=Features.of(values, kind))
    manifest = json.loads(next((tmp_path / "c" / "manifests").glob("*.json")).read_text())
    assert (manifest["needs"], manifest["features_as"]) == (["features-as"], kind)
    Collection.create(tmp_path / "plain", codes, ids=ids, bits=40, features=values)
    manifest = json.loads(next((tmp_path / "plain" / "manifests").glob("*.json")).read_text())
    assert manifest["needs"] == []
    assert "features_as" not in manifest


def test_int8_takes_half_of_the_space_and_finds_almost_the_same(tmp_path):
    codes, ids, values = made(1500, 64)
    sizes, found = {}, {}
    queries = values[:60] + np.float32(0.05)
    for kind in ("float16", "int8"):
        collection = Collection.create(tmp_path / kind, codes, ids=ids, bits=40, features=Features.of(values, kind))
        (path,) = (tmp_path / kind).glob("shards/*/features.npy")
        sizes[kind] = path.stat().st_size - 128
        found[kind] = collection.search(codes[:60], 10, rerank=Rerank(pool=1500, metric="cosine"), features=queries).ids
    assert sizes == {"float16": 1500 * 128, "int8": 1500 * 68}
    unit = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    nearest = ids[np.argsort(-(queries @ unit.T), axis=1)[:, :10]]
    recall = {
        kind: np.mean([len({*a} & {*b}) / 10 for a, b in zip(ids_found.tolist(), nearest.tolist(), strict=True)])
        for kind, ids_found in found.items()
    }
    assert recall["float16"] > 0.995
    assert recall["int8"] > 0.95


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("through", ["arrow", "parquet"])
def test_features_come_back_bit_for_bit(tmp_path, kind, through):
    codes, ids, values = made(80)
    collection = Collection.create(tmp_path / "c", codes, ids=ids, bits=40, features=Features.of(values, kind))
    if through == "arrow":
        back = Collection.from_arrow(collection.to_arrow(), tmp_path / "back")
    else:
        collection.to_parquet(tmp_path / "x.parquet")
        assert pq.read_schema(tmp_path / "x.parquet").field("features").type.value_type == pa.float32()
        back = Collection.from_parquet(tmp_path / "x.parquet", tmp_path / "back")
    assert back.features_as == kind
    assert back.features_of(ids).tolist() == collection.features_of(ids).tolist()


def test_metadata_of_no_kind_is_refused(tmp_path):
    codes, ids, values = made(10)
    table = Collection.create(tmp_path / "c", codes, ids=ids, bits=40, features=values).to_arrow().read_all()
    said = json.loads(table.schema.metadata[b"hashlight"]) | {"features_as": "float8"}
    with pytest.raises(ValueError, match="must be one of float16, bfloat16, int8, got 'float8'"):
        Collection.from_arrow(table.replace_schema_metadata({"hashlight": json.dumps(said)}), tmp_path / "back")


@pytest.mark.parametrize("kind", KINDS)
def test_pending_writes_are_ordered_by_what_will_be_kept(tmp_path, kind):
    codes, ids, values = made(90)
    base = Collection.create(tmp_path / "c", codes[:50], ids=ids[:50], bits=40, features=Features.of(values[:50], kind))
    put = Put(codes[40:], ids[40:], None, values[40:])
    put.check(base.manifest)
    view = Views(base).make(Pending(base.manifest, [Logged(1, put, (40, None))]))
    committed = base.upsert(codes[40:], ids=ids[40:], features=values[40:])
    assert view.features_of(ids).tolist() == committed.features_of(ids).tolist()
    reranked(view, codes, ids, independent_features(tmp_path / "c", ids), values[:20])
