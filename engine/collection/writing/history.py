"""Versions under a name, an earlier one made live again, and old ones let go."""

from __future__ import annotations

import dataclasses
import datetime

from hashlight.engine.collection.writing.draft import Draft, upgraded
from hashlight.engine.storage.manifest import Manifest, check_tag
from hashlight.engine.storage.versions import ancestors, find_version


class Tag:
    """Keeps a version under a name, until that is removed."""

    def __init__(self, name: str, version: int | None) -> None:
        self._name, self._version = check_tag(name), version

    def apply(self, draft: Draft) -> None:
        """Add the tag to a draft.

        Raises
        ------
        ValueError
            If another version has it.
        CollectionNotFoundError
            If the version is gone.
        """
        live = _live(draft)
        version = find_version(draft.place, live, live.version if self._version is None else self._version)
        there = draft.manifest.tags.get(self._name, version.file_name)
        if there != version.file_name:
            raise ValueError(
                f"{draft.place} has version {int(there[:8])} tagged {self._name!r}: remove that tag first, or choose "
                "another"
            )
        draft.change(tags={**draft.manifest.tags, self._name: version.file_name})


class Untag:
    """Removes a tag; its version goes as untagged ones do."""

    def __init__(self, name: str) -> None:
        self._name = name

    def apply(self, draft: Draft) -> None:
        """Remove the tag from a draft.

        Raises
        ------
        ValueError
            If there is no such tag.
        """
        if self._name not in draft.manifest.tags:
            known = ", ".join(sorted(draft.manifest.tags)) or "none"
            raise ValueError(f"{draft.place} has no version tagged {self._name!r}: its tags are {known}")
        draft.change(tags={tag: name for tag, name in draft.manifest.tags.items() if tag != self._name})


class Rollback:
    """Makes the next version what an earlier one was.

    Ids that were used since are not given again, and what logs had written is not written again.
    """

    def __init__(self, version: int) -> None:
        self._version = version

    def apply(self, draft: Draft) -> None:
        """Let a draft begin with that version.

        Raises
        ------
        CollectionNotFoundError
            If the version is gone.
        """
        live = _live(draft)
        version = find_version(draft.place, live, self._version)
        old, now = upgraded(draft.place, version), draft.manifest
        next_id = max(old.next_id, now.next_id)
        draft.restart(dataclasses.replace(old, next_id=next_id, tags=now.tags, oldest=now.oldest, logs=now.logs))


class Prune:
    """Lets versions go that are neither tagged nor read.

    Parameters
    ----------
    keep : int or None
        How many versions stay, with the new live one; at least the live one and the one before it do.
    older_than : datetime.timedelta or None
        Younger versions stay, too.
    """

    def __init__(self, keep: int | None, older_than: datetime.timedelta | None) -> None:
        if keep is None and older_than is None:
            raise ValueError("give `keep`, `older_than`, or both: which versions to let go")
        if keep is not None and keep < 1:
            raise ValueError(f"`keep` must be at least 1, the live version, got {keep}")
        self._keep, self._older_than = keep, older_than

    def apply(self, draft: Draft) -> None:
        """Raise the oldest version of a draft."""
        live = _live(draft)
        oldest = live.version  # the one before the next stays for readers that are opening it
        if self._keep is not None:
            oldest = min(oldest, live.version + 2 - self._keep)
        if self._older_than is not None:
            oldest = min(oldest, _first_since(draft, live, datetime.datetime.now(datetime.UTC) - self._older_than))
        draft.change(oldest=max(oldest, draft.manifest.oldest))


def _first_since(draft: Draft, live: Manifest, since: datetime.datetime) -> int:
    """Return the number of the earliest version that was written at or after a time."""
    first = live.version
    for version in (live, *ancestors(draft.place, live)):
        if not version.written or datetime.datetime.fromisoformat(version.written) < since:
            break
        first = version.version
    return first


def _live(draft: Draft) -> Manifest:
    assert draft.before is not None, "there is a live version unless a collection is created"
    return draft.before
