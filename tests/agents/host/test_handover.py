"""Launchers that die at the wrong moment leave nothing in the server."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from server.agents.base import AgentSpec, MessageLimits
from server.agents.host import stderr
from server.agents.host.handover import StdioHandover
from server.agents.host.stderr import StderrFiles
from server.tasks import Supervisor

from ...support.harness import eventually

LAUNCHER = """
import os, socket, sys
seam = socket.socket(socket.AF_UNIX)
seam.connect("\\0" + sys.argv[1])
if sys.argv[2] != "nothing":
    socket.send_fds(seam, [b"\\n"], [0, 1][: int(sys.argv[2])])
if sys.argv[3] == "stay":
    seam.recv(1)
"""


class Room:
    has_room = True

    async def room(self) -> None: ...


class Nobody:
    """An agent that nothing is told of."""

    spec = AgentSpec("key", "mock", "/", None, None, "ask")

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("fds", "early"), [("nothing", True), ("1", True), ("2", True), ("1", False), ("2", False)]
)
async def test_a_launcher_that_fails_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fds: str, early: bool
) -> None:
    """It dies before it is let in; or no more files can be opened for it."""
    if not early:

        async def full(*_: Any) -> int:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(stderr.StderrFiles, "open", full)
    limits = MessageLimits(1 << 20, 1 << 20)
    attachments = StdioHandover({}, Room(), StderrFiles(tmp_path), Supervisor(), tmp_path, limits)
    agent = Nobody()
    attachments.register(agent)
    attachments.start()
    ours, theirs = socket.socketpair()

    async def launch() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-ISc",
            LAUNCHER,
            attachments.name,
            fds,
            "" if early else "stay",
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
        )
        if early:
            await process.wait()  # its pid is nobody's when it is announced
        attachments.announce(process.pid, "key")
        await process.wait()
        await eventually("it to be dealt with", lambda: not attachments._tasks._tasks)

    with ours, theirs:
        await launch()
        before = open_files()
        for _ in range(3):
            await launch()
        await eventually("the descriptors to be closed", lambda: open_files() <= before)
    await attachments.stop()


async def test_a_second_connection_of_a_process_is_refused(tmp_path: Path) -> None:
    limits = MessageLimits(1 << 20, 1 << 20)
    attachments = StdioHandover({}, Room(), StderrFiles(tmp_path), Supervisor(), tmp_path, limits)
    attachments.start()
    loop = asyncio.get_running_loop()
    try:
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for one in (first, second):
                one.setblocking(False)
                await loop.sock_connect(one, "\0" + attachments.name)
            assert await loop.sock_recv(second, 1) == b""
            # The first still waits to be announced, and is answered when it is.
            attachments.announce(os.getpid(), "nobody's key")
            assert await loop.sock_recv(first, 1) == b""
    finally:
        await attachments.stop()
