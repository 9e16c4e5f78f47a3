"""Launchers that end during the handover of their stdio leave no descriptors in the server."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.agents.base import AgentSpec
from server.agents.host import process, stderr
from server.agents.host.handover import StdioHandover
from server.agents.host.stderr import StderrFiles
from server.agents.output_limits import MessageLimits
from server.data_dir import DataDir
from server.sandbox.policy import SandboxPolicy
from server.sandbox.sandbox import OFF, Sandbox
from server.tasks import Loop, Supervisor, Tasks

from ...support.harness import eventually

LAUNCHER = """
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect("\\0" + sys.argv[1])
if sys.argv[2] != "nothing":
    socket.send_fds(server, [b"\\n"], [0, 1][: int(sys.argv[2])])
if sys.argv[3] == "stay":
    server.recv(1)
"""


def no_sandbox(folder: Path) -> Sandbox:
    return Sandbox(OFF, DataDir(folder), SandboxPolicy(roots=(Path("/"),)))


class EmptyLog:
    has_capacity = True

    async def wait_for_capacity(self) -> None: ...


class IgnoringTarget:
    """The target of a handover that ignores all events."""

    spec = AgentSpec(key="key", agent="mock", cwd="/", permission="ask")

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def new_handover(folder: Path, supervisor: Supervisor | None = None) -> StdioHandover:
    return StdioHandover(
        {},
        EmptyLog(),
        StderrFiles(folder),
        supervisor or Supervisor(),
        no_sandbox(folder),
        MessageLimits(1 << 20, 1 << 20),
    )


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("fds", "early"), [("nothing", True), ("1", True), ("2", True), ("1", False), ("2", False)]
)
async def test_failed_handover_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fds: str, early: bool
) -> None:
    """The launcher ends before it is accepted, or the server can open no more files."""
    if not early:

        async def full(*_: Any) -> int:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(stderr.StderrFiles, "open", full)
    handover = new_handover(tmp_path)
    agent = IgnoringTarget()
    handover.register(agent)
    handover.start()
    ours, theirs = socket.socketpair()

    async def launch() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-ISc",
            LAUNCHER,
            handover.name,
            fds,
            "" if early else "stay",
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
        )
        if early:
            await process.wait()  # the process has ended before it is announced
        handover.announce(process.pid, "key")
        await process.wait()
        await eventually("the connection to be handled", lambda: handover.is_idle)

    with ours, theirs:
        await launch()
        before = open_files()
        for _ in range(3):
            await launch()
        await eventually("the descriptors to be closed", lambda: open_files() <= before)
    await handover.stop()


def test_launcher_imports_no_module_that_takes_long() -> None:
    """Every start of an agent waits for it."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import launch; print(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", code, str(Path(process.__file__).parent)]
    found = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split()
    assert "restrict" in found
    assert not {"contextlib", "enum", "json", "re", "signal", "socket", "typing"} & {*found}


async def test_second_connection_of_a_process_is_refused(tmp_path: Path) -> None:
    handover = new_handover(tmp_path)
    handover.start()
    loop = asyncio.get_running_loop()
    try:
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            for one in (first, second):
                one.setblocking(False)
                await loop.sock_connect(one, "\0" + handover.name)
            assert await loop.sock_recv(second, 1) == b""
            # The first one waits until the process is announced.
            handover.announce(os.getpid(), "an unknown key")
            assert await loop.sock_recv(first, 1) == b""
    finally:
        await handover.stop()


class CancellableSupervisor(Supervisor):
    """A supervisor that keeps the last task."""

    task: asyncio.Task[None]

    def spawn(self, owner: Tasks, name: str, loop: Loop, **options: Any) -> asyncio.Task[None]:
        self.task = super().spawn(owner, name, loop, **options)
        return self.task


async def test_connection_that_arrives_as_accepting_ends_is_accepted_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = CancellableSupervisor()
    handover = new_handover(tmp_path, supervisor)
    handover.announce(os.getpid(), "an unknown key")
    handover.start()
    await asyncio.sleep(0)  # it waits for a connection now
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\0" + handover.name)
            # Runs right before the event loop notices the connection.
            asyncio.get_running_loop().call_soon(supervisor.task.cancel)
            await asyncio.wait([supervisor.task])
            assert supervisor.task.cancelled()
            handover.start()
            refusal = "refused the connection"
            await eventually("the connection to be handled", lambda: refusal in caplog.text)
    finally:
        await handover.stop()
