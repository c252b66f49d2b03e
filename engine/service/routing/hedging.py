"""When a late call is hedged by asking a second replica, and how often.

The constants performed best in a simulation of the fan-out (`benchmarks/fanout.py`, `docs/capacity.md`): wait until
the 97th percentile of earlier calls, hedge at most one call in twenty, save up at most twenty hedges.
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
_MAX_CLASSES = 256


class HedgeBudget:
    """Budget of second calls: a share of first calls, with a small reserve. Thread-safe."""

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
        """Take one hedge, if any is left."""
        with self._lock:
            if self._saved < 1:
                return False
            self._saved -= 1
            self.hedges += 1
            return True


class Delays:
    """Latencies of each class of calls, and when a call counts as late. Thread-safe.

    A class combines the kind of request, its size and its radius.
    """

    def __init__(self, *, quantile: float = QUANTILE) -> None:
        self._quantile = quantile
        self._classes: collections.OrderedDict[tuple[int, ...], _Recent] = collections.OrderedDict()
        self._lock = threading.Lock()

    def late_s(self, key: tuple[int, ...]) -> float:
        """Return after how long a call of this class is late; infinite until enough calls were seen."""
        recent = self._classes.get(key)
        return float("inf") if recent is None else recent.late_s

    def add(self, key: tuple[int, ...], seconds: list[float]) -> None:
        """Record latencies."""
        with self._lock:
            recent = self._classes.setdefault(key, _Recent())
            self._classes.move_to_end(key)
            if len(self._classes) > _MAX_CLASSES:
                self._classes.popitem(last=False)
            recent.seconds.extend(seconds)
            recent.fresh += len(seconds)
            if recent.fresh >= _RENEW_CALLS:
                recent.fresh = 0
                recent.late_s = float(np.quantile(np.array(recent.seconds), self._quantile))


class _Recent:
    """The most recent calls of one class."""

    def __init__(self) -> None:
        self.seconds: collections.deque[float] = collections.deque(maxlen=_WINDOW_CALLS)
        self.fresh = 0
        self.late_s = float("inf")
