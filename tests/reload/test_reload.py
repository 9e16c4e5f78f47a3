"""A server process that is reloaded while agents work."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.engine import only_sqlite
from ..support.harness import (
    ADMIN,
    ROOT,
    Client,
    ServerProcess,
    eventually,
    failure,
    new_client,
    script,
    texts_of,
)
from ..support.raw_socket import open_connection, read_head
from ..support.runs import make_fake_claude, steps
from .following import following, reload

pytestmark = only_sqlite
"""A node of a cluster is not reloaded: it is drained, and another one takes its place."""

STREAM = {"burst": {"count": 1_000_000, "text": " ", "batch": 5, "pause_ms": 10}}


async def healthz(connection: socket.socket) -> int:
    """The status of a request on *connection*, which stays open."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head, body = await read_head(connection)
    assert head, "the server has closed the connection"
    missing = int(head.lower().partition(b"content-length: ")[2].split()[0]) - len(body)
    while missing > 0:
        missing -= len(await loop.sock_recv(connection, missing))
    return int(head.split()[1])


async def test_connections_without_a_request_stay_open(spawn: Spawn) -> None:
    server = await spawn()
    with contextlib.ExitStack() as closing:
        used, fresh, partial = [
            closing.enter_context(await open_connection(server.url)) for _ in range(3)
        ]
        loop = asyncio.get_running_loop()
        assert await healthz(used) == 200
        await loop.sock_sendall(partial, b"GET /heal")
        assert await healthz(used) == 200  # so the server has read the beginning of that request
        for _ in range(2):
            await reload(server.url)
            assert [await healthz(one) for one in (used, fresh)] == [200, 200]
        with contextlib.suppress(ConnectionError):
            assert await loop.sock_recv(partial, 100) == b""


async def test_request_on_an_open_connection_is_answered_during_a_reload(spawn: Spawn) -> None:
    server = await spawn()
    with await open_connection(server.url) as connection:
        reloading = asyncio.create_task(reload(server.url))
        while not reloading.done():
            assert await healthz(connection) == 200
        await reloading
        assert await healthz(connection) == 200


async def test_streaming_turn_and_waiting_permission_survive(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn()
    client = await new_client(server.url, http)
    streaming, asking = await client.create(), await client.create(permission="ask")
    async with following(client, streaming, asking) as (stream, ask):
        await stream.socket.send("prompt", prompt=script(STREAM))
        await stream.socket.send("prompt", id="next", prompt=script({"say": "queued"}))
        await ask.socket.send("prompt", prompt=script({"permission": True}))
        request = await ask.until_kind("permission_request")
        await stream.until_more()

        for count in (1, 2):
            assert (await reload(server.url))["reloads"] == count
            await stream.until_more()
        await stream.until_more()
        assert {bye["code"] for bye in (*stream.byes, *ask.byes)} == {1012}
        assert all(0 < bye["retry_after_ms"] <= 200 for bye in (*stream.byes, *ask.byes))

        await stream.socket.send("cancel")
        assert (await stream.until_kind("turn_end"))["stop_reason"] == "cancelled"
        assert (await stream.until_kind("turn_end", 2))["stop_reason"] == "end_turn"
        *numbered, last = stream.texts()
        assert numbered == [f"{n}: " for n in range(len(numbered))]
        assert last == "queued"

        [pending] = (await client.state(asking))["pending_permissions"]
        assert pending["request_id"] == request["request_id"]
        option = pending["request"]["options"][0]["optionId"]
        about = {"request_id": request["request_id"], "option_id": option}
        await ask.socket.send("permission", **about)
        assert (await ask.until_kind("permission_resolved"))["by"] == "client"
        assert (await ask.until_kind("turn_end"))["stop_reason"] == "end_turn"
        for follower in (stream, ask):
            follower.check()
    assert server.process.returncode is None


async def run_command(folder: Path, data_dir: Path, *arguments: str) -> tuple[int, str]:
    """Run ``python -m server reload`` in *folder*. Return its status, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", "reload", *arguments),
        cwd=folder,
        env={"CLAWDFORGE_DATA_DIR": str(data_dir), "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.slow
async def test_broken_version_leaves_the_old_one_serving(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    program, data = tmp_path / "program", tmp_path / "data"
    shutil.copytree(ROOT / "server", program / "server")  # with the compiled code
    (program / "node_modules").symlink_to(ROOT / "node_modules")
    (program / "static").symlink_to(ROOT / "static")
    settings, module = program / ".env", program / "server" / "ws" / "hub.py"
    server: ServerProcess = await spawn(folder=program, DRAIN_SECS="1")
    client = await new_client(server.url, http)
    async with following(client, await client.create()) as (stream,):
        await stream.socket.send("prompt", prompt=script(STREAM))
        await stream.until_more()

        settings.write_text("CLAWDFORGE_MAX_QUEUED_TURNS=many\n")
        status, said = await run_command(program, data)
        assert status != 0
        assert "CLAWDFORGE_MAX_QUEUED_TURNS" in said

        # The new version would find none of the sessions in an empty database.
        settings.write_text(
            "CLAWDFORGE_CLUSTER_URL=postgresql://x:secret@127.0.0.1:1/x\n"
            f"CLAWDFORGE_SHARED_DIR={tmp_path}\n"
        )
        status, said = await run_command(program, data)
        assert status != 0
        assert "CLAWDFORGE_CLUSTER_URL has changed" in said
        assert "secret" not in said

        settings.write_text("CLAWDFORGE_MAX_QUEUED_TURNS=1\n")
        source = module.read_text()
        module.write_text(source + "\nbroken(\n")
        server.process.send_signal(signal.SIGHUP)
        log = tmp_path / "server.log"
        await eventually("the reason in the log", lambda: "not reloaded" in log.read_text())
        assert "SyntaxError" in log.read_text()
        await stream.until_more()
        assert not stream.byes

        module.write_text(source)
        status, said = await run_command(program, data)
        assert (status, "took over" in said) == (0, True), said
        await stream.until_more()
        await stream.socket.send("prompt", id="first", prompt="hi")

        async def is_queued() -> bool:
            return bool((await client.state(stream.session_id))["queued"])

        await eventually("the prompt to wait", is_queued)
        failure(await client.turn(stream.session_id, "hi"), 429, "queue_full")
        stream.check()


async def test_waiting_request_gets_the_result_of_its_turn(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn(CLAUDE_BIN=make_fake_claude(tmp_path))
    client = await new_client(server.url, http)
    session, gate = await client.create(), tmp_path / "gate"
    prompt = script({"say": "before"}, {"gate": str(gate)}, {"say": " and after"})
    turn = asyncio.create_task(client.turn(session, prompt))
    async with following(client, session) as (stream,):
        await stream.until(lambda entry: "before" in str(entry))
        await reload(server.url)
        gate.touch()
        status, reply = await turn
        assert (status, reply["turn_index"], reply["stop_reason"]) == (200, 1, "end_turn")
        assert texts_of(reply["events"]) == "before and after"
        await stream.until_kind("turn_end")
        stream.check()
    assert (await client.state(session))["turn_count"] == 1
    await _check_that_reload_waits_for_run(client, tmp_path / "run")


async def _check_that_reload_waits_for_run(client: Client, gate: Path) -> None:
    begun = gate.with_suffix(".begun")
    prompt = steps({"touch": str(begun)}, {"gate": str(gate)}, {"result": "4"})
    run = asyncio.create_task(client.post("/run", {"prompt": prompt}))
    await eventually("the run to begin", begun.exists)
    reloading = asyncio.create_task(reload(client.url))
    admin = Client(client.url, ADMIN, client.http)

    async def is_waiting() -> bool:
        return bool((await admin.get("/admin/reload"))[1]["reloading"])

    await eventually("the reload to wait", is_waiting)
    await client.create()  # the server refuses nothing meanwhile
    gate.touch()
    status, reply = await run
    assert (status, reply["result"]) == (200, 4)
    assert (await reloading)["reloads"] == 2
