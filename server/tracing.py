"""Traces of requests, turns, tool calls and runs, if the operator has them sent somewhere.

Nothing of OpenTelemetry is imported unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set. A turn is
described once it has ended, so that tracing adds nothing to its updates except to those of tools.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

logger = logging.getLogger(__name__)

OTLP_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


class RequestSpan(Protocol):
    """The span of a request."""

    def set_status(self, status: int, code: str | None = None) -> None:
        """Note the status of the response, and the code of a failure."""


class Tracer(Protocol):
    """Sends traces."""

    def request(
        self, request_id: str, method: str, route: str, headers: Mapping[str, str]
    ) -> AbstractContextManager[RequestSpan]:
        """A block in which a request is handled. Turns with its id become its children."""

    def note_tool_call(self, session_id: str, update: Mapping[str, Any]) -> None:
        """Note a ``tool_call`` or ``tool_call_update`` of a session's turn."""

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
        """Describe a turn of a session, or a run, that has ended just now.

        Args:
            request_id: of the request that sent the prompt; None for the current request.
            session_id: None for a run.
            elapsed: seconds since it began.
            attributes: further attributes of its span.
            usage: what the agent has reported, with the names of ``usage`` in ``turn_end``.
            error: the code of its failure.
        """

    def stop(self) -> None:
        """Send what has not been sent. Blocking."""


def open_tracer(environ: Mapping[str, str]) -> Tracer | None:
    """Make a tracer; None if nothing says where to send traces."""
    endpoint = environ.get(TRACES_ENDPOINT)
    if not endpoint and (base := environ.get(OTLP_ENDPOINT)):
        endpoint = f"{base.rstrip('/')}/v1/traces"
    if not endpoint or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from .otlp import OtlpTracer
    except ImportError as error:
        logger.error("no traces are sent: %s: install requirements-otel.txt", error)
        return None
    logger.info("traces are sent to %s", endpoint)
    return OtlpTracer(endpoint, environ)
