"""The limits of one app instead of the server's: in effect at once, also for what runs already."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.sessions import app_disk
from server.sessions.disk_watch import DiskWatch

from ..conftest import Serve
from ..support.harness import (
    TIMEOUT_SECS,
    Client,
    LocalServer,
    Socket,
    eventually,
    failure,
    script,
)
from ..support.runs import upload

WAITS = script({"say": "waits"}, {"wait_for": "cancel"})


async def limit(server: LocalServer, name: str, **limits: int | None) -> None:
    status, reply = await server.admin().call("PATCH", f"/admin/tokens/{name}", {"limits": limits})
    assert status == 200, reply
    assert reply.get("limits", {}) == {
        key: value for key, value in limits.items() if value is not None
    }


async def running(client: Client) -> tuple[str, Socket]:
    session = await client.create()
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt=WAITS)
    await socket.until_text("waits")
    return session, socket


async def test_sessions_are_limited_above_and_below_the_servers_limit(serve: Serve) -> None:
    server = await serve(max_sessions_per_app=2, max_sessions=5)
    client = await server.client("shop", limits={"sessions": 1})
    first = await client.create()
    failure(await client.post("/sessions", {"agent": "mock"}), 503, "pool_full")
    await limit(server, "shop", sessions=4)
    for _ in range(3):
        await client.create()
    failure(await client.post("/sessions", {"agent": "mock"}), 503, "pool_full")
    await limit(server, "shop", sessions=1)  # no session is closed for it
    assert (await client.turn(first, "hello"))[0] == 200
    await limit(server, "shop", sessions=None)
    failure(await client.post("/sessions", {"agent": "mock"}), 503, "pool_full")
    # The server's total applies to all.
    await limit(server, "shop", sessions=100)
    await client.create()
    failure(await client.post("/sessions", {"agent": "mock"}), 503, "pool_full")


async def test_prompts_are_limited_also_on_a_socket_that_is_open(server: LocalServer) -> None:
    client = await server.client("rate")
    session = await client.create()
    socket = await client.connect(session)
    await socket.turn("hello")
    await limit(server, "rate", prompts_per_min=2)
    for _ in range(2):
        await socket.send("prompt", prompt="hello")
    frame = await socket.until("error")
    assert frame["code"] == "rate_limited"
    failure(await client.turn(session, "hello"), 429, "rate_limited")
    failure(await client.post("/run", {"prompt": "hello", "agent": "mock"}), 429, "rate_limited")
    await limit(server, "rate", prompts_per_min=100)
    assert (await client.turn(session, "hello"))[0] == 200
    await limit(server, "rate", prompts_per_min=0)
    failure(await client.turn(session, "hello"), 429, "rate_limited")


async def test_working_agents_are_limited_and_idle_ones_hibernate(server: LocalServer) -> None:
    client = await server.client("agents", limits={"live_agents": 1})
    idle = await client.create()
    assert (await client.turn(idle, "hello"))[0] == 200
    session, socket = await running(client)  # the idle agent has hibernated
    assert (await client.state(idle))["agent_state"] == "hibernated"
    failure(await client.turn(idle, "hello"), 503, "pool_full")
    await socket.send("prompt", prompt="next")  # its session has an agent
    assert (await socket.until("accepted"))["queued"] is True
    await socket.send("cancel")
    await socket.until("turn_end", turn_index=2)
    assert (await client.turn(idle, "hello"))[0] == 200
    await client.until_hibernated(session)
    await limit(server, "agents", live_agents=0)
    await client.until_hibernated(idle)
    failure(await client.turn(idle, "hello"), 503, "pool_full")


async def test_lower_limit_ends_idle_agents_and_working_ones_after_their_turns(
    server: LocalServer,
) -> None:
    client = await server.client("lowered")
    idle = [await client.create() for _ in range(2)]
    for one in idle:
        await client.turn(one, "hello")
    session, socket = await running(client)
    other, second = await running(client)
    await second.send("prompt", prompt="queued")
    await limit(server, "lowered", live_agents=1)
    for one in idle:
        await client.until_hibernated(one)
    states = [(await client.state(one))["agent_state"] for one in (session, other)]
    assert states == ["live", "live"]  # no running turn is interrupted
    await second.send("cancel")
    await second.until("turn_end", turn_index=1)
    await client.until_hibernated(other)  # its queued prompt waits for the other agent
    await socket.send("cancel")
    assert (await second.until("turn_end", turn_index=2))["stop_reason"] == "end_turn"


async def test_higher_limit_starts_the_agents_that_wait(serve: Serve) -> None:
    server = await serve(max_live_agents_per_app=1)
    client = await server.client("raised")
    _, socket = await running(client)
    waiting = asyncio.create_task(client.turn(await client.create(), "hello"))
    await eventually("a prompt to wait", lambda: server.services.sessions.slots.queued == 1)
    await limit(server, "raised", live_agents=2)
    assert (await waiting)[0] == 200
    await socket.send("cancel")


async def test_runs_at_once_are_limited(server: LocalServer, tmp_path: Path) -> None:
    client = await server.client("runs", limits={"runs": 1})
    gate = tmp_path / "gate"
    body = {"agent": "mock", "prompt": script({"gate": str(gate)}, {"say": "done"})}
    first = asyncio.create_task(client.post("/run", body))
    await eventually("the run to begin", lambda: server.services.runner.running == 1)
    failure(await client.post("/run", body), 503, "pool_full")
    await limit(server, "runs", runs=2)
    second = asyncio.create_task(client.post("/run", body))
    await eventually("the second run to begin", lambda: server.services.runner.running == 2)
    gate.touch()
    assert [status for status, _ in await asyncio.gather(first, second)] == [200, 200]
    await limit(server, "runs", runs=0)
    failure(await client.post("/run", body), 503, "pool_full")


async def test_uploads_are_limited_in_bytes(server: LocalServer) -> None:
    client = await server.client("disk", limits={"disk_bytes": 10})
    await upload(client, b"12345")

    async def status_of(content: bytes) -> int:
        form = aiohttp.FormData()
        form.add_field("file", content, filename="a.txt")
        url = f"{client.url}/files"
        async with client.http.post(url, data=form, headers=client.headers()) as response:
            return response.status

    assert await status_of(b"123456") == 413
    await limit(server, "disk", disk_bytes=11)
    assert await status_of(b"123456") == 200
    assert await status_of(b"1") == 413


async def test_disk_space_counts_folders_logs_and_uploads(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FRESH_SECS", "REST_SHARE"):  # each check measures
        monkeypatch.setattr(app_disk, name, 0)
    client = await server.client("full", limits={"disk_bytes": 5 << 19})
    other = await server.client("roomy")
    session = await client.create()
    folder = Path((await client.state(session))["cwd"])
    path = f"/sessions/{session}/files/large"
    assert (await client.call("PUT", path, bytes(1 << 20)))[0] == 200
    assert (await client.call("PUT", f"{path}1", bytes(1 << 20)))[0] == 200
    failure(await client.call("PUT", f"{path}2", bytes(1 << 20)), 413, "payload_too_large")
    token = await upload(client, bytes(1 << 18))
    turn = await client.turn(session, "fits", files=[token])
    assert turn[0] == 200, turn

    # The files of an agent count as well: its turn ends, and nothing more is accepted.
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt=WAITS)
    await socket.until_text("waits")
    watch = DiskWatch(server.services.sessions)
    await watch.measure_all()
    (folder / "larger").write_bytes(bytes(2 << 20))
    await watch.measure_all()
    end = await socket.until("turn_end", turn_index=2)
    assert (end["stop_reason"], end["error"]["code"]) == ("error", "payload_too_large")
    run = {"prompt": "hello", "agent": "mock"}
    failure(await client.turn(session, "again"), 413, "payload_too_large")
    failure(await client.post(f"/sessions/{session}/fork"), 413, "payload_too_large")
    failure(await client.post("/run", run), 413, "payload_too_large")
    assert (await other.post("/run", run))[0] == 200

    # A log counts, too. The server's own watch measures at any time.
    (folder / "larger").write_bytes(b"")
    async with asyncio.timeout(TIMEOUT_SECS):
        while (await client.turn(session, "again"))[0] != 200:
            pass
    says = script(*[{"say": "x" * 60_000}] * 15)
    assert (await client.turn(session, says))[0] in (200, 413)
    failure(await client.turn(session, "again"), 413, "payload_too_large")
    await client.delete(f"/sessions/{session}?purge=true")
    assert (await client.turn(await client.create(), "again"))[0] == 200


async def test_limits_survive_a_restart(serve: Serve) -> None:
    server = await serve()
    client = await server.client("shop", limits={"sessions": 1, "runs": None})
    await client.create()
    await server.stop()
    server = await serve()
    client = Client(server.url, client.token, client.http)
    failure(await client.post("/sessions", {"agent": "mock"}), 503, "pool_full")
    _, reply = await server.admin().get("/admin/tokens")
    shown = {token["name"]: token.get("limits") for token in reply["tokens"]}
    assert shown["shop"] == {"sessions": 1}


@pytest.mark.parametrize("limits", [{"session": 1}, {"runs": -1}, {"runs": "1"}, [], 1])
async def test_invalid_limits_are_refused(server: LocalServer, limits: Any) -> None:
    body = {"name": "odd", "limits": limits}
    failure(await server.admin().post("/admin/tokens", body), 400, "bad_request")


async def test_revocation_closes_the_sessions_of_the_app_if_asked(server: LocalServer) -> None:
    client = await server.client("leaving")
    other = await server.client("staying")
    kept = await other.create()
    session, socket = await running(client)
    idle = await client.create()
    _, reply = await server.admin().delete("/admin/tokens/leaving?close_sessions=true")
    assert reply["closed_sessions"] == 2
    assert await socket.until_closed() in (4503, 4508)
    assert (await other.state(kept))["state"] == "idle"
    again = await server.client("leaving")
    for one in (session, idle):
        assert (await again.state(one))["close_reason"] == "admin"
    entries = await again.events(session)
    assert [entry["type"] for entry in entries[-2:]] == ["turn_end", "session_closed"]
    _, reply = await server.admin().delete("/admin/tokens/leaving")
    assert "closed_sessions" not in reply
    failure(
        await server.admin().delete("/admin/tokens/leaving?close_sessions=true"), 404, "not_found"
    )
