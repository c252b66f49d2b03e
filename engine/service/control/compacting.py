"""Compaction in the background of a server: what is worth merging in a new version is merged, group by group."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hashlight.engine.collection.writing.compaction import Compaction, merge_group
from hashlight.engine.collection.writing.policy import groups_to_merge
from hashlight.engine.errors import PlaceError
from hashlight.engine.indexes.threads import in_background
from hashlight.engine.places.opening import open_place
from hashlight.engine.service.asking.following import LOOK_S, Backoff, Clock
from hashlight.engine.service.telemetry.metrics import Metrics
from hashlight.engine.storage.versions import read_current

logger = logging.getLogger(__name__)

# Of a thread that compacts: it gets a third of the time of one that searches. With less, it would hold up others for
# longer whenever it has the interpreter's lock.
_NICENESS = 5
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_END_S = 5.0  # to end in; a longer step ends with the process


class _EndingError(Exception):
    """The server is shutting down."""


class Compactor:
    """Merges the shards of a collection that are worth it, in the thread that calls it.

    Which are, and why, is in `engine.collection.writing.policy`. Each merger is a version of its own. Of two processes
    that merge the same shards, the later one has worked in vain. After a failure there is a pause, each twice as long
    as the last, up to five minutes.

    Parameters
    ----------
    location : str or Path
        Of the collection. What is worth merging in the version that is live now waits for the next one: a collection
        that nobody writes is left as it was built.
    least : callable
        Returns how many shards should be left, as in `groups_to_merge`; 0 as long as that is not known, and then
        nothing is merged.
    metrics : Metrics, optional
        Where to count.
    ending : Event, optional
        Set to end a merger, which leaves nothing.
    clock : callable
        Returns seconds.
    """

    def __init__(
        self,
        location: str | Path,
        *,
        least: Callable[[], int] = lambda: 1,
        metrics: Metrics | None = None,
        ending: threading.Event | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._place = open_place(location)
        self._least = least
        self._metrics = metrics or Metrics()
        self._ending = ending or threading.Event()
        self._backoff = Backoff(clock=clock)
        self._seen = read_current(self._place).file_name  # of the last version in which nothing was to be merged
        self._is_refused = False

    def look(self) -> Compaction | None:
        """Merge the smallest group of shards that is worth it in the live version; None if nothing was merged.

        Errors are logged and counted.
        """
        if self._is_refused or not self._backoff.allows(self):
            return None
        begun_s = time.perf_counter()
        try:
            done = self._merge()
        except _EndingError:
            return None
        except Exception as error:  # whatever it is, the server goes on, and so may a later compaction
            self._note_failure(error)
            return None
        self._backoff.succeeded()
        if done is not None:
            seconds = time.perf_counter() - begun_s
            self._metrics.compactions.inc()
            self._metrics.compacted_rows.inc(done.rows)
            self._metrics.compaction_seconds.inc(seconds)
            logger.info(
                "merged %d shards of %s into %d: version %d, %d rows in %.1f s",
                done.before, self._place, done.after, done.version, done.rows, seconds,
            )  # fmt: skip
        return done

    def follow(self) -> None:
        """Look every two seconds until the end: with less, a busy writer's shards would be merged four by four."""
        with in_background():
            _lower_priority()
            while not self._ending.wait(LOOK_S):
                self.look()

    def _merge(self) -> Compaction | None:
        live = read_current(self._place)
        if live.file_name == self._seen:
            return None
        least = self._least()
        if least == 0:
            return None
        groups = groups_to_merge(live.shards, least=least)
        if not groups:
            self._seen = live.file_name
            return None
        group = min(groups, key=lambda group: sum(spec.rows for spec in group))
        return merge_group(self._place.location, [spec.name for spec in group], check=self._check)

    def _note_failure(self, error: Exception) -> None:
        if isinstance(error, PlaceError) or (isinstance(error, OSError) and error.errno in _NOT_ALLOWED):
            self._is_refused = True
            logger.info("%s cannot be written from here, and is not compacted: %s", self._place, error)
            return
        self._backoff.failed(self)
        self._metrics.compaction_failures.inc()
        told = str(error) or type(error).__name__
        logger.warning("%s was not compacted, next attempt in %.0f s: %s", self._place, self._backoff.left_s, told)

    def _check(self) -> None:
        if self._ending.is_set():
            raise _EndingError


@contextlib.contextmanager
def compacting(
    location: str | Path,
    *,
    least: Callable[[], int] = lambda: 1,
    metrics: Metrics | None = None,
) -> Iterator[None]:
    """Compact a collection in a thread of its own as long as this context is open; see `Compactor`.

    One that cannot be written is left alone.
    """
    ending = threading.Event()
    compactor = Compactor(location, least=least, metrics=metrics, ending=ending)
    # A daemon, because one step of a large merger may outlast `_END_S`: what it leaves is removed by the next write.
    thread = threading.Thread(target=compactor.follow, name="hashlight-compact", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(_END_S)


def _lower_priority() -> None:
    """Let other threads go first, where a platform has priorities of threads."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
