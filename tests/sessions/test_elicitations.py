"""Questions of agents: forms and links that wait for a client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Serve
from ..support.harness import (
    Client,
    Json,
    LocalServer,
    Socket,
    failure,
    script,
)

CITY = {"type": "string", "title": "City", "minLength": 2}
FORM: Json = {
    "mode": "form",
    "message": "Where?",
    "requestedSchema": {
        "type": "object",
        "properties": {"city": CITY, "days": {"type": "integer", "minimum": 1}},
        "required": ["city"],
    },
}
LINK: Json = {
    "mode": "url",
    "message": "Please sign in",
    "url": "https://example.com/login?state=1",
    "elicitationId": "login-1",
}
CANCELLED = {"action": "cancel"}
ANSWER = {"action": "accept", "content": {"city": "Oslo", "days": 2}}


def elicit(*params: Json, **changes: Any) -> str:
    return script({"elicit": {**(params or (FORM,))[0], **changes}})


def nested(depth: int) -> Json:
    value: Json = {}
    for _ in range(depth):
        value = {"items": value}
    return value


def answer_told(socket: Socket, turn_index: int | None = None) -> Any:
    """The response that the mock agent reports."""
    return json.loads(socket.text(turn_index))["elicitation"]


async def asked(client: Client, prompt: str = "", **body: Any) -> tuple[str, Socket, Json]:
    """Return a session whose agent waits for an answer, a socket, and the question."""
    session = await client.create(**{"elicitation": "ask", **body})
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt=prompt or elicit())
    return session, socket, await socket.until("elicitation_request")


async def announced(socket: Socket) -> Any:
    """The capability that the server announced to the agent's process."""
    await socket.turn(script({"report": True}))
    report = json.loads(socket.text(socket.entries[-1]["turn_index"]))
    return report["initialize"]["clientCapabilities"].get("elicitation")


# Announcement


async def test_agent_gets_the_capability_for_forms_only_if_clients_are_asked(
    client: Client,
) -> None:
    told = []
    for body in ({}, {"elicitation": "off"}, {"elicitation": "ask"}):
        session = await client.create(**body)
        told.append(await announced(await client.connect(session)))
        assert (await client.state(session))["elicitation"] == body.get("elicitation", "off")
    assert told == [None, None, {"form": {}, "url": {}}]


async def test_agent_gets_the_capabilities_for_modes_that_clients_can_show(client: Client) -> None:
    session = await client.create(elicitation="ask", elicitation_modes=["form"])
    assert await announced(await client.connect(session)) == {"form": {}}


async def test_question_without_announcement_is_cancelled_without_an_entry(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    end = await socket.turn(elicit())
    assert (end["stop_reason"], answer_told(socket)) == ("end_turn", CANCELLED)
    assert not [entry for entry in socket.entries if entry["type"].startswith("elicitation")]


@pytest.mark.parametrize("body", [{"elicitation": "always"}, {"elicitation_modes": []}])
async def test_invalid_setting_is_a_bad_request(client: Client, body: Json) -> None:
    failure(await client.post("/sessions", {"agent": "mock", **body}), 400, "bad_request")


# Answers


async def test_waiting_question_is_in_log_ready_and_state(client: Client) -> None:
    session, socket, request = await asked(client)
    assert request["turn_index"] == 1
    assert {**FORM, "sessionId": request["request"]["sessionId"]} == request["request"]
    assert 299_000 < request["expires_at"] - request["ts"] <= 301_000

    waiting = {key: request[key] for key in ("request_id", "request", "expires_at", "turn_index")}
    assert (await client.state(session))["pending_elicitations"] == [waiting]
    late = await client.connect(session)
    assert late.frames[0]["pending_elicitations"] == [waiting]

    await late.send("elicitation", request_id=request["request_id"], **ANSWER)
    resolved = await socket.until("elicitation_resolved", request_id=request["request_id"])
    assert (resolved["by"], resolved["outcome"]) == ("client", ANSWER)
    end = await socket.until("turn_end")
    assert request["seq"] < resolved["seq"] < end["seq"]
    assert answer_told(socket) == ANSWER
    assert (await client.state(session))["pending_elicitations"] == []


@pytest.mark.parametrize("action", ["accept", "decline", "cancel"])
async def test_answer_over_rest_reaches_the_agent(client: Client, action: str) -> None:
    session, socket, request = await asked(client)
    answer = ANSWER if action == "accept" else {"action": action}
    path = f"/sessions/{session}/elicitations/{request['request_id']}"
    assert await client.post(path, answer) == (200, {"ok": True})
    await socket.until("turn_end", stop_reason="end_turn")
    assert answer_told(socket) == answer


async def test_link_is_accepted_without_content(client: Client) -> None:
    session, socket, request = await asked(client, elicit(LINK))
    path = f"/sessions/{session}/elicitations/{request['request_id']}"
    failure(await client.post(path, {"action": "accept", "content": {"a": 1}}), 400, "bad_request")
    assert await client.post(path, {"action": "accept"}) == (200, {"ok": True})
    resolved = await socket.until("elicitation_resolved")
    assert resolved["outcome"] == {"action": "accept"}
    await socket.until("turn_end")
    assert answer_told(socket) == {"action": "accept"}


async def test_completion_of_a_link_is_an_event(client: Client) -> None:
    params = {"elicitationId": "login-1"}
    notify = {"notify": {"method": "elicitation/complete", "params": params}}
    _, socket, request = await asked(client, script({"elicit": LINK}, notify))
    await socket.send("elicitation", request_id=request["request_id"], action="accept")
    await socket.until("turn_end")
    events = [entry["event"] for entry in socket.entries if entry["type"] == "event"]
    assert params in [event.get("params") for event in events]


async def test_content_that_does_not_match_names_the_field_and_the_question_waits(
    client: Client,
) -> None:
    session, socket, request = await asked(client)
    request_id = request["request_id"]
    path = f"/sessions/{session}/elicitations/{request_id}"
    for content, field in (
        ({}, "city"),
        (None, "city"),
        ({"city": "x"}, "city"),
        ({"city": "Oslo", "days": 0}, "days"),
        ({"city": "Oslo", "days": "two"}, "days"),
    ):
        answer = {"action": "accept", "content": content}
        await socket.send("elicitation", id="a1", request_id=request_id, **answer)
        error = await socket.until("error")
        assert (error["id"], error["code"], error["field"]) == ("a1", "bad_request", field)
        assert field in error["message"]
        status, reply = await client.post(path, answer)
        assert (status, reply["code"], reply["field"]) == (400, "bad_request", field)
    assert len((await client.state(session))["pending_elicitations"]) == 1
    assert await client.post(path, ANSWER) == (200, {"ok": True})


@pytest.mark.parametrize(
    "fields",
    [{}, {"action": "maybe"}, {"action": "decline", "content": {"city": "Oslo"}}],
    ids=["no action", "unknown action", "content of a refusal"],
)
async def test_malformed_answer_is_a_bad_request(client: Client, fields: Json) -> None:
    session, socket, request = await asked(client)
    await socket.send("elicitation", request_id=request["request_id"], **fields)
    assert (await socket.until("error"))["code"] == "bad_request"
    path = f"/sessions/{session}/elicitations/{request['request_id']}"
    failure(await client.post(path, fields), 400, "bad_request")


async def test_first_answer_counts_and_a_late_one_is_not_found(client: Client) -> None:
    session, socket, request = await asked(client)
    path = f"/sessions/{session}/elicitations/{request['request_id']}"
    answers = [{"action": "accept", "content": {"city": f"City {n}"}} for n in range(4)]
    replies = await asyncio.gather(*(client.post(path, answer) for answer in answers))
    assert sorted(status for status, _ in replies) == [200, 404, 404, 404]
    winner = next(one for one, (status, _) in zip(answers, replies, strict=True) if status == 200)
    await socket.until("turn_end")
    assert answer_told(socket) == winner
    await socket.send("elicitation", request_id=request["request_id"], action="decline")
    assert (await socket.until("error"))["code"] == "not_found"
    await socket.send("elicitation", request_id="never-asked", action="decline")
    assert (await socket.until("error"))["code"] == "not_found"


async def test_another_app_cannot_answer(client: Client, server: LocalServer) -> None:
    session, _, request = await asked(client)
    stranger = await server.client("stranger")
    own = await stranger.create(elicitation="ask")
    for target in (session, own):
        path = f"/sessions/{target}/elicitations/{request['request_id']}"
        failure(await stranger.post(path, ANSWER), 404, "not_found")
    assert len((await client.state(session))["pending_elicitations"]) == 1


async def test_several_questions_wait_and_are_answered_in_any_order(client: Client) -> None:
    forms = [{**FORM, "message": f"Question {n}"} for n in range(3)]
    session, socket, _ = await asked(client, script({"elicit": forms}))
    await socket.until("elicitation_request", request={**_of(socket), "message": "Question 2"})
    waiting = (await client.state(session))["pending_elicitations"]
    assert [one["request"]["message"] for one in waiting] == [one["message"] for one in forms]
    for index, one in reversed(list(enumerate(waiting))):
        content = {"city": f"City {index}"}
        request_id = one["request_id"]
        await socket.send("elicitation", request_id=request_id, action="accept", content=content)
    await socket.until("turn_end")
    told = json.loads(socket.text())["elicitations"]
    assert [one["content"]["city"] for one in told] == ["City 0", "City 1", "City 2"]


def _of(socket: Socket) -> Json:
    """The params of the newest question."""
    newest = [entry for entry in socket.entries if entry["type"] == "elicitation_request"][-1]
    return dict(newest["request"])


# Ends without an answer


async def test_unanswered_question_is_cancelled_after_the_timeout(serve: Serve) -> None:
    server = await serve(permission_timeout_secs=0.2)
    _, socket, request = await asked(await server.client())
    resolved = await socket.until("elicitation_resolved")
    assert (resolved["by"], resolved["outcome"]) == ("timeout", CANCELLED)
    assert resolved["ts"] >= request["expires_at"] - 10
    await socket.until("turn_end", stop_reason="end_turn")
    assert answer_told(socket) == CANCELLED


async def test_ask_timeout_of_the_session_replaces_the_setting(client: Client) -> None:
    _, _, request = await asked(client, ask_timeout_secs=10)
    assert 9_000 < request["expires_at"] - request["ts"] <= 11_000


@pytest.mark.parametrize("end", ["cancel", "agent killed", "close"])
async def test_end_of_the_turn_cancels_the_question_before_its_entry(
    client: Client, end: str
) -> None:
    session, socket, request = await asked(client, script({"report": True}, {"elicit": FORM}))
    if end == "cancel":
        await socket.send("cancel")
    elif end == "close":
        await client.delete(f"/sessions/{session}")
    else:
        os.kill(json.loads(socket.text())["pid"], signal.SIGKILL)
    resolved = await socket.until("elicitation_resolved", request_id=request["request_id"])
    assert (resolved["by"], resolved["outcome"]) == ("cancel", CANCELLED)
    turn_end = await socket.until("turn_end")
    assert resolved["seq"] < turn_end["seq"]
    assert turn_end["stop_reason"] == ("error" if end == "agent killed" else "cancelled")


async def test_question_that_the_agent_withdraws_is_cancelled(client: Client) -> None:
    _, socket, request = await asked(client, elicit(withdraw=True))
    resolved = await socket.until("elicitation_resolved", request_id=request["request_id"])
    assert (resolved["by"], resolved["outcome"]) == ("cancel", CANCELLED)
    await socket.until("turn_end", stop_reason="end_turn")


@pytest.mark.parametrize(
    "params",
    [
        {"mode": "form", "message": "no schema"},
        {"mode": "form", "requestedSchema": {"type": "array"}},
        {"mode": "form", "requestedSchema": {"properties": {"a": 1}}},
        {"mode": "url", "message": "no url"},
        {"mode": "_hologram", "message": "unknown"},
        {"mode": "form", "message": "x" * 300_000, "requestedSchema": {}},
        {"mode": "form", "requestedSchema": {"properties": {"a": nested(220)}}},
    ],
    ids=["no schema", "no object", "no property", "no url", "unknown mode", "too large", "deep"],
)
async def test_question_that_clients_cannot_answer_is_cancelled(
    client: Client, params: Json
) -> None:
    _, socket, request = await asked(client, script({"elicit": params}))
    resolved = await socket.until("elicitation_resolved", request_id=request["request_id"])
    assert (resolved["by"], resolved["outcome"]) == ("cancel", CANCELLED)
    await socket.until("turn_end", stop_reason="end_turn")
    assert answer_told(socket) == CANCELLED


async def test_very_deep_question_leaves_the_session_usable(client: Client) -> None:
    session = await client.create(elicitation="ask")
    socket = await client.connect(session)
    deep = json.dumps({"mode": "form", "requestedSchema": {"properties": {"a": 0}}})
    inner = '{"items":' * 900 + "{}" + "}" * 900
    line = {"jsonrpc": "2.0", "id": "deep", "method": "elicitation/create", "params": 0}
    raw = json.dumps(line).replace('"params": 0', '"params": ' + deep.replace("0", inner))
    await socket.turn(script({"raw": raw}, {"say": "still here"}))
    assert socket.text() == "still here"
    assert (await client.state(session))["pending_elicitations"] == []
    assert await client.events(session)


async def test_question_with_half_an_emoji_is_answered(client: Client) -> None:
    session, socket, request = await asked(client, elicit(message="half \ud83d"))
    assert (await client.state(session))["pending_elicitations"]
    await socket.send("elicitation", request_id=request["request_id"], **ANSWER)
    await socket.until("turn_end", stop_reason="end_turn")


async def test_limit_on_waiting_questions(serve: Serve) -> None:
    server = await serve(max_pending_elicitations=2)
    client = await server.client()
    session, socket, _ = await asked(client, script({"elicit": [FORM] * 3}))
    resolved = await socket.until("elicitation_resolved")
    assert (resolved["by"], resolved["outcome"]) == ("cancel", CANCELLED)
    waiting = (await client.state(session))["pending_elicitations"]
    assert len(waiting) == 2
    for one in waiting:
        await socket.send("elicitation", request_id=one["request_id"], **ANSWER)
    await socket.until("turn_end")


# Changes of the setting


async def test_change_takes_effect_with_the_next_prompt_and_the_context_is_kept(
    client: Client,
) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.turn("remember this")
    for setting, expected in (("ask", {"form": {}, "url": {}}), ("off", None)):
        path = f"/sessions/{session}"
        status, state = await client.call("PATCH", path, {"elicitation": setting})
        assert (status, state["elicitation"]) == (200, setting)
        assert await announced(socket) == expected
    assert socket.contexts() == ["new", "kept", "kept"]
    await socket.turn(script({"history": True}))
    assert "remember this" in socket.text()
    assert (await client.state(session))["turn_count"] == 4


async def test_change_during_a_turn_does_not_affect_its_questions(client: Client) -> None:
    session, socket, request = await asked(client)
    await client.call("PATCH", f"/sessions/{session}", {"elicitation": "off"})
    await socket.send("elicitation", request_id=request["request_id"], **ANSWER)
    await socket.until("turn_end")
    assert answer_told(socket) == ANSWER
    await socket.turn(elicit())
    assert answer_told(socket, 2) == CANCELLED


async def test_agent_that_cannot_load_its_conversation_refuses_the_change(client: Client) -> None:
    session = await client.create("mock-no-load")
    await client.turn(session, "hi")
    reply = await client.call("PATCH", f"/sessions/{session}", {"elicitation": "ask"})
    failure(reply, 400, "not_supported")
    assert (await client.state(session))["elicitation"] == "off"


async def test_setting_survives_hibernation(serve: Serve) -> None:
    server = await serve(agent_idle_secs=0.05, sweep_interval_secs=0.05)
    client = await server.client()
    session = await client.create(elicitation="ask")
    socket = await client.connect(session)
    assert await announced(socket)
    await client.until_hibernated(session)
    assert await announced(socket)


async def test_change_applies_to_a_prompt_that_is_queued_already(
    client: Client,
) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"say": "begun"}, {"gate": "go"}))
    await socket.until_text("begun")
    await socket.send("prompt", prompt=script({"report": True}))
    await client.call("PATCH", f"/sessions/{session}", {"elicitation": "ask"})
    cwd = Path((await client.state(session))["cwd"])
    (cwd / "go").touch()
    await socket.until("turn_end", turn_index=2)
    report = json.loads(socket.text(2))
    assert report["initialize"]["clientCapabilities"]["elicitation"] == {"form": {}, "url": {}}
    assert socket.contexts() == ["new", "kept"]


async def test_prompt_can_be_cancelled_while_the_agent_is_started_again(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.turn("hello")
    await client.call("PATCH", f"/sessions/{session}", {"elicitation": "ask"})
    await socket.send("prompt", prompt="never mind")
    await socket.until("accepted")
    await socket.send("cancel")
    end = await socket.until("turn_end", turn_index=2)
    assert end["stop_reason"] == "cancelled"
    assert await announced(socket) == {"form": {}, "url": {}}


async def test_cli_backend_does_not_support_questions(serve: Serve) -> None:
    server = await serve(agent_backend="cli")
    client = await server.client()
    body = {"agent": "mock", "elicitation": "ask"}
    failure(await client.post("/sessions", body), 400, "not_supported")
    session = await client.create()
    reply = await client.call("PATCH", f"/sessions/{session}", {"elicitation": "ask"})
    failure(reply, 400, "not_supported")
