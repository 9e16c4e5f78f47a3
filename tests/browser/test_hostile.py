"""Whatever an agent sends: the conversation is shown, and the page goes on working."""

from __future__ import annotations

import os
from typing import Any

from playwright.async_api import ConsoleMessage, Page, expect

from ..harness import ROOT, Client
from .conftest import OpenTab
from .tab import Tab

Json = dict[str, Any]

FAKE_SOCKET = ROOT / "tests" / "browser" / "fake_socket.js"
HOSTILE = ROOT / "tests" / "js" / "hostile.mjs"

# All broken entries by turns; how many turns, so that each can be looked for.
LIVE = """async (values) => {
    const hostile = await import("/static/hostile.js");
    const entries = [...hostile.hostileTurns(hostile[values])];
    for (let at = 0; at < entries.length; at += 2000) {
        fake.feed(entries.slice(at, at + 2000));
        await new Promise((done) => requestAnimationFrame(done));
    }
    return Object.keys(hostile.ENTRIES).length;
}"""
# Before the page runs again: its log is all of that, and it comes at once.
FROM_THE_LOG = """(() => {
    const { WebSocket: Socket } = window;
    window.WebSocket = class extends Socket {
        send(text) {
            if (!text.includes('"auth"')) return super.send(text);
            import("/static/hostile.js").then(({ hostileTurns }) => {
                fake.log = [...hostileTurns()];
                super.send(text);
            });
        }
    };
})()"""
ANSWER = """() => {
    const prompt = fake.sent.find(({ type }) => type === "prompt");
    const turn = { turn_index: 999, ts: Date.now() };
    const update = { sessionUpdate: "agent_message_chunk",
        content: { type: "text", text: "still here" } };
    fake.feed([
        { ...turn, type: "turn_start", prompt: prompt.prompt, id: prompt.id },
        { ...turn, type: "event", event: { method: "session/update", params: { update } } },
        { ...turn, type: "turn_end", stop_reason: "end_turn", duration_ms: 1 },
    ]);
}"""
UNFOLD = """() => {
    const folded = ".line[aria-expanded=false], details:not([open]) > summary";
    for (const one of document.querySelectorAll(folded)) one.click();
}"""
# What the page says of itself after each broken answer to session/new.
SETTINGS = """async () => {
    const { broken, SETTINGS } = await import("/static/hostile.js");
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    let looks = 0;
    for (const state of broken(SETTINGS)) {
        fake.socket.tell({ type: "ready", protocol: 1, agent: "mock", state: "idle",
            pending_permissions: [], ...state, head: fake.seq });
        if (looks++ % 10) continue;
        await frame();
        for (const button of document.querySelectorAll(".settings .picker")) {
            button.click();
            document.querySelector(":popover-open")?.hidePopover();
        }
    }
    fake.socket.tell({ type: "ready", protocol: 1, agent: "mock", state: "idle",
        pending_permissions: [], ...SETTINGS, head: fake.seq });
}"""


def note_errors(page: Page) -> list[str]:
    """What views report if the last resort was needed: a defect, even though it is survived."""
    reported: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            reported.append(message.text)

    page.on("console", note)
    return reported


async def open_fake(tab: Tab, client: Client) -> None:
    await tab.page.add_init_script(path=FAKE_SOCKET)
    await tab.page.route(
        "**/static/hostile.js",
        lambda route: route.fulfill(path=HOSTILE, content_type="text/javascript"),
    )
    await tab.sign_in(await client.create())


async def assert_usable(tab: Tab, turns: int) -> None:
    """Every good message is there, and one can go on."""
    page = tab.page
    await expect(tab.answer(f"good {turns}.")).to_be_visible()
    await expect(tab.answer("good 1.")).to_have_count(1)  # which may be drawn last
    said = await tab.shown.locator(".message").all_text_contents()
    for turn in range(1, turns + 1):
        assert sum(f"good {turn}." in one for one in said) == 1, turn
    await tab.say("and now?")
    await page.wait_for_function("fake.sent.some(({ type }) => type === 'prompt')")
    await page.evaluate(ANSWER)
    await expect(tab.answer("still here")).to_be_visible()


async def test_no_field_of_any_type_makes_a_conversation_unreadable(
    open_tab: OpenTab, client: Client
) -> None:
    tab = await open_tab(client)
    page = tab.page
    reported = note_errors(page)
    await open_fake(tab, client)
    deep = os.environ.get("CLAWDFORGE_FUZZ_DEEP")
    turns = await page.evaluate(LIVE, "MORE_VALUES" if deep else "VALUES")
    await expect(tab.answer(f"good {turns}.")).to_be_visible()
    await page.evaluate(UNFOLD)
    await assert_usable(tab, turns)
    await page.evaluate(SETTINGS)
    await expect(page.get_by_role("heading", name="named")).to_be_visible()
    await tab.composer.fill("/h")
    await expect(page.get_by_role("option", name="/help")).to_be_visible()
    # The same from a log, which comes all at once and is drawn from its end.
    await tab.composer.fill("")
    await page.goto("about:blank")
    await page.add_init_script(FROM_THE_LOG)
    await tab.sign_in(await client.create())
    await page.evaluate(UNFOLD)
    await assert_usable(tab, turns)
    assert reported == []


BREAK_VIEWS = """async () => {
    const { PlanView, NoteView } = await import("/static/views/notes.js");
    const { ToolView } = await import("/static/views/tool.js");
    const { SettingsBar } = await import("/static/views/settings.js");
    const fail = () => { throw new Error("broken"); };
    PlanView.prototype.update = fail;
    ToolView.prototype.update = fail;
    SettingsBar.prototype.update = fail;
    const turn = { turn_index: 1, ts: Date.now() };
    const update = (sessionUpdate, more) => ({ ...turn, type: "event",
        event: { method: "session/update", params: { update: { sessionUpdate, ...more } } } });
    const say = (text) => update("agent_message_chunk", { content: { type: "text", text } });
    fake.feed([
        { ...turn, type: "turn_start", prompt: "go", id: null },
        update("plan", { entries: [{ content: "a step" }] }),
        update("tool_call", { toolCallId: "t", title: "a call", rawInput: "y".repeat(1_000_000) }),
        say("after all"),
        { ...turn, type: "turn_end", stop_reason: "end_turn", duration_ms: 1 },
    ]);
}"""


async def test_a_view_that_throws_is_replaced_by_the_raw_data(
    open_tab: OpenTab, client: Client
) -> None:
    tab = await open_tab(client)
    await open_fake(tab, client)
    await tab.page.evaluate(BREAK_VIEWS)
    await expect(tab.answer("after all")).to_be_visible()
    await tab.settled()
    raw = tab.shown.locator(".raw")
    await expect(raw).to_have_count(2)
    await raw.first.locator("summary").click()
    await expect(raw.first.locator("pre")).to_contain_text('"content": "a step"')
    await raw.last.locator("summary").click()
    await expect(raw.last.locator("pre")).to_contain_text('"title": "a call"')
    assert len(await raw.last.locator("pre").inner_text()) < 300_000
    await expect(tab.composer).to_be_editable()
