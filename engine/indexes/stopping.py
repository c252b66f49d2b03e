"""Ending a search that nobody waits for any more: kernels look at a flag between blocks of codes.

A search computes for a `Stop`, which its thread and those that help it know. Setting it makes the kernels return within
a block, some ten microseconds; what they return then is not an answer, and becomes an error before anybody sees it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.errors import DeadlineExceededError, HashlightError

_LOOK_S = 0.02  # between looks for deadlines that have passed


class StoppedError(HashlightError):
    """A search was given up because nobody waits for its answer."""


class Stop:
    """Ends a search. Thread-safe.

    Attributes
    ----------
    flag_1 : ndarray of uint8, shape (1,)
        Not 0 once it is set; what kernels look at.
    """

    __slots__ = ("_error", "flag_1")

    def __init__(self) -> None:
        self.flag_1: NDArray[np.uint8] = np.zeros(1, np.uint8)
        self._error: HashlightError | None = None

    def set(self, error: HashlightError) -> None:
        """End the search with an error; the first one counts."""
        if self._error is None:
            self._error = error
        self.flag_1[0] = 1

    def check(self) -> None:
        """Raise the error that it was set with, if it was."""
        if self._error is not None:
            raise self._error


NEVER = Stop()


class _Current(threading.local):
    """For what this thread computes."""

    def __init__(self) -> None:
        self.stop = NEVER


_current = _Current()


def current() -> Stop:
    """Return what may end the search that this thread computes; `NEVER` if nothing does."""
    return _current.stop


@contextlib.contextmanager
def stoppable(stop: Stop) -> Iterator[None]:
    """Have what is computed in this context end when `stop` is set; raises its error then."""
    before, _current.stop = _current.stop, stop
    try:
        stop.check()
        yield
        stop.check()
    finally:
        _current.stop = before


@contextlib.contextmanager
def until(deadline_s: float, stop: Stop, message: str) -> Iterator[None]:
    """Have what is computed in this context end at a deadline, on the clock of `time.monotonic`, or with `stop`.

    Raises
    ------
    DeadlineExceededError
        With `message`, if it was ended by the deadline.
    """
    if deadline_s == float("inf"):
        with stoppable(stop):
            yield
        return
    with _watch.over(stop, deadline_s, message), stoppable(stop):
        yield


class _Watch:
    """Sets what has passed its deadline, in a thread that runs as long as there is anything with one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[int, tuple[Stop, float, str]] = {}
        self._is_running = False

    @contextlib.contextmanager
    def over(self, stop: Stop, deadline_s: float, message: str) -> Iterator[None]:
        """Set `stop` once the deadline has passed, as long as the context is open."""
        with self._changed:
            self._watched[id(stop)] = stop, deadline_s, message
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="hashlight-deadlines", daemon=True).start()
            elif len(self._watched) == 1:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._watched.pop(id(stop), None)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._watched:
                    self._changed.wait()
                watched = list(self._watched.values())
            now_s = time.monotonic()
            for stop, deadline_s, message in watched:
                if deadline_s <= now_s:
                    stop.set(DeadlineExceededError(message))
            time.sleep(_LOOK_S)


_watch = _Watch()


def _forget_watch() -> None:
    """Begin anew in a forked child, which does not have the thread."""
    global _watch
    _watch = _Watch()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_watch)
