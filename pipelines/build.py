"""Build a collection from a folder of codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from engine.codes import CodeArray, check_ids
from engine.collection import CollectionWriter, refuse_foreign_folder, split_rows
from pipelines.encode import FEATURES_COLUMN, read_keeps_features, read_parts, read_summary
from pipelines.errors import PipelineError

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class EncodedCorpus:
    """All of a folder: codes (N, W) uint64, ids (N,), attributes (N rows), features (N, F) or None, the encoder."""

    codes: CodeArray
    ids: np.ndarray
    attributes: pa.Table
    features: np.ndarray | None
    bits: int
    fingerprint: str
    encoder: Path


def read_codes(folder: str | Path) -> EncodedCorpus:
    """Read a folder that `encode_corpus` wrote."""
    summary = read_summary(folder)
    table = pa.concat_tables(list(read_parts(folder)), promote_options="default").combine_chunks()
    if len(table) != summary.codes:
        raise PipelineError(f"{folder}: expected {summary.codes} codes, got {len(table)}: encode the corpus again")
    has_features = read_keeps_features(folder)
    return EncodedCorpus(
        codes=codes_column(table["code"]),
        ids=table["id"].to_numpy(),
        attributes=table.drop_columns(["id", "code", *([FEATURES_COLUMN] if has_features else [])]),
        features=_features_column(table[FEATURES_COLUMN]) if has_features else None,
        bits=summary.bits,
        fingerprint=summary.encoder,
        encoder=Path(folder) / "encoder",
    )


def codes_column(column: pa.ChunkedArray) -> CodeArray:
    """View a column of fixed-size binary codes as words, uint64 of shape (N, W)."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    words = array.type.byte_width // 8
    data = np.frombuffer(array.buffers()[1] or b"", "<u8", count=len(array) * words, offset=array.offset * 8 * words)
    return data.reshape(len(array), words).astype(np.uint64, copy=False)


def _features_column(column: pa.ChunkedArray) -> np.ndarray:
    """View a column of fixed-size binary features as float16 (N, F)."""
    dims = column.type.byte_width // 2
    chunks = [
        np.frombuffer(chunk.buffers()[1] or b"", "<f2", count=len(chunk) * dims, offset=chunk.offset * 2 * dims)
        for chunk in column.chunks
    ]
    return np.concatenate(chunks).reshape(-1, dims).astype(np.float16, copy=False)


def build_collection(
    codes: str | Path,
    output: str | Path,
    *,
    shards: int = 1,
    tables: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the codes of a folder as a collection, or as the new version of one.

    Parameters
    ----------
    codes : str or Path
        A folder that `encode_corpus` wrote.
    output : str or Path
        The collection. Until the last step it is what it was before.
    shards : int
    tables : bool
        Build the multi-index of each shard.
    overwrite : bool
        Replace a collection that is there.
    progress : callable, optional
        Called with (shards written, shards in all).

    Raises
    ------
    PipelineError
        If the codes are not whole.
    HashlightError
        If the collection cannot be written; see `engine.collection.CollectionWriter`.
    """
    refuse_foreign_folder(Path(output))
    corpus = read_codes(codes)
    check_ids(corpus.ids, rows=len(corpus.ids))
    parts = list(split_rows(len(corpus.codes), shards))
    options = {"fingerprint": corpus.fingerprint, "tables": tables, "overwrite": overwrite}
    with CollectionWriter(output, bits=corpus.bits, **options) as writer:
        writer.add_encoder(corpus.encoder)
        for number, part in enumerate(parts):
            attributes = corpus.attributes.slice(part.start, part.stop - part.start)
            features = None if corpus.features is None else corpus.features[part]
            writer.add_shard(corpus.codes[part], corpus.ids[part], attributes, features)
            if progress is not None:
                progress(number + 1, len(parts))
        writer.commit()
