"""Queries: images as paths, bytes, PIL images, pixels or URLs; codes as arrays or in hexadecimal; items by id."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hashlight.engine.client.pictures import file_of_array, file_of_picture, is_picture
from hashlight.engine.codes import read_hex
from hashlight.engine.ids import MAX_ID
from hashlight.engine.query import Text

# A PIL image too; it is not named here, so that Pillow is only loaded by those who use it.
Image = str | os.PathLike[str] | bytes | NDArray[np.uint8] | Any
Code = NDArray[np.uint64]


class Picture(NamedTuple):
    """An encoded image."""

    data: bytes


class Address(NamedTuple):
    """The URL of an image, for a gateway to fetch."""

    url: str


class Digits(NamedTuple):
    """Hexadecimal digits that no file is named by: a code, if there are as many as a code of the collection has."""

    text: str


Vector = NDArray[np.float32]
QueryInput = Picture | Address | Digits | int | Code | Vector | Text


def read_queries(queries: Any) -> Code | list[QueryInput]:
    """Return codes (Q, W) if all queries are codes, otherwise one entry for each: an image, an id or a code (W,).

    Hexadecimal digits are returned as they are; `with_codes` makes codes of them.

    Parameters
    ----------
    queries : one query, or a sequence of them
        An image (path, bytes, PIL image, uint8 array of shape (H, W), (H, W, 1) or (H, W, 3), or a URL starting with
        http:// or https://), an id (int), a code (uint64 array of shape (W,), or hexadecimal as in the HTTP interface,
        where no file has that name); or codes (Q, W), or pictures (N, H, W, C).

    Raises
    ------
    FileNotFoundError
        If there is no file at a path.
    TypeError, ValueError
        If a query is none of these.
    """
    if isinstance(queries, np.ndarray) and queries.dtype.kind not in "iO" and queries.dtype != np.uint8:
        return _codes(queries)
    read = [_read_query(query) for query in (queries if _is_many(queries) else [queries])]
    if not read:
        raise ValueError("`queries` is empty, expected at least one")
    return _stacked(read)


def with_codes(queries: Code | list[QueryInput], bits: int) -> Code | list[QueryInput]:
    """Return what `read_queries` gave with codes of `bits` bits in the place of hexadecimal digits.

    Raises
    ------
    FileNotFoundError
        If there are not as many digits as a code has: no file has that name, either.
    """
    if not has_digits(queries):
        return queries
    return _stacked([_code_of(query, bits) if isinstance(query, Digits) else query for query in queries])


def has_digits(queries: Code | list[QueryInput]) -> bool:
    """Return whether a query is hexadecimal digits."""
    return isinstance(queries, list) and any(isinstance(query, Digits) for query in queries)


def _stacked(queries: list[QueryInput]) -> Code | list[QueryInput]:
    codes = [query for query in queries if isinstance(query, np.ndarray)]
    if len(codes) == len(queries) and len({len(code) for code in codes}) == 1:
        return _codes(np.stack(codes))
    return queries


def _code_of(digits: Digits, bits: int) -> Code:
    try:
        return read_hex(digits.text, bits=bits)
    except ValueError as error:
        message = f"there is no such file, and as a code in hexadecimal it has {error}"
        raise FileNotFoundError(errno.ENOENT, message, digits.text) from None


def read_texts(text: str | Sequence[str]) -> list[QueryInput]:
    """Return one text, or a sequence of them; TypeError if they are not, ValueError if one is empty."""
    texts = [text] if isinstance(text, str) else list(text)
    if not texts or not all(isinstance(words, str) for words in texts):
        raise TypeError(f"`text` must be a str or a sequence of str, not empty, got {text!r}")
    if not all(texts):
        raise ValueError(f"`text` must have words, got {text!r}")
    return [Text(words) for words in texts]


def read_vectors(vector: ArrayLike) -> list[QueryInput]:
    """Return one embedding, or a sequence of them, each as float32 (D,).

    Raises
    ------
    TypeError, ValueError
        If they are not finite numbers of shape (D,) or (Q, D).
    """
    vectors = np.asarray(vector)
    if vectors.dtype.kind not in "fiu" or vectors.ndim not in (1, 2) or vectors.size == 0:
        raise TypeError(
            f"`vector` must be numbers of shape (D,) or (Q, D), not empty, got {vectors.dtype} of shape {vectors.shape}"
        )
    with np.errstate(over="ignore"):
        vectors_QD = np.atleast_2d(vectors).astype(np.float32)
    if not np.isfinite(vectors_QD).all():
        raise ValueError(
            f"`vector` must be finite in single precision, got {int((~np.isfinite(vectors_QD)).sum())} numbers that "
            "are not"
        )
    return list(vectors_QD)


def read_images(images: Any) -> list[Picture]:
    """Return one image or a sequence of images, encoded."""
    read = read_queries(images)
    if isinstance(read, list):
        for query in read:
            if isinstance(query, Digits):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), query.text)
    if isinstance(read, np.ndarray) or not all(isinstance(query, Picture) for query in read):
        raise TypeError("`images` must be paths, bytes, PIL images or uint8 arrays; URLs are for searches only")
    return [query for query in read if isinstance(query, Picture)]


def read_ids(ids: int | Sequence[int] | NDArray[np.int64]) -> list[int]:
    """Return ids as a list of Python ints."""
    if isinstance(ids, int | np.integer):
        return [_whole(ids)]
    return [_whole(id_) for id_ in ids]


def is_url(value: object) -> TypeGuard[str]:
    """Return whether a value is a URL rather than a path."""
    return isinstance(value, str) and value.startswith(("http://", "https://"))


def _read_query(query: Any) -> QueryInput:
    if is_url(query):
        return _address(query)
    if isinstance(query, str) and re.fullmatch(r"([0-9a-fA-F]{2})+", query) and not os.path.isfile(query):
        return Digits(query)
    if isinstance(query, str | os.PathLike):
        return Picture(_file_at(query))
    if isinstance(query, bytes | bytearray):
        return Picture(bytes(query))
    if is_picture(query):
        return Picture(file_of_picture(query))
    if isinstance(query, np.ndarray) and query.dtype == np.uint8:
        return Picture(file_of_array(query))
    if isinstance(query, np.ndarray):
        code: Code = _codes(query)[0]
        return code
    return _whole(query)


def _address(url: str) -> Address:
    try:
        url.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{url!r} is not a URL: {error}") from error
    return Address(url)


def _file_at(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except ValueError as error:  # a null character, or half of a surrogate pair
        raise ValueError(f"{os.fspath(path)!r} is not the name of a file: {error}") from error


def _is_many(queries: Any) -> bool:
    """Return whether these are several queries, and not one that can be iterated over."""
    if isinstance(queries, np.ndarray) and queries.dtype == np.uint8:
        return queries.ndim == 4
    return isinstance(queries, Iterable) and not (
        isinstance(queries, str | bytes | bytearray | os.PathLike) or is_picture(queries)
    )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(
            f"a query is an image (path, bytes, PIL image, uint8 array), an id (int) or a code (uint64 array, "
            f"hexadecimal), got {type(value).__name__}"
        )
    if value > MAX_ID:
        raise ValueError(f"ids are at most {MAX_ID}, got {value}")
    return int(value)


def _codes(codes: NDArray[Any]) -> Code:
    if codes.dtype != np.uint64 or codes.ndim not in (1, 2) or codes.size == 0:
        raise TypeError(
            f"codes must be a uint64 array of shape (W,) or (Q, W), not empty, got {codes.dtype} of shape "
            f"{codes.shape}" + (": give embeddings as `vector`" if codes.dtype.kind == "f" else "")
        )
    return np.ascontiguousarray(np.atleast_2d(codes))
