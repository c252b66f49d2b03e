"""Image files as a corpus: a folder of them, whose sub-folders are labels. Also reads images by URI."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.failures import NoFileError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.reading import groups, map_ahead
from hashlight.engine.places.uris import is_local, is_web, without_credentials
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.listing import (
    BASE_SCHEMA,
    CHUNK_ENTRIES,
    FOLDERS,
    IMAGES,
    ROW,
    SOURCE,
    STAMP,
    File,
    FileStream,
    Listing,
)
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.jobs.errors import PipelineError

SUFFIXES = {".apng", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
# These cannot be decoded, but in a folder of images they are images: they are listed and become rejects that say why.
_UNSUPPORTED_SUFFIXES = {".avif", ".heic", ".heif", ".j2k", ".jp2", ".jxl"}
# Larger than any photograph's file, and small enough for a decoding process.
MAX_ENCODED_BYTES = 64 << 20

_REMOTE_READS = 32


def is_image(name: str) -> bool:
    """Whether a lower-case file name is that of an image."""
    return PurePosixPath(name).suffix in SUFFIXES


def is_unsupported(name: str) -> bool:
    """Whether a lower-case file name is that of an image of a format that is not decoded."""
    return PurePosixPath(name).suffix in _UNSUPPORTED_SUFFIXES


def list_files(root: str, found: FileStream, ids: IdRule, options: CorpusOptions) -> Listing:
    """List files that are images; if some lie in sub-folders of the corpus, the sub-folder is the label."""
    some = list(itertools.islice(found(), CHUNK_ENTRIES))
    labelled = any("/" in file.name for file in some) or (is_local(root) and _has_folders(root))
    schema = BASE_SCHEMA.append(pa.field("label", pa.string())) if labelled else BASE_SCHEMA

    def entries_of(files: Iterator[File]) -> Iterator[pa.Table]:
        for part in groups(files, CHUNK_ENTRIES):
            names = [file.name for file in part]
            _refuse_bad_names(part)
            uris = [without_credentials(file.uri) for file in part]
            columns: dict[str, Any] = {
                "id": ids.ids_of(names, uris),
                "uri": uris,
                SOURCE: [file.uri for file in part],
                ROW: np.full(len(part), -1, np.int64),
                STAMP: [file.stamp for file in part],
            }
            if labelled:
                columns["label"] = [name.partition("/")[0] if "/" in name else None for name in names]
            yield pa.table(columns, schema)

    labels_from = FOLDERS if labelled else None
    return Listing(root, IMAGES, schema, found.pieces(entries_of), found.skipped, labels_from=labels_from)


def _has_folders(root: str) -> bool:
    if not os.path.isdir(root):
        return False
    with os.scandir(root) as entries:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)


def _refuse_bad_names(files: list[File]) -> None:
    for file in files:
        try:
            file.name.encode()
        except UnicodeEncodeError:
            raise PipelineError(
                f"the name of {file.uri!r} is not UTF-8, so it cannot be stored as a URI: rename it"
            ) from None


def read_file(source: str) -> bytes | OSError:
    """Read the encoded image of a file; return the error if there is none.

    Raises
    ------
    ReadFailedError
        If reading failed at every try for a reason that may pass. Of a web server that error is returned: it is one
        of many, and the others go on.
    MissingDependencyError
        If its kind of store needs a package that is not installed.
    """
    try:
        return open_place(source).read(max_bytes=MAX_ENCODED_BYTES)
    except OSError as error:
        if isinstance(error, ReadFailedError) and not is_web(source):
            raise
        return error
    except ValueError as error:  # not a file name, or the URI of an unknown kind of store
        return NoFileError(str(error))


def read_files(sources: Iterable[str]) -> Iterator[bytes | OSError]:
    """Read the encoded images of files in order, those of a store several at once."""
    for local, run in itertools.groupby(sources, key=is_local):
        if local:
            yield from map(read_file, run)
        else:
            yield from map_ahead(read_file, run, _REMOTE_READS)
