"""What `verify` finds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

RESTORE = "restore it from a copy"
REBUILT = "a repair rebuilds it"
UNCLEAR = "which row is right cannot be told: delete the ids, and add them again"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is missing, damaged, or contradicts something else.

    Attributes
    ----------
    kind : str
        `current`, `manifest`, `chain`, `tag`, `missing`, `checksum`, `codes`, `ids`, `order`, `rows-by-id`, `tables`,
        `scalars`, `features`, `attributes`, `thumbnails`, `repeated-ids`, `id-range`, `statistics`, `dead-rows`,
        `column`, `next-id`, `encoder` or `leftover`.
    where : str
        A name in the collection, such as `shards/NAME/ids.npy`.
    what : str
        What was expected, and what is there.
    remedy : str
        What to do about it.
    is_mendable : bool
        Whether a repair mends it.
    shard : str or None
        Name of the shard that a repair writes anew.
    versions : tuple of int
        That have it, descending; empty if it is of no version.
    """

    kind: str
    where: str
    what: str
    remedy: str
    is_mendable: bool = False
    shard: str | None = None
    versions: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return it in one line."""
        numbers = self.versions
        which = ""
        if numbers:
            which = f" (version {numbers[0]})" if len(numbers) == 1 else f" (versions {numbers[-1]} to {numbers[0]})"
        return f"{self.where}{which}: {self.what}: {self.remedy}"

    def of(self, versions: tuple[int, ...], live: int) -> Fault:
        """Return it as a fault of some versions; those before the live one are not changed by a repair."""
        if self.is_mendable and live not in versions:
            remedy = "only versions before the live one have it, which a repair leaves as they are: prune them"
            return dataclasses.replace(self, versions=versions, remedy=remedy, is_mendable=False)
        return dataclasses.replace(self, versions=versions)


@dataclass(frozen=True, slots=True)
class Report:
    """What a collection consists of, and what is wrong with it.

    Attributes
    ----------
    location : str
        Path or URI.
    version : int or None
        The live one; None if there is none that can be read.
    versions : tuple of int
        That were verified, the latest first.
    shards, rows : int
        Of all of these versions: shards, and rows with deleted ones.
    faults : tuple of Fault
    mended : tuple of Fault
        That a repair has mended.
    """

    location: str
    version: int | None
    versions: tuple[int, ...]
    shards: int
    rows: int
    faults: tuple[Fault, ...]
    mended: tuple[Fault, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether there is no fault."""
        return not self.faults
