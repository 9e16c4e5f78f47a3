"""Recovery from reloads, a lost network, and a killed server."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from ..support.harness import ServerProcess, http_session, new_client, script, start_server
from .conftest import OpenTab
from .tab import Tab

Json = dict[str, Any]


@pytest.mark.slow
async def test_reload_during_a_turn_loses_nothing(tab: Tab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    burst = {"burst": {"count": 200, "text": " word\n\n", "batch": 1, "pause_ms": 2}}
    await tab.say(script({"say": "start\n\n"}, burst, {"gate": str(gate)}, {"say": "end"}))
    await expect(tab.answer("start")).to_be_visible()
    await tab.page.reload()
    await expect(tab.page.locator(".message")).to_contain_text("199: word")
    gate.touch()
    await tab.settled()
    message = tab.page.locator(".message")
    await expect(message).to_contain_text(re.compile(r"end\s*$"))
    text = await message.inner_text()
    assert re.findall(r"(\d+): word", text) == [str(n) for n in range(200)]
    assert text.rstrip().endswith("end")


@pytest.mark.slow
async def test_page_reconnects_after_a_lost_connection(tab: Tab, tmp_path: Path) -> None:
    sockets: list[Any] = []
    away = False

    async def through(ws: Any) -> None:
        if away:
            await ws.close(code=1012)
            return
        sockets.append(ws)
        ws.connect_to_server()

    await tab.page.route_web_socket(re.compile("/ws$"), through)
    gate = tmp_path / "gate"
    await tab.say(script({"say": "before"}, {"gate": str(gate)}, {"say": " after"}))
    await expect(tab.answer("before")).to_be_visible()
    away = True
    await sockets[-1].close(code=1012)
    await expect(tab.page.get_by_text("Connection lost")).to_be_visible()
    # The state of the agent is unknown, so the page shows no running clock.
    await expect(tab.shown.locator(".working[data-away=true]")).to_be_visible()
    await expect(tab.shown.locator(".working")).to_have_count(1)
    await tab.say("said while away")
    await expect(
        tab.page.get_by_text("Will be sent when the connection is restored")
    ).to_be_visible()
    await tab.picture("away")
    gate.touch()
    away = False
    await tab.page.evaluate("window.dispatchEvent(new Event('online'))")
    await tab.settled(2)
    await expect(tab.page.locator(".message").first).to_have_text("before after")
    await expect(tab.answer("echo: said while away")).to_have_count(1)
    await expect(tab.page.get_by_text("Connection lost")).to_be_hidden()


@contextlib.asynccontextmanager
async def running(data_dir: Path, port: int) -> AsyncIterator[ServerProcess]:
    """A server as a process on that port: what it left there is what the next one finds."""
    log = data_dir.with_suffix(".log")
    server = await start_server(data_dir, log, PORT=str(port))
    try:
        yield server
    finally:
        if server.process.returncode is None:
            await server.kill()  # at once, and all that it started with it


@pytest.mark.slow
async def test_page_resumes_after_the_server_was_killed(open_tab: OpenTab, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data_dir = tmp_path / "data"
    async with running(data_dir, port) as server, http_session() as http:
        client = await new_client(server.url, http)
        tab = await open_tab(client)
        await tab.sign_in()
        await tab.say("one")
        await tab.settled()
        await tab.say(script({"say": "half"}, {"hang": True}))
        await expect(tab.answer("half")).to_be_visible()
        await server.kill()
        await expect(tab.page.get_by_text("Connection lost")).to_be_visible()
    async with running(data_dir, port):
        await tab.page.evaluate("window.dispatchEvent(new Event('online'))")
        await expect(tab.page.get_by_text("restarted during this turn")).to_be_visible()
        await tab.picture("restarted")
        await expect(tab.answer("echo: one")).to_have_count(1)
        await expect(tab.answer("half")).to_have_count(1)
        await tab.button("Try again").click()
        await expect(tab.answer("half")).to_have_count(2)
