"""The page that renders the OpenAPI document."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from server.web.resources import endpoints

from ..support.harness import Client, eventually
from .conftest import OpenTab
from .tab import PHONE

ENDPOINT_COUNT = len(endpoints())
DARK = "getComputedStyle(document.body).backgroundColor === 'rgb(28, 32, 34)'"
TOO_WIDE = "document.documentElement.scrollWidth > innerWidth"


async def show(page: Page, url: str) -> None:
    await page.goto(f"{url}/docs")
    await expect(page.locator(".opblock")).to_have_count(ENDPOINT_COUNT)


@pytest.mark.slow
async def test_rest_docs_show_every_call_and_execute_one_with_a_token(
    open_tab: OpenTab, client: Client
) -> None:
    tab = await open_tab(client, viewport=PHONE, color_scheme="dark")
    page = tab.page
    await show(page, tab.url)
    await page.locator("#operations-Turns-post_sessions_session_id_turn button").first.click()
    await expect(page.locator(".opblock-body")).to_contain_text("Idempotency-Key")
    await expect(page.locator(".response-col_status", has_text="410")).to_be_visible()
    assert await page.evaluate(DARK)
    assert not await page.evaluate(TOO_WIDE)
    await tab.picture("rest-docs-phone-dark")

    # The same document on a desktop, because it takes seconds to load.
    await page.set_viewport_size({"width": 1280, "height": 800})
    await page.emulate_media(color_scheme="light")
    await eventually("the light colours", lambda: page.evaluate(f"!({DARK})"))
    await page.locator(".authorize").first.click()
    await page.get_by_label("auth-bearer-value").first.fill(tab.token)
    await page.locator(".auth-btn-wrapper .authorize").first.click()
    await page.locator(".btn-done").first.click()
    call = page.locator("#operations-Sessions-get_agents")
    await call.locator("button").first.click()
    await call.locator(".try-out__btn").click()
    await call.locator(".execute").click()
    answer = call.locator(".live-responses-table")
    await expect(answer.locator(".response-col_status").last).to_contain_text("200")
    await expect(answer).to_contain_text('"demo"')
    await tab.picture("rest-docs-light")
