"""Long conversations, fast streams, and the size of the page."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from ..support.harness import ROOT, Client, LocalServer, eventually, script
from .conftest import OpenTab
from .tab import Tab

Json = dict[str, Any]
BUILT = ROOT / "node_modules" / ".page"
SHORT = 200  # ms of a task; 50 is wanted, and a busy machine takes several times as long


AT_END = """() => {
    const { scrollHeight, scrollTop, clientHeight } =
        document.querySelector(".session:not([hidden]) .scroller");
    return scrollHeight - scrollTop - clientHeight < 4;
}"""
IS_STILL = """async (element) => {
    const { scrollTop } = element;
    for (let frame = 0; frame < 10; frame++) await new Promise(requestAnimationFrame);
    return element.scrollTop === scrollTop;
}"""
OPEN = """async (id) => {
    const begun = performance.now();
    document.querySelector(`a[href$="${id}"]`).click();
    while (!document.querySelector(".session:not([hidden]) .turn .chunk"))
        await new Promise((next) => requestAnimationFrame(next));
    return performance.now() - begun;
}"""


@contextlib.asynccontextmanager
async def main_thread(tab: Tab) -> AsyncIterator[list[float]]:
    """The processor time in ms of each task of the page's main thread, filled in at the end.

    Not time on the clock: that would measure what else the machine is busy with.
    """
    browser = tab.page.context.browser
    assert browser is not None
    tasks: list[float] = []
    await browser.start_tracing(page=tab.page, categories=["disabled-by-default-devtools.timeline"])
    yield tasks
    events = json.loads(await browser.stop_tracing())["traceEvents"]
    names = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["name"] == "thread_name"
    }
    tasks += [
        event.get("tdur", 0) / 1000  # one that was cut off has none
        for event in events
        if event["name"] == "RunTask"
        and names.get((event["pid"], event["tid"])) == "CrRendererMain"
    ]
    assert sum(tasks) > 0


@pytest.mark.slow
async def test_streaming_does_not_block_the_main_thread(tab: Tab) -> None:
    words = "Some **words** with `code` in them, as agents write.\n\n"
    burst = {"burst": {"count": 200, "text": words, "batch": 2, "pause_ms": 10}}  # 200 a second
    await tab.say("hello")
    await tab.settled()
    async with main_thread(tab) as tasks:
        await tab.say(script(burst))
        await expect(tab.answer("0:")).to_be_visible()
        await tab.page.evaluate("window.shifts.length = 0")
        await tab.settled(2)
    assert await tab.page.evaluate("window.shifts") == []  # nothing jumps about
    assert await tab.page.evaluate(AT_END)
    assert max(tasks) < 50, sorted(tasks)[-5:]


async def test_scroll_position_is_kept_while_output_arrives(tab: Tab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    more = {"burst": {"count": 50, "text": "\n\nline"}}
    await tab.say(script(more, {"say": "middle"}, {"gate": str(gate)}, more, {"say": "last"}))
    await expect(tab.answer("middle")).to_be_visible()
    scroller = tab.scroller
    await scroller.hover()
    await tab.page.mouse.wheel(0, -600)
    jump = tab.page.get_by_role("button", name="Go to the end")
    await expect(jump).to_be_visible()
    await eventually("the end of the scrolling", lambda: scroller.evaluate(IS_STILL))
    await tab.page.evaluate("window.shifts.length = 0")
    top = await scroller.evaluate("(element) => element.scrollTop")
    gate.touch()
    await tab.settled()
    assert abs(await scroller.evaluate("(element) => element.scrollTop") - top) < 2
    assert await tab.page.evaluate("window.shifts") == []
    await jump.click()
    await expect(jump).to_be_hidden()
    await expect(tab.answer("last")).to_be_in_viewport()


async def write_log(server: LocalServer, app: str, session_id: str, *, turns: int) -> None:
    """*turns* with 250 tool calls and 250 messages each, as from an agent, but at once."""
    session = await server.services.sessions.get(session_id, app)
    log = session.log
    for turn in range(1, turns + 1):
        log.append("turn_start", turn, b'"prompt":[{"type":"text","text":"go"}],"context":"kept"')
        for step in range(250):
            call = {"toolCallId": f"t{step}", "title": f"Read {step}", "kind": "read"}
            words = {"type": "text", "text": f"Step **{step}** is done.\n\n"}
            for update in (
                {"sessionUpdate": "tool_call", **call, "status": "completed"},
                {"sessionUpdate": "agent_message_chunk", "content": words},
            ):
                message = {"method": "session/update", "params": {"update": update}}
                log.append("event", turn, b'"event":' + json.dumps(message).encode())
        log.append("turn_end", turn, b'"stop_reason":"end_turn","duration_ms":1000,"error":null')
    await log.reach(log.last)


async def append_updates(
    server: LocalServer, app: str, session_id: str, updates: list[Json]
) -> None:
    """A turn with these updates, as from an agent, but at once."""
    session = await server.services.sessions.get(session_id, app)
    log = session.log
    log.append("turn_start", 1, b'"prompt":[{"type":"text","text":"go"}],"context":"kept"')
    for update in updates:
        message = {"method": "session/update", "params": {"update": update}}
        of_subagent = "claudeCode" in update.get("_meta", {})
        fields = {"subagent": {"tool_call_id": "h"}} if of_subagent else {}
        log.append("event", 1, json.dumps({**fields, "event": message})[1:-1].encode())
    log.append("turn_end", 1, b'"stop_reason":"end_turn","duration_ms":1000,"error":null')
    await log.reach(log.last)


@pytest.mark.slow
async def test_ten_megabytes_of_output_open_in_short_tasks(
    open_tab: OpenTab, server: LocalServer, client: Client, app: str
) -> None:
    session_id = await client.create()
    call = {"toolCallId": "t", "title": "make", "kind": "execute", "status": "completed"}
    line = "\x1b[32mok\x1b[0m \x1b[1msome/path/to/a_file.py\x1b[0m: compiled, with 0 warnings\n"
    data = line * ((100 << 10) // len(line))
    output = {"terminal_output": {"terminal_id": "t", "data": data}}
    more = {"sessionUpdate": "tool_call_update", "toolCallId": "t", "_meta": output}
    end = {**more, "_meta": {"terminal_output": {"terminal_id": "t", "data": "the end\n"}}}
    steps: list[Json] = [{"sessionUpdate": "tool_call", **call}, *[more] * 103, end]
    await append_updates(server, app, session_id, steps)
    tab = await open_tab(client)
    await tab.sign_in()
    async with main_thread(tab) as tasks:
        await tab.page.locator(f'a[href$="{session_id}"]').click()
        await tab.settled()
        above = tab.shown.locator(".terminal .above > span")
        await expect(above).to_have_text(re.compile("lines above are not shown"))
        shown = tab.shown.locator(".terminal code")
        await expect(shown).to_contain_text("the end")
    assert max(tasks) < SHORT, sorted(tasks)[-5:]
    lines = (await shown.inner_text()).rstrip("\n").count("\n") + 1
    cut = int((await above.inner_text()).split()[0])
    assert lines + cut == data.count("\n") * 103 + 1


@pytest.mark.slow
async def test_thread_of_5000_entries_unfolds_in_short_tasks(
    open_tab: OpenTab, server: LocalServer, client: Client, app: str
) -> None:
    session_id = await client.create()
    host = {"toolCallId": "h", "title": "Look around", "kind": "think", "status": "completed"}
    by: Json = {"_meta": {"claudeCode": {"parentToolUseId": "h"}}}
    steps: list[Json] = [{"sessionUpdate": "tool_call", **host}]
    for number in range(2500):
        read = {"toolCallId": f"t{number}", "title": f"Read {number}", "kind": "read"}
        words = {"type": "text", "text": f"Step **{number}** is done."}
        steps += [
            {"sessionUpdate": "tool_call", **read, "status": "completed", **by},
            {"sessionUpdate": "agent_message_chunk", "content": words, **by},
        ]
    await append_updates(server, app, session_id, steps)
    tab = await open_tab(client)
    await tab.sign_in(session_id)
    await tab.settled()
    thread = tab.shown.locator(".thread > *")
    # Not by its name: names of thousands of buttons are what would take long.
    line = tab.shown.locator('.tool[data-kind="subagent"] > .line')
    async with main_thread(tab) as tasks:
        await line.click()
        for shown in (100, 500, 900):
            await expect(thread).to_have_count(shown + 1)  # and the button for more
            await thread.first.click()
        await line.click()
        await expect(thread).to_have_count(0)
    assert max(tasks) < SHORT, sorted(tasks)[-5:]


@pytest.mark.slow
async def test_conversation_of_5000_entries_opens_in_a_second(
    open_tab: OpenTab, server: LocalServer, client: Client, app: str
) -> None:
    session_id = await client.create()
    await write_log(server, app, session_id, turns=10)
    assert (await client.state(session_id))["head"] > 5000
    tab = await open_tab(client)
    await tab.sign_in()
    devtools = await tab.page.context.new_cdp_session(tab.page)
    await devtools.send("Performance.enable", {"timeDomain": "threadTicks"})  # not the clock's

    async def worked() -> float:
        """Processor time of the page's main thread so far, seconds."""
        metrics = (await devtools.send("Performance.getMetrics"))["metrics"]
        return float({one["name"]: one["value"] for one in metrics}["TaskDuration"])

    before = await worked()
    clock = await tab.page.evaluate(OPEN, session_id)
    took = await worked() - before
    assert 0 < took < 1, (took, clock)
    await expect(tab.turns).to_have_count(10)  # what is above is filled in when there is time
    await expect(tab.page.locator(".tool")).to_have_count(2500)
    assert await tab.page.evaluate(AT_END)


# A browser may report a pointer of its own, upon which the page loads what a visitor needs next.
STILL = """addEventListener("pointermove", (event) => event.stopImmediatePropagation(), true)"""


async def test_first_view_is_small_and_conversations_load_after_it(
    open_tab: OpenTab, client: Client
) -> None:
    """Bytes on the wire, with the page itself, its font and its libraries."""
    loaded = """["resource", "navigation"].flatMap((kind) => performance.getEntriesByType(kind))
        .map(({ name, encodedBodySize }) => [new URL(name).pathname, encodedBodySize])"""
    tab = await open_tab(client)
    await tab.page.add_init_script(STILL)
    await tab.sign_in()
    await expect(tab.button("Agent: mock")).to_be_visible()
    await tab.page.evaluate("document.fonts.ready")
    first = dict(await tab.page.evaluate(loaded))
    assert first.keys() >= {"/", "/static/app.js", "/static/style.css"}
    assert not [path for path in first if path.startswith("/static/views/")], "not minified"
    assert sum(first.values()) < 120_000, first
    await tab.say(script({"say": "```py\n1\n```"}))  # with the worker that colours it
    await expect(tab.page.locator(".hljs-number")).to_have_text("1")
    later = dict(await tab.page.evaluate(loaded))
    fonts_and_colours = ("woff2", "highlight.min.js")
    plain = {path: size for path, size in later.items() if not path.endswith(fonts_and_colours)}
    assert sum(plain.values()) < 140_000, plain


async def test_own_code_stays_small() -> None:
    """All scripts and styles that are served, whether a visitor opens their part or not."""
    files = [path for path in BUILT.iterdir() if path.suffix in (".js", ".css")]
    own = {path.name: path.stat().st_size for path in files if not path.name.startswith("lib-")}
    assert own.keys() >= {"app.js", "style.css", "sw.js", "highlight.worker.js", "docs.js"}
    assert sum(own.values()) <= 200 << 10, own
