"""The metrics of the server, their page in the docs, and the dashboard."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server import metrics as metrics_module
from server.metrics import Metrics

from .conftest import Serve
from .support.harness import ROOT, LocalServer, busy_socket, eventually, script

PAGE = (ROOT / "docs" / "reference" / "metrics.md").read_text("utf-8")
DOCUMENTED = re.findall(r"^\| `(clawdforge_\w+)` \| (\w+) \|", PAGE, re.MULTILINE)
HISTOGRAM = ("_bucket", "_count", "_sum")


async def figures(server: LocalServer) -> dict[str, float]:
    """Every sample, by its name and its labels as Prometheus writes them."""
    admin = server.admin()
    async with admin.http.get(f"{server.url}/metrics", headers=admin.headers()) as response:
        return samples(await response.text())


def samples(text: str) -> dict[str, float]:
    return {
        one.name + "".join(f"{{{k}={v}}}" for k, v in one.labels.items()): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
        if not one.name.endswith("_created")
    }


def expressions(value: Any) -> Iterator[str]:
    """Every query of a dashboard."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("expr", "query") and isinstance(inner, str):
                yield inner
            else:
                yield from expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner)


async def test_docs_and_dashboard_match_the_metrics(
    server: LocalServer,
) -> None:
    admin = server.admin()
    async with admin.http.get(f"{server.url}/metrics", headers=admin.headers()) as response:
        text = await response.text()
    told = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }
    assert told == dict(DOCUMENTED)
    known = {
        name + ending
        for name, kind in told.items()
        for ending in (HISTOGRAM if kind == "histogram" else ("",))
    }
    dashboard = json.loads((ROOT / "docs" / "reference" / "grafana.json").read_text("utf-8"))
    asked = {
        name for text in expressions(dashboard) for name in re.findall(r"clawdforge_\w+", text)
    }
    assert asked
    assert asked <= known
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in asked}
    assert families == told.keys(), "the dashboard leaves something out"


async def test_turns_are_counted_by_outcome(serve: Serve) -> None:
    server = await serve(max_live_agents=1)
    client = await server.client()
    session = await client.create()
    await client.turn(session, "hello")
    await client.turn(session, script({"say": "one"}, {"say": "two"}))
    await client.turn(session, script({"exit": 1}))
    socket = await busy_socket(client, session)
    other = await client.connect(await client.create())
    await socket.send("prompt", prompt="after it")
    await socket.until("accepted", queued=True)
    await other.send("prompt", prompt="me too")
    await other.until("accepted", queued=True)
    found = await figures(server)
    assert found["clawdforge_running_turns"] == 2  # one of them waits for the only agent
    assert found["clawdforge_queued_turns"] == 1
    assert found["clawdforge_queued_for_agent"] == 1
    assert found["clawdforge_live_agents"] == 1
    assert found["clawdforge_open_sessions"] == 2
    assert found["clawdforge_sockets"] == 2
    await socket.send("cancel")
    await socket.until("turn_end", stop_reason="cancelled")
    await socket.until("turn_end")
    await other.until("turn_end")

    found = await figures(server)
    assert found["clawdforge_turns_total{outcome=end_turn}"] == 4
    assert found["clawdforge_turns_total{outcome=cancelled}"] == 1
    assert found["clawdforge_turns_total{outcome=agent_failed}"] == 1
    assert found["clawdforge_turn_seconds_count"] == 6
    assert found["clawdforge_turn_wait_seconds_count"] == 6
    assert found["clawdforge_first_update_seconds_count"] == 5  # one had none
    assert found["clawdforge_turn_seconds_sum"] >= found["clawdforge_first_update_seconds_sum"] > 0
    entries = sum(one["head"] for one in (await client.get("/sessions"))[1]["sessions"])
    assert found["clawdforge_log_batch_entries_sum"] == entries
    assert 0 < found["clawdforge_log_append_seconds_count"] <= entries
    assert found["clawdforge_log_bytes_total"] > 50 * entries
    assert found["clawdforge_log_backlog_bytes"] == 0
    assert found["clawdforge_replay_lag_entries"] == 0


async def test_blocked_event_loop_is_measured() -> None:
    metrics = Metrics()
    watch = asyncio.create_task(metrics.watch_loop())
    await asyncio.sleep(0)
    time.sleep(0.3)  # noqa: ASYNC251 - blocks the event loop on purpose
    await eventually("the lag", lambda: lags(metrics)["clawdforge_event_loop_lag_seconds_count"])
    watch.cancel()
    assert lags(metrics)["clawdforge_event_loop_lag_seconds_sum"] >= 0.1


async def test_event_loop_is_measured_more_rarely_while_it_is_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spent = iter([0, 0, 0, 0, 0, 0, 0, 0, 0, 0.5, 0.5, 0.5])  # before and after each pause
    pauses: list[float] = []

    async def sleep(secs: float) -> None:
        pauses.append(secs)
        if len(pauses) == 6:
            raise asyncio.CancelledError

    monkeypatch.setattr(metrics_module, "time", mock.Mock(thread_time=lambda: next(spent)))
    loops = mock.Mock(sleep=sleep, get_running_loop=asyncio.get_running_loop)
    monkeypatch.setattr(metrics_module, "asyncio", loops)
    with pytest.raises(asyncio.CancelledError):
        await Metrics().watch_loop()
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 0.1]


def lags(metrics: Metrics) -> dict[str, float]:
    return samples(metrics.render()[0].decode())


@pytest.mark.parametrize("reason", ["", "made up", 'a"label\n'])
def test_unknown_outcome_counts_as_other(reason: str) -> None:
    metrics = Metrics()
    metrics.count_turn(reason)
    assert samples(metrics.render()[0].decode())["clawdforge_turns_total{outcome=other}"] == 1
