"""Malformed and hostile agent messages: the conversation stays readable and the page works."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from playwright.async_api import ConsoleMessage, Page, expect

from ..support.harness import ROOT, Client, eventually, script
from .conftest import OpenTab
from .tab import Tab

Json = dict[str, Any]

FAKE_SOCKET = ROOT / "tests" / "browser" / "fake_socket.js"
HOSTILE = ROOT / "tests" / "js" / "hostile.mjs"

# All broken entries by turns; how many turns, so that each can be looked for.
LIVE = """async () => {
    const hostile = await import("/static/hostile.js");
    const entries = [...hostile.hostileTurns()];
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
# The page's settings after each broken response to session/new.
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
            if (!button.checkVisibility()) continue; // one of the start page
            button.click();
            document.querySelector(":popover-open")?.hidePopover();
        }
    }
    fake.socket.tell({ type: "ready", protocol: 1, agent: "mock", state: "idle",
        pending_permissions: [], ...SETTINGS, head: fake.seq });
}"""


def note_errors(page: Page) -> list[str]:
    """Collect errors of views that were replaced by raw data; each is a defect."""
    reported: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            reported.append(message.text)

    page.on("console", note)
    return reported


async def open_fake(tab: Tab, client: Client) -> None:
    await tab.page.add_init_script(path=FAKE_SOCKET)
    # No time passes while a frame is drawn, so all that is new is drawn in one.
    await tab.page.add_init_script("performance.now = () => 0")
    await tab.page.route(
        "**/static/hostile.js",
        lambda route: route.fulfill(path=HOSTILE, content_type="text/javascript"),
    )
    await tab.sign_in(await client.create())


async def until_sent(page: Page, condition: str) -> None:
    """Wait for a frame of the page. The page's policy forbids Playwright's own wait to poll."""
    sent = f"fake.sent.some(({{ type, outcome }}) => {condition})"
    await eventually(f"a frame with {condition}", lambda: page.evaluate(sent))


async def assert_usable(tab: Tab, turns: int) -> None:
    """Every good message is there, and one can go on.

    Without ``expect``: while it waits it describes the page, for which the browser has to lay out
    megabytes that are out of sight.
    """
    page = tab.page
    await tab.answer(f"good {turns}.").wait_for()
    await tab.answer("good 1.").wait_for(state="attached")  # which may be drawn last
    said = await tab.shown.locator(".message").all_text_contents()
    for turn in range(1, turns + 1):
        assert sum(f"good {turn}." in one for one in said) == 1, turn
    await tab.say("and now?")
    await until_sent(page, "type === 'prompt'")
    await page.evaluate(ANSWER)
    await tab.answer("still here").wait_for()


@pytest.mark.slow
async def test_wrong_field_types_leave_the_conversation_readable(
    open_tab: OpenTab, client: Client
) -> None:
    tab = await open_tab(client)
    page = tab.page
    reported = note_errors(page)
    await open_fake(tab, client)
    turns = await page.evaluate(LIVE)
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


LONG = os.environ.get("CLAWDFORGE_TEST_CHAOS") == "long"

AT_RANDOM = """async (seed) => {
    const { randomTurns } = await import("/static/hostile.js");
    fake.feed([...randomTurns(seed)]);
}"""


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(20 if LONG else 1))
async def test_random_field_types_leave_the_conversation_readable(
    open_tab: OpenTab, client: Client, attempt: int
) -> None:
    seed = random.randrange(1, 2**31)
    print(f"attempt {attempt}: seed {seed}")  # noqa: T201  # shown if it fails
    tab = await open_tab(client)
    reported = note_errors(tab.page)
    await open_fake(tab, client)
    await tab.page.evaluate(AT_RANDOM, seed)
    await expect(tab.answer("good 12.")).to_be_visible()
    await tab.page.evaluate(UNFOLD)
    await assert_usable(tab, 12)
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


@pytest.mark.slow
async def test_failing_view_is_replaced_by_raw_data(open_tab: OpenTab, client: Client) -> None:
    tab = await open_tab(client)
    # The sources, whose modules a test can reach.
    await tab.page.route(
        f"{client.url}/",
        lambda route: route.fulfill(path=ROOT / "static" / "index.html", content_type="text/html"),
    )
    await open_fake(tab, client)
    await tab.share_policy()
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


RLO, ZWSP, TAG = "\u202e", "\u200b", "\U000e0041"


async def test_invisible_characters_are_shown_by_code_point(
    open_tab: OpenTab, client: Client
) -> None:
    tab = await open_tab(client)
    page = tab.page
    await tab.sign_in()
    command = f"git push{RLO} hcrof--\n\n  rm -rf build{ZWSP} " + " " * 40 + "; true \t"
    call = {
        "toolCallId": "t",
        "title": f"Push{RLO} it",
        "kind": "execute",
        "rawInput": {"command": command, "timeout": 9, "note": f"x{ZWSP}y"},
        "locations": [{"path": f"/app/a{ZWSP}b.py"}],
    }
    diff = {"type": "diff", "path": f"/x/{RLO}yp.a", "oldText": f"a{ZWSP}", "newText": f"b{TAG}"}
    options = [{"optionId": "y", "name": f"Allow{RLO}", "kind": "allow_once"}]
    prose = (
        f"Shalom \u200f\u05e9\u05dc\u05d5\u05dd, \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 "
        f"\U0001f468\u200d\U0001f469\u200d\U0001f467 hidden{TAG}. `code{RLO}` &#x202E;turned\n\n"
        f"[https://bank.example](https://evil.example/login) [good.example](https://good.example/) "
        f"[here](https://xn--80ak6aa92e.com/) [mail@a.example](mailto:mail@a.example)\n\n"
        f"```py\nx = 1{RLO}\n```\n"
    )
    edit = {"toolCallId": "e", "title": f"Edit{TAG}", "kind": "edit", "content": [diff]}
    update = {"sessionUpdate": "session_info_update", "title": f"Nice{RLO} name"}
    await tab.say(
        script(
            {"say": prose},
            {"update": {"sessionUpdate": "tool_call", **edit}},
            {"update": update},
            {"permission": {"toolCall": call, "options": options}},
        )
    )
    card = page.get_by_role("group", name="asks for your permission")
    await expect(card).to_contain_text("PushU+202E it")
    await expect(card).to_contain_text("/app/aU+200Bb.py")
    shown = card.locator(".exact").first.locator("code")
    await expect(shown).to_contain_text("git pushU+202E hcrof--")
    await expect(shown).to_contain_text("rm -rf buildU+200B")
    await expect(shown).to_contain_text("blank ×41")
    signs = await shown.locator(".blank").evaluate_all("(all) => all.map((o) => o.dataset.sign)")
    assert signs == ["↵", "↵", "··", "·", "→"]
    await expect(card.locator(".exact").last).to_contain_text('"timeout": 9')
    await expect(card.locator(".exact").last).to_contain_text("xU+200By")
    await expect(card.locator(".chips button").first).to_contain_text("AllowU+202E")
    await tab.axe("hidden characters")
    await tab.picture("hidden-characters")
    await page.set_viewport_size({"width": 360, "height": 740})
    await tab.picture("hidden-characters-phone")
    await page.set_viewport_size({"width": 1280, "height": 800})
    await card.locator(".chips button").first.click()
    await tab.settled()
    said = tab.shown.locator(".message").first
    await expect(said).to_contain_text("hiddenU+E0041.")
    await expect(said.locator("p code")).to_have_text("codeU+202E")
    await expect(said).to_contain_text("U+202Eturned")
    await expect(said.locator("pre code")).to_have_text("x = 1U+202E")
    # Characters that languages and emoji need are unchanged.
    assert await said.locator(".sign-of").count() == 4
    leads = await said.locator(".leads").all_inner_texts()
    assert [one.strip() for one in leads] == ["→ evil.example/login", "→ xn--80ak6aa92e.com"]
    body = tab.shown.locator(".tool").filter(has_text="EditU+E0041")
    await expect(body.locator(".path")).to_have_text("/x/U+202Eyp.a")
    await expect(body.locator(".row.del")).to_contain_text("aU+200B")
    await expect(body.locator(".row.add")).to_contain_text("bU+E0041")
    await expect(tab.shown.locator("h1")).to_have_text("NiceU+202E name")
    await expect(page.locator(".session-row")).to_contain_text("NiceU+202E name")
    await expect(page).to_have_title("Nice[U+202E] name")


ASKED_FOR = """(call) => fake.feed([
    { type: "turn_start", turn_index: 1, ts: 1, prompt: "go", id: null },
    { type: "permission_request", turn_index: 1, ts: 1, request_id: "r", request: { toolCall: call,
        options: [{ optionId: "y", name: "Reject", kind: "allow_always" }] } },
])"""
# Where each of these words begins on the screen.
POSITIONS = """(code, words) => words.map((word) => {
    const walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const at = walker.currentNode.data.indexOf(word);
        if (at < 0) continue;
        const range = document.createRange();
        range.setStart(walker.currentNode, at);
        range.setEnd(walker.currentNode, at + word.length);
        return range.getBoundingClientRect().left;
    }
})"""


async def test_permission_request_keeps_its_order_and_is_fully_visible(
    open_tab: OpenTab, client: Client
) -> None:
    tab = await open_tab(client)
    reported = note_errors(tab.page)
    await open_fake(tab, client)
    hebrew = ["\u05d0\u05d1", "\u05d2\u05d3", "\u05d4\u05d5"]
    command = f"rm {'/'.join(hebrew)} ; end\n" + "a\n" * 8_000
    diff = {"type": "diff", "path": "/a/" + "/".join(hebrew), "newText": "x" + " " * 5000 + "y"}
    call = {"toolCallId": "t", "title": "t\u200b" * 8_000, "kind": "execute"}
    await tab.page.evaluate(
        ASKED_FOR, {**call, "rawInput": {"command": command}, "content": [diff]}
    )
    card = tab.shown.locator(".ask-card")
    for place in (card.locator(".exact code"), card.locator(".path")):
        found = await place.evaluate(f"(place) => ({POSITIONS})(place, {hebrew!r})")
        assert found == sorted(found)
        assert len(set(found)) == 3
    wide = "(box) => box.scrollWidth > box.clientWidth"
    assert not await card.locator(".diff-body").evaluate(wide)
    # A text that is too long to be drawn at once shows the number of missing characters.
    more = card.get_by_role("button", name="more characters")
    shown = "(code) => code.textContent.length"
    before = await card.locator(".exact code").evaluate(shown)
    assert str(len(command) - before) in await more.inner_text()
    await more.click()
    await expect(more).to_have_count(0)
    assert await card.locator(".exact code").evaluate(shown) == len(command)
    # An agent that offers no way to refuse is refused all the same.
    await card.locator(".chips button").last.click()
    await until_sent(tab.page, "outcome === 'cancelled'")
    assert reported == []


IMAGES = """async (addresses) => {
    const { safeImage } = await import("/static/views/content.js");
    return addresses.filter(safeImage);
}"""


@pytest.mark.slow
async def test_images_of_other_servers_are_not_shown(tab: Tab) -> None:
    good = ["/x.png", "/a/../b.png", "data:image/png;base64,AA==", "DATA:image/svg+xml,%3Csvg/%3E"]
    bad = [
        "/\t/host/x.png",
        "/\n/host/x.png",
        "\t//host/x.png",
        " //host/x.png",
        "\x01//host/x.png",
        "/\\host/x.png",
        "\\\\host/x.png",
        "/\\\t/host/x.png",
        "ht\ntps://host/x.png",
        "https:/host/x.png",
        "https:x.png",
        "x.png",
        "data:text/html,x",
        "data:image/pngx,x",
        "data: image/png,x",
        "blob:https://host/1",
        "javascript:1",
        "",
        None,
        7,
        ["/x.png"],
    ]
    await tab.share_policy()
    assert await tab.page.evaluate(IMAGES, [*good, *bad]) == good
