"""The notifications that systemd receives: a stand-in reads NOTIFY_SOCKET."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from server.commands.unit import unit
from server.service_manager import ServiceManager

from .conftest import Spawn
from .support.harness import ROOT, TIMEOUT_SECS, eventually


class Systemd:
    """A stand-in for systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    async def next(self) -> str:
        async with asyncio.timeout(TIMEOUT_SECS):
            data = await asyncio.get_running_loop().sock_recv(self.socket, 4096)
        return data.decode()

    async def until(self, assignment: str) -> str:
        while assignment not in (found := await self.next()).split("\n"):
            pass
        return found

    def waiting(self) -> list[str]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.socket.recv(4096).decode())
        return found


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    found = Systemd(str(tmp_path / "notify"))
    yield found
    found.socket.close()


async def test_server_reports_readiness_watchdog_and_stop(
    spawn: Spawn, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, http: aiohttp.ClientSession
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.socket.getsockname()))
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    server = await spawn()
    ready = await systemd.until("READY=1")
    assert "STATUS=listening on port " in ready
    async with http.get(f"{server.url}/readyz") as response:
        assert response.status == 200
    for _ in range(3):
        await systemd.until("WATCHDOG=1")
    # A process that does not run sends nothing.
    os.kill(server.pid, signal.SIGSTOP)
    stat = Path(f"/proc/{server.pid}/stat")
    await eventually("the stop", lambda: ") T " in stat.read_text("utf-8"))
    systemd.waiting()
    await asyncio.sleep(0.4)
    assert systemd.waiting() == []
    os.kill(server.pid, signal.SIGCONT)
    await systemd.until("WATCHDOG=1")
    stopping = asyncio.create_task(server.stop())
    await systemd.until("STOPPING=1")
    assert await stopping == 0


async def test_blocked_event_loop_does_not_reset_the_watchdog(systemd: Systemd) -> None:
    environ = {"NOTIFY_SOCKET": systemd.socket.getsockname(), "WATCHDOG_USEC": "60000"}
    feeding = asyncio.create_task(ServiceManager(environ).feed_watchdog())
    await systemd.until("WATCHDOG=1")
    await systemd.until("WATCHDOG=1")
    systemd.waiting()
    time.sleep(0.2)  # noqa: ASYNC251 - the loop is to be blocked
    assert systemd.waiting() == []
    await systemd.until("WATCHDOG=1")
    feeding.cancel()


async def test_reload_is_reported_with_its_time(systemd: Systemd) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": systemd.socket.getsockname()})
    manager.is_reloading()
    assert re.search(r"^MONOTONIC_USEC=\d+$", await systemd.until("RELOADING=1"), re.MULTILINE)


async def test_abstract_socket_is_supported(tmp_path: Path) -> None:
    address = f"@{tmp_path}"
    systemd = Systemd(address)
    ServiceManager({"NOTIFY_SOCKET": address}).is_stopping()
    await systemd.until("STOPPING=1")
    systemd.socket.close()


def test_nothing_is_sent_without_a_service_manager(tmp_path: Path) -> None:
    ServiceManager({}).is_stopping()
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "none")}).is_stopping()
    of_another = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    assert ServiceManager(of_another).watchdog_secs == 0
    assert ServiceManager({**of_another, "WATCHDOG_PID": ""}).watchdog_secs == 1


def test_systemd_unit_equals_the_documented_one() -> None:
    text = (ROOT / "docs" / "howto" / "operations.md").read_text("utf-8")
    [shown] = re.findall(r"<!-- the unit -->\n```ini\n(.*?)```", text, re.DOTALL)
    folder = Path("/srv/clawdforge")
    assert shown == unit("clawdforge", folder, f"{folder}/.venv/bin/python -m server")
    with pytest.raises(ValueError, match="cannot contain"):
        unit("me\nExecStart=/bin/sh", folder, "x")
