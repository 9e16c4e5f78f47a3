"""Monitoring: /healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp

from server.web.health import HealthMonitor

from ..conftest import Serve, Spawn
from ..support.harness import (
    Client,
    Deadline,
    Json,
    LocalServer,
    descendants,
    eventually,
    is_running,
    new_client,
    script,
)


def program(path: Path, body: str) -> str:
    """An executable Python script."""
    path.write_text(f"#!{sys.executable} -IS\n{body}\n")
    path.chmod(0o755)
    return str(path)


async def healthz(server: LocalServer) -> Json:
    status, reply = await server.anonymous().get("/healthz")
    assert status == 200
    return reply


async def test_healthz_needs_no_token_and_lists_components(server: LocalServer) -> None:
    reply = await healthz(server)
    assert reply["ok"] is True
    assert isinstance(reply["claude_present"], bool)
    assert (reply["acpx_present"], reply["acpx_version"]) == (True, "0.19.1")
    assert reply["open_sessions"] == 0
    assert reply["uptime_secs"] >= 0


async def test_healthz_counts_open_sessions_of_all_apps(server: LocalServer) -> None:
    one, two = await server.client("one"), await server.client("two")
    first = await one.create()
    await two.create()
    assert (await healthz(server))["open_sessions"] == 2
    await one.delete(f"/sessions/{first}")
    assert (await healthz(server))["open_sessions"] == 1


async def test_healthz_reports_version_of_claude(serve: Serve, tmp_path: Path) -> None:
    claude = program(tmp_path / "claude", 'print("2.7.18 (Claude Code)")')
    server = await serve(claude_bin=claude)

    async def probed() -> Any:
        return (await healthz(server))["claude_version"]

    assert await eventually("the probe", probed) == "2.7.18"
    assert (await healthz(server))["claude_present"] is True


async def test_healthz_reports_missing_claude(serve: Serve) -> None:
    server = await serve(claude_bin="no-such-program-anywhere")
    reply = await healthz(server)
    assert (reply["claude_present"], reply["claude_version"]) == (False, None)


async def test_healthz_does_not_wait_for_hanging_program(serve: Serve, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    claude = program(
        tmp_path / "claude",
        f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(1000)",
    )
    server = await serve(claude_bin=claude)
    pid = await eventually("the probe", lambda: pid_file.exists() and pid_file.read_text())
    async with Deadline("ten answers"):  # the program sleeps for longer
        for _ in range(10):
            await healthz(server)
    reply = await healthz(server)
    assert (reply["claude_present"], reply["claude_version"]) == (True, None)
    await server.stop()
    await eventually("the program to end with the server", lambda: not is_running(int(pid)))


async def test_program_that_timed_out_is_probed_again(tmp_path: Path) -> None:
    been = tmp_path / "been"
    claude = tmp_path / "claude"  # for the shell, which starts soon enough on a busy machine
    claude.write_text(
        f"#!/bin/sh\n[ -e '{been}' ] || {{ : >'{been}'; exec sleep 1000; }}\necho 2.7.18\n"
    )
    claude.chmod(0o755)
    health = HealthMonitor(str(claude), every=0.01, timeout=1)
    watching = asyncio.create_task(health.watch())
    assert await eventually("the second probe", lambda: health.claude_version) == "2.7.18"
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_healthz_responds_during_burst(server: LocalServer, client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"burst": {"count": 3000}}))
    await socket.until("turn_start")
    await healthz(server)
    await socket.until("turn_end")


async def test_readyz_reports_readiness(server: LocalServer) -> None:
    anonymous = server.anonymous()
    assert (await anonymous.get("/readyz"))[0] == 200
    server.services.health.ready = False
    status, reply = await anonymous.get("/readyz")
    assert (status, reply["ok"], reply["code"]) == (503, False, "draining")
    assert int(anonymous.last_headers["Retry-After"]) > 0
    assert (await anonymous.get("/healthz"))[0] == 200


async def test_draining_server_is_not_ready_and_refuses_work(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn()
    client = await new_client(server.url, http)
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"gate": "go"}))
    await socket.until("turn_start")
    workspace = Path((await client.state(session))["cwd"])
    below = descendants(server.pid)
    server.process.send_signal(signal.SIGTERM)
    assert await socket.until_closed() == 1012

    async with aiohttp.ClientSession() as fresh:  # no connection of before
        late = Client(server.url, client.token, fresh)
        assert (await late.get("/readyz"))[0] == 503
        assert (await late.get("/healthz"))[0] == 200
        for path, body in (
            ("/sessions", {"agent": "mock"}),
            (f"/sessions/{session}/turn", {"prompt": "hello"}),
            ("/run", {"prompt": "hello"}),
        ):
            status, reply = await late.post(path, body)
            assert (status, reply["code"]) == (503, "draining")
            assert int(late.last_headers["Retry-After"]) > 0
        latecomer = await late.connect(session, ready=False)
        assert await latecomer.until_closed() == 1012
    (workspace / "go").touch()
    assert await server.stop() == 0
    assert not any(map(is_running, below))


async def test_metrics_are_prometheus_text_for_the_admin(
    server: LocalServer, client: Client
) -> None:
    await client.create()
    url, headers = f"{server.url}/metrics", server.admin().headers()
    async with client.http.get(url, headers=headers) as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        text = await response.text()
    assert "\nclawdforge_open_sessions 1.0\n" in text
    assert (await client.get("/metrics"))[0] == 403
    assert (await server.anonymous().get("/metrics"))[0] == 401
