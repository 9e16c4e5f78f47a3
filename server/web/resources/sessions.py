"""REST: create, list, look at, prompt, cancel, close; the log, also as a stream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from ...auth.tickets import TICKET_SECS
from ...codec import dumps
from ...errors import Error, bad_request
from ...sessions import entries
from ...sessions.creation import SessionRequest
from ...sessions.session import Session
from ...sessions.turns import Turn
from .. import bodies
from ..context import (
    CREDENTIAL,
    REQUEST_ID,
    TURN,
    app_of,
    body_of,
    prompt,
    services_of,
    session_of,
    waiting,
)
from ..responses import WRITE_BYTES, json_reply, long_reply, raw_reply
from ..sse import KEEP_ALIVE_SECS, EventStream, event_stream, wants_stream

routes = web.RouteTableDef()

PAGE_FRAME_BYTES = 100
"""What a page of events has round its entries, at most."""


@routes.post("/sessions")
async def create_session(request: web.Request) -> web.Response:
    app_name = app_of(request)
    body = await body_of(request, bodies.CreateSession)
    session = await services_of(request).sessions.create(
        app_name,
        SessionRequest(
            agent=body.agent,
            model=body.model,
            system=body.system,
            meta=body.meta or {},
            permission=body.permission or "approve-all",
            cwd=body.cwd,
            mode=body.mode,
            config_options=body.config_options or {},
        ),
    )
    return json_reply({"ok": True, **session.view()})


@routes.get("/sessions")
async def list_sessions(request: web.Request) -> web.StreamResponse:
    app_name = app_of(request)
    query = bodies.read_query(request, bodies.ListSessions)
    services = services_of(request)
    views = services.sessions.views(app_name, include_closed=query.include_closed)
    return await _long_reply(request, _list_of(views))


async def _long_reply(
    request: web.Request, pieces: AsyncIterator[bytes], *, status: int = 200
) -> web.StreamResponse:
    stall_timeout = services_of(request).settings.stall_timeout_secs
    return await long_reply(request, pieces, stall_timeout, waiting(request), status=status)


async def _list_of(views: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    count = 0
    yield b'{"ok":true,"sessions":['
    async for view in views:
        yield (b"," if count else b"") + dumps(view)
        count += 1
    yield b'],"count":%d}' % count


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
    del body  # the session has the prompt: the request, which waits, need not hold it as well
    request[TURN] = turn.index
    if wants_stream(request):
        return await _stream_turn(request, session, turn)
    async with waiting(request):
        await session.finished(turn)
    return await _turn_reply(request, session, turn)


async def _turn_reply(request: web.Request, session: Session, turn: Turn) -> web.StreamResponse:
    """A turn's outcome with the raw ACP messages of it, which are spliced in as they came.

    Where these are too long, the outcome says so, and where in the log they are.
    """
    settings = services_of(request).settings
    events: list[bytes] = []
    size = 0
    async for event in _events_of(session, turn):
        size += len(event) + 1
        if size <= WRITE_BYTES:
            events.append(event)
        elif size > settings.max_reply_bytes:
            break
    head, status = _outcome_of(session, turn)
    if turn.error is not None:
        head["request_id"] = request[REQUEST_ID]
    if size > settings.max_reply_bytes:
        omitted = {"events_omitted": True, "first_seq": turn.first_seq, "last_seq": turn.last_seq}
        return json_reply({**head, "events": [], **omitted}, status=status)
    start = dumps(head)[:-1] + b',"events":['
    if size <= WRITE_BYTES:  # nearly always
        return raw_reply(start + b",".join(events) + b"]}", status=status)
    pieces = _spliced(start, _events_of(session, turn))
    return await _long_reply(request, pieces, status=status)


async def _spliced(start: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    separator = b""
    async for event in events:
        yield separator
        yield event
        separator = b","
    yield b"]}"


def _outcome_of(session: Session, turn: Turn) -> tuple[dict[str, Any], int]:
    """A turn's outcome without its events, and the status of the answer that has it."""
    head: dict[str, Any] = {"ok": turn.error is None}
    status = 200
    if turn.error is not None:
        error = Error(turn.error["code"], turn.error["message"])
        head |= {**turn.error, "error": error.message}
        del head["message"]
        status = error.status
    head |= {
        "session_id": session.id,
        "turn_index": turn.index,
        "stop_reason": turn.stop_reason,
        "duration_ms": turn.duration_ms,
    }
    return head, status


async def _events_of(session: Session, turn: Turn) -> AsyncIterator[bytes]:
    assert turn.first_seq is not None
    assert turn.last_seq is not None
    position = turn.first_seq - 1
    while batches := await session.log.read(position):
        for batch in batches:
            for seq, line in enumerate(batch.lines(), batch.first):
                if seq > turn.last_seq:
                    return
                event = entries.event_of(line)
                if event is not None and entries.turn_index_of(line) == turn.index:
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
                if entries.turn_index_of(line) == turn.index:
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
    settings = services_of(request).settings
    pieces = _page_of(session, after, limit, settings.max_events_bytes)
    return await _long_reply(request, pieces)


async def _page_of(
    session: Session, after: int, limit: int, max_bytes: int
) -> AsyncIterator[bytes]:
    """A page of at most *limit* entries and *max_bytes*; it has one at least, if there is one."""
    yield b'{"ok":true,"entries":['
    count, size = 0, PAGE_FRAME_BYTES
    async for line in _lines_after(session, after):
        size += len(line) + 1
        if count == limit or (count and size > max_bytes):
            break
        yield b"," + line if count else line
        count += 1
    head = session.log.head
    yield b'],"head":%d,"has_more":%b}' % (head, b"true" if after + count < head else b"false")


async def _lines_after(session: Session, position: int) -> AsyncIterator[bytes]:
    while batches := await session.log.read(position):
        for batch in batches:
            for line in batch.lines():
                yield line
            position = batch.last


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
    ticket = services_of(request).tokens.tickets.issue(request[CREDENTIAL], session.id)
    return json_reply({"ok": True, "ticket": ticket, "expires_in": TICKET_SECS})


@routes.get("/agents")
async def list_agents(request: web.Request) -> web.Response:
    app_of(request)
    agents = [
        {"name": info.name, "installed": info.installed, "default": default}
        | ({} if info.installed else {"install": info.install})
        for info, default in await services_of(request).sessions.agents.all()
    ]
    return json_reply({"ok": True, "agents": agents})
