"""Labels of a listed corpus: one per image, or several."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hashlight.pipelines.corpora.listing import HOW_TO_READ
from hashlight.pipelines.jobs.errors import PipelineError


def attribute_names(entries: pa.Table) -> list[str]:
    """Return the columns of a listing that are stored with the codes as attributes."""
    return [name for name in entries.column_names if name != "id" and name not in HOW_TO_READ]


def has_labels(entries: pa.Table) -> bool:
    """Whether the corpus has a column `label`."""
    return "label" in entries.column_names


def labels_of(entries: pa.Table) -> tuple[np.ndarray, list[str]]:
    """Return the labels of the entries, and the labels' names.

    A column `label` of plain values gives each entry the number of its label, (N,) int64. A column of lists, with
    several labels per image, gives (N, C) bool with one column per name.

    Raises
    ------
    PipelineError
        If the corpus has no `label` column, or an entry lacks one.
    """
    if not has_labels(entries):
        raise PipelineError(
            "the corpus has no labels: expected sub-folders named after classes, or a Parquet column `label`; "
            f"got {attribute_names(entries)} beside the images"
        )
    column = entries["label"]
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    missing = pc.fill_null(pc.equal(pc.list_value_length(column), 0), True) if lists else column.is_null()
    count = pc.sum(missing).as_py()
    if count:
        first = entries["uri"][pc.index(missing, True).as_py()]
        raise PipelineError(
            f"{count} of {len(column)} images have no label (first: {first}): leave them out or label them"
        )
    if lists:
        return _several_labels(column)
    names, numbers = np.unique(column.to_numpy(zero_copy_only=False), return_inverse=True)
    return numbers.astype(np.int64), [str(name) for name in names]


def _several_labels(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    lists = column.combine_chunks()
    names, numbers = np.unique(lists.flatten().to_numpy(zero_copy_only=False), return_inverse=True)
    matrix = np.zeros((len(lists), len(names)), np.bool_)
    matrix[pc.list_parent_indices(lists).to_numpy(), numbers] = True
    return matrix, [str(name) for name in names]
