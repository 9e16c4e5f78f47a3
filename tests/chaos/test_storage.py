"""The disk is full, the database is locked: nothing acknowledged is lost, and service returns."""

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


async def ask(socket: Socket, n: int) -> str | None:
    """Send the prompt of that number; the error's code, None where it was accepted."""
    await socket.send("prompt", id=f"p{n}", prompt=f"prompt {n}")
    while (frame := await socket.next()) is not None:
        if frame["type"] == "accepted" and frame["id"] == f"p{n}":
            return None
        if frame["type"] == "error" and frame["id"] == f"p{n}":
            assert frame["retryable"]
            assert "store" in frame["message"]
            return str(frame["code"])
    raise AssertionError(f"closed with {socket.close_code}")


async def upload(client: Client, http: aiohttp.ClientSession) -> tuple[int, Json]:
    """Upload a file; the response's status and body."""
    form = aiohttp.FormData()
    form.add_field("file", b"x" * 100_000, filename="big")
    async with http.post(f"{client.url}/files", data=form, headers=client.headers()) as response:
        return response.status, await response.json()


async def check_the_log(client: Client, session: str, accepted: set[str], socket: Socket) -> None:
    """Every accepted prompt has run once, and what the socket saw is what is stored."""
    stored = await client.events(session)
    assert [entry["seq"] for entry in stored] == list(range(1, len(stored) + 1))
    for entry in socket.entries:
        assert stored[entry["seq"] - 1] == entry
    starts = [entry["id"] for entry in stored if entry["type"] == "turn_start"]
    ends = [entry for entry in stored if entry["type"] == "turn_end"]
    assert sorted(filter(None, starts)) == sorted(accepted)
    assert len(starts) == len(ends)


async def until_ended(socket: Socket, turns: int) -> None:
    """Read on until so many turns have ended."""
    while sum(entry["type"] == "turn_end" for entry in socket.entries) < turns:
        assert await socket.next() is not None


@contextlib.contextmanager
def locked(server: ServerProcess, folder: Path) -> Iterator[None]:
    """Another process holds the database's write lock."""
    with contextlib.closing(sqlite3.connect(folder / "clawdforge.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


@contextlib.contextmanager
def full(server: ServerProcess, folder: Path) -> Iterator[None]:
    """The server can make no file longer."""
    limits = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("fault", [locked, full])
async def test_nothing_can_be_stored(
    chaos: Scenario,
    spawn: Spawn,
    http: aiohttp.ClientSession,
    tmp_path: Path,
    fault: Callable[[ServerProcess, Path], contextlib.AbstractContextManager[None]],
) -> None:
    """While nothing can be stored, all is refused and nothing accepted is lost; then it goes on."""
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
            gate.touch()  # the agent writes on
            # All at once: asked one after the other, each would wait for the lock by itself.
            code, *replies = await asyncio.gather(
                ask(socket, n),
                upload(client, http),
                client.post(f"/sessions/{session}/turn", {"prompt": "by REST"}),
                client.post("/sessions", {"agent": "mock"}),
            )
            assert code == "internal"
            assert [(status, reply["code"]) for status, reply in replies] == [(500, "internal")] * 3
            refused += 4
            assert (await client.get("/healthz"))[0] == 200
        assert await ask(socket, n) is None
        accepted.add(f"p{n}")
        await until_ended(socket, len(accepted))
    await check_the_log(client, session, accepted, socket)
    assert not list((folder / "uploads").iterdir())
    assert [found.name for found in (folder / "workspaces").iterdir()] == [session]
    chaos.measured(
        fault=fault.__name__, rounds=rounds, refused=refused, accepted_and_run=len(accepted), lost=0
    )
