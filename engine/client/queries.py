"""Queries: images as paths, bytes, PIL images or URLs; codes as arrays; items by id."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

# A PIL image too; it is not named here, so that Pillow is only loaded by those who use it.
Image = str | os.PathLike[str] | bytes | Any
Code = NDArray[np.uint64]


class Picture(NamedTuple):
    """An encoded image."""

    data: bytes


class Address(NamedTuple):
    """The URL of an image, for a gateway to fetch."""

    url: str


QueryInput = Picture | Address | int | Code


def read_queries(queries: Any) -> Code | list[QueryInput]:
    """Return codes (Q, W) if all queries are codes, otherwise one entry for each: an image, an id or a code (W,).

    Parameters
    ----------
    queries : one query, or a sequence of them
        An image (path, bytes, PIL image, or a URL starting with http:// or https://), an id (int), a code (uint64
        array of shape (W,)); or codes (Q, W).

    Raises
    ------
    TypeError, ValueError
        If a query is none of these.
    """
    if isinstance(queries, np.ndarray) and queries.dtype.kind not in "iO":
        return _codes(queries)
    many = isinstance(queries, Iterable) and not isinstance(queries, str | bytes | bytearray | os.PathLike)
    read = [_read_query(query) for query in (queries if many and not _is_picture(queries) else [queries])]
    if not read:
        raise ValueError("`queries` is empty, expected at least one")
    if all(isinstance(query, np.ndarray) for query in read):
        return _codes(np.stack([query for query in read if isinstance(query, np.ndarray)]))
    return read


def read_images(images: Any) -> list[Picture]:
    """Return one image or a sequence of images, encoded."""
    read = read_queries(images)
    if isinstance(read, np.ndarray) or not all(isinstance(query, Picture) for query in read):
        raise TypeError("`images` must be paths, bytes or PIL images; URLs are for searches only")
    return [query for query in read if isinstance(query, Picture)]


def read_ids(ids: int | Sequence[int] | NDArray[np.int64]) -> list[int]:
    """Return ids as a list of Python ints."""
    if isinstance(ids, int | np.integer):
        return [int(ids)]
    return [_whole(id_) for id_ in ids]


def is_url(value: object) -> TypeGuard[str]:
    """Return whether a value is a URL rather than a path."""
    return isinstance(value, str) and value.startswith(("http://", "https://"))


def _read_query(query: Any) -> QueryInput:
    if is_url(query):
        return Address(query)
    if isinstance(query, str | os.PathLike):
        return Picture(Path(query).read_bytes())
    if isinstance(query, bytes | bytearray):
        return Picture(bytes(query))
    if _is_picture(query):
        buffer = io.BytesIO()
        query.save(buffer, "PNG")
        return Picture(buffer.getvalue())
    if isinstance(query, np.ndarray):
        code: Code = _codes(query)[0]
        return code
    return _whole(query)


def _is_picture(value: Any) -> bool:
    return hasattr(value, "save") and hasattr(value, "mode") and hasattr(value, "size")


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"a query is an image (path, bytes, PIL image), an id (int) or a code (uint64 array), got "
            f"{type(value).__name__}"
        )
    return int(value)


def _codes(codes: NDArray[Any]) -> Code:
    if codes.dtype != np.uint64 or codes.ndim not in (1, 2) or codes.size == 0:
        raise TypeError(
            f"codes must be a uint64 array of shape (W,) or (Q, W), not empty, got {codes.dtype} of shape {codes.shape}"
        )
    return np.ascontiguousarray(np.atleast_2d(codes))
