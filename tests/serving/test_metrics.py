"""What Prometheus is told."""

import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest

import aot
from aot.cache_store.local import LocalStore
from aot.errors import BadEnvironment
from tests.pixart import denoise, denoiser_call, make_pipe


def test_the_counts_are_those_of_stats(cached: LocalStore) -> None:
    registry = CollectorRegistry()
    aot.export_metrics(registry)
    assert registry.get_sample_value("aot_graph_calls_total", {"component": "transformer"}) is None
    pipe = aot.compile_pipe(make_pipe(), on_miss="eager")
    for _ in range(3):
        denoise(pipe)
    denoise(pipe, **denoiser_call(batch=1))
    ((ref, _),) = cached.refs()
    told = {
        ("aot_graph_calls_total", "component", "transformer"): 3,
        ("aot_graph_calls_total", "component", "vae.decoder"): 0,
        ("aot_missed_calls_total", "component", "transformer"): 1,
    }
    for (name, label, value), number in told.items():
        assert registry.get_sample_value(name, {label: value}) == number
    artifact = f"{ref.name}@{ref.key.short}"
    assert registry.get_sample_value("aot_loaded", {"component": "vae.decoder", "artifact": artifact}) == 1
    assert registry.get_sample_value("aot_compiled_graphs") == 0
    assert (registry.get_sample_value("aot_load_seconds", {"step": "load"}) or 0) > 0
    assert b"# TYPE aot_graph_calls_total counter" in generate_latest(registry) or b"aot_graph_calls_total{" in generate_latest(registry)
    aot.restore(pipe)
    assert registry.get_sample_value("aot_loaded", {"component": "vae.decoder", "artifact": artifact}) is None


def test_without_the_client_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(BadEnvironment, match="prometheus-client is not installed"):
        aot.export_metrics()
