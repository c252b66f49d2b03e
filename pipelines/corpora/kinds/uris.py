"""Text files with one URI per line as corpora; the images are read as files (`pipelines.corpora.kinds.images`)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.reading import RetryingFile, groups
from hashlight.engine.places.uris import without_credentials
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
    whole,
)
from hashlight.pipelines.jobs.errors import PipelineError

SUFFIXES = (".txt", ".lst")
_BLOCK_BYTES = 1 << 20
# No URI is longer, and no line of a file that is not a text is held in memory as a whole.
_MAX_LINE_BYTES = 1 << 20


def list_lines(root: str, ids: IdRule) -> Listing:
    """List the lines of a text file in UTF-8; a relative path is relative to the folder of the file."""
    return Listing(root, IMAGES, BASE_SCHEMA, whole(lambda: _chunks(root, ids)))


def _chunks(root: str, ids: IdRule) -> Iterator[pa.Table]:
    for part in groups((line for _, line in read_lines(root)), CHUNK_ENTRIES):
        uris, sources = mentioned_in(root, part)
        columns = {
            "id": ids.ids_of(part, uris),
            "uri": uris,
            SOURCE: sources,
            ROW: np.full(len(part), -1, np.int64),
            STAMP: [""] * len(part),
        }
        yield pa.table(columns, BASE_SCHEMA)


def read_lines(root: str) -> Iterator[tuple[int, str]]:
    """Read the lines of a text file that are not empty, with their numbers.

    Raises
    ------
    PipelineError
        If it cannot be read, is not UTF-8, or has a line too long for a URI.
    """
    try:
        with open_place(root).open() as raw:
            for number, line in enumerate(_lines(raw, root), start=1):
                if name := _decoded(line, root, number):
                    yield number, name
    except ReadFailedError:
        raise
    except OSError as error:
        raise PipelineError(f"{without_credentials(root)} cannot be read: {error}") from error


def _decoded(line: bytes, root: str, number: int) -> str:
    try:
        # Some editors begin a text with a mark, which is not part of the name.
        return (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode().strip()
    except UnicodeDecodeError:
        raise _refusal(root, number, f"is not UTF-8: {line[:100]!r}") from None


def _lines(stream: RetryingFile, root: str) -> Iterator[bytes]:
    rest, number = b"", 1
    while block := stream.read(_BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        number += len(lines)
        if len(rest) > _MAX_LINE_BYTES:
            raise _refusal(root, number, f"has more than {_MAX_LINE_BYTES:,} bytes")
    yield rest


def _refusal(root: str, number: int, what: str) -> PipelineError:
    return PipelineError(
        f"line {number} of {without_credentials(root)} {what}: expected a text in UTF-8 with one URI per line"
    )
