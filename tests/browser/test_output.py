"""Agent output is shown completely, and none of it is executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import expect

from ..support.harness import Client, eventually, script
from .tab import Tab

Json = dict[str, Any]


# Each call of the clock takes 6 ms, so no frame can draw everything that is new. The
# text on the screen when a turn is shown as ended is kept.
SLOW_FRAMES = """() => {
    const now = performance.now.bind(performance);
    let looks = 0;
    performance.now = () => now() + 6 * ++looks;
    new MutationObserver(() => {
        if (document.querySelector(".facts:not(.working)"))
            window.standing ??= document.querySelector(".message").innerText;
    }).observe(document.body, { childList: true, subtree: true });
}"""


async def test_turn_end_is_shown_after_the_whole_answer(tab: Tab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    await tab.say(script({"say": "start "}, {"gate": str(gate)}, {"say": "end"}))
    await expect(tab.answer("start")).to_be_visible()
    await tab.page.evaluate(SLOW_FRAMES)
    gate.touch()
    await tab.settled()
    assert await tab.page.evaluate("standing") == "start end"


async def test_demo_agent_output_is_shown(tab: Tab) -> None:
    page = tab.page
    call = {"toolCallId": "t1", "title": "Read a.py", "kind": "read", "status": "completed"}
    same = "same\n" * 9
    old, new = f"one\ntwo\n{same}", f"one\n2\n{same}"
    diff = {"type": "diff", "path": "/x/a.py", "oldText": old, "newText": new}
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
    unchanged = page.get_by_text("6 unchanged lines")
    await unchanged.scroll_into_view_if_needed()
    await expect(unchanged).to_be_in_viewport()
    failed = page.locator(".terminal code span", has_not=page.locator("span")).first
    await expect(failed).to_have_text("1 failed")
    await page.emulate_media(color_scheme="dark")
    await expect(failed).to_have_css("color", "rgb(240, 138, 128)")
    await page.emulate_media(color_scheme="light")  # with a light terminal
    await expect(failed).not_to_have_css("color", "rgb(240, 138, 128)")
    await expect(page.locator(".md h4")).to_have_text("Done")
    await expect(page.locator(".md strong")).to_have_text("one")
    await expect(page.locator(".md table td").first).to_have_text("1")
    await expect(page.locator(".md .hljs-number")).to_have_text("1")  # coloured by the worker
    await expect(page.locator(".image img")).to_be_visible()
    await expect(page.get_by_text("34.2k / 200k · $0.25")).to_be_visible()
    raw = page.locator(".raw").filter(has_text="from_the_future")
    await raw.locator("summary").click()
    await expect(raw.locator("code")).to_contain_text('"x": 1')
    await page.get_by_role("button", name=re.compile("^Thought")).click()
    await expect(page.get_by_text("Let me see.", exact=True)).to_be_visible()
    await page.get_by_role("button", name="Read a.py").click()
    await expect(page.locator(".tool-body").first).to_contain_text('"path": "a.py"')
    # Nothing but the conversation scrolls: not the page with its bars around it.
    assert await page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    await tab.axe("everything")
    await tab.picture("everything")


@pytest.mark.slow
async def test_terminal_output_overwrites_earlier_text(tab: Tab, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    purpose = "Look for what is left to do"
    search = {"command": "grep -r TODO", "description": purpose}
    printed = "src/a.c: \x1b[01;31m\x1b[KTODO\x1b[m\x1b[K later\nsrc/b.c: none"

    def update(kind: str, call: str, text: str, /, **fields: Any) -> Json:
        content = [{"type": "content", "content": {"type": "text", "text": text}}]
        call_update = {"sessionUpdate": kind, "toolCallId": call, "content": content, **fields}
        return {"update": call_update}

    steps = [
        update("tool_call", "t1", purpose, kind="execute", title="grep", rawInput=search),
        update("tool_call", "t2", "```sh\nstep 1", kind="execute", title="make"),
        {"gate": str(gate)},
        update("tool_call_update", "t1", f"```console\n{printed}\n```", status="completed"),
        update("tool_call_update", "t2", "```sh\nstep 1\nstep 2\n```", status="completed"),
    ]
    await tab.say(script(*steps))
    bodies = tab.page.locator(".tool-body")
    await expect(bodies.first).to_contain_text(purpose)
    await expect(bodies.first.locator(".terminal")).to_have_count(0)
    await expect(bodies.last.locator(".terminal")).to_contain_text("step 1")
    gate.touch()
    await tab.settled()
    shown = ["src/a.c: TODO later\nsrc/b.c: none", "step 1\nstep 2"]
    await expect(bodies.locator(".terminal")).to_have_text(shown, use_inner_text=True)
    await expect(bodies.first).not_to_contain_text(purpose)


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

[self](/#token=cf_evil) [self](SELF/#token=cf_evil) [self](SELF./x) [x](https://x/#a&token=cf_evil)

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


async def test_agent_output_is_never_executed(tab: Tab) -> None:
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
    await page.locator(".ask-card .chips button").first.click()
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


async def test_content_security_policy_is_enforced(tab: Tab) -> None:
    run = """() => {
        const script = document.createElement("script");
        document.body.append(script);
        const parsed = document.createRange();
        for (const attempt of [
            () => (script.textContent = "window.pwned = 1"),
            () => document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='pwned = 2'>"),
            () => parsed.createContextualFragment("<b>"),
            () => new Worker("static/sw.js"),
            () => trustedTypes.createPolicy("other", {}),
            () => trustedTypes.createPolicy("clawdforge", {}),
        ]) {
            try {
                attempt();
                window.pwned = attempt.toString();
            } catch {}
        }
        return new Promise((done) => setTimeout(done, 200));
    }"""
    await tab.page.evaluate(run)
    assert await tab.page.evaluate("window.pwned") is None
    assert len(await tab.page.evaluate("window.violations")) >= 6
    await tab.page.evaluate("window.violations.length = 0")


@pytest.mark.slow
async def test_stop_reasons_are_shown_in_words(tab: Tab) -> None:
    failure = {"code": -32603, "message": "Internal error", "data": {"details": "no quota left"}}
    ends: dict[str, list[Json]] = {
        "The agent declined": [{"stop": "refusal"}],
        "reached its length limit": [{"stop": "max_tokens"}],
        "no quota left": [{"say": "half"}, {"error": failure}],
        "The agent stopped unexpectedly": [{"exit": 3}],
    }
    for turn, (words, steps) in enumerate(ends.items(), 1):
        await tab.say(script(*steps))
        await tab.settled(turn)
        await expect(tab.turns.last.locator(".ending")).to_contain_text(words)
    await expect(tab.turns.nth(2).locator(".ending p")).to_have_text(
        ["Internal error: no quota left"]  # once
    )
    await expect(tab.button("Try again")).to_have_count(1)  # of the last one only
    await tab.axe("endings")
    await tab.picture("endings")
    await tab.button("Try again").dblclick()
    await tab.settled(5)
    await tab.say("after all")
    await expect(tab.answer("echo: after all")).to_be_visible()
    await expect(tab.turns).to_have_count(6)


GROWING = [
    "Hi\n\n```py\nx = 1\n\n\ny = **2**\n- a\n1\n```\n\nAfter **bold**, a text.\n\n```\nplain\n",
    "a\n```js\n``\nbar\n````\n```\nb\n\n~~~\n\n- x\n  ```c\n  int a;\n  ```\n- y\n",
    "````md\n```\ninner\n```\n````\n| a | b |\n| - | - |\n| 1 | 2 |\n",
    "```text\n" + "a line of code\n" * 3000 + "```\ndone with it\n",
    r"Is \(a^2\) or $b_1$ or $5 and $6?" "\n\n\\[\nx = 1\n\\]\n\n$$\ny\n$$\nwith `\\(` and \\(open",
    "a <kbd>K</kbd> <br> b<sub>2</sub>[^1]\n\n> [!NOTE]\n> Said.\n\n- [ ] a\n  - [x] b\n\n[^1]: it",
    "<details>\n<summary>S</summary>\n\nin **it**\n\n- x\n\n</details>\n\n```math\nx^2\n```\nend",
    "```mermaid\nflowchart LR\n  A --> B\n```\n\n| a | b |\n| - | - |\n| $x$<br>y | C:\\_a |\n",
]
GROW = """async (texts) => {
    // The modules need the templates as they are in the source, not those of the built page.
    const source = new XMLHttpRequest();
    source.open("GET", "/static/index.html");
    source.responseType = "document";
    await new Promise((next) => { source.onload = next; source.send(); });
    for (const one of source.response.querySelectorAll("template"))
        document.getElementById(one.id).replaceWith(document.importNode(one, true));
    const { MarkdownView } = await import("/static/views/markdown.js");
    const first = new MarkdownView("$x$");
    while (!first.el.querySelector("math")) await new Promise((next) => setTimeout(next, 10));
    const shown = ({ el }) => [...el.children].map((one) => one.tagName + one.textContent).join();
    const wrong = [];
    for (const text of texts) {
        for (let seed = 1; seed < 6; seed += 1) {
            const view = new MarkdownView();
            for (let at = 0, dice = seed; at < text.length; ) {
                dice = (dice * 48271) % 2147483647;
                at += 1 + (dice % (text.length > 1000 ? 2000 : 7));
                view.nextAt = 0; // no pause
                view.update(text.slice(0, at), at >= text.length);
            }
            if (shown(view) !== shown(new MarkdownView(text))) wrong.push([seed, text]);
        }
    }
    return wrong;
}"""


@pytest.mark.slow
async def test_streamed_markdown_equals_markdown_rendered_at_once(tab: Tab) -> None:
    await tab.share_policy()
    assert await tab.page.evaluate(GROW, GROWING) == []


GITHUB = r"""
# One

Euler: \(e^{i\pi} = -1\), $a_1$; $5 and $10; C:\Users\_me\.config; \*plain\*; x[^1]

<a href="https://good.example/" onclick="window.pwned=6">raw</a>
<a href="javascript:window.pwned=7">script</a> <a href="/#token=x">token</a>
<a href="data:text/html,x">data</a> <a href="https://evil.example">www.good.example</a>
<img src="data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
alt="dot" onload="window.pwned=8" style="x">
<img src="https://evil.example/i.png" onerror="window.pwned=9" alt="far">
[![https://good.example](https://evil.example/b.png)](https://evil.example/)
<style>* { display: none }</style><svg onload="window.pwned=10"></svg>

\[ \frac{1}{2} \]

- [ ] open
  - [x] nested

> [!WARNING]
> Careful.

<details><summary>More</summary>

**inside**

</details>

H<sub>2</sub>O <kbd onclick="window.pwned=1">K</kbd> a<br>b

שלום `code`

- مرحبا

```math
x^2
```

```mermaid
%%{init: {"securityLevel": "loose", "flowchart": {"htmlLabels": true}}}%%
%%{init: {"themeCSS": "* { background: url(https://evil.example/y.png) }"}}%%
flowchart LR
  A["<img src=x onerror='window.pwned=2'>"] --> B["<a href='javascript:window.pwned=3'>x</a>"]
  B --> C["<img src='https://evil.example/x.png'>"]
  click A href "javascript:window.pwned=4"
  click B call alert()
```

$\href{javascript:window.pwned=5}{x} \includegraphics{https://evil.example/z.png}$
$\def\a{\a\a}\a$

```mermaid
no such diagram
```

[^1]: The note.
"""


@pytest.mark.slow
async def test_mathematics_diagrams_and_github_markdown_are_drawn_safely(
    tab: Tab,
) -> None:
    page = tab.page
    await tab.say(script({"say": GITHUB}))
    await tab.settled()
    answer = tab.shown.locator(".message")
    await expect(answer.locator("h3")).to_have_text("One")
    await expect(answer.locator("math")).to_have_count(5)
    assert await answer.locator("math :is(a, img, [href], [style])").count() == 0
    await expect(answer.locator("math[display=block]").first).to_be_visible()
    await expect(answer).to_contain_text(r"$5 and $10; C:\Users\_me\.config; *plain*; x1")
    await expect(answer.locator("li.task li.task")).to_contain_text("nested")
    await expect(answer.locator("[data-alert=warning]")).to_contain_text("Careful.")
    hrefs = await answer.locator("a").evaluate_all("(all) => all.map(({ href }) => href)")
    evil = "https://evil.example/"
    assert hrefs == ["https://good.example/", evil, f"{evil}i.png", evil]
    await expect(answer.locator(".leads")).to_have_count(2)  # of the two that pretend
    await expect(answer.locator("img[alt=dot]")).to_have_js_property("naturalWidth", 1)
    await expect(answer).to_contain_text("<style>* { display: none }</style><svg onload=")
    await answer.get_by_role("button", name="Footnote 1", exact=True).click()
    await expect(answer.get_by_role("button", name="Back from footnote 1")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(answer.get_by_role("button", name="Footnote 1", exact=True)).to_be_focused()
    await answer.locator("summary").click()
    await expect(answer.locator("details strong")).to_be_visible()
    await expect(answer.locator("sub")).to_have_text("2")
    for block, direction in (("p:has-text('code')", "rtl"), ("ul:has-text('مرحبا')", "rtl")):
        await expect(answer.locator(block).last).to_have_css("direction", direction)
    await expect(answer.locator("p code").last).to_have_css("direction", "ltr")
    drawing = answer.locator(".drawing img")
    await drawing.scroll_into_view_if_needed()
    width = "(image) => image.complete && image.naturalWidth > 100"
    await eventually("the drawing", lambda: drawing.evaluate(width))
    # It is a picture: nothing in it is part of the page.
    assert await page.locator(".md svg:not(.icon)").count() == 0
    await expect(answer.locator(".undrawn")).to_be_visible()
    await answer.locator(".undrawn").scroll_into_view_if_needed()
    assert await page.evaluate("window.pwned") is None
    frame = next(one for one in page.frames if one.url.endswith("/static/diagram.html"))
    assert await frame.evaluate("[origin, window.pwned ?? null]") == ["null", None]
    await tab.axe("markdown")
    await tab.picture("markdown")


# Two pieces of a message that arrive after the end of its turn, drawn separately.
LATE = """async () => {
    const { MessageView } = await import("/static/views/messages.js");
    const part = { type: "text", text: "The **build" };
    const view = new MessageView({ kind: "message", parts: [part], done: true });
    part.text += "** is over.";
    view.update();
    return view.el.innerHTML;
}"""


@pytest.mark.slow
async def test_output_after_the_end_of_a_turn_is_shown(tab: Tab) -> None:
    await tab.share_policy()
    html = await tab.page.evaluate(LATE)
    assert html.strip() == '<div class="md"><p>The <strong>build</strong> is over.</p>\n</div>'


async def test_finished_calls_of_a_long_turn_fold_and_its_end_names_the_tests(tab: Tab) -> None:
    def run(number: int, status: str) -> Json:
        text = {"type": "text", "text": f"output {number}\n3 passed"}
        call = {"toolCallId": f"t{number}", "title": f"pytest -k part{number}", "kind": "execute"}
        fields = {"rawInput": {"command": call["title"]}, "status": status}
        content = [{"type": "content", "content": text}]
        return {"update": {"sessionUpdate": "tool_call", **call, **fields, "content": content}}

    calls = [run(number, "failed" if number == 2 else "completed") for number in range(40)]
    await tab.say(script(*calls[:3]))
    await tab.settled()
    await expect(tab.shown.locator(".terminal:visible")).to_have_count(3)  # a short turn
    await tab.say(script(*calls))
    await tab.settled(2)
    last = tab.turns.last
    await expect(last.locator(".terminal:visible")).to_have_text(re.compile("output 2"))
    await expect(last.locator(".facts")).to_contain_text("tests passed")


async def test_files_websites_and_sounds_of_an_agent_open(tab: Tab, client: Client) -> None:
    page = tab.page
    await tab.say("hello")
    await tab.settled()
    folder = Path((await client.state(tab.session_id))["cwd"])
    notes = folder / "docs" / "my notes.md"
    notes.parent.mkdir()
    notes.write_text("# Notes")

    def link(name: str, uri: str) -> Json:
        content = {"type": "resource_link", "name": name, "uri": uri}
        return {"update": {"sessionUpdate": "agent_message_chunk", "content": content}}

    silence = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA="
    sound = {"type": "audio", "mimeType": "audio/wav", "data": silence}
    await tab.say(
        script(
            link("my notes", notes.as_uri()),
            link("elsewhere", "file:///etc/hosts"),
            link("the manual", "https://example.com/manual"),
            link("this page", f"{tab.url}/#token=cf_x"),
            link("not a link", "javascript:alert(1)"),
            {"update": {"sessionUpdate": "agent_message_chunk", "content": sound}},
        )
    )
    await tab.settled(2)
    site = page.get_by_role("link", name="the manual example.com")
    await expect(site).to_have_attribute("rel", "noopener noreferrer")
    for name in ("this page", "not a link"):
        await expect(page.locator("span.chip", has_text=name)).to_be_visible()
    player = page.locator("audio")
    ready = "(one) => one.readyState > 0 && !one.error"
    await eventually("the sound to be loaded", lambda: player.evaluate(ready))
    await tab.axe("links")
    await tab.picture("links")
    await tab.button("elsewhere").click()
    await expect(page.get_by_text("Only files of the session’s folder open here.")).to_be_visible()
    await tab.button("my notes").click()
    side = page.get_by_role("complementary", name="Changes and files")
    await expect(side.locator("pre")).to_have_text("# Notes")
    await expect(side.locator("summary", has_text="my notes.md")).to_be_focused()
