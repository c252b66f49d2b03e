"""The manifests: CURRENT, the chain of the versions before the live one, and tags."""

from __future__ import annotations

from typing import NamedTuple

from hashlight.engine.collection.verifying.report import RESTORE, Fault
from hashlight.engine.errors import CollectionNotFoundError, CorruptDataError
from hashlight.engine.places.place import Place
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import read_current, read_named

_SHORTEST = 1000


class Versions(NamedTuple):
    """The versions that a collection keeps.

    Attributes
    ----------
    live : Manifest or None
        What CURRENT names or, if that cannot be read, what a repair would have it name; None if there is nothing.
    kept : list of Manifest
        The latest first.
    faults : list of Fault
    is_current : bool
        Whether CURRENT names the live one.
    """

    live: Manifest | None
    kept: list[Manifest]
    faults: list[Fault]
    is_current: bool


def find_versions(place: Place, *, live_only: bool = False) -> Versions:
    """Read the manifests of a collection.

    Raises
    ------
    CollectionNotFoundError
        If there is neither CURRENT nor a manifest.
    """
    faults: list[Fault] = []
    live, is_current = None, True
    try:
        live = read_current(place)
    except (CollectionNotFoundError, CorruptDataError) as error:
        names = place.names("manifests")
        if isinstance(error, CollectionNotFoundError) and not names:
            raise
        is_current = False
        live = _newest_whole(place, names)
        what = _reason(error)
        if live is None:
            faults.append(Fault("current", "CURRENT", what, f"no manifest can be read: {RESTORE}"))
        else:
            remedy = f"a repair makes version {live.version} live, the newest that is whole"
            faults.append(Fault("current", "CURRENT", what, remedy, is_mendable=True))
    kept = [] if live is None else [live]
    if live is not None:
        kept += _chain(place, live, faults)
        kept += _tagged(place, live, kept, faults)
        _check_others(place, faults, {each.file_name for each in kept})
    kept.sort(key=lambda manifest: -manifest.version)
    return Versions(live, kept[:1] if live_only and live is not None else kept, faults, is_current)


def _chain(place: Place, live: Manifest, faults: list[Fault]) -> list[Manifest]:
    """Return the versions before the live one that are kept."""
    found, after = list[Manifest](), live
    while after.parent is not None and after.version > live.oldest:
        where = f"manifests/{after.parent}"
        remedy = f"{RESTORE}; versions before {after.version} cannot be opened by their number"
        try:
            before = read_named(place, after.parent)
        except (CorruptDataError, ValueError) as error:
            faults.append(Fault("manifest", where, _reason(error), remedy))
            break
        if before is None:
            faults.append(Fault("chain", where, f"it is missing, and version {after.version} was made from it", remedy))
            break
        if before.version != after.version - 1:
            what = f"it is version {before.version}, and version {after.version} was made from it"
            faults.append(Fault("chain", where, what, remedy))
            break
        found.append(before)
        after = before
    return found


def _tagged(place: Place, live: Manifest, kept: list[Manifest], faults: list[Fault]) -> list[Manifest]:
    """Return the tagged versions that are not among `kept`."""
    known = {each.file_name for each in kept}
    found: dict[str, Manifest] = {}
    for tag, name in sorted(live.tags.items()):
        if name in known:
            continue
        remedy = f"{RESTORE}, or remove the tag (`hashlight tag --remove`)"
        try:
            version = read_named(place, name)
        except (CorruptDataError, ValueError) as error:
            faults.append(Fault("tag", f"manifests/{name}", f"{_reason(error)}, and is tagged {tag!r}", remedy))
            continue
        if version is None:
            faults.append(Fault("tag", f"manifests/{name}", f"it is missing, and is tagged {tag!r}", remedy))
        else:
            found[name] = version
    return list(found.values())


def _check_others(place: Place, faults: list[Fault], known: set[str]) -> None:
    """Look at manifests that no version needs: what they name is not removed while they cannot be read."""
    said = {fault.where for fault in faults}
    for name in place.names("manifests"):
        where = f"manifests/{name}"
        if name in known or where in said:
            continue
        try:
            read_named(place, name)
        except (CorruptDataError, ValueError) as error:
            remedy = f"{RESTORE}, or delete it if the version is not missed: nothing is removed as long as it is there"
            faults.append(Fault("manifest", where, _reason(error), remedy))


def _newest_whole(place: Place, names: list[str]) -> Manifest | None:
    """Return the latest version whose files are all there or, if there is none, the latest that can be read."""
    readable = []
    for name in names:
        try:
            manifest = read_named(place, name)
        except (CorruptDataError, ValueError):
            continue
        if manifest is not None:
            readable.append(manifest)
    readable.sort(key=lambda manifest: (manifest.version, manifest.written, manifest.file_name), reverse=True)
    return next((manifest for manifest in readable if _is_whole(place, manifest)), readable[0] if readable else None)


def _is_whole(place: Place, manifest: Manifest) -> bool:
    for spec in manifest.shards:
        sizes = {entry.name: entry.size for entry in place.walk(f"shards/{spec.name}")}
        if any(sizes.get(name) != file.bytes for name, file in spec.files.items()):
            return False
        beside = [f"columns/{file.name}" for file in spec.columns.values()]
        beside += [f"deletions/{spec.dead.name}"] if spec.dead else []
        if not all(place.exists(name) for name in beside):
            return False
    return True


def _reason(error: Exception) -> str:
    """Return the message of an error without its last part, what to do about it."""
    return str(error).partition(": restore it")[0].partition(": make one with")[0][:_SHORTEST]
