"""Where files are: the local file system, or any store that `pyarrow.fs` or `fsspec` reaches, by URI.

`s3://BUCKET/KEY` is found as the AWS tools find it (`AWS_ENDPOINT_URL`, `AWS_REGION`, credentials from the
environment, files or the machine); options may also stand in the query of a corpus's or an output's URI, for example
`s3://bucket/photos?endpoint_override=HOST:PORT&scheme=http`.

An `OutputFolder` publishes: a file there is whole or absent. Locally it is written aside, forced to the disk and
renamed; a store's own put is whole by itself, and a killed upload leaves nothing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import stat
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.core import url_to_fs

from engine.storage.files import aside_of, remove_leftovers, sync_file, sync_folder, writer_lock
from pipelines import chaos
from pipelines.errors import PipelineError

READ_TRIES = 3
_FIRST_WAIT_S = 0.5
_LIST_PAGE = 1000
# A GET of an object store takes some 30 ms whatever its size, so that many must be under way at once.
_STORE_READS = 16
_BLOCK_BYTES = 1 << 20

T, R = TypeVar("T"), TypeVar("R")

_URI = re.compile(
    r"^([a-zA-Z][a-zA-Z0-9+.-]+)://([^/?]*)([^\0]*?)(\?(?:endpoint_override|region|scheme|anonymous)=.*)?$"
)
_BUCKET_SCHEMES = {"s3", "gs", "gcs"}
_ARROW_SCHEMES = {"abfs", "abfss", "hdfs", "viewfs"}


def is_local(uri: str) -> bool:
    """Whether a URI is a path of the local file system."""
    return "://" not in uri


def normalise(place: str | Path) -> str:
    """Return an absolute path, or the URI of a place elsewhere, without a slash at the end."""
    text = str(place)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return str(Path(text).resolve()) if is_local(text) else text.rstrip("/")


def split_options(uri: str) -> tuple[str, str]:
    """Split a URI into itself and the options in its query (with the `?`), which belong to the store."""
    match = None if is_local(uri) else _URI.match(uri)
    options = (match[4] or "") if match else ""
    return uri.removesuffix(options) if options else uri, options


def split_name(uri: str) -> tuple[str, str]:
    """Split the path or URI of a file into that of its folder and the file's name."""
    base, options = split_options(uri)
    folder, _, name = base.rpartition("/")
    return folder + options, name


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a path or URI, and the path in it.

    Raises
    ------
    PipelineError
        If no file system is known for it.
    """
    if is_local(uri):
        return _local(), uri
    match = _URI.match(uri)
    if match is None:
        raise PipelineError(f"{uri} is no URI: expected a path or SCHEME://PLACE/NAME, for example s3://bucket/photos")
    scheme, place, path, options = match.groups()
    if scheme in _BUCKET_SCHEMES:
        return _bucket_filesystem(scheme, place, options or ""), (place + path).rstrip("/")
    try:
        if scheme in _ARROW_SCHEMES:
            return pafs.FileSystem.from_uri(uri)
        filesystem, inner = url_to_fs(uri)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), inner
    except (pa.ArrowException, ValueError, ImportError) as error:
        raise PipelineError(f"{uri}: no file system for {scheme}://: {error}") from error


@functools.cache
def _local() -> pafs.LocalFileSystem:
    return pafs.LocalFileSystem()


@functools.lru_cache(32)
def _bucket_filesystem(scheme: str, bucket: str, options: str) -> pafs.FileSystem:
    if scheme == "s3" and not options:
        # Arrow's own client does not look at the variables that every other client of S3 follows.
        endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
        return pafs.S3FileSystem(endpoint_override=endpoint.netloc or None, scheme=endpoint.scheme or None)
    return pafs.FileSystem.from_uri(f"{scheme}://{bucket}{options}")[0]


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
_LASTING_NUMBERS = {errno.ENAMETOOLONG, errno.ELOOP}


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
            if isinstance(error, _LASTING_ERRORS) or error.errno in _LASTING_NUMBERS:
                raise
            if attempt == READ_TRIES:
                raise ReadFailedError(
                    f"{split_options(uri)[0]} cannot be read at this moment, after {READ_TRIES} tries: {error}"
                ) from error
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
    raise AssertionError("the last try returns or raises")


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
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb", buffering=0) as file:
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(about.st_mode):
            raise NoFileError(f"{path} is no file")
        _refuse_more(about.st_size, most)
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


def map_ahead(function: Callable[[T], R], items: Iterable[T], most: int = _STORE_READS) -> Iterator[R]:
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
    pafs.copy_files(source, str(path), source_filesystem=filesystem, destination_filesystem=_local())


class OutputFolder:
    """A folder that a job writes: a local one, or a prefix in a store. Names are relative, with `/`."""

    def __init__(self, place: str | Path) -> None:
        self.uri = normalise(place)
        self._filesystem, self._base = open_filesystem(self.uri)

    def __str__(self) -> str:
        """Return the path or URI."""
        return split_options(self.uri)[0]

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine (or one mounted in it)."""
        return is_local(self.uri)

    def path(self, name: str) -> str:
        """Return what users find a file by."""
        return f"{self}/{name}"

    def uri_of(self, name: str) -> str:
        """Return the path or URI by which `open_file` and `read_bytes` find a file."""
        base, options = split_options(self.uri)
        return f"{base}/{name}{options}"

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return self._filesystem.get_file_info(self._at(name)).type == pafs.FileType.File

    def read(self, name: str) -> bytes:
        """Read a whole file."""
        return read_bytes(self.uri_of(name))

    def read_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read whole files in order; of a store several at once."""
        return map_ahead(self.read, names, 1 if self.is_local else _STORE_READS)

    def open(self, name: str) -> pa.NativeFile:
        """Open a file to be read at any place."""
        return self._filesystem.open_input_file(self._at(name))

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the visible files and folders in a folder, sorted; none if it is not there."""
        selector = pafs.FileSelector(self._at(folder), allow_not_found=True)
        infos = self._filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if not info.base_name.startswith("."))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of the files in a folder, by name; none if it is not there."""
        selector = pafs.FileSelector(self._at(folder), allow_not_found=True)
        return {info.base_name: info.size for info in self._filesystem.get_file_info(selector) if info.is_file}

    def put(self, name: str, data: bytes) -> None:
        """Publish a file, in the place of one that is there."""
        self._put(name, data, only_new=False)

    def note(self, name: str, data: bytes) -> None:
        """Write a file that is of use only as long as this machine runs: a local one is not forced to the disk."""
        if not self.is_local:
            self._put(name, data, only_new=False)
            return
        path = Path(self._at(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = aside_of(path)
        aside.write_bytes(data)
        aside.replace(path)

    def put_new(self, name: str, data: bytes) -> bool:
        """Publish a file unless there is one; return whether it was published.

        Exact on a local file system and on S3 (a conditional put); on other stores, of two that publish in the same
        instant both may.
        """
        return self._put(name, data, only_new=True)

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """Yield a local path to write a large file at, for `put_file`; it is gone when the context ends."""
        if self.is_local:
            folder = Path(self._base)
            folder.mkdir(parents=True, exist_ok=True)
            aside = aside_of(folder / name)
            try:
                yield aside
            finally:
                aside.unlink(missing_ok=True)
        else:
            with tempfile.TemporaryDirectory(prefix="hashlight-") as folder_name:
                yield Path(folder_name) / name

    def put_file(self, name: str, path: Path) -> None:
        """Publish a file that was written at a `scratch` path."""
        chaos.step("aside", name)
        if self.is_local:
            sync_file(path)
            path.replace(self._at(name))
            sync_folder(Path(self._base))
        else:
            pafs.copy_files(str(path), self._at(name), destination_filesystem=self._filesystem)
        chaos.step("published", name)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, if it is there."""
        kind = self._filesystem.get_file_info(self._at(name)).type
        if kind == pafs.FileType.File:
            self._filesystem.delete_file(self._at(name))
        elif kind == pafs.FileType.Directory:
            self._filesystem.delete_dir(self._at(name))

    def remove_leftovers(self, folder: str) -> None:
        """Remove what killed processes wrote aside in a local folder; in a store nothing is."""
        if self.is_local:
            remove_leftovers(Path(self._at(folder)))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold a local folder for one writer; in a store, where nothing is held, puts are conditional instead."""
        if self.is_local:
            Path(self._base).mkdir(parents=True, exist_ok=True)
            with writer_lock(Path(self._base)):
                yield
        else:
            yield

    def _at(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    def _put(self, name: str, data: bytes, *, only_new: bool) -> bool:
        if self.is_local:
            return _put_local(Path(self._at(name)), data, only_new=only_new)
        chaos.step("aside", name)
        if only_new and self.uri.startswith("s3://"):
            return _put_new_in_s3(self.uri, name, data)
        if only_new and self.exists(name):
            return False
        if _URI.match(self.uri)[1] not in _BUCKET_SCHEMES:
            self._filesystem.create_dir(self._at(name).rpartition("/")[0], recursive=True)
        with self._filesystem.open_output_stream(self._at(name), compression=None) as file:
            file.write(data)
        chaos.step("published", name)
        return True


def _put_local(path: Path, data: bytes, *, only_new: bool) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            chaos.step("aside", path.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not _rename(aside, path, only_new=only_new):
            return False
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)
    chaos.step("published", path.name)
    return True


def _rename(aside: Path, path: Path, *, only_new: bool) -> bool:
    if not only_new:
        aside.replace(path)
        return True
    try:
        # A link is refused where a name is taken; a rename would replace it.
        os.link(aside, path)
    except FileExistsError:
        return False
    return True


def _put_new_in_s3(uri: str, name: str, data: bytes) -> bool:
    from botocore.exceptions import ClientError

    base, options = split_options(uri)
    bucket, _, prefix = base.removeprefix("s3://").partition("/")
    try:
        _s3_client(options).put_object(
            Bucket=bucket, Key=f"{prefix}/{name}" if prefix else name, Body=data, IfNoneMatch="*"
        )
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
            raise OSError(f"{base}/{name} cannot be written: {error}") from error
        # The client repeats a put whose answer was lost, and is refused if the first one had succeeded.
        if read_bytes(f"{base}/{name}{options}") != data:
            return False
    chaos.step("published", name)
    return True


def list_s3(uri: str) -> Iterator[tuple[str, int, int]]:
    """List the objects under a prefix, a page at a time, in the order of their keys: (URI, bytes, time in s).

    `pyarrow.fs` returns a listing as a whole, which does not fit for a bucket of millions.
    """
    base, options = split_options(uri)
    bucket, _, prefix = base.removeprefix("s3://").partition("/")
    pages = _s3_client(options).get_paginator("list_objects_v2")
    for page in pages.paginate(
        Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", PaginationConfig={"PageSize": _LIST_PAGE}
    ):
        for item in page.get("Contents", ()):
            yield f"s3://{bucket}/{item['Key']}", item["Size"], int(item["LastModified"].timestamp())


@functools.lru_cache(8)
def _s3_client(options: str) -> Any:
    """Return boto3's client, for what `pyarrow.fs` cannot: pages of a listing, and conditional puts."""
    try:
        import boto3
    except ImportError as error:
        raise PipelineError("S3 needs boto3: install it with `pip install 'hashlight[s3]'`") from error
    query = {name: values[0] for name, values in parse_qs(options.removeprefix("?")).items()}
    endpoint = query.get("endpoint_override")
    return boto3.client(
        "s3",
        endpoint_url=f"{query.get('scheme', 'https')}://{endpoint}" if endpoint else None,
        region_name=query.get("region"),
    )
