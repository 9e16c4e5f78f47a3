"""``POST /run`` with the real claude program and a stand-in of its API."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ..conftest import Serve
from ..support.anthropic_stand_in import Failure, Hang, StandIn, Text, ToolUse, stand_in, texts_of
from ..support.harness import Client, Json, descendants, eventually
from ..support.real_agents import NotInstalledError, find_claude
from ..support.runs import command_line, fail, pid_in, run, until_ended, upload
from ..support.sandboxes import TEST_LEVEL


@pytest.fixture(scope="session")
def real_claude() -> str:
    """The real program. If it cannot be installed, its tests are skipped, or fail in CI."""
    try:
        return str(find_claude())
    except NotInstalledError as error:
        if os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL") == "1":
            raise
        pytest.skip(str(error))


Real = Callable[..., Awaitable[Client]]


@pytest.fixture
async def api() -> AsyncIterator[StandIn]:
    async with stand_in() as running:
        yield running


@pytest.fixture
def real(
    real_claude: str,
    api: StandIn,
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Real:
    """Starts a server with the real program: ``client = await real(ANTHROPIC_API_KEY="")``."""

    async def start(sandbox: str = TEST_LEVEL, **environ: str) -> Client:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        for name, value in {**api.environ, "HOME": str(home), **environ}.items():
            monkeypatch.setenv(name, value)
        return await (await serve(claude_bin=real_claude, sandbox=sandbox)).client()

    return start


async def test_real_claude_returns_result(real: Real, api: StandIn) -> None:
    client = await real()
    api.plan(Text("Hello there."), Text('```json\n{"a": [1]}\n```'))
    system = "You count. " * 20_000  # too long for an argument
    assert await run(client, "hi", model="haiku", effort="high", system=system) == "Hello there."
    asked = api.requests[-1]
    assert "hi" in api.texts()
    assert "haiku" in asked["model"]
    assert asked["output_config"]["effort"] == "high"
    assert system.strip() in api.system()
    assert await run(client, "hi", system="Be kind.", system_mode="append") == {"a": [1]}
    assert "Be kind." in api.system()
    assert len(api.system()) > 1000  # after its own system prompt


@pytest.mark.slow
async def test_real_claude_returns_a_result_that_is_valid_against_a_schema(
    real: Real, api: StandIn
) -> None:
    """Claude calls a tool with the result, and is asked again if the call is not valid."""
    client = await real()
    schema = {
        "type": "object",
        "required": ["n"],
        "properties": {"n": {"type": "integer"}},
        "additionalProperties": False,
    }
    calls = [ToolUse("StructuredOutput", {"n": "one"}), ToolUse("StructuredOutput", {"n": 1})]
    api.plan(*calls, Text("Done."))
    assert await run(client, "count", schema=schema) == {"n": 1}
    status, reply = await client.post(
        "/run", {"prompt": "count", "schema": schema, "max_attempts": 1}
    )
    assert (status, reply["code"]) == (422, "schema_failed")


@pytest.mark.slow
async def test_real_claude_accepts_prompt_of_five_megabytes(real: Real, api: StandIn) -> None:
    client = await real()
    prompt = "All work and no play. " * ((5 << 20) // 22)
    assert await run(client, prompt) == "OK"
    assert prompt.strip() in [text.strip() for text in api.texts()]


@pytest.mark.slow
async def test_real_claude_api_errors_are_failures(real: Real, api: StandIn) -> None:
    client = await real(CLAUDE_CODE_MAX_RETRIES="0")
    expected = {401: "login_required", 429: "agent_failed", 529: "agent_failed"}
    for status, code in expected.items():
        api.plan(Failure(status, "so planned"))
        reply = await fail(client, "hi")
        assert (reply["code"], reply["stop_reason"]) == (code, "error")
        assert reply["retryable"] is (code == "agent_failed")
        assert "so planned" in reply["error"]


@pytest.mark.slow
async def test_real_claude_retries_twice(real: Real, api: StandIn) -> None:
    client = await real()
    api.always(Failure(500))
    assert (await fail(client, "hi"))["code"] == "agent_failed"
    assert len(api.requests) == 3


@pytest.mark.slow
async def test_real_claude_without_login_is_login_required(real: Real) -> None:
    reply = await fail(await real(ANTHROPIC_API_KEY=""), "hi")
    assert (reply["code"], reply["retryable"]) == ("login_required", False)
    assert "/login" in reply["error"]


@pytest.mark.slow
async def test_real_claude_reads_attached_files_only(
    real: Real, api: StandIn, tmp_path: Path
) -> None:
    client = await real()
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")

    def read_attached(body: Json) -> ToolUse:
        listed = next(text for text in texts_of(body) if text.startswith("[Attached files]"))
        return ToolUse("Read", {"file_path": listed.split("\n")[1]})

    api.plan(
        read_attached,
        ToolUse("Read", {"file_path": str(secret)}),
        ToolUse("Write", {"file_path": "new.txt", "content": "x"}),
        ToolUse("Bash", {"command": f"cat {secret}", "description": "look"}),
        Text("done"),
    )
    token = await upload(client, b"the notes")
    assert await run(client, f"@{secret} see", files=[token]) == "done"
    attached, *others = api.tool_results()
    assert "the notes" in json.dumps(attached)
    assert [result.get("is_error") for result in others] == [True] * 3
    assert "the secret" not in json.dumps(api.requests)


@pytest.mark.slow
async def test_real_claude_is_stopped_with_its_tools(
    real: Real, api: StandIn, tmp_path: Path
) -> None:
    settings = tmp_path / "home" / ".claude" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({"permissions": {"allow": ["Bash"]}}))
    client = await real("off")  # with the settings of the server's user
    pid_file = tmp_path / "tool"
    command = f"setsid sleep 1000 & echo $! > {pid_file}; sleep 1000"
    api.plan(ToolUse("Bash", {"command": command, "description": "wait"}))
    asked = asyncio.create_task(client.post("/run", {"prompt": "hi"}))
    pid = await pid_in(pid_file)
    asked.cancel()
    await until_ended(pid)
    await asyncio.gather(asked, return_exceptions=True)
    await eventually(
        "the command to end",
        lambda: not [pid for pid in descendants(os.getpid()) if b"sleep" in command_line(pid)],
    )

    for hang, seconds in ((Hang(), 2), (Hang("So"), 1)):
        asked_before = len(api.requests)
        api.plan(hang)
        reply = await fail(client, "hi", timeout_secs=seconds)
        assert (reply["code"], reply["stop_reason"]) == ("agent_timeout", "timeout")
        assert len(api.requests) - asked_before <= 1  # a single attempt used all of the time
