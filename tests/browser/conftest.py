"""One Chromium and one server for all tests of this folder; each test is an app of its own."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, async_playwright, expect

from server.hosts import host_rule

from ..support.harness import MOCKS, TIMEOUT_SECS, Client, LocalServer, local_server, mock_agent
from .scenes import PLAYS
from .tab import DESKTOP, WATCH, Tab

# The headless shell is the same engine without the desktop browser, for half the CPU time.
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
REQUIRED = bool(os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL"))
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

expect.set_options(timeout=TIMEOUT_SECS * 1000)
package_fixture = pytest_asyncio.fixture(scope="package", loop_scope="package")
test_fixture = pytest_asyncio.fixture(loop_scope="package")
names = (f"app{number}" for number in itertools.count())

OpenTab = Callable[..., Awaitable[Tab]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder run in one loop, that of the browser and the server."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.asyncio(loop_scope="package"), append=False)
            item.add_marker(pytest.mark.browser)


@package_fixture
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None and not REQUIRED:
        pytest.skip("Chromium is not installed")
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        await chromium.close()


@package_fixture
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    # Debugging a loop doubles the time of every message to and from the browser.
    asyncio.get_running_loop().set_debug(False)
    folder = tmp_path_factory.mktemp("browser")
    (folder / "plays.json").write_text(json.dumps(PLAYS))
    agents = {**MOCKS, "claude": mock_agent(f"--plays={folder / 'plays.json'}")}
    push_hosts = (host_rule("127.0.0.1"),)
    async with local_server(folder / "data", agents=agents, push_hosts=push_hosts) as started:
        yield started


@test_fixture
async def app(server: LocalServer) -> str:
    """The name of the test's own app."""
    return next(names)


@test_fixture
async def client(server: LocalServer, app: str) -> Client:
    return await server.client(app)


@test_fixture
async def open_tab(browser: Browser) -> AsyncIterator[OpenTab]:
    """Open tabs: ``await open_tab(client, viewport=PHONE)``; all are looked at in the end."""
    tabs: list[Tab] = []
    contexts: list[BrowserContext] = []

    async def start(client: Client, **options: Any) -> Tab:
        context = await browser.new_context(**{"viewport": DESKTOP, **options})
        contexts.append(context)
        await context.add_init_script(WATCH)
        assert client.token is not None
        tab = Tab(await context.new_page(), client.url, client.token)
        tabs.append(tab)
        return tab

    yield start
    for tab in tabs:
        await tab.assert_clean()
    for context in contexts:
        await context.close()


@test_fixture
async def tab(open_tab: OpenTab, client: Client) -> Tab:
    """Signed in, on a desktop, before a new session."""
    tab = await open_tab(client)
    await tab.sign_in()
    return tab
