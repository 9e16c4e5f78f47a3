"""No process outlives its owner (session, agent or server), even if it hides from it.

The servers have no sandbox, which would forbid most of the hiding: see ``tests/sandbox``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from ...conftest import Serve, Spawn
from ...support.harness import (
    ADMIN,
    Client,
    Clock,
    LocalServer,
    blocking,
    descendants,
    environ_of,
    eventually,
    is_running,
    local_server,
    new_client,
    run_program,
    script,
    texts_of,
)

DISGUISES: dict[str, dict[str, Any]] = {
    "plain": {},
    "session of its own": {"setsid": True},
    "daemon": {"double_fork": True},
    "daemon with a clean environment": {"double_fork": True, "clear_env": True},
    "ignores SIGTERM": {"setsid": True, "ignore_sigterm": True},
    "holds the agent's stdout": {"setsid": True, "hold_stdout": True},
    "all at once": {"double_fork": True, "ignore_sigterm": True, "hold_stdout": True},
}
each_disguise = pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES.keys())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    async with local_server(tmp_path_factory.mktemp("shared") / "data", sandbox="off") as server:
        blocking.deactivate()
        yield server


async def spawn_grandchild(client: Client, session: str, pid_file: Path, **options: Any) -> int:
    """Have the session's agent start a process that does not end by itself. Return its pid."""
    step = {"spawn": {"pid_file": str(pid_file), **options}}
    status, reply = await client.turn(session, script(step))
    assert status == 200, reply
    pid = int(pid_file.read_text(encoding="utf-8"))
    assert is_running(pid)
    return pid


@each_disguise
async def test_closing_a_session_ends_processes_of_its_agent(
    client: Client, tmp_path: Path, disguise: dict[str, Any]
) -> None:
    session = await client.create()
    pid = await spawn_grandchild(client, session, tmp_path / "pid", **disguise)
    status, _ = await client.delete(f"/sessions/{session}")
    assert status == 200
    assert not is_running(pid)


WITHOUT_CAPABILITIES = (
    sys.executable,
    "-ISc",
    # Root may do everything. Without its capabilities it is like an ordinary user.
    "import ctypes, os, sys; drop = ctypes.CDLL(None).prctl;"
    "[drop(24, number, 0, 0, 0) for number in range(64)]; os.execv(sys.argv[1], sys.argv[1:])",
)
HOSTILE = ("sleeps", "stopped", "headless", "restless", "watchful")


async def spawn_hostile(client: Client, session: str, folder: Path, *kinds: str) -> list[bytes]:
    """Have the session's agent start processes of those kinds. Return parts of their commands."""
    for kind in kinds:
        step = {"spawn": {"pid_file": str(folder / kind), "hostile": kind}}
        status, reply = await client.turn(session, script(step))
        assert status == 200, reply
    return [str(folder / kind).encode() for kind in kinds]


def survivors(words: list[bytes]) -> list[str]:
    """The hostile processes that have one of *words* in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"hostile.py" in line and any(word in line for word in words):
                found.append(f"{entry.name} {line.decode()}")
    return found


async def test_closing_a_session_ends_hostile_processes_but_no_neighbours(
    client: Client, tmp_path: Path
) -> None:
    session, neighbour = await client.create(), await client.create()
    other = await spawn_grandchild(client, neighbour, tmp_path / "pid", double_fork=True)
    words = await spawn_hostile(client, session, tmp_path, *HOSTILE)
    await client.delete(f"/sessions/{session}")
    assert not survivors(words)
    assert is_running(other)


async def test_hostile_processes_end_with_their_agent(client: Client, tmp_path: Path) -> None:
    session = await client.create()
    words = await spawn_hostile(client, session, tmp_path, *HOSTILE)
    await client.turn(session, script({"crash": "SIGKILL"}))
    await eventually("the hostile processes to end", lambda: not survivors(words))


async def test_process_that_kills_the_supervisor_is_ended(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    client = await new_client((await spawn(SANDBOX="off")).url, http)
    session = await client.create()
    words = [str(tmp_path / "regicide").encode()]
    step = {"spawn": {"pid_file": str(tmp_path / "regicide"), "hostile": "regicide"}}
    _, reply = await client.turn(session, script(step, {"hang": True}))
    assert reply["code"] == "agent_failed"
    await eventually("the process to end", lambda: not survivors(words))
    assert (await client.turn(session, "go on"))[0] == 200


@pytest.mark.parametrize("kind", ["operator", "detached operator"])
async def test_agent_process_is_refused_at_the_operators_socket(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path, kind: str
) -> None:
    client = await new_client((await spawn(SANDBOX="off")).url, http)
    session = await client.create()
    answer = tmp_path / "answer"
    step = {"spawn": {"pid_file": str(answer), "hostile": kind}}
    assert (await client.turn(session, script(step)))[0] == 200
    assert answer.read_text("utf-8").split()[1] == "401"


async def test_process_of_the_same_user_cannot_inspect_the_server(
    spawn: Spawn, tmp_path: Path
) -> None:
    """Nor its helpers. All run without capabilities, like a server of an ordinary user."""
    server = await spawn(wrapper=WITHOUT_CAPABILITIES, SANDBOX="off")
    helpers = [
        pid
        for pid in descendants(server.pid)
        if b"supervise.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert helpers
    names = ("environ", "mem", "maps", "fd/0")
    tried = [f"/proc/{pid}/{name}" for pid in (server.pid, *helpers) for name in names]
    program = """
import os, sys
for path in sys.argv[1:]:
    try:
        open(path, "rb").read(1)
        print(path)
    except OSError:
        pass
"""
    status, opened, _ = await run_program(
        *WITHOUT_CAPABILITIES, sys.executable, "-c", program, *tried, "/proc/self/environ"
    )
    assert (status, opened.split()) == (0, ["/proc/self/environ"])
    assert ADMIN not in environ_of(server.pid).values()


async def test_closing_a_session_leaves_processes_of_others_alone(
    client: Client, tmp_path: Path
) -> None:
    first, second = await client.create(), await client.create()
    mine = await spawn_grandchild(client, first, tmp_path / "mine", setsid=True)
    other = await spawn_grandchild(client, second, tmp_path / "other", setsid=True)
    await client.delete(f"/sessions/{first}")
    assert not is_running(mine)
    assert is_running(other)


@each_disguise
async def test_processes_of_an_agent_end_with_it(
    client: Client, tmp_path: Path, disguise: dict[str, Any]
) -> None:
    session = await client.create()
    pid = await spawn_grandchild(client, session, tmp_path / "pid", **disguise)
    _, reply = await client.turn(session, script({"crash": "SIGKILL"}))
    assert reply["code"] == "agent_failed"
    await eventually("the grandchild to end", lambda: not is_running(pid))


async def test_hibernation_ends_processes_of_the_agent(serve: Serve, tmp_path: Path) -> None:
    clock = Clock()
    server = await serve(sandbox="off", clock=clock, agent_idle_secs=10)
    client = await server.client()
    session = await client.create()
    pid = await spawn_grandchild(client, session, tmp_path / "pid", setsid=True)
    words = await spawn_hostile(client, session, tmp_path, *HOSTILE)
    clock.advance(11)
    await server.services.sessions.sweeper.sweep()
    assert not is_running(pid)
    assert not survivors(words)
    assert (await client.state(session))["agent_state"] == "hibernated"


async def test_closing_a_session_ends_an_agent_that_ignores_eof_and_sigterm(client: Client) -> None:
    session = await client.create("mock-stubborn")
    _, reply = await client.turn(session, script({"report": True}))
    pid = int(json.loads(texts_of(reply["events"]))["pid"])
    assert is_running(pid)
    await client.delete(f"/sessions/{session}")
    assert not is_running(pid)


@pytest.mark.parametrize("how", ["killed", pytest.param("stopped", marks=pytest.mark.slow)])
async def test_all_processes_end_with_the_server(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path, how: str
) -> None:
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    for index, disguise in enumerate(DISGUISES.values()):
        session = await client.create("mock-stubborn" if index % 2 else "mock")
        await spawn_grandchild(client, session, tmp_path / f"pid{index}", **disguise)
    below = descendants(server.pid)
    assert len(below) > 2 * len(DISGUISES)
    if how == "killed":
        await server.kill()
    else:
        assert await server.stop() == 0
    await eventually(
        "all descendants of the server to end", lambda: not any(map(is_running, below))
    )
