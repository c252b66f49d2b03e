"""Buckets by URI: options in the query, the file system, and a put on S3 that `pyarrow.fs` does not have.

`s3://BUCKET/KEY` is found as the AWS tools find it (`AWS_ENDPOINT_URL`, `AWS_REGION`, credentials from the environment,
files or the machine); options may also stand in the query, as `s3://bucket/photos?endpoint_override=HOST:PORT&scheme=http`.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow.fs

BUCKET_SCHEMES = ("s3", "gs", "gcs")

# Elsewhere in a URI a question mark may belong to a name.
_OPTIONS = re.compile(r"\?(?:endpoint_override|region|scheme|anonymous)=.*$")


def split_options(uri: str) -> tuple[str, str]:
    """Split a URI into itself and the options in its query (with the `?`), which belong to the store."""
    match = _OPTIONS.search(uri) if "://" in uri else None
    return (uri[: match.start()], match[0]) if match else (uri, "")


@functools.lru_cache(32)
def bucket_filesystem(scheme: str, bucket: str, options: str) -> pyarrow.fs.FileSystem:
    """Return the file system of a bucket (perhaps with `USER:SECRET@`), by `pyarrow.fs`.

    Raises
    ------
    ValueError, OSError
        If `pyarrow.fs` refuses the options.
    """
    # Arrow's own client does not look at the variables that every other client of S3 follows.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if scheme == "s3" and not options and endpoint:
        place = urlsplit(endpoint)
        return pyarrow.fs.S3FileSystem(endpoint_override=place.netloc, scheme=place.scheme)
    return pyarrow.fs.FileSystem.from_uri(f"{scheme}://{bucket}{options}")[0]


@functools.lru_cache(8)
def s3_client(options: str) -> Any:
    """Return boto3's client, for what `pyarrow.fs` cannot: pages of a listing, and conditional puts.

    Raises
    ------
    ModuleNotFoundError
        If boto3 is not installed.
    """
    boto3 = importlib.import_module("boto3")
    query = {name: values[0] for name, values in parse_qs(options.removeprefix("?")).items()}
    endpoint = query.get("endpoint_override")
    return boto3.client(
        "s3",
        endpoint_url=f"{query.get('scheme', 'https')}://{endpoint}" if endpoint else None,
        region_name=query.get("region"),
    )


def split_s3(uri: str) -> tuple[str, str, str]:
    """Split `s3://BUCKET/KEY?OPTIONS` into its three parts."""
    base, options = split_options(uri)
    bucket, _, key = base.removeprefix("s3://").partition("/")
    return bucket.rpartition("@")[2], key, options


def put_in_s3(uri: str, data: bytes, *, expected: bytes) -> bool:
    """Put an object if it holds `expected` by now, or, if that is empty, if there is none; return whether it was put.

    Raises
    ------
    ModuleNotFoundError
        If boto3 is not installed.
    OSError
        If S3 refuses it for another reason.
    """
    bucket, key, options = split_s3(uri)
    client = s3_client(options)
    errors = importlib.import_module("botocore.exceptions")
    try:
        condition = {"IfNoneMatch": "*"}
        if expected:
            there = client.get_object(Bucket=bucket, Key=key)
            if there["Body"].read() != expected:
                return False
            condition = {"IfMatch": there["ETag"]}
        client.put_object(Bucket=bucket, Key=key, Body=data, **condition)
        return True
    except errors.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (404, 409, 412):
            raise OSError(f"s3://{bucket}/{key} cannot be written: {error}") from error
    # The client repeats a put whose answer was lost, and is refused if the first one had succeeded.
    return _holds(client, bucket, key, data)


def _holds(client: Any, bucket: str, key: str, data: bytes) -> bool:
    try:
        return bool(client.get_object(Bucket=bucket, Key=key)["Body"].read() == data)
    except client.exceptions.NoSuchKey:
        return False
