"""Work lists: a corpus, listed once, as a Parquet file whose row groups are the units of work.

A unit is `unit_images` images, or one tar shard. The file's metadata (`hashlight`) says what was listed and has a
digest of it, by which a resumed job knows that the corpus is the same. Listing is a stream: memory holds one unit, and
the file's own index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hashlight.engine.ids import RepeatedIds
from hashlight.engine.places.opening import open_place
from hashlight.engine.places.uris import is_local, normalise, split_name
from hashlight.pipelines.corpora.corpus import open_listing, refuse_empty
from hashlight.pipelines.corpora.ids import refuse_repeated_ids
from hashlight.pipelines.corpora.listing import SHARDS, Listing
from hashlight.pipelines.jobs.errors import PipelineError

UNIT_IMAGES = 2000
# Arrow cannot read a footer with more row groups.
MAX_UNITS = 1_000_000
_METADATA = b"hashlight"

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class WorkSummary:
    """The summary of a work list, which is stored in the list.

    Attributes
    ----------
    corpus : str
    kind : str
        "images", or "shards": then an entry is a tar file.
    units : int
    images : int or None
        None for shards, whose images are known only once they are read.
    columns : list of str
        Of the entries, once they are read.
    digest : str
        SHA-256 of ids, names, sizes and times of what was listed.
    skipped : dict of str to int
        Files that were left out, by kind; those in shards are known only once they are read.
    """

    corpus: str
    kind: str
    units: int
    images: int | None
    columns: list[str]
    digest: str
    skipped: dict[str, int] = field(default_factory=dict)


def plan_work(
    corpus: str | Path, output: str | Path, *, unit_images: int = UNIT_IMAGES, progress: Progress | None = None
) -> WorkSummary:
    """List a corpus into a work list.

    Parameters
    ----------
    corpus : str or Path
        A corpus, as in `pipelines.corpora.corpus`.
    output : str or Path
        The Parquet file to write, local or in a bucket; it appears only when it is complete.
    unit_images : int
        Images per unit. A killed job loses at most one unit per actor.
    progress : callable, optional
        Called with the number of entries listed so far.

    Raises
    ------
    PipelineError
        If the corpus has no images, or an id occurs twice.
    """
    if unit_images < 1:
        raise ValueError(f"`unit_images` must be at least 1, got {unit_images}")
    listing = open_listing(corpus)
    folder, name = split_name(normalise(output))
    target = open_place(folder)
    with target.scratch(name) as aside:
        summary = _write(listing, aside, unit_images, progress or (lambda _entries: None))
        target.put_file(name, aside)
    return summary


def read_work(work: str | Path) -> WorkSummary | None:
    """Return the summary of a work list; None if `work` is something else, such as a corpus."""
    uri = normalise(work)
    if not split_name(uri)[1].endswith(".parquet") or (is_local(uri) and not Path(uri).is_file()):
        return None
    try:
        with open_place(uri).open() as raw, pq.ParquetFile(raw) as file:
            return _summary_of(file.metadata)
    except (pa.ArrowException, OSError):
        return None


class WorkList:
    """An open work list, whose units are read by number. Not to be shared between threads."""

    def __init__(self, raw: pa.NativeFile) -> None:
        self._file = pq.ParquetFile(raw)
        summary = _summary_of(self._file.metadata)
        if summary is None:
            raise PipelineError("the file is not a work list: `hashlight plan-work` writes one")
        self.summary = summary

    def read(self, unit: int) -> pa.Table:
        """Return the entries of a unit."""
        return self._file.read_row_group(unit).replace_schema_metadata(None)

    def sizes(self) -> list[int]:
        """Return the number of entries of each unit."""
        metadata = self._file.metadata
        return [metadata.row_group(unit).num_rows for unit in range(metadata.num_row_groups)]

    def close(self) -> None:
        """Close the file."""
        self._file.close(force=True)


def _summary_of(footer: pq.FileMetaData) -> WorkSummary | None:
    said = (footer.metadata or {}).get(_METADATA)
    return None if said is None else WorkSummary(**json.loads(said))


def _write(listing: Listing, path: Path, unit_images: int, progress: Progress) -> WorkSummary:
    digest = hashlib.sha256()
    units = entries = 0
    size = 1 if listing.kind == SHARDS else unit_images
    written = None
    with RepeatedIds() as ids:
        for unit in _units(_digested(listing, digest), size):
            if units == MAX_UNITS:
                raise PipelineError(
                    f"{listing.corpus} has more than {MAX_UNITS:,} units, which one work list can hold: "
                    + (
                        "list its shards in several corpora"
                        if listing.kind == SHARDS
                        else f"choose more than {unit_images:,} images per unit (--unit-images)"
                    )
                )
            if written is None:
                # Dictionaries do not help names that are all different; compression finds what they share.
                written = pq.ParquetWriter(
                    path, unit.schema, compression="zstd", use_dictionary=False, write_statistics=False
                )
            written.write_table(unit, row_group_size=len(unit))
            ids.add(unit["id"].to_numpy())
            units += 1
            entries += len(unit)
            progress(entries)
        refuse_empty(listing, entries)
        assert written is not None, "there are entries"
        images = None if listing.kind == SHARDS else entries
        names, skipped = listing.schema.names, dict(listing.skipped)
        summary = WorkSummary(listing.corpus, listing.kind, units, images, names, digest.hexdigest(), skipped)
        written.add_key_value_metadata({_METADATA: json.dumps(asdict(summary))})
        written.close()
        refuse_repeated_ids(ids, lambda: _tables(path), listing.corpus)
    return summary


def _tables(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["id", "uri"]):
            yield pa.Table.from_batches([batch])


def _digested(listing: Listing, digest: Any) -> Iterator[pa.Table]:
    for chunk in listing.chunks():
        digest.update(chunk.entries["id"].to_numpy().tobytes())
        digest.update(chunk.stamp)
        yield chunk.entries


def _units(tables: Iterator[pa.Table], size: int) -> Iterator[pa.Table]:
    """Cut a stream of tables into tables of `size` rows; the last may have fewer."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += len(table)
        if count < size:
            continue
        whole = pa.concat_tables(waiting)
        stop = len(whole) - len(whole) % size
        for start in range(0, stop, size):
            yield whole.slice(start, size).combine_chunks()
        rest = whole.slice(stop)
        waiting, count = [rest], len(rest)
    if count:
        yield pa.concat_tables(waiting).combine_chunks()
