"""A conversation from the first visit on, as a user experiences it."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import FilePayload, Route, WebSocketRoute, expect

from ..support.harness import Client, eventually, script
from .conftest import OpenTab
from .tab import Tab

Json = dict[str, Any]


async def test_first_visit_leads_to_the_first_answer(open_tab: OpenTab, client: Client) -> None:
    tab = await open_tab(client)
    page = tab.page
    await page.goto(tab.url)
    await tab.picture("sign-in")
    await tab.axe("sign-in")
    await page.get_by_label("Access token").fill("cf_wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert").first).to_contain_text("does not know this token")
    await page.get_by_label("Access token").fill(tab.token)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("heading", name="What should the agent do?")).to_be_visible()
    await page.get_by_role("button", name="Agent: ").click()
    await page.get_by_role("menuitemradio", name="demo").click()
    await expect(tab.button("help")).to_be_visible()
    await tab.picture("start")
    await tab.axe("start")
    await tab.button("Project: New folder").click()
    chooser = page.get_by_role("dialog", name="Choose a project")
    await expect(chooser.get_by_role("status")).to_contain_text("CLAWDFORGE_WORKSPACE_ROOTS")
    await expect(chooser.get_by_role("button", name="Use this folder")).to_be_hidden()
    await tab.axe("no projects")
    await tab.picture("no-projects")
    await chooser.get_by_role("button", name="A new folder").click()
    await tab.say("Hello, agent")
    await expect(tab.answer("I am the clawdforge demo agent")).to_be_visible()
    await tab.settled()
    await tab.say("diff")
    await tab.button(re.compile("^Allow")).first.click()
    await tab.settled(2)
    await expect(page.locator(".path")).to_have_text("demo-notes.md")  # from where the agent works
    await expect(page.get_by_role("heading", name="Hello, agent", level=1)).to_be_visible()
    await expect(page.locator(".session-row")).to_contain_text("Hello, agent")
    state = await client.state(tab.session_id)
    assert state["meta"] == {"title": "Hello, agent"}
    assert (state["agent"], state["permission"]) == ("demo", "ask")
    # The token is in this tab, and nowhere else.
    assert await page.evaluate("Object.keys(sessionStorage)") != []
    assert tab.token not in await page.evaluate("JSON.stringify(localStorage)")


async def test_open_menu_stays_open_when_the_agents_arrive(
    open_tab: OpenTab, client: Client
) -> None:
    tab = await open_tab(client)
    page, known = tab.page, asyncio.Event()

    async def answer_late(route: Route) -> None:
        await known.wait()
        await route.continue_()

    await page.route("**/agents", answer_late)
    await page.goto(f"{tab.url}/#token={tab.token}")
    await expect(page.get_by_role("button", name="Agent: ")).to_be_disabled()
    await page.get_by_role("button", name="Permission: ").click()
    known.set()
    await expect(page.get_by_role("button", name="Agent: ")).to_be_enabled()
    await page.get_by_role("menuitemradio", name="Deny everything").click()
    await expect(page.get_by_role("button", name="Permission: Deny everything")).to_be_visible()
    await page.get_by_role("button", name="Agent: ").click()
    await page.get_by_role("menuitemradio", name="demo").click()
    await expect(page.get_by_role("button", name="Agent: demo")).to_be_visible()


@pytest.mark.slow
async def test_unread_marks_survive_a_reload(
    open_tab: OpenTab, client: Client, tmp_path: Path
) -> None:
    tab = await open_tab(client)
    page = tab.page
    gate, before = tmp_path / "gate", tmp_path / "before"
    await tab.sign_in(await client.create(meta={"title": "Ends before"}))
    await tab.say(script({"say": "begun"}, {"gate": str(before)}))
    await expect(tab.answer("begun")).to_be_visible()
    await tab.button("New session").click()
    before.touch()
    rows = page.locator(".session-row[data-state=finished]")
    await expect(rows).to_have_text([re.compile("Ends before")])
    # A turn that ends while the page is closed counts too.
    during = await client.create(meta={"title": "Ends during"})
    await tab.sign_in(during)
    await expect(tab.shown.get_by_role("heading", name="Ends during")).to_be_visible()
    await tab.say(script({"say": "begun"}, {"gate": str(gate)}))
    await expect(tab.answer("begun")).to_be_visible()
    await tab.button("New session").click()
    await expect(page.locator(".session-row[data-state=running]")).to_have_count(1)
    await page.goto("about:blank")
    gate.touch()

    async def idle() -> bool:
        return bool((await client.state(during))["state"] == "idle")

    await eventually("the turn to end", idle)
    await tab.sign_in()
    await expect(rows).to_have_count(2)
    await rows.filter(has_text="Ends before").locator("a").click()
    await expect(rows).to_have_text([re.compile("Ends during")])
    await page.reload()
    await expect(rows).to_have_text([re.compile("Ends during")])


async def test_permission_is_answered_by_mouse_and_keyboard(tab: Tab) -> None:
    page = tab.page
    ask = {"permission": {"title": "Delete everything", "kind": "delete"}}
    await tab.say(script(ask))
    card = page.get_by_role("group", name="asks for your permission")
    await expect(card).to_be_visible()
    await expect(page).to_have_title(re.compile("^Waiting for you · "))
    assert (await page.get_attribute("link[rel=icon]", "href") or "").endswith("-waiting.svg")
    await tab.axe("permission")
    await tab.picture("permission")
    # A key that is pressed while writing answers nothing.
    await tab.composer.press("1")
    await expect(card).to_be_visible()
    await tab.composer.fill("")
    await card.get_by_role("button", name="Allow once").click()
    await tab.settled(1)
    await expect(page.locator(".message").last).to_contain_text("allow_once")
    await expect(page.get_by_text("Allowed once")).to_be_visible()
    await expect(page).not_to_have_title(re.compile("^Waiting"))
    await tab.say(script(ask))
    await expect(card).to_be_visible()
    await page.keyboard.press("Control+.")
    await expect(card.get_by_role("button").first).to_be_focused()
    await page.keyboard.press("ArrowRight")
    await expect(card.get_by_role("button").nth(1)).to_be_focused()
    await page.keyboard.press("3")
    await tab.settled(2)
    await expect(page.locator(".message").last).to_contain_text("reject_once")
    await expect(tab.composer).to_be_focused()


async def test_two_requests_for_one_call_are_answered_separately(
    open_tab: OpenTab, tab: Tab, client: Client
) -> None:
    page = tab.page
    options = [
        {"optionId": "yes", "name": "Yes", "kind": "allow_once"},
        {"optionId": "no", "name": "No", "kind": "reject_once"},
    ]

    def ask(command: str) -> Json:
        call = {"toolCallId": "t1", "title": "Shell", "kind": "execute"}
        return {"toolCall": {**call, "rawInput": {"command": command}}, "options": options}

    lone: Json = {"toolCall": {"title": "Without an id"}, "options": options}
    await tab.say(script({"permission": [ask("ls"), ask("rm -rf build"), lone]}))
    cards = page.get_by_role("group", name="asks for your permission")
    await expect(cards).to_have_count(3)
    other = await open_tab(client)
    await other.sign_in(tab.session_id)
    await expect(other.page.locator(".ask-card:visible")).to_have_count(3)
    # From one to the next by the keys; each card takes its own.
    await page.keyboard.press("Control+.")
    await expect(cards.nth(0).get_by_role("button", name="Yes")).to_be_focused()
    await page.keyboard.press("Control+.")
    await expect(cards.nth(1).get_by_role("button", name="Yes")).to_be_focused()
    await tab.picture("permissions")
    await expect(cards.nth(1)).to_contain_text("rm -rf build")
    await page.keyboard.press("2")
    await expect(cards).to_have_count(2)
    await expect(other.page.locator(".ask-card:visible")).to_have_count(2)
    await expect(cards.first).to_contain_text("ls")
    await other.page.locator(".ask-card:visible").first.get_by_role("button", name="Yes").click()
    await expect(cards).to_have_count(1)
    await expect(cards.first).to_contain_text("Without an id")
    await expect(page).to_have_title(re.compile("^Waiting for you · "))
    await cards.first.get_by_role("button", name="Yes").click()
    await tab.settled()
    said = await tab.told()
    assert [one["optionId"] for one in said["permissions"]] == ["yes", "no", "yes"]


async def test_call_that_asks_shows_its_command_once(tab: Tab, tmp_path: Path) -> None:
    """In the call; while the request waits, in the request."""
    gate = tmp_path / "gate"
    call: Json = {"toolCallId": "t1", "title": "Shell", "kind": "execute"}
    call["rawInput"] = {"command": "rm -rf build"}
    started = {"update": {"sessionUpdate": "tool_call", **call, "status": "in_progress"}}
    await tab.say(script(started, {"gate": str(gate)}, {"permission": {"toolCall": call}}))
    body = tab.shown.locator(".tool-body > .code")
    await expect(body).to_be_visible()
    gate.touch()
    card = tab.page.get_by_role("group", name="asks for your permission")
    await expect(card.locator(".code")).to_contain_text("rm -rf build")
    await expect(tab.shown.locator(".code:visible")).to_have_count(1)
    await card.get_by_role("button", name="Allow once").click()
    await tab.settled()
    await expect(body).to_contain_text("rm -rf build")
    await expect(tab.shown.locator(".code:visible")).to_have_count(1)


async def test_button_scrolls_to_a_request_above_the_screen(tab: Tab) -> None:
    ask = {"toolCallId": "t1", "title": "Edit a.py", "kind": "edit"}
    lines = "\n\n".join(f"line {number}" for number in range(60))
    await tab.say(
        script(
            {"update": {"sessionUpdate": "tool_call", **ask}},
            {"say": lines},
            {"permission": {"toolCall": ask}},
        )
    )
    card = tab.page.get_by_role("group", name="asks for your permission")
    review = tab.button("Review")
    await expect(review).to_be_visible()
    await expect(tab.page.get_by_text("line 59", exact=True)).to_be_in_viewport()
    await expect(card).not_to_be_in_viewport()
    await tab.picture("permission-above")
    await review.click()
    await expect(card.get_by_role("button").first).to_be_focused()
    await expect(card).to_be_in_viewport()
    await expect(review).to_be_hidden()
    await tab.button("Go to the end").click()
    await expect(review).to_be_visible()
    await tab.page.keyboard.press("Control+.")
    await expect(card).to_be_in_viewport()
    await card.get_by_role("button", name="Allow once").click()
    await tab.settled()
    await expect(review).to_be_hidden()


async def test_button_and_escape_stop_the_agent(tab: Tab) -> None:
    for turn, how in enumerate(("button", "escape"), 1):
        await tab.say(script({"say": f"working {turn}"}, {"hang": True}))
        await expect(tab.answer(f"working {turn}")).to_be_visible()
        await expect(tab.page).to_have_title(re.compile("^Working · "))
        if how == "button":
            await tab.page.get_by_role("button", name="Stop the agent").click()
        else:
            await tab.composer.press("Escape")
        await tab.settled(turn)
        await expect(tab.turns.nth(turn - 1)).to_contain_text("Stopped")


async def test_input_method_and_repeated_keys_do_not_stop_the_agent(
    tab: Tab, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    await tab.say(script({"say": "begun, "}, {"gate": str(gate)}, {"say": "done"}))
    await expect(tab.answer("begun")).to_be_visible()
    await tab.composer.fill("にほんご")
    press = """(field, key) => field.dispatchEvent(
        new KeyboardEvent("keydown", { bubbles: true, cancelable: true, ...key }))"""
    await tab.composer.evaluate(press, {"key": "Escape", "isComposing": True})
    await tab.composer.evaluate(press, {"key": "Enter", "keyCode": 229})  # as WebKit confirms
    await tab.composer.evaluate(press, {"key": "Escape", "repeat": True})
    await expect(tab.composer).to_have_value("にほんご")
    gate.touch()
    await tab.settled()
    await expect(tab.answer("begun, done")).to_be_visible()


async def test_queued_prompts_can_be_withdrawn(tab: Tab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    await tab.say(script({"say": "first"}, {"gate": str(gate)}))
    await expect(tab.answer("first")).to_be_visible()
    await tab.say("second")
    await tab.say("third")
    waiting = tab.page.locator("[data-state=queued]")
    await expect(waiting).to_have_count(2)
    await tab.picture("queue")
    await tab.page.reload()  # the server knows them, too
    await expect(waiting).to_have_count(2)
    await waiting.filter(has_text="second").get_by_role("button", name="Take out").click()
    await expect(waiting).to_have_count(1)
    gate.touch()
    await expect(tab.answer("echo: third")).to_be_visible()
    await expect(tab.answer("echo: second")).to_have_count(0)


@pytest.mark.slow
async def test_two_tabs_show_the_same_conversation(
    open_tab: OpenTab, tab: Tab, client: Client
) -> None:
    await tab.say("hello")
    await tab.settled()
    other = await open_tab(client)
    await other.sign_in(tab.session_id)
    await expect(other.page.locator(".message")).to_contain_text("echo: hello")
    await other.say(script({"permission": True}))
    for one in (tab, other):
        await expect(one.page.locator(".ask-card")).to_be_visible()
    await tab.page.get_by_role("button", name="Allow once").click()
    for one in (tab, other):
        await one.settled(2)
        await expect(one.page.get_by_text("Allowed once")).to_be_visible()
    await tab.say(script({"hang": True}))
    await expect(other.turns).to_have_count(3)
    await tab.say("what waits for its turn")
    for one in (tab, other):
        await expect(one.page.locator("[data-state=queued]")).to_have_count(1)
    await other.button("Take out").click()
    for one in (tab, other):
        await expect(one.page.locator("[data-state=queued]")).to_have_count(0)
    await other.composer.press("Escape")
    await tab.settled(4)


NOTIFICATIONS = """
window.told = [];
window.Notification = class {
    static requestPermission = async () => "granted";
    constructor(title, { body }) { told.push(`${title}: ${body}`); }
};
document.hasFocus = () => false; // its reader is elsewhere
"""


@pytest.mark.slow
async def test_background_session_notifies_when_it_waits(
    open_tab: OpenTab, client: Client, tmp_path: Path
) -> None:
    tab = await open_tab(client)
    page = tab.page
    await page.add_init_script(NOTIFICATIONS)
    await tab.sign_in()
    await tab.button("Settings").click()
    await page.get_by_role("menuitem", name="Notifications").click()
    await page.get_by_label("While the page is open").check()
    await page.keyboard.press("Escape")
    gate = tmp_path / "gate"
    name = {"update": {"sessionUpdate": "session_info_update", "title": "Named by its agent"}}
    ask = {"permission": {"title": "Delete everything"}}
    await tab.say(script({"say": "begun"}, name, {"gate": str(gate)}, ask))
    await expect(tab.answer("begun")).to_be_visible()
    await tab.button("New session").click()
    await tab.say("another one")
    await tab.settled()
    rows = page.locator(".session-row")
    await expect(rows).to_have_count(2)
    await expect(page.locator(".session-row[data-state=running]")).to_have_count(1)
    gate.touch()
    # A state and a title side by side are of one session.
    waiting = re.compile("^Waiting for you · (?!another one)")
    await expect(page).to_have_title(waiting)
    # The title may say it first: it goes by the list of sessions, too.
    told = "told.includes('mock waits for you: Delete everything')"
    await eventually("the notification", lambda: page.evaluate(told))
    await page.reload()  # where only the one on the screen is open
    await expect(page).to_have_title(waiting)
    await page.locator(".session-row[data-state=waiting] a").click()
    await tab.button("Allow once").click()
    await tab.settled()
    # The first line of what was asked gives way to the agent's own name for it.
    await expect(rows.filter(has_text="Named by its agent")).to_have_count(1)
    await expect(page.get_by_role("heading", name="Named by its agent")).to_be_visible()
    await expect(page).to_have_title("Named by its agent")
    # A session that finished in the background is marked until it is opened.
    gate.unlink()
    await tab.say(script({"gate": str(gate)}))
    await rows.filter(has_text="another one").locator("a").click()
    gate.touch()
    finished = page.locator(".session-row[data-state=finished] a")
    await expect(finished).to_have_count(1)
    await finished.click()
    await expect(finished).to_have_count(0)


async def test_files_are_attached_by_selection_and_drop(tab: Tab, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("remember the milk")
    picture = tmp_path / "p.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    arrived = asyncio.Event()

    async def hold(route: Route) -> None:
        await arrived.wait()
        await route.continue_()

    await tab.page.route("**/files", hold)
    await tab.page.locator("input[type=file]").first.set_input_files([notes, picture])
    chips = tab.page.locator(".attachments .chip[data-state=ready]")
    await expect(tab.page.get_by_role("progressbar", name="Uploading notes.txt")).to_be_visible()
    await tab.composer.fill("too early")
    await expect(tab.button("Send").and_(tab.page.locator(":visible"))).to_be_disabled()
    arrived.set()
    await expect(chips).to_have_count(2)
    await expect(chips.locator("img")).to_be_visible()
    await tab.picture("attached")
    # One comes through the clipboard, as a screenshot does.
    paste = """(field) => {
        const data = new DataTransfer();
        data.items.add(new File(["pasted"], "pasted.txt", { type: "text/plain" }));
        field.dispatchEvent(new ClipboardEvent("paste", { bubbles: true, clipboardData: data }));
    }"""
    await tab.composer.evaluate(paste)
    await expect(chips).to_have_count(3)
    await chips.filter(has_text="pasted.txt").get_by_role("button").click()
    await expect(chips).to_have_count(2)
    drop = """(area) => {
        const data = new DataTransfer();
        data.items.add(new File(["dropped"], "dropped.md", { type: "text/markdown" }));
        for (const type of ["dragover", "drop"])
            area.dispatchEvent(new DragEvent(type, { bubbles: true, dataTransfer: data }));
    }"""
    await tab.page.locator(".start").evaluate(drop)
    await expect(chips).to_have_count(3)
    await chips.filter(has_text="dropped.md").get_by_role("button").click()
    await expect(chips).to_have_count(2)
    await tab.say(script({"echo": True}))
    await tab.settled()
    bubble = tab.page.locator(".bubble")
    await expect(bubble).to_contain_text("notes.txt")
    await expect(bubble).not_to_contain_text("Attached files")
    await expect(bubble.locator("img")).to_have_count(1)
    message = tab.page.locator(".message")
    await expect(message).to_contain_text("notes.txt")
    said = await message.inner_text()
    path = re.search(r"/\S*?/notes\.txt", said)
    assert path is not None, said
    assert Path(path[0]).read_text() == "remember the milk"


async def test_images_beyond_the_frame_limit_are_uploaded(
    tab: Tab,
) -> None:
    data = b"\x89PNG\r\n\x1a\n" + b"\0" * 1_500_000
    pictures = [
        FilePayload(name=name, mimeType="image/png", buffer=data) for name in ("a.png", "b.png")
    ]
    await tab.page.locator("input[type=file]").first.set_input_files(pictures)
    chips = tab.page.locator(".attachments .chip[data-state=ready]")
    await expect(chips).to_have_count(2)
    await expect(chips.locator("img")).to_have_count(1)


NOTES = FilePayload(name="notes.txt", mimeType="text/plain", buffer=b"remember the milk")


async def test_failed_session_creation_keeps_the_text(tab: Tab) -> None:
    page = tab.page

    async def refuse(route: Route) -> None:
        failure = {"ok": False, "error": "All places are taken.", "code": "pool_full"}
        if route.request.method == "POST":
            await route.fulfill(status=503, json=failure)
        else:
            await route.continue_()

    await page.route("**/sessions", refuse)
    await tab.composer.fill("read it")
    await page.reload()
    await expect(tab.composer).to_have_value("read it")
    await page.locator("input[type=file]").first.set_input_files(NOTES)
    chips = page.locator(".attachments .chip[data-state=ready]")
    await expect(chips).to_have_count(1)
    await tab.composer.press("Enter")
    await expect(page.get_by_text("All places are taken.")).to_be_visible()
    await expect(tab.composer).to_be_focused()
    await expect(tab.composer).to_have_value("read it")
    await expect(chips).to_have_count(1)
    await page.unroute("**/sessions")
    await tab.composer.press("Enter")
    await tab.settled()
    await expect(page.locator(".bubble")).to_contain_text("notes.txt")
    await tab.button("New session").click()
    await expect(tab.composer).to_have_value("")
    await expect(chips).to_have_count(0)


async def test_new_session_is_created_once_and_does_not_take_over_the_screen(
    open_tab: OpenTab, client: Client
) -> None:
    elsewhere = await client.create(meta={"title": "Elsewhere"})
    tab = await open_tab(client)
    await tab.sign_in()
    page, known, asked = tab.page, asyncio.Event(), 0

    async def answer_late(route: Route) -> None:
        nonlocal asked
        if route.request.method == "POST":
            asked += 1
            await known.wait()
        await route.continue_()

    await page.route("**/sessions", answer_late)
    await tab.composer.fill("hello")
    twice = """(field) => {
        for (let press = 0; press < 2; press += 1)
            field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    }"""
    await tab.composer.evaluate(twice)
    await expect(page.locator(".start-inner[inert]")).to_have_count(1)
    await page.get_by_role("link", name="Elsewhere").click()
    await expect(page.get_by_role("heading", name="Elsewhere")).to_be_visible()
    await tab.composer.fill("half a sent")
    known.set()
    await expect(page.locator(".session-row")).to_have_count(2)
    await expect(tab.composer).to_have_value("half a sent")
    assert (tab.session_id, asked) == (elsewhere, 1)


async def test_refused_prompt_returns_above_the_draft(open_tab: OpenTab, client: Client) -> None:
    session_id = await client.create()
    tab = await open_tab(client)
    page = tab.page

    async def refuse(ws: WebSocketRoute) -> None:
        server = ws.connect_to_server()

        def up(message: str | bytes) -> None:
            frame = json.loads(message)
            if frame["type"] == "prompt":
                failure = {"code": "queue_full", "message": "Eight wait.", "retryable": True}
                ws.send(json.dumps({"type": "error", "id": frame["id"], **failure}))
            else:
                server.send(message)

        ws.on_message(up)

    await page.route_web_socket(re.compile("/ws$"), refuse)
    await tab.sign_in(session_id)
    await tab.shown.locator("input[type=file]").set_input_files(NOTES)
    chips = tab.shown.locator(".attachments .chip[data-state=ready]")
    await expect(chips).to_have_count(1)
    await tab.say("read it")
    await expect(page.get_by_text("Eight wait.")).to_be_visible()
    await expect(chips).to_have_count(0)
    await tab.composer.fill("and this")
    await page.reload()
    await tab.button("Edit").click()
    await expect(tab.composer).to_have_value("read it\n\nand this")
    await expect(chips).to_have_count(1)
    await expect(tab.button("Edit")).to_have_count(0)


async def test_mode_and_options_are_those_of_the_agent(open_tab: OpenTab, client: Client) -> None:
    session_id = await client.create("mock-modes")
    tab = await open_tab(client)
    await tab.sign_in(session_id)
    await tab.say("hello")
    await tab.settled()
    bar = tab.page.get_by_role("group", name="Agent settings")
    await bar.get_by_role("button", name=re.compile("^Mode: ")).click()
    menu = await tab.page.get_by_role("menu").bounding_box()
    window = tab.page.viewport_size
    assert menu is not None
    assert window is not None
    assert 0 <= menu["x"] <= window["width"] - menu["width"]
    assert 0 <= menu["y"] <= window["height"] - menu["height"]
    await tab.page.get_by_role("menuitemradio", name="code", exact=False).click()
    await expect(
        bar.get_by_role("button", name=re.compile("^Mode: code", re.IGNORECASE))
    ).to_be_visible()
    state = await client.state(session_id)
    assert state["modes"]["currentModeId"] == "code"


async def test_page_shows_that_an_agent_does_not_ask(open_tab: OpenTab, client: Client) -> None:
    session_id = await client.create("claude", permission="ask")  # it has no mode in which it asks
    tab = await open_tab(client)
    await tab.sign_in(session_id)
    await tab.say("hello")  # it may not have been started before
    await tab.settled()
    await expect(tab.page.get_by_text("This agent does not ask for permission")).to_be_visible()


@pytest.mark.slow
async def test_session_is_renamed_found_and_closed(tab: Tab, client: Client) -> None:
    page = tab.page
    await tab.say("first name")
    await tab.settled()
    session_id = tab.session_id
    more = tab.shown.get_by_role("button", name="More for this session")
    await more.click()
    await page.get_by_role("menuitem", name="Rename").click()
    await page.get_by_role("textbox", name="Rename the session").fill("Second name")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Second name")).to_be_visible()
    await client.create(meta={"title": "Another one"})
    rows = page.locator(".session-row")
    await expect(rows).to_have_count(2)  # at once, from the list's socket
    await page.keyboard.press("Control+Shift+f")
    await expect(page.get_by_label("Find a session")).to_be_focused()
    await page.reload()
    await expect(rows).to_have_count(2)
    await page.get_by_label("Find a session").fill("another")
    await expect(rows).to_have_count(1)
    await page.get_by_label("Find a session").fill("")
    await more.click()
    await page.get_by_role("menuitem", name="Close session").click()
    await page.get_by_role("button", name="Close session").click()
    await expect(page.get_by_text("This session was closed.")).to_be_visible()
    await tab.picture("closed")
    state = await client.state(session_id)
    assert (state["state"], state["retention_secs"]) == ("closed", None)
    # It stays in the list, and the next message continues it.
    await expect(rows).to_have_count(2)
    await tab.say("again")
    await tab.settled(2)
    assert (await client.state(session_id))["state"] == "idle"
    assert tab.session_id == session_id


async def test_raw_frames_are_listed_and_filtered(tab: Tab) -> None:
    await tab.say("hello")
    await tab.settled()
    await tab.page.keyboard.press("Control+`")
    frames = tab.page.get_by_role("complementary", name="Raw frames")
    await expect(frames.locator("summary").filter(has_text="turn_end")).to_have_count(1)
    auth = frames.locator("li").filter(has_text="auth").first
    await auth.locator("summary").click()
    await expect(auth.locator("pre")).to_contain_text('"after": 0')
    assert tab.token not in await frames.inner_text()  # not even on one's own screen
    await tab.axe("frames")
    await tab.picture("frames")
    await frames.get_by_role("button", name="Close the raw frames").click()
    await expect(frames).to_be_hidden()


async def test_missing_session_shows_an_error(open_tab: OpenTab, client: Client) -> None:
    tab = await open_tab(client)
    await tab.page.goto(f"{tab.url}/#token={tab.token}&session=00000000-nobody")
    await expect(tab.page.locator(".ended")).to_contain_text("This session does not exist")
    await tab.picture("no-session")
