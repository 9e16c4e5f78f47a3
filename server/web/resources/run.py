"""One prompt, one result."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ...codec import dumps
from ...runs.run import RunError, RunRequest
from .. import bodies
from ..context import CREDENTIAL, REQUEST_ID, app_of, body_of, services_of, waiting
from ..responses import json_reply, raw_reply

routes = web.RouteTableDef()

HANG_UP_SECS = 0.1


@routes.post("/run")
async def run_once(request: web.Request) -> web.Response:
    app_name = app_of(request)
    body = await body_of(request, bodies.RunOnce)
    services = services_of(request)
    services.sessions.quotas.check_prompt_rate(app_name)
    files = await services.files.paths(app_name, body.files or [])
    request[CREDENTIAL].check()
    run = services.runner.begin(
        RunRequest(
            app_name=app_name,
            prompt=body.prompt,
            agent=body.agent,
            model=body.model,
            system=body.system,
            system_mode=body.system_mode,
            effort=body.effort,
            files=files,
            timeout_secs=body.timeout_secs,
        )
    )
    try:
        async with waiting(request):
            while not run.task.done() and not _has_hung_up(request):
                await asyncio.wait({run.task}, timeout=HANG_UP_SECS)
    finally:
        run.stop("disconnect")
    try:
        result = await run.task
    except RunError as failure:
        return _failure_reply(failure, request[REQUEST_ID])
    head = b'{"ok":true,"result":' + result.result
    tail = dumps({"duration_ms": result.duration_ms, "stop_reason": result.stop_reason})
    return raw_reply(head + b"," + tail[1:])


def _has_hung_up(request: web.Request) -> bool:
    """aiohttp does not tell a handler that its client is gone, but takes its transport away."""
    return request.transport is None or request.transport.is_closing()


def _failure_reply(failure: RunError, request_id: str) -> web.Response:
    return json_reply(
        {
            "ok": False,
            "error": failure.message,
            "code": failure.code,
            "retryable": failure.retryable,
            "stderr": failure.stderr,
            "duration_ms": failure.duration_ms,
            "stop_reason": failure.stop_reason,
            "request_id": request_id,
            **failure.fields,
        },
        status=failure.status,
    )
