"""An editor that starts ``connect`` as its agent, and speaks ACP with it in lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

from server.connect.bridge import Bridge
from server.connect.stdio import EditorInput, EditorOutput
from server.connect.target import Target, acp_address

from .acp_client import INITIALIZE, AcpClient
from .client import Client
from .processes import ROOT
from .waiting import TIMEOUT_SECS

PROGRAM = [sys.executable, str(ROOT / "server"), "connect"]
CLOSED = aiohttp.WSMessage(aiohttp.WSMsgType.CLOSED, None, None)


class LineSocket:
    """Lines in the form of a WebSocket, for :class:`AcpClient`."""

    close_code = None

    def __init__(self, reader: asyncio.StreamReader, writer: Any) -> None:
        self._reader = reader
        self._writer = writer

    async def send_str(self, text: str) -> None:
        self._writer.write(text.encode() + b"\n")

    async def receive(self) -> aiohttp.WSMessage:
        line = await self._reader.readline()
        if not line:
            return CLOSED
        return aiohttp.WSMessage(aiohttp.WSMsgType.TEXT, line.decode(), None)


class Editor(AcpClient):
    """An editor whose agent is a bridge in this process.

    Attributes:
        bridge: its task; it ends when the editor closes stdin.
    """

    bridge: asyncio.Task[None]
    output: EditorOutput


@contextlib.asynccontextmanager
async def editor(
    client: Client,
    query: str = "",
    *,
    session: str | None = None,
    wait: float = TIMEOUT_SECS,
    strict: bool = True,
) -> AsyncIterator[Editor]:
    """Start a bridge in this process, for the client's app."""
    url = acp_address(client.url + query, ())
    target = Target(url, str(client.token), session, wait)
    loop = asyncio.get_running_loop()
    bridge_in, editor_out = os.pipe()
    editor_in, bridge_out = os.pipe()
    reader = asyncio.StreamReader(limit=64 << 20)
    with os.fdopen(editor_in, "rb", 0) as source, os.fdopen(editor_out, "wb", 0) as sink:
        read, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), source)
        write, _ = await loop.connect_write_pipe(asyncio.Protocol, sink)
        started = Editor(LineSocket(reader, write), strict=strict)  # type: ignore[arg-type]
        started.output = EditorOutput(bridge_out)
        bridge = Bridge(target, EditorInput(bridge_in), started.output)
        started.bridge = asyncio.create_task(bridge.run())
        try:
            yield started
        finally:
            write.close()
            await asyncio.wait({started.bridge}, timeout=TIMEOUT_SECS)
            read.close()
            os.close(bridge_in)
            os.close(bridge_out)


async def open_editor_session(started: Editor, **params: Any) -> str:
    """Initialize, and open a new session."""
    await started.call("initialize", **INITIALIZE)
    return await started.new_session(**params)


class EditorProcess(AcpClient):
    """An editor whose agent is ``connect`` in a process of its own."""

    process: asyncio.subprocess.Process

    async def close_stdin(self) -> tuple[int, str]:
        """Close the agent's stdin. Returns its exit status and its stderr."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await self.end()

    async def end(self) -> tuple[int, str]:
        """The agent's exit status and its stderr, once it has ended."""
        assert self.process.stderr is not None
        async with asyncio.timeout(TIMEOUT_SECS):
            err = await self.process.stderr.read()
            return await self.process.wait(), err.decode()


@contextlib.asynccontextmanager
async def editor_process(*argv: str, **variables: str) -> AsyncIterator[EditorProcess]:
    """Start ``connect`` in a process of its own."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("CLAWDFORGE_")}
    process = await asyncio.create_subprocess_exec(
        *(*PROGRAM, *argv),
        cwd="/",
        env={**environ, **variables},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=64 << 20,
    )
    assert process.stdout is not None
    socket = LineSocket(process.stdout, process.stdin)
    started = EditorProcess(socket, strict=True)  # type: ignore[arg-type]
    started.process = process
    try:
        yield started
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def initialize_line(request_id: int = 0) -> str:
    """The line with which an editor begins."""
    request = {"jsonrpc": "2.0", "id": request_id, "method": "initialize", "params": INITIALIZE}
    return json.dumps(request)
