"""Indexes over memory maps: saved and opened tables, unaligned codes, damaged files, many threads."""

import dataclasses
import json
import threading
import time

import numpy as np
import pytest

from hashlight.engine.collection.collection import Collection
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.indexes.multi_index.index import MultiIndex
from hashlight.engine.indexes.multi_index.tables import Tables
from hashlight.engine.indexes.order import sort_rows
from hashlight.engine.indexes.scan import ScanIndex
from tests import oracles
from tests.engine.indexes.test_indexes_exact import assert_range, assert_search, make_case


def write_mapped(folder, bits, rows=600, seed=2):
    """Write codes after 33 bytes as in a FAISS file, ids and tables; return their contents."""
    codes, ids, queries = make_case(seed, rows, bits)
    order = sort_rows(codes, ids)
    codes, ids = codes[order], ids[order]
    (folder / "codes").write_bytes(b"x" * 33 + codes.tobytes())
    np.save(folder / "ids.npy", ids)
    Tables.build(codes, bits=bits).save(folder / "tables")
    return codes, ids, queries


def open_mapped(folder, bits, rows=600):
    words = -(-bits // 64)
    codes = np.memmap(folder / "codes", "<u8", "r", 33, (rows, words))
    ids = np.load(folder / "ids.npy", mmap_mode="r")
    return MultiIndex.open(folder / "tables", codes_NW=codes, ids_N=ids, bits=bits)


@pytest.mark.parametrize("bits", [16, 64, 72, 256, 1024])
def test_mapped_unaligned_files_answer_the_same(tmp_path, bits):
    codes, ids, queries = write_mapped(tmp_path, bits)
    index = open_mapped(tmp_path, bits)
    assert not index.codes_NW.flags.aligned
    assert not index.codes_NW.flags.writeable
    for plan in ("auto", "scan", "tables"):
        assert_search(index.search(queries, 7, plan=plan), queries, codes, ids, 7)
        assert_range(index.range_search(queries, 6, plan=plan), queries, codes, ids, 6)
    scan = ScanIndex(codes_NW=index.codes_NW, ids_N=index.ids_N, bits=bits)
    assert_search(scan.search(queries[:1], 7), queries[:1], codes, ids, 7)


def test_queries_may_be_unaligned_or_read_only(tmp_path):
    codes, ids, queries = make_case(4, 300, 64)
    index = MultiIndex.build(codes, ids, bits=64)
    (tmp_path / "queries").write_bytes(b"123" + queries.tobytes())
    mapped = np.memmap(tmp_path / "queries", "<u8", "r", 3, queries.shape)
    assert_search(index.search(mapped, 5), queries, codes, ids, 5)
    assert_range(index.range_search(mapped, 5), queries, codes, ids, 5)


def test_all_codes_equal_and_all_codes_distinct(tmp_path):
    for number, codes in enumerate([np.full((50, 1), 7, np.uint64), np.arange(50, dtype=np.uint64).reshape(50, 1)]):
        ids = np.arange(50)[::-1].copy()
        built = MultiIndex.build(codes, ids, bits=64)
        built.save(tmp_path / str(number))
        index = MultiIndex.open(tmp_path / str(number), codes_NW=built.codes_NW, ids_N=built.ids_N, bits=64)
        assert index.tables.distinct == (1, 50)[number]
        assert_search(index.search(codes[:3], 4, plan="tables"), codes[:3], codes, ids, 4)
        assert_range(index.range_search(codes[:3], 1, plan="tables"), codes[:3], codes, ids, 1)


@pytest.mark.parametrize("bits", [64, 72])
def test_an_empty_index_is_saved_and_opened(tmp_path, bits):
    words = -(-bits // 64)
    index = MultiIndex.build(np.empty((0, words), np.uint64), np.empty(0, np.int64), bits=bits)
    index.save(tmp_path / "tables")
    again = MultiIndex.open(tmp_path / "tables", codes_NW=index.codes_NW, ids_N=index.ids_N, bits=bits)
    assert again.search(np.zeros((2, words), np.uint64), 2).ids.tolist() == [[-1, -1], [-1, -1]]


def shorten(path):
    path.write_bytes(path.read_bytes()[:-4])


def rewrite_head(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES = {
    "no header": lambda folder: (folder / "tables.json").unlink(),
    "header is not JSON": lambda folder: (folder / "tables.json").write_text("{"),
    "header lacks widths": lambda folder: (folder / "tables.json").write_text('{"format": 1, "bits": 64, "rows": 600}'),
    "another format": lambda folder: rewrite_head(folder / "tables.json", format=99),
    "other rows": lambda folder: rewrite_head(folder / "tables.json", rows=5),
    "other widths": lambda folder: rewrite_head(folder / "tables.json", widths=[8, 8, 8]),
    "widths beyond the code": lambda folder: rewrite_head(folder / "tables.json", widths=[40, 40]),
    "entries too short": lambda folder: np.save(folder / "entries.npy", np.zeros(3, np.uint64)),
    "entries of another type": lambda folder: np.save(folder / "entries.npy", np.zeros(3, np.uint32)),
    "offsets truncated": lambda folder: shorten(folder / "offsets.npy"),
    "no starts": lambda folder: (folder / "starts.npy").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tables_are_refused(tmp_path, damage):
    write_mapped(tmp_path, 64)
    open_mapped(tmp_path, 64)
    DAMAGES[damage](tmp_path / "tables")
    with pytest.raises(CorruptDataError, match="tables"):
        open_mapped(tmp_path, 64)


def test_tables_of_other_codes_are_refused():
    codes, ids, _ = make_case(1, 30, 64)
    tables = Tables.build(codes[sort_rows(codes, ids)], bits=64)
    with pytest.raises(ValueError, match="built over 30 codes of 64 bits, got 29 codes"):
        MultiIndex(codes_NW=codes[:29], ids_N=ids[:29], tables=tables, bits=64)


def search_while_others_open(folder, seconds):
    """Eight threads search one open collection of two shards while two others open, search and drop it.

    They run for `seconds`, and until each has searched a few times.
    """
    codes, ids, queries = make_case(2, 3000, 64)
    Collection.create(folder / "c", codes, ids=ids, bits=64, shards=2)
    shared = Collection.open(folder / "c")
    expected = [oracles.within_radius(queries, codes, ids, radius)[0] for radius in range(12)]
    near = oracles.knn(queries, codes, ids, 10)[1]
    until = time.monotonic() + seconds
    failures, rounds = [], [0] * 10

    def work(number):
        try:
            while not failures and (time.monotonic() < until or min(rounds) < 4):
                collection = shared if number < 8 else Collection.open(folder / "c")
                radius = rounds[number] % 12
                found = collection.range_search(queries, radius, threads=1 + number % 3)
                assert found.ids.tolist() == [id_ for answer in expected[radius] for _, id_ in answer]
                np.testing.assert_array_equal(collection.search(queries, 10).ids, near)
                rounds[number] += 1
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_eight_threads_search_while_others_open_and_close(tmp_path):
    search_while_others_open(tmp_path, 3)


@pytest.mark.slow
def test_eight_threads_search_for_a_minute(tmp_path):
    search_while_others_open(tmp_path, 60)


@pytest.mark.parametrize("bits", [64, 72, 256])
def test_tables_over_their_own_codes_have_no_fault(bits):
    for rows in (1, 2, 900):
        codes, ids, _ = make_case(3, rows, bits)
        for index in (ScanIndex.build(codes, ids, bits=bits), MultiIndex.build(codes, ids, bits=bits)):
            assert index.find_fault(index.codes_NW) is None


def random_codes(seed, rows, bits):
    return np.random.default_rng(seed).integers(2**64, size=(rows, bits // 64), dtype=np.uint64)


@pytest.mark.parametrize("bits", [64, 256])
def test_any_table_of_other_codes_is_a_fault_whatever_the_plan(bits):
    # Distinct codes, so that both tables have the same number of entries.
    some, others = (MultiIndex.build(random_codes(seed, 900, bits), np.arange(900), bits=bits) for seed in (1, 2))
    assert some.tables.widths == others.tables.widths
    edges = np.cumsum([0, *(2**width + 1 for width in some.tables.widths)])
    for table in range(len(some.tables.widths)):
        offsets, entries = some.tables.offsets.copy(), some.tables.entries.copy()
        own = slice(edges[table], edges[table + 1])
        offsets[own] = others.tables.offsets[own]
        listed = slice(max(table - 1, 0) * 900, table * 900)
        entries[listed] = others.tables.entries[listed]
        wrong = dataclasses.replace(some.tables, offsets=offsets, entries=entries)
        index = MultiIndex(codes_NW=some.codes_NW, ids_N=some.ids_N, tables=wrong, bits=bits)
        assert f"is missing in table {table}" in index.find_fault(some.codes_NW)


def test_a_wrong_sketch_is_a_fault():
    codes, ids, _ = make_case(3, 900, 64)
    index = MultiIndex.build(codes, ids, bits=64)
    entries = index.tables.entries ^ np.uint64(1 << index.tables.row_bits)
    wrong = MultiIndex(
        codes_NW=index.codes_NW, ids_N=index.ids_N, tables=dataclasses.replace(index.tables, entries=entries), bits=64
    )
    assert "is missing in table 1" in wrong.find_fault(index.codes_NW)
