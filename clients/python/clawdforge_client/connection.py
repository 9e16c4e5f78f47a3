"""The socket of one session: it reconnects, resumes, and sends prompts until they are accepted."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol, cast

import aiohttp

from .errors import ClawdforgeError, ConnectionLostError, error_of
from .frames import (
    CONNECTION_LOST,
    FIRST_FINAL_CODE,
    FRAME_TOO_LARGE,
    OPEN_SECS,
    OTHER_TOKEN_CODES,
    OVERLOADED,
    SESSION_CLOSED,
    SILENCE_SECS,
    TOO_MANY_FRAMES,
    TRANSIENT_CODES,
    UNKNOWN_POSITION,
    check_size,
    close_error,
    encoded_frame,
    frame_error,
    resend_secs,
    retry_after_of,
)
from .rest import Rest, backoff
from .shapes import Entry, Json

logger = logging.getLogger("clawdforge_client")

TAIL_SECS = 5
"""Time for the entries up to a heartbeat's head."""
STABLE_SECS = 10
SLOW_ATTEMPT = 4
"""The backoff after a close for overload begins with the pause of this attempt."""


class PendingPrompt(Protocol):
    """A prompt that was not accepted yet."""

    frame: Json

    def mark_accepted(self, frame: Mapping[str, Any], *, resent: bool) -> None: ...
    def fail(self, failure: ClawdforgeError) -> None: ...


class Listener(Protocol):
    """Receives what arrives, in order."""

    def connected(self, ready: Json) -> None: ...
    def received(self, entry: Entry, size: int) -> None: ...
    def refused(self, frame: Json) -> None: ...
    def ended(self, failure: ClawdforgeError | None) -> None: ...


class Connection:
    """One session's socket, over any number of WebSockets.

    Args:
        give_up_secs: how long the server may be unreachable before the connection fails.
    """

    def __init__(
        self, rest: Rest, session_id: str, listener: Listener, *, give_up_secs: float
    ) -> None:
        self._rest = rest
        self._session_id = session_id
        self._listener = listener
        self._give_up_secs = give_up_secs
        self._last: int | None = None
        self._ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        # By their ids, each with the number of times that it was sent.
        self._prompts: dict[str, tuple[PendingPrompt, int]] = {}
        self._frames: list[Json] = []
        self._commands: dict[str, tuple[Json, asyncio.Future[None]]] = {}
        self._writing = asyncio.Lock()
        self._retry_after = 0.0
        self._is_live = False
        self._task = asyncio.create_task(self._run(), name=f"clawdforge-{session_id}")
        self._resending: asyncio.TimerHandle | None = None

    # The owner's side.

    @property
    def last(self) -> int | None:
        return self._last

    async def ready(self) -> int:
        """Wait for the first connection. Returns the newest entry that was received."""
        first = await asyncio.shield(self._ready)
        return first if self._last is None else self._last

    def send_prompt(self, prompt: PendingPrompt) -> None:
        """Send a prompt until it is accepted."""
        try:
            check_size(prompt.frame)
        except ClawdforgeError as error:
            prompt.fail(error)
            return
        self._prompts[prompt.frame["id"]] = prompt, 0
        if self._is_live and self._resending is None:  # else after those that were refused for now
            self._send_pending(only=prompt.frame["id"])

    def send(self, frame: Json) -> None:
        """Send a frame once, as soon as there is a connection."""
        self._frames.append(frame)
        if self._is_live:
            self._send_pending(only="")

    async def command(self, frame: Json) -> None:
        """Send a frame until the server has carried it out.

        Raises:
            ClawdforgeError: the server refused it, or the connection has failed.
        """
        key = str(frame["id"])
        done = asyncio.get_running_loop().create_future()
        self._commands[key] = frame, done
        if self._is_live:
            self._send_pending(only=key)
        try:
            await done
        finally:
            self._commands.pop(key, None)

    async def close(self, failure: ClawdforgeError) -> None:
        """Close the socket. Prompts that were not accepted fail with *failure*."""
        self._fail_pending(failure)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    # Connecting.

    async def _run(self) -> None:
        failure: ClawdforgeError | None = None
        try:
            failure = await self._stay_connected()
        except ClawdforgeError as error:
            failure = error
        except asyncio.CancelledError:
            failure = ClawdforgeError("closed", "the client was closed")
            raise
        except Exception as error:
            logger.exception("the connection of session %s has failed", self._session_id)
            failure = ClawdforgeError("internal", f"the client has failed: {error}")
        finally:
            self._is_live = False
            self._cancel_resending()
            if not self._ready.done():
                if failure is None:
                    self._ready.set_result(self._last or 0)
                else:
                    self._ready.set_exception(failure)
                    self._ready.exception()  # it need not be awaited
            self._fail_pending(failure or _closed())
            self._listener.ended(failure)

    async def _stay_connected(self) -> ClawdforgeError | None:
        """Connect again and again. Returns None if the session is closed and all delivered."""
        attempt = 0
        lost_at = time.monotonic()
        while True:
            self._retry_after = 0.0
            began, last = time.monotonic(), self._last
            used = self._rest.headers
            try:
                code, reason = await self._connect_once()
            except aiohttp.WSServerHandshakeError as error:
                if error.status == 401 and self._rest.headers is not used:
                    continue
                if error.status < 500 and error.status not in (408, 429):
                    raise error_of(error.status, None) from error
                code, reason = CONNECTION_LOST, f"status {error.status}"
                self._retry_after = retry_after_of(error)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                code, reason = CONNECTION_LOST, str(error) or type(error).__name__
            was_live, self._is_live, self._ws = self._is_live, False, None
            if code == SESSION_CLOSED:
                return None
            if code in OTHER_TOKEN_CODES and self._rest.headers is not used:
                continue
            if code >= FIRST_FINAL_CODE:
                raise close_error(code, reason)
            if code == UNKNOWN_POSITION:
                # The log went back: delivered entries may differ from those in it now.
                self._last = None
                raise ClawdforgeError(
                    "position_unknown", "the server's log went back: read it again from its start"
                )
            if code == FRAME_TOO_LARGE:
                self._fail_largest()
            if was_live:
                lost_at = time.monotonic()
                if lost_at - began > STABLE_SECS or self._last != last:
                    attempt = 0
            if code in (OVERLOADED, TOO_MANY_FRAMES):
                attempt = max(attempt, SLOW_ATTEMPT)
            if time.monotonic() - lost_at > self._give_up_secs:
                raise ConnectionLostError(f"{self._rest.url}: {reason}")
            wait = backoff(attempt) + self._retry_after
            attempt += 1
            logger.info("session %s: %s; connecting in %.1f s", self._session_id, reason, wait)
            await asyncio.sleep(wait)

    async def _connect_once(self) -> tuple[int, str]:
        """Connect, and receive until the socket is closed. Returns the close code and why."""
        after = "" if self._last is None else f"?after={self._last}"
        async with (
            asyncio.timeout(OPEN_SECS) as deadline,
            self._rest.http.ws_connect(
                f"{self._rest.url}/sessions/{self._session_id}/ws{after}",
                headers=self._rest.headers,
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=1),
            ) as ws,
        ):
            self._ws = ws
            tail: int | None = None
            reason = "the connection was lost"
            _allow(deadline, SILENCE_SECS)
            while True:
                message = await ws.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return ws.close_code or CONNECTION_LOST, reason
                frame = json.loads(message.data)
                kind = frame["type"]
                if "seq" in frame:
                    if not self._receive(frame, len(message.data)):
                        return CONNECTION_LOST, "an entry is missing"
                elif kind == "ready":
                    self._begin(frame)
                elif kind == "accepted":
                    self._accept(frame)
                elif kind == "error":
                    self._refuse(frame)
                elif kind == "pong":
                    self._confirm(frame)
                elif kind == "bye":
                    reason = str(frame.get("reason", reason))
                    self._retry_after = frame.get("retry_after_ms", 0) / 1000
                elif kind == "heartbeat" and frame["head"] > (self._last or 0):
                    tail = frame["head"]
                if tail is not None and (self._last or 0) >= tail:
                    tail = None
                # A head without its entries: the connection is dead in one direction.
                if kind == "heartbeat" and tail is not None:
                    _allow(deadline, TAIL_SECS)
                elif tail is None or "seq" in frame:
                    _allow(deadline, SILENCE_SECS)

    def _begin(self, frame: Json) -> None:
        if self._last is None:
            self._last = frame["head"]
        self._is_live = True
        if not self._ready.done():
            self._ready.set_result(self._last)
        self._listener.connected(frame)
        self._cancel_resending()
        self._send_pending()

    def _receive(self, entry: Json, size: int) -> bool:
        """Deliver an entry. False if the one before it is missing."""
        seq = entry["seq"]
        if self._last is not None:
            if seq <= self._last:
                return True
            if seq > self._last + 1:
                return False
        # The turn of a prompt whose `accepted` was lost with a connection.
        if entry["type"] in ("turn_start", "turn_steer") and entry.get("id") in self._prompts:
            self._accept(
                {
                    "id": entry["id"],
                    "turn_index": entry["turn_index"],
                    "duplicate": True,
                    "steered": entry["type"] == "turn_steer",
                }
            )
        self._last = seq
        self._listener.received(cast(Entry, entry), size)
        return True

    # Prompts.

    def _send_pending(self, only: str | None = None) -> None:
        ws = self._ws
        if ws is None or ws.closed:
            return
        frames, self._frames = self._frames, []
        for key, (prompt, times) in list(self._prompts.items()):
            if only is None or key == only:
                self._prompts[key] = prompt, times + 1
                frames.append(prompt.frame)
        for key, (frame, done) in self._commands.items():
            if not done.done() and (only is None or key == only):
                frames += [frame, {"type": "ping", "id": key}]
        if frames:
            _spawn(self._write(ws, frames))

    async def _write(self, ws: aiohttp.ClientWebSocketResponse, frames: list[Json]) -> None:
        try:
            async with self._writing:  # in the order of the calls
                for frame in frames:
                    await ws.send_str(encoded_frame(frame))
        except (aiohttp.ClientError, ConnectionError, RuntimeError):
            pass  # prompts are sent again on the next connection

    def _accept(self, frame: Mapping[str, Any]) -> None:
        found = self._prompts.pop(frame.get("id") or "", None)
        if found is not None:
            prompt, times = found
            prompt.mark_accepted(frame, resent=times > 1)

    def _confirm(self, frame: Json) -> None:
        """Note that a command was carried out: the ping that followed it has its response."""
        if (command := self._commands.get(str(frame.get("id")))) and not command[1].done():
            command[1].set_result(None)

    def _refuse(self, frame: Json) -> None:
        if (command := self._commands.get(str(frame.get("id")))) is not None:
            if not command[1].done():
                command[1].set_exception(frame_error(frame))
            return
        found = self._prompts.get(frame.get("id") or "")
        if found is None:
            self._listener.refused(frame)
        elif frame["code"] in TRANSIENT_CODES:
            self._resend_later(resend_secs(frame_error(frame)))
        else:
            del self._prompts[frame["id"]]
            found[0].fail(frame_error(frame))

    def _resend_later(self, secs: float) -> None:
        """Send all prompts again, in their order, once the server accepts them."""
        loop = asyncio.get_running_loop()
        if self._resending is not None and self._resending.when() > loop.time() + secs:
            return
        self._cancel_resending()
        self._resending = loop.call_later(secs, self._resend)

    def _resend(self) -> None:
        self._resending = None
        if self._is_live:
            self._send_pending()

    def _cancel_resending(self) -> None:
        if self._resending is not None:
            self._resending.cancel()
            self._resending = None

    def _fail_largest(self) -> None:
        """Fail the prompt whose size the server has refused: the close code does not name it."""
        if not self._prompts:
            return
        sizes = {
            key: len(encoded_frame(prompt.frame)) for key, (prompt, _) in self._prompts.items()
        }
        prompt, _ = self._prompts.pop(max(sizes, key=sizes.__getitem__))
        prompt.fail(ClawdforgeError("payload_too_large", "the server refused the prompt's size"))

    def _fail_pending(self, failure: ClawdforgeError) -> None:
        while self._prompts:
            _, (prompt, _) = self._prompts.popitem()
            prompt.fail(failure)
        for _, done in self._commands.values():
            if not done.done():
                done.set_exception(failure)


_tasks: set[asyncio.Task[None]] = set()


def _spawn(coroutine: Any) -> None:
    task = asyncio.ensure_future(coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


def _allow(deadline: asyncio.Timeout, secs: float) -> None:
    deadline.reschedule(asyncio.get_running_loop().time() + secs)


def _closed() -> ClawdforgeError:
    return ClawdforgeError("session_closed", "the session is closed")
