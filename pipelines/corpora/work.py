"""Work lists: a corpus, listed once, as an Arrow file whose record batches are the units of work.

A unit is `unit_images` images, or one tar shard. A last batch, without rows, carries the summary of what was listed,
with a digest by which a resumed job knows that the corpus is the same. Listing is a stream: memory holds one unit, and
the file's own index, `INDEX_BYTES` a unit, which is all that a reader holds of it, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from hashlight.engine.ids import RepeatedIds
from hashlight.engine.places.opening import open_place, open_target
from hashlight.engine.places.uris import is_local, normalise, split_name, without_credentials
from hashlight.pipelines.corpora.corpus import open_listing, refuse_empty
from hashlight.pipelines.corpora.ids import refuse_repeated_ids
from hashlight.pipelines.corpora.listing import SHARDS, Listing
from hashlight.pipelines.jobs.errors import PipelineError

UNIT_IMAGES = 2000
SUFFIX = ".arrow"
# Where a unit lies in the file: its offset and its lengths. (A Parquet footer, once read, has 4.5 kB a row group.)
INDEX_BYTES = 24
_METADATA = b"hashlight"
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")

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
        The file to write (`.arrow`), local or in a bucket; it appears only when it is complete.
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
    folder, name = split_name(normalise(output))
    target = open_target(folder)
    listing = open_listing(corpus)
    with target.scratch(name) as aside:
        summary = _write(listing, aside, unit_images, progress or (lambda _entries: None))
        target.put_file(name, aside)
    return summary


def read_work(work: str | Path) -> WorkSummary | None:
    """Return the summary of a work list; None if `work` is something else, such as a corpus."""
    uri = normalise(work)
    if not without_credentials(uri).endswith(SUFFIX) or (is_local(uri) and not Path(uri).is_file()):
        return None
    try:
        with open_place(uri).open() as raw:
            return WorkList(raw).summary
    except (pa.ArrowException, OSError, PipelineError):
        return None


class WorkList:
    """An open work list, whose units are read by number. Not to be shared between threads.

    Raises
    ------
    PipelineError
        If the file is not a work list.
    """

    def __init__(self, raw: pa.NativeFile) -> None:
        self._file = pa.ipc.open_file(raw)
        self.summary = _summary_of(self._file)

    def read(self, unit: int) -> pa.Table:
        """Return the entries of a unit."""
        return pa.Table.from_batches([self._file.get_batch(unit)])


def _summary_of(file: pa.ipc.RecordBatchFileReader) -> WorkSummary:
    count = file.num_record_batches
    said = file.get_batch_with_custom_metadata(count - 1).custom_metadata if count else None
    if said is None or _METADATA not in said:
        raise PipelineError("the file is not a work list: `hashlight plan-work` writes one")
    return WorkSummary(**json.loads(said[_METADATA]))


def _write(listing: Listing, path: Path, unit_images: int, progress: Progress) -> WorkSummary:
    digest = hashlib.sha256()
    units = entries = 0
    size = 1 if listing.kind == SHARDS else unit_images
    with RepeatedIds() as ids, contextlib.ExitStack() as stack:
        written = None
        for unit in _units(_digested(listing, digest), size):
            if written is None:
                written = stack.enter_context(pa.ipc.new_file(str(path), unit.schema, options=_OPTIONS))
            written.write_batch(unit)
            ids.add(unit["id"].to_numpy())
            units += 1
            entries += len(unit)
            progress(entries)
        refuse_empty(listing, entries)
        assert written is not None, "there are entries"
        images = None if listing.kind == SHARDS else entries
        names, skipped = listing.schema.names, dict(listing.skipped)
        summary = WorkSummary(listing.corpus, listing.kind, units, images, names, digest.hexdigest(), skipped)
        written.write_batch(unit.slice(0, 0), custom_metadata={_METADATA: json.dumps(asdict(summary))})
        stack.close()
        refuse_repeated_ids(ids, lambda: _tables(path), listing.corpus)
    return summary


def _tables(path: Path) -> Iterator[pa.Table]:
    with pa.memory_map(str(path)) as raw:
        work = WorkList(raw)
        for unit in range(work.summary.units):
            yield work.read(unit)


def _digested(listing: Listing, digest: Any) -> Iterator[pa.Table]:
    for chunk in listing.chunks():
        digest.update(chunk.entries["id"].to_numpy().tobytes())
        digest.update(chunk.stamp)
        yield chunk.entries


def _units(tables: Iterator[pa.Table], size: int) -> Iterator[pa.RecordBatch]:
    """Cut a stream of tables into batches of `size` rows; the last may have fewer."""
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
            yield _as_batch(whole.slice(start, size))
        rest = whole.slice(stop)
        waiting, count = [rest], len(rest)
    if count:
        yield _as_batch(pa.concat_tables(waiting))


def _as_batch(table: pa.Table) -> pa.RecordBatch:
    [batch] = table.combine_chunks().to_batches()
    return batch
