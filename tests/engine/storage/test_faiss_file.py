"""Files are written as FAISS writes them; the header of a file that is read is never trusted."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from hashlight.engine.errors import CorruptDataError
from hashlight.engine.storage.faiss_file import map_faiss_flat, write_faiss_flat


@pytest.fixture
def codes():
    return np.random.default_rng(0).integers(2**63, size=(50, 2), dtype=np.uint64)


def test_mapped_codes_equal_the_written_ones(tmp_path, codes):
    write_faiss_flat(tmp_path / "codes.faiss", codes)
    mapped = map_faiss_flat(tmp_path / "codes.faiss", bits=100, rows=50)
    np.testing.assert_array_equal(mapped, codes)
    assert not mapped.flags.writeable


@pytest.mark.parametrize(("rows", "words"), [(0, 1), (1, 1), (50, 2), (3, 16)])
def test_the_file_equals_that_of_faiss(tmp_path, rows, words):
    codes = np.random.default_rng(1).integers(2**64, size=(words, rows), dtype=np.uint64).T  # not contiguous
    index = faiss.IndexBinaryFlat(64 * words)
    if rows:
        index.add(np.ascontiguousarray(codes).view(np.uint8))
    faiss.write_index_binary(index, str(tmp_path / "theirs"))
    write_faiss_flat(tmp_path / "ours", codes)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_faiss_reads_the_file(tmp_path, codes):
    write_faiss_flat(tmp_path / "codes.faiss", codes)
    index = faiss.read_index_binary(str(tmp_path / "codes.faiss"))
    assert (index.d, index.ntotal) == (128, 50)
    distances, rows = index.search(codes[7:9].view(np.uint8), 1)
    assert distances.tolist() == [[0], [0]]
    assert rows.tolist() == [[7], [8]]


@pytest.mark.parametrize("position", [0, 4, 8, 12, 19, 25, 32])
def test_a_changed_header_is_refused(tmp_path, codes, position):
    path = tmp_path / "codes.faiss"
    write_faiss_flat(path, codes)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptDataError, match=r"expected \(fourcc, d, code size"):
        map_faiss_flat(path, bits=100, rows=50)


@pytest.mark.parametrize("size", [0, 10, 32, 33, 100])
def test_a_short_file_is_refused(tmp_path, codes, size):
    path = tmp_path / "codes.faiss"
    write_faiss_flat(path, codes)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptDataError, match=r"codes\.faiss"):
        map_faiss_flat(path, bits=100, rows=50)
