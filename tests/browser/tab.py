"""A page of the browser: what a person does with it, and what must never happen in it."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from playwright.async_api import Locator, Page, Request, expect

from ..support.harness import ROOT, eventually

PICTURES = ROOT / ".pytest_cache" / "screenshots"
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}

# Before anything of the page runs: what it does against its policy, and what jumps about.
WATCH = """
window.violations = [];
window.shifts = [];
new PerformanceObserver((list) => {
    for (const { value, hadRecentInput } of list.getEntries()) hadRecentInput || shifts.push(value);
}).observe({ type: "layout-shift" });
document.addEventListener("securitypolicyviolation", (event) =>
    violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""

# For tests that import sources beside the minified page: each makes the policy of that name.
SHARE_POLICY = """
const make = trustedTypes.createPolicy.bind(trustedTypes);
const made = {};
TrustedTypePolicyFactory.prototype.createPolicy = (name, rules) =>
    (made[name] ??= make(name, rules));
"""


# Content that fades in is too pale until it has arrived.
AT_REST = """Promise.allSettled(document.getAnimations()
    .filter((one) => one.effect.getTiming().iterations < Infinity)
    .map((one) => one.finished)).then(() => null)"""


class Tab:
    """Signs in as one app, and writes down errors, foreign requests and broken policies."""

    def __init__(self, page: Page, url: str, token: str) -> None:
        self.page = page
        self.url = url
        self.token = token
        self.errors: list[str] = []
        self.foreign: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._request)

    def _request(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.foreign.append(request.url)

    @property
    def composer(self) -> Locator:
        return self.page.locator("main textarea:visible").first

    @property
    def shown(self) -> Locator:
        """The visible session; other open sessions are hidden."""
        return self.page.locator(".session:not([hidden])")

    @property
    def turns(self) -> Locator:
        return self.shown.locator(".turn")

    @property
    def scroller(self) -> Locator:
        return self.shown.locator(".scroller")

    def answer(self, text: str) -> Locator:
        """The agent's messages with that text in them."""
        return self.shown.locator(".message").filter(has_text=text)

    def button(self, name: str | re.Pattern[str], *, exact: bool = False) -> Locator:
        return self.page.get_by_role("button", name=name, exact=exact)

    @property
    def session_id(self) -> str:
        return self.page.url.partition("#session=")[2]

    async def sign_in(self, session_id: str = "") -> None:
        await self.page.goto(f"{self.url}/#token={self.token}&session={session_id}")
        await expect(self.composer).to_be_visible()

    async def share_policy(self) -> None:
        await self.page.add_init_script(SHARE_POLICY)
        await self.page.reload()

    async def say(self, prompt: str) -> None:
        await self.composer.fill(prompt)
        await self.composer.press("Control+Enter")  # on a phone, too

    async def settled(self, turns: int = 1) -> None:
        """Wait until *turns* turns have ended and none is running."""
        await expect(self.turns.locator(".facts:not(.working)")).to_have_count(turns)
        await expect(self.shown.locator(".working")).to_have_count(0)

    async def told(self) -> Any:
        """The JSON of the last message, once it is drawn wholly."""

        async def parsed() -> list[Any]:
            text = await self.page.locator(".message").last.inner_text()
            with contextlib.suppress(ValueError):
                return [json.loads(text)]
            return []

        (value,) = await eventually("JSON of the agent", parsed)
        return value

    async def picture(self, name: str) -> None:
        path = PICTURES / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        await self.page.evaluate("document.fonts.ready")
        await self.page.screenshot(path=path)

    async def axe(self, name: str) -> None:
        """No finding of axe, however small, in the page when it has come to rest.

        The order of headings is left out, because agents write headings of their own, and so are
        equal names of landmarks, because two sessions side by side may have the same prompt.
        """
        await self.page.evaluate(AT_REST)
        if await self.page.evaluate("!window.axe"):
            await self.page.evaluate(AXE.read_text("utf-8"))
        left_out = ("heading-order", "landmark-unique")
        rules = {rule: {"enabled": False} for rule in left_out}
        options = {"resultTypes": ["violations"], "rules": rules}
        found = await self.page.evaluate("(options) => axe.run(document, options)", options)
        assert not found["violations"], [
            f"{name}: {one['id']}: {one['nodes'][0]['html'][:200]}" for one in found["violations"]
        ]

    async def assert_clean(self) -> None:
        assert self.errors == [], self.errors
        assert self.foreign == []
        assert await self.page.evaluate("window.violations") == []
