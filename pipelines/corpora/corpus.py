"""Corpora: where images and what is known of them come from.

A corpus is a folder of images (its sub-folders the classes), Parquet files with images (a column `image`) or with URIs
of images (a column `uri`), WebDataset tar shards, IDX files, a folder of any one of these, or a text file with a URI a
line; on this machine or in a store (`s3://...`). Listed, it is a table with one entry an image:

===========  ======  =================================================================================================
id           int64   the corpus's own `id` column, or 63 bits of a hash of where the image is within the corpus
uri          string  where the image is: `/path/to/image.png`, `/path/to/file.parquet#row`, `s3://b/shard.tar#name`
__source     string  the file to read
__row        int64   the row of that file, -1 if the file is the image
(others)             other columns of a Parquet corpus; `label`: the sub-folder's name, the `.cls` of a shard's sample,
                     the row of an IDX file of labels; `txt` and `json` of a shard's sample
===========  ======  =================================================================================================
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hashlight.engine.places.buckets import split_options
from hashlight.pipelines.corpora.identity import RepeatedIds, refuse_repeated_ids
from hashlight.pipelines.corpora.listing import ROW, SHARDS, SOURCE, hashed_ids, open_listing
from hashlight.pipelines.corpora.reading import read_shard
from hashlight.pipelines.corpora.webdataset import Sample
from hashlight.pipelines.jobs.errors import PipelineError


def list_corpus(path: str | Path) -> pa.Table:
    """List the images of a corpus that fits in memory; `pipelines.corpora.work` is for those that do not.

    Returns
    -------
    pyarrow.Table
        One entry an image, as in the module's docstring, in the order of the names (of the rows, in a file of rows).

    Raises
    ------
    PipelineError
        If there is nothing at `path`, no image in it, or one id stands twice.
    """
    listing = open_listing(path)
    tables = [chunk.entries for chunk in listing.chunks()]
    if listing.kind == SHARDS:
        shards = zip(*(_columns(tables, name) for name in ("uri", SOURCE)), strict=True)
        tables = [shard_entries(name, source, list(read_shard(source)), listing.schema) for name, source in shards]
    entries = pa.concat_tables(tables) if tables else listing.schema.empty_table()
    if not len(entries):
        raise PipelineError(f"{listing.corpus} has no images: its files have no rows")
    with RepeatedIds() as ids:
        ids.add(entries["id"].to_numpy())
        refuse_repeated_ids(ids, lambda: iter([entries]), str(path))
    return entries


def _columns(tables: list[pa.Table], name: str) -> list[str]:
    return [value for table in tables for value in table[name].to_pylist()]


def shard_entries(shard: str, source: str, samples: list[Sample], schema: pa.Schema) -> pa.Table:
    """Make the entries of the samples of a shard; `shard` is its name within the corpus.

    Parameters
    ----------
    schema : pa.Schema
        Of the entries; an attribute that a sample lacks is null, one that the schema lacks is left out.
    """
    uri = split_options(source)[0]
    columns = {
        "id": hashed_ids(f"{shard}#{sample.name}" for sample in samples),
        "uri": [f"{uri}#{sample.name}" for sample in samples],
        SOURCE: [source] * len(samples),
        ROW: np.arange(len(samples)),
    }
    others = {name: [sample.attributes.get(name) for sample in samples] for name in schema.names if name not in columns}
    return pa.table({**columns, **others}, schema)


def attribute_names(entries: pa.Table) -> list[str]:
    """Return the columns of a listing that are stored with the codes as attributes."""
    return [name for name in entries.column_names if name not in ("id", SOURCE, ROW)]


def has_labels(entries: pa.Table) -> bool:
    """Whether the corpus has a column `label`."""
    return "label" in entries.column_names


def labels_of(entries: pa.Table) -> tuple[np.ndarray, list[str]]:
    """Return what labels the entries have, and the labels' names.

    A column `label` of plain values gives a label's number for each entry, (N,) int64. One of lists, of several labels
    an image, gives (N, C) bool with a column a name.

    Raises
    ------
    PipelineError
        If the corpus has no `label` column, or an entry lacks one.
    """
    if not has_labels(entries):
        raise PipelineError(
            "the corpus has no labels: expected sub-folders named after classes, or a Parquet column `label`; "
            f"got beside the images {attribute_names(entries)}"
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
