"""The shards of a version, each opened when it is first used."""

from __future__ import annotations

import contextlib
import copy
import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import overload

import pyarrow as pa

from hashlight.engine.indexes.choice import IndexChoice, check_index, faiss_kind
from hashlight.engine.indexes.threads import cut, run_aside
from hashlight.engine.storage.attributes import AttributeFile, Attributes
from hashlight.engine.storage.checking import read_dead_rows, verify_column, verify_shard
from hashlight.engine.storage.copies import Copies
from hashlight.engine.storage.manifest import Manifest, ShardSpec
from hashlight.engine.storage.readers import is_held
from hashlight.engine.storage.shard import Shard

# Opening a verified shard takes a fraction of a millisecond, handing work to another thread some 50 microseconds.
_SHARDS_PER_THREAD = 4


class _Handle:
    """One shard: closed until it is first used."""

    def __init__(self, spec: ShardSpec, schema: pa.Schema | None, opener: Callable[[], Shard]) -> None:
        self.spec, self.schema = spec, schema
        self._opener: Callable[[], Shard] | None = opener
        self.shard: Shard | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, shard: Shard, schema: pa.Schema | None) -> _Handle:
        """Return one of a shard that is open."""
        handle = cls(shard.spec, schema, lambda: shard)
        handle.shard = shard
        return handle

    def open(self) -> Shard:
        if self.shard is None:
            with self._lock:
                if self.shard is None:
                    assert self._opener is not None, "a closed shard keeps its opener"
                    self.shard, self._opener = self._opener(), None
        return self.shard


class OpenedShards(Sequence[Shard]):
    """The shards of a version, in the manifest's order, each opened when it is first used. Thread-safe.

    Those of a local collection are verified now; those of one in a bucket are fetched, and verified, when they are
    opened.

    Parameters
    ----------
    root : Path
        Folder of the collection, or of a local copy.
    manifest : Manifest
    index : {"auto", "multi", "scan", "faiss-flat", "faiss-multi-hash"}
    verify : bool
        Hash every file again, even those verified on this machine and not written since.
    reuse : iterable of OpenedShards
        Of other versions of the collection: what is open there, and answers by the same index, is not opened again.
    copies : Copies, optional
        Of a collection in a bucket; `root` is theirs.

    Raises
    ------
    CorruptDataError
        If a file is missing or damaged.
    ValueError
        If `index` is not a choice, or is "multi" and a shard was built without tables.
    """

    def __init__(
        self,
        root: Path,
        manifest: Manifest,
        *,
        index: IndexChoice = "auto",
        verify: bool = False,
        reuse: Iterable[OpenedShards] = (),
        copies: Copies | None = None,
    ) -> None:
        self.copies = copies
        self._root, self._bits, self._schema = root, manifest.bits, shown_schema(manifest)
        self._index: IndexChoice = check_index(index)
        _refuse_without_tables(manifest, index)
        known: dict[str, _Handle] = {}
        for other in reuse:
            if not verify and (other._root, other._index) == (root, index):
                known |= {handle.spec.name: handle for handle in other._handles}
        if copies is None:
            self._verify([spec for spec in manifest.shards if not _is_same(known.get(spec.name), spec)], full=verify)
        elif verify:
            with copies.using(manifest.shards):
                self._verify(manifest.shards, full=True)
        handles = [self._handle_of(spec, known.get(spec.name)) for spec in manifest.shards]
        self._handles: tuple[_Handle, ...] = tuple(handles)

    def _handle_of(self, spec: ShardSpec, known: _Handle | None) -> _Handle:
        if known is not None and _is_same(known, spec) and _equal(known.schema, self._schema):
            return known
        opener = functools.partial(Shard, self._root, spec, bits=self._bits, schema=self._schema, index=self._index)
        if known is not None and known.shard is not None and known.shard.is_of(spec, self._index):
            opener = functools.partial(known.shard.as_of, self._root, spec, schema=self._schema)
        if self.copies is not None:
            opener = functools.partial(self.copies.open, spec, opener)
        return _Handle(spec, self._schema, opener)

    def _verify(self, specs: Sequence[ShardSpec], *, full: bool) -> None:
        def check(part: slice) -> None:
            for spec in specs[part]:
                verify_shard(self._root / "shards" / spec.name, spec, bits=self._bits, full=full)
                if spec.dead is not None:
                    read_dead_rows(self._root / "deletions" / spec.dead.name, spec.dead, spec.rows)
                columns = {}
                for attribute, file in spec.columns.items():
                    path = self._root / "columns" / file.name
                    verify_column(path, file, attribute, spec.rows, full=full)
                    columns[attribute] = AttributeFile(path)
                if columns and self._schema is not None:
                    Attributes(self._schema, spec.rows, None, columns)  # refuses other types

        run_aside(check, cut(len(specs), None, least=_SHARDS_PER_THREAD))

    def changed(self, replaced: Mapping[int, Shard], added: Sequence[Shard]) -> OpenedShards:
        """Return these shards with some of them, by their numbers, replaced by others that are open, and more."""
        other = copy.copy(self)
        handles = [
            _Handle.of(replaced[number], self._schema) if number in replaced else handle
            for number, handle in enumerate(self._handles)
        ]
        other._handles = (*handles, *(_Handle.of(shard, self._schema) for shard in added))
        return other

    def __len__(self) -> int:
        """Return the number of shards, open or not."""
        return len(self._handles)

    @overload
    def __getitem__(self, number: int) -> Shard: ...

    @overload
    def __getitem__(self, number: slice) -> tuple[Shard, ...]: ...

    def __getitem__(self, number: int | slice) -> Shard | tuple[Shard, ...]:
        """Return a shard, or several, opened if necessary.

        Raises
        ------
        CorruptDataError
            If a file is missing or damaged.
        CollectionNotFoundError, ReadFailedError, OSError
            If it cannot be fetched; see `engine.storage.copies.Copies.fetch`.
        """
        if isinstance(number, slice):
            return tuple(self.open(range(len(self))[number]))
        return self._handles[number].open()

    def is_open(self, number: int) -> bool:
        """Whether a shard has been opened."""
        return self._handles[number].shard is not None

    def open(self, numbers: Iterable[int]) -> list[Shard]:
        """Return some shards; those that are not open yet are opened together. Errors as in `__getitem__`."""
        numbers = list(numbers)
        handles = [self._handles[number] for number in numbers]
        closed = [handle for handle in handles if handle.shard is None]

        def open_part(part: slice) -> None:
            for handle in closed[part]:
                handle.open()

        if closed:
            with self.at_hand(numbers):
                run_aside(open_part, cut(len(closed), None, least=_SHARDS_PER_THREAD))
        return [handle.open() for handle in handles]

    def at_hand(self, numbers: Iterable[int]) -> contextlib.AbstractContextManager[None]:
        """Fetch shards, unless they are open; their files stay as long as the context. Errors as in `__getitem__`."""
        if self.copies is None:
            return contextlib.nullcontext()
        handles = (self._handles[number] for number in numbers)
        return self.copies.using([handle.spec for handle in handles if handle.shard is None])


def open_shards(
    root: Path,
    manifest: Manifest,
    *,
    index: IndexChoice = "auto",
    held: int | None = None,
    verify: bool = False,
    reuse: Iterable[OpenedShards] = (),
    copies: Copies | None = None,
) -> OpenedShards:
    """Verify the shards of a version, and open those that cannot wait.

    All are opened if FAISS is to answer, whose indexes take long to fill, or if local files may be removed meanwhile,
    because `held`, from `engine.storage.versions.read_held`, holds nothing. The other arguments, and errors, are those
    of `OpenedShards`.

    Raises
    ------
    MissingDependencyError
        If FAISS is to answer and is not installed.
    """
    shards = OpenedShards(root, manifest, index=index, verify=verify, reuse=reuse, copies=copies)
    if faiss_kind(index) is not None or (copies is None and not is_held(held)):
        for shard in shards.open(range(len(shards))):
            shard.index  # noqa: B018 - opened too
    return shards


def _is_same(known: _Handle | None, spec: ShardSpec) -> bool:
    return known is not None and known.spec == spec


def _equal(one: pa.Schema | None, other: pa.Schema | None) -> bool:
    return one is other or (one is not None and other is not None and bool(one.equals(other, check_metadata=True)))


def _refuse_without_tables(manifest: Manifest, index: IndexChoice) -> None:
    without = next((spec.name for spec in manifest.shards if not spec.has_tables), None)
    if index == "multi" and without is not None:
        raise ValueError(
            f'shard {without} was built without tables, which `index` "multi" needs: open the collection with "auto" '
            'or "scan", or build it again with tables'
        )


def shown_schema(manifest: Manifest) -> pa.Schema | None:
    """Return the attributes that a version shows; None for those of each shard, as in manifests of format 1."""
    return manifest.schema if manifest.format_version == 1 else manifest.schema or pa.schema([])
