"""Moves the messages of a relay: between stdin and stdout, and a WebSocket that is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time

import aiohttp

from ..codec import parse_message
from . import rpc
from .failure import ConnectError
from .relay import Relay, RelayState
from .stdio import EditorInput, EditorOutput, TooLongLine
from .target import Target
from .websocket import ServerAwayError, check_close, client_session, open_websocket

FIRST_WAIT_SECS = 10.0
"""The time that the start waits for a server that does not answer. It may be starting, too."""
QUIET_SECS = 5.0
"""A server that is away for less is not reported: some editors show each line as an error."""
RETRY_SECS = 0.1, 5.0
"""The first and the longest pause between two tries."""
STABLE_CONNECTION_SECS = 5.0
"""After a connection that lasted this long, the pauses begin again with the first."""
LAST_LINES_SECS = 3.0
"""The time to send what the editor wrote before it closed stdin."""
FIRST_REQUEST_SECS = 2.0
"""The time for the editor's first request, whose response has the reason for a failure."""
MORE_REQUESTS_SECS = 0.1
"""The time for each further one."""


def report(text: str) -> None:
    """Write a line to stderr, which editors show in their logs."""
    with contextlib.suppress(OSError):
        print(f"clawdforge connect: {text}", file=sys.stderr, flush=True)  # noqa: T201


class Bridge:
    """One run of ``connect``."""

    def __init__(self, target: Target, editor_in: EditorInput, editor_out: EditorOutput) -> None:
        self._target = target
        self._in = editor_in
        self._out = editor_out
        self._relay = Relay(target.session)
        self._ws: aiohttp.ClientWebSocketResponse[bool] | None = None
        self._is_open = asyncio.Event()
        self._was_open = False
        self._is_away_reported = False

    async def run(self) -> None:
        """Pass messages on until the editor closes stdin or stdout.

        Raises:
            ConnectError: the connection to the server failed for good.
        """
        sender = asyncio.create_task(self._send_lines(), name="from the editor")
        connector = asyncio.create_task(self._keep_connected(), name="to the server")
        ends = asyncio.create_task(self._wait_for_end(sender), name="end")
        tasks = (sender, connector, ends)
        try:
            await asyncio.wait({connector, ends}, return_when=asyncio.FIRST_COMPLETED)
            if connector.done():
                connector.result()
        except ConnectError as error:
            self._relay.fail(error)
            self._out.write(self._relay.to_editor)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_for_end(self, sender: asyncio.Task[None]) -> None:
        """Wait until the editor has closed stdout, or stdin and its last lines are sent."""
        closed = asyncio.create_task(self._out.closed.wait())
        ended = asyncio.create_task(self._in.ended.wait())
        try:
            await asyncio.wait({closed, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not closed.done():
                await asyncio.wait(
                    {sender, closed},
                    timeout=LAST_LINES_SECS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            closed.cancel()
            ended.cancel()

    # From the editor

    async def _send_lines(self) -> None:
        while await self._in.wait():
            await self._is_open.wait()
            if self._relay.state is not RelayState.OPEN:
                continue
            line = self._in.take()
            if isinstance(line, TooLongLine):
                self._relay.refuse_line(line.id)
            else:
                self._relay.receive_line(line)
            await self._flush()

    async def _flush(self) -> None:
        """Send the relay's messages in both directions."""
        relay = self._relay
        if relay.to_editor:
            lines, relay.to_editor = relay.to_editor, []
            self._out.write(lines)
        if relay.to_server and self._ws is not None:
            frames, relay.to_server = relay.to_server, []
            ws = self._ws
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # the reader notices it
                for frame in frames:
                    await ws.send_frame(frame, aiohttp.WSMsgType.TEXT)
        await self._out.drain()

    # From the server

    async def _keep_connected(self) -> None:
        """Keep a connection, and pass on what the server sends.

        Raises:
            ConnectError: the server cannot be reached any more, or refuses.
        """
        pause, longest = RETRY_SECS
        async with client_session(self._target) as http:
            while True:
                ws = await self._open(http, pause)
                opened_at = time.monotonic()
                await self._serve(ws)
                check_close(ws.close_code, self._target)
                await self._out.drain(0)  # not until the editor has read everything
                if time.monotonic() - opened_at > STABLE_CONNECTION_SECS:
                    pause = RETRY_SECS[0]
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret
                pause = min(2 * pause, longest)

    async def _open(
        self, http: aiohttp.ClientSession, pause: float
    ) -> aiohttp.ClientWebSocketResponse[bool]:
        """Open a connection; try again while the server is away."""
        wait = self._target.wait if self._was_open else min(FIRST_WAIT_SECS, self._target.wait)
        report_at = time.monotonic() + QUIET_SECS
        give_up_at = time.monotonic() + wait
        reason = ""
        while True:
            try:
                return await open_websocket(http, self._target)
            except ServerAwayError as error:
                reason = str(error)
            if time.monotonic() > report_at and not self._is_away_reported:
                self._is_away_reported = True
                report(f"{reason}; retrying")
            if time.monotonic() + pause > give_up_at:
                raise ConnectError(f"{reason}; gave up after {wait:g} s. Is the server running?")
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - no secret
            pause = min(2 * pause, RETRY_SECS[1])

    async def _serve(self, ws: aiohttp.ClientWebSocketResponse[bool]) -> None:
        """Use a connection until it ends."""
        self._ws = ws
        self._relay.connect()
        try:
            self._note_state()
            await self._flush()
            while not self._relay.must_reconnect:
                message = await ws.receive()
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                self._relay.receive_frame(message.data)
                self._note_state()
                await self._flush()
        finally:
            self._ws = None
            self._is_open.clear()
            self._relay.disconnect()
            with contextlib.suppress(aiohttp.ClientError, ConnectionError, TimeoutError):
                async with asyncio.timeout(1):
                    await ws.close()
        await self._flush()

    def _note_state(self) -> None:
        if self._relay.state is RelayState.OPEN and not self._is_open.is_set():
            if self._is_away_reported:
                report("connected again")
            self._was_open = True
            self._is_away_reported = False
            self._is_open.set()


async def respond_with_failure(
    error: ConnectError, editor_in: EditorInput, editor_out: EditorOutput, wait_secs: float
) -> None:
    """Respond to the editor's requests with a failure, until it has sent none for a moment.

    Args:
        wait_secs: seconds to wait for the first one.
    """
    with contextlib.suppress(TimeoutError):
        while True:
            async with asyncio.timeout(wait_secs):
                if not await editor_in.wait():
                    return
            line = editor_in.take()
            message = parse_message(line) if isinstance(line, bytes) else None
            if message is not None and "method" in message and "id" in message:
                failed = rpc.error_message(message["id"], error.rpc_code, error.message)
                editor_out.write([failed])
                wait_secs = MORE_REQUESTS_SECS


async def drain_output(editor_out: EditorOutput) -> None:
    """Wait a moment until the editor has read everything."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_LINES_SECS):
            await editor_out.drain(0)
