"""Where files are: the local file system, or any store that `pyarrow.fs` or `fsspec` reaches, by URI.

`s3://BUCKET/KEY` is found as the AWS tools find it (`AWS_ENDPOINT_URL`, `AWS_REGION`, credentials from the
environment, files or the machine); options may also stand in the query of a corpus's or an output's URI, for example
`s3://bucket/photos?endpoint_override=HOST:PORT&scheme=http`.

An `OutputFolder` publishes: a file there is whole or absent. Locally it is written aside, forced to the disk and
renamed; a store's own put is whole by itself, and a killed upload leaves nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.core import url_to_fs

from engine.storage.files import sync_file, sync_folder, writer_lock
from pipelines import chaos
from pipelines.errors import PipelineError

READ_TRIES = 3
_FIRST_WAIT_S = 0.5
_LIST_PAGE = 1000

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


def read_bytes(uri: str, *, most: int | None = None) -> bytes:
    """Read a whole file; a store that fails for a moment is asked again.

    Raises
    ------
    OSError
        If it is not there, cannot be read, or has more than `most` bytes.
    """
    if is_local(uri):
        with open(uri, "rb") as file:
            return _refuse_more(file.read() if most is None else file.read(most + 1), most)
    for attempt in range(1, READ_TRIES + 1):
        try:
            with open_stream(uri) as file:
                return _refuse_more(bytes(file.read() if most is None else file.read(most + 1)), most)
        except (FileNotFoundError, PermissionError, TooManyBytesError):
            raise
        except OSError:
            if attempt == READ_TRIES:
                raise
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
    raise AssertionError("the last try returns or raises")


class TooManyBytesError(OSError):
    """A file is larger than what is read of one."""


def _refuse_more(data: bytes, most: int | None) -> bytes:
    if most is not None and len(data) > most:
        raise TooManyBytesError(f"too many bytes: above {most:,}")
    return data


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
            aside = folder / f".{name}.{os.getpid()}.tmp"
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
        """Remove what killed processes of this machine wrote aside."""
        if self.is_local:
            for aside in Path(self._at(folder)).glob(".*.tmp"):
                aside.unlink(missing_ok=True)

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
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
