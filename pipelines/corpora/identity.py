"""Ids that stand twice are found before they do harm, in memory that does not grow with the corpus."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hashlight.pipelines.jobs.errors import PipelineError

# A billion ids are 8 GB on the disk, and 31 MB in memory while one of so many files is looked through.
_FILES = 256
_BUFFER_IDS = 1 << 20
# Spreads ids of any pattern over the files (Knuth's multiplicative hashing, 2**64 over the golden ratio).
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(64 - 8)


class RepeatedIds:
    """Finds the ids that were added more than once. They wait in temporary files, which the context removes."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._files: list[IO[bytes]] = []
        self._waiting: list[np.ndarray] = []
        self._count = 0

    def __enter__(self) -> RepeatedIds:
        """Start empty."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the files."""
        self._open.close()

    def add(self, ids: np.ndarray) -> None:
        """Add ids, int64 of shape (N,)."""
        self._waiting.append(ids)
        self._count += len(ids)
        if self._count >= _BUFFER_IDS:
            self._spill()

    def find(self) -> np.ndarray:
        """Return the ids that were added more than once, int64, in no special order."""
        if not self._files:
            return _repeated(np.concatenate([np.zeros(0, np.int64), *self._waiting]))
        self._spill()
        found = []
        for file in self._files:
            file.seek(0)
            found.append(_repeated(np.frombuffer(file.read(), np.int64)))
        return np.concatenate(found)

    def _spill(self) -> None:
        ids = np.concatenate([np.zeros(0, np.int64), *self._waiting])
        self._waiting, self._count = [], 0
        if not self._files:
            new = functools.partial(tempfile.TemporaryFile, prefix="hashlight-ids-")
            self._files = [self._open.enter_context(new()) for _ in range(_FILES)]
        place = (ids.view(np.uint64) * _SPREAD) >> _SHIFT
        order = np.argsort(place, kind="stable")
        ends = np.cumsum(np.bincount(place, minlength=_FILES))
        for file, part in zip(self._files, np.split(ids[order], ends[:-1]), strict=True):
            file.write(part.tobytes())


def refuse_repeated_ids(ids: RepeatedIds, tables: Callable[[], Iterator[pa.Table]], corpus: str) -> None:
    """Raise PipelineError, naming two images of one id, if an id was added more than once.

    Parameters
    ----------
    ids : RepeatedIds
    tables : callable
        Starts a stream of tables with the columns `id` and `uri`, to look the images up in.
    corpus : str
    """
    repeated = ids.find()
    if not len(repeated):
        return
    example = int(repeated.min())
    uris: list[str] = []
    for table in tables():
        uris += table.filter(pc.equal(table["id"], example))["uri"].to_pylist()
        if len(uris) >= 2:
            break
    raise PipelineError(
        f"{len(repeated)} ids stand more than once in the corpus, for example {example} for {' and '.join(uris[:2])}: "
        f"list each image of {corpus} once, and give each its own `id` (Parquet) if two names have one hash"
    )


def _repeated(ids: np.ndarray) -> np.ndarray:
    ordered = np.sort(ids)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
