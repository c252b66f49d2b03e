"""The calls of a client, as plain descriptions that either transport carries out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hashlight.engine.client.queries import Code, Picture, QueryInput

INCLUDES = ("attributes", "code", "explain")


@dataclasses.dataclass(frozen=True, slots=True)
class Search:
    """Find the nearest items, or with `radius` all within it."""

    queries: Code | list[QueryInput]
    options: dict[str, Any]
    timeout_s: float

    @property
    def is_range(self) -> bool:
        """Whether all within a radius are asked for."""
        return "radius" in self.options


@dataclasses.dataclass(frozen=True, slots=True)
class Encode:
    """Encode images."""

    images: list[Picture]
    timeout_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Get:
    """Read what is stored of items."""

    ids: list[int]
    timeout_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Thumbnail:
    """Read the picture of an item."""

    id: int
    timeout_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Describe:
    """Ask what is served."""

    timeout_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """Make one real search."""

    timeout_s: float


Call = Search | Encode | Get | Thumbnail | Describe | Ready


def search_options(
    *,
    filter: str | None,
    allow_partial: bool,
    include: Sequence[str],
    rerank: dict[str, Any] | None = None,
    **wanted: int,
) -> dict[str, Any]:
    """Return the options of a search in the words of the HTTP interface, without those that are not given."""
    unknown = sorted(set(include) - set(INCLUDES))
    if unknown or isinstance(include, str):
        raise ValueError(f"`include` must be a list of some of {', '.join(INCLUDES)}, got {include!r}")
    options: dict[str, Any] = {**wanted, "allow_partial": allow_partial}
    if filter is not None:
        options["filter"] = filter
    if rerank is not None:
        options["rerank"] = rerank
    if include:
        options["include"] = list(include)
    return options
