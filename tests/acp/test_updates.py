"""The updates that a client of ``/acp`` receives, also those of subagents."""

from __future__ import annotations

import aiohttp
import pytest

from ..sessions.test_subagents import of_claude, update
from ..support.acp_client import INITIALIZE, AcpClient, connect, of_session
from ..support.harness import Client, Json, script

PLAN: Json = {
    "sessionUpdate": "plan_update",
    "plan": {"type": "markdown", "planId": "p", "content": "# Plan"},
}
STEPS: list[Json] = [
    {"say": "Mine"},
    {"update": PLAN},
    update(None, "subagent_update", sessionId="child", capabilities={"cancel": {}}),
    update("child"),
    update("child", "session_message", messageId="m", senderSessionId="mock-1"),
    update(None, **of_claude("t1")),
]


async def test_updates_that_the_client_has_not_announced_are_withheld(client: Client) -> None:
    switch: Json = {"id": "verbose", "name": "Verbose", "type": "boolean", "currentValue": True}
    model = {**switch, "id": "model", "type": "select", "currentValue": "a", "options": []}
    updates: list[Json] = [
        {"sessionUpdate": "notice", "severity": "info", "title": "a notice"},
        {"sessionUpdate": "compaction_update", "compactionId": "c", "status": "completed"},
        {"sessionUpdate": "config_option_update", "configOptions": [switch, model]},
    ]
    steps: list[Json] = [*({"update": update} for update in updates), {"say": '"notice" is said'}]
    session_capabilities: Json = {"notices": {}, "compaction": {}, "configOptions": {"boolean": {}}}
    announced = {**INITIALIZE, "clientCapabilities": {"session": session_capabilities}}
    found = []
    for initialize in (INITIALIZE, announced):
        acp = await connect(client, initialize=initialize)
        session = await acp.new_session()
        await acp.prompt(session, script(*steps))
        assert acp.text() == '"notice" is said'
        kinds = {update["sessionUpdate"] for update in updates}
        found.append([update for update in acp.updates() if update["sessionUpdate"] in kinds])
    assert found == [[{**updates[2], "configOptions": [model]}], updates]


async def test_agent_messages_are_passed_on_unchanged(client: Client) -> None:
    acp = await connect(client, strict=False)
    session = await acp.new_session()
    odd = (
        '{ "method":"session/update","jsonrpc":"2.0", "params": {"update": {"n": 1.0, "z":'
        ' 123456789012345678901, "sessionUpdate":"something_new"},'
        ' "sessionId":"theirs", "_meta":{"sessionId":"kept"}}}'
    )
    extension = '{"jsonrpc":"2.0","method":"_their/own","params":{"x":[1, 2]}}'
    half = (
        '{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"x",'
        '"update":{"sessionUpdate":"\\ud83d"}}}'
    )
    steps = script({"raw": odd}, {"raw": extension}, {"raw": half}, {"say": "é\u2028"})
    await acp.prompt(session, steps)
    told = acp.frames[-5:-1]
    assert told[0] == (
        '{"method":"session/update","jsonrpc":"2.0","params":{"update":{"n": 1.0, "z":'
        ' 123456789012345678901, "sessionUpdate":"something_new"},'
        f'"sessionId":"{session}","_meta":{{"sessionId":"kept"}}}}}}'
    )
    assert told[1] == extension
    assert told[2] == half.replace('"x"', f'"{session}"')
    assert acp.text() == "é\u2028"
    # A replay tells the conversation, and no more.
    await acp.call("session/load", **of_session(session))
    assert told[0] in acp.frames[-6:]
    assert acp.frames.count(extension) == 1


async def test_url_sets_the_size_limit_of_messages(client: Client) -> None:
    acp = await connect(client, "?maxMessageBytes=65536")
    session = await acp.new_session()
    await acp.prompt(session, script({"chunk": 300_000}))
    assert max(len(frame.encode()) for frame in acp.frames) <= 65536
    assert len(acp.text()) == 300_000
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await connect(client, "?maxMessageBytes=1")
    assert refused.value.status == 400


async def test_message_over_the_clients_limit_is_divided_or_shortened(client: Client) -> None:
    acp = await connect(client)
    generous = await connect(
        client, initialize={**INITIALIZE, "_meta": {"clawdforge": {"maxMessageBytes": 1 << 25}}}
    )
    session = await acp.new_session()
    await generous.call("session/resume", **of_session(session))
    tool: Json = {
        "sessionUpdate": "tool_call",
        "toolCallId": "t1",
        "title": "write",
        "rawInput": {"path": "/x", "text": "e" * 600_000},
        "content": [
            {
                "type": "content",
                "content": {"type": "image", "mimeType": "image/png", "data": "A" * 900_000},
            },
            {"type": "content", "content": {"type": "text", "text": "short"}},
        ],
    }
    answer = {"stopReason": "end_turn", "_meta": {"much": "x" * 1_100_000}}
    steps = script({"chunk": 2_500_000}, {"update": tool}, {"result": answer})
    assert await acp.prompt(session, steps) == {"stopReason": "end_turn"}
    assert max(len(frame.encode()) for frame in acp.frames) <= 1 << 20
    *chunks, shortened = acp.conversation_updates()
    assert len(acp.text()) == 2_500_000
    assert 3 <= len(chunks) <= 6
    assert shortened["rawInput"]["path"] == "/x"
    assert shortened["content"][0]["content"]["text"].startswith("[image of ")
    assert shortened["content"][1] == tool["content"][1]
    note = acp.messages[-2]["params"]["_meta"]["clawdforge"]
    assert note["shortened"] is True
    _, reply = await client.get(f"/sessions/{session}/events?after={note['seq'] - 1}&limit=1")
    assert reply["entries"][0]["event"]["params"]["update"] == tool

    assert (await generous.until_update("agent_message_chunk"))["content"]["text"] == acp.text()
    assert await generous.until_update("tool_call") == tool


# Subagents and plans.


async def editor(client: Client, *capabilities: str) -> AcpClient:
    """A connection of a client that announces those capabilities."""
    announced: Json = {name: {} for name in capabilities}
    initialize = {**INITIALIZE, "clientCapabilities": announced}
    return await connect(client, initialize=initialize, query="?agent=mock", strict=False)


def kinds_of(acp: AcpClient, *, session: str) -> list[tuple[str, bool]]:
    """The kinds of updates, and whether each is of the session itself."""
    params = [one["params"] for one in acp.messages if one.get("method") == "session/update"]
    return [
        (one["update"]["sessionUpdate"], one["sessionId"] == session)
        for one in params
        if one["update"]["sessionUpdate"] != "available_commands_update"
    ]


async def test_sessions_of_subagents_are_passed_on_to_clients_that_announce_them(
    client: Client,
) -> None:
    acp = await editor(client, "plan", "subagents")
    session = await acp.new_session()
    await acp.prompt(session, script(*STEPS))
    assert kinds_of(acp, session=session) == [
        ("agent_message_chunk", True),
        ("plan_update", True),
        ("subagent_update", True),
        ("agent_message_chunk", False),
        ("session_message", False),
        ("agent_message_chunk", True),
    ]
    children = [
        one["params"]["sessionId"]
        for one in acp.messages
        if one.get("method") == "session/update" and one["params"]["sessionId"] != session
    ]
    assert children == ["child", "child"]

    # The client may cancel the work of a subagent that it knows.
    await acp.notify("session/cancel", sessionId="other")
    await acp.notify("session/cancel", sessionId="child")
    late = await acp.until(method="session/update")
    assert late["params"]["sessionId"] == "child"
    assert late["params"]["update"]["content"]["text"] == "cancelled"
    assert (await client.state(session))["client_capabilities"] == ["plan", "subagents"]


async def test_sessions_of_subagents_are_withheld_from_other_clients(client: Client) -> None:
    session = await client.create("mock", client_capabilities=["plan", "subagents"])
    acp = await editor(client)
    await acp.call("session/load", sessionId=session, cwd="/", mcpServers=[])
    await acp.prompt(session, script(*STEPS))
    assert kinds_of(acp, session=session) == [("agent_message_chunk", True)] * 2
    assert acp.text() == "Mineaside"  # the second one as the agent attributes it in `_meta`
    session = await acp.new_session()
    assert (await client.state(session))["client_capabilities"] == []


async def test_requests_and_messages_of_subagents_name_the_sessions_that_the_client_knows(
    client: Client,
) -> None:
    acp = await editor(client, "subagents")
    session = await acp.new_session()
    report = script({"report": True})
    await acp.prompt(session, report)
    own = (await client.events(session))[1]["event"]["params"]["sessionId"]
    message = update("child", "session_message", messageId="m", senderSessionId=own)
    params = {"sessionId": "child", "toolCall": {"toolCallId": "t"}, "options": []}
    ask = {"request": {"method": "session/request_permission", "params": params}}
    announce = update(None, "subagent_update", sessionId="child")
    asked = await acp.start_prompt(session, script(announce, message, ask))
    request = await acp.until(method="session/request_permission")
    assert request["params"]["sessionId"] == "child"
    sent = next(one["params"]["update"] for one in acp.messages if "senderSessionId" in str(one))
    assert sent["senderSessionId"] == session
    await acp.send(id=request["id"], result={"outcome": {"outcome": "cancelled"}})
    await acp.response_to(asked)
