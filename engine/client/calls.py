"""The calls of a client, as plain data that every transport can execute."""

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
        The search to make for each.
    rerank : Rerank or None
    include : tuple of str
        Any of "attributes", "code" and "explain".
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
        """Return the given options under their names in the HTTP interface."""
        query = self.query
        options: dict[str, Any] = (
            {"k": query.k} if query.radius is None else {"radius": query.radius, "limit": query.limit}
        )
        options["allow_partial"] = self.allow_partial
        if query.filter is not None:
            options["filter"] = query.filter
        if query.parameters is not None:
            options["parameters"] = {name: values.tolist() for name, values in query.parameters.items()}
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
    """Read stored items."""

    ids: list[int]
    timeout_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Thumbnail:
    """Read the thumbnail of an item."""

    id: int
    timeout_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Describe:
    """Describe the collection being served."""

    timeout_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """Make a test search."""

    timeout_s: float


Call = Search | Encode | Get | Thumbnail | Describe | Ready


def check_include(include: Sequence[str]) -> tuple[str, ...]:
    """Return `include` as a tuple, or raise ValueError for unknown names."""
    unknown = sorted(set(include) - set(INCLUDES))
    if unknown or isinstance(include, str):
        raise ValueError(f"`include` must be a list of some of {', '.join(INCLUDES)}, got {include!r}")
    return tuple(include)
