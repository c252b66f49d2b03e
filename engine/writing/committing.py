"""Writes of many requests to one collection: taken in order, logged, made, and each answered.

Those that arrive while others are being made are made together. What becomes of them a `Store` decides: see
`engine.writing.buffering` and `engine.writing.direct`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from hashlight.engine.errors import (
    DeadlineExceededError,
    EncoderMismatchError,
    HashlightError,
    IdExistsError,
    IdNotFoundError,
    NotReadyError,
    PlaceError,
)
from hashlight.engine.storage.manifest import Manifest
from hashlight.engine.writing.keys import Made, check_same
from hashlight.engine.writing.records import Change, Key

logger = logging.getLogger(__name__)

# Of those that are made together: a shard of so many is written in some tenths of a second.
_MOST_ITEMS = 100_000

# What one write is refused for; it does not concern the others that are made with it.
REFUSALS = (TypeError, ValueError, IdNotFoundError, IdExistsError, EncoderMismatchError)


@dataclasses.dataclass(slots=True)
class Waiting:
    """A write that is to be made.

    Attributes
    ----------
    write : Put, Delete, DeleteWhere or Update
    deadline_s : float
        Until when it may wait, on the clock of `time.monotonic`.
    made : Future
    key : Key or None
    """

    write: Change
    deadline_s: float
    made: Future[Made]
    key: Key | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """What is in the log and in no version yet, and what was made of the log.

    Attributes
    ----------
    writes, num_bytes : int
    oldest_s : float
        Age of the first of them; 0 if there are none.
    flushes, failures : int
        Versions made of what had gathered, and attempts that failed.
    """

    writes: int = 0
    num_bytes: int = 0
    oldest_s: float = 0.0
    flushes: int = 0
    failures: int = 0


class Store(Protocol):
    """Makes writes. `settle` is called in one thread; the rest is thread-safe.

    Attributes
    ----------
    commits_first : bool
        Whether a version has a write before it is answered.
    """

    commits_first: bool

    def live(self) -> Manifest:
        """Return what a write must fit: a manifest of format 2."""
        ...

    def find(self, key: Key) -> Made | None:
        """Return what was made under a key; KeyReusedError if another request came with it."""
        ...

    def settle(self, ready: Sequence[Waiting]) -> None:
        """Make some writes, in order, and answer each."""
        ...

    def visible(self, made: Made) -> Future[int]:
        """Have a write committed at once; the result is the first version that has it."""
        ...

    def state(self) -> State:
        """Return what is pending."""
        ...

    def close(self) -> None:
        """Commit what is pending, and end."""
        ...


class Committer:
    """Takes writes to one collection, in the order in which they are given. Thread-safe.

    Parameters
    ----------
    store : Store
        Closed with this.
    gather_s : float
        How long the first of several writes waits for others.
    """

    def __init__(self, store: Store, *, gather_s: float = 0.0) -> None:
        self.store = store
        self._gather_s = gather_s
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._submitting = threading.Lock()
        self._by_key: dict[str, Waiting] = {}  # those that are not made yet
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="hashlight-writes", daemon=True)
        self._thread.start()

    def live(self) -> Manifest:
        """Return the version that is written to, which says what a write must fit.

        Raises
        ------
        CollectionNotFoundError, CorruptDataError
            If it cannot be read.
        """
        return self.store.live()

    def submit(self, write: Change, *, deadline_s: float, key: Key | None = None) -> Future[Made]:
        """Have a write made; the result is there when it cannot be lost, and this server shows it if it can.

        Parameters
        ----------
        write : Put, Delete, DeleteWhere or Update
        deadline_s : float
            On the clock of `time.monotonic`: if it is not about to be made by then, it is discarded
            (DeadlineExceededError).
        key : Key, optional
            What was made under it before, or is being made, is not made again.

        Raises
        ------
        NotReadyError
            If this is closed.
        KeyReusedError
            If another request came with the key.
        """
        waiting = Waiting(write, deadline_s, Future(), key)
        with self._submitting:
            if self._closed:
                raise NotReadyError("this server is about to end: ask another")
            if key is not None:
                if (before := self._by_key.get(key.text)) is not None:
                    check_same(key, before.key.digest if before.key else "")
                    before.deadline_s = max(before.deadline_s, deadline_s)
                    return _following(before.made)
                if (made := self.store.find(key)) is not None:
                    waiting.made.set_result(made)
                    return waiting.made
                self._by_key[key.text] = waiting
                waiting.made.add_done_callback(lambda _: self._forget(waiting))
            self._queue.put(waiting)
        # Of its own, because who gives up cancels it, and others may wait for the same.
        return waiting.made if key is None else _following(waiting.made)

    def _forget(self, waiting: Waiting) -> None:
        with self._submitting:
            if waiting.key is not None and self._by_key.get(waiting.key.text) is waiting:
                del self._by_key[waiting.key.text]

    def close(self) -> None:
        """Make what waits, commit what is pending, and end; again to no effect."""
        with self._submitting:
            if self._closed:
                return
            self._queue.put(None)
            self._closed = True
        self._thread.join()
        self.store.close()

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

    def _settle(self, batch: Sequence[Waiting]) -> None:
        ready = []
        for one in batch:
            if not one.made.set_running_or_notify_cancel():
                continue
            if time.monotonic() >= one.deadline_s:
                one.made.set_exception(
                    DeadlineExceededError("the write waited past its deadline and was discarded: try again")
                )
            else:
                ready.append(one)
        if not ready:
            return
        try:
            self.store.settle(ready)
        except Exception as error:  # whatever it is, each request gets an answer
            if not isinstance(error, (HashlightError, OSError)):
                logger.exception("%d writes were not made", len(ready))
            for one in ready:
                if not one.made.done():
                    one.made.set_exception(error)


def is_refusal(error: Exception) -> bool:
    """Whether an error is one of what a write asks for, and not of where it is stored."""
    return isinstance(error, REFUSALS) and not isinstance(error, PlaceError)


def _following(made: Future[Made]) -> Future[Made]:
    """Return a future with the same result; cancelling it leaves the other as it is."""
    other: Future[Made] = Future()

    def pass_on(done: Future[Made]) -> None:
        if not other.set_running_or_notify_cancel():
            return
        error = done.exception()
        if error is None:
            other.set_result(done.result())
        else:
            other.set_exception(error)

    made.add_done_callback(pass_on)
    return other
