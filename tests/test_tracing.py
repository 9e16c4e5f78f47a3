"""Traces, as a stand-in of a collector receives them over OTLP."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server.tracing import open_tracer

from .conftest import Serve
from .sessions.test_usage import reporting
from .support.harness import eventually, failure, script
from .support.runs import make_fake_claude, steps

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


class Span(NamedTuple):
    name: str
    trace_id: str
    id: str
    parent: str
    attributes: dict[str, Any]
    is_error: bool
    start: int
    end: int


class Collector:
    """Receives what a server exports."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self.url = ""

    async def receive(self, request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest.FromString(await request.read())
        for resource in message.resource_spans:
            self.services |= {
                one.value.string_value
                for one in resource.resource.attributes
                if one.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.spans += map(_span, scope.spans)
        return web.Response()

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


def _span(span: Any) -> Span:
    return Span(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        {one.key: _value(one.value) for one in span.attributes},
        span.status.code == 2,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    found = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", found.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    yield found
    await runner.cleanup()


async def test_trace_contains_the_request_the_turn_and_its_tool_calls(
    serve: Serve, collector: Collector, tmp_path: Path
) -> None:
    server = await serve(claude_bin=make_fake_claude(tmp_path))
    client = await server.client("traced")
    session = await client.create(model=None)
    call = {
        "sessionUpdate": "tool_call",
        "toolCallId": "t1",
        "title": "rm -rf /",
        "kind": "execute",
    }
    done = {"sessionUpdate": "tool_call_update", "toolCallId": "t1", "status": "completed"}
    broken = {**call, "toolCallId": "t2", "kind": "read", "status": "failed"}
    text = script({"update": call}, {"update": done}, {"update": broken}, {"say": "done"})
    status, _ = await client.call(
        "POST",
        f"/sessions/{session}/turn",
        {"prompt": text},
        headers={"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"},
    )
    assert status == 200
    assert (await client.turn(session, reporting(100, 0.5)))[0] == 200
    failure(await client.turn(session, script({"exit": 3})), 502, "agent_failed")
    usage = {"input_tokens": 7, "output_tokens": 3}
    prompt = steps({"result": "x", "usage": usage, "total_cost_usd": 0.1})
    assert (await client.post("/run", {"prompt": prompt}))[0] == 200
    failure(await client.get("/sessions/unknown"), 404, "not_found")
    socket = await client.connect(session)
    await socket.turn("over a socket")
    await socket.close()
    await eventually("all turns and runs", lambda: len(_work(collector)) == 5)
    await eventually(
        "the request of the socket",
        lambda: collector.named("GET /sessions/{session_id}/ws"),
    )

    requests = collector.named("POST /sessions/{session_id}/turn")
    assert len(requests) == 3
    [request] = [one for one in requests if one.trace_id == TRACE_ID]
    assert request.parent == PARENT_ID
    assert request.attributes["http.response.status_code"] == 200
    turns = {
        span.attributes["clawdforge.turn_index"]: span
        for span in _work(collector)
        if "clawdforge.turn_index" in span.attributes
    }
    first, second, third = (turns[index] for index in (1, 2, 3))
    assert (first.trace_id, first.parent) == (TRACE_ID, request.id)
    assert first.name == "invoke_agent mock"
    assert first.attributes["gen_ai.operation.name"] == "invoke_agent"
    assert first.attributes["gen_ai.conversation.id"] == session
    assert first.attributes["gen_ai.response.finish_reasons"] == ["end_turn"]
    assert first.attributes["clawdforge.app"] == "traced"
    assert request.start <= first.start < first.end
    tools = {span.name: span for span in collector.spans if span.parent == first.id}
    assert tools.keys() == {"execute_tool execute", "execute_tool read"}
    assert not tools["execute_tool execute"].is_error
    assert tools["execute_tool read"].is_error
    assert tools["execute_tool execute"].attributes["gen_ai.tool.call.id"] == "t1"
    assert "rm -rf" not in str(collector.spans)  # nothing that was said, and no argument
    assert second.attributes["gen_ai.usage.input_tokens"] == 100
    assert second.attributes["gen_ai.usage.output_tokens"] == 50
    assert second.attributes["clawdforge.usage.cost"] == 0.5
    assert second.trace_id != first.trace_id
    assert third.is_error
    assert third.attributes["error.type"] == "agent_failed"
    [run] = [span for span in _work(collector) if "clawdforge.run_id" in span.attributes]
    assert (run.name, run.parent) == ("invoke_agent claude", collector.named("POST /run")[0].id)
    assert run.attributes["gen_ai.usage.input_tokens"] == 7
    missing = collector.named("GET /sessions/{session_id}")
    assert missing[0].attributes["error.type"] == "not_found"
    [socket_request] = collector.named("GET /sessions/{session_id}/ws")
    assert turns[4].parent == socket_request.id
    assert collector.services == {"clawdforge"}


def _work(collector: Collector) -> list[Span]:
    return [span for span in collector.spans if span.name.startswith("invoke_agent")]


async def test_spans_are_sent_before_the_server_has_stopped(
    serve: Serve, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-agents")
    server = await serve()
    client = await server.client()
    await client.turn(await client.create(), "hello")
    assert collector.spans == []
    await server.stop()
    assert len(_work(collector)) == 1
    assert collector.services == {"my-agents"}


def test_nothing_is_imported_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "server.otlp", None)  # an import would fail
    assert open_tracer({}) is None
    assert open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}) is None
    disabled = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}
    assert open_tracer(disabled) is None


def test_missing_package_is_reported_and_the_server_starts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "server.otlp", None)
    assert open_tracer({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}) is None
    assert "requirements-otel.txt" in caplog.text
