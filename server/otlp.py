"""Sends traces with OpenTelemetry over OTLP. Only :mod:`tracing` imports this module."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from . import __version__

MAX_REQUEST_SPANS = 10_000
"""Requests whose spans are known to their turns."""
MAX_TOOL_CALLS = 1000
"""Tool calls of a turn that get a span."""
SECOND_NANOS = 1_000_000_000
_TOKEN_ATTRIBUTES = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cached_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cached_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
}
_FINAL_STATUSES = ("completed", "failed")


class _HttpSpan:
    def __init__(self, span: Span) -> None:
        self._span = span

    def set_status(self, status: int, code: str | None = None) -> None:
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        if code is not None:
            self._span.set_attribute("error.type", code)


class _ToolCall:
    """One call of a tool, with its times in nanoseconds since 1970."""

    __slots__ = ("ended_at", "name", "started_at", "status")

    def __init__(self) -> None:
        self.name = "other"
        self.started_at = self.ended_at = time.time_ns()
        self.status = "pending"

    def note(self, update: Mapping[str, Any]) -> None:
        kind, status = update.get("kind"), update.get("status")
        meta = update.get("_meta")
        own = meta.get("claudeCode") if isinstance(meta, dict) else None
        own_name = own.get("toolName") if isinstance(own, dict) else None
        for name in (own_name, kind):
            if isinstance(name, str):
                self.name = name[:100]
                break
        if isinstance(status, str) and self.status not in _FINAL_STATUSES:
            self.status = status
            self.ended_at = time.time_ns()


class OtlpTracer:
    """See :class:`tracing.Tracer`.

    Args:
        endpoint: where traces are sent, over HTTP with protobuf.
        environ: the standard variables of OpenTelemetry.
    """

    def __init__(self, endpoint: str, environ: Mapping[str, str]) -> None:
        name = environ.get("OTEL_SERVICE_NAME", "clawdforge")
        resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("clawdforge", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._requests: OrderedDict[str, SpanContext] = OrderedDict()
        self._tools: dict[str, dict[str, _ToolCall]] = {}

    @contextlib.contextmanager
    def request(
        self, request_id: str, method: str, route: str, headers: Mapping[str, str]
    ) -> Iterator[_HttpSpan]:
        attributes = {
            "http.request.method": method,
            "http.route": route,
            "clawdforge.request_id": request_id,
        }
        with self._tracer.start_as_current_span(
            f"{method} {route}",
            context=self._propagator.extract(headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            self._requests[request_id] = span.get_span_context()
            if len(self._requests) > MAX_REQUEST_SPANS:
                self._requests.popitem(last=False)
            yield _HttpSpan(span)

    def note_tool_call(self, session_id: str, update: Mapping[str, Any]) -> None:
        call_id = update.get("toolCallId")
        if session_id not in self._tools and len(self._tools) > MAX_REQUEST_SPANS:
            del self._tools[next(iter(self._tools))]  # calls after the end of a last turn
        calls = self._tools.setdefault(session_id, {})
        if isinstance(call_id, str) and (call_id in calls or len(calls) < MAX_TOOL_CALLS):
            calls.setdefault(call_id, _ToolCall()).note(update)

    def end_work(
        self,
        *,
        request_id: str | None,
        session_id: str | None,
        elapsed: float,
        attributes: Mapping[str, Any],
        usage: Mapping[str, Any],
        error: str | None,
    ) -> None:
        ended_at = time.time_ns()
        started_at = ended_at - int(elapsed * SECOND_NANOS)
        known = {"gen_ai.operation.name": "invoke_agent", **attributes}
        known |= {
            _TOKEN_ATTRIBUTES[name]: usage[name] for name in _TOKEN_ATTRIBUTES if name in usage
        }
        if "cost" in usage:
            known["clawdforge.usage.cost"] = usage["cost"]["amount"]
            known["clawdforge.usage.currency"] = usage["cost"]["currency"]
        if session_id is not None:
            known["gen_ai.conversation.id"] = session_id
        span = self._tracer.start_span(
            f"invoke_agent {attributes.get('gen_ai.agent.name', '')}".rstrip(),
            context=self._parent(request_id),
            attributes={name: value for name, value in known.items() if value is not None},
            start_time=started_at,
        )
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        inner = trace.set_span_in_context(span)
        for call_id, call in self._tools.pop(session_id or "", {}).items():
            self._end_tool(call_id, call, inner, (started_at, ended_at))
        span.end(ended_at)

    def _parent(self, request_id: str | None) -> Context | None:
        if request_id is None:
            return None
        context = self._requests.get(request_id)
        if context is None:
            return Context()
        return trace.set_span_in_context(trace.NonRecordingSpan(context), Context())

    def _end_tool(
        self, call_id: str, call: _ToolCall, parent: Context, turn: tuple[int, int]
    ) -> None:
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.name,
            "gen_ai.tool.call.id": call_id[:256],
        }
        span = self._tracer.start_span(
            f"execute_tool {call.name}",
            context=parent,
            attributes=attributes,
            start_time=max(turn[0], call.started_at),
        )
        if call.status == "failed":
            span.set_attribute("error.type", "failed")
            span.set_status(Status(StatusCode.ERROR))
        span.end(call.ended_at if call.status in _FINAL_STATUSES else turn[1])

    def stop(self) -> None:
        self._provider.shutdown()
