"""What of a corpus is new since it was encoded before.

New is an image whose id no earlier folder of codes has listed, or whose file was written since, by its size and time;
of tars, the whole of one that was. What is only known of an image, such as its label, is not compared.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hashlight.engine.places.opening import open_place
from hashlight.pipelines.codes.parts import CODES, PLAN
from hashlight.pipelines.codes.summary import read_summary
from hashlight.pipelines.corpora.ids import hashed_ids
from hashlight.pipelines.corpora.listing import SHARDS, STAMP
from hashlight.pipelines.corpora.work import WorkList, WorkSummary, WorkWriter, cut
from hashlight.pipelines.jobs.errors import PipelineError
from hashlight.pipelines.jobs.folder import JobFolder

_RUN_KEYS = 1 << 22


def write_new(work: Path, since: Sequence[str | Path], output: Path, *, encoder: str, unit_images: int) -> WorkSummary:
    """Write a work list of what is new in another.

    Parameters
    ----------
    work : Path
        A work list.
    since : sequence of str or Path
        Earlier, complete folders of codes of the corpus.
    output : Path
        The list to write.
    encoder : str
        The fingerprint of the encoder; codes of another would not belong together.
    unit_images : int
        Images per unit.

    Raises
    ------
    PipelineError
        If nothing is new, or the codes are of another encoder, have ids made from something else, or are not complete.
    """
    with pa.memory_map(str(work)) as raw, _Keys() as seen:
        listed = WorkList(raw, str(work))
        for codes in since:
            _add_plan(seen, codes, listed.summary, encoder)
        is_shards = listed.summary.kind == SHARDS
        units = _new_units(listed, seen)
        with WorkWriter(output) as writer:
            for unit in units if is_shards else cut(units, unit_images):
                writer.add(unit)
            if not writer.entries:
                raise PipelineError(
                    f"nothing of {listed.summary.corpus} is new since {' and '.join(map(str, since))}: there is "
                    "nothing to encode"
                )
            images = None if is_shards else writer.entries
            return writer.finish(replace(listed.summary, images=images, digest=""))


def _add_plan(seen: _Keys, codes: str | Path, work: WorkSummary, encoder: str) -> None:
    """Add what an earlier job has listed, once it is known to be one of the same kind."""
    summary = read_summary(codes)
    where = str(open_place(codes))
    if summary.encoder != encoder:
        raise PipelineError(
            f"{where} has codes of the encoder {summary.encoder[:12]}…, this one is {encoder[:12]}…: codes of two "
            "encoders do not belong together, encode all images again"
        )
    identity = JobFolder(codes, CODES).identity() or {}
    before, now = (identity.get("ids"), identity.get("name")), (work.ids, work.name)
    if before != now:
        raise PipelineError(
            f"{where} has ids made from {before[0]} in the corpus {before[1]!r}, this list from {now[0]} in "
            f"{now[1]!r}: make them alike with --ids, or images would have other ids"
        )
    place = open_place(codes)
    with place.open(PLAN) as raw:
        plan = WorkList(raw, place.path(PLAN))
        if plan.summary.kind != work.kind:
            raise PipelineError(f"{where} was made from {plan.summary.kind}, this list has {work.kind}")
        for entries in plan.read_all():
            seen.add(_keys_of(entries, work.kind))


def _new_units(listed: WorkList, seen: _Keys) -> Iterator[pa.Table]:
    for entries in listed.read_all():
        is_new = ~seen.holds(_keys_of(entries, listed.summary.kind))
        if is_new.any():
            yield entries.filter(pa.array(is_new))


def _keys_of(entries: pa.Table, kind: str) -> NDArray[np.int64]:
    names = entries["uri" if kind == SHARDS else "id"].to_pylist()
    return hashed_ids(f"{stamp} {name}" for name, stamp in zip(names, entries[STAMP].to_pylist(), strict=True))


class _Keys:
    """A set of keys, sorted in temporary files, so that memory does not grow with it."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._runs: list[NDArray[np.int64]] = []
        self._waiting: list[NDArray[np.int64]] = []
        self._count = 0

    def __enter__(self) -> _Keys:
        """Start empty."""
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hashlight-since-")))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the files."""
        self._runs.clear()
        self._stack.close()

    def add(self, keys: NDArray[np.int64]) -> None:
        """Add keys (N,)."""
        self._waiting.append(keys)
        self._count += len(keys)
        if self._count >= _RUN_KEYS:
            self._sort()

    def holds(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of some keys (N,) were added, after all were."""
        if self._waiting:
            self._sort()
        found = np.zeros(len(keys), np.bool_)
        for run in self._runs:
            found |= run[np.minimum(np.searchsorted(run, keys), len(run) - 1)] == keys
        return found

    def _sort(self) -> None:
        path = self._folder / f"{len(self._runs)}.npy"
        np.save(path, np.sort(np.concatenate(self._waiting)))
        self._runs.append(np.load(path, mmap_mode="r"))
        self._waiting, self._count = [], 0
