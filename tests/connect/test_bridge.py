"""``connect`` as an editor sees it: one agent, although the server goes away and returns."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from server.acp.connection import AcpConnection
from server.connect import bridge as bridge_module
from server.connect.failure import ConnectError, ExitStatus

from ..support.acp_client import INITIALIZE, ResponseError, connect
from ..support.editors import Editor, editor, editor_process, initialize_line, open_editor_session
from ..support.harness import Client, Json, LocalServer, eventually, script

NOWHERE = "http://127.0.0.1:9"
"""The port of the service `discard`, which no machine runs."""


@pytest.fixture(autouse=True)
def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge_module, "RETRY_SECS", (0.01, 0.05))


def cut(server: LocalServer) -> int:
    """Drop every ACP connection, as a network does. Returns their number."""
    connections = [one for one in server.services.sockets.connections if is_acp(one)]
    for connection in connections:
        connection.abort()
    return len(connections)


def is_acp(connection: object) -> bool:
    return isinstance(connection, AcpConnection)


async def cut_and_wait(server: LocalServer) -> None:
    """Drop the connection, and wait until the bridge has another."""
    before = {id(one) for one in server.services.sockets.connections if is_acp(one)}
    assert cut(server)

    def is_back() -> bool:
        connections = [one for one in server.services.sockets.connections if is_acp(one)]
        new = [one for one in connections if id(one) not in before]
        return any(isinstance(one, AcpConnection) and one.methods.is_initialized for one in new)

    await eventually("the bridge to reconnect", is_back)


# Messages.


async def test_conversation_is_passed_on_unchanged(client: Client) -> None:
    async with editor(client) as me:
        session = await open_editor_session(me)
        assert await me.prompt(session, "hello") == {"stopReason": "end_turn"}
        assert me.text(session) == "echo: hello"
        text = "é😀\n" + "x" * 3_000_000
        assert await me.prompt(session, text) == {"stopReason": "end_turn"}
        assert me.text(session) == f"echo: helloecho: {text}"
        with pytest.raises(ResponseError) as failure:
            await me.call("session/load", sessionId="none", cwd="/", mcpServers=[])
        assert failure.value.code == -32002
        listed = await me.call("session/list")
        assert session in [one["sessionId"] for one in listed["sessions"]]
        assert await me.call("session/close", sessionId=session) == {}
        assert not any(m.get("method", "").startswith("_") for m in me.messages)


async def test_invalid_line_gets_an_error_response(client: Client) -> None:
    async with editor(client) as me:
        await me.ws.send_str("nonsense")
        assert (await me.next() or {})["error"]["code"] == -32700
        await me.ws.send_str('{"jsonrpc":"2.0","id":7,"method":"session/list"}')
        assert await me.next() == {
            "jsonrpc": "2.0",
            "id": 7,
            "error": {"code": -32600, "message": "the first message must be initialize"},
        }
        session = await open_editor_session(me)
        prompt = [{"type": "text", "text": "x" * (5 << 20)}]
        with pytest.raises(ResponseError) as failure:
            await me.call("session/prompt", sessionId=session, prompt=prompt)
        assert failure.value.code == -32602
        assert await me.prompt(session, "small") == {"stopReason": "end_turn"}


async def test_options_of_the_address_apply_to_new_sessions(client: Client) -> None:
    async with editor(client, "/acp?agent=mock-modes&mode=code") as me:
        await me.call("initialize", **INITIALIZE)
        made = await me.call("session/new", cwd="/", mcpServers=[])
        assert made["modes"]["currentModeId"] == "code"


# Lost connections.


async def test_turn_continues_over_a_lost_connection(
    server: LocalServer, client: Client, tmp_path: Path
) -> None:
    async with editor(client, strict=False) as me:
        session = await open_editor_session(me)
        gates = [tmp_path / name for name in ("one", "two")]
        steps = [{"say": "begun "}, {"gate": str(gates[0])}, {"say": "middle "}]
        burst = {"burst": {"count": 5000, "text": ",", "batch": 100}}
        request = await me.start_prompt(session, script(*steps, burst, {"gate": str(gates[1])}))
        await me.until_text("begun")
        await cut_and_wait(server)
        gates[0].touch()
        for _ in range(3):  # in the middle of the burst, or after it
            cut(server)
            await asyncio.sleep(0)
        await eventually("the whole text", lambda: until_read(me, "4999:,"))
        cut(server)
        gates[1].touch()
        assert await me.response_to(request) == {"stopReason": "end_turn"}
        numbers = "".join(f"{n}:," for n in range(5000))
        assert me.text(session) == f"begun middle {numbers}"
        assert me.text(session, "user_message_chunk") == ""
        assert (await client.state(session))["turn_count"] == 1


def of_session(session: str) -> Json:
    return {"sessionId": session, "cwd": "/", "mcpServers": []}


async def code_of(me: Editor, method: str, params: Json) -> int:
    """The code of the error response to a request."""
    with pytest.raises(ResponseError) as failure:
        await me.call(method, **params)
    return int(failure.value.code)


async def until_read(me: Editor, text: str) -> bool:
    await me.until_text(text)
    return True


async def test_prompt_runs_once_if_its_connection_is_lost(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with editor(client) as me:
        session = await open_editor_session(me)
        # Before the server has read it, while it is stored, and after it has ended.
        for text in ("first", "second", "third"):
            request = await me.start_prompt(session, text)
            for _ in range({"first": 0, "second": 3, "third": 200}[text]):
                await asyncio.sleep(0)
            cut(server)
            assert await me.response_to(request) == {"stopReason": "end_turn"}
        assert me.text(session) == "echo: firstecho: secondecho: third"
        assert (await client.state(session))["turn_count"] == 3


async def test_permission_is_requested_once_and_its_answer_arrives(
    server: LocalServer, client: Client
) -> None:
    async with editor(client) as me:
        session = await open_editor_session(me)
        for answer_first in (False, True):
            request = await me.start_prompt(session, script({"permission": {"title": "edit"}}))
            asked = await me.until(method="session/request_permission")
            outcome = {"outcome": "selected", "optionId": "allow_once"}
            if answer_first:  # the answer may be lost with the connection
                await me.send(id=asked["id"], result={"outcome": outcome})
                cut(server)
            else:
                await cut_and_wait(server)
                await me.send(id=asked["id"], result={"outcome": outcome})
            assert await me.response_to(request) == {"stopReason": "end_turn"}
        assert me.text(session).count('"optionId": "allow_once"') == 2
        asks = [m for m in me.messages if m.get("method") == "session/request_permission"]
        assert len(asks) == 2


async def test_permission_resolved_meanwhile_is_withdrawn(
    server: LocalServer, client: Client
) -> None:
    async with editor(client) as me:
        session = await open_editor_session(me)
        request = await me.start_prompt(session, script({"permission": {"title": "edit"}}))
        asked = await me.until(method="session/request_permission")
        (pending,) = (await client.state(session))["pending_permissions"]
        cut(server)
        path = f"/sessions/{session}/permissions/{pending['request_id']}"
        await client.post(path, {"option_id": "reject_once"})
        withdrawn = await me.until(method="$/cancel_request")
        assert withdrawn["params"] == {"requestId": asked["id"]}
        assert await me.response_to(request) == {"stopReason": "end_turn"}


async def test_question_is_shown_once_and_its_answer_arrives(
    server: LocalServer, client: Client
) -> None:
    form = {"type": "object", "properties": {"name": {"type": "string"}}}
    question = {"mode": "form", "message": "Your name?", "requestedSchema": form}
    ask = script({"request": {"method": "elicitation/create", "params": question}})
    async with editor(client) as me:
        capabilities: Json = {"elicitation": {"form": {}}}
        await me.call("initialize", protocolVersion=1, clientCapabilities=capabilities)
        session = await me.new_session()
        request = await me.start_prompt(session, ask)
        asked = await me.until(method="elicitation/create")
        await cut_and_wait(server)
        answer = {"action": "accept", "content": {"name": "Ada"}}
        await me.send(id=asked["id"], result=answer)
        assert await me.response_to(request) == {"stopReason": "end_turn"}
        assert json.loads(me.text(session))["response"]["result"] == answer
        assert len([m for m in me.messages if m.get("method") == "elicitation/create"]) == 1


async def test_cancel_is_not_lost(server: LocalServer, client: Client) -> None:
    async with editor(client) as me:
        session = await open_editor_session(me)
        request = await me.start_prompt(session, script({"say": "begun"}, {"hang": True}))
        await me.until_text("begun")
        await me.notify("session/cancel", sessionId=session)
        cut(server)
        assert await me.response_to(request) == {"stopReason": "cancelled"}


async def test_messages_of_other_clients_are_not_missed(
    server: LocalServer, client: Client
) -> None:
    async with editor(client) as me:
        session = await open_editor_session(me)
        cut(server)
        await client.turn(session, "from another client")
        await me.until_text("echo: from another client")
        await cut_and_wait(server)
        await client.turn(session, "and another")
        await me.until_text("echo: and another")
        assert me.text(session) == "echo: from another clientecho: and another"
        assert me.text(session, "user_message_chunk") == "from another clientand another"


async def test_replay_continues_after_a_lost_connection(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    texts = [f"turn {n} " + "x" * 200_000 for n in range(8)]
    for text in texts:
        await client.turn(session, text)
    async with editor(client) as me:
        await me.call("initialize", **INITIALIZE)
        params = {"sessionId": session, "cwd": "/", "mcpServers": []}
        request = await me.request("session/load", params)
        await me.until_text("turn 0")
        cut(server)
        await me.response_to(request)
        assert me.text(session) == "".join(f"echo: {text}" for text in texts)
        assert me.text(session, "user_message_chunk") == "".join(texts)


async def test_session_closed_meanwhile_fails_its_prompts(
    server: LocalServer, client: Client
) -> None:
    async with editor(client) as me:
        session = await open_editor_session(me)
        request = await me.start_prompt(session, script({"say": "begun"}, {"hang": True}))
        await me.until_text("begun")
        cut(server)
        await client.delete(f"/sessions/{session}")
        with contextlib.suppress(ResponseError):  # or the bridge was back before the close
            assert await me.response_to(request) == {"stopReason": "cancelled"}
        assert await code_of(me, "session/resume", of_session(session)) == -32002
        assert await me.new_session()  # the others are not affected


# Sessions that the user names.


async def test_named_session_is_replayed_and_continued(server: LocalServer, client: Client) -> None:
    session = await client.create("mock-modes")
    await client.turn(session, "before")
    async with editor(client, session=session) as me:
        await me.call("initialize", **INITIALIZE)
        made = await me.call("session/new", cwd="/", mcpServers=[])
        assert (made["sessionId"], made["modes"]["currentModeId"]) == (session, "ask")
        await me.until_text("echo: before")
        assert me.text(session, "user_message_chunk") == "before"
        cut(server)
        assert await me.prompt(session, "after") == {"stopReason": "end_turn"}
        assert me.text(session) == "echo: beforeecho: after"
        with pytest.raises(ResponseError):
            await me.new_session()


async def test_unknown_named_session_is_reported(client: Client) -> None:
    async with editor(client, session="none") as me:
        await me.call("initialize", **INITIALIZE)
        with pytest.raises(ResponseError) as failure:
            await me.new_session()
        assert failure.value.code == -32002


# Failures.


async def failed_start(client: Client, **options: float) -> tuple[int, ConnectError]:
    async with editor(client, **options) as me:  # type: ignore[arg-type]
        with pytest.raises(ConnectError) as failure:
            await me.bridge
    return failure.value.rpc_code, failure.value


async def test_wrong_token_or_address_ends_with_a_reason(
    server: LocalServer, client: Client
) -> None:
    code, error = await failed_start(Client(server.url, "cf_wrong", client.http))
    assert (code, error.status) == (-32000, ExitStatus.REFUSED)
    code, error = await failed_start(Client(NOWHERE, "cf_wrong", client.http), wait=0.05)
    assert (code, error.status) == (-32603, ExitStatus.UNREACHABLE)
    code, error = await failed_start(Client(f"{server.url}/nowhere", client.token, client.http))
    assert (code, error.status) == (-32603, ExitStatus.UNREACHABLE)


async def test_revoked_token_fails_the_pending_requests(server: LocalServer) -> None:
    client = await server.client("revoked")
    async with editor(client) as me:
        session = await open_editor_session(me)
        request = await me.start_prompt(session, script({"say": "begun"}, {"hang": True}))
        await me.until_text("begun")
        await server.admin().delete("/admin/tokens/revoked")
        with pytest.raises(ResponseError) as failure:
            await me.response_to(request)
        assert failure.value.code == -32000
        with pytest.raises(ConnectError) as ended:
            await me.bridge
        assert ended.value.status is ExitStatus.REFUSED


# The program.


async def test_program_reports_a_failure_to_its_editor(client: Client, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    cases: list[tuple[list[str], dict[str, str], int, int]] = [
        ([], {}, 2, -32000),
        (["--token-file", str(empty)], {}, 2, -32000),
        (["--url", "ftp://x"], {"CLAWDFORGE_TOKEN": "cf_wrong"}, 2, -32603),
        (["--url", client.url], {"CLAWDFORGE_TOKEN": "cf_wrong"}, 3, -32000),
        (["--url", NOWHERE, "--wait", "0"], {"CLAWDFORGE_TOKEN": "cf_wrong"}, 1, -32603),
    ]
    for argv, variables, status, code in cases:
        async with editor_process(*argv, **variables) as me:
            await me.ws.send_str(initialize_line())
            response = await me.next()
            assert response is not None
            assert response["error"]["code"] == code
            ended, err = await me.end()
            assert (ended, response["error"]["message"] in err) == (status, True)
            assert "Traceback" not in err


async def test_program_ends_with_its_editor(client: Client, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{client.token}\n")
    argv = ["--url", client.url, "--token-file", str(token), "--agent", "mock"]
    async with editor_process(*argv) as me:
        await me.call("initialize", **INITIALIZE)
        session = await me.new_session()
        assert await me.prompt(session, "hello") == {"stopReason": "end_turn"}
        await me.start_prompt(session, script({"say": "begun"}, {"hang": True}))
        await me.until_text("begun")
        cmdline = Path(f"/proc/{me.process.pid}/cmdline").read_text()
        assert str(client.token) not in cmdline
        assert await me.close_stdin() == (0, "")
    assert (await client.state(session))["state"] == "running"  # the turn is the session's
    async with editor_process(*argv) as me:
        await me.call("initialize", **INITIALIZE)
        me.process.terminate()
        assert await me.end() == (143, "")
    again = await connect(client)
    await again.call("session/close", sessionId=session)


async def test_last_line_before_the_end_of_stdin_is_sent(client: Client) -> None:
    argv = ["--url", client.url]
    async with editor_process(*argv, CLAWDFORGE_TOKEN=str(client.token)) as me:
        await me.call("initialize", **INITIALIZE)
        session = await me.new_session()
        prompt = {"sessionId": session, "prompt": [{"type": "text", "text": "the last"}]}
        message = {"jsonrpc": "2.0", "id": 9, "method": "session/prompt", "params": prompt}
        assert me.process.stdin is not None
        me.process.stdin.write(json.dumps(message).encode())  # without the end of the line
        assert (await me.close_stdin())[0] == 0

    async def has_run() -> bool:
        return bool((await client.state(session))["turn_count"] == 1)

    await eventually("the prompt to be accepted", has_run)
