"""The socket for many sessions: the app's list, and the logs of any number of its sessions."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import aiohttp

from .closeable import Closeable
from .errors import ClawdforgeError, ConnectionLostError, error_of
from .frames import (
    CONNECTION_LOST,
    FIRST_FINAL_CODE,
    OPEN_SECS,
    OTHER_TOKEN_CODES,
    SILENCE_SECS,
    TRANSIENT_CODES,
    check_size,
    close_error,
    encoded_frame,
    frame_error,
    prompt_frame,
    resend_secs,
    retry_after_of,
)
from .rest import Rest, backoff
from .shapes import Entry, Json, Prompt, State

logger = logging.getLogger("clawdforge_client")

SUBSCRIPTION = "subscribe-"
EventKind = Literal["session", "gone", "entry", "accepted", "refused"]


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """Something that has happened in the app's sessions.

    Attributes:
        kind: ``session``: it is new, or its state has changed. ``gone``: it was closed or deleted.
            ``entry``: of the log of a subscribed session. ``accepted``: the server has stored a
            prompt. ``refused``: a prompt, a frame or a subscription has failed.
        state: of ``session``.
        entry: of ``entry``.
        id: of the prompt that was ``accepted`` or ``refused``, or None.
        turn_index: of ``accepted``.
        error: of ``refused``.
    """

    kind: EventKind
    session_id: str
    state: State | None = None
    entry: Entry | None = None
    id: str | None = None
    turn_index: int | None = None
    error: ClawdforgeError | None = None


class Watch(Closeable):
    """The app's sessions over one socket: ``async for event in watch``. Use it in ``async with``.

    Each entry of a subscribed session arrives exactly once and in order, over lost connections and
    restarts of the server. The socket is read only as fast as the events are: a slow reader
    gets the rest from the server's log.

    Attributes:
        sessions: the states of the app's open sessions, by id, as of the last event.
    """

    def __init__(self, rest: Rest, fields: Sequence[str] | None, give_up_secs: float) -> None:
        self.sessions: dict[str, State] = {}
        self._rest = rest
        self._fields = fields
        self._give_up_secs = give_up_secs
        self._cursors: dict[str, int | None] = {}
        self._prompts: dict[str, Json] = {}
        self._events: deque[WatchEvent] = deque()
        self._source: AsyncGenerator[WatchEvent, None] | None = None
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._writing = asyncio.Lock()
        self._closed = asyncio.Event()
        self._retry_after = 0.0
        # When the prompts of a session are sent again that were refused for now.
        self._resend_at: dict[str, float] = {}

    async def close(self) -> None:
        """Close the socket. The iteration ends; sessions and turns go on."""
        self._closed.set()
        if self._ws is not None:
            await self._ws.close()
        source, self._source = self._source, None
        if source is not None:
            with suppress(RuntimeError):  # another task is reading; its iteration ends
                await source.aclose()

    # Frames to the server

    async def subscribe(self, session_id: str, *, after: int | None = None) -> None:
        """Follow the log of a session.

        Args:
            after: 0 for the whole log, None for what happens from now on.
        """
        self._cursors[session_id] = after
        await self._write(self._subscription(session_id))

    async def unsubscribe(self, session_id: str) -> None:
        """Follow a session no longer. No further entry of it arrives."""
        if session_id in self._cursors:
            del self._cursors[session_id]
            await self._write({"type": "unsubscribe", "session_id": session_id})

    async def prompt(
        self,
        session_id: str,
        prompt: Prompt,
        *,
        id: str | None = None,  # noqa: A002 - the protocol's name
        files: Sequence[str] = (),
        steer: bool = False,
    ) -> str:
        """Send a prompt until the server has stored it. It never runs twice. Returns its id."""
        frame = prompt_frame(prompt, prompt_id=id, files=files, steer=steer)
        frame["session_id"] = session_id
        check_size(frame)
        self._prompts[frame["id"]] = frame
        if session_id not in self._resend_at:  # else after those that were refused for now
            await self._write(frame)
        return str(frame["id"])

    async def send(self, session_id: str, frame: Json) -> bool:
        """Send any other frame of a session's socket, once. False if there is no connection."""
        return await self._write({**frame, "session_id": session_id})

    def _subscription(self, session_id: str) -> Json:
        frame: Json = {
            "type": "subscribe",
            "id": SUBSCRIPTION + session_id,
            "session_id": session_id,
        }
        if (after := self._cursors[session_id]) is not None:
            frame["after"] = after
        return frame

    async def _write(self, frame: Json) -> bool:
        ws = self._ws
        if ws is None or ws.closed:
            return False
        try:
            async with self._writing:
                await ws.send_str(encoded_frame(frame))
        except (aiohttp.ClientError, ConnectionError, RuntimeError):
            return False  # subscriptions and prompts are sent again on the next connection
        return True

    # Events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        if self._source is None:
            self._source = self._iterate()
        try:
            return await anext(self._source)
        except BaseException:  # also a timeout of the caller: the next call connects again
            self._source = None
            raise

    async def _iterate(self) -> AsyncGenerator[WatchEvent, None]:
        attempt = 0
        lost_at = time.monotonic()
        while self._events:
            yield self._events.popleft()
        while not self._closed.is_set():
            reason = "the connection was lost"
            used = self._rest.headers
            try:
                async with aclosing(self._read_once()) as events:
                    async for event in events:
                        attempt = 0
                        yield event
            except aiohttp.WSServerHandshakeError as error:
                if error.status == 401 and self._rest.headers is not used:
                    continue
                if error.status < 500 and error.status not in (408, 429):
                    raise error_of(error.status, None) from error
                reason = f"status {error.status}"
                self._retry_after = retry_after_of(error)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                reason = str(error) or type(error).__name__
            if self._ws is not None:
                self._ws, lost_at = None, time.monotonic()
            if self._closed.is_set():
                return
            if time.monotonic() - lost_at > self._give_up_secs:
                raise ConnectionLostError(f"{self._rest.url}: {reason}")
            wait, self._retry_after = backoff(attempt) + self._retry_after, 0.0
            attempt += 1
            logger.info("the sessions: %s; connecting in %.1f s", reason, wait)
            await asyncio.sleep(wait)

    async def _read_once(self) -> AsyncGenerator[WatchEvent, None]:
        """Connect, and yield events until the socket is closed.

        Raises:
            ClawdforgeError: the server refuses this client.
        """
        query = "" if self._fields is None else f"?fields={','.join(self._fields)}"
        used = self._rest.headers
        async with asyncio.timeout(OPEN_SECS):
            ws = await self._rest.http.ws_connect(
                f"{self._rest.url}/ws{query}",
                headers=self._rest.headers,
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=1),
            )
        async with ws:
            while True:
                try:
                    async with asyncio.timeout(self._read_timeout()):
                        message = await ws.receive()
                except TimeoutError:
                    if not await self._resend_due():
                        raise
                    continue
                if message.type is not aiohttp.WSMsgType.TEXT:
                    code = ws.close_code or CONNECTION_LOST
                    if code in OTHER_TOKEN_CODES and self._rest.headers is not used:
                        return
                    if code >= FIRST_FINAL_CODE and not self._closed.is_set():
                        raise close_error(code, "the server closed the socket")
                    return
                frame = json.loads(message.data)
                if frame["type"] == "ready" and "sessions" in frame:
                    self._ws = ws
                    self._begin(frame["sessions"])
                    for session_id in list(self._cursors):
                        await self._write(self._subscription(session_id))
                    self._resend_at.clear()
                    for prompt in list(self._prompts.values()):
                        await self._write(prompt)
                elif not await self._take(frame):
                    return
                while self._events:
                    yield self._events.popleft()

    def _read_timeout(self) -> float:
        """Seconds to wait for a frame: until a prompt is sent again, or the server is silent."""
        left = min(self._resend_at.values(), default=math.inf) - time.monotonic()
        return min(SILENCE_SECS, max(0.0, left))

    async def _resend_due(self) -> bool:
        """Send the prompts again, in their order, of the sessions for which it is time.

        Returns:
            Whether there were any.
        """
        now = time.monotonic()
        due = {session_id for session_id, at in self._resend_at.items() if at <= now}
        for session_id in due:
            del self._resend_at[session_id]
        for frame in list(self._prompts.values()):
            if frame["session_id"] in due:
                await self._write(frame)
        return bool(due)

    def _begin(self, states: list[State]) -> None:
        """Report how the list differs from the one that is known."""
        listed = {state["session_id"]: state for state in states}
        for session_id in list(self.sessions):
            # The end of a subscribed session follows its last entry.
            if session_id not in listed and session_id not in self._cursors:
                self._remove(session_id)
        for session_id, state in listed.items():
            if self.sessions.get(session_id) != state:
                self._change(session_id, state)

    async def _take(self, frame: Json) -> bool:
        """Handle a frame. False if the connection must be made again."""
        session_id = frame.get("session_id", "")
        match frame["type"]:
            case _ if "seq" in frame:
                return await self._receive(session_id, frame)
            case "session":
                self._change(frame["session"]["session_id"], frame["session"])
            case "session_gone":
                self._cursors.pop(session_id, None)
                self._remove(session_id)
            case "ready":
                if session_id in self._cursors and self._cursors[session_id] is None:
                    self._cursors[session_id] = frame["head"]
            case "accepted":
                if self._prompts.pop(frame.get("id") or "", None) is not None:
                    self._accept(session_id, frame["id"], frame["turn_index"])
            case "error":
                self._refuse(session_id, frame)
            case "bye":
                self._retry_after = frame.get("retry_after_ms", 0) / 1000
        return True

    async def _receive(self, session_id: str, frame: Json) -> bool:
        if session_id not in self._cursors:
            return True  # it was sent before the server got `unsubscribe`
        last, seq = self._cursors[session_id], frame["seq"]
        if last is not None and seq <= last:
            return True
        if last is not None and seq > last + 1:
            return False
        self._cursors[session_id] = seq
        if frame["type"] == "turn_start" and frame.get("id") in self._prompts:
            # Its `accepted` was lost with a connection.
            del self._prompts[frame["id"]]
            self._accept(session_id, frame["id"], frame["turn_index"])
        del frame["session_id"]
        entry = cast(Entry, frame)
        self._events.append(WatchEvent("entry", session_id, entry=entry))
        return True

    def _refuse(self, session_id: str, frame: Json) -> None:
        prompt_id = frame.get("id")
        error = frame_error(frame)
        if prompt_id in self._prompts:
            if error.code in TRANSIENT_CODES:
                at = time.monotonic() + resend_secs(error)
                self._resend_at[session_id] = max(at, self._resend_at.get(session_id, 0))
                return
            del self._prompts[prompt_id]
        elif prompt_id == SUBSCRIPTION + session_id:
            self._cursors.pop(session_id, None)
            prompt_id = None
            if error.code == "not_found":  # it was deleted
                self._remove(session_id)
                return
        self._events.append(WatchEvent("refused", session_id, id=prompt_id, error=error))

    def _change(self, session_id: str, state: Any) -> None:
        self.sessions[session_id] = state
        self._events.append(WatchEvent("session", session_id, state=state))

    def _remove(self, session_id: str) -> None:
        self.sessions.pop(session_id, None)
        self._events.append(WatchEvent("gone", session_id))

    def _accept(self, session_id: str, prompt_id: str, turn_index: int) -> None:
        event = WatchEvent("accepted", session_id, id=prompt_id, turn_index=turn_index)
        self._events.append(event)
