"""A local copy of a collection in a bucket, because shards are mapped and so must be local files."""

from __future__ import annotations

import functools
import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs

from hashlight.engine.errors import CollectionNotFoundError, CorruptDataError
from hashlight.engine.places.files import folder_written_aside, make_folder, sha256_of
from hashlight.engine.places.folder import Folder
from hashlight.engine.places.place import Place
from hashlight.engine.storage.attributes import check_attributes
from hashlight.engine.storage.checking import read_dead_rows, verify_column, verify_shard
from hashlight.engine.storage.leftovers import FOLDERS, names_of
from hashlight.engine.storage.manifest import ColumnFile, Manifest, ShardSpec
from hashlight.engine.storage.readers import claim, hold
from hashlight.engine.storage.versions import copy_manifest, find_version, read_current

logger = logging.getLogger(__name__)


def mirror(place: Place, version: int | str | None = None) -> tuple[Path, Manifest, int | None]:
    """Copy the missing parts of a version of a collection, by default the live one, to the user's cache folder.

    The copy is itself a collection. Its previous version stays until the next one, for processes that are opening it;
    of two processes, one copies and the other waits.

    Returns
    -------
    Path, Manifest, int or None
        The copy, and the version, which is held there; see `engine.storage.versions.read_held`.

    Raises
    ------
    CollectionNotFoundError
        If there is no collection at the URI, or it does not have the version.
    CorruptDataError
        If the copied files do not match the manifest.
    """
    while True:
        live = read_current(place)
        wanted = live if version is None else find_version(place, live, version)
        try:
            return _copy(place, wanted, is_live=wanted.file_name == live.file_name)
        except (FileNotFoundError, CorruptDataError):
            # Commits since the manifest was read may have removed what it named.
            if read_current(place) == live:
                raise


def _copy(place: Place, wanted: Manifest, *, is_live: bool) -> tuple[Path, Manifest, int | None]:
    folder = _folder_of(place)
    local = Folder(folder)
    with local.lock(wait=True):
        before = _local_version(local)
        # A damaged copy is replaced; the bucket is authoritative.
        for spec in wanted.shards:
            _copy_shard(place, local, spec, bits=wanted.bits)
            _copy_changes(place, local, spec)
        _copy_encoder(place, local, wanted)
        copy_manifest(local, wanted, live=is_live)
        held = hold(folder / "manifests" / wanted.file_name)
        if is_live and before != wanted:
            _drop_versions(local, {wanted.file_name, *([before.file_name] if before else [])})
            _sweep(local, local)
    return folder, wanted, held


def _drop_versions(local: Folder, kept: set[str]) -> None:
    """Remove the manifests of other versions that nobody holds."""
    for name in set(local.names("manifests")) - kept:
        with claim(local.local / "manifests" / name) as claimed:
            if claimed is not False:
                local.remove(f"manifests/{name}")


def _sweep(local: Folder, *places: Place, keep: str = "") -> None:
    """Remove what no version names in any of these places, but for `keep`. The caller holds the lock."""
    named = [names_of(place) for place in places]
    if None in named:
        return
    kept = set().union(*(names for names in named if names))
    for folder in FOLDERS:
        for name in local.names(folder, hidden=True):
            if f"{folder}/{name}" not in {*kept, keep}:
                local.remove(f"{folder}/{name}")


def _local_version(local: Folder) -> Manifest | None:
    try:
        return read_current(local)
    except (CollectionNotFoundError, CorruptDataError):
        return None


def _folder_of(place: Place) -> Path:
    name = hashlib.sha256(place.location.encode()).hexdigest()[:32]
    return Path(platformdirs.user_cache_dir("hashlight")) / "collections" / name


def _copy_shard(place: Place, local: Folder, spec: ShardSpec, *, bits: int) -> bool:
    """Copy a shard unless an intact copy exists; return whether it was copied."""
    target = local.local / "shards" / spec.name
    if target.is_dir():
        try:
            verify_shard(target, spec, bits=bits)
            return False
        except CorruptDataError as error:
            logger.warning("copying a shard again: %s", error)
            shutil.rmtree(target)
    local.remove_leftovers("shards")
    make_folder(target.parent)
    with folder_written_aside(target, durable=False) as aside:
        place.download(f"shards/{spec.name}", aside)
    verify_shard(target, spec, bits=bits)
    return True


def _copy_changes(place: Place, local: Folder, spec: ShardSpec) -> bool:
    """Copy the deleted rows and the columns of a shard unless intact copies exist; return whether any was copied."""
    checks: dict[str, Callable[[Path], object]] = {}
    if spec.dead is not None:
        checks[f"deletions/{spec.dead.name}"] = functools.partial(read_dead_rows, dead=spec.dead, rows=spec.rows)
    for attribute, file in spec.columns.items():
        checks[f"columns/{file.name}"] = functools.partial(
            verify_column, file=file, attribute=attribute, rows=spec.rows
        )
    copied = [_copy_file(place, local, name, check) for name, check in checks.items()]
    return any(copied)


def _copy_file(place: Place, local: Folder, name: str, check: Callable[[Path], object]) -> bool:
    path = local.local / name
    if path.is_file():
        try:
            check(path)
            return False
        except CorruptDataError as error:
            logger.warning("copying a file again: %s", error)
    local.put(name, place.read(name), durable=False)
    check(path)
    return True


def _copy_encoder(place: Place, local: Folder, live: Manifest) -> None:
    if live.encoder_folder is None or not place.names(f"encoder/{live.encoder_folder}"):
        return
    target = local.local / "encoder" / live.encoder_folder
    if not target.is_dir():
        local.remove_leftovers("encoder")
        make_folder(target.parent)
        with folder_written_aside(target, durable=False) as aside:
            place.download(f"encoder/{live.encoder_folder}", aside)


def local_copy(place: Place) -> Path:
    """Return the local folder of a collection, or of its copy, where `fetch_shard` puts shards."""
    return place.local or _folder_of(place)


def fetch_shard(place: Place, spec: ShardSpec, *, bits: int) -> None:
    """Copy one shard of a collection in a bucket, with its deleted rows and columns, unless there is an intact copy.

    Raises
    ------
    CorruptDataError
        If the copied files do not match the manifest.
    """
    local_shard(place, spec, bits=bits)
    if place.local is None:
        local = Folder(_folder_of(place))
        with local.lock(wait=True):
            _copy_changes(place, local, spec)


def local_shard(place: Place, spec: ShardSpec, *, bits: int) -> Path:
    """Return the local folder of one shard; a shard in a bucket is first copied if necessary.

    A new copy removes the copies of shards that no version in the bucket or in its copy uses any more.

    Raises
    ------
    CorruptDataError
        If the copied files do not match the manifest.
    """
    if place.local is not None:
        return place.local / "shards" / spec.name
    folder = _folder_of(place)
    local = Folder(folder)
    with local.lock(wait=True):
        if _copy_shard(place, local, spec, bits=bits):
            # It may be one that is about to be committed.
            _sweep(local, local, place, keep=f"shards/{spec.name}")
    return folder / "shards" / spec.name


def local_column(place: Place, file: ColumnFile, *, rows: int) -> Path:
    """Return the local path of a column that was set later, checked; one in a bucket is first copied if necessary.

    Raises
    ------
    CorruptDataError
        If it is missing or damaged, or does not have the rows of its shard.
    """
    name = f"columns/{file.name}"
    if place.local is not None:
        path = place.local / name
    else:
        local = Folder(_folder_of(place))
        path = local.local / name
        with local.lock(wait=True):
            if not path.is_file() or path.stat().st_size != file.bytes:
                local.put(name, place.read(name), durable=False)
    if not path.is_file() or sha256_of(path) != file.sha256:
        raise CorruptDataError(
            f"{path} is damaged or missing, expected {file.bytes} bytes with SHA-256 {file.sha256:.16}…: restore it "
            "from a copy, or set the column again"
        )
    check_attributes(path, rows)
    return path
