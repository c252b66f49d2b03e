"""Fit an encoder to a corpus of embeddings, which need not fit in memory."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path

from hashlight.encoders.config import AUTO
from hashlight.encoders.encoder import HashEncoder
from hashlight.encoders.vectors import unusable
from hashlight.engine.places.opening import open_target
from hashlight.engine.places.uris import normalise
from hashlight.pipelines.corpora.embeddings.corpus import open_corpus
from hashlight.pipelines.corpora.embeddings.rows import UsableRows
from hashlight.pipelines.training.train import publish_encoder, refuse_taken

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def fit_to_embeddings(
    corpus: str | Path,
    output: str | Path,
    *,
    bits: int,
    method: str = AUTO,
    normalise_embeddings: bool = True,
    column: str = "",
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> HashEncoder:
    """Fit an encoder to a corpus of embeddings, in one pass over it, and save it.

    Parameters
    ----------
    corpus : str or Path
        Embeddings, as in `pipelines.corpora.embeddings.corpus`. Those that have no code are left out, with a warning.
    output : str or Path
        Folder for the encoder, or a prefix in a bucket.
    bits, method, seed
        As in `HashEncoder.fit_embeddings`.
    normalise_embeddings : bool
        Scale embeddings to length 1 first, so that their direction alone counts.
    column : str
        The column of the embeddings, if the files have several that could be.
    overwrite : bool
        Replace an encoder that is there.
    progress : callable, optional
        Called with (rows read, rows in all), of the present pass.

    Raises
    ------
    PipelineError
        If there are no embeddings, none has a code, or `output` is taken.
    ValueError
        If the method cannot be fitted to embeddings, or cannot make so many bits of them.
    """
    place = open_target(normalise(output))
    refuse_taken(place, overwrite=overwrite)
    found = open_corpus(corpus, column)
    report = progress or (lambda _read, _total: None)
    rows = UsableRows(
        found,
        functools.partial(unusable, normalise=normalise_embeddings),
        lambda read: report(read, found.rows),
    )
    encoder = HashEncoder.fit_embeddings(rows, bits=bits, method=method, normalise=normalise_embeddings, seed=seed)
    if left_out := sum(rows.reasons.values()):
        common = ", ".join(f"{count:,} because {words}" for words, count in rows.reasons.most_common(3))
        logger.warning("%s: left out %s of %s embeddings (%s)", found.location, left_out, found.rows, common)
    publish_encoder(encoder, place)
    return encoder
