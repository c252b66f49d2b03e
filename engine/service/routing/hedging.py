"""When a second replica is asked for want of an answer, and how often.

The constants are those that a simulation of the fan-out found best (`benchmarks/fanout.py`, `docs/capacity.md`): wait
until the 97th percentile of the calls before it, spend at most one hedge in twenty calls, save up twenty.
"""

from __future__ import annotations

import collections
import threading

import numpy as np

QUANTILE = 0.97
BUDGET = 0.05
BURST = 20.0

_WINDOW_CALLS = 2000
_RENEW_CALLS = 200
_MOST_CLASSES = 256


class HedgeBudget:
    """Second calls that may be made: a share of the first ones, saved up to a few. Threads may share it."""

    def __init__(self, *, budget: float = BUDGET, burst: float = BURST) -> None:
        self.calls = self.hedges = 0
        self._budget, self._burst, self._saved = budget, burst, 0.0
        self._lock = threading.Lock()

    def earn(self, calls: int) -> None:
        """Count first calls."""
        with self._lock:
            self.calls += calls
            self._saved = min(self._saved + self._budget * calls, self._burst)

    def spend(self) -> bool:
        """Take one hedge, if there is one."""
        with self._lock:
            if self._saved < 1:
                return False
            self._saved -= 1
            self.hedges += 1
            return True


class Delays:
    """How long calls of a class took, and after how long one is late. Threads may share it.

    A class is what makes calls alike: the kind of request, its size, its radius.
    """

    def __init__(self, *, quantile: float = QUANTILE) -> None:
        self._quantile = quantile
        self._classes: collections.OrderedDict[tuple[int, ...], _Recent] = collections.OrderedDict()
        self._lock = threading.Lock()

    def late_s(self, key: tuple[int, ...]) -> float:
        """Return when a call of this class is late; never, while too few were seen."""
        recent = self._classes.get(key)
        return float("inf") if recent is None else recent.late_s

    def add(self, key: tuple[int, ...], seconds: list[float]) -> None:
        """Note how long calls took."""
        with self._lock:
            recent = self._classes.setdefault(key, _Recent())
            self._classes.move_to_end(key)
            if len(self._classes) > _MOST_CLASSES:
                self._classes.popitem(last=False)
            recent.seconds.extend(seconds)
            recent.fresh += len(seconds)
            if recent.fresh >= _RENEW_CALLS:
                recent.fresh = 0
                recent.late_s = float(np.quantile(np.array(recent.seconds), self._quantile))


class _Recent:
    """The last calls of one class."""

    def __init__(self) -> None:
        self.seconds: collections.deque[float] = collections.deque(maxlen=_WINDOW_CALLS)
        self.fresh = 0
        self.late_s = float("inf")
