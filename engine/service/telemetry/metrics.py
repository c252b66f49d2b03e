"""What a gateway counts and measures, as Prometheus metrics; docs/metrics.md lists them.

Names end in the unit: `_seconds`, `_bytes`, `_ratio`, or what is counted; counters end in `_total`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hashlight.engine.service.telemetry.process import PROCESS
from hashlight.engine.tracing import span

CONTENT_TYPE = CONTENT_TYPE_LATEST

# A shard takes 10 microseconds to a few milliseconds, an encoder tens of milliseconds.
SECONDS = (
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


class Metrics(Collector):
    """The metrics of one gateway and one collection. Thread-safe."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._refreshers: list[Callable[[], None]] = []
        self._stage = Histogram(
            "hashlight_stage_seconds", "Time of a stage.", ["stage"], buckets=SECONDS, registry=registry
        )
        self._request = Histogram(
            "hashlight_request_seconds", "Whole requests.", ["route"], buckets=SECONDS, registry=registry
        )
        self._requests = Counter("hashlight_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._received = Counter(
            "hashlight_request_bytes", "Bytes of the bodies of requests.", ["route"], registry=registry
        )
        self._sent = Counter(
            "hashlight_response_bytes", "Bytes of the bodies of answers.", ["route"], registry=registry
        )
        self.in_flight = Gauge("hashlight_in_flight_requests", "Requests in progress.", registry=registry)
        self.encode_batch = Histogram(
            "hashlight_encode_batch_images", "Images encoded together.", buckets=_COUNTS, registry=registry
        )
        self.search_batch = Histogram(
            "hashlight_search_batch_requests", "Requests searched together.", buckets=_COUNTS, registry=registry
        )
        self.partial = Counter("hashlight_partial_answers", "Answers that lack shards.", registry=registry)
        self.version = Gauge("hashlight_served_version", "Version of the collection being served.", registry=registry)
        self.published = Gauge("hashlight_published_version", "Newest version that was published.", registry=registry)
        self.pending = Gauge(
            "hashlight_pending_attempts", "Failed attempts to serve the published version.", registry=registry
        )
        self.compactions = Counter("hashlight_compactions", "Groups of shards merged.", registry=registry)
        self.compacted_rows = Counter("hashlight_compacted_rows", "Rows written anew.", registry=registry)
        self.compaction_seconds = Counter("hashlight_compaction_seconds", "Time of compactions.", registry=registry)
        self.compaction_failures = Counter(
            "hashlight_compaction_failures", "Attempts to compact that failed.", registry=registry
        )
        self.missing = Gauge("hashlight_missing_shards", "Shards that cannot be asked.", registry=registry)
        self.coverage = Gauge("hashlight_coverage_ratio", "Share of the codes that can be searched.", registry=registry)

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
        self._counting = threading.Lock()

    def refresh_by(self, refresher: Callable[[], None]) -> None:
        """Call `refresher` before the metrics are read: it updates what is not counted as it happens."""
        self._refreshers.append(refresher)

    def note_log(self, writes: int, num_bytes: int, oldest_s: float, *, flushes: int, failures: int) -> None:
        """Record what is in the write log, and how many versions were made of it, and attempts failed, so far."""
        self._log_writes.set(writes)
        self._log_bytes.set(num_bytes)
        self._log_age.set(oldest_s)
        with self._counting:
            # Of two threads that read the metrics, the later one may have been told less.
            flushes, failures = max(flushes, self._flushed[0]), max(failures, self._flushed[1])
            self._flushes.inc(flushes - self._flushed[0])
            self._flush_failures.inc(failures - self._flushed[1])
            self._flushed = flushes, failures

    def observe(self, stage: str, seconds: float) -> None:
        """Record the duration of a stage."""
        self._stage.labels(stage).observe(seconds)

    @contextlib.contextmanager
    def stage(self, name: str, timing_ms: dict[str, float]) -> Iterator[None]:
        """Time a stage, for Prometheus, for traces and for the answer's `timing_ms`."""
        start = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            seconds = time.perf_counter() - start
            timing_ms[name] = round(1000 * seconds, 3)
            self.observe(name, seconds)

    def count(self, route: str, status: int, seconds: float, *, received: int, sent: int) -> None:
        """Record an answered request, and the bytes of its body and of the answer's."""
        self._requests.labels(route, str(status)).inc()
        self._request.labels(route).observe(seconds)
        self._received.labels(route).inc(received)
        self._sent.labels(route).inc(sent)

    def collect(self) -> Iterable[Metric]:
        """Return all metrics as they are now."""
        for refresh in self._refreshers:
            refresh()
        return self.registry.collect()


def render(*collectors: Collector) -> bytes:
    """Return what collectors have, and the metrics of this process, in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in (*collectors, *PROCESS):
        registry.register(collector)
    return generate_latest(registry)
