"""Arrays in files: written by ordinary writes, and read through memory maps that hold no file descriptor.

An ordinary write fails with an error on a full disk; a store through a memory map kills the process (SIGBUS).
"""

from __future__ import annotations

import ctypes
import math
import mmap
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from hashlight.engine.errors import CorruptDataError

_MAGIC = b"\x93NUMPY\x01\x00"
_SIZES = len(_MAGIC) + 2  # of magic bytes, version, and the header's length
_HEADER = re.compile(rb"\{'descr': '([<|]\w\d+)', 'fortran_order': False, 'shape': \((\d+(?:, \d+)*),?\), \} *\n")
HEADER_BYTES = 4096  # a header takes 128

_REMEDY = "restore it from a copy, or build the collection again"


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array as a new `.npy` file, byte for byte as `numpy.save` does."""
    write_parts(path, [array], array.dtype, array.shape)


def write_parts(path: Path, parts: Iterable[NDArray[Any]], dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    """Write an array of which one part after another is at hand as a new `.npy` file.

    Parameters
    ----------
    path : Path
    parts : iterable of ndarray
        Concatenated along the first axis, they are the array.
    dtype : dtype
    shape : tuple of int
        Of the whole array.

    Raises
    ------
    OSError
        If the disk is full, for instance. `numpy.save` would not say why, and would not notice at all if only the last
        few bytes did not fit.
    """
    head = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    try:
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, head)
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype).data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def map_file(path: Path, *, at_random: bool = False) -> pa.Buffer:
    """Map a file into memory, read-only. The map lasts as long as the buffer, and holds no file descriptor.

    Parameters
    ----------
    path : Path
    at_random : bool
        Advise the kernel of reads at random. By default a page fault also reads up to 128 KiB of neighbours, but
        probes of a table need one page each. On a billion codes, larger than memory, the neighbours evicted needed
        pages, and a warm query took 15 ms instead of under one.
    """
    with pa.memory_map(str(path)) as file:
        buffer = file.read_buffer()
    if at_random and buffer.size:
        _madvise(buffer.address, buffer.size, mmap.MADV_RANDOM)
    return buffer


def map_array(path: Path, dtype: DTypeLike, shape: tuple[int | None, ...], *, at_random: bool = False) -> NDArray[Any]:
    """Map the array of a `.npy` file, read-only; see `map_file` and `parse_array`."""
    try:
        data = map_file(path, at_random=at_random)
    except FileNotFoundError as error:
        raise CorruptDataError(f"{path} is missing: {_REMEDY}") from error
    return parse_array(path, data, dtype, shape)


def parse_array(name: object, data: pa.Buffer | bytes, dtype: DTypeLike, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """View the contents of a `.npy` file as an array, read-only. Nothing in its header is trusted or evaluated.

    Parameters
    ----------
    name : object
        The file's, for messages.
    data : pyarrow.Buffer or bytes
    dtype : dtype
    shape : tuple of int or None
        What is expected; None stands for any length.

    Raises
    ------
    CorruptDataError
        If it is not such an array.
    """
    dtype = np.dtype(dtype)
    stored, got, start = parse_header(name, bytes(memoryview(data)[:HEADER_BYTES]))
    num_bytes = len(memoryview(data)) - start
    same = len(got) == len(shape) and all(want in (None, length) for want, length in zip(shape, got, strict=True))
    if stored != dtype.str or not same or math.prod(got) * dtype.itemsize != num_bytes:
        raise CorruptDataError(
            f"{name}: expected {dtype} of shape {_text(shape)}, got {stored} of shape {_text(got)} in {num_bytes} "
            f"bytes: {_REMEDY}"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(got)


def parse_header(name: object, head: bytes) -> tuple[str, tuple[int, ...], int]:
    """Return the type and the shape that a `.npy` file has, and where its data begins, from its first `HEADER_BYTES`.

    Raises
    ------
    CorruptDataError
        If it does not begin as a `.npy` file does.
    """
    start = _SIZES + int.from_bytes(head[_SIZES - 2 : _SIZES], "little")
    found = _HEADER.fullmatch(head, _SIZES, start) if head.startswith(_MAGIC) and start <= len(head) else None
    if found is None:
        raise CorruptDataError(f"{name} does not begin as a .npy file of numbers does: {_REMEDY}")
    return found[1].decode(), tuple(int(length) for length in found[2].split(b", ")), start


def _text(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('any' if length is None else str(length) for length in shape)})"


def _madvise(address: int, size: int, advice: int) -> None:
    """Give the kernel advice on a map. Python's own `mmap` would do, but holds a file descriptor for each map."""
    ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice)
