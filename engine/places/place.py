"""The operations of every place; `engine.places` explains which to use when."""

from __future__ import annotations

import abc
import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from hashlight.engine.errors import PlaceError
from hashlight.engine.places.reading import STORE_READS, RetryingFile, map_ahead
from hashlight.engine.places.uris import join, without_credentials

# What a walk leaves out.
HIDDEN = "hidden"
LISTED_ALREADY = "folders that are listed already"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder.

    Attributes
    ----------
    name : str
        Relative to the place or to the listed folder.
    size : int
        Bytes of a file; 0 for a folder or if unknown.
    stamp : str
        Changes when the file changes: its size and its time of modification.
    is_folder : bool
    modified_s : float
        When a file was written, in seconds since 1970 by the clock of the place; 0 if unknown.
    """

    name: str
    size: int
    stamp: str
    is_folder: bool = False
    modified_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """A file's bytes and the store's tag for this version of it."""

    data: bytes
    tag: dict[str, str] = field(default_factory=dict)


class Place(abc.ABC):
    """A folder, or a prefix of a bucket. Names are relative to it, with `/`; the empty name is the place itself.

    `str(place)` is its name for messages, without options and credentials.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    def __str__(self) -> str:
        """Return the path or URI, for messages."""
        return without_credentials(self.location)

    def __repr__(self) -> str:
        """Return the kind of place, and its name."""
        return f"{type(self).__name__}({str(self)!r})"

    @property
    def local(self) -> Path | None:
        """The path, if it is a local or mounted folder."""
        return None

    def path(self, name: str = "") -> str:
        """Return a file's name for messages."""
        return f"{self}/{name}" if name else str(self)

    def location_of(self, name: str = "") -> str:
        """Return the location by which `open_place` finds a name of this place, in any process."""
        return join(self.location, name)

    # Reading.

    @abc.abstractmethod
    def read(self, name: str = "", *, max_bytes: int | None = None) -> bytes:
        """Read a whole file; temporary failures are retried.

        Raises
        ------
        OSError
            If it does not exist (`FileNotFoundError`), is not a file, may not be read (`PermissionError`), or has more
            than `max_bytes` bytes (`TooManyBytesError`).
        ReadFailedError
            If every try failed.
        """

    def read_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read whole files in order; from a bucket, several in parallel."""
        return map_ahead(self.read, names, STORE_READS) if self.local is None else map(self.read, names)

    @abc.abstractmethod
    def find(self, name: str) -> Found | None:
        """Read a file for a later `replace`; None if it does not exist."""

    @abc.abstractmethod
    def open(self, name: str = "") -> RetryingFile:
        """Open a file to be read at any position; errors as in `read`."""

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Read the bytes of a file from `start` to `stop`, exclusive, fewer if it is shorter; errors as in `read`."""
        with self.open(name) as file:
            file.seek(start)
            return file.read(stop - start)

    @abc.abstractmethod
    def entry(self, name: str = "") -> Entry | None:
        """Return what exists at a name, or None; in a bucket, a prefix of other names is a folder."""

    def exists(self, name: str = "") -> bool:
        """Whether a file of this name exists."""
        entry = self.entry(name)
        return entry is not None and not entry.is_folder

    @abc.abstractmethod
    def children(self, folder: str = "", *, hidden: bool = False) -> list[Entry]:
        """List a folder, sorted by name; empty if it does not exist.

        Parameters
        ----------
        folder : str
        hidden : bool
            Whether to include names that begin with a dot.
        """

    def names(self, folder: str = "", *, hidden: bool = False) -> list[str]:
        """Return the names of `children`."""
        return [entry.name for entry in self.children(folder, hidden=hidden)]

    @abc.abstractmethod
    def walk(self, folder: str = "", *, skipped: Counter[str] | None = None) -> Iterator[Entry]:
        """Stream all files below a folder (none if it does not exist), in an order that depends on their names only.

        Names are relative to the folder. Links to folders are followed, and each folder is walked once: under its own
        name if it lies below the one that is walked, otherwise under the first link to it. Left out are files and
        folders whose names begin with a dot (`HIDDEN`), and folders that are walked under another name
        (`LISTED_ALREADY`).

        Parameters
        ----------
        folder : str
        skipped : Counter, optional
            Counts what is left out, by kind; a folder counts once, whatever is in it.
        """

    def tops(self) -> list[Entry] | None:
        """List what is directly in the place, hidden names too, in the order in which `walk` comes to it.

        None where a walk of the whole is not the walks of its folders one after the other, as where folders are linked.
        """
        return None

    @abc.abstractmethod
    def download(self, name: str, target: Path) -> None:
        """Copy a file, or all files below a folder, to the local path `target`."""

    # Writing.

    @abc.abstractmethod
    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file in one step: a reader sees the old bytes or the new ones.

        Parameters
        ----------
        name : str
        data : bytes
        durable : bool
            Whether it must survive a crash of the machine; a local file is then fsynced.
        """

    @abc.abstractmethod
    def put_new(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists; return whether it was written. Exactly one of several writers succeeds."""

    @abc.abstractmethod
    def replace(self, name: str, data: bytes, found: Found | None) -> bool:
        """Write a file if it is unchanged since `find` (None: if it does not exist); return whether it was written.

        In a local folder the caller must hold the lock (`lock`).
        """

    @abc.abstractmethod
    def scratch(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Yield a local path for writing a large file, for `put_file`; it is removed when the context exits."""

    @abc.abstractmethod
    def put_file(self, name: str, path: Path) -> None:
        """Write a file in one step from a local one, preferably one at a `scratch` path."""

    @abc.abstractmethod
    def new_folder(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Yield an unused local path for a new folder; if the context exits without an error, it is in the place.

        Other processes may see it appear; none may use it before the context has exited.
        """

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its contents; does nothing if it does not exist."""

    @abc.abstractmethod
    def lock(self, *, wait: bool = False) -> contextlib.AbstractContextManager[None]:
        """Lock the place for one writer.

        A bucket cannot be locked: its conditional puts decide between writers, and this checks that it has them.

        Raises
        ------
        CollectionBusyError
            If another process holds the lock and this one does not `wait`.
        PlaceError
            If it is a bucket without conditional puts.
        """

    @abc.abstractmethod
    def remove_leftovers(self, folder: str = "") -> None:
        """Remove temporary files of killed processes from a folder that nobody else is writing to."""


class ReadOnly(Place):
    """A place whose files can only be read."""

    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Refuse; see the class."""
        self.refuse()

    def put_new(self, name: str, data: bytes) -> bool:
        """Refuse; see the class."""
        self.refuse()

    def replace(self, name: str, data: bytes, found: Found | None) -> bool:
        """Refuse; see the class."""
        self.refuse()

    def scratch(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Refuse; see the class."""
        self.refuse()

    def put_file(self, name: str, path: Path) -> None:
        """Refuse; see the class."""
        self.refuse()

    def new_folder(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Refuse; see the class."""
        self.refuse()

    def remove(self, name: str) -> None:
        """Refuse; see the class."""
        self.refuse()

    def lock(self, *, wait: bool = False) -> contextlib.AbstractContextManager[None]:
        """Refuse; see the class."""
        self.refuse()

    def remove_leftovers(self, folder: str = "") -> None:
        """Refuse; see the class."""
        self.refuse()

    def refuse(self) -> NoReturn:
        """Raise the PlaceError that says that nothing can be written."""
        raise PlaceError(
            f"{self} can only be read: write to a folder of this machine, or to a bucket (s3://, gs://, az://)"
        )
