"""IDX files, MNIST's format: big-endian headers, then the values row by row; plain or gzipped."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from hashlight.engine.places.buckets import split_options
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.reads import RetryingFile

SUFFIXES = ("-ubyte", "-ubyte.gz", ".idx", ".idx.gz")
_UNSIGNED_BYTES = 8
_BUFFER_BYTES = 1 << 20


def is_idx(name: str) -> bool:
    """Whether a file's name is that of an IDX file."""
    return name.endswith(SUFFIXES)


def labels_name(name: str) -> str:
    """Return the name of the labels that belong to an IDX file of images: `X-labels-idx1-ubyte`."""
    return name.replace("-images-idx3-", "-labels-idx1-")


def read_header(uri: str) -> tuple[int, ...]:
    """Return the shape of an IDX file of unsigned bytes.

    Raises
    ------
    PipelineError
        If it is none.
    """
    with _open(uri) as file:
        return _header(file, uri)


def read_rows(uri: str, start: int, stop: int) -> np.ndarray:
    """Read rows `start` to `stop` (exclusive) of an IDX file, uint8 of shape (stop - start, ...)."""
    with _open(uri) as file:
        shape = _header(file, uri)
        size = math.prod(shape[1:])
        _skip(file, start * size)
        data = file.read((stop - start) * size)
    if len(data) != (stop - start) * size:
        raise OSError(f"{uri} is truncated: expected {shape[0]} rows of {size} bytes")
    return np.frombuffer(data, np.uint8).reshape(stop - start, *shape[1:])


def as_png(pixels: np.ndarray) -> bytes:
    """Wrap the pixels of a row (H, W) or (H, W, 3) as a PNG, uncompressed, so that they pass as any image's file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _header(file: Any, uri: str) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTES or not 1 <= magic[3] <= 4:
        raise PipelineError(f"{uri} is no IDX file of unsigned bytes: its first bytes are {magic.hex()}")
    rank = magic[3]
    return struct.unpack(f">{rank}I", file.read(4 * rank))


def _skip(file: Any, num_bytes: int) -> None:
    if file.seekable():
        file.seek(num_bytes, io.SEEK_CUR)
        return
    while num_bytes:
        num_bytes -= len(file.read(min(num_bytes, 1 << 20))) or num_bytes


@contextlib.contextmanager
def _open(uri: str) -> Iterator[Any]:
    with io.BufferedReader(RetryingFile(uri), _BUFFER_BYTES) as file:
        if split_options(uri)[0].endswith(".gz"):
            with gzip.open(file) as plain:
                yield plain
        else:
            yield file
