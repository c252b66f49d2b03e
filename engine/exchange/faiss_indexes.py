"""FAISS's binary indexes: the codes and ids in them, and an index of codes and ids.

FAISS has no common way to read codes back, so each kind is read as it stores them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.exchange.targets import written_file
from hashlight.engine.extras import import_faiss
from hashlight.engine.places.opening import open_place

# FAISS's own serialisation of an `IndexBinaryHash` (index_write.cpp): fourcc, d, code size, number of codes, whether it
# is trained, metric; b and nflip; the number of lists, the width of their sizes, the bytes of the packed sizes.
_HEAD = struct.Struct("<4siiq?i")
_HASH = struct.Struct("<ii")
_LISTS = struct.Struct("<QiQ")
_LENGTH = struct.Struct("<Q")

READABLE = (
    "IndexBinaryFlat, IndexBinaryIVF, IndexBinaryHash, IndexBinaryMultiHash, IndexBinaryHNSW, and IndexBinaryIDMap and "
    "IndexBinaryIDMap2 over one of them"
)

# codes as bytes (N, B), ids (N,)
Contents = tuple[NDArray[np.uint8], IdArray]


def load_index(source: object) -> Any:
    """Return the binary index of FAISS at a place, or the given one.

    Raises
    ------
    MissingDependencyError
        If FAISS is not installed.
    FileNotFoundError
        If there is no such file.
    CorruptDataError
        If FAISS cannot read the file as a binary index.
    TypeError
        If it is not a binary index.
    """
    faiss = import_faiss()
    if isinstance(source, str | Path):
        source = _read_index(faiss, source)
    if not isinstance(source, faiss.IndexBinary):
        raise TypeError(f"expected a binary index of FAISS or the place of its file, got {type(source).__name__}")
    return source


def _read_index(faiss: Any, source: str | Path) -> Any:
    place = open_place(source)
    if place.local and not place.local.is_file():
        raise FileNotFoundError(f"{place} is not a file: expected a binary index that FAISS has written")
    try:
        if place.local:
            return faiss.read_index_binary(str(place.local))
        return faiss.deserialize_index_binary(np.frombuffer(place.read(), np.uint8))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise CorruptDataError(f"{place} is not readable as a binary index of FAISS: {reason}") from error


def read_index(index: Any) -> Contents:
    """Return the codes and ids of a binary index.

    Returns
    -------
    ndarray of uint8, shape (N, B); ndarray of int64, shape (N,)
        Codes of `8 * B = d` bits, and ids, in the order of an `IndexBinaryIDMap`'s ids, or ascending otherwise.

    Raises
    ------
    TypeError
        If its kind does not give its codes back.
    ValueError
        If an `IndexBinaryIDMap` does not have an id for each code.
    """
    faiss = import_faiss()
    given, index = index, faiss.downcast_IndexBinary(index)  # which does not keep `given`, whose memory it uses
    if isinstance(index, faiss.IndexBinaryIDMap):
        bytes_NB, row_N = read_index(index.index)
        ids_N = faiss.vector_to_array(index.id_map)
        if not np.array_equal(row_N, np.arange(len(ids_N))):
            raise ValueError(f"{type(index).__name__} has {len(ids_N)} ids for other codes than 0 to {len(ids_N) - 1}")
        return bytes_NB, ids_N
    if isinstance(index, faiss.IndexBinaryFlat):
        bytes_NB = faiss.vector_to_array(index.xb).reshape(-1, index.code_size)
        return bytes_NB, np.arange(len(bytes_NB), dtype=np.int64)
    if isinstance(index, faiss.IndexBinaryHNSW | faiss.IndexBinaryMultiHash):
        return read_index(index.storage)
    if isinstance(index, faiss.IndexBinaryIVF):
        return _ascending(_read_inverted_lists(faiss, index))
    if isinstance(index, faiss.IndexBinaryHash):
        return _ascending(_read_hash(faiss, index))
    raise TypeError(f"{type(given).__name__} does not give its codes back: expected {READABLE}")


def _ascending(contents: list[Contents]) -> Contents:
    bytes_NB, ids_N = (np.concatenate(parts) for parts in zip(*contents, strict=True))
    order_N = np.argsort(ids_N, kind="stable")
    return bytes_NB[order_N], ids_N[order_N]


def _read_inverted_lists(faiss: Any, index: Any) -> list[Contents]:
    lists, size = index.invlists, index.code_size
    found = [(np.empty((0, size), np.uint8), np.empty(0, np.int64))]
    for number in range(lists.nlist):
        rows = lists.list_size(number)
        if not rows:
            continue
        ids, codes = lists.get_ids(number), lists.get_codes(number)
        try:
            bytes_NB = faiss.rev_swig_ptr(codes, rows * size).reshape(rows, size).copy()
            found.append((bytes_NB, faiss.rev_swig_ptr(ids, rows).copy()))
        finally:
            lists.release_ids(number, ids)
            lists.release_codes(number, codes)
    return found


def _read_hash(faiss: Any, index: Any) -> list[Contents]:
    """Read the lists of an `IndexBinaryHash`, which Python does not reach but in its serialisation."""
    data, size = faiss.serialize_index_binary(index), index.code_size
    start = _HEAD.size + _HASH.size
    num_lists, _, num_bytes = _LISTS.unpack_from(data, start)
    start += _LISTS.size + num_bytes
    found = [(np.empty((0, size), np.uint8), np.empty(0, np.int64))]
    for _ in range(num_lists):
        (rows,) = _LENGTH.unpack_from(data, start)
        ids_N = np.frombuffer(data, "<i8", rows, start + _LENGTH.size).astype(np.int64)
        start += 2 * _LENGTH.size + ids_N.nbytes
        bytes_NB = np.frombuffer(data, np.uint8, rows * size, start).reshape(rows, size)
        start += bytes_NB.nbytes
        found.append((bytes_NB, ids_N))
    assert start == len(data), "these are all lists"
    return found


def faiss_bits(bits: int) -> int:
    """Return the bits that a code of `bits` bits has in FAISS, which knows only whole bytes."""
    return 8 * -(-bits // 8)


def make_index(rows: Iterable[tuple[CodeArray, IdArray]], *, bits: int) -> Any:
    """Return an `IndexBinaryIDMap2` over an `IndexBinaryFlat` of `faiss_bits(bits)` bits.

    Parameters
    ----------
    rows : iterable of (ndarray of uint64, shape (N, W), ndarray of int64, shape (N,))
        Added one after another.
    bits : int
    """
    faiss = import_faiss()
    size = faiss_bits(bits) // 8
    index = faiss.IndexBinaryIDMap2(faiss.IndexBinaryFlat(8 * size))
    for codes_NW, ids_N in rows:
        bytes_NC = np.ascontiguousarray(codes_NW, "<u8").view(np.uint8)
        index.add_with_ids(np.ascontiguousarray(bytes_NC[:, :size]), np.ascontiguousarray(ids_N))
    return index


def write_index(index: Any, target: str | Path, *, overwrite: bool = False) -> None:
    """Write a binary index as a file of FAISS; see `written_file`."""
    with written_file(target, overwrite=overwrite) as path:
        import_faiss().write_index_binary(index, str(path))
