"""What the engine raises, beside `TypeError` and `ValueError` for arguments that are wrong in themselves.

::

    HashlightError
    ├── CollectionNotFoundError   no collection where one was named
    ├── CollectionExistsError     a collection where a new one was to be made
    ├── CollectionBusyError       another process is writing
    ├── CorruptDataError          stored bytes are not what was written
    ├── EncoderMismatchError      codes of two encoders would meet
    ├── IdNotFoundError           an id that the collection does not hold
    └── MissingDependencyError    a package that this machine lacks
"""


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


class EncoderMismatchError(HashlightError):
    """Codes of two encoders, or of two lengths, would meet in one answer."""


class IdNotFoundError(HashlightError, KeyError):
    """The collection does not hold an id."""

    def __str__(self) -> str:
        """Return the message; `KeyError` would quote it."""
        return str(self.args[0])


class MissingDependencyError(HashlightError):
    """A package is needed that is not installed."""
