"""A shared session opens without a token, for reading."""

from __future__ import annotations

import pytest
from playwright.async_api import Browser, ViewportSize, expect

from ..support.harness import Client
from .tab import DESKTOP, PHONE, Tab


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
async def test_link_of_a_share_shows_the_session_without_a_composer(
    browser: Browser, client: Client, viewport: ViewportSize
) -> None:
    session, other = await client.create(), await client.create()
    await client.turn(session, "hello")
    _, share = await client.post(f"/sessions/{session}/shares", {"label": "for the team"})
    context = await browser.new_context(viewport=viewport)
    try:
        page = await context.new_page()
        assert client.token is not None
        await Tab(page, client.url, client.token).sign_in()  # the link is not for this sign-in
        await page.goto(share["url"])
        await expect(page.locator(".message")).to_contain_text("echo: hello")
        refused = page.locator("textarea:visible, .sidebar:visible, .bar button:visible")
        await expect(refused).to_have_count(0)
        await client.turn(session, "again")
        await expect(page.locator(".message").last).to_contain_text("echo: again")
        await page.goto(share["url"].replace(session, other))
        await page.reload()
        await expect(page.get_by_label("Token")).to_be_visible()
        assert await page.evaluate("localStorage.length") == 0
    finally:
        await context.close()
