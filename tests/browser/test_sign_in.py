"""Signing in and out: the token in the address, in the storage, and none."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import Route, expect

from ..support.harness import Client, LocalServer
from .conftest import OpenTab
from .tab import Tab

Json = dict[str, Any]


async def test_sign_in_link_is_removed_from_the_address_bar(
    open_tab: OpenTab, client: Client
) -> None:
    session_id = await client.create()
    tab = await open_tab(client)
    await tab.page.goto(f"{tab.url}/#token={tab.token}&session={session_id}")
    await expect(tab.composer).to_be_visible()
    assert tab.page.url == f"{tab.url}/#session={session_id}"
    await tab.page.reload()
    await expect(tab.composer).to_be_visible()
    await expect(tab.page.locator(".empty")).to_be_visible()
    await tab.picture("empty")


async def test_stored_sign_in_survives_a_failure_and_a_link(
    open_tab: OpenTab, client: Client
) -> None:
    tab = await open_tab(client)
    page = tab.page
    await page.goto(tab.url)
    await page.get_by_label("Access token").fill(tab.token)
    await page.get_by_label("Keep me signed in").check()
    await tab.button("Sign in").click()
    await expect(tab.composer).to_be_visible()

    async def refuse(route: Route) -> None:
        await route.fulfill(status=503, json={"ok": False, "error": "Just a moment."})

    await page.route("**/sessions?*", refuse)
    await page.reload()
    await expect(page.get_by_text("Just a moment.")).to_be_visible()
    await page.unroute("**/sessions?*")
    await tab.button("Sign in").click()
    await expect(tab.composer).to_be_visible()
    kept = "localStorage['clawdforge:token']"
    assert tab.token in await page.evaluate(kept)
    await page.goto(f"{tab.url}/#token={tab.token}")  # which is for its own tab
    await expect(page).to_have_url(f"{tab.url}/")
    assert tab.token in await page.evaluate(kept)


FORBIDDEN = """
for (const name of ["sessionStorage", "localStorage"])
    Object.defineProperty(window, name, { get() { throw new DOMException("", "SecurityError"); } });
"""
FULL = """
Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); };
"""


@pytest.mark.parametrize(
    "storage",
    [
        pytest.param(FORBIDDEN, id="forbidden"),
        pytest.param(FULL, id="full", marks=pytest.mark.slow),
    ],
)
async def test_browser_without_storage_keeps_the_sign_in_of_the_tab(
    open_tab: OpenTab, client: Client, storage: str
) -> None:
    tab = await open_tab(client)
    page = tab.page
    await page.add_init_script(storage)
    await page.goto(f"{tab.url}/#token={tab.token}")
    await expect(tab.composer).to_be_visible()
    assert tab.token not in page.url
    await page.reload()
    await expect(tab.composer).to_be_visible()
    await tab.say("hello")
    await tab.settled()
    session_url = page.url
    await page.reload()
    await expect(tab.answer("echo: hello")).to_be_visible()
    assert page.url == session_url
    # After a sign-out no entry of the tab's history knows the token any more.
    await tab.button("Settings").click()
    await page.get_by_role("menuitem", name="Sign out").click()
    await expect(page.get_by_label("Access token")).to_be_visible()
    for go in (page.reload, page.go_back, page.reload):
        await go()
        assert await page.evaluate("JSON.stringify(history.state) ?? ''") in ("null", "{}")
    if page.url.startswith(tab.url):
        await expect(page.get_by_label("Access token")).to_be_visible()


async def test_session_in_a_new_tab_is_signed_in(open_tab: OpenTab, client: Client) -> None:
    tab = await open_tab(client)
    session_id = await client.create()
    await tab.sign_in(session_id)
    pages = [await tab.page.context.new_page() for _ in range(2)]
    for page, wanted in zip(pages, (session_id, "of-another-app"), strict=True):
        await page.goto(f"{client.url}/#session={wanted}")
    await expect(pages[0].get_by_role("textbox", name="Message")).to_be_visible()
    # A sign-in is handed on only by a tab that has this session.
    await expect(pages[1].get_by_label("Access token")).to_be_visible()


async def test_sign_out_deletes_the_token(tab: Tab) -> None:
    await tab.page.get_by_role("button", name="Settings").click()
    await tab.page.get_by_role("menuitem", name="Sign out").click()
    await expect(tab.page.get_by_label("Access token")).to_be_visible()
    await tab.page.reload()
    await expect(tab.page.get_by_label("Access token")).to_be_visible()


async def test_revoked_token_shows_the_sign_in(tab: Tab, server: LocalServer, app: str) -> None:
    await tab.say("hello")
    await tab.settled()
    assert (await server.admin().delete(f"/admin/tokens/{app}"))[0] == 200
    # By the socket, or by a call of the REST API, whichever hears of it first.
    revoked = tab.page.get_by_text("This sign-in was revoked.")
    await expect(revoked.or_(tab.page.get_by_label("Access token")).first).to_be_visible()
