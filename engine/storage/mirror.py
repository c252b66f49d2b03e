"""A local copy of a collection in a bucket, because shards are mapped and so must be local files."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path

import platformdirs

from hashlight.engine.errors import CollectionNotFoundError, CorruptDataError
from hashlight.engine.places.files import folder_written_aside, make_folder
from hashlight.engine.places.folder import Folder
from hashlight.engine.places.place import Place
from hashlight.engine.storage.checking import verify_shard
from hashlight.engine.storage.manifest import (
    Manifest,
    ShardSpec,
    copy_manifest,
    read_current,
    sweep,
    sweep_unnamed,
)

logger = logging.getLogger(__name__)

_FOLDERS = ("shards", "manifests", "encoder")


def mirror(place: Place) -> Path:
    """Copy the missing parts of a collection's live version to the user's cache folder; return the copy's path.

    The copy is itself a collection. Its previous version stays until the next one, for processes that are opening it;
    of two processes, one copies and the other waits.

    Raises
    ------
    CollectionNotFoundError
        If there is no collection at the URI.
    CorruptDataError
        If the copied files do not match the manifest.
    """
    while True:
        live = read_current(place)
        try:
            return _copy(place, live)
        except (FileNotFoundError, CorruptDataError):
            # Two commits since the manifest was read remove what it named.
            if read_current(place) == live:
                raise


def _copy(place: Place, live: Manifest) -> Path:
    folder = _folder_of(place)
    local = Folder(folder)
    with local.lock(wait=True):
        before = _local_version(local)
        # A damaged copy is replaced; the bucket is authoritative.
        for spec in live.shards:
            _copy_shard(place, local, spec, bits=live.bits)
        _copy_encoder(place, local, live)
        if before != live:
            copy_manifest(local, live)
            there = {name: local.names(name, hidden=True) for name in _FOLDERS}
            sweep(local, [live, *([before] if before else [])], there)
    return folder


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


def _copy_encoder(place: Place, local: Folder, live: Manifest) -> None:
    if live.encoder_folder is None or not place.names(f"encoder/{live.encoder_folder}"):
        return
    target = local.local / "encoder" / live.encoder_folder
    if not target.is_dir():
        local.remove_leftovers("encoder")
        make_folder(target.parent)
        with folder_written_aside(target, durable=False) as aside:
            place.download(f"encoder/{live.encoder_folder}", aside)


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
            sweep_unnamed(local, place)
    return folder / "shards" / spec.name
