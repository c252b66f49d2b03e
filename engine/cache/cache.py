"""Items of one collection in a bucket: fetched when they are needed, once, and kept while they are used."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path

from hashlight.engine.cache.locks import fetching, uses_of
from hashlight.engine.cache.size import LOCKS, cache_folder, mark_used, remove, remove_beginnings, room_for
from hashlight.engine.errors import CorruptDataError
from hashlight.engine.places.failures import RefusedError
from hashlight.engine.places.files import aside_of, make_folder
from hashlight.engine.places.place import Place
from hashlight.engine.places.reading import STORE_READS

logger = logging.getLogger(__name__)

# Sixteen of them are in memory, and each must arrive within the client's timeout.
_RANGE_BYTES = 8 << 20
# Small shards are fetched side by side, since each waits for the lock, for the requests and for its checksums in turn.
_ITEMS_AT_ONCE = 8

# Called with the bytes that have been fetched and those that are to be, in all so far.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Item:
    """A file or a folder of a collection, which never changes.

    Attributes
    ----------
    name : str
        In the collection: `shards/NAME`, for instance.
    files : mapping of str to int
        Size by name below the item; the empty name is the item itself.
    check : callable
        Raises CorruptDataError if a copy is not what it should be. Called with its path.
    """

    name: str
    files: Mapping[str, int]
    check: Callable[[Path], object]

    @property
    def num_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(self.files.values())


class Cache:
    """Copies of what a collection consists of. Thread-safe.

    Parameters
    ----------
    place : Place
        The collection's.
    progress : callable, optional
        Called from several threads, one at a time.

    Attributes
    ----------
    folder : Path
        Where they are.
    """

    def __init__(self, place: Place, progress: Progress | None = None) -> None:
        self.place = place
        self.folder = cache_folder() / hashlib.sha256(place.location.encode()).hexdigest()[:32]
        self._uses = uses_of(self.folder / LOCKS)
        self._progress = progress
        self._reporting = threading.Lock()
        self._done, self._total = 0, 0

    def take(self, names: Sequence[str]) -> None:
        """Keep some items, which may not have been fetched yet, until `release`."""
        self._uses.take(names)
        for name in names:
            mark_used(self.folder, name)

    def release(self, names: Sequence[str]) -> None:
        """Undo `take`. From now on they may be removed."""
        for name in names:
            mark_used(self.folder, name)
        self._uses.release(names)

    @contextlib.contextmanager
    def using(self, names: Sequence[str]) -> Iterator[None]:
        """Keep some items as long as the context lasts."""
        self.take(names)
        try:
            yield
        finally:
            self.release(names)

    def fetch(self, items: Sequence[Item]) -> None:
        """Fetch what is not there, or damaged. The caller keeps the items (`take`).

        Raises
        ------
        FileNotFoundError
            If an item is gone from the bucket.
        CorruptDataError
            If what is in the bucket is damaged.
        ReadFailedError, OSError
            If the bucket cannot be read, or the copy not be written.
        """
        missing = [item for item in items if not self._is_there(item)]
        if not missing:
            return
        self._report(total=sum(item.num_bytes for item in missing))
        stop = threading.Event()
        with (
            ThreadPoolExecutor(STORE_READS, "fetch-range") as ranges,
            ThreadPoolExecutor(min(len(missing), _ITEMS_AT_ONCE), "fetch") as pool,
        ):
            futures = [pool.submit(self._fetch_once, item, ranges, stop) for item in missing]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _is_there(self, item: Item) -> bool:
        """Whether there is an intact copy."""
        path = self.folder / item.name
        if not os.path.lexists(path):
            return False
        try:
            item.check(path)
        except CorruptDataError as error:
            logger.warning("fetching again: %s", error)
            return False
        return True

    def _fetch_once(self, item: Item, ranges: Executor, stop: threading.Event) -> None:
        """Fetch an item, unless somebody else does: then wait."""
        with fetching(self.folder / LOCKS, item.name):
            if self._is_there(item):
                self._report(done=item.num_bytes)
                return
            remove_beginnings(self.folder, item.name)
            path = self.folder / item.name
            aside = aside_of(path)
            try:
                self._fetch(item, aside, ranges, stop)
                remove(path)
                aside.rename(path)
            finally:
                remove(aside)
            try:
                item.check(path)
            except CorruptDataError as error:
                remove(path)
                text = str(error).replace(str(path), self.place.path(item.name))
                raise CorruptDataError(text) from error

    def _fetch(self, item: Item, aside: Path, ranges: Executor, stop: threading.Event) -> None:
        make_folder(aside.parent)
        paths = {name: aside / name if name else aside for name in item.files}
        with room_for(item.num_bytes):
            for name, path in paths.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:  # its size counts from now on
                    file.truncate(item.files[name])
        pieces = [
            (name, start, min(start + _RANGE_BYTES, size))
            for name, size in item.files.items()
            for start in range(0, size, _RANGE_BYTES)
        ]
        futures = [ranges.submit(self._fetch_range, item, paths[piece[0]], piece, stop) for piece in pieces]
        try:
            for future in as_completed(futures):
                future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)  # nobody writes to what is removed

    def _fetch_range(self, item: Item, path: Path, piece: tuple[str, int, int], stop: threading.Event) -> None:
        if stop.is_set():
            raise CancelledError("another item could not be fetched")
        name, start, end = piece
        of = f"{item.name}/{name}" if name else item.name
        try:
            data = self.place.read_range(of, start, end)
        except RefusedError:
            self._check_size(of, item.files[name])
            raise
        if len(data) != end - start:
            self._check_size(of, item.files[name])
            raise CorruptDataError(
                f"{self.place.path(of)}: expected bytes {start} to {end}, got {len(data)}: restore it from a copy"
            )
        with path.open("r+b", buffering=0) as file:
            file.seek(start)
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
        self._report(done=end - start)

    def _check_size(self, name: str, size: int) -> None:
        entry = self.place.entry(name)
        if entry is not None and entry.size != size:
            raise CorruptDataError(
                f"{self.place.path(name)}: expected {size} bytes, got {entry.size}: restore it from a copy, or build "
                "the collection again"
            )

    def _report(self, *, done: int = 0, total: int = 0) -> None:
        with self._reporting:
            self._done += done
            self._total += total
            if self._progress is not None:
                self._progress(self._done, self._total)
