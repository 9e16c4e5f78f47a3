"""Permission requests: the policies, and requests that wait for a client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

import pytest

from ..conftest import Serve
from ..support.harness import Client, Json, LocalServer, Socket, script, texts_of

ASK = script({"permission": True})


def events_of_kind(socket: Socket, kind: str) -> list[Json]:
    return [entry for entry in socket.entries if entry["type"] == kind]


def outcome_told(socket: Socket, turn_index: int | None = None) -> Any:
    """The outcome that the mock agent reports."""
    return json.loads(socket.text(turn_index))["permission"]


async def asked(client: Client, prompt: str = ASK) -> tuple[str, Socket, Json]:
    """Return a session whose agent waits for a permission, a socket, and the request."""
    session = await client.create(permission="ask")
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt=prompt)
    return session, socket, await socket.until("permission_request")


def selected(option: str) -> Json:
    return {"outcome": "selected", "optionId": option}


# Policies


@pytest.mark.parametrize(
    ("policy", "kind", "option"),
    [
        ("approve-all", "edit", "allow_once"),
        ("approve-reads", "read", "allow_once"),
        ("approve-reads", "search", "allow_once"),
        ("approve-reads", "edit", "reject_once"),
        ("approve-reads", None, "reject_once"),
        ("deny-all", "read", "reject_once"),
    ],
)
async def test_policy_resolves_at_once(
    client: Client, policy: str, kind: str | None, option: str
) -> None:
    session = await client.create(permission=policy)
    socket = await client.connect(session)
    end = await socket.turn(script({"permission": {"kind": kind}}))
    assert end["stop_reason"] == "end_turn"
    assert outcome_told(socket) == selected(option)

    (request,) = events_of_kind(socket, "permission_request")
    (resolved,) = events_of_kind(socket, "permission_resolved")
    assert (resolved["by"], resolved["outcome"]) == ("policy", selected(option))
    assert resolved["request_id"] == request["request_id"]
    assert request["seq"] < resolved["seq"] < end["seq"]
    assert request["turn_index"] == resolved["turn_index"] == 1


async def test_approve_all_is_the_default(client: Client) -> None:
    assert (await client.state(await client.create()))["permission"] == "approve-all"


async def test_policy_selects_an_offered_option_or_cancels(
    client: Client,
) -> None:
    session = await client.create(permission="deny-all")

    async def answer(*kinds: str) -> Any:
        options = [{"optionId": f"my-{kind}", "name": kind, "kind": kind} for kind in kinds]
        _, reply = await client.turn(session, script({"permission": {"options": options}}))
        return json.loads(texts_of(reply["events"]))["permission"], reply["stop_reason"]

    assert await answer("allow_once", "reject_always") == (
        selected("my-reject_always"),
        "end_turn",
    )
    assert await answer("allow_once") == ({"outcome": "cancelled"}, "cancelled")
    assert await answer() == ({"outcome": "cancelled"}, "cancelled")


async def test_malformed_request_is_resolved(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    for params in ({"options": 7}, {"options": [None, {"kind": "allow_once"}], "toolCall": []}):
        call = {"method": "session/request_permission", "params": params}
        await socket.turn(script({"request": call}))
    answers = [json.loads(socket.text(n))["response"]["result"]["outcome"] for n in (1, 2)]
    assert answers == [{"outcome": "cancelled"}] * 2


# Ask


async def test_waiting_request_is_in_log_ready_and_state(client: Client) -> None:
    session, socket, request = await asked(client)
    assert request["turn_index"] == 1
    assert request["request"]["toolCall"]["kind"] == "edit"
    assert request["request"]["options"][0]["optionId"] == "allow_once"
    assert 299_000 < request["expires_at"] - request["ts"] <= 301_000

    waiting = {key: request[key] for key in ("request_id", "request", "expires_at", "turn_index")}
    assert (await client.state(session))["pending_permissions"] == [waiting]
    late = await client.connect(session)
    assert late.frames[0]["pending_permissions"] == [waiting]

    await late.send("permission", request_id=request["request_id"], option_id="allow_once")
    await socket.until("turn_end")
    assert (await client.state(session))["pending_permissions"] == []


@pytest.mark.parametrize("way", ["the same socket", "another socket", "rest"])
async def test_any_client_of_the_app_can_resolve(client: Client, way: str) -> None:
    session, socket, request = await asked(client)
    request_id = request["request_id"]
    if way == "rest":
        path = f"/sessions/{session}/permissions/{request_id}"
        assert await client.post(path, {"option_id": "reject_once"}) == (200, {"ok": True})
    else:
        answering = socket if way == "the same socket" else await client.connect(session)
        await answering.send("permission", request_id=request_id, option_id="reject_once")
    resolved = await socket.until("permission_resolved", request_id=request_id)
    assert (resolved["by"], resolved["outcome"]) == ("client", selected("reject_once"))
    await socket.until("turn_end", stop_reason="end_turn")
    assert outcome_told(socket) == selected("reject_once")


async def test_client_can_resolve_as_cancelled(client: Client) -> None:
    _, socket, request = await asked(client)
    await socket.send("permission", request_id=request["request_id"], outcome="cancelled")
    resolved = await socket.until("permission_resolved")
    assert (resolved["by"], resolved["outcome"]) == ("client", {"outcome": "cancelled"})
    await socket.until("turn_end", stop_reason="cancelled")  # as the mock agent reports it
    assert outcome_told(socket) == {"outcome": "cancelled"}


async def test_late_or_second_resolution_is_not_found(client: Client) -> None:
    session, socket, request = await asked(client)
    request_id = request["request_id"]
    for _ in range(2):
        await socket.send("permission", request_id=request_id, option_id="allow_once")
    assert (await socket.until("error"))["code"] == "not_found"
    await socket.send("permission", request_id="never-asked", option_id="allow_once")
    assert (await socket.until("error"))["code"] == "not_found"
    path = f"/sessions/{session}/permissions/{request_id}"
    status, reply = await client.post(path, {"option_id": "allow_once"})
    assert (status, reply["code"]) == (404, "not_found")


async def test_two_clients_at_once_make_one_resolution(client: Client) -> None:
    session, socket, request = await asked(client)
    path = f"/sessions/{session}/permissions/{request['request_id']}"
    options = ("allow_once", "reject_once", "allow_always", "reject_always")
    replies = await asyncio.gather(*(client.post(path, {"option_id": one}) for one in options))
    assert sorted(status for status, _ in replies) == [200, 404, 404, 404]
    winner = next(one for one, (status, _) in zip(options, replies, strict=True) if status == 200)

    await socket.until("turn_end")
    assert [e["outcome"] for e in events_of_kind(socket, "permission_resolved")] == [
        selected(winner)
    ]
    assert outcome_told(socket) == selected(winner)


async def test_another_app_cannot_resolve(client: Client, server: LocalServer) -> None:
    session, _, request = await asked(client)
    stranger = await server.client("stranger")
    path = f"/sessions/{session}/permissions/{request['request_id']}"
    status, reply = await stranger.post(path, {"option_id": "allow_once"})
    assert (status, reply["code"]) == (404, "not_found")

    # Nor with the request's id in a session of its own.
    own = await stranger.create(permission="ask")
    path = f"/sessions/{own}/permissions/{request['request_id']}"
    assert (await stranger.post(path, {"option_id": "allow_once"}))[0] == 404
    assert len((await client.state(session))["pending_permissions"]) == 1


async def test_option_that_was_not_offered_is_a_bad_request_and_changes_nothing(
    client: Client,
) -> None:
    session, socket, request = await asked(client)
    request_id = request["request_id"]
    bad: tuple[Json, ...] = (
        {"option_id": "made_up"},
        {"outcome": "selected"},
        {"option_id": "allow_once", "outcome": "cancelled"},
        {},
    )
    for fields in bad:
        await socket.send("permission", request_id=request_id, **fields)
        assert (await socket.until("error"))["code"] == "bad_request", fields
        status, reply = await client.post(f"/sessions/{session}/permissions/{request_id}", fields)
        assert (status, reply["code"]) == (400, "bad_request"), fields
    assert len((await client.state(session))["pending_permissions"]) == 1


async def test_unresolved_request_is_rejected_after_the_timeout(serve: Serve) -> None:
    server = await serve(permission_timeout_secs=0.2)
    client = await server.client()
    _, socket, request = await asked(client)
    resolved = await socket.until("permission_resolved")
    assert (resolved["by"], resolved["outcome"]) == ("timeout", selected("reject_once"))
    assert resolved["ts"] >= request["expires_at"] - 10
    await socket.until("turn_end", stop_reason="end_turn")
    assert outcome_told(socket) == selected("reject_once")


async def test_cancel_resolves_waiting_and_later_requests_of_the_turn(client: Client) -> None:
    session, socket, _ = await asked(client)
    await socket.send("cancel")
    resolved = await socket.until("permission_resolved")
    assert (resolved["by"], resolved["outcome"]) == ("cancel", {"outcome": "cancelled"})
    await socket.until("turn_end", stop_reason="cancelled")

    # A request after the cancel is cancelled too.
    prompt = script({"say": "wait"}, {"wait_for": "cancel"}, {"permission": True})
    await socket.send("prompt", prompt=prompt)
    await socket.until_text("wait")
    await socket.send("cancel")
    resolved = await socket.until("permission_resolved")
    assert (resolved["by"], resolved["turn_index"]) == ("cancel", 2)
    await socket.until("turn_end", stop_reason="cancelled")
    assert (await client.state(session))["pending_permissions"] == []


@pytest.mark.parametrize("fate", ["agent killed", "session closed"])
async def test_request_of_an_agent_that_ended_is_cancelled(client: Client, fate: str) -> None:
    session, socket, request = await asked(client, script({"report": True}, {"permission": True}))
    if fate == "agent killed":
        os.kill(json.loads(socket.text())["pid"], signal.SIGKILL)
    else:
        await client.delete(f"/sessions/{session}")
    resolved = await socket.until("permission_resolved", request_id=request["request_id"])
    assert (resolved["by"], resolved["outcome"]) == ("cancel", {"outcome": "cancelled"})
    end = await socket.until("turn_end")
    assert end["stop_reason"] == ("error" if fate == "agent killed" else "cancelled")
    assert (await client.state(session))["pending_permissions"] == []


async def test_several_waiting_requests_are_resolved_in_any_order(
    client: Client,
) -> None:
    asks = [{"title": title} for title in ("one", "two", "three")]
    session, socket, first = await asked(client, script({"permission": asks}))
    requests = [first, *[await socket.until("permission_request") for _ in range(2)]]
    assert len((await client.state(session))["pending_permissions"]) == 3
    answers = dict(
        zip(("one", "two", "three"), ("allow_once", "reject_once", "allow_always"), strict=True)
    )
    for request in reversed(requests):
        title = request["request"]["toolCall"]["title"]
        fields = {"request_id": request["request_id"], "option_id": answers[title]}
        await socket.send("permission", **fields)
        await socket.until("permission_resolved", request_id=request["request_id"])
    await socket.until("turn_end", stop_reason="end_turn")
    outcomes = json.loads(socket.text())["permissions"]
    assert outcomes == [selected(answers[a["title"]]) for a in asks]


async def test_waiting_request_does_not_delay_other_sessions(client: Client) -> None:
    session, _, _ = await asked(client)
    others = [await client.create() for _ in range(3)]
    replies = await asyncio.gather(*(client.turn(other, "quick") for other in others))
    assert [status for status, _ in replies] == [200, 200, 200]
    assert len((await client.state(session))["pending_permissions"]) == 1


async def test_acpx_does_not_resolve_for_the_client(client: Client) -> None:
    _, socket, request = await asked(client)
    # acpx is set to deny everything. It would have responded before this turn.
    assert (await client.turn(await client.create(), "meanwhile"))[0] == 200
    await socket.send("permission", request_id=request["request_id"], option_id="allow_once")
    await socket.until("turn_end")
    assert outcome_told(socket) == selected("allow_once")
    events = [e["event"] for e in events_of_kind(socket, "event")]
    assert not [event for event in events if event.get("method") == "session/request_permission"]


async def test_request_after_turn_end_can_be_resolved(client: Client) -> None:
    session = await client.create(permission="ask")
    socket = await client.connect(session)
    await socket.turn(script({"late": [{"permission": True}]}))
    request = await socket.until("permission_request")
    assert request["turn_index"] == 1
    await socket.send("permission", request_id=request["request_id"], option_id="allow_once")
    told = await socket.until_text("allow_once")
    assert told["turn_index"] == 1


async def test_waiting_request_is_resolved_before_session_closes(
    client: Client,
) -> None:
    session = await client.create(permission="ask")
    socket = await client.connect(session)
    await socket.turn(script({"late": [{"permission": True}]}))
    await socket.until("permission_request")
    await client.delete(f"/sessions/{session}")
    assert await socket.until_closed() == 4508
    assert [entry["type"] for entry in await client.events(session)][-2:] == [
        "permission_resolved",
        "session_closed",
    ]


async def test_turn_end_resolves_waiting_requests(client: Client) -> None:
    request = {"jsonrpc": "2.0", "id": "left", "method": "session/request_permission"}
    raw = json.dumps({**request, "params": {"options": [], "toolCall": {}}})
    session, socket, asking = await asked(client, script({"raw": raw}, {"say": "did not wait"}))
    resolved = await socket.until("permission_resolved", request_id=asking["request_id"])
    assert resolved["by"] == "cancel"
    await socket.until("turn_end", stop_reason="end_turn")
    assert (await client.state(session))["pending_permissions"] == []


# Tool calls that were reported before


def report(kind: str | None, update: str = "tool_call", call_id: str = "call-1") -> Json:
    told = {"title": "Look", "kind": kind} if kind is not None else {"status": "pending"}
    return {"update": {"sessionUpdate": update, "toolCallId": call_id, **told}}


BY_ID = {
    "request": {
        "method": "session/request_permission",
        "params": {
            "toolCall": {"toolCallId": "call-1"},
            "options": [
                {"optionId": kind, "name": kind, "kind": kind}
                for kind in ("allow_once", "reject_once")
            ],
        },
    }
}


@pytest.mark.parametrize(
    ("reports", "option"),
    [
        ([report("read")], "allow_once"),
        ([report("edit"), report("read", "tool_call_update")], "allow_once"),
        ([report("read"), report(None, "tool_call_update")], "allow_once"),
        ([report("read"), report("edit", "tool_call_update")], "reject_once"),
        ([report("read"), report(None)], "reject_once"),
        ([report("read", call_id="call-2")], "reject_once"),
        ([], "reject_once"),
    ],
)
async def test_policy_uses_reported_fields_of_a_tool_call(
    client: Client, reports: list[Json], option: str
) -> None:
    session = await client.create(permission="approve-reads")
    _, reply = await client.turn(session, script(*reports, BY_ID))
    told = json.loads(texts_of(reply["events"]))["response"]["result"]["outcome"]
    assert told == selected(option)


async def test_policy_ignores_tool_calls_of_earlier_turns(client: Client) -> None:
    session = await client.create(permission="approve-reads")
    await client.turn(session, script(report("read")))
    _, reply = await client.turn(session, script(BY_ID))
    told = json.loads(texts_of(reply["events"]))["response"]["result"]["outcome"]
    assert told == selected("reject_once")


async def test_waiting_request_has_reported_fields_of_its_tool_call(
    client: Client,
) -> None:
    session, _, request = await asked(client, script(report("read"), BY_ID))
    assert request["request"]["toolCall"] == {"toolCallId": "call-1"}
    (waiting,) = (await client.state(session))["pending_permissions"]
    assert waiting["request"]["toolCall"] == {
        "toolCallId": "call-1",
        "title": "Look",
        "kind": "read",
    }
