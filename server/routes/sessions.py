"""REST: create, list, look at, prompt, cancel, close; the log, also as a stream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from .. import bodies, frames
from ..auth import TICKET_SECS
from ..codec import dumps
from ..errors import Error, bad_request
from ..replies import json_reply, raw_reply
from ..services import (
    CREDENTIAL,
    TURN,
    app_of,
    body_of,
    prompt,
    services_of,
    session_of,
    waiting,
)
from ..session import Session
from ..sse import KEEP_ALIVE_SECS, EventStream, event_stream, wants_stream
from ..turn import Turn

routes = web.RouteTableDef()


@routes.post("/sessions")
async def create_session(request: web.Request) -> web.Response:
    app_name = app_of(request)
    body = await body_of(request, bodies.CreateSession)
    session = await services_of(request).sessions.create(
        app_name,
        agent=body.agent,
        model=body.model,
        system=body.system,
        meta=body.meta,
        permission=body.permission or "approve-all",
        cwd=body.cwd,
    )
    return json_reply({"ok": True, **session.view()})


@routes.get("/sessions")
async def list_sessions(request: web.Request) -> web.Response:
    app_name = app_of(request)
    query = bodies.read_query(request, bodies.ListSessions)
    found = await services_of(request).sessions.sessions_of(
        app_name, include_closed=query.include_closed
    )
    return json_reply({"ok": True, "count": len(found), "sessions": [s.view() for s in found]})


@routes.get("/sessions/{session_id}")
async def get_session(request: web.Request) -> web.Response:
    session = await session_of(request)
    return json_reply({"ok": True, **session.view()})


@routes.patch("/sessions/{session_id}")
async def update_session(request: web.Request) -> web.Response:
    session = await session_of(request)
    body = await body_of(request, bodies.UpdateSession)
    await session.set_meta(body.meta)
    return json_reply({"ok": True, **session.view()})


@routes.delete("/sessions/{session_id}")
async def delete_session(request: web.Request) -> web.Response:
    session = await session_of(request)
    first = await services_of(request).sessions.close(session, "client")
    reply: dict[str, Any] = {"ok": True, "session_id": session.id}
    return json_reply(reply if first else {**reply, "already_closed": True})


@routes.post("/sessions/{session_id}/turn")
async def run_turn(request: web.Request) -> web.StreamResponse:
    session = await session_of(request)
    body = await body_of(request, bodies.RunTurn)
    key = bodies.read_headers(request, bodies.TurnHeaders).idempotency_key
    # Bytes of a header that are no UTF-8 come as half surrogate pairs, which are no characters.
    if key is not None and re.search("[\ud800-\udfff]", key):
        raise bad_request("Idempotency-Key: must be UTF-8")
    turn, _ = await prompt(
        request,
        session,
        body.prompt,
        body.files or [],
        client_id=key,
        timeout=body.timeout_secs,
    )
    request[TURN] = turn.index
    if wants_stream(request):
        return await _stream_turn(request, session, turn)
    async with waiting(request):
        await session.finished(turn)
    return await _turn_reply(session, turn)


async def _turn_reply(session: Session, turn: Turn) -> web.Response:
    """A turn's outcome with the raw ACP messages of it, which are spliced in as they came."""
    events = b",".join([event async for event in _events_of(session, turn)])
    head: dict[str, Any] = {"ok": turn.error is None}
    status = 200
    if turn.error is not None:
        error = Error(turn.error["code"], turn.error["message"])
        head |= {"error": error.message, "code": error.code, "retryable": turn.error["retryable"]}
        status = error.status
    head |= {
        "session_id": session.id,
        "turn_index": turn.index,
        "stop_reason": turn.stop_reason,
        "duration_ms": turn.duration_ms,
    }
    return raw_reply(dumps(head)[:-1] + b',"events":[' + events + b"]}", status=status)


async def _events_of(session: Session, turn: Turn) -> AsyncIterator[bytes]:
    assert turn.first_seq is not None
    assert turn.last_seq is not None
    position = turn.first_seq - 1
    while batches := await session.log.read(position):
        for batch in batches:
            for seq, line in enumerate(batch.lines(), batch.first):
                if seq > turn.last_seq:
                    return
                event = frames.event_of(line)
                if event is not None and frames.turn_index_of(line) == turn.index:
                    yield event
            position = batch.last


async def _stream_turn(request: web.Request, session: Session, turn: Turn) -> web.StreamResponse:
    """The turn's entries as they come, up to its end; comments while it waits in the queue."""
    stall_timeout = services_of(request).settings.stall_timeout_secs
    async with event_stream(request, request[CREDENTIAL], stall_timeout) as stream:
        await _until_started(session, turn, stream)
        assert turn.first_seq is not None
        async for batch in session.log.follow(
            turn.first_seq - 1, stream.keep_alive, idle_secs=KEEP_ALIVE_SECS
        ):
            for seq, line in enumerate(batch.lines(), batch.first):
                if frames.turn_index_of(line) == turn.index:
                    await stream.send(seq, line)
                if turn.last_seq is not None and seq >= turn.last_seq:
                    return stream.response
    return stream.response


async def _until_started(session: Session, turn: Turn, stream: EventStream) -> None:
    """Keep the stream alive until the turn has its first entry."""
    while not turn.started.is_set():
        try:
            async with asyncio.timeout(KEEP_ALIVE_SECS):
                await session.started(turn)
        except TimeoutError:
            await stream.keep_alive()


@routes.post("/sessions/{session_id}/cancel")
async def cancel_turn(request: web.Request) -> web.Response:
    session = await session_of(request)
    return json_reply({"ok": True, "cancelled": session.cancel()})


@routes.post("/sessions/{session_id}/permissions/{request_id}")
async def answer_permission(request: web.Request) -> web.Response:
    session = await session_of(request)
    body = await body_of(request, bodies.AnswerPermission)
    if (body.option_id is None) == (body.outcome is None):
        raise bad_request("one of option_id and outcome is needed")
    session.permissions.answer(request.match_info["request_id"], option_id=body.option_id)
    return json_reply({"ok": True})


@routes.get("/sessions/{session_id}/events")
async def list_events(request: web.Request) -> web.StreamResponse:
    session = await session_of(request)
    query = bodies.read_query(request, bodies.ListEvents)
    after, limit = query.after, query.limit
    if wants_stream(request):
        return await _stream_events(request, session, after)
    if after > session.log.head:
        raise bad_request(f"after: the newest entry is {session.log.head}")
    entries: list[bytes] = []
    position = after
    while len(entries) < limit and (batches := await session.log.read(position)):
        for batch in batches:
            entries += batch.lines()
            position = batch.last
    body = b",".join(entries[:limit])
    return raw_reply(b'{"ok":true,"entries":[%b],"head":%d}' % (body, session.log.head))


async def _stream_events(request: web.Request, session: Session, after: int) -> web.StreamResponse:
    last = bodies.read_headers(request, bodies.EventsHeaders).last_event_id or ""
    if last.isdecimal() and len(last) < 20:
        after = int(last)
    if after > session.log.head:
        raise bad_request(f"after: the newest entry is {session.log.head}")
    if session.is_over and after >= session.log.last:
        return web.Response(status=204)  # which tells an EventSource not to come back
    services = services_of(request)
    stall_timeout = services.settings.stall_timeout_secs
    with services.sockets.stream(session.row.app_name):
        async with event_stream(request, request[CREDENTIAL], stall_timeout) as stream:
            async for batch in session.log.follow(
                after, stream.keep_alive, idle_secs=KEEP_ALIVE_SECS
            ):
                for seq, line in enumerate(batch.lines(), batch.first):
                    await stream.send(seq, line)
                if session.is_over and batch.last >= session.log.last:
                    break
    return stream.response


@routes.post("/sessions/{session_id}/ticket")
async def create_ticket(request: web.Request) -> web.Response:
    session = await session_of(request)
    ticket = services_of(request).tokens.issue_ticket(request[CREDENTIAL], session.id)
    return json_reply({"ok": True, "ticket": ticket, "expires_in": TICKET_SECS})


@routes.get("/agents")
async def list_agents(request: web.Request) -> web.Response:
    app_of(request)
    agents = [
        {"name": info.name, "installed": info.installed, "default": default}
        | ({} if info.installed else {"install": info.install})
        for info, default in await services_of(request).sessions.agents()
    ]
    return json_reply({"ok": True, "agents": agents})
