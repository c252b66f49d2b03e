"""Copies on this machine of what a version in a bucket consists of: shards are mapped, and so must be local files."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from hashlight.engine.cache.cache import Cache, Item, Progress
from hashlight.engine.errors import CollectionNotFoundError, CorruptDataError
from hashlight.engine.indexes.choice import IndexChoice
from hashlight.engine.places.place import Place
from hashlight.engine.storage.checking import read_dead_rows, verify_column, verify_shard
from hashlight.engine.storage.leftovers import names_of
from hashlight.engine.storage.manifest import ShardSpec
from hashlight.engine.storage.shard import Shard


class Copies:
    """Copies of the shards, and of what belongs to them, of one collection in a bucket. Thread-safe.

    Shards are fetched with their deleted rows and their columns. They stay where they are as long as they are open, and
    after that as long as there is room; see `engine.cache`.

    Parameters
    ----------
    place : Place
    bits : int
        True number of bits of a code.
    progress : callable, optional
        Called with the bytes that have been fetched and those that are to be, in all so far; from several threads, one
        at a time.

    Attributes
    ----------
    root : Path
        The folder of the copies, laid out as a collection is.
    """

    def __init__(self, place: Place, *, bits: int, progress: Progress | None = None) -> None:
        self._place = place
        self._bits = bits
        self._cache = Cache(place, progress)
        self._encoders: set[str] = set()
        self._lock = threading.Lock()
        self.root = self._cache.folder

    def fetch(self, specs: Sequence[ShardSpec]) -> None:
        """Fetch what is not there or damaged, several shards at a time. They may go again, unless they are in use.

        Raises
        ------
        CollectionNotFoundError
            If a shard is gone from the bucket, because no version has it any more.
        CorruptDataError
            If what is in the bucket is damaged, or missing.
        ReadFailedError, OSError
            If the bucket cannot be read, or the copy not be written.
        """
        with self.using(specs):
            pass

    @contextlib.contextmanager
    def using(self, specs: Sequence[ShardSpec]) -> Iterator[None]:
        """Fetch shards, and keep them as long as the context lasts; errors as in `fetch`."""
        with self._cache.using([name for spec in specs for name in _names(spec)]):
            self._fetch([item for spec in specs for item in self._items(spec)])
            yield

    def open(self, spec: ShardSpec, opener: Callable[[], Shard]) -> Shard:
        """Fetch a shard, open it, and keep it as long as it is open; errors as in `fetch`."""
        names = _names(spec)
        self._cache.take(names)
        try:
            self._fetch(self._items(spec))
            shard = opener()
            weakref.finalize(shard, self._cache.release, names)
        except BaseException:
            self._cache.release(names)
            raise
        return shard

    def encoder(self, name: str) -> Path | None:
        """Fetch a copy of the encoder `encoder/NAME`; None if there is nothing of that name, though a version has it.

        It stays as long as this object exists. Errors as in `fetch`.
        """
        path = self.root / "encoder" / name
        with self._lock:
            if name not in self._encoders:
                self._encoders.add(name)
                self._cache.take([f"encoder/{name}"])
                weakref.finalize(self, self._cache.release, [f"encoder/{name}"])
        if not path.is_dir():
            files = {entry.name: entry.size for entry in self._place.walk(f"encoder/{name}")}
            if not files:
                self._check_kept(f"encoder/{name}")
                return None
            # It knows its own fingerprint.
            self._fetch([Item(f"encoder/{name}", files, lambda _path: None)])
        return path

    def _fetch(self, items: Sequence[Item]) -> None:
        try:
            self._cache.fetch(items)
        except FileNotFoundError as error:
            missing = next((item.name for item in items if f"/{item.name}" in str(error.filename)), None)
            if missing is None:
                raise
            self._check_kept(missing)
            raise CorruptDataError(
                f"{error.filename} is missing, which a version of the collection names: restore it from a copy, or "
                "build the collection again"
            ) from error

    def _check_kept(self, name: str) -> None:
        """Raise CollectionNotFoundError if no version has what is missing."""
        named = names_of(self._place)
        if named is not None and name not in named:
            raise CollectionNotFoundError(
                f"{self._place.path(name)} is gone, because newer versions were written and none of those that had it "
                "is kept: open the collection again, or tag a version that is to stay"
            )

    def _items(self, spec: ShardSpec) -> list[Item]:
        sizes = {name: file.bytes for name, file in spec.files.items()}
        items = [Item(f"shards/{spec.name}", sizes, functools.partial(verify_shard, spec=spec, bits=self._bits))]
        if spec.dead is not None:
            check: Callable[[Path], object] = functools.partial(read_dead_rows, dead=spec.dead, rows=spec.rows)
            items.append(Item(f"deletions/{spec.dead.name}", {"": spec.dead.bytes}, check))
        for attribute, file in spec.columns.items():
            check = functools.partial(verify_column, file=file, attribute=attribute, rows=spec.rows)
            items.append(Item(f"columns/{file.name}", {"": file.bytes}, check))
        return items


def _names(spec: ShardSpec) -> list[str]:
    return [
        f"shards/{spec.name}",
        *([f"deletions/{spec.dead.name}"] if spec.dead else []),
        *(f"columns/{file.name}" for file in spec.columns.values()),
    ]


def root_of(place: Place, *, bits: int, progress: Progress | None = None) -> tuple[Path, Copies | None]:
    """Return the folder from which a collection is opened, and who fetches what is in it; None if it is all there."""
    if place.local is not None:
        return place.local, None
    copies = Copies(place, bits=bits, progress=progress)
    return copies.root, copies


def open_shard(
    place: Place, spec: ShardSpec, *, bits: int, index: IndexChoice = "auto", schema: pa.Schema | None = None
) -> Shard:
    """Open one shard of a collection, which is first fetched from a bucket if necessary.

    `schema` has the attributes that it shows, as in `Shard`.

    Raises
    ------
    CollectionNotFoundError, CorruptDataError, ReadFailedError, OSError
        As in `Copies.fetch` and `Shard`.
    """
    root, copies = root_of(place, bits=bits)
    opener = functools.partial(Shard, root, spec, bits=bits, index=index, schema=schema)
    return opener() if copies is None else copies.open(spec, opener)
