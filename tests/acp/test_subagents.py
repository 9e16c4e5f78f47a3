"""Subagents and plans over ``/acp``: clients that announce to understand them receive them."""

from __future__ import annotations

from ..sessions.test_subagents import of_claude, update
from ..support.acp_client import INITIALIZE, AcpClient, connect
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
