"""Labels of a listed corpus: one per image, or several; and whether the names of folders are labels at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from hashlight.pipelines.corpora.listing import HOW_TO_READ
from hashlight.pipelines.jobs.errors import PipelineError

CLASSES, DATES, SPLITS, NUMBERS, HASHES, ALONE = "classes", "dates", "splits", "numbers", "hashes", "a single folder"

_YEAR = r"(?:19|20)\d\d"
_MONTHS = (
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec spring summer autumn fall winter"
).replace(" ", "|")
# 2019, 2019-07 Italy, Italy 2019, 20190704, IMG_20190704: a year that is not a part of a longer number.
_DATE = re.compile(rf"(?<!\d){_YEAR}(?:(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])?)?(?!\d)")
# July and 07-July.
_MONTH = re.compile(rf"(?:\d{{1,2}}[-_. ]*)?(?:{_MONTHS})(?:[-_. ]*\d{{1,2}})?", re.IGNORECASE)
_SPLIT = re.compile(
    r"(?:un)?(?:train|training|trainval|val|valid|validation|dev|devel|test|testing|eval|holdout|query|queries|gallery|"
    r"database|base|distractors?|labell?ed|unlabell?ed|images?|img|imgs|pictures|photos|data|dataset|raw|all|set|split|"
    r"fold|subset)(?:[-_ ]?(?:images?|imgs?|data|set|split|[ab]))?(?:[-_ ]?\d{1,4})?",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    # 0001, part-00001, batch3, 100CANON and 101_0724, which cameras make.
    r"[-_. ]*\d+(?:[-_. ]+\d+)*[-_. ]*|"
    r"(?:part|shard|batch|chunk|folder|dir|directory|page|disk|disc|roll|box|group|bucket|block)s?[-_. ]*\d+|"
    r"\d{3}(?:[A-Z_]{5}|CANON|APPLE|MEDIA|_PANA|OLYMP|ND\w{3}|NIKON|MSDCF)",
    re.IGNORECASE,
)
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)
_HEX = re.compile(r"[0-9a-f]+", re.IGNORECASE)
_TOKEN = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9_-]{16,}")


def what_names_are(names: Iterable[str]) -> str:
    """Say what the names of the sub-folders of a corpus look like.

    A doubt counts against classes: an archive by date must never become a classifier of years.

    Parameters
    ----------
    names : iterable of str
        Distinct.

    Returns
    -------
    str
        `CLASSES`, or what they look like instead: `DATES` if any of them has a year, or half of them are months;
        `SPLITS`, `NUMBERS` or `HASHES` if half of them are; `ALONE` if there is one.
    """
    names = list(names)

    def are_mostly(fits: Callable[[str], object]) -> bool:
        return 2 * sum(bool(fits(name)) for name in names) >= len(names)

    if are_mostly(_SPLIT.fullmatch):
        return SPLITS
    if any(_DATE.search(name) for name in names if not _is_hash(name)) or are_mostly(_MONTH.fullmatch):
        return DATES
    if are_mostly(_NUMBER.fullmatch):
        return NUMBERS
    if are_mostly(_is_hash) or _are_short_hashes(names):
        return HASHES
    return CLASSES if len(names) > 1 else ALONE


def _is_hash(name: str) -> bool:
    """Whether a name alone is a hash, a UUID or a random token."""
    is_hex = len(name) >= 16 and _HEX.fullmatch(name) is not None and not name.isdigit()
    return is_hex or _UUID.fullmatch(name) is not None or _TOKEN.fullmatch(name) is not None


def _are_short_hashes(names: list[str]) -> bool:
    """Whether names are the beginnings of hashes, such as 0a, 3f, c4: of one length, some beginning with a digit."""
    are_hex = all(_HEX.fullmatch(name) for name in names) and len({len(name) for name in names}) == 1
    return are_hex and {name[0].isdigit() for name in names} == {True, False}


def attribute_names(entries: pa.Table) -> list[str]:
    """Return the columns of a listing that are stored with the codes as attributes."""
    return [name for name in entries.column_names if name != "id" and name not in HOW_TO_READ]


def has_labels(entries: pa.Table) -> bool:
    """Whether the corpus has a column `label`."""
    return "label" in entries.column_names


def labels_of(entries: pa.Table) -> tuple[np.ndarray | sparse.csr_array, list[str]]:
    """Return the labels of the entries, and the labels' names.

    A column `label` of plain values gives each entry the number of its label, (N,) int64. A column of lists, with
    several labels per image, gives a sparse (N, C) of bool with one column per name.

    Raises
    ------
    PipelineError
        If the corpus has no `label` column, or an entry lacks one.
    """
    if not has_labels(entries):
        raise PipelineError(
            "the corpus has no labels: expected sub-folders named after classes, or a Parquet column `label`; "
            f"got {attribute_names(entries)} beside the images"
        )
    column = entries["label"]
    lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    missing = pc.fill_null(pc.equal(pc.list_value_length(column), 0), True) if lists else column.is_null()
    count = pc.sum(missing).as_py()
    if count:
        first = entries["uri"][pc.index(missing, True).as_py()]
        raise PipelineError(
            f"{count} of {len(column)} images have no label (first: {first}): leave them out or label them"
        )
    if lists:
        return _several_labels(column)
    names, numbers = np.unique(column.to_numpy(zero_copy_only=False), return_inverse=True)
    return numbers.astype(np.int64), [str(name) for name in names]


def _several_labels(column: pa.ChunkedArray) -> tuple[sparse.csr_array, list[str]]:
    lists = column.combine_chunks()
    names, numbers = np.unique(lists.flatten().to_numpy(zero_copy_only=False), return_inverse=True)
    parts = np.ones(len(numbers), np.bool_), (pc.list_parent_indices(lists).to_numpy(), numbers)
    return sparse.csr_array(parts, shape=(len(lists), len(names))), [str(name) for name in names]
