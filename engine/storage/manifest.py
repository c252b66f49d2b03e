"""The manifest: the shards of a collection, with checksums."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hashlight.engine.codes import MAX_BITS, MIN_BITS
from hashlight.engine.errors import CollectionBusyError, CollectionNotFoundError, CorruptDataError
from hashlight.engine.indexes.base import MAX_ROWS
from hashlight.engine.places.integrity import FileSpec
from hashlight.engine.places.place import Found, Place
from hashlight.engine.storage.readers import claim, hold

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1

REQUIRED_FILES = frozenset({"codes.faiss", "ids.npy", "rows_by_id.npy"})
TABLE_FILES = frozenset({"tables/tables.json", "tables/offsets.npy", "tables/entries.npy", "tables/starts.npy"})

_CURRENT = re.compile(rb"(\d{8}\.json) ([0-9a-f]{64})\n")
_REMEDY = "restore it from a copy, or build the collection again"


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One shard: its folder's name, its rows, and its files."""

    name: str
    rows: int
    files: dict[str, FileSpec]

    @property
    def has_tables(self) -> bool:
        """Whether it has a multi-index."""
        return self.files.keys() >= TABLE_FILES


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a collection.

    Attributes
    ----------
    version : int
        1 for the first; each write makes the next.
    bits : int
        True number of bits of a code.
    encoder : str or None
        Fingerprint of the encoder that made the codes; None if they came from elsewhere.
    shards : tuple of ShardSpec
    encoder_folder : str or None
        Name of the folder below `encoder/` with the copy of that encoder; None if there is no copy.
    """

    version: int
    bits: int
    encoder: str | None
    shards: tuple[ShardSpec, ...]
    encoder_folder: str | None = None

    @property
    def rows(self) -> int:
        """Number of codes in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shard files."""
        return sum(file.bytes for shard in self.shards for file in shard.files.values())

    @property
    def digest(self) -> str:
        """SHA-256 of the contents: tells versions apart that have the same number, as after a build from scratch."""
        return hashlib.sha256(_encode(self)[0]).hexdigest()

    @property
    def file_name(self) -> str:
        """Name of this version's file under `manifests/`."""
        return f"{self.version:08d}.json"


def read_current(place: Place) -> Manifest:
    """Read the live manifest of a collection and verify it against the checksum in CURRENT.

    Raises
    ------
    CollectionNotFoundError
        If there is no collection there.
    CorruptDataError
        If CURRENT or the manifest is damaged, or has a format that this release cannot read.
    """
    while True:
        current = place.find("CURRENT")
        if current is None:
            raise CollectionNotFoundError(
                f"no collection at {place}: expected a file CURRENT there, got {_describe_contents(place)}: make one "
                "with `hashlight build`, or run an interrupted build again"
            )
        try:
            return _read_named(place, current.data)
        except CorruptDataError:
            # Two commits since CURRENT was read remove what it named.
            again = place.find("CURRENT")
            if again is not None and again.data == current.data:
                raise


def _read_named(place: Place, current: bytes) -> Manifest:
    named = _CURRENT.fullmatch(current)
    if named is None:
        raise CorruptDataError(f"{place}/CURRENT is damaged: expected a manifest's name and SHA-256: {_REMEDY}")
    name, expected = f"manifests/{named[1].decode()}", named[2].decode()
    found = place.find(name)
    if found is None:
        raise CorruptDataError(f"{place}/{name} is missing, which CURRENT names: {_REMEDY}")
    got = hashlib.sha256(found.data).hexdigest()
    if got != expected:
        raise CorruptDataError(
            f"{place}/{name} is damaged: expected SHA-256 {expected[:16]}…, got {got[:16]}…: {_REMEDY}"
        )
    manifest = _parse(f"{place}/{name}", found.data)
    if f"manifests/{manifest.file_name}" != name:
        raise CorruptDataError(f"{place}/{name} is the manifest of version {manifest.version}: {_REMEDY}")
    return manifest


def read_version(place: Place, version: int) -> Manifest:
    """Read the manifest of one version: the live one or one kept for its readers.

    Raises
    ------
    CollectionNotFoundError
        If the collection no longer has that version.
    CorruptDataError
        If the manifest is damaged.
    """
    live = read_current(place)
    if live.version == version:
        return live
    name = f"manifests/{version:08d}.json"
    found = place.find(name)
    if found is None:
        raise CollectionNotFoundError(
            f"{place} no longer has version {version}: the live one is {live.version}, older ones are removed"
        )
    manifest = _parse(f"{place}/{name}", found.data)
    if manifest.version != version:
        raise CorruptDataError(f"{place}/{name} is the manifest of version {manifest.version}: {_REMEDY}")
    return manifest


def read_held(place: Place, version: int | None = None) -> tuple[Manifest, int | None]:
    """Read the manifest of a version (None: the live one), and keep writers from removing what it names.

    Returns
    -------
    Manifest, int or None
        The version is held for as long as this file descriptor is open. None in a bucket, where nothing can be held.

    Raises
    ------
    CollectionNotFoundError, CorruptDataError
        As in `read_current` and `read_version`.
    """
    while True:
        manifest = read_current(place) if version is None else read_version(place, version)
        if place.local is None:
            return manifest, None
        descriptor = hold(place.local / "manifests" / manifest.file_name)
        if descriptor is not None:
            return manifest, descriptor


@contextlib.contextmanager
def holding_live(place: Place) -> Iterator[Manifest]:
    """Yield the live manifest, and hold its version until the context exits; errors as in `read_held`."""
    manifest, descriptor = read_held(place)
    try:
        yield manifest
    finally:
        close_held(descriptor)


def close_held(descriptor: int | None) -> None:
    """Release a version that `read_held` holds."""
    if descriptor is not None:
        os.close(descriptor)


def write_manifest(place: Place, manifest: Manifest) -> bytes:
    """Write the file of `manifest`; return the contents of CURRENT that make it live.

    Raises
    ------
    CollectionBusyError
        If another writer took the same number, which can happen only in a bucket.
    """
    data, current = _encode(manifest)
    if not place.put_new(f"manifests/{manifest.file_name}", data):
        raise _overtaken(place)
    return current


def make_live(place: Place, current: bytes, found: Found | None) -> None:
    """Put the result of `write_manifest` into CURRENT in one step, if CURRENT is still as `found`.

    Raises
    ------
    CollectionBusyError
        If CURRENT has changed. The new version may have been live in between.
    """
    if not place.replace("CURRENT", current, found):
        raise _overtaken(place)


def copy_manifest(place: Place, manifest: Manifest) -> None:
    """Make a manifest live in a copy of its collection, replacing any other. The caller holds the lock."""
    data, current = _encode(manifest)
    place.put(f"manifests/{manifest.file_name}", data)
    place.put("CURRENT", current)


def _encode(manifest: Manifest) -> tuple[bytes, bytes]:
    """Return the contents of a manifest's file, and those of CURRENT when it is live.

    CURRENT has the checksum of the live manifest's file; its own checksum verifies a manifest that is no longer live.
    """
    document = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    data = json.dumps({**document, "sha256": _checksum(document)}, indent=1).encode()
    return data, f"{manifest.file_name} {hashlib.sha256(data).hexdigest()}\n".encode()


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _overtaken(place: Place) -> CollectionBusyError:
    return CollectionBusyError(f"{place} was written by another process meanwhile: this write was discarded, try again")


def sweep(place: Place, live: Sequence[Manifest], names: Mapping[str, Sequence[str]]) -> None:
    """Remove those of `names` (folder -> names in it) that no live manifest names, and no version in use.

    A local version is in use while a reader holds its manifest; see `engine.storage.readers`. Failing to remove one
    does not affect live versions: the next write tries again.
    """
    with contextlib.ExitStack() as claims:
        kept = list(live)
        live_files = {manifest.file_name for manifest in live}
        for name in names["manifests"]:
            if place.local is None or name in live_files:
                continue
            path = place.local / "manifests" / name
            try:
                if not claims.enter_context(claim(path)):
                    logger.info("keeping version %s of %s, which is open somewhere", name, place)
                    kept.append(_parse(str(path), path.read_bytes()))
            except (OSError, CorruptDataError) as error:
                logger.warning("removing nothing from %s, where %s may be in use (%s)", place, name, error)
                return
        _remove_unnamed(place, kept, names)


def _remove_unnamed(place: Place, kept: Sequence[Manifest], names: Mapping[str, Sequence[str]]) -> None:
    named: dict[str, set[str | None]] = {
        "manifests": {manifest.file_name for manifest in kept},
        "shards": {shard.name for manifest in kept for shard in manifest.shards},
        "encoder": {manifest.encoder_folder for manifest in kept},
    }
    for folder in (folder for folder in named if folder in names):
        for name in (entry for entry in names[folder] if entry not in named[folder]):
            logger.info("removing %s/%s/%s, which no live version names", place, folder, name)
            try:
                place.remove(f"{folder}/{name}")
            except OSError as error:
                logger.warning("cannot remove %s/%s/%s (%s): the next write tries again", place, folder, name, error)


def read_all(place: Place) -> list[Manifest] | None:
    """Read the manifests of all existing versions; None if one cannot be read."""
    found = []
    for name in place.names("manifests"):
        try:
            there = place.find(f"manifests/{name}")
            found.append(_parse(f"{place}/manifests/{name}", there.data if there else b""))
        except CorruptDataError as error:
            logger.warning("%s", error)
            return None
    return found


def sweep_unnamed(place: Place, *others: Place, keep: Collection[str] = ()) -> None:
    """Remove shards that no manifest names, here or in `others`: leftovers of dead writers. The caller holds the lock.

    Shards named in `keep` stay. Nothing is removed if a manifest cannot be read, because its shards are unknown.
    """
    kept: list[Manifest] = []
    for each in (place, *others):
        manifests = read_all(each)
        if manifests is None:
            return
        kept += manifests
    _remove_unnamed(place, kept, {"shards": [name for name in place.names("shards", hidden=True) if name not in keep]})


def _describe_contents(place: Place) -> str:
    return "a folder without one" if place.local and place.local.is_dir() else "nothing"


def _parse(path: str, data: bytes) -> Manifest:
    """Parse a manifest, whose checksum may be right whoever wrote it: nothing in it is trusted."""
    try:
        document = json.loads(data)
        if document["format_version"] != FORMAT_VERSION:
            raise CorruptDataError(
                f"{path} has format version {document['format_version']}, this release reads {FORMAT_VERSION}: "
                "open it with the release that wrote it, or build the collection again"
            )
        checksum = document.pop("sha256", None)  # manifests of earlier releases have none
        if checksum is not None and checksum != _checksum(document):
            raise ValueError("its contents do not match its own checksum")
        return _manifest(document)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptDataError(f"{path} is not a readable manifest ({error!r}): {_REMEDY}") from error


def parse_shard(shard: dict[str, Any]) -> ShardSpec:
    """Undo `dataclasses.asdict` of a `ShardSpec`.

    Raises
    ------
    ValueError, LookupError, TypeError, AttributeError
        If it is not a valid description of a shard.
    """
    files = {
        "/".join(check_name(part, "a file of a shard") for part in name.split("/")): _parse_file(file)
        for name, file in shard["files"].items()
    }
    if not files.keys() >= REQUIRED_FILES or 0 < len(TABLE_FILES & files.keys()) < len(TABLE_FILES):
        raise ValueError(
            f"a shard has {', '.join(sorted(REQUIRED_FILES))}, and all of {', '.join(sorted(TABLE_FILES))} or none, "
            f"got {', '.join(sorted(files))}"
        )
    rows = _whole(shard["rows"], "rows of a shard", 1, MAX_ROWS)
    return ShardSpec(name=check_name(shard["name"], "a shard"), rows=rows, files=files)


def _parse_file(file: dict[str, Any]) -> FileSpec:
    if not re.fullmatch("[0-9a-f]{64}", file["sha256"]):
        raise ValueError(f"a SHA-256 has 64 hexadecimal digits, got {file['sha256']!r}")
    return FileSpec(bytes=_whole(file["bytes"], "bytes of a file", 0, 2**63 - 1), sha256=file["sha256"])


def _manifest(body: dict[str, Any]) -> Manifest:
    shards = tuple(parse_shard(shard) for shard in body["shards"])
    if not shards or len({shard.name for shard in shards}) < len(shards):
        raise ValueError(f"a collection has at least one shard, each once, got {[shard.name for shard in shards]}")
    encoder = None if body["encoder"] is None else check_name(body["encoder"], "an encoder")
    # Older manifests have none: their copy of the encoder is named by its fingerprint.
    folder = body.get("encoder_folder", encoder)
    return Manifest(
        version=_whole(body["version"], "the version", 1, 99_999_999),
        bits=_whole(body["bits"], "bits", MIN_BITS, MAX_BITS),
        encoder=encoder,
        shards=shards,
        encoder_folder=None if folder is None else check_name(folder, "an encoder"),
    )


def check_name(name: object, what: str) -> str:
    """Return the name of a shard, a file or an encoder, which becomes part of a path: it must not lead elsewhere.

    Raises
    ------
    ValueError
        If it is not the name of one visible file or folder.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^./\\\0][^/\\\0]{0,199}", name):
        raise ValueError(f"{what} is named by up to 200 characters without slashes, no dot first, got {name!r}")
    return name


def _whole(value: object, what: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"expected {low} to {high} for {what}, got {value!r}")
    return value
