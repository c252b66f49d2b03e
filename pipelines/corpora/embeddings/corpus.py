"""A corpus of embeddings: which files are in it, of which kind, and what they have in common.

It is a file or a folder, local or in a bucket, of one of these kinds:

- `.npy`: an array (N, D); ids are made from the names of the files and the numbers of the rows.
- `.parquet`, `.arrow`, `.feather`: a column of lists of one length; all other columns are kept as attributes.
- a folder of clip-retrieval: `img_emb/img_emb_0.npy`, ..., with `metadata/metadata_0.parquet`, ... beside them.
- a data set of Hugging Face, as `save_to_disk` writes it, or several in one folder (`DatasetDict`).
- `.faiss`, `.index`: a float Flat index of FAISS; ids are its own, if it is an IndexIDMap.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import normalise, split_options, without_credentials
from hashlight.pipelines.corpora.embeddings.beside import WithMetadata
from hashlight.pipelines.corpora.embeddings.files import EmbeddingFile, PlainRows, open_faiss, open_npy
from hashlight.pipelines.corpora.embeddings.tables import ArrowFile, ParquetFile, TableFile
from hashlight.pipelines.corpora.listing import File, entry_of, skip, suffix_kind, told, walk
from hashlight.pipelines.jobs.errors import PipelineError

logger = logging.getLogger(__name__)

NPY, PARQUET, ARROW, FAISS = "npy", "Parquet", "Arrow", "FAISS"
_SUFFIXES = {
    ".npy": NPY,
    ".parquet": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
    ".faiss": FAISS,
    ".index": FAISS,
}
EXPECTED = "expected .npy, .parquet, .arrow, .feather, .faiss or .index"
# clip-retrieval: the embeddings of a file, and the metadata of the same number.
_CLIP_EMBEDDINGS = re.compile(r"(?:^|.*/)img_emb/img_emb_\d+\.npy")
_CLIP_NUMBER = re.compile(r"(.*?)(?:img|text)_emb/(?:img|text)_emb_(\d+)\.npy")
_HF_STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a corpus: what it is, how many rows it has, and after which of them it is well to divide it."""

    file: File
    rows: int
    ends: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EmbeddingCorpus:
    """Files of embeddings that have the same dimensions.

    Attributes
    ----------
    location : str
        Without credentials.
    files : list of Found
    dims : int
    column : str
        The column of the embeddings; "" if the files have none.
    schema : pyarrow.Schema
        Of the columns beside the embeddings, those of all files.
    skipped : Counter
        Files and columns that are left out, by kind.
    """

    location: str
    files: list[Found]
    dims: int
    column: str
    schema: pa.Schema
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        """How many rows all files have."""
        return sum(found.rows for found in self.files)


def open_corpus(location: str | Path, column: str = "") -> EmbeddingCorpus:
    """Find the embeddings at a path or URI; the headers of all files are read.

    Parameters
    ----------
    location : str or Path
    column : str
        The column of the embeddings, if the files have several that could be.

    Raises
    ------
    PipelineError
        If there are none, or the files disagree on dimensions or columns.
    """
    root = normalise(location)
    skipped: Counter[str] = Counter()
    files = list(_find(root, skipped))
    found: list[Found] = []
    schemas: dict[pa.Schema, None] = {}
    dims, name = None, column
    for file in files:
        opened = open_file(file.uri, name, dims)
        try:
            if isinstance(opened, TableFile):
                name = opened.column
                for left_out in opened.left_out:
                    skip(skipped, f"column {left_out}, which cannot be kept")
            if dims is not None and opened.dims != dims:
                raise PipelineError(
                    f"{without_credentials(file.uri)} has embeddings of {opened.dims} numbers, {files[0].name} of "
                    f"{dims}: expected those of one network"
                )
            dims = opened.dims
            schemas.setdefault(opened.schema)
            found.append(Found(file, opened.rows, opened.ends))
        finally:
            opened.close()
    base = without_credentials(root)
    if not sum(one.rows for one in found):
        raise PipelineError(f"{base} has no embeddings: its files have no rows")
    assert dims is not None, "there is a file"
    return EmbeddingCorpus(base, found, dims, name, _unified(list(schemas), base), skipped)


def open_file(uri: str, column: str = "", dims: int | None = None) -> EmbeddingFile:
    """Open a file of a corpus, with what lies beside it.

    Raises
    ------
    PipelineError
        If it cannot be read, or is of another kind.
    """
    name = without_credentials(uri)
    kind = kind_of(name)
    if column and kind in (NPY, FAISS):
        raise PipelineError(f"{name} has no columns: leave --embedding-column out")
    if kind == PARQUET:
        return ParquetFile(uri, column, dims)
    if kind == ARROW:
        return ArrowFile(uri, column, dims)
    if kind == FAISS:
        return open_faiss(uri)
    if kind == NPY:
        rows: PlainRows = open_npy(uri)
        metadata = metadata_of(uri)
        return rows if metadata is None else WithMetadata(rows, metadata)
    raise PipelineError(f"{name} is not a file of embeddings: {EXPECTED}")


def kind_of(name: str) -> str | None:
    """Return the kind of a file by its name; None if it holds no embeddings."""
    return next((kind for suffix, kind in _SUFFIXES.items() if name.lower().endswith(suffix)), None)


def metadata_of(uri: str) -> str | None:
    """Return the URI of the metadata that clip-retrieval wrote for a file of embeddings; None if there is none."""
    base, options = split_options(uri)
    if (named := _CLIP_NUMBER.fullmatch(base)) is None:
        return None
    other = f"{named[1]}metadata/metadata_{named[2]}.parquet{options}"
    entry = entry_of(other)
    return other if entry is not None and not entry.is_folder else None


def _find(root: str, skipped: Counter[str]) -> Iterator[File]:
    base = without_credentials(root)
    entry = entry_of(root)
    if entry is None:
        raise PipelineError(f"no embeddings at {base}: {EXPECTED}, or a folder of such files")
    if not entry.is_folder:
        yield _with_stamps(File(root, base.rpartition("/")[2], entry.stamp))
        return
    files = list(_wanted(root, list(walk(root, skipped)), skipped))
    kinds = {kind_of(file.name): file.name for file in reversed(files)}
    if len(kinds) > 1:
        names = " and ".join(f"{kind} files ({name})" for kind, name in sorted(kinds.items(), key=str))
        raise PipelineError(f"{base} has {names}: expected one kind, name the folder of one of them")
    if not files:
        raise PipelineError(f"{base} has no embeddings: {EXPECTED}, got {told(skipped)}")
    for file in files:
        yield _with_stamps(file)


def _wanted(root: str, files: list[File], skipped: Counter[str]) -> Iterator[File]:
    """Yield the files of a folder that hold the embeddings, and count the others."""
    clip = [file for file in files if _CLIP_EMBEDDINGS.fullmatch(f"{without_credentials(root)}/{file.name}")]
    states = {file.name.rpartition(_HF_STATE)[0]: file for file in files if _is_state(file.name)}
    parts = {folder + part for folder, file in states.items() for part in _parts_of(file)}
    for file in files:
        of_dataset = not parts or file.name in parts
        if kind_of(file.name) is None or not of_dataset or (clip and file not in clip):
            skip(skipped, suffix_kind(file.name))
        else:
            yield file


def _is_state(name: str) -> bool:
    return name.rpartition("/")[2] == _HF_STATE


def _parts_of(state: File) -> list[str]:
    """Return the names of the data files of a data set of Hugging Face, as its state lists them."""
    try:
        document = json.loads(open_place(state.uri).read())
        return [str(part["filename"]) for part in document["_data_files"]]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise PipelineError(
            f"{without_credentials(state.uri)} is not the state of a data set of Hugging Face ({error!r}): save the "
            "data set again with `save_to_disk`"
        ) from error


def _with_stamps(file: File) -> File:
    """Return a file whose stamp changes when its metadata do, too."""
    metadata = metadata_of(file.uri)
    beside = None if metadata is None else entry_of(metadata)
    return file if beside is None else File(file.uri, file.name, f"{file.stamp} {beside.stamp}")


def _unified(schemas: list[pa.Schema], where: str) -> pa.Schema:
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise PipelineError(f"the files of {where} disagree on their columns: {error}") from error
