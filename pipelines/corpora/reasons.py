"""Why an image has no code: a kind, which programs can count and act on, and words for people.

===========  ==========================================================================================================
missing      nothing is there that could be read: no file, a folder, a name that is not valid
denied       there is something, and it may not be read
network      a server did not answer, or was too busy, at every try: worth trying again
format       it was read, and is not an image that can be decoded
limit        it has more bytes or pixels, or needs more time or memory, than is allowed
killed       decoding it ends the decoding process
repeated     another image has its id
===========  ==========================================================================================================
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.failures import NoFileError, RefusedError, TooManyBytesError

MISSING, DENIED, NETWORK = "missing", "denied", "network"
FORMAT, LIMIT, KILLED, REPEATED = "format", "limit", "killed", "repeated"
KINDS = (MISSING, DENIED, NETWORK, FORMAT, LIMIT, KILLED, REPEATED)
# What a job tries again by itself, and what it tries again if it is asked to.
OF_THE_MOMENT = frozenset({NETWORK})
RETRIED = frozenset(KINDS) - {REPEATED}

_MISSING_ERRORS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, NoFileError)
_MISSING_NUMBERS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}


class Reason(NamedTuple):
    """Why an image has no code: one of `KINDS`, and what happened."""

    kind: str
    words: str


class RepeatedError(OSError):
    """An image whose name another image of its shard has."""


def reason_of(error: OSError) -> Reason:
    """Return why an image could not be read."""
    return Reason(_kind_of(error), f"unreadable: {error}")


def _kind_of(error: OSError) -> str:
    if isinstance(error, ReadFailedError):
        return NETWORK
    if isinstance(error, TooManyBytesError):
        return LIMIT
    if isinstance(error, PermissionError | RefusedError):
        return DENIED
    if isinstance(error, RepeatedError):
        return REPEATED
    return MISSING if isinstance(error, _MISSING_ERRORS) or error.errno in _MISSING_NUMBERS else FORMAT


def reworded(error: Exception, words: str) -> OSError:
    """Return an error of the same kind with other words."""
    return type(error)(words) if isinstance(error, OSError) else OSError(words)
