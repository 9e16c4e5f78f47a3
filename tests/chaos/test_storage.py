"""A full disk and a locked database: no accepted work is lost, and the server recovers."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.harness import Client, Json, ServerProcess, Socket, new_client, script
from .conftest import Scenario


async def send_prompt(socket: Socket, n: int) -> str | None:
    """Send prompt number *n*. Returns the error code, or None if it was accepted."""
    await socket.send("prompt", id=f"p{n}", prompt=f"prompt {n}")
    while (frame := await socket.next()) is not None:
        if frame["type"] == "accepted" and frame["id"] == f"p{n}":
            return None
        if frame["type"] == "error" and frame["id"] == f"p{n}":
            assert frame["retryable"]
            return str(frame["code"])
    raise AssertionError(f"closed with {socket.close_code}")


async def upload(client: Client, http: aiohttp.ClientSession) -> tuple[int, Json]:
    """Upload a file. Returns the status and the body of the response."""
    form = aiohttp.FormData()
    form.add_field("file", b"x" * 100_000, filename="big")
    async with http.post(f"{client.url}/files", data=form, headers=client.headers()) as response:
        return response.status, await response.json()


async def check_log(client: Client, session: str, accepted: set[str], socket: Socket) -> None:
    """Check that each accepted prompt ran once, and that the socket got the stored entries."""
    stored = await client.events(session)
    assert [entry["seq"] for entry in stored] == list(range(1, len(stored) + 1))
    for entry in socket.entries:
        assert stored[entry["seq"] - 1] == entry
    starts = [entry["id"] for entry in stored if entry["type"] == "turn_start"]
    ends = [entry for entry in stored if entry["type"] == "turn_end"]
    assert sorted(filter(None, starts)) == sorted(accepted)
    assert len(starts) == len(ends)


async def until_ended(socket: Socket, turns: int) -> None:
    """Read until *turns* turns have ended."""
    while sum(entry["type"] == "turn_end" for entry in socket.entries) < turns:
        assert await socket.next() is not None


@contextlib.contextmanager
def locked(server: ServerProcess, folder: Path) -> Iterator[None]:
    """Hold the write lock of the database in this process."""
    with contextlib.closing(sqlite3.connect(folder / "clawdforge.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


@contextlib.contextmanager
def full(server: ServerProcess, folder: Path) -> Iterator[None]:
    """Limit the file size, so that the server cannot extend any file."""
    limits = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limits)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [locked, full])
async def test_writes_fail(
    chaos: Scenario,
    spawn: Spawn,
    http: aiohttp.ClientSession,
    tmp_path: Path,
    fault: Callable[[ServerProcess, Path], contextlib.AbstractContextManager[None]],
) -> None:
    """While writes fail, requests are refused and accepted work is kept; then service resumes."""
    rounds = chaos.size(1, 5)
    folder = tmp_path / "data"
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    socket = await client.connect(session)
    accepted: set[str] = set()
    refused = 0
    for n in range(rounds):
        gate = tmp_path / f"gate-{n}"
        steps = script({"say": "before"}, {"gate": str(gate)}, {"burst": {"count": 500}})
        await socket.send("prompt", id=f"run{n}", prompt=steps)
        await socket.until("accepted", id=f"run{n}")
        accepted.add(f"run{n}")
        await socket.until_text("before")
        with fault(server, folder):
            gate.touch()  # the agent continues to write
            # Concurrent requests, because each of them waits for the lock.
            code, *replies = await asyncio.gather(
                send_prompt(socket, n),
                upload(client, http),
                client.post(f"/sessions/{session}/turn", {"prompt": "by REST"}),
                client.post("/sessions", {"agent": "mock"}),
            )
            assert code == "internal"
            assert [(status, reply["code"]) for status, reply in replies] == [(500, "internal")] * 3
            refused += 4
            assert (await client.get("/healthz"))[0] == 200
        assert await send_prompt(socket, n) is None
        accepted.add(f"p{n}")
        await until_ended(socket, len(accepted))
    await check_log(client, session, accepted, socket)
    assert not list((folder / "uploads").iterdir())
    assert [found.name for found in (folder / "workspaces").iterdir()] == [session]
    chaos.record(
        fault=fault.__name__, rounds=rounds, refused=refused, accepted_and_run=len(accepted), lost=0
    )
