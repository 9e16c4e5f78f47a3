"""Prometheus metrics: counters and histograms, and gauges that are read on request.

An observation costs a microsecond, so there is one per turn or commit, and none per update.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from .errors import ErrorCode
from .tracing import Tracer

METRIC_PREFIX = "clawdforge_"
LAG_PAUSE_SECS, IDLE_LAG_PAUSE_SECS = 0.1, 1.0
"""Between two measurements of the event loop's delay, while the server is busy or idle."""
BUSY_SHARE = 0.05
"""The event loop is busy above this share of a processor."""

OUTCOMES = {*ErrorCode, "end_turn", "max_tokens", "max_turn_requests", "refusal", "cancelled"}
"""The outcomes of turns. Unknown stop reasons count as ``other``, to bound the cardinality."""

_MS = 0.001
_SHORT = (*(n * _MS for n in (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)), 1, 2.5, 5)
_LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
_COUNTS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)


class Metrics:
    """The server's metrics; times are in seconds.

    Attributes:
        turn_wait: from a prompt's acceptance to its turn's start.
        first_update: from a turn's start to its first update.
        turn: from a turn's start to its end.
        log_append: from the oldest entry of a commit to its durability.
        log_batch: entries of one commit.
        log_bytes: of all entries that were committed.
        loop_lag: the delay of a timer of the event loop.
        tracer: gets each turn that has ended; None without one.
    """

    def __init__(self) -> None:
        self.tracer: Tracer | None = None
        self._registry = CollectorRegistry()
        self._turns = Counter(
            f"{METRIC_PREFIX}turns", "Turns that ended", ("outcome",), registry=self._registry
        )
        self.turn_wait = self._histogram(
            "turn_wait_seconds", "From a prompt's acceptance to its turn's start", _LONG
        )
        self.first_update = self._histogram(
            "first_update_seconds", "From a turn's start to its first update", _LONG
        )
        self.turn = self._histogram("turn_seconds", "From a turn's start to its end", _LONG)
        self.log_append = self._histogram(
            "log_append_seconds", "From the oldest entry of a commit to its durability", _SHORT
        )
        self.log_batch = self._histogram("log_batch_entries", "Entries of one commit", _COUNTS)
        self.log_bytes = Counter(
            f"{METRIC_PREFIX}log_bytes", "Bytes of committed entries", registry=self._registry
        )
        self.loop_lag = self._histogram(
            "event_loop_lag_seconds", "Delay of the event loop, measured often", _SHORT
        )

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"{METRIC_PREFIX}{name}", description, buckets=buckets, registry=self._registry
        )

    def count_turn(self, outcome: str) -> None:
        """Count a turn by its stop reason, or by its error's code."""
        self._turns.labels(outcome if outcome in OUTCOMES else "other").inc()

    def add_gauge(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read on request."""
        Gauge(f"{METRIC_PREFIX}{name}", description, registry=self._registry).set_function(read)

    def add_counter(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Add a counter whose value is read on request. Its name gets the suffix ``_total``."""
        self._registry.register(_Total(f"{METRIC_PREFIX}{name}", description, read))

    def add_labelled_gauge(
        self,
        name: str,
        description: str,
        label: str,
        values: Sequence[str],
        read: Callable[[], Mapping[str, float]],
    ) -> None:
        """Add a gauge with one value for each value of a label."""
        gauge = Gauge(f"{METRIC_PREFIX}{name}", description, (label,), registry=self._registry)
        for value in values:
            gauge.labels(value).set_function(partial(_one_of, read, value))

    async def watch_loop(self) -> None:
        """Measure the delay of the event loop, until the task is cancelled."""
        loop = asyncio.get_running_loop()
        pause = LAG_PAUSE_SECS
        while True:
            due, spent = loop.time() + pause, time.thread_time()
            await asyncio.sleep(pause)
            self.loop_lag.observe(max(0.0, loop.time() - due))
            is_busy = time.thread_time() - spent > BUSY_SHARE * pause
            pause = LAG_PAUSE_SECS if is_busy else min(2 * pause, IDLE_LAG_PAUSE_SECS)

    def render(self) -> tuple[bytes, str]:
        """The metrics as text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Total(Collector):
    """A counter whose value another object keeps."""

    def __init__(self, name: str, description: str, read: Callable[[], float]) -> None:
        self._name = name
        self._description = description
        self._read = read

    def collect(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._description, value=self._read())


def _one_of(read: Callable[[], Mapping[str, float]], value: str) -> float:
    return read()[value]
