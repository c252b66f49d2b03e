"""Where files are: the local file system, or any store that `pyarrow.fs` or `fsspec` reaches, by URI.

`engine.places.buckets` says how buckets are found.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
from fsspec.core import url_to_fs

from hashlight.engine.places.buckets import BUCKET_SCHEMES, bucket_filesystem, s3_client, split_options, split_s3
from hashlight.pipelines.jobs.errors import PipelineError

_URI = re.compile(
    r"^([a-zA-Z][a-zA-Z0-9+.-]+)://([^/?]*)([^\0]*?)(\?(?:endpoint_override|region|scheme|anonymous)=.*)?$"
)
_ARROW_SCHEMES = {"abfs", "abfss", "hdfs", "viewfs"}
_LIST_PAGE = 1000


def is_local(uri: str) -> bool:
    """Whether a URI is a path of the local file system."""
    return "://" not in uri


def normalise(place: str | Path) -> str:
    """Return an absolute path, or the URI of a place elsewhere, without a slash at the end."""
    text = str(place)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return str(Path(text).resolve()) if is_local(text) else text.rstrip("/")


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
        return local_filesystem(), uri
    match = _URI.match(uri)
    if match is None:
        raise PipelineError(f"{uri} is no URI: expected a path or SCHEME://PLACE/NAME, for example s3://bucket/photos")
    scheme, place, path, options = match.groups()
    try:
        if scheme in BUCKET_SCHEMES:
            return bucket_filesystem(scheme, place, options or ""), (place + path).rstrip("/")
        if scheme in _ARROW_SCHEMES:
            return pafs.FileSystem.from_uri(uri)
        filesystem, inner = url_to_fs(uri)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), inner
    except (pa.ArrowException, ValueError, ImportError) as error:
        raise PipelineError(f"{uri}: no file system for {scheme}://: {error}") from error


@functools.cache
def local_filesystem() -> pafs.LocalFileSystem:
    """Return the file system of this machine."""
    return pafs.LocalFileSystem()


def list_s3(uri: str) -> Iterator[tuple[str, int, int]]:
    """List the objects under a prefix, a page at a time, in the order of their keys: (URI, bytes, time in s).

    `pyarrow.fs` returns a listing as a whole, which does not fit for a bucket of millions.
    """
    bucket, prefix, options = split_s3(uri)
    try:
        pages = s3_client(options).get_paginator("list_objects_v2")
    except ModuleNotFoundError as error:
        raise PipelineError("S3 needs boto3: install it with `pip install 'hashlight[s3]'`") from error
    for page in pages.paginate(
        Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", PaginationConfig={"PageSize": _LIST_PAGE}
    ):
        for item in page.get("Contents", ()):
            yield f"s3://{bucket}/{item['Key']}", item["Size"], int(item["LastModified"].timestamp())
