"""The user's text is never lost, and keys work as in other chats."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import FilePayload, Route, expect

from ..support.harness import Client, Deadline, eventually, script
from .conftest import OpenTab
from .tab import PHONE, Tab

Json = dict[str, Any]

NOTES = FilePayload(name="notes.txt", mimeType="text/plain", buffer=b"remember the milk")
FORBID_STORAGE = """
for (const name of ["sessionStorage", "localStorage"])
    Object.defineProperty(window, name, { get() { throw new DOMException("", "SecurityError"); } });
"""


async def test_draft_of_closed_session_is_kept_and_continues_it(
    open_tab: OpenTab, client: Client
) -> None:
    first, second = await client.create(meta={"title": "First"}), await client.create()
    await client.turn(first, "hello")
    tab = await open_tab(client)
    page = tab.page
    await tab.sign_in(first)
    await tab.composer.fill("half a thought")
    await tab.shown.locator("input[type=file]").set_input_files(NOTES)
    chips = tab.shown.locator(".attachments .chip[data-state=ready]")
    await expect(chips).to_have_count(1)
    await page.evaluate(f"location.hash = 'session={second}'")
    await expect(tab.composer).to_have_value("")
    await client.delete(f"/sessions/{first}")
    await page.reload()
    await page.locator(".session-row").filter(has_text="First").locator("a").click()
    await expect(tab.shown.locator(".ended")).to_contain_text("Your next message continues it")
    await expect(tab.composer).to_have_value("half a thought")
    await expect(chips).to_have_count(1)
    await tab.picture("closed-with-a-draft")
    await tab.axe("closed with a draft")
    # It is deleted in a day, unless the user keeps it.
    await tab.shown.get_by_role("button", name="Keep it").click()
    await expect(tab.shown.locator(".ended")).not_to_contain_text("deleted")
    assert (await client.state(first))["retention_secs"] is None
    await tab.composer.press("Enter")
    await expect(tab.answer("half a thought")).to_be_visible()
    assert tab.session_id == first
    await expect(tab.turns).to_have_count(2)
    await expect(tab.shown.locator(".ended")).to_be_hidden()


async def test_prompt_refused_by_closed_session_can_be_edited_and_sent_again(
    open_tab: OpenTab, client: Client
) -> None:
    session_id = await client.create()
    await client.delete(f"/sessions/{session_id}")
    tab = await open_tab(client)
    # As a tab that was away while its session was closed finds it.
    prompt = [{"type": "text", "text": "sent too late"}]
    saved = [{"id": "late", "prompt": prompt, "files": [], "state": "sending"}]
    key = f"clawdforge:outbox:{session_id}"
    await tab.page.add_init_script(
        script=f"sessionStorage.once || (sessionStorage[{key!r}] = JSON.stringify({saved}),"
        " sessionStorage.once = 1)"
    )
    await tab.page.goto(f"{tab.url}/#token={tab.token}&session={session_id}")
    refused = tab.shown.locator("[data-state=failed]")
    await expect(refused).to_contain_text("sent too late")
    await tab.button("Edit").click()
    await expect(tab.composer).to_have_value("sent too late")
    await expect(refused).to_have_count(0)
    await tab.button("Continue this session").click()
    await expect(tab.answer("echo: sent too late")).to_be_visible()
    assert tab.session_id == session_id


async def test_withdrawn_prompt_returns_to_the_composer(tab: Tab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    await tab.say(script({"say": "first"}, {"gate": str(gate)}))
    await expect(tab.answer("first")).to_be_visible()
    await tab.shown.locator("input[type=file]").set_input_files(NOTES)
    chips = tab.shown.locator(".attachments .chip[data-state=ready]")
    await expect(chips).to_have_count(1)
    await tab.say("for later")
    await expect(chips).to_have_count(0)
    await tab.composer.fill("being written")
    await tab.button("Take out").click()
    await expect(tab.composer).to_have_value("for later\n\nbeing written")
    await expect(chips).to_have_count(1)
    taken = tab.shown.locator(".turn.withdrawn")
    await expect(taken).to_contain_text("the agent did not receive it")
    await tab.picture("withdrawn")
    await tab.axe("withdrawn")
    await tab.composer.fill("")
    await taken.get_by_role("button", name="Edit").click()
    await expect(tab.composer).to_have_value(re.compile("for later$"))
    gate.touch()
    await tab.settled(2)


async def test_drafts_survive_history_undo_sign_out_and_forbidden_storage(
    open_tab: OpenTab, client: Client
) -> None:
    tab = await open_tab(client)
    page = tab.page
    await tab.sign_in()
    await tab.say("one")
    await tab.settled()
    await tab.composer.fill("my draft")
    await tab.composer.evaluate("(field) => field.setSelectionRange(0, 0)")
    await page.keyboard.press("ArrowUp")
    await expect(tab.composer).to_have_value("one")
    await page.reload()
    await expect(tab.composer).to_have_value("my draft")
    await tab.composer.evaluate("(field) => (field.focus(), field.setSelectionRange(0, 0))")
    await page.keyboard.press("ArrowUp")
    await page.keyboard.press("Enter")  # the recalled prompt goes out; the draft comes back
    await tab.settled(2)
    await expect(tab.composer).to_have_value("my draft")
    await page.keyboard.press("Enter")
    await tab.settled(3)
    await page.keyboard.press("Control+z")
    await expect(tab.composer).to_have_value("my draft")
    await tab.button("Settings").click()
    await page.get_by_role("menuitem", name="Sign out").click()
    await page.get_by_label("Access token").fill(tab.token)
    await tab.button("Sign in").click()
    await expect(tab.composer).to_have_value("my draft")

    # Each tab has drafts of its own, also one that may store nothing.
    other = await open_tab(client)
    await other.page.add_init_script(FORBID_STORAGE)
    await other.sign_in()
    await other.composer.fill("in memory")
    await other.page.locator(".session-row a").first.click()
    await expect(other.composer).to_have_value("")
    await other.button("New session").click()
    await expect(other.composer).to_have_value("in memory")


@pytest.mark.parametrize(
    ("address", "awaited"),
    [
        ("token={token}&session={session}", r"/sessions\?"),
        ("session={session}", r"/static/(p-|views/)"),
    ],
    ids=["signs-in", "first-conversation"],
)
async def test_page_takes_no_prompt_before_it_shows_the_session_of_its_address(
    tab: Tab, client: Client, address: str, awaited: str
) -> None:
    session = await client.create()
    asked, answered = asyncio.Event(), asyncio.Event()

    async def answer_late(route: Route) -> None:
        asked.set()
        await answered.wait()
        await route.continue_()

    await tab.page.route(re.compile(awaited), answer_late)
    hash_of_session = address.format(token=tab.token, session=session)
    await tab.page.evaluate("(hash) => void (location.hash = hash)", hash_of_session)
    async with Deadline("the held request"):
        await asked.wait()
    await expect(tab.page.locator("textarea:visible")).to_have_count(0)
    answered.set()
    await tab.say("to this session")
    await expect(tab.answer("echo: to this session")).to_be_visible()
    assert tab.session_id == session
    listed = (await client.get("/sessions"))[1]["sessions"]
    assert [one["session_id"] for one in listed] == [session]


async def test_late_sign_in_does_not_replace_the_page_of_a_newer_one(
    tab: Tab, client: Client
) -> None:
    page, session = tab.page, await client.create()
    asked, answered = asyncio.Event(), asyncio.Event()

    async def hold_first(route: Route) -> None:
        if not asked.is_set():
            asked.set()
            await answered.wait()
        await route.continue_()

    await page.route(re.compile(r"/sessions\?"), hold_first)
    enter = "(hash) => void (location.hash = hash)"
    await page.evaluate(enter, f"token={tab.token}&session=")
    async with Deadline("the held request"):
        await asked.wait()
    await page.evaluate(enter, f"token={tab.token}&session={session}")
    await tab.composer.fill("typed")
    await page.evaluate("() => void (window.shell = document.querySelector('.shell'))")
    async with page.expect_response(re.compile(r"/sessions\?")) as late:
        answered.set()
    await (await late.value).finished()
    await tab.composer.press("Enter")
    await expect(tab.answer("echo: typed")).to_be_visible()
    assert await page.evaluate("window.shell === document.querySelector('.shell')")


async def test_enter_inserts_a_line_on_a_phone(open_tab: OpenTab, client: Client) -> None:
    tab = await open_tab(client, viewport=PHONE, has_touch=True, is_mobile=True)
    await tab.sign_in()
    await tab.composer.tap()
    await tab.page.keyboard.type("one")
    await tab.page.keyboard.press("Enter")
    await tab.page.keyboard.type("two")
    await expect(tab.composer).to_have_value("one\ntwo")
    await tab.button("Send").and_(tab.page.locator(":visible")).tap()
    await expect(tab.answer("echo: one")).to_be_visible()


async def test_keys_wait_for_the_palette_that_is_being_loaded(
    open_tab: OpenTab, client: Client
) -> None:
    """They neither stop the turn nor send the draft."""
    session_id = await client.create()
    bot = await client.connect(session_id)
    await bot.send("prompt", prompt=script({"say": "Working."}, {"hang": True}))
    tab = await open_tab(client)
    page, loaded = tab.page, asyncio.Event()

    async def hold(route: Route) -> None:
        await loaded.wait()
        await route.continue_()

    await page.route("**/panels.css*", hold)
    await tab.sign_in(session_id)
    await expect(tab.answer("Working.")).to_be_visible()
    await tab.composer.fill("a draft")
    for key in ("Control+k", "h", "Escape", "e", "Enter", "l"):
        await page.keyboard.press(key)
    loaded.set()
    await expect(page.get_by_role("dialog").get_by_role("combobox")).to_have_value("hel")
    state = await client.state(session_id)
    assert (state["state"], state["turn_count"], state["queued"]) == ("running", 1, [])
    await expect(tab.composer).to_have_value("a draft")


async def test_sessions_commands_and_words_are_found_with_the_keyboard(
    open_tab: OpenTab, client: Client
) -> None:
    for title in ("Parser, old", "Lexer"):
        await client.create(meta={"title": title})
    session_id = await client.create(meta={"title": "Parser, new"})
    await client.turn(session_id, "the quick brown marmot")
    for _ in range(3):
        await client.turn(session_id, script({"say": "and so on\n\n" * 30}))

    async def is_indexed() -> bool:
        return bool((await client.get("/search?q=marmot"))[1]["hits"])

    await eventually("the index to have the turn", is_indexed)
    tab = await open_tab(client)
    page = tab.page
    await tab.sign_in()
    options = page.get_by_role("option")
    chosen = page.locator("[role=option][aria-selected=true]")
    await page.keyboard.press("Control+k")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.type("parser")
    await expect(options).to_have_count(2)
    first = await chosen.inner_text()
    await page.keyboard.press("ArrowDown")
    await expect(chosen).not_to_have_text(first, use_inner_text=True)
    await tab.axe("palette")
    await tab.picture("palette")
    await page.keyboard.press("ArrowUp")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name=first.splitlines()[0], level=1)).to_be_visible()
    # Messages of any session, and commands of the page and of this session.
    await page.keyboard.press("Control+k")
    for command in ("administration", "keyboard", "raw frames"):
        await page.keyboard.type(command)
        await expect(options).to_have_count(1)
        await page.keyboard.press("Control+a")
    await page.keyboard.type("brown marmot")
    await expect(options.filter(has_text="the quick brown marmot").first).to_be_visible()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Parser, new", level=1)).to_be_visible()
    await expect(tab.turns.first.locator(".bubble")).to_be_in_viewport()  # where it was said
    await page.keyboard.press("Control+k")
    await page.keyboard.type("deny everything")
    await expect(options).to_have_count(1)
    await page.keyboard.press("Enter")
    await expect(tab.button("Permissions: Deny everything")).to_be_visible()
    assert (await client.state(session_id))["permission"] == "deny-all"
    await page.keyboard.press("Control+k")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(tab.composer).to_be_focused()
    # The list has a filter of its own.
    find = page.get_by_label("Find a session")
    marked = page.locator(".session-row.marked")
    await page.keyboard.press("Control+Shift+f")
    await page.keyboard.type("lex")
    await expect(marked).to_have_text(re.compile("Lexer"))
    await page.keyboard.press("Escape")
    await expect(find).to_have_value("")
    await expect(tab.composer).to_be_focused()
    await page.keyboard.press("Control+/")
    await expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    await tab.axe("help")
    await page.keyboard.press("Escape")


async def test_typing_focuses_the_composer_and_number_keys_answer(
    tab: Tab,
) -> None:
    page = tab.page
    lines = "\n\n".join(f"line {number}" for number in range(60))
    ask = {"toolCallId": "t1", "title": "Edit a.py", "kind": "edit"}
    call = {"update": {"sessionUpdate": "tool_call", **ask}}
    await tab.say(script(call, {"say": lines}, {"permission": {"toolCall": ask}}, {"say": lines}))
    await expect(tab.button("Review")).to_be_visible()
    await page.keyboard.press("Control+.")
    await page.keyboard.press("1")
    await tab.settled()
    await expect(tab.button("Go to the end")).to_be_hidden()
    await tab.scroller.click(position={"x": 8, "y": 200})
    await page.keyboard.press("h")
    await expect(tab.composer).to_have_value("h")
    await expect(tab.composer).to_be_focused()
    await tab.scroller.evaluate("(element) => element.focus({ focusVisible: true })")
    await expect(tab.scroller).to_have_css("outline-style", "none")
    # All of it is printed, and nothing that only works on a screen.
    pdf = await page.pdf()
    assert len(re.findall(rb"/Type /Page\b", pdf)) > 2
    await page.emulate_media(media="print")
    shown = await page.evaluate("[innerHeight, document.documentElement.scrollHeight]")
    assert shown[1] > 2 * shown[0]
    await expect(tab.composer).to_be_hidden()
    await tab.picture("print")
    await page.emulate_media(media="screen")
