"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


class Metrics:
    """Gauges that are read when they are asked for.

    Args:
        gauges: name (without the prefix) to its description and the function that reads it.
    """

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        self._registry = CollectorRegistry()
        for name, (description, read) in gauges.items():
            Gauge(f"clawdforge_{name}", description, registry=self._registry).set_function(read)

    def render(self) -> tuple[bytes, str]:
        """The text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
