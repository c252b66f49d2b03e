"""What lies beside a collection that is served: where it is itself, and the folders that jobs have left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """Where a server finds what no open version of its collection has; None: nowhere.

    Attributes
    ----------
    collection : str or None
        The collection itself, for its earlier versions.
    duplicates : str or None
        Folder in which `hashlight dedup` has left groups of near-duplicates.
    codes : str or None
        Folder in which `hashlight encode` has left codes, and the images that it rejected.
    servers : callable or None
        Returns the shard servers that are known: `address`, `group` (the first is 1), `versions`, `fault`.
    """

    collection: str | None = None
    duplicates: str | None = None
    codes: str | None = None
    servers: Callable[[], Sequence[Mapping[str, Any]]] | None = None
