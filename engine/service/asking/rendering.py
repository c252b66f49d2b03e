"""Answers as sent over HTTP: JSON, or an Arrow IPC stream with one row for each hit."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from hashlight.engine.codes import CodeArray
from hashlight.engine.service.asking.retrieval import Answer

METADATA_KEY = b"hashlight"  # of the Arrow schema; its value is JSON


def search_document(answer: Answer, *, timing_ms: dict[str, float]) -> dict[str, Any]:
    """Return the JSON document of an answer; see `engine.service.api.schemas.SearchAnswer`."""
    hits = _hits(answer)
    lims, truncated = answer.lims.tolist(), answer.truncated.tolist()
    results: list[dict[str, Any]] = [
        {"hits": hits[lims[number] : lims[number + 1]], "truncated": truncated[number]}
        for number in range(len(truncated))
    ]
    for number, result in enumerate(results if answer.explain is not None else []):
        result["explain"] = _explain(answer, number)
    return {"results": results, **_frame(answer, timing_ms)}


def search_stream(answer: Answer, *, timing_ms: dict[str, float]) -> bytes:
    """Return an Arrow IPC stream of `search_table`, with `search_frame` in its schema's metadata under `hashlight`."""
    frame = json.dumps(search_frame(answer, timing_ms))
    return table_stream(search_table(answer).replace_schema_metadata({METADATA_KEY: frame}))


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

    `queries` (their number), `truncated` (the positions of truncated ones), `coverage`, `version`, `timing_ms`, and, if
    requested, `explain` (one entry for each query).
    """
    truncated = np.flatnonzero(answer.truncated).tolist()
    frame = {"queries": len(answer.truncated), "truncated": truncated, **_frame(answer, timing_ms)}
    if answer.explain is not None:
        frame["explain"] = [_explain(answer, number) for number in range(len(answer.truncated))]
    return frame


def table_stream(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def items_document(items: pa.Table) -> dict[str, Any]:
    """Return the JSON document of items from `engine.service.asking.retrieval.stored_items`."""
    rows = [{"id": row.pop("id"), "code": row.pop("code").hex(), "attributes": row} for row in items.to_pylist()]
    return {"items": rows}


def hex_codes(codes_QW: CodeArray, *, bits: int) -> list[str]:
    """Return codes in hex, ceil(bits / 8) bytes each."""
    return [row.astype("<u8").tobytes()[: -(-bits // 8)].hex() for row in codes_QW]


def _hits(answer: Answer) -> list[dict[str, Any]]:
    hits: list[dict[str, Any]] = [
        {"id": id_, "distance": distance}
        for id_, distance in zip(answer.ids.tolist(), answer.distances.tolist(), strict=True)
    ]
    if answer.items is None:
        return hits
    has_code = "code" in answer.items.column_names
    attributes = [name for name in answer.items.column_names if name != "code"]
    rows = answer.items.to_pylist() if answer.items.column_names else [{} for _ in hits]
    for hit, row in zip(hits, rows, strict=True):
        if has_code:
            hit["code"] = row.pop("code").hex()
        if attributes or not has_code:
            hit["attributes"] = row
    return hits


def _frame(answer: Answer, timing_ms: dict[str, float]) -> dict[str, Any]:
    coverage = dataclasses.asdict(answer.coverage) | {"complete": answer.coverage.complete}
    version = coverage.pop("version")
    return {"coverage": coverage, "version": version, "timing_ms": timing_ms}


def _explain(answer: Answer, number: int) -> dict[str, Any]:
    explain = answer.explain
    assert explain is not None, "the caller checks that there is an explanation"
    return {
        "plan": explain.plans[number],
        "probes": int(explain.probes[number]),
        "candidates": int(explain.candidates[number]),
        "seconds": float(explain.seconds[number]),
    }
