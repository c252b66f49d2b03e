"""The Prometheus metrics of a gateway.

::

    hashlight_stage_seconds{stage}            histogram: read, decode, encode, wait, search, items, render; behind a
                                              cluster router also fan_out, shard, merge
    hashlight_request_seconds{route}          histogram: whole requests
    hashlight_requests_total{route, status}   counter
    hashlight_in_flight                       gauge: requests in progress
    hashlight_encode_batch_images             histogram: images encoded together
    hashlight_search_batch_requests           histogram: single-query requests searched as one batch
    hashlight_partial_answers_total           counter: answers that lack shards
    hashlight_collection_version              gauge
    hashlight_pending_attempts                gauge: failed attempts to serve the live version; 0 once it is served
    hashlight_compactions_total               counter: groups of shards that this server has merged
    hashlight_compacted_rows_total            counter: rows that it has written anew for that
    hashlight_compaction_seconds_total        counter: time that it has taken
    hashlight_compaction_failures_total       counter: attempts that failed
    hashlight_log_writes                      gauge: writes that are in the log, and in no version yet
    hashlight_log_bytes                       gauge: what they take
    hashlight_log_age_seconds                 gauge: age of the oldest of them
    hashlight_log_flushes_total               counter: versions made of such writes
    hashlight_log_flush_failures_total        counter: attempts that failed
    hashlight_missing_shards                  gauge: shards that the last `/health/ready` could not search
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

# A shard takes 10 microseconds to a few milliseconds, an encoder tens of milliseconds.
_SECONDS = (
    25e-6,
    50e-6,
    100e-6,
    250e-6,
    500e-6,
    1e-3,
    2.5e-3,
    5e-3,
    10e-3,
    25e-3,
    50e-3,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    10.0,
)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one gateway, in their own registry. Thread-safe."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._stage = Histogram(
            "hashlight_stage_seconds", "Time of a stage.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self._request = Histogram(
            "hashlight_request_seconds", "Whole requests.", ["route"], buckets=_SECONDS, registry=registry
        )
        self._requests = Counter("hashlight_requests", "Requests answered.", ["route", "status"], registry=registry)
        self.in_flight = Gauge("hashlight_in_flight", "Requests in progress.", registry=registry)
        self.encode_batch = Histogram(
            "hashlight_encode_batch_images", "Images encoded together.", buckets=_COUNTS, registry=registry
        )
        self.search_batch = Histogram(
            "hashlight_search_batch_requests", "Requests searched together.", buckets=_COUNTS, registry=registry
        )
        self.partial = Counter("hashlight_partial_answers", "Answers that lack shards.", registry=registry)
        self.version = Gauge("hashlight_collection_version", "Collection version being served.", registry=registry)
        self.pending = Gauge(
            "hashlight_pending_attempts", "Failed attempts to serve the live version.", registry=registry
        )
        self.compactions = Counter("hashlight_compactions", "Groups of shards merged.", registry=registry)
        self.compacted_rows = Counter("hashlight_compacted_rows", "Rows written anew.", registry=registry)
        self.compaction_seconds = Counter("hashlight_compaction_seconds", "Time of compactions.", registry=registry)
        self.compaction_failures = Counter(
            "hashlight_compaction_failures", "Attempts to compact that failed.", registry=registry
        )
        self.missing = Gauge("hashlight_missing_shards", "Shards that cannot be searched.", registry=registry)

        self._log_writes = Gauge("hashlight_log_writes", "Writes that no version has.", registry=registry)
        self._log_bytes = Gauge("hashlight_log_bytes", "Bytes of writes that no version has.", registry=registry)
        self._log_age = Gauge(
            "hashlight_log_age_seconds", "Age of the oldest write that no version has.", registry=registry
        )
        self._flushes = Counter("hashlight_log_flushes", "Versions made of the log.", registry=registry)
        self._flush_failures = Counter(
            "hashlight_log_flush_failures", "Attempts to make a version of the log that failed.", registry=registry
        )
        self._flushed = 0, 0

    def note_log(self, writes: int, num_bytes: int, oldest_s: float, *, flushes: int, failures: int) -> None:
        """Record what is in the write log, and how many versions were made of it, and attempts failed, so far."""
        self._log_writes.set(writes)
        self._log_bytes.set(num_bytes)
        self._log_age.set(oldest_s)
        self._flushes.inc(flushes - self._flushed[0])
        self._flush_failures.inc(failures - self._flushed[1])
        self._flushed = flushes, failures

    def observe(self, stage: str, seconds: float) -> None:
        """Record the duration of a stage."""
        self._stage.labels(stage).observe(seconds)

    @contextlib.contextmanager
    def stage(self, name: str, timing_ms: dict[str, float]) -> Iterator[None]:
        """Time a stage, for Prometheus and for the answer's `timing_ms`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            timing_ms[name] = round(1000 * seconds, 3)
            self.observe(name, seconds)

    def count(self, route: str, status: int, seconds: float) -> None:
        """Record an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._request.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)
