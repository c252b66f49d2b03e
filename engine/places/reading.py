"""Reading: whole local files, any file at any position, and many reads in parallel."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from hashlight.engine.places.failures import NoFileError, TooManyBytesError, retried

# A request to a store takes some 30 ms whatever its size, so many must run in parallel.
STORE_READS = 16
_BLOCK_BYTES = 1 << 20

T = TypeVar("T")
R = TypeVar("R")


def read_local(path: str, max_bytes: int | None) -> bytes:
    """Read a whole local file, without retries.

    Raises
    ------
    OSError
        If it does not exist, is not a file, or may not be read.
    TooManyBytesError
        If it has more than `max_bytes` bytes.
    """
    # Opening a pipe would block until it has a writer.
    about = os.stat(path)
    _refuse_others(about, path)
    refuse_more(about.st_size, max_bytes)
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def open_local(path: str) -> io.FileIO:
    """Open a local file; errors as of `read_local`. A pipe is refused at once, and a device, which may never end."""
    file = io.FileIO(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))
    try:
        _refuse_others(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


def _refuse_others(about: os.stat_result, path: str) -> None:
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(about.st_mode):
        raise NoFileError(f"{path} is not a file")


def read_blocks(stream: Any, max_bytes: int | None) -> bytes:
    """Read a stream to its end, but at most one block beyond `max_bytes` bytes."""
    blocks, total = [], 0
    while block := stream.read(_BLOCK_BYTES):
        blocks.append(block)
        total += len(block)
        refuse_more(total, max_bytes)
    return b"".join(blocks)


def refuse_more(num_bytes: int, max_bytes: int | None) -> None:
    """Raise TooManyBytesError if there are more bytes than allowed."""
    if max_bytes is not None and num_bytes > max_bytes:
        raise TooManyBytesError(f"too many bytes: above {max_bytes:,}")


class RetryingFile(io.RawIOBase):
    """A file in any place, readable at any position; after a temporary failure it is reopened and read again.

    So a reader can tell a damaged file from a failing store: the latter raises `ReadFailedError`.

    Parameters
    ----------
    opener : callable
        Opens the file; returns an object with `read`, `seek`, `tell`, `seekable` and `close`.
    where : str
        The file's name in messages.
    retry : callable
        Called with each step and `where`, as `retried` is.
    """

    def __init__(
        self, opener: Callable[[], Any], where: str, *, retry: Callable[[Callable[[], Any], str], Any] = retried
    ) -> None:
        self._opener = opener
        self._where = where
        self._retry = retry
        self._position = 0
        self._file: Any = retry(self._open, where)

    def _open(self) -> Any:
        return self._opener()

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be read at any position."""
        return bool(self._opened().seekable())

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Set the position of the next read."""
        if whence == io.SEEK_END:
            position += self._retry(self._size, self._where)
        elif whence == io.SEEK_CUR:
            position += self._position
        self._position = position
        return position

    def _size(self) -> int:
        file = self._opened()
        file.seek(0, io.SEEK_END)
        return int(file.tell())

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes, or all the rest."""
        data: bytes = self._retry(lambda: self._read(None if size is None or size < 0 else size), self._where)
        self._position += len(data)
        return data

    def _read(self, size: int | None) -> bytes:
        file = self._opened()
        try:
            if file.tell() != self._position:
                file.seek(self._position)
            return bytes(file.read(size))
        except OSError:
            self._file = None
            with contextlib.suppress(OSError):  # the error of the read matters more
                file.close()
            raise

    def _opened(self) -> Any:
        if self._file is None:
            self._file = self._open()
        return self._file

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return the number of bytes read."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        super().close()


class RangedFile(io.RawIOBase):
    """A file of a store, read in ranges.

    Parameters
    ----------
    read_range : callable
        Returns the bytes from a start to a stop (exclusive).
    size : int
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        self._read_range = read_range
        self._size = size
        self._position = 0

    def seekable(self) -> bool:
        """Whether it can be read at any position."""
        return True

    def tell(self) -> int:
        """Return the position of the next read."""
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Set the position of the next read."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + position
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes, or all the rest."""
        left = max(self._size - self._position, 0)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        data = self._read_range(self._position, self._position + wanted)
        self._position += len(data)
        return data


def map_ahead(function: Callable[[T], R], items: Iterable[T], at_once: int = STORE_READS) -> Iterator[R]:
    """Map in order, with up to `at_once` calls running ahead of the consumer."""
    with ThreadPoolExecutor(at_once, "ahead") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Cut a stream into lists of `size`; the last may be shorter."""
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part
