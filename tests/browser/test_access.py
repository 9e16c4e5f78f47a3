"""The page with the keyboard only, and on a phone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from ..sessions.test_elicitations import FORM
from ..support.harness import Client, LocalServer, eventually, script
from .conftest import OpenTab
from .tab import PHONE, Tab
from .test_changes import edit

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


# The element with the focus, its name, and whether its ring is visible.
FOCUSED = """() => {
    const element = document.activeElement;
    const { outlineStyle, boxShadow } = getComputedStyle(element);
    const around = getComputedStyle(element.closest(".composer, .palette-head, .find") ?? element);
    const ring = outlineStyle !== "none" || boxShadow !== "none" || around.boxShadow !== "none";
    const name = element.ariaLabel ?? element.labels?.[0]?.textContent ?? element.textContent;
    return [element.tagName, name.trim(), ring];
}"""


class Keyboard:
    """A person without a mouse: keys are pressed, and nothing else is done."""

    def __init__(self, tab: Tab) -> None:
        self.tab = tab
        self.page = tab.page

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.page.keyboard.press(key)

    async def type(self, text: str, *keys: str) -> None:
        await self.page.keyboard.type(text)
        await self.press(*keys)

    async def focused(self) -> str:
        tag, name, ring = await self.page.evaluate(FOCUSED)
        assert tag != "BODY", "the focus is lost"
        assert ring or tag == "H1", f"no ring: {tag} {name}"
        return str(name)

    async def reach(self, name: str, key: str = "Tab", limit: int = 60) -> None:
        """Press Tab until the focus is on what is called so; there are no traps on the way."""
        seen = []
        for _ in range(limit):
            await self.press(key)
            _, found, _ = await self.page.evaluate(FOCUSED)
            seen.append(found[:40])
            if found.startswith(name):
                await self.focused()
                return
        raise AssertionError(f"{name} is not reached: {seen}")

    async def is_on(self, name: str) -> None:
        async def found() -> bool:
            return str((await self.page.evaluate(FOCUSED))[1]).startswith(name)

        await eventually(f"the focus on {name}", found)
        await self.focused()


@pytest.mark.slow
async def test_everything_is_reached_and_left_with_the_keyboard_only(
    tab: Tab, server: LocalServer, client: Client, tmp_path: Path
) -> None:
    page, keys, gate = tab.page, Keyboard(tab), tmp_path / "gate"
    await keys.is_on("First message")
    for name, entry in (("Agent: ", "mock"), ("Permission: ", "Ask me")):
        await keys.reach(name)
        await keys.press("Enter")
        await keys.is_on(entry)
        await keys.press("ArrowDown", "Escape")
        await keys.is_on(name)
    await keys.reach("Project: ")
    await keys.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await keys.focused()
    await keys.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await keys.is_on("First message")

    # A permission, and a question.
    ask = {"toolCallId": "t1", "title": "Edit greet.py", "kind": "edit"}
    await keys.type(script({"permission": {"toolCall": ask}}), "Enter")
    await expect(page.locator(".ask-card:visible")).to_be_visible()
    await keys.press("Control+.")
    await keys.is_on("Allow once")
    await keys.press("ArrowRight", "Enter")
    await tab.settled(1)
    await keys.is_on("Message")
    await keys.type(script({"elicit": FORM}), "Enter")
    await expect(page.locator(".ask-card:visible")).to_be_visible()
    await keys.press("Control+.")
    await keys.type("Oslo")
    await keys.reach("Send")
    await keys.press("Enter")
    await tab.settled(2)
    await keys.is_on("Message")

    # The queue.
    await keys.type(script({"say": "working"}, {"gate": str(gate)}, edit("greet.py")), "Enter")
    await expect(tab.answer("working")).to_be_visible()
    queue = page.get_by_role("list", name="Queue").locator("[data-state]")
    for number, text in enumerate(("one", "two", "three"), 1):
        await keys.type(text, "Enter")
        await expect(queue).to_have_count(number)
    await keys.reach("Clear the queue", "Shift+Tab")
    await keys.reach("Move up", "Shift+Tab")
    await keys.press("Enter")
    await expect(queue).to_contain_text(["one", "three", "two"])
    await keys.is_on("Move up")  # of the same prompt
    await keys.press("Enter")
    await expect(queue).to_contain_text(["three", "one", "two"])
    await keys.reach("Change it")
    await keys.press("Enter")
    await keys.is_on("Message")
    await expect(tab.composer).to_have_value("three")
    await keys.press("Control+a")
    await keys.type("third", "Enter")
    await expect(queue).to_contain_text(["third", "one", "two"])
    await keys.reach("Take out", "Shift+Tab")
    await keys.press("Enter")
    await expect(queue).to_have_count(2)
    await keys.is_on("Message")
    await keys.press("Control+a", "Delete")
    await keys.reach("Clear the queue", "Shift+Tab")
    await keys.press("Enter")
    await expect(queue).to_have_count(0)
    await keys.is_on("Message")
    folder = Path((await client.state(tab.session_id))["cwd"])
    folder.joinpath("greet.py").write_text("print('hello')\n")
    gate.touch()
    await expect(tab.shown.locator(".working")).to_have_count(0)

    # Changes, comments, undo, files.
    await expect(tab.button(re.compile("^1 file.*Review"))).to_be_visible()
    await keys.reach("1 file", "Shift+Tab")
    await keys.press("Enter")
    await keys.is_on("Changes")
    side = page.get_by_role("complementary", name="Changes and files")
    await expect(side.locator(".row.add")).to_have_count(1)
    await keys.reach("Comment on line 1")
    await keys.press("Enter")
    await keys.type("Why?", "Escape")
    await keys.is_on("Comment on line 1")
    await keys.reach("Undo all")
    await keys.press("Enter")
    await keys.is_on("Undo")
    await keys.press("Escape")
    await keys.is_on("Undo all")
    await keys.reach("Files", "Shift+Tab")
    await keys.press("Enter")
    await expect(side.locator("summary", has_text="greet.py")).to_be_visible()
    await keys.reach("greet.py")
    await keys.press("Enter")
    await expect(side.locator("pre")).to_have_text("print('hello')")
    await keys.press("Escape")
    await expect(side).to_be_hidden()
    await keys.is_on("Message")
    await keys.press("Control+`")
    await keys.focused()
    await keys.press("Escape")
    await keys.is_on("Message")

    # The session's menu, a dialog, the palette, the board, settings, the administration.
    await keys.reach("More for this session", "Shift+Tab")
    await keys.press("Enter")
    await keys.is_on("Rename")
    await keys.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await keys.type("Named", "Enter")
    await expect(page.get_by_role("heading", name="Named", level=1)).to_be_visible()
    await keys.is_on("More for this session")
    await keys.press("Control+k")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await keys.type("board", "Enter")
    await keys.is_on("Board")
    await keys.press("Control+Shift+f")
    await keys.type("named", "Enter")
    await keys.is_on("Message")
    await keys.press("Control+/")
    await expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    await keys.press("Escape")
    await keys.is_on("Message")
    await keys.reach("Settings", "Shift+Tab", limit=120)
    await keys.press("Enter")
    await keys.is_on("Agents")
    await keys.press("ArrowDown", "ArrowDown", "ArrowDown", "Enter")
    await expect(page.get_by_role("dialog", name="Notifications")).to_be_visible()
    await keys.press("Escape")
    await keys.is_on("Settings")
    await keys.press("Control+k")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await keys.type("administration", "Enter")
    await keys.is_on("Admin token")
    await keys.type(server.admin().token or "", "Enter")
    await expect(page.get_by_role("tab", name="Tokens")).to_be_visible()
    await keys.reach("Tokens")
    await keys.press("ArrowRight")
    await keys.is_on("Usage")
    assert await page.evaluate("document.activeElement.ariaSelected") == "true"


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
