"""Encode a corpus of embeddings: the job of `pipelines.encoding.encode`, whose units are ranges of rows."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hashlight.encoders.encoder import HashEncoder
from hashlight.engine.features import FeatureKind
from hashlight.pipelines.codes.encoder import load_encoder
from hashlight.pipelines.codes.summary import EncodeSummary
from hashlight.pipelines.corpora.embeddings.corpus import EmbeddingCorpus, open_corpus
from hashlight.pipelines.corpora.embeddings.listing import UNIT_ROWS, list_embeddings
from hashlight.pipelines.corpora.work import SUFFIX
from hashlight.pipelines.encoding.encode import Progress, encode_corpus
from hashlight.pipelines.jobs.errors import PipelineError


def encode_embeddings(
    corpus: str | Path,
    encoder: str | Path,
    output: str | Path,
    *,
    column: str = "",
    ids: str = "auto",
    features: bool | FeatureKind = False,
    unit_rows: int = UNIT_ROWS,
    actors: int | None = None,
    max_rejects: str | int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EncodeSummary:
    """Encode every embedding of a corpus; those that have no code are rejects.

    Parameters
    ----------
    corpus : str or Path
        Embeddings, as in `pipelines.corpora.embeddings.corpus`.
    encoder : str or Path
        The folder of an encoder of embeddings, local or in a bucket.
    output, actors, max_rejects, overwrite, progress
        As in `pipelines.encoding.encode.encode_corpus`.
    column : str
        The column of the embeddings, if the files have several that could be.
    ids : str
        What ids are made from: "auto", "name", "name:NAME", "uri" or "column:NAME".
    features : bool or {"float16", "bfloat16", "int8"}
        Keep the embeddings too, normalised if the encoder does so, for re-ranking; as in `encode_corpus`.
    unit_rows : int
        Embeddings per unit of work, at most.

    Raises
    ------
    PipelineError
        If there are no embeddings, they do not have the encoder's dimensions, or as in `encode_corpus`.
    EncoderError
        If the encoder takes images.
    """
    found = open_corpus(corpus, column)
    _refuse_other_dims(found, load_encoder(encoder))
    with tempfile.TemporaryDirectory(prefix="hashlight-work-") as folder:
        work = Path(folder, f"work{SUFFIX}")
        list_embeddings(found, work, ids=ids, unit_rows=unit_rows)
        return encode_corpus(
            work,
            encoder,
            output,
            features=features,
            actors=actors,
            max_rejects=max_rejects,
            overwrite=overwrite,
            progress=progress,
        )


def _refuse_other_dims(corpus: EmbeddingCorpus, encoder: HashEncoder) -> None:
    expected = encoder.config.embeddings.dims
    if corpus.dims != expected:
        raise PipelineError(
            f"{corpus.location} has embeddings of {corpus.dims} numbers, the encoder takes {expected}: expected those "
            "of the network that made what it was fitted to"
        )
