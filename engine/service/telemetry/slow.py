"""The slow queries of a server that were logged last, in memory."""

from __future__ import annotations

import collections
import datetime
from typing import Any

# In the scope of a request: the `SlowQueries` of its server.
SLOW_QUERIES = "hashlight.slow_queries"
KEPT = 100


class SlowQueries:
    """What the log of slow queries says of the last ones. Thread-safe.

    Parameters
    ----------
    threshold_s : float or None
        A query that takes longer is slow; None: none is.
    """

    def __init__(self, threshold_s: float | None) -> None:
        self.threshold_s = threshold_s
        self._last: collections.deque[dict[str, Any]] = collections.deque(maxlen=KEPT)

    def add(self, request_id: str, fields: dict[str, Any]) -> None:
        """Keep one, with the time of its end."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._last.append({"ended": now, "request_id": request_id, **fields})

    def last(self) -> list[dict[str, Any]]:
        """Return the last ones, the latest first."""
        return list(self._last)[::-1]
