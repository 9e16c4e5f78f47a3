"""Connections to ``/acp``: the upgrade, ``initialize``, errors and limits."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from server import safe_files

from ..support.acp_client import (
    INITIALIZE,
    AcpClient,
    ResponseError,
    code_of,
    connect,
    connection_of,
    of_session,
)
from ..support.harness import (
    MOCKS,
    Client,
    Json,
    LocalServer,
    blocking,
    eventually,
    hold_commits,
    local_server,
    mock_agent,
)

AGENTS = {
    **MOCKS,
    "mock-text": mock_agent("--text-only"),
    "mock-slow": mock_agent("--slow-start=60000"),
}
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    data_dir = tmp_path_factory.mktemp("acp") / "data"
    async with local_server(data_dir, agents=AGENTS, max_commands_per_sec=20) as server:
        blocking.deactivate()
        yield server


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


# Errors.


async def test_errors_have_json_rpc_codes(server: LocalServer, acp: AcpClient) -> None:
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

    theirs = await (await server.client("stranger")).create()
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
