"""Metrics: what `aot.stats()` tells, for Prometheus. Needs `prometheus-client` (`pip install prometheus-client`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aot.artifact.ledger import component_of_call, component_of_miss, stats
from aot.errors import BadEnvironment

if TYPE_CHECKING:
    from prometheus_client.core import Metric
    from prometheus_client.registry import CollectorRegistry


def export_metrics(registry: CollectorRegistry | None = None) -> None:
    """Have `registry`, by default the process's own, tell what graphs served: `aot_graph_calls_total` and `aot_missed_calls_total` by
    component, `aot_load_seconds` by what they were spent on, `aot_loaded` 1 for each component and artifact in force, and
    `aot_compiled_graphs`, those that torch.compile has made in this process since the first load. Nothing is counted beside what
    serving counts anyway: it is read when it is scraped. Call once. Raises BadEnvironment without prometheus-client.
    """
    try:
        from prometheus_client import REGISTRY
    except ImportError as error:
        raise BadEnvironment("prometheus-client is not installed.", remedy="pip install prometheus-client.") from error
    (registry or REGISTRY).register(_Collector())


class _Collector:
    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        accounts = stats()
        served, missed, seconds = Counter[str](), Counter[str](), Counter[str]()
        for account in accounts:
            for call, number in account["hits"].items():
                served[component_of_call(call)] += number
            for sentence, number in account["misses"].items():
                missed[component_of_miss(sentence)] += number
            seconds.update(account["seconds"])
        yield _family(CounterMetricFamily, "aot_graph_calls", "Calls that a loaded graph has served.", "component", served)
        yield _family(CounterMetricFamily, "aot_missed_calls", "Calls that no graph has served.", "component", missed)
        yield _family(GaugeMetricFamily, "aot_load_seconds", "Spent on loading what is in force.", "step", seconds)
        loaded = GaugeMetricFamily("aot_loaded", "Artifacts in force, by component.", labels=["component", "artifact"])
        for component, artifact in {(path, name) for account in accounts for path, names in account["served"].items() for name in names}:
            loaded.add_metric([component, artifact], 1)
        yield loaded
        compiled = max((account["compiled"] for account in accounts), default=0)
        yield GaugeMetricFamily("aot_compiled_graphs", "Graphs that torch.compile has made since the first load.", value=compiled)


def _family(kind: Any, name: str, about: str, label: str, counts: Counter[str]) -> Any:
    found = kind(name, about, labels=[label])
    for key, number in sorted(counts.items()):
        found.add_metric([key], number)
    return found
