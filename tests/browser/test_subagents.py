"""The work of subagents: a thread below the call of their parent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.async_api import expect

from ..sessions.test_subagents import of_claude, update
from ..support.harness import Client, script
from .conftest import OpenTab
from .tab import PHONE, Tab

Json = dict[str, Any]


def words(text: str) -> Json:
    return {"content": {"type": "text", "text": text}}


def call(session: str | None, identity: str, title: str, status: str, **fields: Any) -> Json:
    fields = {"kind": "read", **fields}
    return update(session, "tool_call", toolCallId=identity, title=title, status=status, **fields)


def ask(session: str | None, identity: str) -> Json:
    options = [{"optionId": "once", "name": "Allow", "kind": "allow_once"}]
    params = {"toolCall": {"toolCallId": identity}, "options": options}
    if session is None:
        return {"permission": params}
    request = {"method": "session/request_permission", "params": {"sessionId": session, **params}}
    return {"request": request}


async def see_the_thread(tab: Tab, gate: Path, steps: list[Json], more: list[Json]) -> None:
    """*steps* leave a subagent that works and has failed once, *more* one that has finished."""
    page = tab.page
    width = await page.evaluate("innerWidth")
    await tab.say(script({"say": "I ask someone."}, *steps, {"gate": str(gate)}, *more))
    host = tab.shown.locator('.tool[data-kind="subagent"]')
    line = host.locator("> .line")
    thread = host.locator("> .thread > *")
    await expect(line).to_have_text("Look around · running · now: Read the plan")
    await expect(host).to_have_count(1)
    # Failures are never hidden; all else is, until the thread is opened.
    await expect(thread.locator(":visible", has_text="Read the map").first).to_be_visible()
    await expect(tab.answer("I look.")).to_have_count(0)
    await tab.picture(f"subagent-runs-{width}")
    gate.touch()
    await expect(host).to_have_attribute("data-state", "asking")
    await expect(line).to_contain_text("needs your permission")
    await tab.picture(f"subagent-asks-{width}")
    await host.get_by_role("button", name="Allow", exact=True).click()
    await tab.settled()
    await expect(line).to_contain_text("Look around · done")
    await expect(tab.answer("I see a garden.")).to_have_count(0)
    await line.press("Enter")
    await expect(tab.answer("I see a garden.")).to_be_visible()
    await expect(thread.filter(has_text="Look at all of it.")).to_have_count(1)
    await expect(tab.shown.locator(".turn-body > .chunk > .message")).to_contain_text(
        ["I ask someone.", "A garden, it says."]
    )
    await tab.axe("subagent")
    await tab.picture(f"subagent-{width}")
    await line.press("Enter")
    await expect(tab.answer("I see a garden.")).to_have_count(0)
    # A reload shows the same.
    await page.reload()
    await tab.settled()
    await expect(thread).to_have_count(1)
    await line.click()
    await expect(tab.answer("I see a garden.")).to_be_visible()


async def test_subagent_with_a_session_of_its_own_is_a_thread(
    tab: Tab, client: Client, tmp_path: Path
) -> None:
    def state(**fields: Any) -> Json:
        return update(None, "subagent_update", sessionId="child", **fields)

    def sent(session: str | None, sender: str, recipient: str, text: str) -> Json:
        message = {"messageId": text, "senderSessionId": sender, "recipientSessionId": recipient}
        content = [{"type": "text", "text": text}]
        return update(session, "session_message", **message, content=content)

    steps = [
        state(title="Look around", state={"state": "running"}),
        sent(None, "own", "child", "Look at all of it."),
        sent("child", "own", "child", "Look at all of it."),
        update("child", **words("I look.")),
        call("child", "r", "Read the map", "failed"),
        call("child", "p", "Read the plan", "in_progress"),
    ]
    more = [
        ask("child", "p"),
        update("child", "tool_call_update", toolCallId="p", status="completed"),
        update("child", **words("I see a garden.")),
        state(state={"state": "idle", "stopReason": "end_turn"}),
        sent(None, "child", "own", "I see a garden."),
        {"say": "A garden, it says."},
    ]
    await see_the_thread(tab, tmp_path / "gate", steps, more)
    assert (await client.state(tab.session_id))["client_capabilities"] == ["subagents"]


async def test_subagent_within_the_session_of_its_parent_is_a_thread(
    open_tab: OpenTab, client: Client, tmp_path: Path
) -> None:
    tab = await open_tab(client, viewport=PHONE, has_touch=True, is_mobile=True)
    await tab.sign_in()
    by = of_claude("a")
    task = {"description": "Look", "prompt": "Look at all of it."}
    steps = [
        call(None, "a", "Look around", "in_progress", kind="think", rawInput=task),
        update(None, **words("I look."), **by),
        call(None, "r", "Read the map", "failed", **by),
        call(None, "p", "Read the plan", "in_progress", **by),
    ]
    more = [
        ask(None, "p"),
        update(None, "tool_call_update", toolCallId="p", status="completed", **by),
        update(None, **words("I see a garden."), **by),
        update(None, "tool_call_update", toolCallId="a", status="completed"),
        {"say": "A garden, it says."},
    ]
    await see_the_thread(tab, tmp_path / "gate", steps, more)
