"""No process outlives its owner, however it hides: session, agent or server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from .conftest import Serve, Spawn
from .harness import (
    Client,
    Clock,
    descendants,
    eventually,
    is_running,
    new_client,
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


async def spawn_grandchild(client: Client, session: str, pid_file: Path, **options: Any) -> int:
    """Have the session's agent start a process that wants to stay; its pid."""
    step = {"spawn": {"pid_file": str(pid_file), **options}}
    status, reply = await client.turn(session, script(step))
    assert status == 200, reply
    pid = int(pid_file.read_text(encoding="utf-8"))
    assert is_running(pid)
    return pid


@each_disguise
async def test_closing_a_session_ends_what_its_agent_started(
    client: Client, tmp_path: Path, disguise: dict[str, Any]
) -> None:
    session = await client.create()
    pid = await spawn_grandchild(client, session, tmp_path / "pid", **disguise)
    status, _ = await client.delete(f"/sessions/{session}")
    assert status == 200
    assert not is_running(pid)


async def test_a_neighbours_processes_are_left_alone(client: Client, tmp_path: Path) -> None:
    first, second = await client.create(), await client.create()
    mine = await spawn_grandchild(client, first, tmp_path / "mine", setsid=True)
    other = await spawn_grandchild(client, second, tmp_path / "other", setsid=True)
    await client.delete(f"/sessions/{first}")
    assert not is_running(mine)
    assert is_running(other)


@each_disguise
async def test_an_agent_that_dies_takes_what_it_started_along(
    client: Client, tmp_path: Path, disguise: dict[str, Any]
) -> None:
    session = await client.create()
    pid = await spawn_grandchild(client, session, tmp_path / "pid", **disguise)
    _, reply = await client.turn(session, script({"crash": "SIGKILL"}))
    assert reply["code"] == "agent_failed"
    await eventually("the grandchild to end", lambda: not is_running(pid))


async def test_hibernation_ends_what_the_agent_started(serve: Serve, tmp_path: Path) -> None:
    clock = Clock()
    server = await serve(clock=clock, agent_idle_secs=10)
    client = await server.client()
    session = await client.create()
    pid = await spawn_grandchild(client, session, tmp_path / "pid", setsid=True)
    clock.advance(11)
    await server.services.sessions.sweep()
    assert not is_running(pid)
    assert (await client.state(session))["agent_state"] == "hibernated"


async def test_closing_ends_an_agent_that_ignores_eof_and_sigterm(client: Client) -> None:
    session = await client.create("mock-stubborn")
    _, reply = await client.turn(session, script({"report": True}))
    pid = int(json.loads(texts_of(reply["events"]))["pid"])
    assert is_running(pid)
    await client.delete(f"/sessions/{session}")
    assert not is_running(pid)


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_nothing_outlives_the_server(
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
    await eventually("all below the server to end", lambda: not any(map(is_running, below)))
