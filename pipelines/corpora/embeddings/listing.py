"""A corpus of embeddings, listed into a work list whose units are ranges of the rows of a file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from hashlight.engine.places.uris import normalise
from hashlight.pipelines.corpora.embeddings.corpus import EmbeddingCorpus, Found
from hashlight.pipelines.corpora.embeddings.rows import attribute_names_of, rule_of
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.kinds.webdataset import START, STOP, range_id
from hashlight.pipelines.corpora.listing import BASE_SCHEMA, EMBEDDINGS, GROUP, ROW, SOURCE, STAMP
from hashlight.pipelines.corpora.work import RANGE_SCHEMA, WorkSummary, WorkWriter

# A unit holds its codes in memory, and the embeddings that are kept beside them.
UNIT_ROWS = 20_000


def list_embeddings(
    corpus: EmbeddingCorpus, output: Path, *, ids: str = "auto", unit_rows: int = UNIT_ROWS
) -> WorkSummary:
    """List a corpus of embeddings into a work list.

    Parameters
    ----------
    corpus : EmbeddingCorpus
    output : Path
        The file to write.
    ids : str
        What ids are made from: "auto", "name", "name:NAME", "uri" or "column:NAME"; see
        `pipelines.corpora.ids.IdRule`.
    unit_rows : int
        Embeddings of a unit, at most.

    Raises
    ------
    PipelineError
        If ids cannot be made so.
    """
    if unit_rows < 1:
        raise ValueError(f"`unit_rows` must be at least 1, got {unit_rows}")
    rule = rule_of(corpus, IdRule.parse(ids, _name_of(corpus)))
    with WorkWriter(output) as work:
        for found in corpus.files:
            for start, stop in itertools.pairwise([0, *_cuts(found, unit_rows)] if found.rows else []):
                work.add(_entry(found, start, stop, rule))
        return work.finish(
            WorkSummary(
                corpus=corpus.location,
                kind=EMBEDDINGS,
                units=0,
                images=corpus.rows,
                columns=[*BASE_SCHEMA.names, *attribute_names_of(corpus.schema, rule)],
                digest="",
                ids=rule.source,
                name=rule.corpus,
                skipped=dict(corpus.skipped),
                embedding_column=corpus.column,
            )
        )


def _name_of(corpus: EmbeddingCorpus) -> str:
    """Return the name of a corpus: that of its folder, also if it is a file in it."""
    location = normalise(corpus.location)
    is_file = len(corpus.files) == 1 and location.rpartition("/")[2] == corpus.files[0].file.name
    folder = location.rpartition("/")[0] if is_file else location
    return folder.rpartition("/")[2]


def _cuts(found: Found, unit_rows: int) -> Iterator[int]:
    """Yield the rows after which a file is divided: where it is well to, or else where a unit is full."""
    start = 0
    while found.rows - start > unit_rows:
        place = int(np.searchsorted(found.ends, start + unit_rows, side="right")) - 1
        is_well = place >= 0 and found.ends[place] > start
        start = int(found.ends[place]) if is_well else start + unit_rows
        yield start
    yield found.rows


def _entry(found: Found, start: int, stop: int, ids: IdRule) -> pa.Table:
    # The row group that a range begins in has to be read from its start; other files may be divided anywhere.
    group = int(np.searchsorted(found.ends, start, side="right")) if len(found.ends) else -1
    columns = {
        "id": [range_id(found.file.name, start, IdRule("name", ids.corpus))],
        "uri": [found.file.name],
        SOURCE: [found.file.uri],
        ROW: [-1],
        STAMP: [found.file.stamp],
        GROUP: [group],
        START: [start],
        STOP: [stop],
    }
    return pa.table(columns, RANGE_SCHEMA)
