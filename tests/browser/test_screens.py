"""Every screen at four widths, in light and dark: pictures, and what no screen may do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Locator, expect

from ..support.harness import (
    MOCKS,
    Client,
    LocalServer,
    local_server,
    mock_agent,
    script,
)
from .conftest import OpenTab
from .scenes import FLAKY, PLAYS
from .tab import Tab
from .test_questions import EVERY
from .test_subagents import ask, call, words

Json = dict[str, Any]

HEIGHTS = {360: 740, 390: 844, 1280: 800, 1920: 1080}
PHONE_BELOW = 760  # px

# Nothing is wider than the screen, except what scrolls by itself.
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# A finger needs 44 px; links in running text, and lines of a difference, are as high as their line.
SMALL = """[...document.querySelectorAll("button, summary, [role=option], .tile a")]
    .filter((one) => one.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
    .filter((one) => !one.matches(".no, .note-mark") && !one.closest("[inert]"))
    .filter((one) => Math.min(one.offsetWidth, one.offsetHeight) < 44)
    .map((one) => one.outerHTML.slice(0, 120))"""
# Words of a button that are cut off without an ellipsis.
CUT = """[...document.querySelectorAll("button")]
    .filter((one) => one.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
    .filter((one) => one.scrollWidth > one.clientWidth + 1 && !one.querySelector(".ellipsis"))
    .filter((one) => !one.matches(".no, .gap"))
    .map((one) => one.outerHTML.slice(0, 120))"""

TITLES = [
    "Die Aufwärtskompatibilität der Benutzerkontensteuerung überprüfen und dokumentieren",
    "تحسين سرعة محرك البحث في قاعدة البيانات",
    "重构用户登录流程并补充单元测试",
]
TEXTS = """\
Die **Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft** prüft \
`ein_sehr_langer_bezeichner_der_nicht_umbrochen_werden_kann_weil_er_keine_leerzeichen_hat()`.

تم إصلاح الخطأ في الملف `login.py` وأعيد تشغيل **الاختبارات** كلها.

- الأولى: قراءة الملفات
- الثانية: `npm test`

已修复登录问题。请查看 `src/登录.ts` 中的更改，并运行 **全部测试**。

> [!WARNING]
> Tokens that were issued before the change are refused.

> A quotation, with [a link](https://example.com/a/very/long/path/that/does/not/end/for/a/while).

1. First
2. Second
   - nested
   - [x] done
   - [ ] open

| Name | Before | After | Change | Remark |
| --- | ---: | ---: | :-: | --- |
| `parse()` | 128 ms | 11 ms | −91 % | one pass |
| `render()` | 36 ms | 35 ms | −3 % | unchanged |

The area is $\\pi r^2$, and

$$\\int_0^1 x^2 \\, dx = \\frac{1}{3}$$

#### A small heading

```ts
export async function login(name: string): Promise<Session> {
\tconst response = await fetch('/login', { method: 'POST', body: JSON.stringify({ name }) })
\treturn response.json() // with the session of the user
}
```

<details><summary>More</summary>

Hidden until it is opened.

</details>
"""
LONG_NAME = "src/components/navigation/primary/" + "a-very-long-component-name-" * 4 + "v2.test.tsx"


async def play(client: Client, session: str, *prompts: str, until: str = "turn_end") -> None:
    """Send *prompts* and wait for the first frame of that kind."""
    socket = await client.connect(session)
    for prompt in prompts:
        await socket.send("prompt", prompt=prompt)
    await socket.until(until)
    await socket.close()


def edit(path: str) -> Json:
    fields = {"toolCallId": path, "title": f"Edit {path}", "kind": "edit", "status": "completed"}
    return {"update": {"sessionUpdate": "tool_call", **fields, "locations": [{"path": path}]}}


async def change_files(client: Client, session: str, gate: Path) -> None:
    """A first turn with some files, and a second that changes twenty, one of them binary."""
    await play(client, session, script({"say": "Made."}, edit("greet.py")))
    folder = Path((await client.state(session))["cwd"])
    socket = await client.connect(session)
    await socket.send(
        "prompt",
        prompt=script({"gate": str(gate / "first")}, edit("greet.py")),
    )
    await socket.until("turn_start")
    lines = [f"line_{n} = {n}" for n in range(40)]
    folder.joinpath("greet.py").write_text("\n".join(lines) + "\n")
    gate.joinpath("first").touch()
    await socket.until("turn_end")
    await socket.send("prompt", prompt=script({"gate": str(gate / "second")}, edit("greet.py")))
    await socket.until("turn_start", turn_index=3)
    lines[3] = "line_3 = 'three' + ' and more words than fit into half of a narrow panel' * 2"
    lines[20:22] = ["# gone"]
    folder.joinpath("greet.py").write_text("\n".join(lines))
    for number in range(18):
        path = folder / "src" / f"module_{number}" / "index.ts"
        path.parent.mkdir(parents=True)
        path.write_text(f"export const number = {number}\n" * (number + 1))
    long = folder / LONG_NAME
    long.parent.mkdir(parents=True)
    long.write_text("test('it works')\n")
    folder.joinpath("logo.bin").write_bytes(bytes(range(256)))
    gate.joinpath("second").touch()
    await socket.until("turn_end", turn_index=3)
    await socket.close()


def busy_turn(gate: Path) -> str:
    plan = [("Read", "completed"), ("Change", "in_progress"), ("Test", "pending")]
    entries = [{"content": name, "status": state, "priority": "low"} for name, state in plan]
    steps = [
        {"update": {"sessionUpdate": "plan", "entries": entries}},
        *(call(None, f"r{n}", f"Read src/{n}.py", "completed") for n in range(5)),
        call(None, "f", "Read src/missing.py", "failed"),
        call(None, "t", "npm test -- --watch=false", "in_progress", kind="execute"),
        {"gate": str(gate / "never")},
    ]
    return script({"say": "I look first."}, *steps)


def subagents() -> str:
    def state(**fields: Any) -> Json:
        return {"update": {"sessionUpdate": "subagent_update", "sessionId": "child", **fields}}

    return script(
        {"say": "I ask someone."},
        state(title="Look around the garden", state={"state": "running"}),
        {
            "notify": {
                "method": "session/update",
                "params": {
                    "sessionId": "child",
                    "update": {"sessionUpdate": "agent_message_chunk", **words("I look.")},
                },
            }
        },
        call("child", "r", "Read the map", "failed"),
        call("child", "p", "Read the plan", "in_progress"),
        ask("child", "p"),
    )


async def seed(client: Client, folder: Path) -> dict[str, str]:
    """Sessions in every state, by a short name."""
    made = {}
    for title in TITLES:
        made[title] = await client.create("claude", meta={"title": title})
    for name in ("talk", "asks", "form", "works", "child", "files", "texts", "fails", "closed"):
        agent = "claude" if name == "talk" else "mock"
        titled = {} if name == "talk" else {"meta": {"title": f"A session that {name}"}}
        more: Json = {"client_capabilities": ["subagents"]} if name == "child" else {}
        more |= {"elicitation": "ask"} if name == "form" else {}
        made[name] = await client.create(agent, permission="ask", **titled, **more)
    await play(client, made["talk"], FLAKY)
    await play(client, made["asks"], script({"permission": {"title": "rm -rf build"}}), until=ASKED)
    await play(client, made["form"], script({"elicit": EVERY}), until="elicitation_request")
    queue = ["Then run the linter.", "And the slow tests, all of them, please. " * 4, "Third."]
    await play(client, made["works"], busy_turn(folder), *queue, until="turn_start")
    await play(client, made["child"], subagents(), until=ASKED)
    await change_files(client, made["files"], folder)
    await play(client, made["texts"], script({"say": TEXTS}))
    error = {"code": -32603, "message": "The model is overloaded. Try again in a minute."}
    await play(client, made["fails"], script({"say": "I begin."}, {"error": error}))
    await play(client, made["closed"], "hello")
    await client.delete(f"/sessions/{made['closed']}")
    return made


ASKED = "permission_request"


class Review:
    """Looks at each screen in light and dark."""

    def __init__(self, tab: Tab, width: int) -> None:
        self.tab = tab
        self.page = tab.page
        self.width = width
        self.is_phone = width < PHONE_BELOW
        self.found: list[str] = []

    async def show(self, name: str) -> None:
        page = self.page
        for scheme in ("dark", "light"):
            await page.emulate_media(color_scheme=scheme)
            await self.tab.picture(f"screens/{self.width}-{scheme}-{name}")
        if await page.evaluate(OVERFLOW) > 0:
            self.found.append(f"{name}: wider than the screen")
        self.found += [f"{name}: cut: {one}" for one in await page.evaluate(CUT)]
        if self.is_phone:
            self.found += [f"{name}: small: {one}" for one in await page.evaluate(SMALL)]

    async def go(self, place: str) -> None:
        await self.page.evaluate("(hash) => void (location.hash = hash)", place)

    async def press(self, name: str | re.Pattern[str]) -> None:
        await self.tab.button(name).and_(self.page.locator(":visible")).first.click()

    async def menu(self, button: str, entry: str) -> None:
        await self.press(button)
        await self.page.get_by_role("menuitem", name=entry).click()

    async def dialog(self, name: str) -> Locator:
        dialog = self.page.get_by_role("dialog", name=name)
        await expect(dialog).to_be_visible()
        return dialog

    async def sidebar(self, shown: bool = True) -> None:
        if self.is_phone and shown:
            await self.press("Show the sessions")
        elif self.is_phone:
            await self.page.keyboard.press("Escape")


async def start_page(review: Review, made: dict[str, str], _: str) -> None:
    page, tab = review.page, review.tab
    await expect(page.locator(".project-card")).to_have_count(1)
    await review.show("start")
    await review.press("Agent: ")
    await expect(page.get_by_role("menuitemradio", name="demo")).to_be_visible()
    await review.show("start-agents")
    await page.get_by_role("menuitemradio", name="demo").click()
    await expect(tab.button("help", exact=True)).to_be_visible()
    await review.show("start-demo")
    await page.locator("summary", has_text="More choices").click()
    await review.show("start-more")
    await page.locator("summary", has_text="More choices").click()
    await review.menu("Agent: ", "Ask several and compare")
    await review.show("several")
    await tab.button("Cancel").click()
    await review.press("Project: ")
    chooser = await review.dialog("Choose a project")
    await review.show("projects")
    await chooser.get_by_role("button", name="code").first.click()
    await chooser.get_by_role("button", name="website").click()
    await expect(chooser.get_by_label("In its own worktree")).to_be_visible()
    await review.show("projects-worktree")
    await page.keyboard.press("Escape")


async def conversations(review: Review, made: dict[str, str], _: str) -> None:
    page, tab = review.page, review.tab
    await review.go(f"session={made['talk']}")
    await expect(tab.button("Mode: Ask first")).to_be_visible()
    await tab.settled()
    await review.show("talk-end")
    await tab.scroller.evaluate("(element) => (element.scrollTop = 0)")
    await expect(tab.button("Go to the end")).to_be_visible()
    await review.show("talk-top")
    await tab.shown.locator(".facts").first.hover()
    await review.press("More for this turn")
    await expect(page.get_by_role("menuitem", name="Fork from here")).to_be_visible()
    await review.show("turn-menu")
    await page.keyboard.press("Escape")
    await review.press("More for this session")
    await expect(page.get_by_role("menuitem", name="Rename")).to_be_visible()
    await review.show("session-menu")
    await page.keyboard.press("Escape")
    await review.press("Permissions: ")
    await expect(page.get_by_role("menuitemradio", name="Deny everything")).to_be_visible()
    await review.show("policy-menu")
    await page.keyboard.press("Escape")
    await review.menu("More for this session", "Open on a phone")
    await review.dialog("Continue on a phone")
    await review.show("qr")
    await page.keyboard.press("Escape")
    await review.menu("More for this session", "Close session")
    await review.show("confirm")
    await page.keyboard.press("Escape")
    for name, ready in (
        ("asks", tab.shown.locator(".ask-card")),
        ("form", tab.shown.locator(".ask-card")),
        ("works", tab.shown.locator("[data-state=queued]").first),
        ("child", tab.shown.locator(".ask-card:visible")),
        ("texts", tab.shown.locator("math").first),
        ("fails", tab.shown.locator(".ending")),
        ("closed", tab.shown.locator(".ended")),
        (TITLES[1], tab.shown.locator(".empty")),
        ("missing", tab.shown.locator(".ended")),
    ):
        await review.go(f"session={made.get(name, name)}")
        await expect(ready).to_be_visible()
        await review.show({TITLES[1]: "empty"}.get(name, name))
        if name == "form":
            await ready.locator("button").last.scroll_into_view_if_needed()
            await review.show("form-end")
        if name == "texts":
            await tab.scroller.evaluate("(element) => (element.scrollTop = 0)")
            await review.show("texts-top")


async def changed_files(review: Review, made: dict[str, str], _: str) -> None:
    page, tab = review.page, review.tab
    await review.go(f"session={made['files']}")
    await review.press(re.compile("^21 files.*Review"))
    side = page.get_by_role("complementary", name="Changes and files")
    await expect(side.locator(".file-row")).to_have_count(21)
    await review.show("changes")
    await side.get_by_role("button", name="The whole session").click()
    await page.get_by_role("menuitemradio").nth(1).click()
    first = side.locator(".file-row", has_text="greet.py")
    await first.locator("summary").click()
    await expect(first.locator(".row.add").first).to_be_visible()
    await first.get_by_role("button", name="Comment on line 4", exact=True).last.click()
    await page.keyboard.type("Why so long?")
    await review.show("changes-comment")
    if not review.is_phone:
        await side.get_by_role("button", name="Side by side").click()
        await expect(first.locator(".pair").first).to_be_visible()
        await review.show("changes-split")
        await side.get_by_role("button", name="Side by side").click()
    await side.get_by_role("button", name="Files", exact=True).click()
    await side.locator("summary", has_text="greet.py").click()
    await expect(side.locator("pre")).to_be_visible()
    await review.show("files")
    await side.get_by_role("button", name="Close the changes").click()
    await page.keyboard.press("Control+`")
    await expect(page.get_by_role("complementary", name="Raw frames")).to_be_visible()
    await review.show("frames")
    await page.get_by_role("button", name="Close the raw frames").click()
    await tab.composer.fill("@src")
    await expect(page.get_by_role("option").first).to_be_visible()
    await review.show("paths")
    await tab.composer.fill("")


async def around(review: Review, made: dict[str, str], admin: str) -> None:
    page, tab = review.page, review.tab
    await page.keyboard.press("Control+k")
    await review.dialog("Find or do anything")
    await review.show("palette")
    await page.keyboard.type("session")
    await review.show("palette-found")
    await page.keyboard.press("Control+a")
    await page.keyboard.type("zzzzzz")
    await expect(page.get_by_role("dialog").get_by_text("Nothing was found")).to_be_visible()
    await review.show("palette-none")
    await page.keyboard.press("Escape")
    await page.keyboard.press("Control+/")
    await review.dialog("Keyboard shortcuts")
    await review.show("help")
    await page.keyboard.press("Escape")
    await review.sidebar()
    await review.press("Settings")
    await expect(page.get_by_role("menuitem", name="Sign out")).to_be_visible()
    await review.show("settings")
    await page.get_by_role("menuitem", name="Notifications and quiet hours").click()
    await review.dialog("Notifications")
    await review.show("notifications")
    await page.keyboard.press("Escape")
    await review.show("sidebar")
    await page.get_by_label("Find a session").fill("zzz")
    await review.show("sidebar-none")
    await page.get_by_label("Find a session").fill("")
    await review.press("Group and filter")
    await review.show("sidebar-menu")
    await page.keyboard.press("Escape")
    await review.sidebar(False)
    await review.go("view=board")
    await expect(page.locator(".tile[data-state=running]")).to_be_visible()
    await review.show("board")
    await review.go("view=agents")
    await expect(page.get_by_role("article", name="demo", exact=True)).to_be_visible()
    await review.show("agents")
    await review.go("view=admin")
    await expect(page.get_by_label("Admin token")).to_be_visible()
    await review.show("admin-sign-in")
    await page.get_by_label("Admin token").fill(admin)
    await tab.button("Continue").click()
    await expect(page.get_by_role("cell", name="app", exact=True)).to_be_visible()
    await review.show("admin-tokens")
    for name in ("Usage", "Audit"):
        await page.get_by_role("tab", name=name).click()
        await expect(page.locator(".admin-content")).to_have_attribute("aria-busy", "false")
        await review.show(f"admin-{name.lower()}")


async def together(review: Review, made: dict[str, str], _: str) -> None:
    page, tab = review.page, review.tab
    if not review.is_phone:
        await review.go(f"session={made['talk']}&beside={made['asks']}")
        await expect(page.locator(".session:not([hidden])")).to_have_count(2)
        await expect(page.locator(".ask-card:visible").first).to_be_visible()
        await review.show("side-by-side")
    await review.go("view=compare&group=g")
    await expect(page.locator(".compared .md")).to_have_count(2)
    await review.show("compare")
    await review.go(f"session={made['asks']}")
    await expect(tab.shown.locator(".ask-card")).to_be_visible()
    await page.context.set_offline(True)
    await page.evaluate("window.dispatchEvent(new Event('offline'))")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("width", HEIGHTS)
async def test_every_screen_fits_in_light_and_dark(
    open_tab: OpenTab, tmp_path: Path, width: int
) -> None:
    projects = (tmp_path / "code").resolve()
    (projects / "website" / ".git").mkdir(parents=True)
    (tmp_path / "plays.json").write_text(json.dumps(PLAYS))
    agents = {**MOCKS, "claude": mock_agent(f"--plays={tmp_path / 'plays.json'}")}
    options: Json = {"agents": agents, "workspace_roots": (projects,)}
    async with local_server(tmp_path / "data", **options) as server:
        await look_at_all(open_tab, server, projects, width)


async def look_at_all(open_tab: OpenTab, server: LocalServer, projects: Path, width: int) -> None:
    client = await server.client("app")
    is_phone = width < PHONE_BELOW
    tab = await open_tab(
        client,
        viewport={"width": width, "height": HEIGHTS[width]},
        has_touch=is_phone,
        is_mobile=is_phone,
        device_scale_factor=2 if is_phone else 1,
    )
    review = Review(tab, width)
    await tab.page.goto(tab.url)
    await review.show("sign-in")
    made = await seed(client, projects.parent)
    for agent in ("mock", "demo"):
        compared = await client.create(agent, cwd=str(projects / "website"), meta={"compare": "g"})
        await client.turn(compared, "help")
    await tab.sign_in()
    admin = server.admin().token or ""
    for part in (start_page, conversations, changed_files, around, together):
        await part(review, made, admin)
    await tab.page.goto("about:blank")  # before its server ends
    assert review.found == [], "\n".join(review.found)
