"""Commits the writes of many requests: those that arrive while one commit is in progress go into the next together."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from hashlight.engine.collection.writing.draft import upgraded
from hashlight.engine.collection.writing.transaction import Transaction
from hashlight.engine.errors import (
    DeadlineExceededError,
    EncoderMismatchError,
    HashlightError,
    IdExistsError,
    IdNotFoundError,
    NotReadyError,
    PlaceError,
)
from hashlight.engine.places.opening import open_target
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.storage.versions import read_current
from hashlight.engine.writing.writes import Write, folded

logger = logging.getLogger(__name__)

# Of one commit: a shard that is written in some tenths of a second.
_MOST_ITEMS = 100_000

# What one write is refused for; it does not concern the others of its commit.
_REFUSALS = (TypeError, ValueError, IdNotFoundError, IdExistsError, EncoderMismatchError)


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    """A write, until when it may wait on the clock of `time.monotonic`, and the version that has it."""

    write: Write
    deadline_s: float
    version: Future[int]


class Committer:
    """Commits writes to one collection, in the order in which they are given. Thread-safe.

    Parameters
    ----------
    location : str or Path
        The collection: a folder, or the URI of one in a bucket.
    gather_s : float
        How long the first of several writes waits for others.
    committed : callable
        Called with every version that a commit has made, before the writes in it are answered.
    """

    def __init__(
        self, location: str | Path, *, gather_s: float = 0.0, committed: Callable[[int], None] = lambda version: None
    ) -> None:
        self._place = open_target(location)
        self._location = location
        self._gather_s = gather_s
        self._committed = committed
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="hashlight-commit", daemon=True)
        self._thread.start()

    def live(self) -> Manifest:
        """Return the live version, which says what a write must fit.

        Raises
        ------
        CollectionNotFoundError, CorruptDataError
            If it cannot be read.
        """
        return upgraded(self._place, read_current(self._place))

    def submit(self, write: Write, *, deadline_s: float) -> Future[int]:
        """Have a write committed; the result is the first version that has it.

        Parameters
        ----------
        write : Write
        deadline_s : float
            On the clock of `time.monotonic`: if its commit has not begun by then, it is discarded
            (DeadlineExceededError).

        Raises
        ------
        NotReadyError
            If this is closed.
        """
        waiting = _Waiting(write, deadline_s, Future())
        with self._closing:
            if self._closed:
                raise NotReadyError("this server is about to end: ask another")
            self._queue.put(waiting)
        return waiting.version

    def close(self) -> None:
        """Commit what waits, and end; again to no effect."""
        with self._closing:
            if not self._closed:
                self._queue.put(None)
            self._closed = True
        self._thread.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            if self._gather_s:
                time.sleep(self._gather_s)
            batch, goes_on = [first], True
            items = first.write.num_items
            with contextlib.suppress(queue.Empty):
                while items < _MOST_ITEMS:
                    more = self._queue.get_nowait()
                    if more is None:
                        goes_on = False
                        break
                    batch.append(more)
                    items += more.write.num_items
            self._settle(batch)
            if not goes_on:
                return

    def _settle(self, batch: Sequence[_Waiting]) -> None:
        """Commit some writes, and answer each."""
        ready = [one for one in batch if one.version.set_running_or_notify_cancel()]
        late = [one for one in ready if time.monotonic() >= one.deadline_s]
        for one in late:
            one.version.set_exception(
                DeadlineExceededError("the write waited past its deadline and was discarded: try again")
            )
        outcomes = self._outcomes([one.write for one in ready if one not in late])
        for one, outcome in zip((one for one in ready if one not in late), outcomes, strict=True):
            if isinstance(outcome, Exception):
                one.version.set_exception(outcome)
            else:
                one.version.set_result(outcome)

    def _outcomes(self, writes: Sequence[Write]) -> list[int | Exception]:
        """Commit some writes; return for each the version that has it, or why there is none."""
        if not writes:
            return []
        try:
            return [self._commit(writes)] * len(writes)
        except Exception as error:
            if not _is_refusal(error) or len(writes) == 1:
                if not isinstance(error, (HashlightError, *_REFUSALS)):
                    logger.exception("%d writes were not committed", len(writes))
                return [error] * len(writes)
        # One of them is refused: halves are tried until it is alone, in the same order.
        middle = len(writes) // 2
        return self._outcomes(writes[:middle]) + self._outcomes(writes[middle:])

    def _commit(self, writes: Sequence[Write]) -> int:
        with Transaction(self._location) as change:
            live = change.live
            assert live is not None, "there is a live version, or beginning would have failed"
            for write in writes:
                write.check(live)
            for write in folded(writes, live):
                write.record(change)
            version = change.commit().version
        try:
            self._committed(version)
        except Exception:  # the write is made, whatever comes of it
            logger.exception("version %d was committed, but is not served yet", version)
        return version


def _is_refusal(error: Exception) -> bool:
    """Whether an error is one of what a write asks for, and not of where it is stored."""
    return isinstance(error, _REFUSALS) and not isinstance(error, PlaceError)
