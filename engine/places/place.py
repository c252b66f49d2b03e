"""What every place can do; `engine.places` says which call is for what."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hashlight.engine.places.reading import STORE_READS, RetryingFile, map_ahead
from hashlight.engine.places.uris import join, without_credentials


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder.

    Attributes
    ----------
    name : str
        Relative to the place, or to the folder that was listed.
    size : int
        Bytes of a file; 0 of a folder, and where it is unknown.
    stamp : str
        Changes when the file changes: its size and its time of modification.
    is_folder : bool
    """

    name: str
    size: int
    stamp: str
    is_folder: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A file as it was read: its bytes, and the tag by which its store tells this version from others."""

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
        """The path, if it is a folder of this machine (or one mounted in it)."""
        return None

    def path(self, name: str = "") -> str:
        """Return what messages call a file."""
        return f"{self}/{name}" if name else str(self)

    def location_of(self, name: str = "") -> str:
        """Return the location by which `open_place` finds a name of this place, in any process."""
        return join(self.location, name)

    # Reading.

    @abc.abstractmethod
    def read(self, name: str = "", *, max_bytes: int | None = None) -> bytes:
        """Read a whole file; where that fails for a moment it is tried again.

        Raises
        ------
        OSError
            If it is not there (`FileNotFoundError`), is not a file, may not be read (`PermissionError`), or has more
            than `max_bytes` bytes (`TooManyBytesError`).
        ReadFailedError
            If reading it failed at every try.
        """

    def read_many(self, names: Iterable[str]) -> Iterator[bytes]:
        """Read whole files in order; of a bucket several at once."""
        return map_ahead(self.read, names, STORE_READS) if self.local is None else map(self.read, names)

    @abc.abstractmethod
    def find(self, name: str) -> Found | None:
        """Read a file that `replace` may later replace; None if there is none."""

    @abc.abstractmethod
    def open(self, name: str = "") -> RetryingFile:
        """Open a file to be read at any position; errors as in `read`."""

    @abc.abstractmethod
    def entry(self, name: str = "") -> Entry | None:
        """Say what is at a name, None if there is nothing; in a bucket a prefix of other names is a folder."""

    def exists(self, name: str = "") -> bool:
        """Whether there is a file of this name."""
        entry = self.entry(name)
        return entry is not None and not entry.is_folder

    @abc.abstractmethod
    def children(self, folder: str = "", *, hidden: bool = False) -> list[Entry]:
        """List what is in a folder, sorted by name; nothing if it is not there.

        Parameters
        ----------
        folder : str
        hidden : bool
            Whether to list names that begin with a dot, too.
        """

    def names(self, folder: str = "", *, hidden: bool = False) -> list[str]:
        """Return the names of `children`."""
        return [entry.name for entry in self.children(folder, hidden=hidden)]

    @abc.abstractmethod
    def walk(self, folder: str = "") -> Iterator[Entry]:
        """Stream all files below a folder, none if it is not there, in an order that depends on their names only.

        Files and folders whose names begin with a dot are left out. Names are relative to the folder.
        """

    @abc.abstractmethod
    def download(self, name: str, target: Path) -> None:
        """Copy a file, or all files below a folder, to the path `target` of this machine."""

    # Writing.

    @abc.abstractmethod
    def put(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file in one step: a reader sees the old bytes or the new ones.

        Parameters
        ----------
        name : str
        data : bytes
        durable : bool
            Whether it must survive a crash of the machine; a local file is then forced to the disk.
        """

    @abc.abstractmethod
    def put_new(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one; return whether it was written. Of several writers one is told so."""

    @abc.abstractmethod
    def replace(self, name: str, data: bytes, found: Found | None) -> bool:
        """Write a file if it still is as `find` found it (None: not there); return whether it was written.

        In a folder of this machine the caller holds the place (`lock`).
        """

    @abc.abstractmethod
    def scratch(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Yield a local path to write a large file at, for `put_file`; it is gone when the context ends."""

    @abc.abstractmethod
    def put_file(self, name: str, path: Path) -> None:
        """Write a file in one step from a local one, best one that was written at a `scratch` path."""

    @abc.abstractmethod
    def new_folder(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """Yield a local path, not there yet, to be made a folder; it lies in the place when the context ends well.

        Other processes may see it come; none may need it before the context has ended.
        """

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing happens if it is not there."""

    @abc.abstractmethod
    def lock(self, *, wait: bool = False) -> contextlib.AbstractContextManager[None]:
        """Hold the place for one writer.

        A bucket cannot be held: its conditional puts decide between writers, and that it has them is checked here.

        Raises
        ------
        CollectionBusyError
            If another process holds the folder, and this one does not `wait`.
        PlaceError
            If it is a bucket whose puts cannot be conditional.
        """

    @abc.abstractmethod
    def remove_leftovers(self, folder: str = "") -> None:
        """Remove what killed processes wrote aside in a folder that nobody else writes to now."""
