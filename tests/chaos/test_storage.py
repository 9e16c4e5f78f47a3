"""The disk is full, the database is locked: nothing acknowledged is lost, and service returns."""

from __future__ import annotations

import resource
import sqlite3
from pathlib import Path

import aiohttp

from ..conftest import Spawn
from ..harness import Client, Json, Socket, eventually, new_client, script
from .conftest import Scenario


async def refused_and_accepted(client: Client, session: str, socket: Socket, n: int) -> str | None:
    """Ask by socket, and again by REST; the error's code, None where it was accepted."""
    await socket.send("prompt", id=f"p{n}", prompt=f"prompt {n}")
    while (frame := await socket.next()) is not None:
        if frame["type"] == "accepted" and frame["id"] == f"p{n}":
            return None
        if frame["type"] == "error" and frame["id"] == f"p{n}":
            assert frame["retryable"]
            assert "store" in frame["message"]
            return str(frame["code"])
    raise AssertionError(f"closed with {socket.close_code}")


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


async def until_all_ended(client: Client, session: str) -> None:
    async def idle() -> bool:
        state = await client.state(session)
        return state["state"] == "idle" and not state["queued"]

    await eventually("the turns to end", idle)


async def test_a_locked_database(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """While another process locks the database, prompts are refused; nothing accepted is lost."""
    rounds = chaos.size(1, 5)
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    socket = await client.connect(session)
    accepted: set[str] = set()
    refused = 0
    for n in range(rounds):
        gate = tmp_path / f"gate-{n}"
        running: Json = {"gate": str(gate)}
        await socket.send(
            "prompt",
            id=f"run{n}",
            prompt=script({"say": "before"}, running, {"burst": {"count": 500, "text": "x"}}),
        )
        await socket.until("accepted", id=f"run{n}")
        accepted.add(f"run{n}")
        await socket.until_text("before")
        with sqlite3.connect(tmp_path / "data" / "clawdforge.db", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            gate.touch()  # the agent writes on into a database that takes nothing
            assert await refused_and_accepted(client, session, socket, n) == "internal"
            refused += 1
            status, reply = await client.turn(session, "by REST")
            assert (status, reply["code"]) == (500, "internal")
            assert (await client.get("/healthz"))[0] == 200
            assert (await client.state(session))["closed_at"] is None
            other.execute("ROLLBACK")
        other.close()
        assert await refused_and_accepted(client, session, socket, n) is None
        accepted.add(f"p{n}")
        await socket.until("turn_end")
    await until_all_ended(client, session)
    await check_the_log(client, session, accepted, socket)
    chaos.measured(rounds=rounds, refused=refused, accepted_and_run=len(accepted), lost=0)


async def test_a_full_disk(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """While the disk takes nothing, prompts and uploads are refused; service returns by itself."""
    rounds = chaos.size(1, 5)
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    socket = await client.connect(session)
    accepted: set[str] = set()
    refused = 0
    for n in range(rounds):
        gate = tmp_path / f"gate-{n}"
        await socket.send(
            "prompt",
            id=f"run{n}",
            prompt=script({"say": "before"}, {"gate": str(gate)}, {"burst": {"count": 500}}),
        )
        await socket.until("accepted", id=f"run{n}")
        accepted.add(f"run{n}")
        await socket.until_text("before")
        unlimited = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (4096, unlimited[1]))
        gate.touch()
        assert await refused_and_accepted(client, session, socket, n) == "internal"
        form = aiohttp.FormData()
        form.add_field("file", b"x" * 100_000, filename="big")
        async with http.post(f"{client.url}/files", data=form, headers=client.headers()) as reply:
            assert reply.status == 500
        status, reply_body = await client.post("/sessions", {"agent": "mock"})
        assert (status, reply_body["code"]) == (500, "internal")
        refused += 3
        assert (await client.get("/healthz"))[0] == 200
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, unlimited)
        assert await refused_and_accepted(client, session, socket, n) is None
        accepted.add(f"p{n}")
        await socket.until("turn_end")
    await until_all_ended(client, session)
    await check_the_log(client, session, accepted, socket)
    uploads = tmp_path / "data" / "uploads"
    assert not list(uploads.rglob("*"))
    workspaces = list((tmp_path / "data" / "workspaces").iterdir())
    assert [folder.name for folder in workspaces] == [session]
    chaos.measured(rounds=rounds, refused=refused, accepted_and_run=len(accepted), lost=0)
