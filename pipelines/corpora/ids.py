"""Ids of a corpus: what they are made from, and what becomes of two images whose names have the same hash.

Ids are columns of the corpus, or hashes of 63 bits. Among n images, two have the same hash with a probability of about
n**2 / 2**64: 5 % for a billion images. Images take their ids in the order of the corpus, and one that finds its own
taken takes the next: the hash of that id and of a count. So the ids depend on the corpus alone, not on how the work is
shared out or how often it is interrupted.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hashlight.engine.codes import IdArray
from hashlight.engine.places.uris import is_local
from hashlight.engine.wording import counted
from hashlight.pipelines.jobs.errors import PipelineError

HASH_BITS = 63
REPEATED = "rows with the URI of an earlier one"
_SOURCES = ("auto", "name", "uri", "content")
_NAME, _COLUMN = "name:", "column:"


@dataclass(frozen=True, slots=True)
class IdRule:
    """What the ids of a corpus are made from.

    Attributes
    ----------
    source : str
        "name": the corpus's name and the image's name within it, so that a copy of the corpus, on any machine or in a
        bucket, has the same ids. "uri": where the image is. "content": the encoded bytes of the image. "column:NAME":
        a column of a corpus of rows, of whole numbers or of texts, which are hashed with the corpus's name. "auto": the
        column `id` where there is one, and otherwise the name.
    corpus : str
        The corpus's name.
    """

    source: str = "auto"
    corpus: str = ""

    @classmethod
    def parse(cls, text: str, corpus: str) -> IdRule:
        """Read what the user asked for: a source, or "name:NAME" to give the corpus that name.

        Raises
        ------
        ValueError
            If it is neither.
        """
        if text.startswith(_NAME):
            return cls("name", text.removeprefix(_NAME))
        if text not in _SOURCES and not text.startswith(_COLUMN):
            raise ValueError(f"ids are made from {', '.join(_SOURCES)}, {_NAME}NAME or {_COLUMN}NAME, got {text!r}")
        return cls(text, corpus)

    @property
    def by_content(self) -> bool:
        """Whether ids are known only once the images are read."""
        return self.source == "content"

    @property
    def column(self) -> str | None:
        """The column that must have the ids."""
        return self.source.removeprefix(_COLUMN) if self.source.startswith(_COLUMN) else None

    @property
    def of_files(self) -> IdRule:
        """How files whose rows or samples have a column of ids get ids of their own, within a work list."""
        return IdRule("name", self.corpus) if self.column else self

    def column_among(self, names: Iterable[str]) -> str | None:
        """Return which of a file's columns has the ids, None if they are hashes."""
        return "id" if self.source == "auto" and "id" in names else self.column

    def ids_of(self, names: Iterable[str], uris: Iterable[str]) -> IdArray:
        """Return the hashes of images by their names within the corpus, or by their URIs; see `hashed_ids`.

        A name that is itself an absolute path or a URI, in a list of them, does not need the corpus's name.
        """
        if self.column:
            raise PipelineError(
                f"{self.corpus} has no column `{self.column}` to take ids from, which only Parquet, CSV, JSON lines "
                "and the JSON of tars have: have ids made from the images' names"
            )
        if self.source == "uri":
            return hashed_ids(uris)
        return hashed_ids(name if _is_absolute(name) else f"{self.corpus}/{name}" for name in names)

    def ids_of_texts(self, texts: Iterable[str]) -> IdArray:
        """Return the hashes of ids that are texts, such as those of a column; they are ids within the corpus."""
        return hashed_ids(f"{self.corpus}/{text}" for text in texts)


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or not is_local(name)


def hashed_ids(texts: Iterable[str | bytes]) -> IdArray:
    """Return ids (N,) that do not depend on the listing's order: the first 63 bits of BLAKE2b of each text."""
    return _shortened(text.encode() if isinstance(text, str) else text for text in texts)


def next_id(hashed: int, tries: int) -> int:
    """Return the id to take if the hash of an image, and all up to `tries` - 1 after it, are taken."""
    return int(_shortened([hashed.to_bytes(8, "little") + tries.to_bytes(8, "little")])[0])


def _shortened(texts: Iterable[bytes]) -> IdArray:
    digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return (np.frombuffer(digests, "<u8") >> np.uint64(64 - HASH_BITS)).astype(np.int64)


def settle_ids(repeated: IdArray, tables: Callable[[], Iterable[pa.Table]]) -> dict[int, int]:
    """Return {row: id} of the rows that take another id than their hash.

    Parameters
    ----------
    repeated : ndarray of int64
        The ids that occur more than once.
    tables : callable
        Starts the stream of all rows in their order, with a column `id`. It is read twice, and again for each id that
        is taken in turn; memory holds the repeated ids.
    """
    known: dict[int, int] = {}
    asked: set[int] = set()
    wanted = set(repeated.tolist())
    moved: dict[int, int] = {}
    while wanted:
        known.update(_rows_with(wanted, tables()))
        asked |= wanted
        taken: set[int] = set()
        moved = {}
        # By hash: how many tries were in vain, so that many copies of an image are not compared with each other.
        tried: Counter[int] = Counter()
        for row in sorted(known):
            id_ = hashed = known[row]
            while id_ in taken:
                tried[hashed] += 1
                id_ = moved[row] = next_id(hashed, tried[hashed])
            taken.add(id_)
        wanted = taken - asked
    return moved


def _rows_with(ids: set[int], tables: Iterable[pa.Table]) -> Iterator[tuple[int, int]]:
    wanted = np.array(sorted(ids), np.int64)
    first = 0
    for table in tables:
        column = table["id"].to_numpy()
        for row in np.flatnonzero(np.isin(column, wanted)).tolist():
            yield first + row, int(column[row])
        first += len(column)


def each_moved(tables: Iterable[pa.Table], moved: dict[int, int]) -> Iterator[tuple[pa.Table, dict[int, int]]]:
    """Pair tables with what `settle_ids` returned for their rows, counted within each table."""
    rows = deque(sorted(moved))
    first = 0
    for table in tables:
        inside = {}
        while rows and rows[0] < first + len(table):
            row = rows.popleft()
            inside[row - first] = moved[row]
        yield table, inside
        first += len(table)


def with_ids(table: pa.Table, moved: dict[int, int]) -> pa.Table:
    """Return a table with other ids in some rows."""
    if not moved:
        return table
    ids = table["id"].to_numpy().copy()
    ids[list(moved)] = list(moved.values())
    return table.set_column(table.column_names.index("id"), table.schema.field("id"), pa.array(ids))


def first_of_each(tables: Iterable[pa.Table], repeated: IdArray, skipped: Counter[str]) -> Iterator[pa.Table]:
    """Leave out rows that have the id and the URI of an earlier one, and count them.

    Parameters
    ----------
    tables : iterable of pyarrow.Table
        With columns `id` and `uri`.
    repeated : ndarray of int64
        The ids that occur more than once; memory holds the URIs that have them.
    skipped : Counter
    """
    seen: set[tuple[int, str]] = set()
    for table in tables:
        is_first = np.ones(len(table), np.bool_)
        rows = np.flatnonzero(np.isin(table["id"].to_numpy(), repeated))
        some = table.take(pa.array(rows))
        for row, place in zip(rows, zip(some["id"].to_pylist(), some["uri"].to_pylist(), strict=True), strict=True):
            is_first[row] = place not in seen
            seen.add(place)
        if not is_first.all():
            skipped[REPEATED] += int((~is_first).sum())
            table = table.filter(pa.array(is_first))
        if len(table):
            yield table


def refuse_repeated_images(
    repeated: IdArray,
    tables: Callable[[], Iterable[pa.Table]],
    *,
    corpus: str,
    are_hashes: bool,
    id_text: str | None = None,
) -> None:
    """Raise PipelineError, naming two images with the same id, unless only their hashes are the same.

    Parameters
    ----------
    repeated : ndarray of int64
        The ids that occur more than once.
    tables : callable
        Starts a stream of tables with the columns `id` and `uri`, to look the images up in.
    corpus : str
    are_hashes : bool
        Whether ids were made here; an image that is listed twice is refused all the same.
    id_text : str, optional
        The column of the texts that were hashed; by default it is that of the URIs.
    """
    if not len(repeated):
        return
    uris: dict[int, list[str]] = {}
    hashed: dict[int, list[str]] = {}
    for table in tables():
        some = table.filter(pc.is_in(table["id"], pa.array(repeated)))
        for id_, uri, text in zip(*(some[name].to_pylist() for name in ("id", "uri", id_text or "uri")), strict=True):
            uris.setdefault(id_, []).append(uri)
            hashed.setdefault(id_, []).append(text)
    refused = [id_ for id_, found in sorted(hashed.items()) if not are_hashes or len(set(found)) < len(found)]
    if refused:
        raise PipelineError(
            f"{counted(len(refused), 'id')} {'occurs' if len(refused) == 1 else 'occur'} more than once in the corpus, "
            f"for example {refused[0]} for {' and '.join(uris[refused[0]][:2])}: list each image of {corpus} once, "
            "and give each its own `id`"
        )
