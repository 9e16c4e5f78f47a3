"""The page under a path of a site, through real nginx."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from ..support import proxies
from ..support.harness import Client, LocalServer
from .tab import WATCH, Tab


@pytest.mark.slow
async def test_page_works_under_a_path(
    browser: Browser, server: LocalServer, client: Client, tmp_path: Path
) -> None:
    assert client.token is not None
    port = proxies.free_port()
    async with proxies.nginx(tmp_path, port, server.url.removeprefix("http://")):
        context = await browser.new_context(ignore_https_errors=True)
        await context.add_init_script(WATCH)
        # localhost: on a loopback address the server knows this name.
        tab = Tab(await context.new_page(), f"https://localhost:{port}/chat", client.token)
        await tab.sign_in()
        await tab.say("```python\nprint(1)\n```")
        await expect(tab.answer("print")).to_be_visible()
        await tab.settled()
        assert tab.page.url.startswith(f"{tab.url}/#session=")

        # REST's own page asks under that path, too.
        page = tab.page
        await page.goto(f"{tab.url}/docs")
        call = page.locator("#operations-Monitoring-get_healthz")
        await call.locator("button").first.click()
        await call.locator(".try-out__btn").click()
        await call.locator(".execute").click()
        await expect(call.locator(".request-url pre")).to_have_text(f"{tab.url}/healthz")
        answer = call.locator(".live-responses-table .response-col_status")
        await expect(answer.last).to_contain_text("200")
        await tab.assert_clean()
        await context.close()
