"""Reading files wherever they are; a read that fails for a moment is made again."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from hashlight.engine.places.buckets import split_options
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.filesystems import is_local, local_filesystem, normalise, open_filesystem

READ_TRIES = 3
_FIRST_WAIT_S = 0.5
# A GET of an object store takes some 30 ms whatever its size, so that many must be under way at once.
STORE_READS = 16
_BLOCK_BYTES = 1 << 20

T, R = TypeVar("T"), TypeVar("R")


class TooManyBytesError(OSError):
    """A file is larger than what is read of one."""


class NoFileError(OSError):
    """What a name stands for is no file: a folder, a device, a pipe."""


class ReadFailedError(PipelineError, OSError):
    """A read failed for a reason that may be gone later, and did so at every try."""


# What these say of a file holds as long as the file is as it is.
_LASTING_ERRORS = (
    FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, TooManyBytesError, NoFileError
)  # fmt: skip
_LASTING_NUMBERS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}
# Arrow's S3 client raises a plain OSError, whose message has the code.
_LASTING_CODES = ("ACCESS_DENIED", "Access Denied")


def retried(read: Callable[[], T], uri: str) -> T:
    """Return what `read` does; where it fails for a moment it is called again.

    Raises
    ------
    OSError
        If the file is not there, is none, or may not be read.
    ReadFailedError
        If it failed every time.
    """
    for attempt in range(1, READ_TRIES + 1):
        try:
            return read()
        except OSError as error:
            if _is_lasting(error):
                raise
            if attempt == READ_TRIES:
                raise ReadFailedError(
                    f"{split_options(uri)[0]} cannot be read at this moment, after {READ_TRIES} tries: {error}"
                ) from error
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
    raise AssertionError("the last try returns or raises")


def _is_lasting(error: OSError) -> bool:
    return (
        isinstance(error, _LASTING_ERRORS)
        or error.errno in _LASTING_NUMBERS
        or (error.errno is None and any(code in str(error) for code in _LASTING_CODES))
    )


def read_bytes(uri: str, *, most: int | None = None) -> bytes:
    """Read a whole file; where that fails for a moment it is tried again.

    Raises
    ------
    OSError
        If it is not there, is none, may not be read, or has more than `most` bytes.
    ReadFailedError
        If reading it failed at every try.
    """
    return retried(lambda: _read_local(uri, most) if is_local(uri) else _read_elsewhere(uri, most), uri)


def _read_local(path: str, most: int | None) -> bytes:
    # A pipe would be waited for when it is opened.
    about = os.stat(path)
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(about.st_mode):
        raise NoFileError(f"{path} is no file")
    _refuse_more(about.st_size, most)
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _read_elsewhere(uri: str, most: int | None) -> bytes:
    filesystem, path = open_filesystem(uri)
    if isinstance(filesystem, pafs.PyFileSystem):
        # Of a web server's file the size may be unknown until it is read.
        with filesystem.open_input_stream(path, compression=None) as stream:
            return _read_blocks(stream, most)
    with filesystem.open_input_file(path) as file:
        _refuse_more(file.size(), most)
        return bytes(file.read())


def _read_blocks(stream: pa.NativeFile, most: int | None) -> bytes:
    blocks, total = [], 0
    while block := stream.read(_BLOCK_BYTES):
        blocks.append(block)
        total += len(block)
        _refuse_more(total, most)
    return b"".join(blocks)


def _refuse_more(num_bytes: int, most: int | None) -> None:
    if most is not None and num_bytes > most:
        raise TooManyBytesError(f"too many bytes: above {most:,}")


class RetryingFile(io.RawIOBase):
    """A file anywhere, read at any place; where a read fails for a moment, the file is opened anew and read again.

    So that whoever reads it can tell a damaged file from a store that fails: the latter is a `ReadFailedError`.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._place = 0
        self._file: Any = retried(self._open, uri)

    def _open(self) -> Any:
        return open(self._uri, "rb", buffering=0) if is_local(self._uri) else open_file(self._uri)

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read at any place."""
        return bool(self._opened().seekable())

    def tell(self) -> int:
        """Return the place of the next read."""
        return self._place

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Set the place of the next read."""
        if whence == io.SEEK_END:
            place += retried(self._size, self._uri)
        elif whence == io.SEEK_CUR:
            place += self._place
        self._place = place
        return place

    def _size(self) -> int:
        file = self._opened()
        file.seek(0, io.SEEK_END)
        return int(file.tell())

    def read(self, size: int | None = -1) -> bytes:
        """Read so many bytes, or all that are left."""
        data = retried(lambda: self._read(None if size is None or size < 0 else size), self._uri)
        self._place += len(data)
        return data

    def _read(self, size: int | None) -> bytes:
        file = self._opened()
        try:
            if file.tell() != self._place:
                file.seek(self._place)
            return bytes(file.read(size))
        except OSError:
            self._file = None
            with contextlib.suppress(OSError):  # that it failed is known
                file.close()
            raise

    def _opened(self) -> Any:
        if self._file is None:
            self._file = self._open()
        return self._file

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return how many bytes there were."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        super().close()


def map_ahead(function: Callable[[T], R], items: Iterable[T], most: int = STORE_READS) -> Iterator[R]:
    """Map in order, with up to `most` calls under way at once, ahead of what was asked for."""
    with ThreadPoolExecutor(most, "ahead") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def open_stream(uri: str) -> pa.NativeFile:
    """Open a file to be read from its start to its end, as the bytes that it has."""
    filesystem, path = open_filesystem(uri)
    return filesystem.open_input_stream(path, compression=None)


def open_file(uri: str) -> pa.NativeFile:
    """Open a file to be read at any place."""
    filesystem, path = open_filesystem(uri)
    return filesystem.open_input_file(path)


def copy_file(uri: str | Path, path: Path) -> None:
    """Copy a file from anywhere to a local path."""
    filesystem, source = open_filesystem(normalise(uri))
    pafs.copy_files(source, str(path), source_filesystem=filesystem, destination_filesystem=local_filesystem())
