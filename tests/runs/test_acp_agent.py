"""``POST /run`` with an ACP agent: the same contract, over one turn through acpx."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from ..support.harness import Client, LocalServer, descendants, eventually, script
from ..support.runs import (
    command_line,
    fail,
    is_clean,
    last_reason,
    pid_in,
    post,
    rows,
    run,
    until_ended,
    upload,
)


def mock_agents() -> list[int]:
    return [pid for pid in descendants(os.getpid()) if b"mock_agent.py" in command_line(pid)]


def records_of(server: LocalServer) -> list[Path]:
    return list((server.services.settings.data_dir / "acpx" / "sessions").glob("*.json"))


def _values(value: Any) -> list[Any]:
    """*value* and all values in it, at any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(found for one in inner for found in _values(one))]


async def test_acp_agent_follows_contract_of_run(server: LocalServer, client: Client) -> None:
    assert await run(client, "hello", agent="mock") == "echo: hello"
    fenced = script({"think": "hm"}, {"say": "```json\n"}, {"say": '{"a": 1}'}, {"say": "\n```"})
    assert await run(client, fenced, agent="mock") == {"a": 1}
    _, reply = await client.post("/run", {"prompt": script({"stop": "refusal"}), "agent": "mock"})
    assert (reply["result"], reply["stop_reason"]) == ("", "refusal")
    token = await upload(client, b"x")
    assert "[Attached files]" in await run(client, "with a file", agent="mock", files=[token])
    # All of them were cleaned up.
    assert mock_agents() == []
    assert records_of(server) == []
    assert is_clean(server)
    assert (await client.get("/sessions"))[1]["count"] == 0


async def test_acp_agent_may_only_read(client: Client) -> None:
    for kind, allowed in (("read", True), ("search", True), ("edit", False), ("execute", False)):
        said = await run(client, script({"permission": {"kind": kind}}), agent="mock")
        assert said["permission"]["optionId"] == ("allow_once" if allowed else "reject_once")


async def test_acp_agent_gets_system_and_refuses_effort(client: Client) -> None:
    report = script({"report": True})
    replaced = await run(client, report, agent="mock", system="Be brief.")
    assert "Be brief." in json.dumps(replaced["session"])
    appended = await run(client, report, agent="mock", system="Be kind.", system_mode="append")
    assert {"append": "Be kind."} in _values(appended["session"])
    status, reply = await client.post("/run", {"prompt": "x", "agent": "mock", "effort": "low"})
    assert (status, reply["code"]) == (400, "bad_request")
    assert "effort" in reply["error"]


BAD_AGENTS = [
    ("mock", script({"say": "half"}, {"exit": 1}), "agent_failed"),
    ("mock", script({"error": {"code": -32603, "message": "no credit"}}), "agent_failed"),
    ("mock", script({"stop": "cancelled"}), "agent_failed"),
    ("mock-fail-new", "x", "agent_unavailable"),
    ("mock-dies", "x", "agent_unavailable"),
    ("missing", "x", "agent_unavailable"),
    ("mock", script({"error": {"code": 401, "message": "Invalid API key"}}), "login_required"),
]


async def test_failures_of_acp_agent_have_codes(server: LocalServer, client: Client) -> None:
    for agent, prompt, code in BAD_AGENTS:
        reply = await fail(client, prompt, agent=agent)
        assert reply["code"] == code, (agent, prompt)
        assert "no credit" not in prompt or "no credit" in reply["error"]
        assert (await rows(server))[-1].error == code
    assert records_of(server) == []
    assert is_clean(server)


async def test_acp_agent_is_ended_at_deadline(server: LocalServer, client: Client) -> None:
    async def hang(agent: str) -> None:
        prompt = script({"ignore_cancel": True}, {"hang": True})
        reply = await fail(client, prompt, agent=agent, timeout_secs=1)
        assert (reply["code"], reply["stop_reason"]) == ("agent_timeout", "timeout")

    await asyncio.gather(*map(hang, ("mock", "mock-stubborn", "mock-silent")))
    assert mock_agents() == []
    assert records_of(server) == []


async def test_disconnect_of_client_ends_acp_agent_with_its_tools(
    server: LocalServer, client: Client, tmp_path: Path
) -> None:
    tool = tmp_path / "tool"
    left = {"pid_file": str(tool), "setsid": True, "ignore_sigterm": True}
    prompt = script({"spawn": left}, {"ignore_cancel": True}, {"hang": True})
    asked = asyncio.create_task(post(client, {"prompt": prompt, "agent": "mock-stubborn"}))
    pid = await pid_in(tool)
    asked.cancel()
    await eventually("the end of the run to be stored", lambda: last_reason(server, "cancelled"))
    await until_ended(pid)
    assert mock_agents() == []
