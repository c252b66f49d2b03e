"""Folders of codes, read as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from hashlight.engine.codes import CodeArray
from hashlight.pipelines.codes.parts import (
    FEATURES_COLUMN,
    attribute_columns,
    codes_column,
    features_column,
    kind_of_codes,
    read_parts,
)
from hashlight.pipelines.codes.summary import read_summary


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
    """Read a folder that `encode_corpus` wrote, as a whole."""
    summary = read_summary(folder)
    table = pa.concat_tables(list(read_parts(folder)), promote_options="default").combine_chunks()
    assert len(table) == summary.codes
    has_features = FEATURES_COLUMN in table.column_names
    return EncodedCorpus(
        codes=codes_column(table["code"]),
        ids=table["id"].to_numpy(),
        attributes=table.select(attribute_columns(table.schema)),
        features=features_column(table[FEATURES_COLUMN], kind_of_codes(folder))[:] if has_features else None,
        bits=summary.bits,
        fingerprint=summary.encoder,
        encoder=Path(folder) / "encoder",
    )
