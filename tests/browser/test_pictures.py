"""Screenshots of the conversation of scenes.py; the README shows two of them."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import expect

from ..support.harness import Client
from .conftest import OpenTab
from .scenes import CHECK, FLAKY, OTHERS
from .tab import DESKTOP, PHONE


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        pytest.param(DESKTOP, "light", id="desktop-light", marks=pytest.mark.slow),
        pytest.param(PHONE, "dark", id="phone-dark", marks=pytest.mark.slow),
        pytest.param(DESKTOP, "dark", id="desktop-dark", marks=pytest.mark.slow),
        pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.slow),
    ],
)
async def test_screenshots_of_a_conversation(
    open_tab: OpenTab, client: Client, size: dict[str, int], scheme: str
) -> None:
    phone = size is PHONE
    scale = 2 if phone else 1
    tab = await open_tab(
        client,
        viewport=size,
        color_scheme=scheme,
        has_touch=phone,
        is_mobile=phone,
        device_scale_factor=scale,
    )
    name = f"conversation-{'phone' if phone else 'desktop'}-{scheme}"
    for title in OTHERS:
        await client.create("claude", meta={"title": title})
    session_id = await client.create("claude", permission="ask")
    await tab.sign_in(session_id)
    await tab.say(FLAKY)
    await tab.settled()
    await expect(tab.page.get_by_role("heading", name="Fix the flaky login test")).to_be_visible()
    await expect(tab.button("Mode: Ask first")).to_be_visible()
    await tab.picture(f"{name}-end")
    await tab.scroller.evaluate("(element) => (element.scrollTop = 0)")
    await tab.page.mouse.move(5, size["height"] / 2)
    await expect(tab.button("Go to the end")).to_be_visible()
    await tab.picture(f"{name}-top")
    await tab.say(CHECK)
    await expect(tab.page.locator(".ask-card")).to_be_visible()
    await tab.axe(name)
    await tab.picture(name)
    colour = await tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = max(map(int, re.findall(r"\d+", colour)[:3]))
    assert brightness < 60 if scheme == "dark" else brightness > 200
