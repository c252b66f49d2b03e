"""IDX files as corpora, MNIST's format: big-endian headers, then the values row by row; plain or gzipped."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import split_options, without_credentials
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.kinds.images import MAX_ENCODED_BYTES
from hashlight.pipelines.corpora.listing import (
    BASE_SCHEMA,
    CHUNK_ENTRIES,
    COLUMN_OF_LABELS,
    GROUP,
    IMAGES,
    ROW,
    SOURCE,
    STAMP,
    File,
    FileStream,
    Listing,
    entry_of,
    whole,
)
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.corpora.reasons import reworded
from hashlight.pipelines.jobs.errors import PipelineError

SUFFIXES = ("-ubyte", "-ubyte.gz", ".idx", ".idx.gz")
_UNSIGNED_BYTES = 8
_BUFFER_BYTES = 1 << 20
_READ_BYTES = 8 << 20  # of rows at a time
_DAMAGE = (OSError, EOFError, zlib.error, struct.error)


def is_idx(name: str) -> bool:
    """Whether a file's name is that of an IDX file."""
    return name.endswith(SUFFIXES)


def list_files(root: str, found: FileStream, ids: IdRule, options: CorpusOptions) -> Listing:
    """List the rows of IDX files of images; a file of labels beside one gives its rows' labels.

    Raises
    ------
    PipelineError
        If no file has images.
    """
    files = list(found())
    by_name = {file.name: file for file in files}
    ranks = {file.name: len(_read_header(file.uri)) for file in files}
    images = [file for file in files if ranks[file.name] in (3, 4)]
    if not images:
        raise PipelineError(
            f"{without_credentials(root)} has no images: expected IDX files of 3 or 4 dimensions, got shapes "
            f"{[_read_header(f.uri) for f in files]}"
        )
    labels = {file.name: _labels_of(file, by_name) for file in images}
    unused = ranks.keys() - labels.keys() - {_labels_name(file) for file in images}
    if unused:
        found.skipped["IDX files of neither images nor their labels"] += len(unused)
    schema = BASE_SCHEMA.append(pa.field(GROUP, pa.int64()))
    if any(labels.values()):
        schema = schema.append(pa.field("label", pa.int64()))

    def chunks() -> Iterator[pa.Table]:
        for file in images:
            rows = _read_header(file.uri)[0]
            for start in range(0, rows, CHUNK_ENTRIES):
                yield _entries_of(file, start, min(start + CHUNK_ENTRIES, rows), labels[file.name], schema, ids)

    labels_from = COLUMN_OF_LABELS if any(labels.values()) else None
    return Listing(root, IMAGES, schema, whole(chunks), found.skipped, labels_from=labels_from)


def _entries_of(file: File, start: int, stop: int, labels: str | None, schema: pa.Schema, ids: IdRule) -> pa.Table:
    base = without_credentials(file.uri)
    uris = [f"{base}#{row}" for row in range(start, stop)]
    columns: dict[str, Any] = {
        "id": ids.ids_of((f"{file.name}#{row}" for row in range(start, stop)), uris),
        "uri": uris,
        SOURCE: [file.uri] * (stop - start),
        ROW: np.arange(start, stop),
        STAMP: [file.stamp] * (stop - start),
        GROUP: np.full(stop - start, 0 if _is_gzipped(file.uri) else -1),
    }
    if "label" in schema.names:
        columns["label"] = _read_values(labels, start, stop).astype(np.int64) if labels else [None] * (stop - start)
    return pa.table(columns, schema)


def _labels_of(file: File, by_name: dict[str, File]) -> str | None:
    """Return the URI of the labels beside a file of images, whether or not the corpus names them."""
    name = _labels_name(file)
    if name is None:
        return None
    if name in by_name:
        return by_name[name].uri
    base, options = split_options(file.uri)
    uri = f"{base.removesuffix(file.name)}{name}{options}"
    beside = entry_of(uri)
    return uri if beside and not beside.is_folder else None


def _labels_name(file: File) -> str | None:
    name = file.name.replace("-images-idx3-", "-labels-idx1-")
    return None if name == file.name else name


class RowReader:
    """Reads images by their rows. A gzipped file can only be read from its start: it is read on, not again."""

    def __init__(self) -> None:
        self._opened = contextlib.ExitStack()
        self._source = ""
        self._file: Any = None
        self._shape: tuple[int, ...] = ()
        self._row = 0

    def close(self) -> None:
        """Close the file that is open."""
        self._source = ""
        self._opened.close()

    def read(self, source: str, rows: np.ndarray) -> Iterator[bytes | OSError]:
        """Read ascending rows of a file as encoded images, some adjacent rows at a time."""
        for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            first, stop = int(run[0]), int(run[-1]) + 1
            while first < stop:
                try:
                    self._go_to(source, first)
                    last = min(stop, first + max(1, _READ_BYTES // math.prod(self._shape[1:])))
                    pixels = self.read_values(source, first, last)
                except ReadFailedError:
                    raise
                except (*_DAMAGE, PipelineError) as error:
                    yield from [reworded(error, str(error))] * (stop - first)
                    break
                yield from map(as_png, pixels)
                first = last

    def read_values(self, source: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Read rows `start` to `stop` (exclusive) of a file, uint8 of shape (stop - start, ...)."""
        self._go_to(source, start)
        # Until the rows are read, the file's position is not known.
        self._source = ""
        size = math.prod(self._shape[1:])
        _skip(self._file, (start - self._row) * size)
        data = self._file.read((stop - start) * size)
        if len(data) != (stop - start) * size:
            raise OSError(f"{without_credentials(source)} is truncated: expected {self._shape[0]} rows of {size} bytes")
        self._source, self._row = source, stop
        return np.frombuffer(data, np.uint8).reshape(stop - start, *self._shape[1:])

    def _go_to(self, source: str, start: int) -> None:
        """Open a file whose rows are to be read from `start` on, unless it is open and was not read beyond."""
        if source != self._source or start < self._row:
            self.close()
            self._file = self._opened.enter_context(_open(source))
            self._shape, self._row = _header(self._file, source), 0
            self._source = source


def as_png(pixels: np.ndarray) -> bytes:
    """Wrap the pixels of a row, (H, W) or (H, W, 2 to 4), as an uncompressed PNG, to be read like any image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def _is_gzipped(uri: str) -> bool:
    return without_credentials(uri).endswith(".gz")


def _read_header(uri: str) -> tuple[int, ...]:
    """Return the shape of an IDX file of unsigned bytes; PipelineError if it is something else."""
    with _readable(uri), _open(uri) as file:
        return _header(file, uri)


def _read_values(uri: str, start: int, stop: int) -> NDArray[np.uint8]:
    reader = RowReader()
    with _readable(uri), contextlib.closing(reader):
        return reader.read_values(uri, start, stop)


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    try:
        yield
    except ReadFailedError:
        raise
    except _DAMAGE as error:
        raise PipelineError(f"{without_credentials(uri)} cannot be read: {error}") from error


def _header(file: Any, uri: str) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTES or not 1 <= magic[3] <= 4:
        raise PipelineError(
            f"{without_credentials(uri)} is not an IDX file of unsigned bytes: its first bytes are {magic.hex()}"
        )
    rank = magic[3]
    shape = struct.unpack(f">{rank}I", file.read(4 * rank))
    if not 1 <= math.prod(shape[1:]) <= MAX_ENCODED_BYTES or (rank == 4 and not 2 <= shape[3] <= 4):
        raise PipelineError(
            f"{without_credentials(uri)} has the shape {shape}: expected rows of 1 to {MAX_ENCODED_BYTES:,} bytes, and "
            "2 to 4 channels if there are 4 dimensions"
        )
    return shape


def _skip(file: Any, num_bytes: int) -> None:
    if file.seekable():
        file.seek(num_bytes, io.SEEK_CUR)
        return
    while num_bytes:
        num_bytes -= len(file.read(min(num_bytes, 1 << 20))) or num_bytes


@contextlib.contextmanager
def _open(uri: str) -> Iterator[Any]:
    with io.BufferedReader(open_place(uri).open(), _BUFFER_BYTES) as file:
        if _is_gzipped(uri):
            with gzip.open(file) as plain:
                yield plain
        else:
            yield file
