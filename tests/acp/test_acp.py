"""``GET /acp``, as a client sees it that knows only JSON."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from server import safe_files
from server.acp.connection import AcpConnection

from ..support.acp_client import INITIALIZE, AcpClient, ResponseError, connect
from ..support.harness import (
    MOCKS,
    Client,
    Json,
    LocalServer,
    eventually,
    hold_commits,
    local_server,
    mock_agent,
    script,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

AGENTS = {
    **MOCKS,
    "mock-text": mock_agent("--text-only"),
    "mock-slow": mock_agent("--slow-start=60000"),
}
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    data_dir = tmp_path_factory.mktemp("acp") / "data"
    async with local_server(
        data_dir, agents=AGENTS, max_live_agents=64, max_commands_per_sec=20
    ) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(server: LocalServer) -> Client:
    return await server.client()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stranger(server: LocalServer) -> Client:
    return await server.client("stranger")


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def close_sockets(client: Client) -> AsyncIterator[None]:
    yield
    await client.close_sockets()


@pytest_asyncio.fixture(loop_scope="module")
async def acp(client: Client) -> AsyncIterator[AcpClient]:
    """A connection of the test's own; its sessions are closed after the test."""
    acp = await connect(client)
    yield acp
    sessions = {
        message["result"]["sessionId"]
        for message in acp.messages
        if isinstance(message.get("result"), dict) and "sessionId" in message["result"]
    }
    await asyncio.gather(*(client.delete(f"/sessions/{session}") for session in sessions))


def connection_of(server: LocalServer, acp: AcpClient) -> AcpConnection:
    """The server's side of a connection."""
    connection_id = acp.ws._response.headers["Acp-Connection-Id"]
    for connection in server.services.sockets.connections:
        if connection.name.endswith(connection_id):
            assert isinstance(connection, AcpConnection)
            return connection
    raise LookupError(connection_id)


async def code_of(acp: AcpClient, method: str, **params: Any) -> int:
    with pytest.raises(ResponseError) as failure:
        await acp.call(method, **params)
    return int(failure.value.code)


def of_session(session: str, **params: Any) -> Json:
    return {"sessionId": session, "cwd": "/", "mcpServers": [], **params}


# The upgrade.


async def refused(client: Client, **options: Any) -> aiohttp.WSServerHandshakeError:
    with pytest.raises(aiohttp.WSServerHandshakeError) as failure:
        await connect(client, **options)
    return failure.value


async def test_invalid_credential_is_refused_before_the_upgrade(
    server: LocalServer, client: Client
) -> None:
    anonymous = server.anonymous()
    assert (await refused(anonymous)).status == 401
    assert (await refused(anonymous, headers={"Authorization": "Bearer cf_wrong"})).status == 401
    assert (await refused(anonymous, protocols=["acp", "acp.auth.cf_wrong"])).status == 401
    assert (await refused(anonymous, protocols=["acp", "acp.auth.cft_wrong"])).status == 401
    assert (await refused(client, headers={"Origin": "https://elsewhere.example"})).status == 403
    assert (await refused(client, headers={"Origin": "null"})).status == 403
    assert (await refused(client, query="?permission=whatever")).status == 400


async def test_request_without_upgrade_is_refused(server: LocalServer, client: Client) -> None:
    for asking in (client, server.anonymous()):
        status, reply = await asking.get("/acp")
        assert (status, reply["code"]) == (426, "upgrade_required")
        assert asking.last_headers["Upgrade"] == "websocket"
        status, reply = await asking.post("/acp", {})
        assert (status, reply["code"]) == (405, "method_not_allowed")


async def test_upgrade_response_has_a_connection_id(client: Client) -> None:
    names = set()
    for _ in range(2):
        acp = await connect(client)
        names.add(acp.ws._response.headers["Acp-Connection-Id"])
        assert "Sec-WebSocket-Protocol" not in acp.ws._response.headers
    assert len(names) == 2


async def test_token_as_subprotocol_is_neither_echoed_nor_logged(
    server: LocalServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    protocols = ["acp", f"acp.auth.{client.token}"]
    same_origin = {"Origin": server.url}
    acp = await connect(server.anonymous(), protocols=protocols, headers=same_origin)
    assert acp.ws._response.headers["Sec-WebSocket-Protocol"] == "acp"
    assert (await acp.call("session/list"))["sessions"] == []
    # aiohttp would log an offer that it does not know.
    assert (await refused(server.anonymous(), protocols=protocols[1:])).status == 400
    assert str(client.token) not in caplog.text


async def test_ticket_admits_only_to_its_session(server: LocalServer, client: Client) -> None:
    session, other = await client.create(), await client.create()
    _, reply = await client.post(f"/sessions/{session}/ticket")
    protocols = ["acp", f"acp.auth.{reply['ticket']}"]
    acp = await connect(server.anonymous(), protocols=protocols)
    await acp.call("session/resume", **of_session(session))
    assert await acp.prompt(session, "hello") == {"stopReason": "end_turn"}
    assert await code_of(acp, "session/resume", **of_session(other)) == -32002
    assert await code_of(acp, "session/new", cwd="/", mcpServers=[]) == -32000
    listed = (await acp.call("session/list"))["sessions"]
    assert [one["sessionId"] for one in listed] == [session]
    assert (await refused(server.anonymous(), protocols=protocols)).status == 401  # used up
    for one in (session, other):
        await client.delete(f"/sessions/{one}")


# The beginning.


@pytest.mark.parametrize(
    "first",
    [
        '{"jsonrpc":"2.0","id":1,"method":"session/list","params":{}}',
        '{"jsonrpc":"2.0","method":"initialize","params":{"protocolVersion":1}}',
        '{"jsonrpc":"2.0","id":1,"result":{}}',
        '[{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":1}}]',
        "hello",
    ],
)
async def test_other_first_message_than_initialize_closes(client: Client, first: str) -> None:
    acp = await connect(client, initialize=None)
    await acp.ws.send_str(first)
    assert await acp.until_closed() == 1002


async def test_version_is_negotiated(client: Client) -> None:
    for version in (0, 1, 2, 65535):
        acp = await connect(client, initialize=None)
        result = await acp.call("initialize", **{**INITIALIZE, "protocolVersion": version})
        assert result["protocolVersion"] == 1
    acp = await connect(client, initialize=None)
    for bad in ({}, {"protocolVersion": "1"}, {"protocolVersion": 70000}):
        assert await code_of(acp, "initialize", **bad) == -32602
    await acp.call("initialize", **INITIALIZE)  # it may try again
    assert await code_of(acp, "initialize", **INITIALIZE) == -32600


async def test_prompt_capabilities_are_the_agents_own(server: LocalServer, client: Client) -> None:
    acp = await connect(client, "?agent=mock-text", initialize=None)
    result = await acp.call("initialize", **INITIALIZE)
    told = result["agentCapabilities"]
    assert told["promptCapabilities"] == dict.fromkeys(("image", "audio", "embeddedContext"), False)
    assert told["loadSession"] is True
    offered = ("list", "resume", "close", "delete", "fork", "title")
    assert told["sessionCapabilities"] == {name: {} for name in offered}
    assert result["_meta"]["clawdforge"]["agent"] == "mock-text"
    assert result["agentInfo"]["name"] == "clawdforge"

    # An agent that fails at `session/new` has reported them; an agent that does not start has not.
    reported_by = {"mock-fail-new": {"image", "audio", "embeddedContext"}, "mock-dies": set()}
    for agent, names in reported_by.items():
        acp = await connect(client, f"?agent={agent}")
        told = acp.messages[0]["result"]["agentCapabilities"]
        assert told["promptCapabilities"].keys() == names
    state_dir = server.services.settings.data_dir / "acpx"
    probes = await asyncio.to_thread(lambda: [*state_dir.glob("probe-*")])
    assert probes == []  # the folders of the probes are removed

    acp = await connect(client)  # the default agent
    told = acp.messages[0]["result"]["agentCapabilities"]
    assert told["promptCapabilities"] == dict.fromkeys(("image", "audio", "embeddedContext"), True)
    acp = await connect(client, initialize=None)
    wish = {"_meta": {"clawdforge": {"agent": "nobody"}, "elsewhere": 1}}
    assert await code_of(acp, "initialize", **INITIALIZE, **wish) == -32602


async def test_initialize_succeeds_if_the_agents_capabilities_are_unknown(
    own_client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_folder = safe_files.make_folder

    def refuse_probes(top: Path, *names: str) -> None:
        if names[-1].startswith("probe-"):
            raise PermissionError(13, "Permission denied")
        make_folder(top, *names)

    monkeypatch.setattr(safe_files, "make_folder", refuse_probes)
    acp = await connect(own_client)
    assert acp.messages[0]["result"]["agentCapabilities"]["promptCapabilities"] == {}
    session = await acp.new_session()
    assert await acp.prompt(session, "hello") == {"stopReason": "end_turn"}
    assert "[Errno 13]" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


# Sessions.


async def test_new_session_is_visible_to_rest(acp: AcpClient, client: Client) -> None:
    wish = {"clawdforge": {"agent": "mock-modes", "permission": "deny-all", "model": "mock-large"}}
    wanted = {"cwd": "/their/project", "additionalDirectories": ["/their/other"]}
    created = await acp.call("session/new", mcpServers=[], _meta=wish, **wanted)
    state = await client.state(created["sessionId"])
    assert (state["agent"], state["permission"], state["model"]) == (
        "mock-modes",
        "deny-all",
        "mock-large",
    )
    assert created["modes"] == state["modes"]
    assert created["configOptions"] == state["config_options"]
    assert [mode["id"] for mode in created["modes"]["availableModes"]] == ["ask", "code"]
    ours = created["_meta"]["clawdforge"]
    assert ours["cwd"] == state["cwd"] != "/their/project"  # without roots, a folder of its own
    assert ours["ignored"] == ["additionalDirectories"]


async def test_invalid_params_are_refused(acp: AcpClient, client: Client) -> None:
    bad: list[Json] = [
        {},
        {"cwd": "relative"},
        {"cwd": 7},
        {"cwd": "/", "mcpServers": {}},
        {"cwd": "/", "mcpServers": [{"name": "x"}]},
        {"cwd": "/", "mcpServers": [], "_meta": {"clawdforge": {"env": {"LD_PRELOAD": "x"}}}},
        {"cwd": "/", "_meta": {"clawdforge": {"permission": "maybe"}}},
        {"cwd": "/", "_meta": {"clawdforge": {"agent": "nobody"}}},
    ]
    for params in bad:
        assert await code_of(acp, "session/new", **params) == -32602, params
    session = await acp.new_session()
    for prompt in ([], "hello", [{"type": "text"}], [{"type": "image", "data": "!"}], None):
        assert await code_of(acp, "session/prompt", sessionId=session, prompt=prompt) == -32602
    assert await code_of(acp, "session/prompt", prompt=[{"type": "text", "text": "x"}]) == -32602
    assert await code_of(acp, "session/load", sessionId=session) == -32602
    assert await code_of(acp, "session/set_mode", sessionId=session) == -32602
    assert (await client.state(session))["turn_count"] == 0


async def test_new_session_fails_if_the_agent_does_not_start(
    acp: AcpClient, client: Client
) -> None:
    for agent in ("mock-fail-new", "mock-dies"):
        with pytest.raises(ResponseError, match="does not start") as failure:
            await acp.new_session(_meta={"clawdforge": {"agent": agent}})
        assert failure.value.code == -32603
        assert failure.value.data["code"] == "agent_unavailable"
    assert (await acp.call("session/list"))["sessions"] == []  # nothing is left of it


async def test_load_replays_everything_before_its_response(acp: AcpClient, client: Client) -> None:
    session = await client.create()
    bot = await client.connect(session)
    await bot.turn("one")
    await bot.turn(script({"think": "hm"}, {"say": "two"}))
    assert await acp.call("session/load", **of_session(session)) == {}
    assert [update["sessionUpdate"] for update in acp.conversation_updates()] == [
        "user_message_chunk",
        "agent_message_chunk",
        "user_message_chunk",
        "agent_thought_chunk",
        "agent_message_chunk",
    ]
    assert acp.text() == "echo: onetwo"
    assert acp.text(kind="user_message_chunk").startswith("one{")
    assert "result" in acp.messages[-1]
    # Again, and it begins again.
    before = acp.conversation_updates()
    assert await acp.call("session/load", **of_session(session)) == {}
    assert acp.conversation_updates() == before * 2
    assert await acp.prompt(session, "three") == {"stopReason": "end_turn"}
    assert acp.text().endswith("echo: three")


async def test_long_replay_has_no_gap_and_may_be_restarted(client: Client) -> None:
    sessions = [await client.create() for _ in range(2)]
    burst = script({"burst": {"count": 2_000, "text": "x" * 100}})
    await asyncio.gather(*(client.turn(session, burst) for session in sessions))
    acp = await connect(client, strict=False)
    loads = [
        await acp.request("session/load", of_session(session)) for session in (*sessions, *sessions)
    ]
    for load in loads:
        await acp.response_to(load)
    whole = "".join(f"{n}:{'x' * 100}" for n in range(2_000))
    for session in sessions:
        text = acp.text(session)
        assert text.endswith(whole)
        # The replay that was interrupted has sent the beginning of the same messages.
        assert whole.startswith(text.removesuffix(whole))
        await client.delete(f"/sessions/{session}")


async def test_resume_replays_nothing(acp: AcpClient, client: Client) -> None:
    session = await client.create()
    bot = await client.connect(session)
    await bot.turn("one")
    assert await acp.call("session/resume", **of_session(session)) == {}
    assert await acp.prompt(session, "two") == {"stopReason": "end_turn"}
    assert [update["content"]["text"] for update in acp.conversation_updates()] == ["echo: two"]


async def test_sessions_are_listed_in_pages(server: LocalServer, stranger: Client) -> None:
    client = await server.client("lister")
    acp = await connect(client)
    connection_of(server, acp).methods.page_size = 2
    assert await acp.call("session/list") == {"sessions": []}
    theirs = await stranger.create()
    made = [await client.create(meta={"title": f"number {n}"}) for n in range(5)]

    first = await acp.call("session/list")
    # One that comes or goes meanwhile shifts nothing.
    await client.delete(f"/sessions/{made[2]}")
    made.append(await client.create())
    second = await acp.call("session/list", cursor=first["nextCursor"])
    assert "nextCursor" not in second
    listed = [one["sessionId"] for page in (first, second) for one in page["sessions"]]
    assert listed == [made[4], made[3], made[1], made[0]]

    state = await client.state(made[0])
    told = second["sessions"][-1]
    assert (told["title"], told["cwd"]) == ("number 0", state["cwd"])
    assert told["updatedAt"].endswith("Z")
    assert told["_meta"]["clawdforge"]["agent"] == "mock"
    only = await acp.call("session/list", cwd=state["cwd"])
    assert [one["sessionId"] for one in only["sessions"]] == [made[0]]
    for cursor in ("x", "bjE", "é", ""):
        assert await code_of(acp, "session/list", cursor=cursor) == -32602
    for one in made:
        await client.delete(f"/sessions/{one}")
    await stranger.delete(f"/sessions/{theirs}")


async def test_close_ends_the_turn_before_its_response(acp: AcpClient, client: Client) -> None:
    session = await acp.new_session()
    prompting = await acp.start_prompt(session, script({"say": "on it"}, {"hang": True}))
    await acp.until_text("on it")
    closing = await acp.request("session/close", {"sessionId": session})
    assert await acp.response_to(prompting) == {"stopReason": "cancelled"}
    assert await acp.response_to(closing) == {}
    assert (await client.state(session))["close_reason"] == "client"
    assert await acp.call("session/close", sessionId=session) == {}  # again
    for method in ("session/load", "session/resume"):
        assert await code_of(acp, method, **of_session(session)) == -32002
    prompt = [{"type": "text", "text": "hello"}]
    assert await code_of(acp, "session/prompt", sessionId=session, prompt=prompt) == -32002


async def test_close_by_another_client_is_reported(acp: AcpClient, client: Client) -> None:
    session = await acp.new_session()
    other = await acp.new_session()
    prompting = await acp.start_prompt(session, script({"hang": True}))
    await eventually("the turn to run", lambda: is_running(client, session))
    await client.delete(f"/sessions/{session}")
    assert await acp.response_to(prompting) == {"stopReason": "cancelled"}
    assert (await acp.until_update("session_info_update"))["_meta"] == {
        "clawdforge": {"closed": "client"}
    }
    assert await acp.prompt(other, "hello") == {"stopReason": "end_turn"}


async def is_running(client: Client, session: str) -> bool:
    return bool((await client.state(session))["state"] == "running")


async def test_several_sessions_share_a_connection(acp: AcpClient) -> None:
    sessions = [await acp.new_session() for _ in range(3)]
    burst = script({"burst": {"count": 60, "text": "x", "batch": 5}})
    asked = [await acp.start_prompt(session, burst) for session in sessions]
    for request in asked:
        assert await acp.response_to(request) == {"stopReason": "end_turn"}
    expected = "".join(f"{n}:x" for n in range(60))
    assert [acp.text(session) for session in sessions] == [expected] * 3


# Turns.


async def test_prompt_response_follows_its_updates_and_is_the_agents_own(acp: AcpClient) -> None:
    session = await acp.new_session()
    result = {"stopReason": "max_tokens", "usage": {"totalTokens": 7}, "_meta": {"x": [1]}}
    steps = script({"burst": {"count": 300, "text": "y"}}, {"result": result})
    assert await acp.prompt(session, steps) == result
    assert acp.text().endswith("299:y")
    error = {"code": -32000, "message": "log in first", "data": {"how": "elsewhere"}}
    with pytest.raises(ResponseError, match="log in first") as failure:
        await acp.prompt(session, script({"error": error}))
    told = {"code": "login_required", "retryable": False, "authMethods": []}
    assert (failure.value.code, failure.value.data) == (-32000, {"how": "elsewhere", **told})
    with pytest.raises(ResponseError) as failure:
        await acp.prompt(session, script({"crash": "SIGKILL"}))
    assert (failure.value.code, failure.value.data["code"]) == (-32603, "agent_failed")
    assert failure.value.data["retryable"] is True


async def test_cancelled_turn_ends_with_a_result_after_its_updates(acp: AcpClient) -> None:
    session = await acp.new_session()
    steps = script({"say": "begun"}, {"wait_for": "cancel"}, {"say": "clearing up"})
    for cancel in ("session/cancel", "$/cancel_request"):
        asked = await acp.start_prompt(session, steps)
        await acp.until_text("begun")
        ours: Json = {"sessionId": session} if cancel == "session/cancel" else {"requestId": asked}
        await acp.notify(cancel, **ours)
        assert await acp.response_to(asked) == {"stopReason": "cancelled"}
        assert acp.conversation_updates()[-1]["content"]["text"] == "clearing up"
    # One that the agent answers with an error, and one that the agent ignores.
    asked = await acp.start_prompt(
        session,
        script({"say": "begun"}, {"wait_for": "cancel"}, {"error": {"code": 1, "message": ""}}),
    )
    await acp.until_text("begun")
    await acp.notify("session/cancel", sessionId=session)
    assert await acp.response_to(asked) == {"stopReason": "cancelled"}


async def test_cancel_applies_to_the_clients_own_prompts(acp: AcpClient, client: Client) -> None:
    session = await acp.new_session()
    bot = await client.connect(session)
    await bot.send("prompt", prompt=script({"say": "busy"}, {"wait_for": "cancel"}))
    await bot.until_text("busy")
    asked = await acp.start_prompt(session, "later")
    await acp.notify("session/cancel", sessionId=session)
    assert await acp.response_to(asked) == {"stopReason": "cancelled"}
    assert await is_running(client, session)  # the bot's
    await acp.notify("session/cancel", sessionId=session)  # nothing of its own is left
    await bot.until("turn_end", stop_reason="cancelled", turn_index=1)


async def test_prompts_of_other_clients_are_reported_and_own_ones_are_not(
    acp: AcpClient, client: Client
) -> None:
    session = await acp.new_session()
    bot = await client.connect(session)
    other = await connect(client)
    await other.call("session/resume", **of_session(session))

    assert await acp.prompt(session, "from acp") == {"stopReason": "end_turn"}
    assert acp.text(kind="user_message_chunk") == ""
    await other.until_text("echo: from acp")
    assert other.text(kind="user_message_chunk") == "from acp"
    await bot.until("turn_end")
    assert bot.text() == "echo: from acp"

    await bot.turn("from the bot")
    for watching in (acp, other):
        await watching.until_text("echo: from the bot")
        assert watching.text(kind="user_message_chunk").endswith("from the bot")
        news = await watching.until_update("session_info_update")
        while news["_meta"]["clawdforge"]["turnEnd"]["turnIndex"] != 2:
            news = await watching.until_update("session_info_update")
        assert news["_meta"]["clawdforge"]["turnEnd"]["stopReason"] == "end_turn"


async def test_steering_adds_a_prompt_to_the_running_turn(client: Client) -> None:
    acp = await connect(client, "?agent=mock-steers", initialize=None)
    capabilities = await acp.call("initialize", **INITIALIZE)
    assert capabilities["_meta"]["steering"] == {"supported": True}
    session = await acp.new_session()
    other = await connect(client)
    await other.call("session/resume", **of_session(session))
    prompt = {"sessionId": session, "prompt": [{"type": "text", "text": "to the left"}]}
    host_owned = {"_meta": {"steering": {"idleBehavior": "promptRequired"}}}
    idle = await acp.call("_session/steering", **prompt, **host_owned)
    assert idle == {"outcome": "promptRequired", "reason": "noRunningTurn"}

    turn = await acp.start_prompt(session, script({"say": "hanging"}, {"hang": True}))
    await acp.until_text("hanging")
    assert await acp.call("_session/steering", **prompt, **host_owned) == {"outcome": "injected"}
    await other.until_text("steered: to the left")
    sent = await other.until_update("user_message_chunk")
    assert sent["content"]["text"] == "to the left"
    assert acp.text(kind="user_message_chunk") == ""
    refused = {**prompt, "prompt": [{"type": "text", "text": '{"steer": "refuse"}'}]}
    required = await acp.call("_session/steering", **refused, **host_owned)
    assert required["outcome"] == "promptRequired"
    assert await acp.call("_session/steering", **refused) == {"outcome": "startedNewTurn"}
    await acp.notify("session/cancel", sessionId=session)
    assert await acp.response_to(turn) == {"stopReason": "cancelled"}
    await acp.until_update("session_info_update")  # the end of the turn that was started
    assert acp.text(kind="user_message_chunk") == ""
    state = await client.state(session)
    assert (state["turn_count"], state["state"]) == (2, "idle")
    assert await code_of(acp, "_session/steering", sessionId=session, prompt=[]) == -32602
    assert await code_of(acp, "_session/steering", sessionId=UNKNOWN, prompt=prompt["prompt"])


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
        await client.delete(f"/sessions/{session}")
    assert found == [[{**updates[2], "configOptions": [model]}], updates]


async def test_session_gets_a_title_and_is_deleted(acp: AcpClient, client: Client) -> None:
    session = await acp.new_session()
    other = await acp.new_session()
    assert await acp.call("session/set_title", sessionId=session, title="My title") == {}
    assert (await client.state(session))["title"] == "My title"
    assert await code_of(acp, "session/set_title", sessionId=session, title="") == -32602
    assert await code_of(acp, "session/set_title", sessionId=UNKNOWN, title="x") == -32002
    await acp.prompt(session, "hello")
    for session_id in (session, other):
        assert await acp.call("session/delete", sessionId=session_id) == {}
        assert (await client.get(f"/sessions/{session_id}"))[0] == 404
    assert await code_of(acp, "session/delete", sessionId=session) == -32002


async def test_fork_continues_from_the_head_on_its_own(acp: AcpClient, client: Client) -> None:
    session = await acp.new_session()
    await acp.prompt(session, "my name is Ada")
    result = await acp.call("session/fork", **of_session(session))
    fork = result["sessionId"]
    assert result["_meta"]["clawdforge"]["permission"] == "ask"
    assert (await client.state(fork))["forked_from"] == {"session_id": session, "turn_index": 1}
    assert await client.events(fork) == await client.events(session)
    assert (await acp.prompt(fork, "hello"))["stopReason"] == "end_turn"
    assert (await client.state(session))["turn_count"] == 1
    # The client gets the updates of the fork's own turn, and not those that it has seen already.
    messages = [one["params"] for one in acp.messages if one.get("method") == "session/update"]
    assert {one["sessionId"] for one in messages} == {session, fork}
    assert [one["sessionId"] for one in messages].count(fork) == 1
    assert await code_of(acp, "session/fork", **of_session(UNKNOWN)) == -32002


async def test_lost_connection_cancels_nothing(client: Client) -> None:
    acp = await connect(client)
    session = await acp.new_session()
    await acp.start_prompt(session, script({"say": "before"}, {"gate": "go"}, {"say": "after"}))
    await acp.until_text("before")
    acp.ws._response.connection.transport.abort()  # type: ignore[union-attr]

    again = await connect(client)
    resumed = await connect(client)
    await again.call("session/load", **of_session(session))
    await resumed.call("session/resume", **of_session(session))
    assert again.text() == "before"
    assert await is_running(client, session)
    await eventually("the cut one to be gone", lambda: sockets_are(client, session, 2))
    cwd = (await client.state(session))["cwd"]
    await asyncio.to_thread(lambda: open(f"{cwd}/go", "w").close())  # noqa: PTH123
    await again.until_text("after")
    await resumed.until_text("after")
    assert resumed.text() == "after"
    assert await again.prompt(session, "more") == {"stopReason": "end_turn"}
    await client.delete(f"/sessions/{session}")


async def sockets_are(client: Client, session: str, number: int) -> bool:
    return bool((await client.state(session))["sockets"] == number)


# Permissions.

ASK = script({"permission": {"title": "may I?"}})


def choose(option: str) -> Json:
    return {"outcome": {"outcome": "selected", "optionId": option}}


async def test_permission_request_has_an_id_of_the_connection(acp: AcpClient) -> None:
    session = await acp.new_session()
    asked = await acp.start_prompt(session, ASK)
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
    asked = await acp.start_prompt(session, ASK)
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
    asked = await acp.start_prompt(session, ASK)
    request = await acp.until(method="session/request_permission")
    await acp.send(id=request["id"], error={"code": -32601, "message": "what?"})
    assert await acp.response_to(asked) == {"stopReason": "cancelled"}  # as the mock takes it


async def test_policy_sends_no_permission_request(acp: AcpClient) -> None:
    session = await acp.new_session(_meta={"clawdforge": {"permission": "approve-all"}})
    assert await acp.prompt(session, ASK) == {"stopReason": "end_turn"}
    assert json.loads(acp.text())["permission"]["optionId"] == "allow_once"
    assert not [m for m in acp.messages if m.get("method") == "session/request_permission"]


# Settings.


async def test_setting_change_returns_the_agents_own_result(acp: AcpClient, client: Client) -> None:
    session = await acp.new_session(_meta={"clawdforge": {"agent": "mock-modes"}})
    assert await acp.call("session/set_mode", sessionId=session, modeId="code") == {}
    assert (await client.state(session))["modes"]["currentModeId"] == "code"
    params = {"sessionId": session, "configId": "thought_level", "value": "high"}
    result = await acp.call("session/set_config_option", **params)
    assert result["configOptions"] == (await client.state(session))["config_options"]
    (level,) = [one for one in result["configOptions"] if one["id"] == "thought_level"]
    assert level["currentValue"] == "high"
    assert await acp.call("session/set_model", sessionId=session, modelId="mock-large") is not None
    told = {"config_option_update", "current_mode_update"}  # the answer does not wait for them
    while not told <= {update["sessionUpdate"] for update in acp.updates()}:
        await acp.next()

    assert await code_of(acp, "session/set_mode", sessionId=session, modeId="none") == -32602
    assert await code_of(acp, "session/set_config_option", **{**params, "value": "none"}) == -32602
    boolean = {**params, "type": "boolean", "value": True}
    assert await code_of(acp, "session/set_config_option", **boolean) == -32602
    loaded = await connect(client)
    told = await loaded.call("session/load", **of_session(session))
    assert told["modes"]["currentModeId"] == "code"


# Errors.


async def test_errors_have_json_rpc_codes(acp: AcpClient, client: Client, stranger: Client) -> None:
    malformed = {
        '{"jsonrpc":"2.0"': -32700,
        "\x00": -32700,
        "[" * 1000 + "]" * 1000: -32700,
        "[]": -32600,
        '[{"jsonrpc":"2.0","id":1,"method":"session/list"}]': -32600,
        '"text"': -32600,
        '{"id":7,"method":"session/list"}': -32600,
        '{"jsonrpc":"1.0","id":7,"method":"session/list"}': -32600,
        '{"jsonrpc":"2.0","id":7}': -32600,
        '{"jsonrpc":"2.0","id":7,"method":7}': -32600,
        '{"jsonrpc":"2.0","id":7,"method":"session/list","params":"x"}': -32600,
        '{"jsonrpc":"2.0","id":{},"method":"session/list"}': -32600,
        '{"jsonrpc":"2.0","id":true,"method":"session/list"}': -32600,
        '{"jsonrpc":"2.0","id":7,"result":1,"error":{}}': -32600,
    }
    for text, code in malformed.items():
        await acp.ws.send_str(text)
        answer = await acp.until()
        assert (answer["id"], answer["error"]["code"]) == (None, code), text
    for method in ("nothing/such", "fs/read_text_file", "terminal/create", "logout", ""):
        assert await code_of(acp, method) == -32601
    await acp.notify("nothing/such")  # is answered by nothing
    await acp.ws.send_bytes(b"\x00\x01")  # nor is this

    theirs = await stranger.create()
    prompt: Json = {"prompt": [{"type": "text", "text": "hello"}]}
    asked: dict[str, Json] = {
        "session/load": {},
        "session/resume": {},
        "session/close": {},
        "session/prompt": prompt,
        "session/set_mode": {"modeId": "ask"},
        "session/set_config_option": {"configId": "x", "value": "y"},
    }
    for method, params in asked.items():
        failures = []
        for session in (UNKNOWN, theirs, "", "../x"):
            with pytest.raises(ResponseError) as failure:
                await acp.call(method, **of_session(session, **params))
            failures.append((failure.value.code, str(failure.value), failure.value.data))
        assert failures[0][0] == -32002
        assert len(set(map(repr, failures))) == 1, method
    await acp.notify("session/cancel", sessionId=theirs)
    assert await acp.call("session/list", cwd="/nowhere") == {"sessions": []}


async def test_ids_are_echoed_exactly(client: Client) -> None:
    acp = await connect(client, strict=False)
    ids = ("0", "-1", '""', '"a\\u0062"', '"é"', "null", "1.0", "1e2", "123456789012345678901")
    for request_id in ids:
        await acp.ws.send_str(
            f'{{"jsonrpc":"2.0", "id" : {request_id}, "method":"session/list","params":null}}'
        )
        await acp.until()
        assert acp.frames[-1].startswith(f'{{"jsonrpc":"2.0","id":{request_id},"result":')
    await acp.ws.send_str('{"jsonrpc":"2.0","id":"half","method":"\\ud83d"}')
    answer = await acp.until()
    assert (answer["id"], answer["error"]["code"]) == ("half", -32602)


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


@pytest.mark.parametrize("cwd", ["/their/project", "C:\\Users\\me", "\\\\server\\share"])
async def test_client_path_may_be_of_any_system(acp: AcpClient, cwd: str) -> None:
    session = await acp.new_session(cwd=cwd)
    assert await acp.call("session/load", **of_session(session, cwd=cwd)) is not None
    listed = (await acp.call("session/list", cwd=cwd))["sessions"]
    assert [one["sessionId"] for one in listed] == [session]
    assert await acp.call("session/list", cwd=f"{cwd}2") == {"sessions": []}


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
    await client.delete(f"/sessions/{session}")


# Limits, as for the other socket.


async def test_too_big_frame_closes_in_order(client: Client) -> None:
    acp = await connect(client)
    await acp.ws.send_str(" " * (4 << 20) + "{}")
    assert await acp.until_closed() == 1009


async def test_pings_are_answered(acp: AcpClient) -> None:
    await acp.ws.ping(b"are you there?")
    assert await acp.call("session/list", cwd="/nowhere") == {"sessions": []}


async def test_pending_requests_are_limited_and_can_be_cancelled(
    server: LocalServer, acp: AcpClient, client: Client
) -> None:
    connection_of(server, acp).requests.max_pending = 1
    slow = {"cwd": "/", "_meta": {"clawdforge": {"agent": "mock-slow"}}}
    waiting = await acp.request("session/new", slow)
    with pytest.raises(ResponseError) as failure:
        await acp.call("session/new", **slow)
    assert failure.value.data["code"] == "rate_limited"
    await acp.notify("$/cancel_request", requestId=waiting)
    with pytest.raises(ResponseError) as failure:
        await acp.response_to(waiting)
    assert failure.value.code == -32800

    async def is_gone() -> bool:  # nobody has its id
        _, reply = await client.get("/sessions")
        return all(one["agent"] != "mock-slow" for one in reply["sessions"])

    await eventually("the session to be closed", is_gone)


async def test_new_session_cancelled_while_it_is_stored_is_closed(
    server: LocalServer, acp: AcpClient, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (await client.get("/sessions"))[1]["count"]
    stored, go_on = hold_commits(server, monkeypatch)
    waiting = await acp.request("session/new", {"cwd": "/"})
    await stored.wait()
    await acp.notify("$/cancel_request", requestId=waiting)
    await code_of(acp, "session/list", cursor="none")  # the cancel has been read
    monkeypatch.undo()
    go_on.set()
    with pytest.raises(ResponseError) as failure:
        await acp.response_to(waiting)
    assert failure.value.code == -32800
    assert (await client.get("/sessions"))[1]["count"] == before


async def test_new_session_of_a_disconnected_client_is_closed(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets = server.services.sockets

    async def states() -> Counter[str]:
        _, reply = await client.get("/sessions?include_closed=true")
        return Counter(session["state"] for session in reply["sessions"])

    async def is_closed() -> bool:
        return await states() - before == Counter(["closed"])

    before = await states()
    acp = await connect(client)
    connection = connection_of(server, acp)
    stored, go_on = hold_commits(server, monkeypatch)
    await acp.request("session/new", {"cwd": "/"})
    await stored.wait()
    acp.ws._response.connection.transport.abort()  # type: ignore[union-attr]
    await eventually("the connection to end", lambda: connection not in sockets.connections)
    assert await states() == before
    monkeypatch.undo()
    go_on.set()
    await eventually("the session to be closed", is_closed)


@pytest.mark.parametrize("method", ["session/new", "session/set_mode"])
async def test_request_cancelled_at_once_is_answered_and_no_longer_pending(
    server: LocalServer, acp: AcpClient, method: str
) -> None:
    session = await acp.new_session(_meta={"clawdforge": {"agent": "mock-modes"}})
    connection_of(server, acp).requests.max_pending = 1
    # Both are written before the loop turns, so the server reads them in one go.
    hasty = await acp.request(method, of_session(session, modeId="code"))
    await acp.notify("$/cancel_request", requestId=hasty)
    with pytest.raises(ResponseError) as failure:
        await acp.response_to(hasty)
    assert failure.value.code == -32800
    assert await acp.call("session/set_mode", sessionId=session, modeId="code") == {}
    assert [message.get("id") for message in acp.messages].count(hasty) == 1


async def test_too_many_frames_close(client: Client) -> None:
    acp = await connect(client)
    for _ in range(1000):
        await acp.notify("nothing/such")
    assert await acp.until_closed() == 4005


async def test_revoked_token_closes_its_connections(server: LocalServer) -> None:
    leaving = await server.client("leaving")
    acp = await connect(leaving)
    await server.admin().delete("/admin/tokens/leaving")
    assert await acp.until_closed() == 4503
    assert (await refused(leaving)).status == 401


async def test_stopping_server_closes_with_1012(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    acp = await connect(client)
    closing = asyncio.create_task(server.services.sockets.close_all(5))
    assert await acp.until_closed() == 1012
    await closing
    monkeypatch.setattr(server.services.sessions, "is_draining", True)
    assert (await refused(client)).status == 503
