"""Answers as sent over HTTP: JSON, or an Arrow IPC stream with one row for each hit.

Both are made piece by piece, so that an answer is never in memory as a whole a second time, and no piece keeps the
interpreter's lock for long. A row that is larger than a piece is written value by value, and a long text in parts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray
from pydantic_core import to_json

from hashlight.engine.codes import CodeArray
from hashlight.engine.filters.kinds import is_list
from hashlight.engine.results import Coverage
from hashlight.engine.service.asking.retrieval import Answer, bytes_of_rows

METADATA_KEY = b"hashlight"  # of the Arrow schema; its value is JSON

# Of a piece: hits or items, and about how many bytes. A row and each of its values take time whatever their size.
_ROWS = 1000
_PIECE_BYTES = 262_144
_LEAST_ROW_BYTES = _PIECE_BYTES // _ROWS
_VALUE_BYTES = 64


def json_bytes(document: Any) -> bytes:
    """Return JSON; NaN and infinity, which JSON lacks, become null, bytes become base64, dates ISO 8601."""
    return to_json(document, inf_nan_mode="null", bytes_mode="base64", serialize_unknown=True)


def json_pieces(answer: Answer, *, timing_ms: dict[str, float]) -> Iterator[bytes]:
    """Yield the JSON document of an answer; see `engine.service.api.schemas.SearchAnswer`."""
    yield b'{"results":['
    sums = _sums_of_bytes(answer.items, len(answer.ids))
    lims, begin = answer.lims.tolist(), 0
    while begin < len(answer.truncated):
        end, most = begin + 1, min(len(answer.truncated), begin + _ROWS)
        while end < most and sums[lims[end + 1]] - sums[lims[begin]] <= _PIECE_BYTES:
            end += 1
        if begin:
            yield b","
        if end > begin + 1 or sums[lims[end]] - sums[lims[begin]] <= _PIECE_BYTES:
            hits = _hits(answer, lims[begin], lims[end])
            bounds = [lim - lims[begin] for lim in lims[begin : end + 1]]
            results = [
                {"hits": hits[bounds[number] : bounds[number + 1]], **_rest(answer, begin + number)}
                for number in range(end - begin)
            ]
            yield json_bytes(results)[1:-1]
        else:
            yield b'{"hits":['
            for at, stop in _pieces(sums, lims[begin], lims[end]):
                if at > lims[begin]:
                    yield b","
                if _is_large(sums, at, stop):
                    yield from _large_hit(answer, at)
                else:
                    yield json_bytes(_hits(answer, at, stop))[1:-1]
            yield b"]," + json_bytes(_rest(answer, begin))[1:]
        begin = end
    yield b"]," + json_bytes(_frame(answer, timing_ms))[1:]


def arrow_pieces(answer: Answer, *, timing_ms: dict[str, float]) -> Iterator[bytes]:
    """Yield an Arrow IPC stream of `search_table`, with `search_frame` in its schema's metadata under `hashlight`."""
    return table_pieces(with_frame(search_table(answer), search_frame(answer, timing_ms)))


def search_table(answer: Answer) -> pa.Table:
    """Return one row for each hit: `query` (int32, its position in the request), `id`, `distance`, included columns."""
    counts_Q = np.diff(answer.lims)
    table = pa.table(
        {
            "query": pa.array(np.repeat(np.arange(len(counts_Q), dtype=np.int32), counts_Q)),
            "id": pa.array(answer.ids),
            "distance": pa.array(answer.distances),
        }
    )
    if answer.items is None:
        return table
    for name, column in zip(answer.items.column_names, answer.items.columns, strict=True):
        table = table.append_column(name, column)
    return table


def search_frame(answer: Answer, timing_ms: dict[str, float]) -> dict[str, Any]:
    """Return everything in an answer besides its hits.

    `queries` (their number), `truncated` (the positions of truncated ones), `attributes` (whether they were requested),
    `order`, `coverage`, `version`, `timing_ms`, and, if requested, `explain` (one entry for each query).
    """
    truncated = np.flatnonzero(answer.truncated).tolist()
    frame = {"queries": len(answer.truncated), "truncated": truncated, "attributes": answer.has_attributes}
    frame |= _frame(answer, timing_ms)
    if answer.explain is not None:
        frame["explain"] = [_explain(answer, number) for number in range(len(answer.truncated))]
    return frame


def with_frame(table: pa.Table, frame: Mapping[str, Any]) -> pa.Table:
    """Return a table with what an answer has besides its rows, in the metadata of its schema."""
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(frame)})


def table_pieces(table: pa.Table) -> Iterator[bytes]:
    """Yield a table as an Arrow IPC stream."""
    sink = _Sink()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        for begin, end in _pieces(_sums_of_bytes(table, len(table)), 0, len(table)):
            writer.write_table(table.slice(begin, end - begin))
            yield from sink.take()
    yield from sink.take()


class _Sink:
    """What is written to it, without a copy, until it is taken."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[Any] = []

    def write(self, data: Any) -> int:
        self._parts.append(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: `take` flushes."""

    def take(self) -> Iterator[bytes]:
        """Yield what was written in pieces, and forget it."""
        small: list[Any] = []
        for data in self._parts:
            part = memoryview(data)
            if len(part) <= _PIECE_BYTES:
                small.append(part)
                continue
            yield b"".join(small)
            small = []
            for begin in range(0, len(part), _PIECE_BYTES):
                yield bytes(part[begin : begin + _PIECE_BYTES])
        self._parts.clear()
        yield b"".join(small)


def items_pieces(items: pa.Table, frame: Mapping[str, Any] | None = None) -> Iterator[bytes]:
    """Yield the JSON document of items from `engine.service.asking.retrieval.stored_items`, and what else it has."""
    yield b'{"items":['
    sums = _sums_of_bytes(items, len(items))
    for begin, end in _pieces(sums, 0, len(items)):
        if begin:
            yield b","
        if _is_large(sums, begin, end):
            yield from _large_item(items, begin)
        else:
            yield json_bytes(items_documents(items.slice(begin, end - begin)))[1:-1]
    yield b"]" + (b"," + json_bytes(frame)[1:] if frame else b"}")


def item_pieces(item: pa.Table) -> Iterator[bytes]:
    """Yield the JSON document of one item, as `items_pieces` has it."""
    if _is_large(_sums_of_bytes(item, 1), 0, 1):
        yield from _large_item(item, 0)
    else:
        yield json_bytes(items_documents(item)[0])


def page_frame(items: pa.Table, coverage: Coverage, *, limit: int) -> dict[str, Any]:
    """Return what a page of items has besides them: `next`, the id that the next one comes after, and the version."""
    last = items["id"][-1].as_py() if len(items) == limit else None
    return {"next": last, **_version_of(coverage)}


def _version_of(coverage: Coverage) -> dict[str, int]:
    """Return which version answered, and with which pending writes on top, if there were any."""
    return {"version": coverage.version} | ({"sequence": coverage.sequence} if coverage.sequence else {})


def facets_pieces(counts: pa.Table, frame: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the JSON document of `engine.service.asking.searcher.Searcher.facets`, and what else it has."""
    yield b'{"values":['
    sums = _sums_of_bytes(counts, len(counts))
    for begin, end in _pieces(sums, 0, len(counts)):
        if begin:
            yield b","
        if _is_large(sums, begin, end):
            yield from _object_pieces(_values_of(counts, begin, counts.column_names))
        else:
            yield json_bytes(counts.slice(begin, end - begin).to_pylist())[1:-1]
    yield b"]," + json_bytes(frame)[1:]


def items_documents(items: pa.Table) -> list[dict[str, Any]]:
    """Return the JSON documents of some items."""
    return [{"id": row.pop("id"), "code": row.pop("code").hex(), "attributes": row} for row in items.to_pylist()]


def hex_codes(codes_QW: CodeArray, *, bits: int) -> list[str]:
    """Return codes in hex, ceil(bits / 8) bytes each."""
    return [row.astype("<u8").tobytes()[: -(-bits // 8)].hex() for row in codes_QW]


def _sums_of_bytes(table: pa.Table | None, num_rows: int) -> NDArray[np.int64]:
    """Return about how many bytes the rows before each one have, and all together (N + 1)."""
    size_N = np.full(num_rows, _LEAST_ROW_BYTES, np.int64)
    if table is not None and table.num_columns:
        size_N = np.maximum(size_N, bytes_of_rows(table, names=True) + _VALUE_BYTES * table.num_columns)
    return np.concatenate([[0], np.cumsum(size_N)])


def _pieces(sums: NDArray[np.int64], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut rows into pieces of at most `_PIECE_BYTES`, or one row."""
    while begin < end:
        within = int(np.searchsorted(sums, sums[begin] + _PIECE_BYTES, "right")) - 1
        stop = min(end, max(begin + 1, within))
        yield begin, stop
        begin = stop


def _is_large(sums: NDArray[np.int64], begin: int, end: int) -> bool:
    """Whether rows that `_pieces` gives are one that is larger than a piece."""
    return end == begin + 1 and int(sums[end] - sums[begin]) > _PIECE_BYTES


def _large_hit(answer: Answer, row: int) -> Iterator[bytes]:
    """Yield what `_hits` has of one hit."""
    assert answer.items is not None, "what makes a hit large are its values"
    [hit] = _hits(dataclasses.replace(answer, items=None), row, row + 1)
    names = answer.items.column_names
    if "code" in names:
        hit["code"] = answer.items["code"][row].as_py().hex()
    yield json_bytes(hit)[:-1] + b',"attributes":'
    yield from _object_pieces(_values_of(answer.items, row, [name for name in names if name != "code"]))
    yield b"}"


def _large_item(items: pa.Table, row: int) -> Iterator[bytes]:
    """Yield what `items_documents` has of one item."""
    item = {"id": items["id"][row].as_py(), "code": items["code"][row].as_py().hex()}
    yield json_bytes(item)[:-1] + b',"attributes":'
    names = [name for name in items.column_names if name not in item]
    yield from _object_pieces(_values_of(items, row, names))
    yield b"}"


def _values_of(table: pa.Table, row: int, names: Iterable[str]) -> Iterator[tuple[str, pa.Array]]:
    """Yield names and values of a row, each as an array of one."""
    for name in names:
        yield name, next(chunk for chunk in table[name].slice(row, 1).chunks if len(chunk))


def _object_pieces(values: Iterable[tuple[str, pa.Array]]) -> Iterator[bytes]:
    """Yield a JSON object of stored values, arrays of one, by their names."""
    before = b"{"
    for name, value in values:
        yield before + json_bytes(name) + b":"
        yield from _value_pieces(value)
        before = b","
    yield b"}" if before == b"," else b"{}"


def _value_pieces(one: pa.Array) -> Iterator[bytes]:
    """Yield a stored value, an array of one, as JSON, which is that of `json_bytes`."""
    kind = one.type
    if one.null_count:
        yield b"null"
    elif pa.types.is_dictionary(kind):
        yield from _value_pieces(one.dictionary.slice(one.indices[0].as_py(), 1))
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield from _text_pieces(_bytes_of(one))
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        yield from _base64_pieces(_bytes_of(one))
    elif is_list(kind):
        yield from _list_pieces(one.flatten())
    elif pa.types.is_struct(kind):
        yield from _object_pieces((field.name, part) for field, part in zip(kind, one.flatten(), strict=True))
    else:
        yield json_bytes(one[0].as_py())


def _bytes_of(one: pa.Array) -> pa.Buffer:
    """Return the bytes of a text, without a copy, which a scalar would be."""
    is_large = pa.types.is_large_string(one.type) or pa.types.is_large_binary(one.type)
    _, offsets, data = one.buffers()
    start, stop = np.frombuffer(offsets, np.int64 if is_large else np.int32)[one.offset : one.offset + 2].tolist()
    return data.slice(start, stop - start)


def _text_pieces(text: pa.Buffer) -> Iterator[bytes]:
    """Yield a JSON string of UTF-8, which is cut between characters."""
    yield b'"'
    data, begin = memoryview(text), 0
    while begin < len(data):
        end = min(begin + _PIECE_BYTES, len(data))
        while begin < end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield json_bytes(str(data[begin:end], "utf-8"))[1:-1]
        begin = end
    yield b'"'


def _base64_pieces(data: pa.Buffer) -> Iterator[bytes]:
    """Yield a JSON string of base64, of which three bytes are four characters."""
    yield b'"'
    for begin in range(0, data.size, _PIECE_BYTES // 3 * 3):
        part = data.slice(begin, min(_PIECE_BYTES // 3 * 3, data.size - begin))
        yield json_bytes(part.to_pybytes())[1:-1]
    yield b'"'


def _list_pieces(values: pa.Array) -> Iterator[bytes]:
    """Yield a JSON list of stored values."""
    table = pa.table({"": values})
    sums = _sums_of_bytes(table, len(table))
    yield b"["
    for begin, end in _pieces(sums, 0, len(table)):
        if begin:
            yield b","
        if _is_large(sums, begin, end):
            yield from _value_pieces(values.slice(begin, 1))
        else:
            yield json_bytes(values.slice(begin, end - begin).to_pylist())[1:-1]
    yield b"]"


def _hits(answer: Answer, begin: int, end: int) -> list[dict[str, Any]]:
    hits: list[dict[str, Any]] = [
        {"id": id_, "distance": distance}
        for id_, distance in zip(answer.ids[begin:end].tolist(), answer.distances[begin:end].tolist(), strict=True)
    ]
    if answer.items is None:
        return hits
    items = answer.items.slice(begin, end - begin)
    has_code = "code" in items.column_names
    rows = items.to_pylist() if items.column_names else [{} for _ in hits]
    for hit, row in zip(hits, rows, strict=True):
        if has_code:
            hit["code"] = row.pop("code").hex()
        if answer.has_attributes:
            hit["attributes"] = row
    return hits


def _rest(answer: Answer, number: int) -> dict[str, Any]:
    """Return what the result of a query holds besides its hits."""
    rest: dict[str, Any] = {"truncated": bool(answer.truncated[number]), "next": None}
    last = int(answer.lims[number + 1]) - 1
    if rest["truncated"] and last >= answer.lims[number]:
        rest["next"] = {
            **_version_of(answer.coverage),
            "distance": int(answer.distances[last]),
            "id": int(answer.ids[last]),
        }
    return rest if answer.explain is None else rest | {"explain": _explain(answer, number)}


def coverage_frame(coverage: Coverage) -> dict[str, Any]:
    """Return what an answer says of the part of the collection that it covers."""
    told = dataclasses.asdict(coverage) | {"complete": coverage.complete}
    del told["version"], told["sequence"]
    return {"coverage": told, **_version_of(coverage)}


def _frame(answer: Answer, timing_ms: dict[str, float]) -> dict[str, Any]:
    return {"order": answer.order, **coverage_frame(answer.coverage), "timing_ms": timing_ms}


def _explain(answer: Answer, number: int) -> dict[str, Any]:
    explain = answer.explain
    assert explain is not None, "the caller checks that there is an explanation"
    return {
        "plan": explain.plans[number],
        "probes": int(explain.probes[number]),
        "candidates": int(explain.candidates[number]),
        "seconds": float(explain.seconds[number]),
    }
