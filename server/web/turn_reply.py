"""The events of a turn in the response to its prompt, whose memory is limited."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from aiohttp import web

from ..sessions import entries
from ..sessions.session import Session
from ..sessions.turns import Turn
from .context import app_name_of, context_of, waiting
from .responses import RESPONSE_PIECE_BYTES


async def short_events(session: Session, turn: Turn, limit: int) -> list[bytes] | None:
    """Return a turn's events; None if they have more than *limit* bytes."""
    short: list[bytes] = []
    size = 0
    async with contextlib.aclosing(events_of(session, turn)) as events:
        async for event in events:
            size += len(event) + 1
            if size > limit:
                return None
            short.append(event)
    return short


async def has_short_events(session: Session, turn: Turn, limit: int) -> bool:
    """Whether a turn's events have at most *limit* bytes."""
    size = 0
    async with contextlib.aclosing(events_of(session, turn)) as events:
        async for event in events:
            size += len(event) + 1
            if size > limit:
                return False
    return True


class MemoryBusyError(Exception):
    """Other long replies are being sent."""


@contextlib.asynccontextmanager
async def reserve_reply_memory(request: web.Request) -> AsyncIterator[None]:
    """Wait until a long reply may be sent: one of each app at a time, and few in all.

    Raises:
        MemoryBusyError: it may not be sent within a few seconds.
    """
    context = context_of(request)
    size = context.settings.max_reply_bytes
    reservation = context.long_replies.request(app_name_of(request), size)
    try:
        async with waiting(request), asyncio.timeout(context.settings.stall_timeout_secs):
            await asyncio.shield(reservation)
    except TimeoutError:
        context.long_replies.release(reservation)
        raise MemoryBusyError from None
    except BaseException:
        context.long_replies.release(reservation)
        raise
    try:
        yield
    finally:
        context.long_replies.release(reservation)


async def spliced(head: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces of a response: *head*, which ends in a list, the *events*, and its end."""
    yield head
    separator = b""
    async for event in events:
        yield separator
        for start in range(0, len(event), RESPONSE_PIECE_BYTES):
            yield event[start : start + RESPONSE_PIECE_BYTES]
        separator = b","
    yield b"]}"


async def events_of(session: Session, turn: Turn) -> AsyncGenerator[bytes]:
    """Yield the agent's messages of a turn that has ended, as JSON."""
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
