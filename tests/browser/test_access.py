"""The page with the keyboard only, and on a phone."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.async_api import expect

from ..support.harness import Client, LocalServer, script
from .conftest import OpenTab
from .tab import PHONE, Tab

Json = dict[str, Any]

# Too small for a finger: 44 px is the least that phones recommend.
SMALL = """[...document.querySelectorAll("button, summary, [role=option]")]
    .filter((one) => one.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
    .filter((one) => Math.min(one.offsetWidth, one.offsetHeight) < 44)
    .map((one) => one.outerHTML.slice(0, 120))"""


async def test_page_works_with_the_keyboard_only(tab: Tab) -> None:
    page = tab.page
    await expect(tab.composer).to_be_focused()
    await page.keyboard.type("one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two")
    await page.keyboard.press("Enter")
    await expect(page.locator(".message")).to_contain_text("echo: one\ntwo", use_inner_text=True)
    await tab.settled()
    await page.keyboard.press("ArrowUp")
    await expect(tab.composer).to_have_value("one\ntwo")
    await page.keyboard.press("ArrowDown")  # from the first line to the second, not in history
    await expect(tab.composer).to_have_value("one\ntwo")
    await tab.composer.fill("")
    commands = [{"name": "help", "description": "h"}, {"name": "plan", "description": "p"}]
    update = {"sessionUpdate": "available_commands_update", "availableCommands": commands}
    await tab.say(script({"update": update}))
    await tab.settled(2)
    await page.keyboard.type("/p")
    await expect(page.get_by_role("option", name="/plan")).to_have_attribute(
        "aria-selected", "true"
    )
    await tab.axe("commands")
    await page.keyboard.press("Tab")
    await expect(tab.composer).to_have_value("/plan ")
    await tab.composer.fill("")
    await page.keyboard.press("Control+Shift+o")
    await expect(page.get_by_role("heading", name="What should the agent do?")).to_be_visible()
    # Everything can be reached, and one sees where one is.
    for _ in range(25):
        await page.keyboard.press("Tab")
        ring = """() => {
            const element = document.activeElement;
            if (element === document.body) return "body";
            const { outlineStyle, boxShadow } = getComputedStyle(element);
            const around = getComputedStyle(element.closest(".composer") ?? element);
            return outlineStyle !== "none" || boxShadow !== "none" || around.boxShadow !== "none";
        }"""
        assert await page.evaluate(ring), await page.evaluate("document.activeElement.outerHTML")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_page_works_on_a_phone(open_tab: OpenTab, client: Client, scheme: str) -> None:
    tab = await open_tab(
        client, viewport=PHONE, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    page = tab.page
    await tab.sign_in()
    await tab.axe("phone")
    assert await page.evaluate(SMALL) == []
    wide = "x" * 300
    table = "| " + " | ".join(["column"] * 12) + " |\n|" + " - |" * 12 + "\n"
    await tab.composer.fill(
        script({"say": f"{wide}\n\n```\n{wide}\n```\n\n{table}"}, {"permission": True})
    )
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator(".ask-card")).to_be_visible()
    await tab.axe("phone, permission")
    assert await page.evaluate(SMALL) == []
    await tab.picture(f"phone-{scheme}")
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(overflow) == 0
    assert await page.evaluate("document.querySelector('.session').scrollWidth") <= PHONE["width"]
    await page.get_by_role("button", name="Allow once").tap()
    await tab.settled()
    await page.get_by_role("button", name="Show the sessions").tap()
    await expect(page.get_by_role("navigation", name="Sessions")).to_be_visible()
    await tab.axe("phone, sessions")
    assert await page.evaluate(SMALL) == []
    await tab.picture(f"phone-sessions-{scheme}")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("navigation", name="Sessions")).to_be_hidden()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_in_menus_dialogs_and_rare_screens(
    open_tab: OpenTab, server: LocalServer, client: Client, scheme: str
) -> None:
    tab = await open_tab(client, color_scheme=scheme)
    page = tab.page
    session = await client.create("demo", permission="approve-all")
    for prompt in ("diff", "code"):
        await client.turn(session, prompt)
    await tab.sign_in(session)
    await tab.settled(2)
    await expect(page.locator(".hljs-number").first).to_be_visible()
    await tab.axe("coloured code")
    await tab.composer.fill("/")
    await expect(page.get_by_role("option").first).to_be_visible()
    await tab.axe("all commands")
    await tab.composer.fill("")
    link = ""
    for entry in ("Open on a phone", "Share a link"):
        await tab.button("More for this session").click()
        await expect(page.get_by_role("menuitem", name=entry)).to_be_visible()
        await tab.axe("the menu of a session")
        await page.get_by_role("menuitem", name=entry).click()
        field = page.get_by_role("dialog").get_by_label("Link", exact=True)
        link = await field.input_value()
        await tab.axe(entry)
        await page.get_by_role("dialog").get_by_role("button", name="Close").click()
    await tab.button("Settings").click()
    await expect(page.get_by_role("menuitem", name="Sign out")).to_be_visible()
    await tab.axe("settings")
    await page.keyboard.press("Escape")
    await page.goto(f"{tab.url}/#view=board")
    await expect(page.get_by_role("heading", name="Board")).to_be_visible()
    await tab.axe("board without requests")
    await page.goto(f"{tab.url}/#view=admin")
    await page.get_by_label("Admin token").fill(server.admin().token or "")
    await tab.axe("form of the administration")
    await tab.button("Continue").click()
    for name in ("Usage", "Audit"):
        await page.get_by_role("tab", name=name).click()
        await expect(page.locator(".admin-content")).to_have_attribute("aria-busy", "false")
        await tab.axe(name)
    await page.goto(f"{tab.url}/#session=missing")
    await expect(page.get_by_role("heading", name="Not found", level=1)).to_be_visible()
    await expect(page.get_by_role("paragraph").filter(has_text="does not exist")).to_be_visible()
    await tab.axe("missing session")
    await page.goto("about:blank")
    await page.goto(link)
    await expect(page.locator(".hljs-number").first).to_be_visible()
    await tab.axe("shared session")
