"""What the engine raises, beside `TypeError` and `ValueError` for arguments that are wrong in themselves.

::

    HashlightError
    ├── CollectionNotFoundError   no collection where one was named
    ├── CollectionExistsError     a collection where a new one was to be made
    ├── CollectionBusyError       another process is writing
    ├── CorruptDataError          stored bytes are not what was written
    ├── PlaceError                a location that cannot be used for what is asked
    ├── ReadFailedError           a read that failed at every try, and may succeed later
    ├── EncoderMismatchError      codes of two encoders would meet
    ├── IdNotFoundError           an id that the collection does not hold
    ├── MissingDependencyError    a package that is not installed; also an ImportError
    ├── DeadlineExceededError     no answer within the caller's time
    ├── OverloadedError           more is asked than can be answered; it says when to try again
    ├── NotReadyError             a server that cannot answer yet, or no longer
    └── IncompleteError           shards are missing from an answer that must be whole
        └── NoShardError          no shard answered at all
"""

from __future__ import annotations

from collections.abc import Mapping


class HashlightError(Exception):
    """Base of every failure that is not the caller's argument."""


class CollectionNotFoundError(HashlightError):
    """There is no collection where one was named."""


class CollectionExistsError(HashlightError):
    """There is a collection where a new one was to be made."""


class CollectionBusyError(HashlightError):
    """Another process is writing to the collection."""


class CorruptDataError(HashlightError):
    """Stored bytes are not what was written."""


class PlaceError(HashlightError, ValueError):
    """A location cannot be used for what is asked of it: no such kind of store, or one that cannot do it."""


class ReadFailedError(HashlightError, OSError):
    """A read failed for a reason that may be gone later, and did so at every try."""


class EncoderMismatchError(HashlightError):
    """Codes of two encoders, or of two lengths, would meet in one answer."""


class IdNotFoundError(HashlightError, KeyError):
    """The collection does not hold an id."""

    def __str__(self) -> str:
        """Return the message; `KeyError` would quote it."""
        return str(self.args[0])


class MissingDependencyError(HashlightError, ImportError):
    """A package is needed that is not installed."""


class DeadlineExceededError(HashlightError, TimeoutError):
    """There was no answer within the caller's time."""


class OverloadedError(HashlightError):
    """More is asked than can be answered.

    Attributes
    ----------
    retry_after_s : float
        When it is worth to try again.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReadyError(HashlightError):
    """A server cannot answer yet, or no longer."""


class IncompleteError(HashlightError):
    """Shards are missing from an answer that must be whole.

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
