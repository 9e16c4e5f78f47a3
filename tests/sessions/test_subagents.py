"""The updates of subagents: attributed in the log, and no part of what the agent itself says."""

from __future__ import annotations

from typing import Any

import pytest

from server.agents.subagents import subagent_of

from ..support.harness import Client, Json, script
from ..support.mock_agents import run_step
from ..web.test_transfers import exported


def update(session: str | None, kind: str = "agent_message_chunk", /, **fields: Any) -> Json:
    """A step of the mock agent: an update of *session*, or else of its own one."""
    content = {"content": {"type": "text", "text": "aside"}} if kind.endswith("chunk") else {}
    params = {"update": {"sessionUpdate": kind, **content, **fields}}
    if session is None:
        return {"update": params["update"]}
    return {"notify": {"method": "session/update", "params": {"sessionId": session, **params}}}


def of_claude(call: str) -> Json:
    return {"_meta": {"claudeCode": {"parentToolUseId": call}}}


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"sessionId": "own", "update": {}}, None),
        ({"sessionId": "child", "update": {}}, {"session_id": "child"}),
        ({"sessionId": "own", "update": of_claude("t1")}, {"tool_call_id": "t1"}),
        (
            {"sessionId": "own", "update": {"_meta": {"parentToolCallId": "t2"}}},
            {"tool_call_id": "t2"},
        ),
        (
            {"sessionId": "child", "update": of_claude("t1")},
            {"session_id": "child", "tool_call_id": "t1"},
        ),
        ({"sessionId": 7, "update": {"_meta": []}}, None),
        ({"sessionId": "own", "update": {"_meta": {"claudeCode": {"parentToolUseId": 7}}}}, None),
        (
            {"sessionId": "own", "update": {"_meta": {"claudeCode": 1, "parentToolCallId": ""}}},
            None,
        ),
        (None, None),
        ([], None),
    ],
)
def test_subagent_is_read_from_the_update(params: Any, found: Any) -> None:
    assert subagent_of(params, "own") == found


async def test_updates_of_subagents_are_attributed_in_the_log(client: Client) -> None:
    session = await client.create("mock", client_capabilities=["subagents"])
    steps = [
        {"say": "The answer"},
        update(None, **of_claude("t1")),
        update("child"),
        update("unknown", "tool_call", toolCallId="t9", title="Of a child", **of_claude("t3")),
        {"say": " is 42."},
    ]
    status, reply = await client.turn(session, script(*steps))
    assert status == 200
    events = [entry for entry in await client.events(session) if entry["type"] == "event"]
    assert [entry["event"] for entry in events] == reply["events"]
    assert [entry.get("subagent") for entry in events] == [
        None,
        {"tool_call_id": "t1"},
        {"session_id": "child"},
        {"session_id": "unknown", "tool_call_id": "t3"},
        None,
        None,
    ]
    # Exports have what the agent says, and an import keeps the attribution.
    text, _ = await exported(client, session, "?format=markdown")
    assert text.endswith(b"## Assistant\n\nThe answer is 42.\n")
    log, _ = await exported(client, session)
    _, imported = await client.post("/sessions/import", log)
    copy = imported["session_id"]
    assert [entry for entry in await client.events(copy) if entry["type"] == "event"] == events


async def test_other_session_id_is_a_subagent_only_if_the_agent_knows_subagents(
    client: Client,
) -> None:
    session = await client.create("mock")
    await client.turn(session, script(update("theirs")))
    assert not any("subagent" in entry for entry in await client.events(session))


async def test_conversation_as_text_omits_subagents(client: Client) -> None:
    session = await client.create("mock")
    await client.turn(session, script({"say": "Mine"}, update(None, **of_claude("t1"))))
    status, fork = await client.post(f"/sessions/{session}/fork", {})
    assert status == 200
    _, reply = await client.turn(fork["session_id"], script({"echo": True}))
    told = str(reply["events"])
    assert "Assistant: Mine" in told
    assert "Mineaside" not in told


async def test_chat_completion_omits_subagents(client: Client) -> None:
    prompt = script({"say": "Mine"}, update(None, **of_claude("t1")))
    body = {"model": "mock", "messages": [{"role": "user", "content": prompt}]}
    status, reply = await client.post("/v1/chat/completions", body)
    assert status == 200, reply
    assert reply["choices"][0]["message"]["content"] == "Mine"


async def test_run_of_an_agent_omits_subagents(client: Client) -> None:
    prompt = script({"say": "Mine"}, update(None, **of_claude("t1")))
    status, reply = await client.post("/run", {"agent": "mock", "prompt": prompt})
    assert (status, reply["result"]) == (200, "Mine"), reply


async def test_agent_learns_the_capabilities_of_the_sessions_clients(client: Client) -> None:
    async def announced(session: str) -> Json:
        report = await run_step(client, session, {"report": True})
        found = report["initialize"]["clientCapabilities"]
        return {name: found.get(name) for name in ("plan", "subagents")}

    session = await client.create("mock")
    assert (await client.state(session))["client_capabilities"] == []
    assert await announced(session) == {"plan": None, "subagents": None}
    session = await client.create("mock", client_capabilities=["subagents", "plan"])
    assert (await client.state(session))["client_capabilities"] == ["subagents", "plan"]
    assert await announced(session) == {"plan": {}, "subagents": {}}
    body = {"agent": "mock", "client_capabilities": ["fs"]}
    assert (await client.post("/sessions", body))[0] == 400
