"""Runs the README's snippets as a reader would run them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import async_playwright

from server.agents.catalog import find_node
from server.app import build_app
from server.config import Settings

from ..conftest import Spawn
from ..support.harness import (
    ADMIN,
    ROOT,
    TIMEOUT_SECS,
    Client,
    Json,
    ServerProcess,
    eventually,
    new_client,
    run_program,
)

README = (ROOT / "README.md").read_text("utf-8")
URL = "http://127.0.0.1:8800"
TOKEN = "cf_…"
HEADING = "What I can show"
"""The first line of the demo agent's answer to "help"."""
CHROMIUM = Path("/usr/bin/chromium")
HAS_CHROMIUM = CHROMIUM.exists()
PATHS_OF_THE_PAGE = ("/docs", "/static/", "/lib/")


def snippet(marker: str) -> str:
    """The fenced code after the comment ``<!-- marker -->``."""
    found = re.findall(
        rf"^<!-- {re.escape(marker)} -->\n```\w+\n(.*?)^```$", README, re.DOTALL | re.MULTILINE
    )
    assert len(found) == 1, f"the README has {len(found)} snippets named {marker!r}"
    return str(found[0])


def section(heading: str) -> str:
    return README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


@pytest.fixture
async def demo(spawn: Spawn) -> ServerProcess:
    """A server as `make run` starts it, except for its port and its admin token."""
    return await spawn(AGENTS=None, DEFAULT_AGENT="demo", WEBHOOK_HOSTS="hooks.example.org")


@pytest.fixture
async def app(demo: ServerProcess, http: aiohttp.ClientSession) -> Client:
    return await new_client(demo.url, http)


async def test_first_start_prints_the_greeting_of_the_readme(spawn: Spawn) -> None:
    server = await spawn(ADMIN_TOKEN=None, AGENTS=None, DEFAULT_AGENT=None)
    printed = server.greeting
    assert server.process.stdout is not None
    while "hashes" not in printed:
        line = await asyncio.wait_for(server.process.stdout.readline(), TIMEOUT_SECS)
        assert line, printed
        printed += line.decode()
    shown = re.sub(r"cf_[\w-]+", TOKEN, printed.replace(server.url, URL))
    shown = re.sub(r"^sandbox: .*", "sandbox: …", shown)  # the level of this machine
    assert f"```text\n{shown}```" in section("Start")


async def test_bot_prints_the_answer(demo: ServerProcess, app: Client, tmp_path: Path) -> None:
    assert app.token is not None
    bot = tmp_path / "bot.py"
    bot.write_text(snippet("the bot").replace(URL, demo.url), "utf-8")
    status, out, err = await run_program(sys.executable, str(bot), TOKEN=app.token)
    assert (status, err) == (0, "")
    assert HEADING in out


def test_bot_has_ten_lines() -> None:
    assert len([line for line in snippet("the bot").splitlines() if line]) == 10


def browser_snippet(token: str | None) -> str:
    assert token is not None
    code = snippet("the browser snippet")
    assert TOKEN in code
    return code.replace(TOKEN, token)


async def test_browser_snippet_logs_the_answer_in_node(
    demo: ServerProcess, app: Client, tmp_path: Path
) -> None:
    script = tmp_path / "snippet.mjs"
    # The script runs forever, as a page does: the test ends with its first log line.
    prelude = (
        f"globalThis.location = new URL({json.dumps(demo.url)});\n"
        "const { log } = console;\n"
        "console.log = (text) => { log(text); process.exit(0); };\n"
    )
    script.write_text(prelude + browser_snippet(app.token), "utf-8")
    status, out, err = await run_program(find_node(), str(script))
    assert (status, err) == (0, "")
    assert HEADING in out


@pytest.mark.browser
@pytest.mark.slow
async def test_browser_snippet_logs_the_answer_in_chromium(
    demo: ServerProcess, app: Client
) -> None:
    if not HAS_CHROMIUM:
        missing = f"{CHROMIUM} is missing"
        if os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.getuid() == 0 else []
        )
        page = await browser.new_page()
        await page.goto(demo.url)
        async with page.expect_console_message(lambda message: HEADING in message.text):
            await page.evaluate(f"async () => {{ {browser_snippet(app.token)} }}")
        await browser.close()


VARIABLES = {
    "SESSION": "session_id",
    "FILE": "file_token",
    "RUN": "run_id",
    "SHARE": "share_id",
    "BROWSER": "id",
}
"""The fields of responses that the README's later commands use."""


class Shell:
    """Runs the README's curl commands with the variables that a reader would set."""

    def __init__(self, demo: ServerProcess, app: Client) -> None:
        assert app.token is not None
        self._app = app
        self.variables = {"URL": demo.url, "TOKEN": app.token, "ADMIN": ADMIN}
        self.variables["NAME"] = "README.md"
        self.variables["AUTH"] = f"Authorization: Bearer {app.token}"
        self._followers: list[asyncio.Task[tuple[int | None, str, str]]] = []
        self._turns: list[asyncio.Task[tuple[int, Json]]] = []

    async def carry_out(self, command: str) -> None:
        if "-N" in command and "/events" in command:  # streams until the session is closed
            self._followers.append(asyncio.create_task(self._run(command)))
            return
        if "/sessions/stream" in command:  # streams until the client ends it
            endless = command.replace("curl ", "curl -sS --max-time 1 ", 1)
            status, out, _ = await run_program("bash", "-euc", endless, **self.variables)
            assert status == 28
            assert '"type":"ready"' in out, out
            return
        if "/undo" in command:  # refused while a turn runs
            await asyncio.gather(*self._turns)
        _, out, _ = await self._run(command)
        if command.endswith("/files/$NAME"):
            assert out == (ROOT / "README.md").read_text("utf-8")
            return
        if " -o " in command:
            return
        if "text/event-stream" in command:
            assert '"type":"turn_end"' in out, out
        elif "/metrics" in command:
            assert "clawdforge_open_sessions" in out
        elif "/openapi.json" in command:
            assert "/run" in json.loads(out)["paths"]
        else:
            answer = json.loads(out)
            is_openai = "/v1/" in command
            assert answer.get("object" if is_openai else "ok"), f"{command}\n{out}"
            for name, field in VARIABLES.items():
                if field in answer and not is_openai and name not in self.variables:
                    self.variables[name] = answer[field]

    async def _run(self, command: str) -> tuple[int | None, str, str]:
        # Without progress output; a status other than success fails the command.
        quiet = re.sub(r"^curl ", "curl -sS --fail-with-body ", command)
        status, out, err = await run_program("bash", "-euc", quiet, **self.variables)
        assert (status, err) == (0, ""), f"{command}\n{out}{err}"
        return status, out, err

    async def assign(self, name: str) -> None:
        """Check that a variable is set, by an earlier response or by a request here."""
        if name == "REQUEST":
            self.variables[name] = await self._ask("/diff", "pending_permissions")
        elif name == "QUESTION":
            self.variables[name] = await self._ask("/form", "pending_elicitations")
        elif name == "QUEUED":
            self.variables[name] = await self._queue_prompt()
        assert self.variables.get(name), f"no response has set {name}"

    async def _ask(self, prompt: str, listed: str) -> str:
        session = self.variables["SESSION"]
        self._turns.append(asyncio.create_task(self._app.turn(session, prompt)))

        async def pending() -> list[Json]:
            return list((await self._app.state(session))[listed])

        [request] = await eventually("the demo agent to ask", pending)
        return str(request["request_id"])

    async def _queue_prompt(self) -> str:
        session = self.variables["SESSION"]
        for prompt in ("/slow 60", "/slow 61"):
            self._turns.append(asyncio.create_task(self._app.turn(session, prompt)))

        async def queued() -> list[Json]:
            return list((await self._app.state(session))["queued"])

        [turn] = await eventually("a prompt to wait", queued)
        return str(turn["turn_index"])

    async def finish(self) -> None:
        """Check that the open streams have ended, and that the turns that asked succeeded."""
        replies = await asyncio.gather(*self._turns)
        assert {status for status, _ in replies} == {200}
        for follower in self._followers:
            _, out, _ = await follower
            assert '"type":"session_closed"' in out


async def test_curl_commands_succeed_in_order(demo: ServerProcess, app: Client) -> None:
    assert shutil.which("curl"), "the tests need curl"
    shell = Shell(demo, app)
    for line in snippet("the curl commands").splitlines():
        if assignment := re.match(r"([A-Z]+)=", line):
            await shell.assign(assignment[1])
        elif line.startswith("curl "):
            await shell.carry_out(line)
        else:
            assert not line or line.startswith("# "), line
    await shell.finish()


def call_of(command: str) -> tuple[str, str]:
    """The method and path of a curl command, with `{}` for its variables."""
    method = re.search(r"-X (\w+)", command)
    has_body = re.search(r" (-[dF]|--data-binary) ", command)
    path = re.search(r"\$URL(/[^\s\"?]*)", command)
    assert path, command
    name = method[1] if method else "POST" if has_body else "GET"
    return name, re.sub(r"\$[A-Z]+|my-bot", "{}", path[1])


async def test_readme_has_a_curl_command_for_each_call(tmp_path: Path) -> None:
    commands = [c for c in snippet("the curl commands").splitlines() if c.startswith("curl ")]
    application = await build_app(Settings(data_dir=tmp_path))
    calls = {
        (route.method, re.sub(r"\{.*?\}", "{}", route.resource.canonical))
        for route in application.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    of_browsers = {
        call
        for call in calls
        if call[1] == "/"
        or call[1].endswith(("/ws", "/acp"))
        or call[1].startswith(PATHS_OF_THE_PAGE)
    }
    # They only succeed for an agent that has a login.
    of_logins = {call for call in calls if call[1].startswith("/admin/agents/")}
    assert {call_of(command) for command in commands} == calls - of_browsers - of_logins
