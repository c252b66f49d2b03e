"""Ids of a corpus: made from the names of images, and refused if one occurs more than once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hashlight.engine.codes import IdArray
from hashlight.engine.ids import RepeatedIds
from hashlight.pipelines.jobs.errors import PipelineError


def hashed_ids(names: Iterable[str]) -> IdArray:
    """Return ids that do not depend on the listing's order: the first 63 bits of BLAKE2b of each name."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return (np.frombuffer(digests, "<u8") >> np.uint64(1)).astype(np.int64)


def refuse_repeated_ids(ids: RepeatedIds, tables: Callable[[], Iterator[pa.Table]], corpus: str) -> None:
    """Raise PipelineError, naming two images with the same id, if an id was added more than once.

    Parameters
    ----------
    ids : RepeatedIds
    tables : callable
        Starts a stream of tables with the columns `id` and `uri`, to look the images up in.
    corpus : str
    """
    repeated = ids.find()
    if not len(repeated):
        return
    example = int(repeated[0])
    uris: list[str] = []
    for table in tables():
        uris += table.filter(pc.equal(table["id"], example))["uri"].to_pylist()
        if len(uris) >= 2:
            break
    raise PipelineError(
        f"{len(repeated)} ids occur more than once in the corpus, for example {example} for {' and '.join(uris[:2])}: "
        f"list each image of {corpus} once, and give each its own `id` (Parquet) if two names have the same hash"
    )
