"""Writing a collection: new shards first, then one manifest that makes them live, in one step."""

from __future__ import annotations

import contextlib
import itertools
import logging
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.codes import CodeArray, IdArray, check_bits
from hashlight.engine.errors import (
    CollectionExistsError,
    CollectionNotFoundError,
    CorruptDataError,
    EncoderMismatchError,
)
from hashlight.engine.ids import find_repeated
from hashlight.engine.places.files import sync_file, sync_folder
from hashlight.engine.places.opening import open_target
from hashlight.engine.places.place import Found, Place
from hashlight.engine.storage.manifest import (
    Manifest,
    ShardSpec,
    check_name,
    make_live,
    read_current,
    sweep,
    sweep_unnamed,
    write_manifest,
)
from hashlight.engine.storage.shard import read_ids, read_layout, write_shard

logger = logging.getLogger(__name__)

# Where a job that writes shards one by one may record finished ones; no collection version needs it.
JOB_FOLDER = "build"

_OWN_ENTRIES = {".lock", "CURRENT", "encoder", "manifests", "shards", JOB_FOLDER}
_MARKS = {".lock", "CURRENT", "manifests"}
_FOLDERS = ("shards", "manifests", "encoder")

Mode = Literal["create", "replace", "append"]


class CollectionWriter:
    """Writes one new version of a collection, which is invisible until `commit`.

    Use it as a context manager: it holds the collection's writer lock, and removes everything uncommitted. Buckets have
    no locks; of two writers, the one that commits second is refused.

    Parameters
    ----------
    path : str or Path
        A folder, or the URI of a place in a bucket; see `engine.places.uris`.
    bits : int
    fingerprint : str or None
        Of the encoder that made the codes.
    tables : bool
        Whether shards get a multi-index.
    overwrite : bool
        Whether an existing collection may be replaced.
    append : bool
        Keep the shards of the existing collection and add to them. The caller must make sure that ids stay distinct;
        see `refuse_known_ids`.
    finished : callable, optional
        Called once the lock is held: returns the names of shards that an interrupted write finished and this one will
        add. Other shards that no version names are removed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        bits: int,
        fingerprint: str | None,
        tables: bool = True,
        overwrite: bool = False,
        append: bool = False,
        finished: Callable[[], Collection[str]] = tuple,
    ) -> None:
        if overwrite and append:
            raise ValueError("a collection is replaced (`overwrite`) or added to (`append`), not both")
        self.place: Place = open_target(path)
        self._bits = check_bits(bits)
        self._fingerprint = None if fingerprint is None else check_name(fingerprint, "an encoder")
        self._tables = tables
        self._mode: Mode = "append" if append else "replace" if overwrite else "create"
        self._finished = finished
        self._previous: Manifest | None = None
        self._current: Found | None = None
        self._old_names: dict[str, list[str]] = {}
        self._specs: dict[int, ShardSpec] = {}
        self._uncommitted: list[str] = []
        self._encoder_folder: str | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Take the writer lock and check that a collection may be written here."""
        refuse_foreign_folder(self.place)
        if self._mode == "append":
            read_current(self.place)  # before a lock file is created where there is no collection
        self._stack.enter_context(self.place.lock())
        try:
            self._current = self.place.find("CURRENT")
            self._previous = self._to_append_to() if self._mode == "append" else self._replaceable()
            self._encoder_folder = self._encoder_before() if self._mode == "append" else None
            if self.place.local and (self._previous or not self._current):
                # Before writing: a disk filled by a dead build would otherwise stay full until a build succeeds.
                sweep_unnamed(self.place, keep=self._finished())
            self._old_names = self._list_folders()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Remove everything uncommitted and release the lock."""
        with self._stack:
            for name in self._uncommitted:
                with contextlib.suppress(OSError):  # the next write removes it
                    self.place.remove(name)

    @property
    def previous(self) -> Manifest | None:
        """The version before this write, if it can be read."""
        return self._previous

    def _replaceable(self) -> Manifest | None:
        """Return the live manifest that this write will replace; it may be damaged."""
        try:
            live = read_current(self.place)
        except (CollectionNotFoundError, CorruptDataError) as error:
            if self._mode == "replace" or not self.place.names("manifests"):
                return None
            raise CorruptDataError(
                f"{self.place} holds a collection that cannot be read ({error}); it can be replaced "
                "(`overwrite=True`, `--overwrite`)"
            ) from error
        if self._mode == "create":
            raise CollectionExistsError(
                f"{self.place} is a collection (version {live.version}, {live.rows:,} codes): choose another path, "
                "allow it to be replaced (`overwrite=True`, `--overwrite`), or add to it (`Collection.append`, "
                "`--append`)"
            )
        return live

    def _to_append_to(self) -> Manifest:
        """Return the live manifest, whose codes must be comparable with the new ones."""
        live = read_current(self.place)
        if (live.bits, live.encoder) != (self._bits, self._fingerprint):
            raise EncoderMismatchError(
                f"{self.place} stores {live.bits}-bit codes of encoder {_short(live.encoder)}, got {self._bits}-bit "
                f"codes of encoder {_short(self._fingerprint)}: append codes of the same encoder, or build a "
                "collection of their own"
            )
        return live

    def refuse_known_ids(self, ids_N: IdArray) -> None:
        """Raise ValueError if the existing version already has one of `ids_N`."""
        for spec in self._previous.shards if self._previous else ():
            known = find_repeated(np.concatenate([read_ids(self.place, spec), ids_N]))
            if len(known):
                raise ValueError(
                    f"{len(known)} of {len(ids_N)} ids are in {self.place} already, first {known[0]}: append only new "
                    "images, under ids of their own"
                )

    def highest_id(self) -> int:
        """Return the highest id of the existing version, -1 if there is none."""
        shards = self._previous.shards if self._previous else ()
        return max((int(read_ids(self.place, spec).max()) for spec in shards), default=-1)

    def add_shard(
        self,
        codes_NW: CodeArray,
        ids_N: IdArray,
        attributes: pa.Table | Iterable[pa.Table] | None,
        features_NF: NDArray[np.float16] | None = None,
        thumbnails: Iterable[pa.Table] | None = None,
    ) -> None:
        """Write one shard; arguments as in `write_shard`.

        Raises
        ------
        ValueError
            If attributes or features do not match those of the other shards.
        """
        with new_shard(self.place) as folder:
            spec = write_shard(
                folder,
                codes_NW,
                ids_N,
                attributes,
                bits=self._bits,
                tables=self._tables,
                features_NF=features_NF,
                thumbnails=thumbnails,
            )
        self._uncommitted.append(f"shards/{spec.name}")
        self.add_written(spec)

    def add_written(self, spec: ShardSpec, *, number: int | None = None) -> None:
        """Take a shard that was written into `new_shard(place)`, here or in another process.

        Shards are in the order of `number`; in the order in which they came if it is left out. The shard stays if there
        is no commit: it is the caller's to remove.
        """
        expected, got = self._layout(), read_layout(self.place, spec)
        if expected not in (None, got):
            raise ValueError(
                f"all shards of a collection store the same beside the codes; {self.place} stores {expected}, got "
                f"{got}: give the same attributes and features"
            )
        self._specs[len(self._specs) if number is None else number] = spec

    def _layout(self) -> str | None:
        """Describe what the shards so far store besides codes; None if there are no shards."""
        first = next(iter((*self._kept, *self._specs.values())), None)
        return None if first is None else read_layout(self.place, first)

    @property
    def _kept(self) -> tuple[ShardSpec, ...]:
        return self._previous.shards if self._mode == "append" and self._previous else ()

    def add_encoder(self, files: Mapping[str, bytes]) -> None:
        """Store a copy of the encoder that made the codes: the files of its folder, by name.

        It is written beside the copy of the version before, or that one is kept if the files are the same.
        """
        if self._fingerprint is None:
            raise ValueError("an encoder is kept under its fingerprint: give `fingerprint` with `encoder`")
        before = self._encoder_before()
        if before is not None:
            name = f"encoder/{before}"
            if files == {file: self.place.read(f"{name}/{file}") for file in self.place.names(name, hidden=True)}:
                self._encoder_folder = before
                return
        name = f"encoder/{uuid.uuid4().hex}"
        with self.place.new_folder(name) as target:
            target.mkdir()
            for file, data in files.items():
                (target / file).write_bytes(data)
                sync_file(target / file)
            sync_folder(target)
        self._uncommitted.append(name)
        self._encoder_folder = name.removeprefix("encoder/")

    def _encoder_before(self) -> str | None:
        """Return the folder with the encoder of the version before, if the codes are of the same one."""
        same = self._previous is not None and self._previous.encoder == self._fingerprint
        return self._previous.encoder_folder if self._previous and same else None

    def commit(self) -> Manifest:
        """Publish the shards as the collection's new version, in one step.

        Raises
        ------
        CollectionBusyError
            If another process has written to the bucket meanwhile.
        """
        last = max((int(name[:8]) for name in self._old_names["manifests"] if name[:8].isdigit()), default=0)
        manifest = Manifest(
            version=last + 1,
            bits=self._bits,
            encoder=self._fingerprint,
            shards=(*self._kept, *(spec for _, spec in sorted(self._specs.items()))),
            encoder_folder=self._encoder_folder,
        )
        current = write_manifest(self.place, manifest)
        # From here on, whatever the store answers, the new version may be or have been live, and another writer's
        # version may use its shards. The next write removes whatever is in no live version.
        self._uncommitted = []
        make_live(self.place, current, self._current)
        # What is not live is a leftover of a dead writer or task, or two versions old. The previous version stays for
        # readers that have read CURRENT but not yet opened its files.
        sweep(self.place, [manifest, *([self._previous] if self._previous else [])], self._names_to_sweep())
        return manifest

    def _names_to_sweep(self) -> dict[str, list[str]]:
        """Return what is there; in a bucket, which has no lock, what is older than this write."""
        return self._list_folders() if self.place.local else self._old_names

    def _list_folders(self) -> dict[str, list[str]]:
        return {folder: self.place.names(folder, hidden=True) for folder in _FOLDERS}


@contextlib.contextmanager
def new_shard(place: Place) -> Iterator[Path]:
    """Yield the path of a new shard's folder; see `engine.places.place.Place.new_folder`."""
    with place.new_folder(f"shards/{uuid.uuid4().hex}") as folder:
        yield folder


def split_rows(rows: int, shards: int) -> Iterator[slice]:
    """Divide `rows` rows into `shards` runs whose lengths differ by at most one.

    Raises
    ------
    ValueError
        If there are no rows, or `shards` is not within 1 to `rows`.
    """
    if rows == 0:
        raise ValueError("a collection must have at least 1 code, got 0")
    if not 1 <= shards <= rows:
        raise ValueError(f"`shards` must be 1 to {rows} (the number of codes), got {shards}")
    edges = [rows * number // shards for number in range(shards + 1)]
    return (slice(start, stop) for start, stop in itertools.pairwise(edges))


def refuse_foreign_folder(place: Place) -> None:
    """Raise CollectionExistsError if a place holds anything that is not a collection's."""
    if place.local and place.local.exists() and not place.local.is_dir():
        raise CollectionExistsError(f"{place} is a file, expected a folder for the collection: choose another path")
    names = set(place.names(hidden=True))
    foreign = sorted(name for name in names - _OWN_ENTRIES if not name.endswith(".tmp"))
    if foreign or (names and not names & _MARKS):
        raise CollectionExistsError(
            f"{place} is not a collection and not empty (it has {', '.join(sorted(names)[:3])}): choose another path"
        )


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else f"{fingerprint[:12]}…"
