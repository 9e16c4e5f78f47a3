"""Permission requests and questions of agents over ``/acp``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ..sessions.test_elicitations import ANSWER, FORM, LINK
from ..support.acp_client import INITIALIZE, AcpClient, connect, of_session
from ..support.harness import Client, Json, script

ASK_PERMISSION = script({"permission": {"title": "may I?"}})
ASK_QUESTION = script({"elicit": FORM})
BOTH: Json = {"form": {}, "url": {}}


# Permissions.


def choose(option: str) -> Json:
    return {"outcome": {"outcome": "selected", "optionId": option}}


async def test_permission_request_has_an_id_of_the_connection(acp: AcpClient) -> None:
    session = await acp.new_session()
    asked = await acp.start_prompt(session, ASK_PERMISSION)
    request = await acp.until(method="session/request_permission")
    assert request["params"]["sessionId"] == session
    assert request["params"]["toolCall"]["title"] == "may I?"
    # An answer under the same number to a request of the client's own is another thing.
    assert await acp.call("session/list") is not None
    await acp.send(id=request["id"], result=choose("reject_always"))
    assert await acp.response_to(asked) == {"stopReason": "end_turn"}
    assert json.loads(acp.text())["permission"]["optionId"] == "reject_always"


async def test_first_permission_response_counts_and_other_requests_are_cancelled(
    acp: AcpClient, client: Client
) -> None:
    session = await acp.new_session()
    other = await connect(client)
    bot = await client.connect(session)
    await other.call("session/resume", **of_session(session))
    asked = await acp.start_prompt(session, script({"permission": True}, {"permission": True}))
    mine = await acp.until(method="session/request_permission")
    theirs = await other.until(method="session/request_permission")
    await other.send(id=theirs["id"], result=choose("allow_once"))
    withdrawn = await acp.until(method="$/cancel_request")
    assert withdrawn["params"] == {"requestId": mine["id"]}
    late = {"code": -32800, "message": "cancelled"}
    await acp.send(id=mine["id"], error=late)  # as the protocol has it; it changes nothing

    second = await acp.until(method="session/request_permission")
    theirs = await other.until(method="session/request_permission")
    waiting = await bot.until("permission_request")
    waiting = await bot.until("permission_request")
    request_id = waiting["request_id"]
    await bot.send("permission", request_id=request_id, option_id="reject_once")
    for watching, request in ((acp, second), (other, theirs)):
        withdrawn = await watching.until(method="$/cancel_request")
        assert withdrawn["params"] == {"requestId": request["id"]}
    assert await acp.response_to(asked) == {"stopReason": "end_turn"}
    answers = [json.loads(part["content"]["text"]) for part in acp.conversation_updates()[-2:]]
    assert [one["permission"]["optionId"] for one in answers] == ["allow_once", "reject_once"]


async def test_late_client_gets_pending_permission_and_unable_client_is_skipped(
    acp: AcpClient, client: Client
) -> None:
    session = await acp.new_session()
    asked = await acp.start_prompt(session, ASK_PERMISSION)
    first = await acp.until(method="session/request_permission")
    loaded, resumed = await connect(client), await connect(client)
    await loaded.call("session/load", **of_session(session))
    assert not [m for m in loaded.messages if m.get("method") == "session/request_permission"]
    request = await loaded.until(method="session/request_permission")
    await resumed.call("session/resume", **of_session(session))
    await resumed.until(method="session/request_permission")
    await acp.send(id=first["id"], error={"code": -32601, "message": "what?"})
    await resumed.send(id=request["id"], result=choose("made_up"))
    await loaded.send(id=request["id"], result=choose("allow_once"))
    assert await acp.response_to(asked) == {"stopReason": "end_turn"}
    assert json.loads(acp.text())["permission"]["optionId"] == "allow_once"


async def test_invalid_response_of_the_only_client_cancels_the_permission(acp: AcpClient) -> None:
    session = await acp.new_session()
    asked = await acp.start_prompt(session, ASK_PERMISSION)
    request = await acp.until(method="session/request_permission")
    await acp.send(id=request["id"], error={"code": -32601, "message": "what?"})
    assert await acp.response_to(asked) == {"stopReason": "cancelled"}  # as the mock takes it


async def test_policy_sends_no_permission_request(acp: AcpClient) -> None:
    session = await acp.new_session(_meta={"clawdforge": {"permission": "approve-all"}})
    assert await acp.prompt(session, ASK_PERMISSION) == {"stopReason": "end_turn"}
    assert json.loads(acp.text())["permission"]["optionId"] == "allow_once"
    assert not [m for m in acp.messages if m.get("method") == "session/request_permission"]


# Questions: the client's own capability decides over them.


async def editor(client: Client, elicitation: Any = None) -> AcpClient:
    """A connection of a client with that capability."""
    capabilities = {**INITIALIZE.get("clientCapabilities", {}), "elicitation": elicitation}
    return await connect(
        client, initialize={**INITIALIZE, "clientCapabilities": capabilities}, query="?agent=mock"
    )


async def announced(acp: AcpClient, session: str) -> Any:
    await acp.prompt(session, script({"report": True}))
    report = json.loads(acp.conversation_updates()[-1]["content"]["text"])
    return report["initialize"]["clientCapabilities"].get("elicitation")


@pytest.mark.parametrize(
    ("capability", "told"),
    [(None, None), ({}, None), ({"form": {}}, {"form": {}}), (BOTH, BOTH)],
)
async def test_agent_gets_the_capabilities_of_the_client(
    client: Client, capability: Any, told: Any
) -> None:
    acp = await editor(client, capability)
    session = await acp.new_session()
    assert await announced(acp, session) == told
    state = await client.state(session)
    assert state["elicitation"] == ("off" if told is None else "ask")


async def test_request_is_forwarded_and_its_response_returned(client: Client) -> None:
    acp = await editor(client, BOTH)
    session = await acp.new_session()
    asked = await acp.start_prompt(session, ASK_QUESTION)
    request = await acp.until(method="elicitation/create")
    assert request["params"] == {**FORM, "sessionId": session}
    await acp.send(id=request["id"], result=ANSWER)
    assert await acp.response_to(asked) == {"stopReason": "end_turn"}
    assert json.loads(acp.text())["elicitation"] == ANSWER
    entries = await client.events(session)
    (resolved,) = [entry for entry in entries if entry["type"] == "elicitation_resolved"]
    assert (resolved["outcome"], resolved["by"]) == (ANSWER, "client")


async def test_link_and_its_completion_are_forwarded(client: Client) -> None:
    acp = await editor(client, BOTH)
    session = await acp.new_session()
    done = {"method": "elicitation/complete", "params": {"elicitationId": "login-1"}}
    asked = await acp.start_prompt(session, script({"elicit": LINK}, {"notify": done}))
    request = await acp.until(method="elicitation/create")
    await acp.send(id=request["id"], result={"action": "accept"})
    complete = await acp.until(method="elicitation/complete")
    assert complete["params"] == done["params"]
    assert await acp.response_to(asked) == {"stopReason": "end_turn"}


async def test_answer_of_another_client_cancels_the_request(client: Client) -> None:
    acp = await editor(client, BOTH)
    session = await acp.new_session()
    bot = await client.connect(session)
    asked = await acp.start_prompt(session, ASK_QUESTION)
    request = await acp.until(method="elicitation/create")
    waiting = await bot.until("elicitation_request")
    await bot.send("elicitation", request_id=waiting["request_id"], action="decline")
    withdrawn = await acp.until(method="$/cancel_request")
    assert withdrawn["params"] == {"requestId": request["id"]}
    assert await acp.response_to(asked) == {"stopReason": "end_turn"}


@pytest.mark.parametrize(
    "response",
    [
        {"error": {"code": -32601, "message": "what?"}},
        {"result": {"action": "_later"}},
        {"result": {"action": "accept", "content": {"days": 0}}},
    ],
    ids=["error", "unknown action", "invalid content"],
)
async def test_invalid_response_of_the_only_client_cancels_the_question(
    client: Client, response: Json
) -> None:
    acp = await editor(client, BOTH)
    session = await acp.new_session()
    asked = await acp.start_prompt(session, ASK_QUESTION)
    request = await acp.until(method="elicitation/create")
    await acp.send(id=request["id"], **response)
    assert await acp.response_to(asked) == {"stopReason": "end_turn"}
    assert json.loads(acp.text())["elicitation"] == {"action": "cancel"}


async def test_elicitation_follows_the_client_that_loads_the_session(client: Client) -> None:
    session = await client.create()
    able = await editor(client, BOTH)
    await able.call("session/load", sessionId=session, cwd="/", mcpServers=[])
    assert (await client.state(session))["elicitation"] == "ask"

    # It may have other clients, which can still answer.
    unable = await editor(client)
    await unable.call("session/resume", sessionId=session, cwd="/")
    assert (await client.state(session))["elicitation"] == "ask"
    asked = await unable.start_prompt(session, ASK_QUESTION)
    request = await able.until(method="elicitation/create")
    await able.send(id=request["id"], result={"action": "decline"})
    assert await unable.response_to(asked) == {"stopReason": "end_turn"}
    assert not [m for m in unable.messages if m.get("method") == "elicitation/create"]


async def test_load_repeats_the_pending_question(client: Client) -> None:
    session = await client.create(elicitation="ask")
    socket = await client.connect(session)
    await socket.send("prompt", prompt=ASK_QUESTION)
    await socket.until("elicitation_request")
    acp = await editor(client, BOTH)
    await acp.call("session/resume", sessionId=session, cwd="/")
    request = await acp.until(method="elicitation/create")
    await acp.send(id=request["id"], result=ANSWER)
    resolved = await socket.until("elicitation_resolved")
    assert resolved["outcome"] == ANSWER
    await socket.until("turn_end")
