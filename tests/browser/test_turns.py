"""Turns that are forked, sent again and queued, and the facts at their ends."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.async_api import expect

from ..support.harness import Client, script
from .conftest import OpenTab
from .tab import Tab


async def test_queue_is_changed_and_a_turn_is_forked_and_tried_again(
    tab: Tab, client: Client, tmp_path: Path
) -> None:
    page, gate = tab.page, tmp_path / "gate"
    call = {"toolCallId": "t", "title": "npm test", "kind": "execute"}
    running = {"update": {"sessionUpdate": "tool_call", **call, "status": "in_progress"}}
    done = {"update": {"sessionUpdate": "tool_call_update", **call, "status": "completed"}}
    edited = {"toolCallId": "e", "title": "Edit", "kind": "edit", "status": "completed"}
    edit = {"update": {"sessionUpdate": "tool_call", **edited, "locations": [{"path": "a.py"}]}}
    reads = [
        {
            "update": {"sessionUpdate": "tool_call", "toolCallId": f"r{n}", "title": f"Read {n}"}
            | {"kind": "read", "status": "failed" if n == 1 else "completed"}
        }
        for n in range(3)
    ]
    await tab.say(script({"say": "first"}, *reads, running, {"gate": str(gate)}, done, edit))
    await expect(tab.shown.locator(".working")).to_contain_text("now: npm test")
    explored = tab.button("Explored 3 files")
    tools = tab.shown.locator(".group > .tool:visible")
    await expect(tools).to_contain_text(["Read 1"])  # it has failed
    await explored.press("Enter")
    await expect(tools).to_have_count(3)
    await explored.press("Enter")
    await expect(tools).to_have_count(1)
    for text in ("one", "two", "three"):
        await tab.say(text)
        await expect(page.locator("[data-state=queued]", has_text=text)).to_be_visible()
    queue = page.get_by_role("list", name="Queue").locator("[data-state=queued]")
    await tab.axe("queue")
    await tab.picture("queue-dock")
    await page.set_viewport_size({"width": 360, "height": 740})
    await expect(queue.last.get_by_role("button", name="Take out")).to_be_in_viewport(ratio=1)
    await page.set_viewport_size({"width": 1280, "height": 800})
    await queue.nth(2).get_by_role("button", name="Move up").click()
    await expect(queue).to_contain_text(["one", "three", "two"])
    await queue.filter(has_text="three").get_by_role("button", name="Change it").click()
    await expect(tab.composer).to_have_value("three")
    await tab.say("third")
    await expect(queue).to_contain_text(["one", "third", "two"])
    await queue.filter(has_text="two").get_by_role("button", name="Take out").click()
    await tab.composer.fill("")
    await expect(queue).to_have_count(2)
    gate.touch()
    await expect(tab.answer("echo: third")).to_be_visible()
    await expect(tab.answer("echo: two")).to_have_count(0)
    await expect(tab.shown.locator(".facts").first).to_contain_text("1 file changed")

    # A fork before the prompt, with the prompt to edit; then with another agent.
    source = tab.session_id
    turn = tab.turns.filter(has_text="echo: third")

    async def choose(entry: str) -> None:
        await turn.last.hover()
        await turn.last.get_by_role("button", name="More for this turn").click()
        await tab.picture("turn-menu")
        await page.get_by_role("menuitem", name=entry, exact=True).click()

    await choose("Edit and send in a fork")
    await expect(tab.composer).to_have_value("third")
    fork = tab.session_id
    assert fork != source
    assert (await client.state(fork))["forked_from"]["session_id"] == source
    await tab.say("edited")
    turn = tab.turns.filter(has_text="edited")
    await expect(turn.locator(".facts:not(.working)")).to_be_visible()
    await choose("demo")
    await expect(tab.shown.get_by_role("textbox")).to_have_attribute("placeholder", "Message demo")
    assert tab.session_id not in (source, fork)
    await expect(tab.turns.last.locator(".bubble")).to_have_text("edited")


async def test_queued_prompt_goes_to_the_running_turn(
    open_tab: OpenTab, client: Client, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    tab = await open_tab(client)
    await tab.sign_in(await client.create("mock-steers"))
    await tab.say(script({"say": "first"}, {"gate": str(gate)}))
    await expect(tab.answer("first")).to_be_visible()
    long = "look here " * 200  # the server's list of the queue has only its beginning
    await tab.say(long)
    await expect(tab.page.locator("[data-state=queued]")).to_have_count(1)
    await tab.page.reload()
    await tab.button("Send now").press("Enter")
    await expect(tab.answer(f"steered: {long.strip()}")).to_be_visible()
    await expect(tab.shown.locator(".withdrawn:visible")).to_have_count(0)
    gate.touch()
    await tab.settled(1)


async def test_escape_stops_the_turn_and_pauses_the_queue(tab: Tab) -> None:
    page = tab.page
    await tab.say(script({"say": "first"}, {"hang": True}))
    await expect(tab.answer("first")).to_be_visible()
    queue = page.get_by_role("list", name="Queue").locator("[data-state]")
    for number, text in enumerate(("one", "two", "three"), 1):
        await tab.say(text)
        await expect(queue).to_have_count(number)
    await tab.composer.press("Escape")
    await tab.settled(1)  # none of the others began, and none is shown as a turn
    paused = page.locator("[data-state=paused]")
    await expect(paused).to_have_count(3)
    await tab.axe("paused queue")
    await tab.picture("queue-paused")
    await page.reload()
    await expect(paused).to_have_count(3)
    await paused.filter(has_text="two").get_by_role("button", name="Take out").press("Enter")
    await paused.filter(has_text="three").get_by_role("button", name="Change it").press("Enter")
    await expect(paused).to_have_count(1)
    await expect(tab.composer).to_have_value("three")
    await tab.button("Resume the queue").press("Enter")
    await expect(tab.answer("echo: one")).to_be_visible()
    await expect(queue).to_have_count(0)
    assert await tab.answer("echo: two").count() == 0


async def test_prompt_that_is_sent_again_does_not_replace_the_one_being_changed(
    open_tab: OpenTab, client: Client, tmp_path: Path
) -> None:
    session_id, gate = await client.create(), tmp_path / "gate"
    bot = await client.connect(session_id)
    await bot.send("prompt", prompt=script({"gate": str(gate)}))
    await bot.send("prompt", prompt="waits")
    refused = {"id": "late", "prompt": [{"type": "text", "text": "refused"}], "files": []}
    outbox = json.dumps([{**refused, "state": "failed", "error": "Eight wait."}])
    tab = await open_tab(client)
    await tab.page.add_init_script(
        f"sessionStorage['clawdforge:outbox:{session_id}'] ??= {json.dumps(outbox)}"
    )
    await tab.sign_in(session_id)
    queue = tab.page.get_by_role("list", name="Queue").locator("[data-state=queued]")
    await tab.button("Change it").click()
    await expect(tab.composer).to_have_value("waits")
    await tab.button("Send again").click()
    await expect(queue).to_contain_text(["waits", "refused"])
    await tab.say("changed")
    await expect(queue).to_contain_text(["changed", "refused"])
    gate.touch()
    await tab.settled(3)
