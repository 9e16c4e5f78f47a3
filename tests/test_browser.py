"""The page in a real Chromium, against a real server, real acpx and scripted agents.

Every state that is worth a look is written as a picture to ``.pytest_cache/screenshots``.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Serve, Spawn
from .harness import ROOT, Client, LocalServer, http_session, new_client, script

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
REQUIRED = bool(os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL"))
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None and not REQUIRED, reason="Chromium is not installed"),
]

async_api = pytest.importorskip("playwright.async_api")
expect = async_api.expect

PICTURES = ROOT / ".pytest_cache" / "screenshots"
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 360, "height": 740}
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Before anything of the page runs: what it does against its policy, and what takes too long.
WATCH = """
window.violations = [];
window.longTasks = [];
document.addEventListener("securitypolicyviolation", (event) =>
    violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) longTasks.push(Math.round(entry.duration));
}).observe({ type: "longtask" });
"""

Json = dict[str, Any]


class Tab:
    """A page of the browser: what a person does with it, and what must never happen in it."""

    def __init__(self, page: Any, url: str, token: str) -> None:
        self.page = page
        self.url = url
        self.token = token
        self.errors: list[str] = []
        self.foreign: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._request)

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.foreign.append(request.url)

    @property
    def composer(self) -> Any:
        return self.page.locator("textarea:visible").first

    @property
    def turns(self) -> Any:
        return self.page.locator(".session:not([hidden]) .turn")

    def answer(self, text: str) -> Any:
        """The agent's messages with that text in them."""
        return self.page.locator(".session:not([hidden]) .message").filter(has_text=text)

    @property
    def session_id(self) -> str:
        return str(self.page.url.partition("#session=")[2])

    async def sign_in(self, session_id: str = "") -> None:
        await self.page.goto(f"{self.url}/#token={self.token}&session={session_id}")
        await expect(self.composer).to_be_visible()

    async def say(self, prompt: str) -> None:
        await self.composer.fill(prompt)
        await self.composer.press("Enter")

    async def settled(self, turns: int = 1) -> None:
        """That many turns are over, and none runs."""
        over = self.page.locator(".session:not([hidden]) .turn .facts:not(.working)")
        await expect(over).to_have_count(turns)
        await expect(self.page.locator(".working:visible")).to_have_count(0)

    async def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=PICTURES / f"{name}.png")

    async def axe(self, name: str) -> None:
        """Nothing serious, by axe's own measure."""
        await self.page.evaluate(AXE.read_text("utf-8"))
        found = await self.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        serious = [
            f"{name}: {one['id']}: {one['nodes'][0]['html'][:200]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]
        assert not serious, serious

    async def assert_clean(self) -> None:
        assert self.errors == []
        assert self.foreign == []
        assert await self.page.evaluate("window.violations") == []


Open = Callable[..., Awaitable[Tab]]


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    async with async_api.async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        await chromium.close()


@pytest.fixture
async def open_tab(browser: Any) -> AsyncIterator[Open]:
    """Open tabs: ``await open_tab(client, viewport=PHONE)``; all are looked at in the end."""
    tabs: list[Tab] = []

    async def start(client: Client, context: Any = None, **options: Any) -> Tab:
        context = context or await browser.new_context(**{"viewport": DESKTOP, **options})
        await context.add_init_script(WATCH)
        assert client.token is not None
        tab = Tab(await context.new_page(), client.url, client.token)
        tabs.append(tab)
        return tab

    yield start
    for tab in tabs:
        await tab.assert_clean()


@pytest.fixture
async def tab(open_tab: Open, client: Client) -> Tab:
    """Signed in, on a desktop, before a new session."""
    tab = await open_tab(client)
    await tab.sign_in()
    return tab


async def test_from_the_first_visit_to_the_first_answer(open_tab: Open, client: Client) -> None:
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
    await expect(page.get_by_role("heading", name="What should be done?")).to_be_visible()
    await tab.picture("start")
    await tab.axe("start")
    await tab.say("Hello, agent")
    await expect(page.locator(".message")).to_contain_text("echo: Hello, agent")
    await tab.settled()
    await expect(page.get_by_role("heading", name="Hello, agent", level=1)).to_be_visible()
    await expect(page.locator(".session-row")).to_contain_text("Hello, agent")
    state = await client.state(tab.session_id)
    assert state["meta"] == {"title": "Hello, agent"}
    assert state["permission"] == "ask"
    # The token is in this tab, and nowhere else.
    assert await page.evaluate("Object.keys(sessionStorage)") != []
    assert tab.token not in await page.evaluate("JSON.stringify(localStorage)")


async def test_a_sign_in_link_leaves_the_address_bar(open_tab: Open, client: Client) -> None:
    session_id = await client.create()
    tab = await open_tab(client)
    await tab.page.goto(f"{tab.url}/#token={tab.token}&session={session_id}")
    await expect(tab.composer).to_be_visible()
    assert tab.page.url == f"{tab.url}/#session={session_id}"
    await tab.page.reload()
    await expect(tab.composer).to_be_visible()
    await expect(tab.page.locator(".empty")).to_be_visible()
    await tab.picture("empty")


async def test_signing_out_forgets_the_token(tab: Tab) -> None:
    await tab.page.get_by_role("button", name="Settings").click()
    await tab.page.get_by_role("menuitem", name="Sign out").click()
    await expect(tab.page.get_by_label("Access token")).to_be_visible()
    await tab.page.reload()
    await expect(tab.page.get_by_label("Access token")).to_be_visible()


async def test_a_revoked_token_leads_back_to_the_sign_in(tab: Tab, server: LocalServer) -> None:
    await tab.say("hello")
    await tab.settled()
    assert (await server.admin().delete("/admin/tokens/app"))[0] == 200
    await expect(tab.page.get_by_text("This sign-in was revoked.")).to_be_visible()


async def test_everything_an_agent_can_show(tab: Tab) -> None:
    page = tab.page
    call = {"toolCallId": "t1", "title": "Read a.py", "kind": "read", "status": "completed"}
    diff = {"type": "diff", "path": "/x/a.py", "oldText": "one\ntwo\n", "newText": "one\n2\n"}
    edit = {"toolCallId": "t2", "title": "Edit a.py", "kind": "edit", "status": "completed"}
    run = {"toolCallId": "t3", "title": "make test", "kind": "execute", "status": "failed"}
    output = [{"type": "content", "content": {"type": "text", "text": "\x1b[31m1 failed\x1b[0m"}}]
    plan = [("Look", "completed"), ("Change", "in_progress"), ("Test", "pending")]
    entries = [{"content": c, "status": s, "priority": "medium"} for c, s in plan]
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    image = {"type": "image", "mimeType": "image/png", "data": pixel + "AABJRU5ErkJggg=="}
    usage = {"used": 34200, "size": 200000, "cost": {"amount": 0.25, "currency": "USD"}}
    await tab.say(
        script(
            {"think": "Let me see."},
            {"update": {"sessionUpdate": "plan", "entries": entries}},
            {"update": {"sessionUpdate": "tool_call", **call, "rawInput": {"path": "a.py"}}},
            {"update": {"sessionUpdate": "tool_call", **edit, "content": [diff]}},
            {"update": {"sessionUpdate": "tool_call", **run, "content": output}},
            {"update": {"sessionUpdate": "from_the_future", "x": 1}},
            {"update": {"sessionUpdate": "usage_update", **usage}},
            {"update": {"sessionUpdate": "agent_message_chunk", "content": image}},
            {"say": "## Done\n\n- **one**\n- `two`\n\n```python\nprint(1)\n```\n\n"},
            {"say": "| a | b |\n| - | - |\n| 1 | 2 |\n"},
        )
    )
    await tab.settled()
    await expect(page.locator(".plan li")).to_have_count(3)
    await expect(page.locator(".row.add")).to_contain_text("2")
    await expect(page.locator(".row.del")).to_contain_text("two")
    await expect(page.locator(".terminal .t-fg-red")).to_have_text("1 failed")
    await expect(page.locator(".md h4")).to_have_text("Done")
    await expect(page.locator(".md strong")).to_have_text("one")
    await expect(page.locator(".md table td").first).to_have_text("1")
    await expect(page.locator(".md .hljs-number")).to_have_text("1")  # coloured by the worker
    await expect(page.locator(".image img")).to_be_visible()
    await expect(page.get_by_text("34.2k / 200k · $0.250")).to_be_visible()
    raw = page.locator(".raw").filter(has_text="from_the_future")
    await raw.locator("summary").click()
    await expect(raw.locator("code")).to_contain_text('"x": 1')
    await page.get_by_role("button", name=re.compile("^Thought")).click()
    await expect(page.get_by_text("Let me see.", exact=True)).to_be_visible()
    await page.get_by_role("button", name="Read a.py").click()
    await expect(page.locator(".tool-body").first).to_contain_text('"path": "a.py"')
    await tab.axe("everything")
    await tab.picture("everything")


async def test_permission_by_the_mouse_and_by_keys(tab: Tab) -> None:
    page = tab.page
    ask = {"permission": {"title": "Delete everything", "kind": "delete"}}
    await tab.say(script(ask))
    card = page.get_by_role("group", name="asks for your permission")
    await expect(card).to_be_visible()
    await expect(page).to_have_title(re.compile("^Waiting for you · "))
    icon = await page.get_attribute("link[rel=icon]", "href")
    assert "circle" in icon
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


async def test_stop_by_the_button_and_by_escape(tab: Tab) -> None:
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


async def test_prompts_queue_and_can_be_taken_out(tab: Tab, tmp_path: Path) -> None:
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


async def test_a_reload_in_the_middle_of_a_turn_loses_nothing(tab: Tab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    burst = {"burst": {"count": 200, "text": " word\n\n", "batch": 1, "pause_ms": 2}}
    await tab.say(script({"say": "start\n\n"}, burst, {"gate": str(gate)}, {"say": "end"}))
    await expect(tab.answer("start")).to_be_visible()
    await tab.page.reload()
    await expect(tab.page.locator(".message")).to_contain_text("199: word")
    gate.touch()
    await tab.settled()
    text = await tab.page.locator(".message").inner_text()
    assert re.findall(r"(\d+): word", text) == [str(n) for n in range(200)]
    assert text.rstrip().endswith("end")


async def test_two_tabs_see_the_same_at_once(open_tab: Open, tab: Tab, client: Client) -> None:
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


async def test_the_connection_goes_and_comes_back(tab: Tab, tmp_path: Path) -> None:
    sockets: list[Any] = []
    away = False

    async def through(ws: Any) -> None:
        if away:
            await ws.close(code=1012)
            return
        sockets.append(ws)
        ws.connect_to_server()

    await tab.page.route_web_socket(re.compile("/ws$"), through)
    gate = tmp_path / "gate"
    await tab.say(script({"say": "before"}, {"gate": str(gate)}, {"say": " after"}))
    await expect(tab.answer("before")).to_be_visible()
    away = True
    await sockets[-1].close(code=1012)
    await expect(tab.page.get_by_text("Connection lost")).to_be_visible()
    await tab.say("said while away")
    await expect(tab.page.get_by_text("Will be sent when the connection is back")).to_be_visible()
    await tab.picture("away")
    gate.touch()
    away = False
    await tab.page.evaluate("window.dispatchEvent(new Event('online'))")
    await tab.settled(2)
    await expect(tab.page.locator(".message").first).to_have_text("before after")
    await expect(tab.answer("echo: said while away")).to_have_count(1)
    await expect(tab.page.get_by_text("Connection lost")).to_be_hidden()


async def test_a_server_that_is_killed_in_mid_stream(
    open_tab: Open, spawn: Spawn, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = await spawn(PORT=port)
    async with http_session() as http:
        client = await new_client(server.url, http)
        tab = await open_tab(client)
        await tab.sign_in()
        await tab.say("one")
        await tab.settled()
        await tab.say(script({"say": "half"}, {"hang": True}))
        await expect(tab.answer("half")).to_be_visible()
        await server.kill()
        await expect(tab.page.get_by_text("Connection lost")).to_be_visible()
        await spawn(PORT=port)
        await expect(tab.page.get_by_text("restarted during this turn")).to_be_visible(
            timeout=30_000
        )
        await tab.picture("restarted")
        await expect(tab.answer("echo: one")).to_have_count(1)
        await expect(tab.answer("half")).to_have_count(1)
        await tab.page.get_by_role("button", name="Try again").click()
        await expect(tab.answer("half")).to_have_count(2)


async def test_files_are_attached_by_choice_and_by_drop(tab: Tab, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("remember the milk")
    picture = tmp_path / "p.png"
    shutil.copy(ROOT / "docs" / "flow.svg", tmp_path / "flow.svg")
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    await tab.page.locator("input[type=file]").first.set_input_files([notes, picture])
    chips = tab.page.locator(".attachments .chip[data-state=ready]")
    await expect(chips).to_have_count(2)
    await tab.picture("attached")
    drop = """(area) => {
        const data = new DataTransfer();
        data.items.add(new File(["dropped"], "dropped.md", { type: "text/markdown" }));
        for (const type of ["dragenter", "drop"])
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
    said = await tab.page.locator(".message").inner_text()
    path = re.search(r"/\S*?/notes\.txt", said)
    assert path is not None, said
    assert Path(path[0]).read_text() == "remember the milk"


async def test_mode_and_options_come_from_the_agent(open_tab: Open, client: Client) -> None:
    session_id = await client.create("mock-modes")
    tab = await open_tab(client)
    await tab.sign_in(session_id)
    await tab.say("hello")
    await tab.settled()
    bar = tab.page.get_by_role("group", name="Agent settings")
    await bar.get_by_role("button", name=re.compile("^Mode: ")).click()
    await tab.page.get_by_role("menuitemradio", name="code", exact=False).click()
    await expect(
        bar.get_by_role("button", name=re.compile("^Mode: code", re.IGNORECASE))
    ).to_be_visible()
    state = await client.state(session_id)
    assert state["modes"]["currentModeId"] == "code"


async def test_rename_find_and_close(tab: Tab, client: Client) -> None:
    page = tab.page
    await tab.say("first name")
    await tab.settled()
    session_id = tab.session_id
    await page.get_by_role("button", name="More for this session").click()
    await page.get_by_role("menuitem", name="Rename").click()
    await page.get_by_role("textbox", name="Rename the session").fill("Second name")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Second name")).to_be_visible()
    await client.create(meta={"title": "Another one"})
    await page.keyboard.press("Control+k")
    await expect(page.get_by_label("Find a session")).to_be_focused()
    await page.reload()
    rows = page.locator(".session-row")
    await expect(rows).to_have_count(2)
    await page.get_by_label("Find a session").fill("another")
    await expect(rows).to_have_count(1)
    await page.get_by_label("Find a session").fill("")
    await page.get_by_role("button", name="More for this session").click()
    await page.get_by_role("menuitem", name="Close session").click()
    await page.get_by_role("button", name="Close session").click()
    await expect(page.get_by_text("This session was closed.")).to_be_visible()
    await tab.picture("closed")
    assert (await client.state(session_id))["state"] == "closed"


async def test_raw_frames(tab: Tab) -> None:
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


async def test_by_keys_alone(tab: Tab) -> None:
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
    await expect(page.get_by_role("heading", name="What should be done?")).to_be_visible()
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_on_a_phone(open_tab: Open, client: Client, scheme: str) -> None:
    tab = await open_tab(
        client, viewport=PHONE, color_scheme=scheme, has_touch=True, is_mobile=True
    )
    page = tab.page
    await tab.sign_in()
    await tab.axe("phone")
    wide = "x" * 300
    table = "| " + " | ".join(["column"] * 12) + " |\n|" + " - |" * 12 + "\n"
    await tab.composer.fill(
        script({"say": f"{wide}\n\n```\n{wide}\n```\n\n{table}"}, {"permission": True})
    )
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator(".ask-card")).to_be_visible()
    await tab.axe("phone, permission")
    await tab.picture(f"phone-{scheme}")
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(overflow) == 0
    assert await page.evaluate("document.querySelector('.session').scrollWidth") <= PHONE["width"]
    await page.get_by_role("button", name="Allow once").tap()
    await tab.settled()
    await page.get_by_role("button", name="Show the sessions").tap()
    await expect(page.get_by_role("navigation", name="Sessions")).to_be_visible()
    await tab.axe("phone, sessions")
    await tab.picture(f"phone-sessions-{scheme}")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("navigation", name="Sessions")).to_be_hidden()


async def test_dark(open_tab: Open, client: Client) -> None:
    tab = await open_tab(client, color_scheme="dark")
    await tab.sign_in()
    await tab.say(script({"say": "**dark**, with `code`"}, {"permission": True}))
    await expect(tab.page.locator(".ask-card")).to_be_visible()
    await tab.axe("dark")
    await tab.picture("dark")
    colour = await tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour)[:3])) < 60


HOSTILE = r"""
<script>window.pwned=1</script>

<img src=x onerror="window.pwned=2">

<svg onload="window.pwned=3"><script>window.pwned=4</script></svg>

<iframe srcdoc="<script>parent.pwned=5</script>"></iframe>

<a href="javascript:window.pwned=6">x</a> [x](javascript:window.pwned=7)
[x](JaVaScRiPt:window.pwned=8) [x](javas&#99;ript:window.pwned=9) [x](java	script:window.pwned=10)
[x](data:text/html,<script>window.pwned=11</script>) [x](vbscript:x) <javascript:window.pwned=12>

![x](javascript:window.pwned=13) ![x](https://evil.example/track.png) ![x](//evil.example/x.png)
![x](/\evil.example/x.png) ![x](data:text/html,<script>window.pwned=14</script>)

[x](https://example.com/" onmouseover="window.pwned=15) <https://example.com/"onclick="pwned=16>

[self](/#token=cf_evil) [self](SELF/#token=cf_evil)

<style>body{display:none}</style><link rel=stylesheet href=https://evil.example/x.css>

<meta http-equiv=refresh content="0;url=https://evil.example"><base href="https://evil.example/">

<form action="https://evil.example"><input autofocus onfocus="window.pwned=17"></form>

<math><mtext></p><style><img src onerror=window.pwned=18></style></math>

<details open ontoggle="window.pwned=19">x</details><div style="position:fixed;inset:0">x</div>

| <img src=x onerror=window.pwned=20> | [x](javascript:window.pwned=21) |
| --- | --- |
| `<img src=x onerror=window.pwned=22>` | <script>window.pwned=23</script> |

[ref]: javascript:window.pwned=24
[ref] &lt;img src=x onerror=window.pwned=25&gt;

```html"><img src=x onerror=window.pwned=26>
<img src=x onerror="window.pwned=27">
```
"""


async def test_nothing_of_what_an_agent_says_runs(tab: Tab) -> None:
    page = tab.page
    hostile = HOSTILE.replace("SELF", tab.url)
    call = {
        "toolCallId": "t",
        "title": hostile,
        "kind": "edit",
        "status": "completed",
        "locations": [{"path": "javascript:window.pwned=30"}],
        "rawInput": {"x": hostile},
        "content": [
            {"type": "content", "content": {"type": "text", "text": hostile}},
            {"type": "diff", "path": hostile, "oldText": hostile, "newText": "x"},
            {
                "type": "content",
                "content": {"type": "resource_link", "name": hostile, "uri": "javascript:pwned=31"},
            },
            {
                "type": "content",
                "content": {
                    "type": "image",
                    "mimeType": 'image/png" onerror="pwned=32',
                    "data": "",
                },
            },
        ],
    }
    steps: list[Json] = [{"say": piece} for piece in re.findall(r"[\s\S]{1,40}", hostile)]
    steps += [
        {"update": {"sessionUpdate": "tool_call", **call}},
        {"update": {"sessionUpdate": "plan", "entries": [{"content": hostile, "status": "x"}]}},
        {"update": {"sessionUpdate": hostile, "x": hostile}},
        {"update": {"sessionUpdate": "session_info_update", "title": hostile}},
        {"think": hostile},
        {"permission": {"title": hostile, "options": [{"optionId": "a", "name": hostile}]}},
    ]
    await tab.say(script(*steps))
    await page.locator(".ask-card button").click()
    await tab.settled()
    unfold = """() => {
        for (const line of document.querySelectorAll(".line[aria-expanded=false], .raw summary"))
            line.click();
    }"""
    await page.evaluate(unfold)
    await page.evaluate(
        """() => document.querySelectorAll(".turn *").forEach((element) =>
            element.dispatchEvent(new MouseEvent("mouseover", { bubbles: true })))"""
    )
    await tab.picture("hostile")
    assert await page.evaluate("window.pwned") is None
    handlers = """[...document.querySelectorAll("#app *")].flatMap((element) =>
        [...element.attributes].map((attribute) => [attribute.name, attribute.value])).filter(
            ([name, value]) => name.startsWith("on") || (/^(href|src)$/.test(name) &&
                /^\\s*(javascript|vbscript|data:text)/i.test(value)))"""
    assert await page.evaluate(handlers) == []
    tags = await page.evaluate(
        "[...new Set([...document.querySelectorAll('.md *')].map((element) => element.tagName))]"
    )
    assert not {"SCRIPT", "STYLE", "IFRAME", "FORM", "INPUT", "LINK", "META", "BASE"} & set(tags)
    links = await page.evaluate(
        "[...document.querySelectorAll('.turn a')].map((a) => [a.host, a.target, a.rel])"
    )
    assert links
    for host, target, rel in links:
        assert host in ("evil.example", "example.com"), host  # as links only, and never to us
        assert (target, rel) == ("_blank", "noopener noreferrer")


async def test_the_policy_is_enforced(tab: Tab) -> None:
    run = """() => {
        const script = document.createElement("script");
        script.textContent = "window.pwned = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.pwned = 2'>");
        return new Promise((done) => setTimeout(done, 200));
    }"""
    await tab.page.evaluate(run)
    assert await tab.page.evaluate("window.pwned") is None
    assert len(await tab.page.evaluate("window.violations")) >= 2
    await tab.page.evaluate("window.violations.length = 0")


async def test_streaming_keeps_the_main_thread_free(tab: Tab) -> None:
    words = "Some **words** with `code` in them, as agents write.\n\n"
    burst = {"burst": {"count": 600, "text": words, "batch": 2, "pause_ms": 10}}  # 200 a second
    await tab.say(script({"say": "start"}, burst))
    await expect(tab.answer("start")).to_be_visible()
    await tab.page.evaluate("window.longTasks.length = 0")
    await tab.settled()
    at_end = """() => {
        const { scrollHeight, scrollTop, clientHeight } =
            document.querySelector(".session:not([hidden]) .scroller");
        return scrollHeight - scrollTop - clientHeight < 4;
    }"""
    assert await tab.page.evaluate(at_end)
    long = await tab.page.evaluate("window.longTasks")
    # On a machine that is busy with other tests one may slip; a slow page has dozens.
    assert len([task for task in long if task > 50]) <= 3, long


async def test_a_reader_who_looks_back_is_left_alone(tab: Tab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    more = {"burst": {"count": 50, "text": "\n\nline"}}
    await tab.say(script(more, {"say": "middle"}, {"gate": str(gate)}, more, {"say": "last"}))
    await expect(tab.answer("middle")).to_be_visible()
    scroller = tab.page.locator(".session:not([hidden]) .scroller")
    await scroller.hover()
    await tab.page.mouse.wheel(0, -600)
    jump = tab.page.get_by_role("button", name="Go to the end")
    await expect(jump).to_be_visible()
    top = await scroller.evaluate("(element) => element.scrollTop")
    gate.touch()
    await tab.settled()
    assert abs(await scroller.evaluate("(element) => element.scrollTop") - top) < 2
    await jump.click()
    await expect(jump).to_be_hidden()
    await expect(tab.answer("last")).to_be_in_viewport()


async def test_a_long_conversation_opens_in_a_second(
    open_tab: Open, serve: Serve, tmp_path: Path
) -> None:
    server = await serve()
    client = await server.client()
    session_id = await client.create()
    call = {"toolCallId": "t{i}", "title": "Read {i}", "kind": "read", "status": "completed"}
    steps = [
        {"update": {"sessionUpdate": "tool_call", **call}},
        {"say": "Step **{i}** is done.\n\n"},
    ]
    repeat = script({"repeat": {"times": 250, "steps": steps}})
    for _ in range(10):
        assert (await client.turn(session_id, repeat))[0] == 200
    assert (await client.state(session_id))["head"] > 5000
    tab = await open_tab(client)
    await tab.sign_in()
    opened = await tab.page.evaluate(
        """async (id) => {
            const begun = performance.now();
            document.querySelector(`a[href$="${id}"]`).click();
            while (!document.querySelector(".turn .chunk"))
                await new Promise((next) => requestAnimationFrame(next));
            return performance.now() - begun;
        }""",
        session_id,
    )
    assert opened < 2000, opened  # half of it where nothing else runs
    await expect(tab.turns).to_have_count(10)
    await expect(tab.page.locator(".tool")).to_have_count(2500)


async def test_a_session_that_does_not_exist(open_tab: Open, client: Client) -> None:
    tab = await open_tab(client)
    await tab.page.goto(f"{tab.url}/#token={tab.token}&session=00000000-nobody")
    await expect(tab.page.locator(".ended")).to_contain_text("There is no such session")
    await tab.picture("no-session")
