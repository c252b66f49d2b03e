"""What a training learns from: images, and what says which of them are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from hashlight.encoders.data.prepared import PreparedImages
from hashlight.encoders.data.preprocessing import Preprocessing
from hashlight.encoders.data.supervision.pairs import PairList
from hashlight.encoders.data.supervision.protocol import LABELS, NOTHING, PAIRS, VIEWS
from hashlight.encoders.methods import METHODS, label_free_method
from hashlight.engine.places.opening import open_place
from hashlight.engine.wording import counted
from hashlight.pipelines.corpora.corpus import list_all, open_listing
from hashlight.pipelines.corpora.labels import CLASSES, has_labels, labels_of, what_names_are
from hashlight.pipelines.corpora.listing import FOLDERS
from hashlight.pipelines.corpora.options import NO_OPTIONS, CorpusOptions
from hashlight.pipelines.decoding.images import prepared_images, readable_images
from hashlight.pipelines.jobs.errors import PipelineError

SUPERVISIONS = (LABELS, PAIRS, VIEWS, NOTHING)
LabelsFrom = Literal["auto", "folders"]
AUTO: LabelsFrom = "auto"
FROM_FOLDERS: LabelsFrom = "folders"

_WITH_SUPERVISION = "hashnet"


@dataclass(frozen=True, slots=True)
class Preparation:
    """How images are resized when they are decoded, and the folder where many of them are kept.

    Attributes
    ----------
    rule : Preprocessing
        Of the backbone that will be trained.
    folder : Path or None
        None is the folder for temporary files.
    """

    rule: Preprocessing
    folder: Path | None


@dataclass(frozen=True, slots=True)
class Material:
    """What a training learns from.

    Attributes
    ----------
    corpus : str
    entries : pyarrow.Table
        Of the images that can be decoded.
    images : PreparedImages, or sequence of bytes
        Resized for the network that is trained, or encoded.
    supervision : str
        One of `SUPERVISIONS`.
    given : dict
        The arguments of `encoders.training.train.train` that say what is known about the images.
    classes : dict of str to int
        How many images have each label; empty unless labels are learned.
    refused : str
        What the names of sub-folders look like, because of which they are not taken for labels; empty if they are, or
        there are none.
    """

    corpus: str
    entries: pa.Table
    images: PreparedImages | Sequence[bytes]
    supervision: str
    given: dict[str, Any]
    classes: dict[str, int]
    refused: str = ""

    def suited_method(self, bits: int) -> str:
        """Return the method for `bits` bits, if none was asked for: one without labels and pairs needs neither."""
        return label_free_method(bits, len(self.images)) if self.supervision == NOTHING else _WITH_SUPERVISION


def gather(
    corpus: str | Path,
    *,
    supervision: str | None = None,
    pairs: str | Path | None = None,
    labels: LabelsFrom = AUTO,
    options: CorpusOptions = NO_OPTIONS,
    method: str | None = None,
    preparation: Preparation | None = None,
) -> Material:
    """Read a corpus and what is known about its images.

    Parameters
    ----------
    corpus : str or Path
        As in `pipelines.corpora.corpus`. Images that cannot be decoded are left out, with a warning.
    supervision : {"labels", "pairs", "views", "nothing"}, optional
        What to learn from. If left out: pairs if there are any, else labels if the corpus has them or the method reads
        them, else nothing.
    pairs : str or Path, optional
        CSV or Parquet, local or in a bucket, with columns `a`, `b` (ids of the corpus, or URIs) and `similar` (0 or 1).
    labels : {"auto", "folders"}
        The names of sub-folders are labels: "auto", if they look like classes
        (`pipelines.corpora.labels.what_names_are`), or "folders", whatever they look like.
    options : CorpusOptions
        How the corpus is to be read.
    method : str, optional
        The method, if it is known.
    preparation : Preparation, optional
        What becomes of the images as they are decoded; without it, they stay encoded, and in memory.

    Raises
    ------
    PipelineError
        If the corpus has no images, or not the labels that are asked for, or the pairs name others.
    """
    _check(supervision, pairs)
    listing = open_listing(corpus, options=options)
    if labels == FROM_FOLDERS and listing.labels_from != FOLDERS:
        raise PipelineError(f"{listing.corpus} has no labels from folders: expected sub-folders named after classes")
    images: PreparedImages | Sequence[bytes]
    if preparation is None:
        entries, images = readable_images(list_all(listing))
    else:
        entries, images = prepared_images(list_all(listing), preparation.rule, preparation.folder)
    is_asked = supervision == LABELS or labels == FROM_FOLDERS
    refused = "" if is_asked or listing.labels_from != FOLDERS else _refused(entries)
    if refused:
        entries = entries.drop_columns(["label"])
    reads_classes = method in METHODS and METHODS[method].reads_classes
    if reads_classes and refused and supervision is None:
        raise PipelineError(
            f"{method} learns classes, and the sub-folders of {listing.corpus} look like {refused}, not like classes: "
            "take their names for classes with `--labels folders`, or choose itq, which needs none"
        )
    kind = supervision or (PAIRS if pairs is not None else LABELS if has_labels(entries) or reads_classes else NOTHING)
    given = _given(kind, pairs, entries)
    classes = _classes(entries) if kind == LABELS else {}
    return Material(listing.corpus, entries, images, kind, given, classes, refused)


def _check(supervision: str | None, pairs: str | Path | None) -> None:
    if supervision is not None and supervision not in SUPERVISIONS:
        raise PipelineError(f"`supervision` must be one of {', '.join(SUPERVISIONS)}, got {supervision!r}")
    if (supervision or PAIRS) != PAIRS and pairs is not None:
        got = f"a list of pairs with supervision by {supervision}"
        raise PipelineError(f"supervision by pairs and a list of pairs go together, got {got}")
    if supervision == PAIRS and pairs is None:
        raise PipelineError("supervision by pairs and a list of pairs go together, got no list of pairs")
    if pairs is not None and not open_place(pairs).exists():
        raise PipelineError(f"there is no list of pairs at {open_place(pairs)}: expected a CSV or Parquet file")


def _refused(entries: pa.Table) -> str:
    """Return what the names of folders look like if they are not classes."""
    names = pc.unique(entries["label"]).to_pylist()
    if None in names:
        return "albums, as some images are in none"
    found = what_names_are(names)
    return "" if found == CLASSES else found


def _given(kind: str, pairs: str | Path | None, entries: pa.Table) -> dict[str, Any]:
    if pairs is not None:
        return {"pairs": read_pairs(pairs, entries)}
    if kind == LABELS:
        return {"labels": labels_of(entries)[0]}
    return {"views": True} if kind == VIEWS else {}


def _classes(entries: pa.Table) -> dict[str, int]:
    """Count the images of each label, by its name where the corpus has one, most first."""
    column = entries["label_name" if "label_name" in entries.column_names else "label"]
    values = pc.list_flatten(column) if pa.types.is_nested(column.type) else column
    counts = {str(count["values"]): count["counts"] for count in pc.value_counts(values).to_pylist()}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def read_pairs(path: str | Path, entries: pa.Table) -> PairList:
    """Read a list of pairs and look their images up in a corpus listing.

    Raises
    ------
    PipelineError
        If the file is not one, or names an image that the corpus lacks.
    """
    where = str(open_place(path))
    try:
        data = pa.BufferReader(open_place(path).read())
        # Not `read_table`: its threads may outlive a damaged file, and abort a process that ends meanwhile.
        table = pq.ParquetFile(data).read() if where.endswith(".parquet") else pyarrow.csv.read_csv(data)
    except (pa.ArrowInvalid, OSError) as error:
        raise PipelineError(f"{where} is not a readable list of pairs (CSV or Parquet): {error}") from error
    missing = {"a", "b", "similar"} - set(table.column_names)
    if missing:
        raise PipelineError(
            f"{where} lacks the columns {sorted(missing)}: expected a, b, similar, got {table.column_names}"
        )
    return PairList(
        _positions(table["a"], entries, where), _positions(table["b"], entries, where), np.asarray(table["similar"])
    )


def _positions(names: pa.ChunkedArray, entries: pa.Table, path: str) -> np.ndarray:
    key = "id" if pa.types.is_integer(names.type) else "uri"
    position = {name: row for row, name in enumerate(entries[key].to_pylist())}
    wanted = names.to_pylist()
    unknown = [name for name in wanted if name not in position]
    if unknown:
        raise PipelineError(
            f"{path} names {counted(len(unknown), 'image')} by {key} that the corpus lacks or that cannot be decoded, "
            f"first {unknown[0]!r}"
        )
    return np.array([position[name] for name in wanted], np.int64)
