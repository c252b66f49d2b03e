"""Columns of rows of Arrow: which one has the embeddings, its lists as an array, and which others are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashlight.engine.storage.columns import check_columns
from hashlight.pipelines.jobs.errors import PipelineError

_FLOATS = (pa.float16(), pa.float32(), pa.float64())


def embedding_column(schema: pa.Schema, wanted: str, where: str) -> str:
    """Return the name of the column of embeddings: the wanted one, or the only one of lists of floats.

    Raises
    ------
    PipelineError
        If there is none, or several and none is wanted.
    """
    lists = [field.name for field in schema if _is_embedding(field.type)]
    if wanted:
        if wanted in lists:
            return wanted
        got = f"is {schema.field(wanted).type}" if wanted in schema.names else f"is not among {schema.names}"
        raise PipelineError(f"{where}: `{wanted}` {got}: expected a column of lists of float16, float32 or float64")
    if len(lists) != 1:
        found = f"it has several: {', '.join(lists)}; name one with --embedding-column" if lists else schema.names
        raise PipelineError(f"{where}: expected one column of lists of float16, float32 or float64, got {found}")
    return str(lists[0])


def other_columns(schema: pa.Schema, embeddings: str) -> list[str]:
    """Return the columns beside the embeddings that can be stored; encoded images and the like are not among them."""
    return [field.name for field in schema if field.name != embeddings and _is_kept(field)]


def dims_of(kind: pa.DataType) -> int | None:
    """Return the length of fixed-size lists; None for others."""
    return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else None


def embeddings_of(column: pa.Array, dims: int) -> tuple[NDArray[np.floating[Any]], dict[int, str]]:
    """Return lists as an array (R, D), and why some rows have none; the numbers of such a row are zeros."""
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    length_R = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    inner = pc.list_flatten(column)  # without the values of null lists
    value_M = inner.to_numpy(zero_copy_only=False)  # nan for null
    if (length_R == dims).all():
        return value_M.reshape(-1, dims), {}
    faults = {
        row: "it has no embedding" if (length := int(length_R[row])) < 0 else f"it has {length} numbers, not {dims}"
        for row in np.flatnonzero(length_R != dims).tolist()
    }
    start_R = np.concatenate([[0], np.cumsum(np.maximum(length_R, 0))])
    embedding_RD = np.zeros((len(length_R), dims), value_M.dtype)
    for row in np.flatnonzero(length_R == dims).tolist():
        embedding_RD[row] = value_M[start_R[row] : start_R[row] + dims]
    return embedding_RD, faults


def first_length(column: pa.Array) -> int | None:
    """Return the length of the first list that is there; None if there is none."""
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    lengths = pc.drop_null(pc.list_value_length(column))
    return int(lengths[0].as_py()) if len(lengths) else None


def _is_embedding(kind: pa.DataType) -> bool:
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and kind.value_type in _FLOATS)


def _is_kept(field: pa.Field) -> bool:
    if _holds_bytes(field.type):
        return False
    try:
        check_columns(pa.schema([pa.field("_", field.type)]))
    except ValueError:
        return False
    return True


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_bytes(inner.type) for inner in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
