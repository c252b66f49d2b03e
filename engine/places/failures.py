"""Errors of reads and writes: which are permanent, which are retried, and how a store's errors become `OSError`."""

from __future__ import annotations

import contextlib
import errno
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from obstore import exceptions

from hashlight.engine.errors import PlaceError, ReadFailedError

READ_TRIES = 3
_FIRST_WAIT_S = 0.5

T = TypeVar("T")


class TooManyBytesError(OSError):
    """A file is larger than the caller accepts."""


class NoFileError(OSError):
    """A name cannot be read as a file: it is a folder, a device or a pipe, or not a valid name."""


class RefusedError(OSError):
    """A store refused a request, and would refuse it again."""


class OvertakenError(OSError):
    """A conditional put or read was refused, because another process has written the file in the meantime."""


# Retrying does not help as long as the file does not change.
_PERMANENT_ERRORS = (
    FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, TooManyBytesError, NoFileError,
    RefusedError, OvertakenError, PlaceError, ReadFailedError,
)  # fmt: skip
_PERMANENT_NUMBERS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}

_STATUS = re.compile(r"status code: (\d{3})")
_TRANSIENT_STATUSES = {408, 425, 429}
_XML = re.compile(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", re.DOTALL)
_QUERY = re.compile(r"\?\S*")


def retried(read: Callable[[], T], where: str) -> T:
    """Return the result of `read`, with retries after transient errors.

    Raises
    ------
    OSError
        If it does not exist, is not a file, or may not be read.
    ReadFailedError
        If every try failed.
    """
    for attempt in range(1, READ_TRIES + 1):
        try:
            return read()
        except OSError as error:
            if _is_permanent(error):
                raise
            if attempt == READ_TRIES:
                raise ReadFailedError(
                    f"{where} cannot be read at the moment, after {READ_TRIES} tries: {error}"
                ) from error
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
    raise AssertionError("the last try returns or raises")


def _is_permanent(error: OSError) -> bool:
    return isinstance(error, _PERMANENT_ERRORS) or error.errno in _PERMANENT_NUMBERS


@contextlib.contextmanager
def translated(where: str) -> Iterator[None]:
    """Convert the errors of a store's client into the `OSError` that every place raises.

    The client's message is cut before its debug output, and URLs lose their query, which may contain a signature.
    """
    try:
        yield
    except (exceptions.BaseError, FileNotFoundError, ValueError) as error:
        raise _as_os_error(error, where) from None


def _as_os_error(error: Exception, where: str) -> OSError:
    reason = _reason_of(error)
    status = int(found[1]) if (found := _STATUS.search(str(error))) else None
    if isinstance(error, exceptions.AlreadyExistsError | exceptions.PreconditionError):
        return OvertakenError(f"{where} was written by another process meanwhile")
    if isinstance(error, FileNotFoundError) or status == 404:
        if "NoSuchBucket" in reason:
            return FileNotFoundError(errno.ENOENT, "there is no such bucket: create it, or correct its name", where)
        return FileNotFoundError(errno.ENOENT, f"No such file ({reason})", where)
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or status in (401, 403):
        return PermissionError(errno.EACCES, f"the store does not allow it ({reason})", where)
    if isinstance(error, exceptions.InvalidPathError | ValueError):
        return NoFileError(f"{where} is not a valid name: {reason}")
    if isinstance(error, exceptions.NotSupportedError | NotImplementedError) or status == 501:
        return RefusedError(f"{where}: the store cannot do this: {reason}")
    if status is not None and status < 500 and status not in _TRANSIENT_STATUSES:
        return RefusedError(f"{where}: the store refused: {reason}")
    return OSError(f"{where}: {reason}")


def _reason_of(error: Exception) -> str:
    text = str(error).partition("Debug source:")[0]
    if found := _XML.search(text):
        return f"{found[1]}: {found[2]}"
    return _QUERY.sub("", " ".join(text.split()))
