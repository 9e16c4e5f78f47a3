"""Signals and failures in the middle of a reload."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.harness import ADMIN, Client, eventually, new_client, script
from ..support.runs import make_fake_claude, steps
from .following import following, reload
from .test_reload import STREAM

pytestmark = pytest.mark.slow


def make_interpreter(folder: Path) -> Path:
    """A virtual environment whose interpreter can be removed."""
    program = folder / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.symlink_to(Path(sys.executable).resolve())
    (folder / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    return program


async def test_failed_exec_and_signals_leave_the_server_serving(
    spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    program, gate, begun = make_interpreter(tmp_path / "venv"), tmp_path / "gate", tmp_path / "run"
    server = await spawn(
        wrapper=("/bin/sh", "-c", f'shift; exec {program} "$@"', "sh"),
        CLAUDE_BIN=make_fake_claude(tmp_path),
        DRAIN_SECS="1",
    )
    client, admin = await new_client(server.url, http), Client(server.url, ADMIN, http)
    async with following(client, await client.create()) as (stream,):
        await stream.socket.send("prompt", prompt=script(STREAM))
        await stream.until_more()
        prompt = steps({"touch": str(begun)}, {"gate": str(gate)}, {"result": "4"})
        run = asyncio.create_task(client.post("/run", {"prompt": prompt}))
        await eventually("the run to begin", begun.exists)
        status, _ = await admin.post("/admin/reload")  # tried, and waits for the run
        assert status == 200
        program.unlink()
        gate.touch()
        assert (await run)[0] == 200
        log = tmp_path / "server.log"
        await eventually("the failure", lambda: "cannot be executed" in log.read_text())
        assert (await admin.get("/admin/reload"))[1]["failure"]
        await stream.until_more()

        program.symlink_to(Path(sys.executable).resolve())
        assert (await reload(server.url))["reloads"] == 1
        await stream.until_more()
        byes = len(stream.byes)
        for _ in range(2):
            server.process.send_signal(signal.SIGHUP)
        await eventually("the third bye", lambda: len(stream.byes) > byes)
        for _ in range(20):
            server.process.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.02)
        await stream.until_more()
        stream.check()
        assert not [entry for entry in stream.entries if entry["type"] == "turn_end"]


@pytest.mark.parametrize("delay", [0, 0.1, 0.6])
async def test_stop_in_the_middle_of_a_reload_stops_the_server(
    spawn: Spawn, http: aiohttp.ClientSession, delay: float
) -> None:
    server = await spawn(DRAIN_SECS="1")
    client = await new_client(server.url, http)
    socket = await client.connect(await client.create())
    server.process.send_signal(signal.SIGHUP)
    while (frame := await socket.next()) is not None and frame["type"] != "bye":
        pass
    await asyncio.sleep(delay)  # while parts stop, or modules are imported
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(server.process.wait(), 30) == 0
