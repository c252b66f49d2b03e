"""The versions of a collection in a place: which is live, which are kept, and how the next one becomes live.

`CURRENT` names the live manifest. A manifest's name holds the SHA-256 of its contents, so two writers never write one
file, and what `CURRENT` names is what was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator

from hashlight.engine.errors import (
    CollectionBusyError,
    CollectionNotFoundError,
    CorruptDataError,
    HashlightError,
    PlaceError,
)
from hashlight.engine.places.files import remove_leftovers
from hashlight.engine.places.place import Found, Place
from hashlight.engine.storage.manifest import Manifest, check_name, parse_manifest
from hashlight.engine.storage.readers import Lease, hold

_NAME = re.compile(r"(\d{8})-([0-9a-f]{64})\.json")
_FIRST_FORMAT = re.compile(rb"(\d{8}\.json) ([0-9a-f]{64})\n")
_REMEDY = "restore it from a copy, or build the collection again"


def read_current(place: Place) -> Manifest:
    """Read the live manifest of a collection and verify its checksum.

    Raises
    ------
    CollectionNotFoundError
        If there is no collection there.
    CorruptDataError
        If CURRENT or the manifest is damaged, or has a format that this release cannot read.
    """
    return read_live(place)[0]


def read_live(place: Place) -> tuple[Manifest, Found]:
    """Read the live manifest, and CURRENT as `publish` wants it; errors as in `read_current`."""
    while True:
        current = place.find("CURRENT")
        if current is None:
            raise CollectionNotFoundError(
                f"no collection at {place}: expected a file CURRENT there, got {_describe_contents(place)}: make one "
                "with `hashlight index` of pictures or `hashlight build` of codes, or run an interrupted job again"
            )
        try:
            return _read_named(place, current.data), current
        except CorruptDataError:
            # Commits since CURRENT was read may have removed what it named.
            again = place.find("CURRENT")
            if again is not None and again.data == current.data:
                raise


def _read_named(place: Place, current: bytes) -> Manifest:
    name, digest = _parse_current(place, current)
    found = place.find(f"manifests/{name}")
    if found is None:
        raise CorruptDataError(f"{place}/manifests/{name} is missing, which CURRENT names: {_REMEDY}")
    return _parse_verified(place, name, digest, found.data)


def _parse_current(place: Place, current: bytes) -> tuple[str, str]:
    if (first := _FIRST_FORMAT.fullmatch(current)) is not None:
        return first[1].decode(), first[2].decode()
    named = _NAME.fullmatch(current.decode(errors="replace").removesuffix("\n"))
    if named is None:
        raise CorruptDataError(f"{place}/CURRENT is damaged: expected the name of a manifest: {_REMEDY}")
    return named[0], named[2]


def _parse_verified(place: Place, name: str, digest: str | None, data: bytes) -> Manifest:
    path, got = f"{place}/manifests/{name}", hashlib.sha256(data).hexdigest()
    if digest not in (None, got):
        raise CorruptDataError(f"{path} is damaged: expected SHA-256 {digest:.16}…, got {got[:16]}…: {_REMEDY}")
    manifest = parse_manifest(path, data)
    if manifest.file_name != name:
        raise CorruptDataError(f"{path} is the manifest of version {manifest.version}: {_REMEDY}")
    return manifest


def read_named(place: Place, name: str) -> Manifest | None:
    """Read one manifest by its file name and verify it; None if it is gone.

    Raises
    ------
    CorruptDataError
        If it is damaged.
    """
    named = _NAME.fullmatch(name)
    found = place.find(f"manifests/{check_name(name, 'a manifest')}")
    return None if found is None else _parse_verified(place, name, named[2] if named else None, found.data)


def read_version(place: Place, version: int | str) -> Manifest:
    """Read the manifest of one version, by its number or its tag.

    Raises
    ------
    CollectionNotFoundError
        If the collection does not have that version.
    CorruptDataError
        If the manifest is damaged.
    """
    return find_version(place, read_current(place), version)


def find_version(place: Place, live: Manifest, version: int | str) -> Manifest:
    """Read the manifest of a version that `live`, the live one, keeps; errors as in `read_version`."""
    if isinstance(version, str):
        if version not in live.tags:
            known = ", ".join(sorted(live.tags)) or "none"
            raise CollectionNotFoundError(f"{place} has no version tagged {version!r}: its tags are {known}")
        found = read_named(place, live.tags[version])
    else:
        found = _find_number(place, live, version)
    if found is None:
        raise CollectionNotFoundError(
            f"{place} has no version {version}: the live one is {live.version}, and older ones are kept from "
            f"{live.oldest} on, and tagged ones"
        )
    return found


def _find_number(place: Place, live: Manifest, version: int) -> Manifest | None:
    """Return a version before the live one; a writer that was overtaken may have left a manifest of the same number."""
    tagged = [name for name in live.tags.values() if name.startswith(f"{version:08d}")]
    if tagged:
        return read_named(place, tagged[0])
    if version == live.version:
        return live
    if not live.oldest <= version < live.version:
        return None
    return next((each for each in ancestors(place, live) if each.version == version), None)


def ancestors(place: Place, manifest: Manifest) -> Iterator[Manifest]:
    """Yield the versions before `manifest` that are kept, the latest first."""
    oldest = manifest.oldest
    while manifest.parent is not None and manifest.version > oldest:
        before = read_named(place, manifest.parent)
        if before is None:
            return
        manifest = before
        yield manifest


def list_versions(place: Place) -> list[Manifest]:
    """Return all versions that can be opened, the latest first.

    Raises
    ------
    CollectionNotFoundError, CorruptDataError
        As in `read_current`.
    """
    live = read_current(place)
    found = {manifest.file_name: manifest for manifest in (live, *ancestors(place, live))}
    for name in set(live.tags.values()) - found.keys():
        if (tagged := read_named(place, name)) is not None:
            found[name] = tagged
    return sorted(found.values(), key=lambda manifest: -manifest.version)


def read_held(place: Place, version: int | str | None = None) -> tuple[Manifest, int | None]:
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


def read_live_held(place: Place) -> tuple[Manifest, Found, int | None]:
    """Read the live manifest, and CURRENT as `publish` wants it, and hold the version; see `read_held`."""
    while True:
        manifest, found = read_live(place)
        if place.local is None:
            return manifest, found, None
        descriptor = hold(place.local / "manifests" / manifest.file_name)
        if descriptor is not None:
            return manifest, found, descriptor


@contextlib.contextmanager
def holding_live(place: Place) -> Iterator[Manifest]:
    """Yield the live manifest, and keep its version until the context exits; errors as in `read_held`."""
    with contextlib.ExitStack() as stack:
        while True:
            manifest, descriptor = read_held(place)
            stack.callback(close_held, descriptor)
            if place.local is not None:
                break
            lease = contextlib.ExitStack()
            with lease:
                lease.enter_context(Lease(place, manifest.file_name))
                # A writer that let the version go before may not have seen the lease.
                if is_kept(manifest, read_current(place)):
                    stack.push(lease.pop_all())
                    break
        yield manifest


def is_kept(manifest: Manifest, live: Manifest) -> bool:
    """Whether a version is kept while another is live."""
    return manifest.version >= live.oldest or manifest.file_name in live.tags.values()


def close_held(descriptor: int | None) -> None:
    """Release a version that `read_held` holds."""
    if descriptor is not None:
        os.close(descriptor)


def publish(place: Place, manifest: Manifest, found: Found | None, *, in_doubt: Callable[[], None]) -> bool:
    """Make `manifest` the live version in one step, unless CURRENT has changed since `found`; return whether it is.

    In a local folder the caller holds the lock (`Place.lock`). If the place fails so that the version may be live then,
    now or later, `in_doubt` is called before the error is raised.

    Raises
    ------
    OSError, PlaceError
        If the place fails.
    CollectionBusyError
        If other writers went on meanwhile, and whether from this version can no longer be told.
    """
    name = f"manifests/{manifest.file_name}"
    _remove_half_written(place)
    try:
        place.put_new(name, manifest.data)
    except BaseException:
        _withdraw(place, name)
        raise
    try:
        published = place.replace("CURRENT", f"{manifest.file_name}\n".encode(), found)
        published = published or (place.local is None and _was_published(place, manifest))
    except BaseException as error:
        outcome = _outcome(place, manifest, error)
        if outcome:
            return True
        if outcome is None:
            in_doubt()
        else:
            _withdraw(place, name)
        raise
    if not published:
        place.remove(name)  # no other writer makes the same
    return published


def _remove_half_written(place: Place) -> None:
    """Remove what writers were writing when they died: nobody else publishes as long as the caller holds the lock."""
    if place.local is not None:
        with contextlib.suppress(OSError):  # the next write tries again
            remove_leftovers(place.local / "manifests")
            remove_leftovers(place.local, "CURRENT")


def _withdraw(place: Place, name: str) -> None:
    with contextlib.suppress(OSError, PlaceError):  # it goes once its number is that of an old version
        place.remove(name)


def _outcome(place: Place, manifest: Manifest, error: BaseException) -> bool | None:
    """Return whether a version is live although the exchange has failed; None if that cannot be told."""
    try:
        if place.local is None:
            # A store may answer with an error after it has written, or write after that.
            return True if isinstance(error, OSError) and _was_published(place, manifest) else None
        there = place.find("CURRENT")
    except (OSError, HashlightError):
        return None
    # What could not be fsynced may be undone by a power failure.
    is_ours = there is not None and there.data.decode(errors="replace").startswith(manifest.file_name)
    return None if is_ours else False


def _was_published(place: Place, manifest: Manifest) -> bool:
    """Whether a version is the live one or one before it, from which other writers have gone on."""
    try:
        after: Manifest | None = read_current(place)
    except CollectionNotFoundError:
        return False
    while after is not None and after.version > manifest.version:
        if after.parent is None or after.version == manifest.version + 1:
            return after.parent == manifest.file_name
        after = read_named(place, after.parent)
    if after is None:
        raise CollectionBusyError(
            f"{place} was written by many processes meanwhile, and whether version {manifest.version} was among their "
            "writes can no longer be told: look for what it should have changed before you try again"
        )
    return after.file_name == manifest.file_name


def _describe_contents(place: Place) -> str:
    return "a folder without one" if place.local and place.local.is_dir() else "nothing"
