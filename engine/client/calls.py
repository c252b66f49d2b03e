"""The calls of a client, as plain data that every transport can execute."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.client.queries import Code, Picture, QueryInput
from hashlight.engine.filters.parameters import Parameters
from hashlight.engine.query import Query

if TYPE_CHECKING:
    from hashlight.engine.collection.rerank import Order, Rerank
    from hashlight.engine.features import FeatureValues


def _new_key() -> str:
    return uuid.uuid4().hex


INCLUDES = ("attributes", "code", "explain")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Find the nearest items, or all within a radius.

    Attributes
    ----------
    queries : ndarray of uint64, shape (Q, W), or list of QueryInput
    query : Query
        The search to make for each.
    rerank : Rerank, "hamming", "asymmetric" or None
        As in `engine.service.asking.resolving.Sorted.order`.
    include : tuple of str
        Any of "attributes", "code" and "explain".
    allow_partial : bool
    timeout_s : float
    version : int or None
        The one that must answer.
    sequence : int
        With `version`: the last write of the server's log that must be on top.
    """

    queries: Code | list[QueryInput]
    query: Query
    rerank: Rerank | Order | None = None
    include: tuple[str, ...] = ()
    allow_partial: bool
    timeout_s: float
    version: int | None = None
    sequence: int = 0

    def options(self) -> dict[str, Any]:
        """Return the given options under their names in the HTTP interface."""
        query = self.query
        options: dict[str, Any] = (
            {"k": query.k} if query.radius is None else {"radius": query.radius, "limit": query.limit}
        )
        options["allow_partial"] = self.allow_partial
        if query.after is not None:
            at = {} if self.version is None else {"version": self.version}
            at |= {"sequence": self.sequence} if self.sequence else {}
            options["after"] = {**at, "distance": query.after[0], "id": query.after[1]}
        options |= _where(query.filter, query.parameters)
        if isinstance(self.rerank, str):
            options["rerank"] = self.rerank
        elif self.rerank is not None:
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
class Count:
    """Count items."""

    filter: str | None
    parameters: Parameters | None
    timeout_s: float

    def options(self) -> dict[str, Any]:
        """Return the given options under their names in the HTTP interface."""
        return _where(self.filter, self.parameters)


@dataclasses.dataclass(frozen=True, slots=True)
class Facets:
    """Count the values of an attribute."""

    column: str
    filter: str | None
    parameters: Parameters | None
    limit: int
    timeout_s: float

    def options(self) -> dict[str, Any]:
        """Return the given options under their names in the HTTP interface."""
        return {"column": self.column, "limit": self.limit, **_where(self.filter, self.parameters)}


@dataclasses.dataclass(frozen=True, slots=True)
class Histogram:
    """Count the items at each distance from each query."""

    queries: Code | list[QueryInput]
    filter: str | None
    parameters: Parameters | None
    allow_partial: bool
    timeout_s: float

    def options(self) -> dict[str, Any]:
        """Return the given options under their names in the HTTP interface."""
        return {"allow_partial": self.allow_partial, **_where(self.filter, self.parameters)}


@dataclasses.dataclass(frozen=True, slots=True)
class Scroll:
    """Read a page of items."""

    filter: str | None
    parameters: Parameters | None
    after: int | None
    limit: int
    version: int | None
    sequence: int
    timeout_s: float

    def options(self) -> dict[str, Any]:
        """Return the given options under their names in the HTTP interface."""
        page = {"after": self.after, "limit": self.limit, "version": self.version}
        page["sequence"] = self.sequence or None
        where = _where(self.filter, self.parameters)
        return where | {name: value for name, value in page.items() if value is not None}


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
    """Ask whether searches are answered."""

    timeout_s: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Put:
    """Store items.

    Attributes
    ----------
    items : ndarray of uint64, shape (N, W), or list of Picture
        Their codes, or the images to make codes of.
    ids : ndarray of int64, shape (N,)
    attributes : pyarrow.Table or None
    features : ndarray of float16 or float32, shape (N, F), or None
    thumbnails : pyarrow.Array of binary, length N, or None
    replaces : bool
        Whether items that have these ids are replaced; otherwise they are a reason to refuse all.
    visible : bool
        Whether to wait until every server has it.
    timeout_s : float
    key : str
        Idempotency key: of all writes another one, however often it is sent.
    """

    items: Code | list[Picture]
    ids: NDArray[np.int64]
    attributes: Any
    features: FeatureValues | None
    thumbnails: Any
    replaces: bool
    visible: bool
    timeout_s: float
    key: str = dataclasses.field(default_factory=_new_key)


@dataclasses.dataclass(frozen=True, slots=True)
class Update:
    """Change attributes of items: a table of M rows, one for each id."""

    ids: NDArray[np.int64]
    attributes: Any
    visible: bool
    timeout_s: float
    key: str = dataclasses.field(default_factory=_new_key)


@dataclasses.dataclass(frozen=True, slots=True)
class Delete:
    """Delete items: some ids, or all that satisfy a filter."""

    ids: NDArray[np.int64] | None
    filter: str | None
    parameters: Parameters | None
    visible: bool
    timeout_s: float
    key: str = dataclasses.field(default_factory=_new_key)

    def options(self) -> dict[str, Any]:
        """Return the given options under their names in the HTTP interface."""
        return _where(self.filter, self.parameters) if self.ids is None else {"ids": self.ids.tolist()}


Write = Put | Update | Delete
Call = Search | Encode | Get | Count | Facets | Histogram | Scroll | Thumbnail | Describe | Ready | Write


def _where(filter: str | None, parameters: Parameters | None) -> dict[str, Any]:
    """Return a filter and its lists under their names in the HTTP interface."""
    where: dict[str, Any] = {} if filter is None else {"filter": filter}
    if parameters is not None:
        where["parameters"] = {name: values.tolist() for name, values in parameters.items()}
    return where


def check_include(include: Sequence[str]) -> tuple[str, ...]:
    """Return `include` as a tuple, or raise ValueError for unknown names."""
    unknown = sorted(set(include) - set(INCLUDES))
    if unknown or isinstance(include, str):
        raise ValueError(f"`include` must be a list of some of {', '.join(INCLUDES)}, got {include!r}")
    return tuple(include)
