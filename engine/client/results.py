"""The answers of a client: typed, as Arrow, and as pictures in notebooks.

Shapes: Q queries, M hits.
"""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.results import Coverage

if TYPE_CHECKING:
    import pyarrow as pa

# Ids -> thumbnails as data URIs, None for those that are unavailable.
Thumbnails = Callable[[Sequence[int]], list[str | None]]

_MAX_SHOWN = 20  # hits of a query in a notebook
_QUERIES_SHOWN = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """One item found.

    Attributes
    ----------
    id : int
    distance : int or float
        Hamming distance, or distance of features after re-ranking.
    attributes : dict or None
        If requested by `include=["attributes"]`.
    code : ndarray of uint64, shape (W,), or None
        If requested by `include=["code"]`.
    """

    id: int
    distance: int | float
    attributes: dict[str, Any] | None = None
    code: NDArray[np.uint64] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """A stored item: its id, its code of shape (W,), its attributes."""

    id: int
    code: NDArray[np.uint64]
    attributes: dict[str, Any]


class Cursor(NamedTuple):
    """The last hit of a result that was cut off, where the next one goes on.

    Attributes
    ----------
    distance, id : int
    version : int or None
        Version of the collection that must go on; None: whichever is served.
    sequence : int
        Last write of the server's log that was on top of the version, and is again; 0 if none was.
    """

    distance: int
    id: int
    version: int | None = None
    sequence: int = 0


class Hits(Sequence[Hit]):
    """What one query found, ascending by (distance, id).

    Attributes
    ----------
    ids : ndarray of int64, shape (M,)
    distances : ndarray of int32, or of float32 after re-ranking, shape (M,)
    truncated : bool
        Whether `limit` cut off further hits.
    explain : dict or None
        How the query was answered, if requested: plan, probes, candidates, seconds.
    next : Cursor or None
        If truncated: what to pass as `after`, with the same query, for the hits that follow.
    """

    def __init__(
        self,
        table: pa.Table,
        truncated: bool,
        explain: dict[str, Any] | None,
        thumbnails: Thumbnails,
        version: int,
        sequence: int = 0,
        *,
        has_attributes: bool = False,
    ) -> None:
        self._table = table
        self._thumbnails = thumbnails
        self._has_attributes = has_attributes
        self.ids: NDArray[np.int64] = table["id"].to_numpy()
        self.distances: NDArray[Any] = table["distance"].to_numpy()
        self.truncated = truncated
        self.explain = explain
        self.next = Cursor(int(self.distances[-1]), int(self.ids[-1]), version, sequence) if truncated else None

    def __len__(self) -> int:
        """Return the number of hits."""
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        """Return the hit at a position, or a list of several."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        (row,) = self._table.slice(place, 1).to_pylist()
        id_, distance, code = row.pop("id"), row.pop("distance"), row.pop("code", None)
        return Hit(id_, distance, row if self._has_attributes else None, None if code is None else words_of(code))

    def __repr__(self) -> str:
        """Show the nearest hits."""
        shown = ", ".join(f"{id_} at {distance:g}" for id_, distance in zip(self.ids[:5], self.distances, strict=False))
        return f"Hits({len(self)}{'+' if self.truncated else ''}: {shown}{', …' if len(self) > 5 else ''})"

    def to_arrow(self) -> pa.Table:
        """Return one row for each hit: `id`, `distance`, and what was included."""
        return self._table

    def _repr_html_(self) -> str:
        shown = self[:_MAX_SHOWN]
        pictures = self._thumbnails([hit.id for hit in shown])
        cells = "".join(_cell(hit, picture) for hit, picture in zip(shown, pictures, strict=True))
        more = len(self) - _MAX_SHOWN
        note = f"<div>… and {more:,} more</div>" if more > 0 else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{cells}</div>{note}'


class SearchResponse(Sequence[Hits]):
    """What a batch of queries found: `response[q]` are the hits of query q.

    Attributes
    ----------
    coverage : Coverage
        Which part of the collection was searched, and of which version.
    version : int
    order : str
        Of the hits of a query: "hamming" (ascending distances), "asymmetric" (Hamming distances, which need not
        ascend), or the metric of fine features.
    timing_ms : dict of str to float
        Where the time went.
    """

    def __init__(self, table: pa.Table, frame: dict[str, Any], thumbnails: Thumbnails) -> None:
        self._table = table
        self._thumbnails = thumbnails
        self._truncated = set(frame["truncated"])
        # A server of an earlier version does not tell.
        self._has_attributes: bool = frame.get(
            "attributes", bool({*table.column_names} - {"query", "id", "distance", "code"})
        )
        self._explain: list[dict[str, Any]] | None = frame.get("explain")
        self._lims = np.searchsorted(table["query"].to_numpy(), np.arange(frame["queries"] + 1))
        self.version: int = frame["version"]
        told = {
            field.name: frame["coverage"][field.name]
            for field in dataclasses.fields(Coverage)
            if field.name in frame["coverage"]
        }
        self.coverage = Coverage(**told, version=self.version, sequence=frame.get("sequence", 0))
        self.order: str = frame.get("order", "hamming")
        self.timing_ms: dict[str, float] = frame["timing_ms"]

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self._lims) - 1

    @overload
    def __getitem__(self, index: int) -> Hits: ...
    @overload
    def __getitem__(self, index: slice) -> list[Hits]: ...
    def __getitem__(self, index: int | slice) -> Hits | list[Hits]:
        """Return the hits of a query, or a list of those of several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        rows = self._table.slice(self._lims[number], self._lims[number + 1] - self._lims[number])
        explain = None if self._explain is None else self._explain[number]
        rows = rows.drop_columns(["query"])
        version, sequence = self.coverage.version, self.coverage.sequence
        return Hits(
            rows,
            number in self._truncated,
            explain,
            self._thumbnails,
            version,
            sequence,
            has_attributes=self._has_attributes,
        )

    def __repr__(self) -> str:
        """Show how much was found, and where."""
        coverage = self.coverage
        partial = "" if coverage.complete else f", {coverage.answered} of {coverage.shards} shards"
        return f"SearchResponse({len(self)} queries, {len(self._table)} hits, version {self.version}{partial})"

    def to_arrow(self) -> pa.Table:
        """Return one row for each hit: `query`, `id`, `distance`, and what was included."""
        return self._table

    def _repr_html_(self) -> str:
        shown = "<hr>".join(hits._repr_html_() for hits in self[:_QUERIES_SHOWN])
        return f"<div>{html.escape(repr(self))}</div>{shown}"


class Items(Sequence[Item]):
    """Stored items, in the order requested."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        """Return the item at a position, or a list of several."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        (row,) = self._table.slice(range(len(self))[index], 1).to_pylist()
        return Item(row.pop("id"), words_of(row.pop("code")), row)

    def __repr__(self) -> str:
        """Name the columns."""
        return f"Items({len(self)}: {', '.join(self._table.column_names)})"

    def to_arrow(self) -> pa.Table:
        """Return one row for each item: `id`, `code`, and the attributes."""
        return self._table


class Page(Items):
    """Stored items in ascending order of their ids.

    Attributes
    ----------
    next : int or None
        What to pass as `after` for the page that follows; None at the end.
    version : int
        Version of the collection.
    sequence : int
        Last write of the server's log that is on top of it; 0 if none is.
    """

    def __init__(self, table: pa.Table, frame: dict[str, Any]) -> None:
        super().__init__(table)
        self.next: int | None = frame["next"]
        self.version: int = frame["version"]
        self.sequence: int = frame.get("sequence", 0)


@dataclasses.dataclass(frozen=True, slots=True)
class ValueCount:
    """A value of an attribute, None for items without one, and the number of items that have it."""

    value: Any
    count: int


class ValueCounts(Sequence[ValueCount]):
    """Values of an attribute, the most frequent first, of equally frequent ones the lowest first.

    Attributes
    ----------
    column : str
    version : int
        Version of the collection.
    """

    def __init__(self, table: pa.Table, frame: dict[str, Any]) -> None:
        self._table = table
        self.column: str = frame["column"]
        self.version: int = frame["version"]

    def __len__(self) -> int:
        """Return the number of values."""
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> ValueCount: ...
    @overload
    def __getitem__(self, index: slice) -> list[ValueCount]: ...
    def __getitem__(self, index: int | slice) -> ValueCount | list[ValueCount]:
        """Return the value at a position, or a list of several."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        (row,) = self._table.slice(range(len(self))[index], 1).to_pylist()
        return ValueCount(row["value"], row["count"])

    def __repr__(self) -> str:
        """Show the most frequent values."""
        shown = ", ".join(f"{one.value!r}: {one.count}" for one in self[:5])
        return f"ValueCounts({self.column!r}, {len(self)}: {shown}{', …' if len(self) > 5 else ''})"

    def to_arrow(self) -> pa.Table:
        """Return `value` and `count`."""
        return self._table


def words_of(code: bytes) -> NDArray[np.uint64]:
    """Return the words of a code's bytes, which may lack trailing zeros."""
    return np.frombuffer(code.ljust(-(-len(code) // 8) * 8, b"\0"), "<u8").astype(np.uint64)


def data_uri(picture: bytes | None) -> str | None:
    """Return an encoded image as a data URI."""
    return None if picture is None else f"data:;base64,{base64.b64encode(picture).decode()}"


def _cell(hit: Hit, source: str | None) -> str:
    picture = f'<img src="{html.escape(source)}" style="max-width:112px;max-height:112px" alt="">' if source else ""
    told = "".join(
        f"<div>{html.escape(str(name))}: {html.escape(str(value)[:60])}</div>"
        for name, value in (hit.attributes or {}).items()
    )
    return (
        f'<div style="width:120px;font-size:11px;overflow-wrap:anywhere">{picture}'
        f"<div><b>{hit.distance:g}</b> id {hit.id}</div>{told}</div>"
    )
