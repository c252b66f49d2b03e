"""The metrics of a process and of Python in it, and those of several collections put together."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class ThreadCollector(Collector):
    """The number of threads."""

    def collect(self) -> Iterable[Metric]:
        """Return it."""
        yield GaugeMetricFamily("python_threads", "Threads that Python knows.", threading.active_count())


class LabelledCollector(Collector):
    """The metrics of several collectors that have the same, told apart by a label.

    Parameters
    ----------
    label : str
    collectors : mapping of str to Collector
        Value of the label -> what has the metrics.
    """

    def __init__(self, label: str, collectors: Mapping[str, Collector]) -> None:
        self._label = label
        self._collectors = dict(collectors)

    def collect(self) -> Iterable[Metric]:
        """Return each metric once, with the samples of all."""
        together: dict[str, Metric] = {}
        for value, collector in self._collectors.items():
            for metric in collector.collect():
                if metric.name not in together:
                    together[metric.name] = Metric(metric.name, metric.documentation, metric.type, metric.unit)
                together[metric.name].samples += [
                    sample._replace(labels={self._label: value, **sample.labels}) for sample in metric.samples
                ]
        return together.values()


PROCESS: tuple[Collector, ...] = (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR, ThreadCollector())
