"""What every kind of file of embeddings offers, and the two that are plain rows of numbers: `.npy`, and FAISS's Flat.

Shapes: N rows of a file, R of them in a batch, D numbers in an embedding.
"""

from __future__ import annotations

import abc
import io
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.jobs.errors import PipelineError

BATCH_ROWS = 8192
_HEADER_BYTES = 1 << 16
_NO_COLUMNS = pa.schema([])
_BFLOAT16 = np.dtype("V2")  # as numpy writes it

# FAISS's own serialisation of float Flat indexes (index_write.cpp): fourcc, d, number of vectors, two numbers that are
# not used, whether it is trained, metric; then the length of the data, in numbers of 4 bytes.
_FAISS_FLAT = (b"IxF2", b"IxFI", b"IxFl")
_FAISS_WITH_IDS = (b"IxMp", b"IxM2")
_FAISS_HEAD = struct.Struct("<4siqqq?i")
_LENGTH = struct.Struct("<Q")


class Batch(NamedTuple):
    """Some rows of a file, one after the other.

    Attributes
    ----------
    first : int
        The first of them.
    embeddings : ndarray of float, shape (R, D)
    columns : pyarrow.Table
        Their other columns, R rows.
    faults : dict of int to str
        By the place in the batch: why there is no embedding. The numbers of such a row mean nothing.
    """

    first: int
    embeddings: NDArray[np.floating[Any]]
    columns: pa.Table
    faults: dict[int, str]


class EmbeddingFile(abc.ABC):
    """A file of embeddings. Not to be used by two threads at once.

    Attributes
    ----------
    rows, dims : int
    schema : pyarrow.Schema
        Of the columns beside the embeddings.
    ends : ndarray of int64
        The rows after which it is well to divide the file, the last row among them; empty if it is all the same.
    """

    rows: int
    dims: int
    schema: pa.Schema = _NO_COLUMNS
    ends: NDArray[np.int64] = np.empty(0, np.int64)

    @abc.abstractmethod
    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """Read rows `start` to `stop`, in batches."""

    def close(self) -> None:  # noqa: B027 - most keep nothing open
        """Close what is open."""


@dataclass(slots=True)
class PlainRows(EmbeddingFile):
    """Rows of numbers, one after the other, from a byte of a file on; of a local file they are mapped."""

    uri: str
    dtype: np.dtype[Any]
    rows: int
    dims: int
    offset: int
    schema: pa.Schema = _NO_COLUMNS
    ids: NDArray[np.int64] | None = None
    ends: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """Read rows `start` to `stop`, in batches."""
        mapped_ND = self._mapped()
        for first in range(start, stop, BATCH_ROWS):
            last = min(first + BATCH_ROWS, stop)
            rows_RD = self._read(first, last) if mapped_ND is None else mapped_ND[first:last]
            if self.dtype.kind == "V":
                rows_RD = _widened(rows_RD)
            ids = {} if self.ids is None else {"id": self.ids[first:last]}
            columns = pa.table(ids) if ids else pa.table({"": pa.nulls(last - first)}).select([])
            yield Batch(first, rows_RD, columns, {})

    def _mapped(self) -> NDArray[Any] | None:
        local = open_place(self.uri).local
        if local is None or not self.rows:
            return None
        return np.memmap(local, self.dtype, "r", self.offset, (self.rows, self.dims))

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        size = self.dims * self.dtype.itemsize
        data = open_place(self.uri).read_range("", self.offset + start * size, self.offset + stop * size)
        if len(data) != (stop - start) * size:
            raise OSError(f"{without_credentials(self.uri)} is truncated: expected {self.rows} rows of {size} bytes")
        return np.frombuffer(data, self.dtype).reshape(-1, self.dims)


def _widened(rows_RD: NDArray[Any]) -> NDArray[np.float32]:
    """Return numbers of bfloat16, which numpy writes as two bytes of no kind, in single precision."""
    halves_RD = np.ascontiguousarray(rows_RD).view("<u2").astype(np.uint32)
    return np.asarray((halves_RD << np.uint32(16)).view(np.float32))


def open_npy(uri: str) -> PlainRows:
    """Open a file of numpy with an array (N, D) of float16, float32, float64, or bfloat16 (written as `V2`).

    Raises
    ------
    PipelineError
        If it is something else.
    """
    where = without_credentials(uri)
    head = io.BytesIO(_head(uri))
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(head)
    except Exception as error:  # numpy parses it as Python, and passes on SyntaxError, TokenError and others
        raise PipelineError(f"{where} is not a readable .npy file: {type(error).__name__}: {error}") from error
    is_float = dtype.kind == "f" and dtype.itemsize <= 8
    is_matrix = len(shape) == 2 and shape[0] >= 0 and shape[1] > 0
    if not is_matrix or is_fortran or not (is_float or dtype == _BFLOAT16):
        order = ", column by column" if is_fortran else ""
        raise PipelineError(
            f"{where} holds {dtype} of shape {shape}{order}: expected embeddings as rows of float16, float32, float64 "
            "or bfloat16, shape (N, D)"
        )
    _refuse_truncated(uri, head.tell() + math.prod(shape) * dtype.itemsize)
    return PlainRows(uri, dtype, shape[0], shape[1], head.tell())


def open_faiss(uri: str) -> PlainRows:
    """Open an index of FAISS that keeps its vectors as they are: IndexFlat, or an IndexIDMap over one.

    Raises
    ------
    PipelineError
        If it is something else.
    """
    where = without_credentials(uri)
    head = _head(uri)
    has_ids = head[:4] in _FAISS_WITH_IDS
    try:
        outer = _faiss_head(head, 0) if has_ids else None
        start = 0 if outer is None else outer[2]
        dims, rows, place = _faiss_head(head, start)
        if head[start : start + 4] not in _FAISS_FLAT:
            raise ValueError(f"it is of kind {head[start : start + 4]!r}")
        (length,) = _LENGTH.unpack_from(head, place)
        offset = place + _LENGTH.size
        if dims < 1 or rows < 0 or length != rows * dims:
            raise ValueError(f"{rows} vectors of {dims} numbers in {length}")
    except (ValueError, struct.error) as error:
        raise PipelineError(
            f"{where} is not an index of FAISS whose vectors can be read ({error}): expected IndexFlatL2 or "
            "IndexFlatIP, or IndexIDMap over one; reconstruct the vectors of others and save them with numpy"
        ) from error
    end = offset + rows * dims * 4
    _refuse_truncated(uri, end)
    ids, schema = None, _NO_COLUMNS
    if has_ids:
        ids, schema = _faiss_ids(uri, end, rows), pa.schema({"id": pa.int64()})
    return PlainRows(uri, np.dtype("<f4"), rows, dims, offset, schema, ids)


def _faiss_head(head: bytes, start: int) -> tuple[int, int, int]:
    """Return dimensions, number of vectors, and where the header of an index ends."""
    _, dims, rows, _, _, _, metric = _FAISS_HEAD.unpack_from(head, start)
    # Metrics other than the inner product and L2 have an argument.
    return dims, rows, start + _FAISS_HEAD.size + (4 if metric > 1 else 0)


def _faiss_ids(uri: str, start: int, rows: int) -> NDArray[np.int64]:
    data = open_place(uri).read_range("", start, start + _LENGTH.size + 8 * rows)
    if len(data) != _LENGTH.size + 8 * rows or _LENGTH.unpack_from(data)[0] != rows:
        raise PipelineError(f"{without_credentials(uri)} is truncated: expected {rows} ids at its end")
    return np.frombuffer(data, "<i8", offset=_LENGTH.size).astype(np.int64)


def _head(uri: str) -> bytes:
    try:
        return open_place(uri).read_range("", 0, _HEADER_BYTES)
    except OSError as error:
        raise PipelineError(f"{without_credentials(uri)} cannot be read: {error}") from error


def _refuse_truncated(uri: str, num_bytes: int) -> None:
    entry = open_place(uri).entry()
    if entry is not None and entry.size < num_bytes:
        raise PipelineError(
            f"{without_credentials(uri)} is truncated: expected {num_bytes:,} bytes, got {entry.size:,}"
        )
