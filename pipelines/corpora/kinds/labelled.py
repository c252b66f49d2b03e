"""Files of labels as corpora: lists of HashNet's kind, and annotations of COCO's.

A line of a list names an image and says of every class whether it has it: `train/0001.jpg 0 1 0 0`. In COCO's JSON an
image has the categories of its annotations. Paths are relative to the file; images without a label are left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hashlight.engine.errors import ReadFailedError
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.reading import groups
from hashlight.engine.places.uris import without_credentials
from hashlight.pipelines.corpora.ids import IdRule
from hashlight.pipelines.corpora.kinds.columns import LABEL
from hashlight.pipelines.corpora.kinds.documents import parse_json
from hashlight.pipelines.corpora.kinds.rows import Look, Rows, list_rows
from hashlight.pipelines.corpora.kinds.uris import read_lines
from hashlight.pipelines.corpora.listing import CHUNK_ENTRIES, File, FileStream, Listing, skip
from hashlight.pipelines.corpora.options import CorpusOptions
from hashlight.pipelines.jobs.errors import PipelineError

COCO_SUFFIX = ".json"
WITHOUT_LABEL = "images without a label"
_WHOLE = (0, 0)  # such a file is one part
_FLAGS = {"0", "1"}
# What is kept of COCO's objects: most of a file are outlines.
_COCO_KEYS = frozenset(("images", "annotations", "categories", "id", "file_name", "image_id", "category_id", "name"))


class LabelledList:
    """The format of a list; see `pipelines.corpora.kinds.rows.RowFormat`."""

    what = "lists of labelled images"

    def look(self, file: File) -> Look:
        """Name the columns; a label is the number of its class."""
        return Look(pa.schema({"uri": pa.string(), LABEL: pa.list_(pa.int64())}), [_WHOLE])

    def read(self, file: File, part: tuple[int, int], columns: list[str]) -> Iterator[Rows]:
        """Read columns of all rows."""
        schema, first = self.look(file).schema, 0
        for rows in groups(_labelled_lines(file.uri), CHUNK_ENTRIES):
            uris, labels = zip(*rows, strict=True)
            table = pa.table([list(uris), list(labels)], schema)
            yield Rows(first, len(rows), table.select(columns))
            first += len(rows)


class Coco:
    """The format of COCO's annotations; see `pipelines.corpora.kinds.rows.RowFormat`."""

    what = "COCO annotations"

    def look(self, file: File) -> Look:
        """Name the columns; a label is the name of a category."""
        return Look(pa.schema({"file_name": pa.string(), LABEL: pa.list_(pa.string())}), [_WHOLE])

    def read(self, file: File, part: tuple[int, int], columns: list[str]) -> Iterator[Rows]:
        """Read columns of all images, in their order."""
        names, labels = coco_images(file.uri)
        table = pa.table([names, labels], self.look(file).schema)
        yield Rows(0, len(table), table.select(columns))


LABELLED_LIST, COCO = LabelledList(), Coco()


def list_labelled(root: str, found: FileStream, ids: IdRule, options: CorpusOptions) -> Listing:
    """List the images of a labelled list; see `pipelines.corpora.kinds.rows.list_rows`."""
    return list_rows(root, found, ids, options, LABELLED_LIST, keep_row=_has_label, needed=(LABEL,))


def list_coco(root: str, found: FileStream, ids: IdRule, options: CorpusOptions) -> Listing:
    """List the images of COCO's annotations; see `pipelines.corpora.kinds.rows.list_rows`."""
    return list_rows(root, found, ids, options, COCO, keep_row=_has_label, needed=(LABEL,))


def is_labelled(root: str) -> bool:
    """Whether the first line of a text file ends in at least two zeros or ones, as those of a labelled list do."""
    return len(_flags_of(next(read_lines(root), (0, ""))[1])) > 1


def _has_label(rows: pa.Table, skipped: Counter[str]) -> pa.Array:
    has_label = pc.greater(pc.list_value_length(rows[LABEL]), 0)
    if missing := len(rows) - (pc.sum(has_label).as_py() or 0):
        skip(skipped, WITHOUT_LABEL, missing)
    return has_label


def _flags_of(line: str) -> list[str]:
    """Return the zeros and ones at the end of a line, all but the first word of which may be ones."""
    words = line.split()[1:]
    count = next((number for number, word in enumerate(reversed(words)) if word not in _FLAGS), len(words))
    return words[len(words) - count :]


def _labelled_lines(root: str) -> Iterator[tuple[str, list[int]]]:
    """Read the name and the classes of each image."""
    num_classes = 0
    for number, line in read_lines(root):
        flags = _flags_of(line)
        num_classes = num_classes or len(flags)
        if len(flags) < num_classes:
            raise PipelineError(
                f"line {number} of {without_credentials(root)} ends in {len(flags)} zeros or ones, the first line in "
                f"{num_classes}: expected one for each class after the image's path"
            )
        name = line.rsplit(maxsplit=num_classes)[0]
        yield name, [place for place, flag in enumerate(flags[-num_classes:]) if flag == "1"]


def coco_images(root: str) -> tuple[list[str], list[list[str]]]:
    """Return the file name and the categories of each image."""
    where = without_credentials(root)
    try:
        found = parse_json(open_place(root).read().decode("utf-8-sig"), object_hook=_slim)
    except ReadFailedError:
        raise
    except (OSError, ValueError) as error:
        raise PipelineError(
            f"{where} is not readable as JSON: {error}; for one object a line, give the kind jsonl"
        ) from error
    try:
        name_of = {category["id"]: str(category["name"]) for category in found["categories"]}
        labels: dict[Any, set[str]] = defaultdict(set)
        for annotation in found["annotations"]:
            labels[annotation["image_id"]].add(name_of[annotation["category_id"]])
        names = [str(image["file_name"]) for image in found["images"]]
        return names, [sorted(labels[image["id"]]) for image in found["images"]]
    except (KeyError, TypeError) as error:
        raise PipelineError(
            f"{where} has no COCO annotations: expected `images` (id, file_name), `annotations` (image_id, "
            f"category_id) and `categories` (id, name); {type(error).__name__}: {error}"
        ) from error


def _slim(value: dict[str, Any]) -> dict[str, Any]:
    return {key: kept for key, kept in value.items() if key in _COCO_KEYS}
