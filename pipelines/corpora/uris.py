"""Text files with one URI per line as corpora; the images are read as files (`pipelines.corpora.images`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from hashlight.engine.places.opening import open_place
from hashlight.engine.places.reading import RetryingFile, groups
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.listing import (
    BASE_SCHEMA,
    CHUNK_ENTRIES,
    IMAGES,
    ROW,
    SOURCE,
    STAMP,
    Listing,
    mentioned_in,
)

SUFFIXES = (".txt", ".lst")
_BLOCK_BYTES = 1 << 20


def list_lines(root: str, ids: IdRule) -> Listing:
    """List the lines of a text file; a relative path is relative to the folder of the file."""
    return Listing(root, IMAGES, BASE_SCHEMA, lambda: _chunks(root, ids))


def _chunks(root: str, ids: IdRule) -> Iterator[pa.Table]:
    with open_place(root).open() as raw:
        lines = (line.decode().strip() for line in _lines(raw))
        for part in groups((line for line in lines if line), CHUNK_ENTRIES):
            uris, sources = mentioned_in(root, part)
            columns = {
                "id": ids.ids_of(part, uris),
                "uri": uris,
                SOURCE: sources,
                ROW: np.full(len(part), -1, np.int64),
                STAMP: [""] * len(part),
            }
            yield pa.table(columns, BASE_SCHEMA)


def _lines(stream: RetryingFile) -> Iterator[bytes]:
    rest = b""
    while block := stream.read(_BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    yield rest
