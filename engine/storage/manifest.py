"""The manifest: which shards make a collection, and what their bytes must be."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.codes import check_bits
from engine.errors import CollectionNotFoundError, CorruptDataError
from engine.storage.files import sync_folder, write_atomically
from engine.storage.integrity import FileSpec

FORMAT_VERSION = 1

_CURRENT = re.compile(rb"(\d{8}\.json) ([0-9a-f]{64})\n")
_REMEDY = "restore it from a copy, or build the collection again"


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """One shard: its folder's name, its rows, and its files."""

    name: str
    rows: int
    files: dict[str, FileSpec]


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a collection.

    Attributes
    ----------
    version : int
        1 for the first; a write makes the next.
    bits : int
        True number of bits of a code.
    encoder : str or None
        Fingerprint of the encoder that made the codes; None if they came from elsewhere.
    shards : tuple of ShardSpec
    """

    version: int
    bits: int
    encoder: str | None
    shards: tuple[ShardSpec, ...]

    @property
    def rows(self) -> int:
        """Number of codes in all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def file_name(self) -> str:
        """Name of this version's file under `manifests/`."""
        return f"{self.version:08d}.json"


def read_current(collection: Path) -> Manifest:
    """Read the live manifest of a collection, and check it against the checksum that CURRENT names with it.

    Raises
    ------
    CollectionNotFoundError
        If there is no collection at that path.
    CorruptDataError
        If CURRENT or the manifest is damaged, or of a format that this release does not read.
    """
    current = collection / "CURRENT"
    if not current.is_file():
        raise CollectionNotFoundError(
            f"no collection at {collection}: expected a file CURRENT there, got "
            f"{'a folder without one' if collection.is_dir() else 'nothing'}: make one with `hashlight build`, "
            "or run an interrupted build again"
        )
    named = _CURRENT.fullmatch(current.read_bytes())
    if named is None:
        raise CorruptDataError(f"{current} is damaged: expected a manifest's name and SHA-256: {_REMEDY}")
    path, expected = collection / "manifests" / named[1].decode(), named[2].decode()
    if not path.is_file():
        raise CorruptDataError(f"{path} is missing, which CURRENT names: {_REMEDY}")
    data = path.read_bytes()
    got = hashlib.sha256(data).hexdigest()
    if got != expected:
        raise CorruptDataError(f"{path} is damaged: expected SHA-256 {expected[:16]}…, got {got[:16]}…: {_REMEDY}")
    return _parse(path, json.loads(data))


def read_version(collection: Path, version: int) -> Manifest:
    """Read the manifest of one version, the live one or one that is kept for its readers.

    Raises
    ------
    CollectionNotFoundError
        If the collection does not keep that version.
    CorruptDataError
        If the manifest is damaged.
    """
    live = read_current(collection)
    if live.version == version:
        return live
    path = collection / "manifests" / f"{version:08d}.json"
    if not path.is_file():
        raise CollectionNotFoundError(
            f"{collection} keeps no version {version}: the live one is {live.version}, and older ones are removed"
        )
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptDataError(f"{path} is damaged ({error}): {_REMEDY}") from error
    return _parse(path, document)


def publish(collection: Path, manifest: Manifest) -> None:
    """Make `manifest` the live one: its file first, then CURRENT, each in one step."""
    data = json.dumps({"format_version": FORMAT_VERSION, **asdict(manifest)}, indent=1).encode()
    folder = collection / "manifests"
    folder.mkdir(exist_ok=True)
    write_atomically(folder / manifest.file_name, data)
    sync_folder(collection)
    checksum = hashlib.sha256(data).hexdigest()
    write_atomically(collection / "CURRENT", f"{manifest.file_name} {checksum}\n".encode())


def _parse(path: Path, document: dict[str, Any]) -> Manifest:
    if document["format_version"] != FORMAT_VERSION:
        raise CorruptDataError(
            f"{path} has format version {document['format_version']}, this release reads {FORMAT_VERSION}: "
            "open it with the release that wrote it, or build the collection again"
        )
    try:
        return _manifest(document)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(f"{path} is not a readable manifest ({error!r}): {_REMEDY}") from error


def _manifest(body: dict[str, Any]) -> Manifest:
    for shard in body["shards"]:
        for name in (shard["name"], *shard["files"]):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"a shard's files lie inside it, got {name!r}")
    shards = tuple(
        ShardSpec(
            name=str(shard["name"]),
            rows=int(shard["rows"]),
            files={name: FileSpec(**spec) for name, spec in shard["files"].items()},
        )
        for shard in body["shards"]
    )
    return Manifest(version=int(body["version"]), bits=check_bits(body["bits"]), encoder=body["encoder"], shards=shards)
