"""The calls of a client, as plain descriptions that either transport carries out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hashlight.engine.client.queries import Code, Picture, QueryInput
from hashlight.engine.query import Query

if TYPE_CHECKING:
    from hashlight.engine.collection.rerank import Rerank

INCLUDES = ("attributes", "code", "explain")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Find the nearest items, or all within a radius.

    Attributes
    ----------
    queries : ndarray of uint64, shape (Q, W), or list of QueryInput
    query : Query
        What is asked of each.
    rerank : Rerank or None
    include : tuple of str
        Of "attributes", "code" and "explain".
    allow_partial : bool
    timeout_s : float
    """

    queries: Code | list[QueryInput]
    query: Query
    rerank: Rerank | None = None
    include: tuple[str, ...] = ()
    allow_partial: bool
    timeout_s: float

    def options(self) -> dict[str, Any]:
        """Return what is asked in the words of the HTTP interface, without what is not given."""
        query = self.query
        options: dict[str, Any] = (
            {"k": query.k} if query.radius is None else {"radius": query.radius, "limit": query.limit}
        )
        options["allow_partial"] = self.allow_partial
        if query.filter is not None:
            options["filter"] = query.filter
        if self.rerank is not None:
            options["rerank"] = {"pool": self.rerank.pool, "metric": self.rerank.metric}
        if self.include:
            options["include"] = list(self.include)
        return options


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


def check_include(include: Sequence[str]) -> tuple[str, ...]:
    """Return what is to be said of each hit, if it can be."""
    unknown = sorted(set(include) - set(INCLUDES))
    if unknown or isinstance(include, str):
        raise ValueError(f"`include` must be a list of some of {', '.join(INCLUDES)}, got {include!r}")
    return tuple(include)
