"""Codes as a FAISS `IndexBinaryFlat` file, which any FAISS can read; its codes are mapped in place.

The file is a header of 33 bytes and the packed codes, so neither writing nor reading needs FAISS. FAISS's own reader
trusts the header and crashes on a damaged file; this one checks every field and the file's size
before it trusts anything.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from hashlight.engine.codes import WORD_BITS, CodeArray, num_words
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.places.arrays import map_file

# fourcc, d, code_size, ntotal, is_trained, metric_type, number of code bytes (index_write.cpp, `IBxF`)
_HEADER = struct.Struct("<4siiq?iQ")
_FOURCC = b"IBxF"
_CODE_DTYPE = np.dtype("<u8")
# FAISS writes these for every binary flat index; a reader of codes needs neither.
_IS_TRAINED, _METRIC_L2 = True, 1


def write_faiss_flat(path: Path, codes_NW: CodeArray) -> None:
    """Write codes (uint64, shape (N, W)) as an `IndexBinaryFlat` of `64 * W` bits, byte for byte as FAISS would."""
    rows, words = codes_NW.shape
    code_bytes = words * _CODE_DTYPE.itemsize
    head = _HEADER.pack(_FOURCC, words * WORD_BITS, code_bytes, rows, _IS_TRAINED, _METRIC_L2, rows * code_bytes)
    with path.open("wb") as file:
        file.write(head)
        file.write(np.ascontiguousarray(codes_NW, _CODE_DTYPE).data)


def map_faiss_flat(path: Path, *, bits: int, rows: int, at_random: bool = False) -> CodeArray:
    """Map the codes of an `IndexBinaryFlat` file, read-only, without reading them.

    Parameters
    ----------
    path : Path
    bits, rows : int
        The expected contents: `rows` codes of `ceil(bits / 64)` words.
    at_random : bool
        Whether they will be read at random; see `engine.places.arrays.map_file`.

    Returns
    -------
    ndarray of uint64, shape (rows, W)
        A memory map at byte 33 of the file, hence not aligned to 8 bytes.

    Raises
    ------
    CorruptDataError
        If the header or the size does not match `bits` and `rows`.
    """
    words = num_words(bits)
    code_bytes = words * _CODE_DTYPE.itemsize
    data = map_file(path, at_random=at_random)
    if data.size < _HEADER.size:
        raise CorruptDataError(f"{path}: expected a FAISS header of {_HEADER.size} bytes, got {data.size} bytes")
    fourcc, dimension, size, count, _, _, num_bytes = _HEADER.unpack_from(data)
    got = (fourcc, dimension, size, count, num_bytes, data.size - _HEADER.size)
    expected = (_FOURCC, words * WORD_BITS, code_bytes, rows, rows * code_bytes, rows * code_bytes)
    if got != expected:
        raise CorruptDataError(
            f"{path}: expected (fourcc, d, code size, ntotal, bytes named, bytes there) = {expected}, got {got}: "
            "restore the file or build the collection again"
        )
    return np.frombuffer(data, _CODE_DTYPE, offset=_HEADER.size).reshape(rows, words)
