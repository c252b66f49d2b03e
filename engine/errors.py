"""The engine's exceptions, besides `TypeError` and `ValueError` for invalid arguments.

::

    HashlightError
    ├── CollectionNotFoundError   there is no collection at a location
    ├── CollectionExistsError     there is already a collection at a location
    ├── CollectionBusyError       another process is writing
    ├── VersionGoneError          a version of a collection that cannot be asked any more
    ├── CorruptDataError          stored data is damaged
    ├── PlaceError                a location cannot be used for an operation
    ├── ReadFailedError           a read failed at every try, but may succeed later
    ├── EncoderMismatchError      codes of two encoders would meet
    ├── IdNotFoundError           an id that the collection does not hold
    ├── IdExistsError             an id that the collection holds already; also a ValueError
    ├── MissingDependencyError    a package that is not installed; also an ImportError
    ├── DeadlineExceededError     no answer within the caller's time
    ├── OverloadedError           a server is overloaded; says when to try again
    ├── NotReadyError             a server cannot answer yet, or no longer
    └── IncompleteError           shards are missing from an answer that must be complete
        └── NoShardError          no shard answered at all
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self


class HashlightError(Exception):
    """Base of all failures other than invalid arguments.

    Attributes
    ----------
    request_id : str or None
        The id under which a server has logged the request, if the error is the answer of one.
    """

    request_id: str | None = None


class CollectionNotFoundError(HashlightError):
    """There is no collection at a location."""


class CollectionExistsError(HashlightError):
    """There is already a collection at a location."""


class CollectionBusyError(HashlightError):
    """Another process is writing to the collection."""


class VersionGoneError(HashlightError):
    """A version of a collection cannot be asked any more."""


class CorruptDataError(HashlightError):
    """Stored data is damaged."""


class PlaceError(HashlightError, ValueError):
    """A location cannot be used: its kind of store is unknown or lacks the operation."""


class ReadFailedError(HashlightError, OSError):
    """A read failed at every try, for a reason that may be temporary."""


class EncoderMismatchError(HashlightError):
    """Codes of two encoders, or of two lengths, would meet in one answer."""


class IdNotFoundError(HashlightError, KeyError):
    """The collection does not hold an id."""

    @classmethod
    def of(cls, missing: Sequence[int], *, wanted: int) -> Self:
        """Return the error for the `missing` ones of `wanted` ids."""
        hint = " (-1 pads short answers: drop it)" if -1 in missing else ""
        if wanted == 1:
            return cls(f"id {missing[0]} was not found{hint}")
        if len(missing) == 1:
            return cls(f"1 of {wanted:,} ids was not found: {missing[0]}{hint}")
        return cls(f"{len(missing):,} of {wanted:,} ids were not found, the first {missing[0]}{hint}")

    def __str__(self) -> str:
        """Return the message; `KeyError` would quote it."""
        return str(self.args[0])


class IdExistsError(HashlightError, ValueError):
    """The collection holds an id already, and what has it was not to be replaced."""

    @classmethod
    def of(cls, known: Sequence[int], *, wanted: int, where: object) -> Self:
        """Return the error for the `known` ones of `wanted` ids."""
        be = "is" if len(known) == 1 else "are"
        what = f"id {known[0]} is" if wanted == 1 else f"{len(known):,} of {wanted:,} ids {be}"
        first = "" if wanted == 1 else f", first {known[0]}"
        return cls(
            f"{what} in {where} already{first}: replace what is there (`upsert`, `hashlight add --upsert`, over HTTP "
            "`on_conflict=replace`), or give other items ids of their own (`hashlight encode --ids name:NAME` makes "
            "them from a name for the corpus)"
        )


class MissingDependencyError(HashlightError, ImportError):
    """A required package is not installed."""


class DeadlineExceededError(HashlightError, TimeoutError):
    """There was no answer within the caller's time."""


class OverloadedError(HashlightError):
    """The server is overloaded.

    Attributes
    ----------
    retry_after_s : float
        Seconds after which it is worth trying again.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReadyError(HashlightError):
    """A server cannot answer yet, or no longer."""


class IncompleteError(HashlightError):
    """Shards are missing from an answer that must be complete.

    Attributes
    ----------
    missing : dict of str to str
        Name of each missing shard -> the reason.
    """

    def __init__(self, message: str, *, missing: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.missing = dict(missing or {})


class NoShardError(IncompleteError):
    """No shard answered at all."""
