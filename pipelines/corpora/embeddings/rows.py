"""Rows of a corpus of embeddings: their ids, URIs and attributes, and the stream of those that have a code."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hashlight.engine.places.uris import without_credentials
from hashlight.engine.storage.columns import FEATURES, RESERVED, THUMBNAIL
from hashlight.pipelines.corpora.embeddings.corpus import EmbeddingCorpus, open_file
from hashlight.pipelines.corpora.embeddings.files import Batch, EmbeddingFile
from hashlight.pipelines.corpora.ids import IdRule, hashed_ids
from hashlight.pipelines.corpora.listing import HOW_TO_READ, File
from hashlight.pipelines.jobs.errors import PipelineError

logger = logging.getLogger(__name__)

# Names that Hashlight uses itself; an attribute of such a name gets a prefix.
_TAKEN = RESERVED | HOW_TO_READ | {"uri", FEATURES, THUMBNAIL}
_PREFIX = "source_"
_MAX_ID = 2**63 - 1

Unusable = Callable[[NDArray[np.floating[Any]]], dict[int, str]]


class Rows(NamedTuple):
    """Some rows of a file.

    Attributes
    ----------
    entries : pyarrow.Table
        `id`, `uri` and the attributes.
    embeddings : ndarray of float, shape (R, D)
    faults : dict of int to str
        Why some have no embedding.
    """

    entries: pa.Table
    embeddings: NDArray[np.floating[Any]]
    faults: dict[int, str]


class RowReader:
    """Reads ranges of rows; one that begins where the last one ended goes on from there. Not for two threads at once.

    Parameters
    ----------
    column : str
        Of the embeddings; "" if the files have no columns.
    dims : int
    ids : IdRule
        With the column of ids, if there is one.
    """

    def __init__(self, *, column: str, dims: int, ids: IdRule) -> None:
        self._column = column
        self._dims = dims
        self._ids = ids
        self._file: EmbeddingFile | None = None
        self._uri = ""
        self._batches: Iterator[Batch] = iter(())
        self._left: Batch | None = None
        self._next = -1

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
        self._file, self._left, self._next = None, None, -1

    def read(self, file: File, start: int, stop: int) -> Iterator[Rows]:
        """Read rows `start` to `stop` of a file, in batches.

        Raises
        ------
        PipelineError
            If the file cannot be read, or has a row without an id.
        """
        if file.uri != self._uri or start != self._next:
            self._open(file.uri, start, stop)
        while start < stop:
            batch = self._left if self._left is not None else next(self._batches, None)
            if batch is None:
                raise PipelineError(f"{without_credentials(file.uri)} is damaged: it ends before row {start:,}")
            here, self._left = _cut(batch, stop - start)
            start += len(here.embeddings)
            self._next = start
            yield Rows(_entries(file, here, self._ids), here.embeddings, here.faults)

    def _open(self, uri: str, start: int, stop: int) -> None:
        self.close()
        self._file, self._uri = open_file(uri, self._column, self._dims), uri
        if self._file.dims != self._dims or stop > self._file.rows:
            raise PipelineError(
                f"{without_credentials(uri)} has changed: expected {stop:,} rows of {self._dims} numbers, got "
                f"{self._file.rows:,} of {self._file.dims}: run the same command again"
            )
        self._batches = self._file.read(start, self._file.rows)


def _cut(batch: Batch, rows: int) -> tuple[Batch, Batch | None]:
    """Divide a batch after a number of rows."""
    if len(batch.embeddings) <= rows:
        return batch, None
    here = {row: words for row, words in batch.faults.items() if row < rows}
    left = {row - rows: words for row, words in batch.faults.items() if row >= rows}
    return (
        Batch(batch.first, batch.embeddings[:rows], batch.columns.slice(0, rows), here),
        Batch(batch.first + rows, batch.embeddings[rows:], batch.columns.slice(rows), left),
    )


def rule_of(corpus: EmbeddingCorpus, ids: IdRule) -> IdRule:
    """Return what the ids of a corpus are made from, with the name of their column if they have one.

    Raises
    ------
    PipelineError
        If the column is not there, or ids are to be made from what embeddings do not have.
    """
    if ids.by_content:
        raise PipelineError("the ids of embeddings are made from names, URIs or a column, not from content")
    own = ids.column_among(corpus.schema.names)
    if own is None:
        return ids
    if own not in corpus.schema.names:
        raise PipelineError(f"{corpus.location} has no column `{own}` to take ids from: it has {corpus.schema.names}")
    kind = corpus.schema.field(own).type
    if not (pa.types.is_integer(kind) or _is_text(kind)):
        raise PipelineError(f"{corpus.location}: `{own}` must be whole numbers or texts, got {kind}")
    return IdRule(f"column:{own}", ids.corpus)


class UsableRows:
    """The embeddings of a corpus that have a code, in batches: what a fit passes over.

    Parameters
    ----------
    corpus : EmbeddingCorpus
    unusable : callable
        Returns the rows of an array that have no code, and why.
    progress : callable
        Called with the number of rows read, of this pass.

    Attributes
    ----------
    reasons : Counter
        Of the last pass: why rows were left out.
    """

    def __init__(self, corpus: EmbeddingCorpus, unusable: Unusable, progress: Callable[[int], None]) -> None:
        self._corpus = corpus
        self._unusable = unusable
        self._progress = progress
        self.reasons: Counter[str] = Counter()

    @property
    def dims(self) -> int:
        """Numbers in an embedding."""
        return self._corpus.dims

    def __iter__(self) -> Iterator[NDArray[np.floating[Any]]]:
        """Start a pass."""
        self.reasons.clear()
        read = 0
        for found in self._corpus.files:
            opened = open_file(found.file.uri, self._corpus.column, self.dims)
            try:
                for batch in opened.read(0, opened.rows):
                    faults = self._unusable(batch.embeddings) | batch.faults
                    self.reasons.update(faults.values())
                    keep = np.ones(len(batch.embeddings), np.bool_)
                    keep[list(faults)] = False
                    yield batch.embeddings[keep] if faults else batch.embeddings
                    read += len(batch.embeddings)
                    self._progress(read)
            finally:
                opened.close()


def _entries(file: File, batch: Batch, ids: IdRule) -> pa.Table:
    """Return ids, URIs and attributes of a batch."""
    rows = pa.array(np.arange(batch.first, batch.first + len(batch.embeddings))).cast(pa.string())
    uris = pc.binary_join_element_wise(f"{without_credentials(file.uri)}#", rows, "")
    columns = dict(zip(batch.columns.column_names, batch.columns.columns, strict=True))
    if "uri" in columns and _is_text(columns["uri"].type):
        uris = pc.coalesce(columns.pop("uri").cast(pa.string()), uris)
    own = ids.column
    if own is not None and own not in columns:
        raise PipelineError(f"{without_credentials(file.uri)} has no column `{own}` to take ids from")
    id_column = columns[own] if own is not None else None
    if own is not None and pa.types.is_integer(columns[own].type) and own == "id":
        del columns[own]
    attributes = {_named(name): column for name, column in columns.items()}
    if id_column is not None:
        id_values = _given_ids(id_column, str(own), ids, without_credentials(file.uri))
    else:
        names = pc.binary_join_element_wise(f"{file.name}#", rows, "")
        id_values = pa.array(ids.ids_of(names.to_pylist(), uris.to_pylist()))
    return pa.table({"id": id_values, "uri": uris, **attributes})


def _given_ids(column: pa.ChunkedArray, name: str, ids: IdRule, where: str) -> Any:
    if column.null_count:
        raise PipelineError(f"{where}: `{name}` must be there in every row, got {column.null_count} nulls")
    if not pa.types.is_integer(column.type):
        return pa.array(hashed_ids(f"{ids.corpus}/{text}" for text in column.cast(pa.string()).to_pylist()))
    lowest, highest = pc.min_max(column).as_py().values()
    if lowest is not None and (lowest < 0 or highest > _MAX_ID):
        raise PipelineError(
            f"{where}: `{name}` must be 0 to {_MAX_ID} in every row, got a minimum of {lowest} and a maximum of "
            f"{highest}: have ids made with --ids name"
        )
    return column.cast(pa.int64())


def attribute_names_of(schema: pa.Schema, ids: IdRule) -> list[str]:
    """Return the names of the attributes that columns become."""
    is_id = "id" in schema.names and ids.column == "id" and pa.types.is_integer(schema.field("id").type)
    is_uri = "uri" in schema.names and _is_text(schema.field("uri").type)
    taken = {name for name, used in (("id", is_id), ("uri", is_uri)) if used}
    return [_named(name) for name in schema.names if name not in taken]


def _named(name: str) -> str:
    return f"{_PREFIX}{name}" if name in _TAKEN else name


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view())
