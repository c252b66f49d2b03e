"""Records how each query of a batch was answered."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from hashlight.engine.kernels.arguments import Work
from hashlight.engine.results import Explanation


class Account:
    """The work done for each of `num_queries` queries over `rows` codes that may be returned."""

    def __init__(self, num_queries: int, rows: int) -> None:
        self._rows = rows
        self._plans: list[list[str]] = [[] for _ in range(num_queries)]
        self._probes_Q = np.zeros(num_queries, np.int64)
        self._candidates_Q = np.zeros(num_queries, np.int64)
        self._seconds_Q = np.zeros(num_queries)

    def add_tables(self, group: NDArray[np.intp], work: Work, start: float) -> None:
        """Record the work of the tables for the queries of `group`, started at `start` (`time.perf_counter`)."""
        self._record(group, "tables", start)
        self._probes_Q[group] += work.probes_Q
        self._candidates_Q[group] += work.candidates_Q

    def add_scan(self, group: NDArray[np.intp], start: float, *, listed: bool = False) -> None:
        """Record a scan for the queries of `group`, started at `start`: of all allowed rows, or of a list of them."""
        self._record(group, "gather" if listed else "scan", start)
        self._candidates_Q[group] += self._rows

    def _record(self, group: NDArray[np.intp], plan: str, start: float) -> None:
        self._seconds_Q[group] += (time.perf_counter() - start) / max(1, len(group))
        for query in group:
            if self._plans[query][-1:] != [plan]:
                self._plans[query].append(plan)

    def explanation(self) -> Explanation:
        """Return the records."""
        return Explanation(
            plans=tuple(", then ".join(plans) for plans in self._plans),
            probes=self._probes_Q,
            candidates=self._candidates_Q,
            seconds=self._seconds_Q,
        )
