"""Sessions and their turns over ``/acp``, as a client sees them that knows only JSON."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ..conftest import Serve
from ..support.acp_client import (
    INITIALIZE,
    AcpClient,
    ResponseError,
    code_of,
    connect,
    connection_of,
    of_session,
)
from ..support.harness import Client, Json, LocalServer, eventually, mock_agent, run_step, script

UNKNOWN = "00000000-0000-4000-8000-000000000000"
SECRET = "hunter2-hunter2"
STDIO: Json = {
    "name": "files",
    "command": "/bin/mcp-files",
    "args": [],
    "env": [{"name": "KEY", "value": SECRET}],
}
HTTP: Json = {"type": "http", "name": "web", "url": "http://mcp.example/", "headers": []}
AGENTS = {"mock": mock_agent("--mcp", "--directories"), "plain": mock_agent()}


async def has_running_turn(client: Client, session: str) -> bool:
    return bool((await client.state(session))["state"] == "running")


async def has_sockets(client: Client, session: str, number: int) -> bool:
    return bool((await client.state(session))["sockets"] == number)


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


async def test_resume_replays_nothing(acp: AcpClient, client: Client) -> None:
    session = await client.create()
    bot = await client.connect(session)
    await bot.turn("one")
    assert await acp.call("session/resume", **of_session(session)) == {}
    assert await acp.prompt(session, "two") == {"stopReason": "end_turn"}
    assert [update["content"]["text"] for update in acp.conversation_updates()] == ["echo: two"]


async def test_sessions_are_listed_in_pages(
    server: LocalServer, acp: AcpClient, client: Client
) -> None:
    connection_of(server, acp).methods.page_size = 2
    assert await acp.call("session/list") == {"sessions": []}
    await (await server.client("stranger")).create()
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
    await eventually("the turn to run", lambda: has_running_turn(client, session))
    await client.delete(f"/sessions/{session}")
    assert await acp.response_to(prompting) == {"stopReason": "cancelled"}
    assert (await acp.until_update("session_info_update"))["_meta"] == {
        "clawdforge": {"closed": "client"}
    }
    assert await acp.prompt(other, "hello") == {"stopReason": "end_turn"}


@pytest.mark.parametrize("cwd", ["/their/project", "C:\\Users\\me", "\\\\server\\share"])
async def test_client_path_may_be_of_any_system(acp: AcpClient, cwd: str) -> None:
    session = await acp.new_session(cwd=cwd)
    assert await acp.call("session/load", **of_session(session, cwd=cwd)) is not None
    listed = (await acp.call("session/list", cwd=cwd))["sessions"]
    assert [one["sessionId"] for one in listed] == [session]
    assert await acp.call("session/list", cwd=f"{cwd}2") == {"sessions": []}


async def test_several_sessions_share_a_connection(acp: AcpClient) -> None:
    sessions = [await acp.new_session() for _ in range(3)]
    burst = script({"burst": {"count": 60, "text": "x", "batch": 5}})
    asked = [await acp.start_prompt(session, burst) for session in sessions]
    for request in asked:
        assert await acp.response_to(request) == {"stopReason": "end_turn"}
    expected = "".join(f"{n}:x" for n in range(60))
    assert [acp.text(session) for session in sessions] == [expected] * 3


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


# MCP servers and other options.


async def opened(client: Client, session: str) -> Json:
    await client.call("PATCH", f"/sessions/{session}", {"permission": "approve-all"})
    method, params = (await run_step(client, session, {"report": True}))["opened"]
    return {"method": method, **params}


async def hibernate(server: LocalServer, session: str) -> None:
    found = await server.services.sessions.find(session)
    assert found is not None
    assert await found.agent.hibernate()


async def test_mcp_servers_and_options_of_an_acp_client_reach_the_agent(
    serve: Serve, tmp_path: Path
) -> None:
    server = await serve(agents=AGENTS, workspace_roots=(tmp_path.resolve(),))
    client = await server.client()
    meta = {"clawdforge": {"ask_timeout_secs": 20, "env": {"A": "1"}}}
    acp = await connect(client, initialize={**INITIALIZE, "_meta": meta})
    capabilities = acp.messages[0]["result"]["agentCapabilities"]
    assert capabilities["mcpCapabilities"] == {"http": True, "sse": True}
    assert capabilities["sessionCapabilities"]["additionalDirectories"] == {}
    more, cwd = tmp_path / "more", tmp_path / "cwd"
    more.mkdir()
    cwd.mkdir()
    created = await acp.call(
        "session/new",
        cwd=str(cwd),
        mcpServers=[STDIO],
        additionalDirectories=[str(more)],
        _meta={"clawdforge": {"askTimeoutSecs": 30}},
    )
    assert created["_meta"]["clawdforge"]["ignored"] == []
    session = created["sessionId"]
    state = await client.state(session)
    assert (state["ask_timeout_secs"], state["env"]) == (30, ["A"])
    assert state["mcp_servers"] == [{"name": "files", "type": "stdio", "env": ["KEY"]}]
    found = await opened(client, session)
    assert (found["mcpServers"], found["additionalDirectories"]) == ([STDIO], [str(more)])

    # Without servers, a load changes nothing; with others, it replaces them.
    params = {"sessionId": session, "cwd": str(cwd)}
    await acp.call("session/load", **params, mcpServers=[])
    assert (await client.state(session))["mcp_servers"] == state["mcp_servers"]
    await acp.call("session/resume", **params, mcpServers=[HTTP])
    await hibernate(server, session)
    found = await opened(client, session)
    assert (found["method"], found["mcpServers"]) == ("session/load", [HTTP])
    assert found["additionalDirectories"] == [str(more)]


async def test_initialize_reports_the_mcp_capabilities_of_the_agent(serve: Serve) -> None:
    server = await serve(agents=AGENTS, default_agent="plain")
    acp = await connect(await server.client())
    capabilities = acp.messages[0]["result"]["agentCapabilities"]
    assert capabilities["mcpCapabilities"] == {"http": False, "sse": False}
    assert "additionalDirectories" not in capabilities["sessionCapabilities"]


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
    assert await has_running_turn(client, session)  # the bot's
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
    assert await has_running_turn(client, session)
    await eventually("the lost connection to end", lambda: has_sockets(client, session, 2))
    cwd = (await client.state(session))["cwd"]
    await asyncio.to_thread(lambda: open(f"{cwd}/go", "w").close())  # noqa: PTH123
    await again.until_text("after")
    await resumed.until_text("after")
    assert resumed.text() == "after"
    assert await again.prompt(session, "more") == {"stopReason": "end_turn"}
    await client.delete(f"/sessions/{session}")
