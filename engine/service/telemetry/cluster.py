"""What a router and a shard server count and measure, as Prometheus metrics; docs/metrics.md lists them."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hashlight.engine.service.telemetry.metrics import SECONDS

# Of a replica, as `engine.service.routing.replica.Replica.state` says it.
STATES = ("connected", "silent", "shut", "leaving", "lost")


class RouterCollector(Collector):
    """The metrics of a router, read from it when they are asked for.

    Parameters
    ----------
    stats : callable
        Returns what `ClusterRouter.stats` does, or nothing if there is no router.
    """

    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now."""
        stats = self._stats()
        if not stats:
            return
        for name, what in (
            ("queries", "Requests that went to all groups."),
            ("calls", "Calls of shard servers, without hedges and retries."),
            ("hedges", "Second calls, because the first was late."),
            ("retries", "Calls repeated elsewhere after a failure."),
            ("breakers_opened", "Times that a replica was avoided after a failure."),
        ):
            yield CounterMetricFamily(f"hashlight_router_{name}", what, stats[name])
        replicas = stats["replicas"]
        states = GaugeMetricFamily("hashlight_router_replicas", "Shard servers by state.", labels=["state"])
        tally = Tally(replica["state"] for replica in replicas)
        for state in STATES:
            states.add_metric([state], tally[state])
        yield states
        calls = sum(replica["under_way"] for replica in replicas)
        yield GaugeMetricFamily("hashlight_router_in_flight_calls", "Calls in progress.", calls)
        yield GaugeMetricFamily("hashlight_router_groups", "Groups of shards.", stats["groups"])
        yield GaugeMetricFamily(
            "hashlight_router_map_age_seconds", "Time since it was last found out who serves what.", stats["map_age_s"]
        )


class ShardMetrics(Collector):
    """The metrics of one shard server. Thread-safe.

    Parameters
    ----------
    stats : callable
        Returns what `ShardServer.stats` does.
    """

    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._stats = stats
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "hashlight_shard_requests", "Requests answered.", ["kind", "status"], registry=registry
        )
        self._seconds = Histogram(
            "hashlight_shard_request_seconds", "Time to answer.", ["kind"], buckets=SECONDS, registry=registry
        )
        self._waited = Histogram(
            "hashlight_shard_wait_seconds", "Time that requests waited.", buckets=SECONDS, registry=registry
        )

    def observe(self, kind: str, status: str, *, waited_s: float, seconds: float) -> None:
        """Record an answered request."""
        self._requests.labels(kind, status).inc()
        self._seconds.labels(kind).observe(seconds)
        self._waited.observe(waited_s)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now."""
        yield from self._registry.collect()
        stats = self._stats()
        for name, what in (
            ("received_bytes", "Bytes of requests."),
            ("sent_bytes", "Bytes of answers."),
        ):
            yield CounterMetricFamily(f"hashlight_shard_{name}", what, stats[name])
        for name, what in (
            ("in_flight_requests", "Requests waiting or in progress."),
            ("waiting_requests", "Requests waiting."),
            ("open_shards", "Shards of the newest version that is served."),
            ("served_version", "Newest version that is served."),
            ("served_versions", "Versions that are served."),
            ("published_version", "Newest version that was published."),
            ("pending_attempts", "Failed attempts to serve the published version."),
            ("draining", "1 if it is about to end."),
        ):
            yield GaugeMetricFamily(f"hashlight_shard_{name}", what, stats[name])
