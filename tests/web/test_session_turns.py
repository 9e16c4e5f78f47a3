"""Turns over REST: their results, content, failures, cancels and permissions."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ..conftest import Serve, Spawn
from ..support.harness import (
    MOCKS,
    Client,
    Json,
    eventually,
    failure,
    mock_agent,
    new_client,
    script,
    texts_of,
)
from .rest_turns import post_large, release, run_held, turn_with_key, wait_head, wait_running


@pytest.mark.parametrize(
    ("permission", "kind", "chosen"),
    [
        ("approve-all", "edit", "allow_once"),
        ("approve-reads", "read", "allow_once"),
        ("approve-reads", "edit", "reject_once"),
        ("deny-all", "read", "reject_once"),
    ],
)
async def test_permission_policy_answers_agent(
    client: Client, permission: str, kind: str, chosen: str
) -> None:
    session = await client.create(permission=permission)
    _, reply = await client.turn(session, script({"permission": {"kind": kind}}))
    outcome = {"outcome": "selected", "optionId": chosen}
    assert json.loads(texts_of(reply["events"])) == {"permission": outcome}
    resolved = await wait_head(client, session, "permission_resolved")
    assert (resolved["outcome"], resolved["by"]) == (outcome, "policy")


async def test_turn_returns_its_raw_events(client: Client) -> None:
    session = await client.create()
    status, reply = await client.turn(session, script({"say": "one "}, {"say": "two"}))
    assert status == 200
    assert reply["ok"] is True
    assert reply["session_id"] == session
    assert reply["turn_index"] == 1
    assert reply["stop_reason"] == "end_turn"
    assert isinstance(reply["duration_ms"], int)
    *updates, answer = reply["events"]
    assert {update["method"] for update in updates} == {"session/update"}
    assert texts_of(updates) == "one two"
    assert answer["jsonrpc"] == "2.0"
    assert answer["result"] == {"stopReason": "end_turn"}


async def test_state_shows_running_turn(client: Client) -> None:
    session = await client.create()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_held(client, session))
        await wait_running(client, session)
        group.create_task(client.turn(session, "next", timeout_secs=5))

        async def queued() -> Any:
            return (await client.state(session))["queued"]

        (waiting,) = await eventually("the second prompt to queue", queued)
        assert waiting["turn_index"] == 2
        assert waiting["prompt"] == [{"type": "text", "text": "next"}]
        assert (await client.state(session))["turn_index"] == 1
        await release(client, session)


async def test_turns_of_session_run_in_order(client: Client) -> None:
    session = await client.create()
    async with asyncio.TaskGroup() as group:
        turns = [group.create_task(run_held(client, session, {"say": "0"}))]
        await wait_running(client, session)
        for number in (1, 2, 3):
            turns.append(group.create_task(client.turn(session, script({"say": str(number)}))))

            async def queued(count: int = number) -> bool:
                return len((await client.state(session))["queued"]) == count

            await eventually("the prompt to queue", queued)
        await release(client, session)
    replies = [turn.result()[1] for turn in turns]
    assert [reply["turn_index"] for reply in replies] == [1, 2, 3, 4]
    assert [texts_of(reply["events"]) for reply in replies] == ["0", "1", "2", "3"]


async def test_prompt_over_queue_limit_is_refused_and_others_continue(serve: Serve) -> None:
    client = await (await serve(max_queued_turns=1)).client()
    session = await client.create()
    async with asyncio.TaskGroup() as group:
        group.create_task(run_held(client, session))
        await wait_running(client, session)
        second = group.create_task(client.turn(session, "second"))

        async def queued() -> Any:
            return (await client.state(session))["queued"]

        await eventually("the second prompt to queue", queued)
        failure(await client.turn(session, "third"), 429, "queue_full")
        await release(client, session)
    assert second.result()[1]["stop_reason"] == "end_turn"


async def test_stop_reason_of_agent_is_returned(client: Client) -> None:
    session = await client.create()
    for reason in ("max_tokens", "max_turn_requests", "refusal"):
        status, reply = await client.turn(session, script({"stop": reason}))
        assert (status, reply["stop_reason"]) == (200, reason)


async def test_unknown_updates_and_extensions_are_returned(client: Client) -> None:
    session = await client.create()
    update = {"sessionUpdate": "from_the_future", "field": [1, {"deep": "ü"}], "big": 1e300}
    extension = {"method": "_vendor/thing", "params": {"x": 1}}
    _, reply = await client.turn(session, script({"update": update}, {"notify": extension}))
    first, second, _ = reply["events"]
    assert first["params"]["update"] == update
    assert (second["method"], second["params"]) == ("_vendor/thing", {"x": 1})


async def test_garbage_from_agent_is_skipped(client: Client) -> None:
    session = await client.create()
    status, reply = await client.turn(
        session,
        script(
            {"say": "before "},
            {"raw": "this is no JSON"},
            {"raw": ""},
            {"raw": "[1, 2]"},
            {"raw": '"text"'},
            {"raw": '{"half": '},
            {"raw": {"base64": "/////w=="}},
            {"bad_utf8": True},
            {"say": "after"},
        ),
    )
    assert (status, reply["stop_reason"]) == (200, "end_turn")
    assert texts_of(reply["events"]) == "before after"
    events = [e["event"] for e in await client.events(session) if e["type"] == "event"]
    assert all(event["jsonrpc"] == "2.0" for event in events)


# Prompts as content blocks.

BLOCKS: list[Json] = [
    {"type": "text", "text": "look", "annotations": {"audience": ["user"]}, "_meta": {"a": [1]}},
    {"type": "image", "data": "aGVsbG8=", "mimeType": "image/png", "uri": "file:///x.png"},
    {"type": "audio", "data": "aGVsbG8=", "mimeType": "audio/wav", "_meta": {"b": None}},
    {"type": "resource", "resource": {"uri": "file:///a", "text": "A", "mimeType": "text/plain"}},
    {"type": "resource", "resource": {"uri": "file:///b", "blob": "QQ==", "_meta": {"c": 1}}},
    {"type": "resource_link", "uri": "file:///c", "name": "c", "size": 3, "description": "ü"},
]


async def test_content_blocks_reach_agent_verbatim(serve: Serve, tmp_path: Path) -> None:
    record = tmp_path / "stdin.jsonl"
    mock = mock_agent()
    shell = ("/bin/sh", "-c", 'tee "$RECORD" | "$@"', "sh", *mock.argv)
    recorded = {"recorded": type(mock)(shell, {"RECORD": str(record)})}
    client = await (await serve(agents={**MOCKS, **recorded})).client()
    session = await client.create("recorded")
    status, _ = await client.turn(session, BLOCKS)
    assert status == 200
    messages = [json.loads(line) for line in record.read_bytes().splitlines()]
    (prompt,) = [m for m in messages if m.get("method") == "session/prompt"]
    assert prompt["params"]["prompt"] == BLOCKS
    assert (await wait_head(client, session, "turn_start"))["prompt"] == BLOCKS


async def test_each_kind_of_content_block_is_accepted(client: Client) -> None:
    session = await client.create()
    for block in BLOCKS:
        status, reply = await client.turn(session, [block])
        said = "look" if block["type"] == "text" else f"[{block['type']}]"
        assert (status, texts_of(reply["events"])) == (200, f"echo: {said}")


async def test_invalid_content_blocks_are_refused(client: Client) -> None:
    session = await client.create()
    link = {"type": "resource_link", "uri": "file:///c", "name": "c"}
    bad: Any
    for bad in (
        "",
        [],
        [{"type": "text", "text": ""}],
        ["text"],
        [None],
        [[]],
        [{}],
        [{"text": "no type"}],
        [{"type": 1, "text": "x"}],
        [{"type": "video", "data": "aGVsbG8="}],
        [{"type": "text"}],
        [{"type": "text", "text": 1}],
        [{"type": "image", "mimeType": "image/png"}],
        [{"type": "image", "data": "aGVsbG8="}],
        [{"type": "image", "data": "aGVsbG8=", "mimeType": "text/plain"}],
        [{"type": "image", "data": "not base64!", "mimeType": "image/png"}],
        [{"type": "image", "data": "", "mimeType": "image/png"}],
        [{"type": "audio", "data": "aGVsbG8=", "mimeType": "image/png"}],
        [{"type": "resource"}],
        [{"type": "resource", "resource": {"text": "no uri"}}],
        [{"type": "resource", "resource": {"uri": "file:///a"}}],
        [{"type": "resource", "resource": {"uri": "file:///a", "text": "A", "blob": "QQ=="}}],
        [{"type": "resource_link", "uri": "file:///c"}],
        [{"type": "resource_link", "name": "c"}],
        [link, {**link, "uri": None}],
    ):
        assert "prompt" in failure(await client.turn(session, bad), 400, "bad_request"), bad
    assert (await client.state(session))["turn_count"] == 0


async def test_prompt_of_several_megabytes_reaches_agent(client: Client) -> None:
    session = await client.create()
    picture = base64.b64encode(os.urandom(3 << 20)).decode()
    image = {"type": "image", "data": picture, "mimeType": "image/png"}
    status, reply = await post_large(client, f"/sessions/{session}/turn", {"prompt": [image]})
    assert (status, texts_of(reply["events"])) == (200, "echo: [image]")


async def test_too_large_body_is_refused(client: Client) -> None:
    session = await client.create()
    answer = await post_large(client, f"/sessions/{session}/turn", {"prompt": "x" * (16 << 20)})
    failure(answer, 413, "payload_too_large")
    assert (await client.state(session))["turn_count"] == 0


async def test_timeout_secs_is_checked(client: Client) -> None:
    session = await client.create()
    for bad in (0, -1, "5", 86401, [1]):
        answer = await client.turn(session, "x", timeout_secs=bad)
        assert "timeout_secs" in failure(answer, 400, "bad_request")


# Turns that fail.


def failed_turn(
    session: str, answer: tuple[int, Json], status: int, code: str, *, turn_index: int = 1
) -> Json:
    failure(answer, status, code)
    reply = answer[1]
    assert reply["session_id"] == session
    assert reply["turn_index"] == turn_index
    assert reply["stop_reason"] == "error"
    assert isinstance(reply["duration_ms"], int)
    assert isinstance(reply["events"], list)
    return reply


async def test_agent_crash_fails_turn_and_keeps_its_events(client: Client) -> None:
    session = await client.create()
    answer = await client.turn(session, script({"say": "half"}, {"crash": "SIGKILL"}))
    reply = failed_turn(session, answer, 502, "agent_failed")
    assert texts_of(reply["events"]) == "half"
    assert reply["retryable"] is True


async def test_turn_after_crash_has_context(client: Client) -> None:
    session = await client.create()
    await client.turn(session, "remember this")
    await client.turn(session, script({"exit": 1}))
    status, reply = await client.turn(session, script({"history": True}))
    assert status == 200
    assert json.loads(texts_of(reply["events"]))[0] == "remember this"


async def test_agent_error_fails_turn_with_its_message(
    client: Client,
) -> None:
    session = await client.create()
    error = {"code": -32603, "message": "out of cheese", "data": {"secret": "x"}}
    answer = await client.turn(session, script({"say": "half"}, {"error": error}))
    reply = failed_turn(session, answer, 502, "agent_failed")
    assert reply["error"] == "out of cheese"
    assert reply["events"][-1]["error"] == error
    assert (await client.state(session))["state"] == "idle"


async def test_agent_that_does_not_start_fails_first_turn(client: Client) -> None:
    session = await client.create("mock-dies")
    answer = await client.turn(session, "hello")
    failed_turn(session, answer, 502, answer[1]["code"])
    assert answer[1]["code"] in ("agent_failed", "agent_unavailable")
    assert answer[1]["events"] == []


async def test_turn_over_its_timeout_is_cancelled_and_fails(client: Client) -> None:
    session = await client.create()
    await client.turn(session, "start the agent")
    prompt = script({"say": "half"}, {"wait_for": "cancel"}, {"say": " and cancelled"})
    answer = await client.turn(session, prompt, timeout_secs=2)
    reply = failed_turn(session, answer, 504, "agent_timeout", turn_index=2)
    assert texts_of(reply["events"]) == "half and cancelled"
    assert (await client.turn(session, "next"))[0] == 200


async def test_timeout_secs_cannot_exceed_limit_of_server(serve: Serve) -> None:
    client = await (await serve(turn_timeout_secs=0.5)).client()
    session = await client.create()
    answer = await client.turn(session, script({"hang": True}), timeout_secs=600)
    failed_turn(session, answer, 504, "agent_timeout")


async def test_unpaired_surrogate_in_agent_error_is_kept(client: Client) -> None:
    session = await client.create()
    error = r'"error":{"code":-32603,"message":"cut \ud83d"}'
    answers = [{"raw": f'{{"jsonrpc":"2.0","id":{number},{error}}}'} for number in range(5)]
    prompt = script(*answers, {"hang": True})  # one of them is the prompt's
    first = await turn_with_key(client, session, prompt, "k")
    assert failure(first, 502, "agent_failed") == "cut \ud83d"
    status, again = await turn_with_key(client, session, prompt, "k")
    # Each request has an id of its own.
    assert (status, again | {"request_id": None}) == (502, first[1] | {"request_id": None})


# Cancel.


async def test_cancel_ends_running_turn_as_cancelled(client: Client) -> None:
    session = await client.create()
    async with asyncio.TaskGroup() as group:
        turn = group.create_task(client.turn(session, script({"say": "half"}, {"hang": True})))
        await wait_head(client, session, "event")
        answer = await client.post(f"/sessions/{session}/cancel")
        assert answer == (200, {"ok": True, "cancelled": True})
    status, reply = turn.result()
    assert (status, reply["ok"], reply["stop_reason"]) == (200, True, "cancelled")
    assert (await client.state(session))["state"] == "idle"


async def test_cancel_without_turn_reports_false(client: Client) -> None:
    session = await client.create()
    answer = await client.post(f"/sessions/{session}/cancel")
    assert answer == (200, {"ok": True, "cancelled": False})


async def test_agent_that_ignores_cancel_is_killed_and_session_stays_open(
    serve: Serve,
) -> None:
    client = await (await serve(cancel_grace_secs=0.2)).client()
    session = await client.create()
    prompt = script({"ignore_cancel": True}, {"say": "deaf"}, {"hang": True})
    async with asyncio.TaskGroup() as group:
        turn = group.create_task(client.turn(session, prompt))
        await wait_head(client, session, "event")
        await client.post(f"/sessions/{session}/cancel")
    assert turn.result()[1]["stop_reason"] == "cancelled"
    assert (await client.turn(session, "next"))[0] == 200


# Permissions that ask.


async def test_pending_permission_is_resolved_over_rest(client: Client) -> None:
    session = await client.create(permission="ask")
    async with asyncio.TaskGroup() as group:
        turn = group.create_task(client.turn(session, script({"permission": True})))
        request = await wait_head(client, session, "permission_request")
        (pending,) = (await client.state(session))["pending_permissions"]
        assert pending["request_id"] == request["request_id"]
        assert pending["request"] == request["request"]
        path = f"/sessions/{session}/permissions/{request['request_id']}"
        for bad in ({}, {"option_id": "nope"}, {"option_id": 1}, {"outcome": "selected"}):
            failure(await client.post(path, bad), 400, "bad_request")
        both = {"option_id": "allow_once", "outcome": "cancelled"}
        failure(await client.post(path, both), 400, "bad_request")
        assert await client.post(path, {"option_id": "allow_always"}) == (200, {"ok": True})
        failure(await client.post(path, {"option_id": "allow_once"}), 404, "not_found")
    outcome = {"outcome": "selected", "optionId": "allow_always"}
    assert json.loads(texts_of(turn.result()[1]["events"])) == {"permission": outcome}
    resolved = await wait_head(client, session, "permission_resolved")
    assert (resolved["outcome"], resolved["by"]) == (outcome, "client")


@pytest.mark.slow
async def test_unpaired_surrogate_in_permission_request_does_not_prevent_restart(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn()
    client = await new_client(server.url, http)
    session = await client.create(permission="ask")
    socket = await client.connect(session)
    line = (
        r'{"jsonrpc":"2.0","id":7,"method":"session/request_permission","params":{"sessionId":"x",'
        r'"toolCall":{"toolCallId":"1","title":"half \ud83d","kind":"edit"},"options":[]}}'
    )
    await socket.send("prompt", prompt=script({"raw": line}, {"hang": True}))
    request = await socket.until("permission_request")
    await server.kill()

    client = Client((await spawn()).url, client.token, http)
    *_, resolved, end = await client.events(session)
    assert (resolved["request_id"], resolved["by"]) == (request["request_id"], "cancel")
    assert end["error"]["code"] == "server_restarted"
