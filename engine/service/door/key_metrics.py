"""The metrics of keys, which are those of a whole server, whatever collection is asked.

::

    hashlight_keys                            gauge: keys in use
    hashlight_keys_stale                      gauge: 1 while the file of keys cannot be used, so that those read before
                                              are in use, else 0
    hashlight_key_refusals_total{reason}      counter: requests refused for their key: missing, unknown, scope (it may
                                              not do this), rate, in_flight (it has reached that limit)
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from hashlight.engine.service.door.keys import Keys

REASONS = ("missing", "unknown", "scope", "rate", "in_flight")


class KeyMetrics(Collector):
    """Reads the state of keys whenever metrics are asked for.

    Parameters
    ----------
    keys : Keys
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        stale = float(self._keys.is_stale)  # before the rest, since it reads the file again if it has changed
        yield GaugeMetricFamily("hashlight_keys", "Keys in use.", len(self._keys))
        yield GaugeMetricFamily("hashlight_keys_stale", "Whether the file of keys cannot be used.", stale)
        refused = CounterMetricFamily("hashlight_key_refusals", "Requests refused for their key.", labels=["reason"])
        for reason in REASONS:
            refused.add_metric([reason], self._keys.refusals[reason])
        yield refused
