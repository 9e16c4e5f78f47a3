"""Runs: one prompt and one answer, without a session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from .closeable import Closeable
from .errors import ClawdforgeError, ConnectionLostError, RunError, error_of
from .rest import Rest, segment, without_none
from .shapes import Json, RunResult

POLL_SECS = (0.1, 0.2, 0.5, 1.0, 2.0)


def run_body(
    prompt: str,
    *,
    agent: str | None = None,
    model: str | None = None,
    system: str | None = None,
    system_mode: str | None = None,
    effort: str | None = None,
    files: Sequence[str] = (),
    timeout_secs: float | None = None,
    schema: Json | None = None,
    max_attempts: int | None = None,
    include: Sequence[str] = (),
) -> Json:
    """The body of ``POST /run``; see docs/reference/run.md for its fields."""
    return {
        "prompt": prompt,
        **without_none(
            {
                "agent": agent,
                "model": model,
                "system": system,
                "system_mode": system_mode,
                "effort": effort,
                "files": list(files) or None,
                "timeout_secs": timeout_secs,
                "schema": schema,
                "max_attempts": max_attempts,
                "include": list(include) or None,
            }
        ),
    }


def result_of(body: Json) -> RunResult:
    return RunResult(
        result=body.get("result"),
        duration_ms=int(body.get("duration_ms", 0)),
        stop_reason=str(body.get("stop_reason", "")),
        usage=body.get("usage"),
        session_id=body.get("session_id"),
    )


class RunStream(Closeable):
    """A run whose updates arrive while it is in progress: ``async for update in stream``.

    A second iteration continues where the first one has stopped. To leave before the end of the
    run, use ``async with``, or call :meth:`close`.
    """

    def __init__(self, rest: Rest, body: Json) -> None:
        self._events = rest.stream("/run", body, kind=RunError)
        self._body: Json | None = None

    async def __aiter__(self) -> AsyncIterator[Json]:
        async for name, data in self._events:
            if name == "result":
                self._body = data
                return
            yield data
        if self._body is None:
            raise ConnectionLostError("the run's stream was cut off")

    async def result(self) -> RunResult:
        """Wait for the end of the run.

        Raises:
            RunError: the run has failed.
        """
        if self._body is None:
            async for _ in self:
                pass
        body = self._body
        assert body is not None
        if not body.get("ok"):
            raise error_of(502, body, kind=RunError)
        return result_of(body)

    async def close(self) -> None:
        """End the run, if it is still in progress."""
        await self._events.aclose()


class BackgroundRun:
    """A run that continues without its caller, also while the caller restarts.

    Attributes:
        id: with it ``Clawdforge.background_run`` finds the run again, for an hour.
    """

    def __init__(self, rest: Rest, run_id: str) -> None:
        self.id = run_id
        self._rest = rest
        self._path = f"/run/{segment(run_id)}"

    async def poll(self) -> RunResult | None:
        """The result, or None while the run is in progress.

        Raises:
            RunError: the run has failed.
        """
        reply: dict[str, Any] = await self._rest.call("GET", self._path, kind=RunError)
        return None if reply.get("status") == 202 else result_of(reply)

    async def result(self) -> RunResult:
        """Wait for the end of the run."""
        attempt = 0
        while (found := await self.poll()) is None:
            await asyncio.sleep(POLL_SECS[min(attempt, len(POLL_SECS) - 1)])
            attempt += 1
        return found

    async def end(self) -> None:
        """End the run, and delete its response."""
        try:
            await self._rest.call("DELETE", self._path)
        except ClawdforgeError as error:
            if error.code != "not_found":
                raise
