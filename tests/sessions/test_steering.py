"""Steering: prompts that are added to the running turn, or become ordinary prompts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.ws.session_commands import MAX_STEERING

from ..conftest import Serve
from ..support.harness import (
    Client,
    Json,
    LocalServer,
    Socket,
    eventually,
    hold_commits,
    run_step,
    script,
    texts_of,
)

HANG = script({"say": "hanging"}, {"hang": True})


def steer_as(kind: str) -> str:
    """A prompt that the mock agent handles in a special way."""
    return json.dumps({"steer": kind})


async def running_session(client: Client, agent: str = "mock-steers") -> tuple[str, Socket]:
    """A session whose turn hangs, and a socket with its whole log."""
    session = await client.create(agent)
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt=HANG)
    await socket.until_text("hanging")
    return session, socket


async def steer(socket: Socket, prompt: Any, **fields: Any) -> Json:
    await socket.send("prompt", prompt=prompt, steer=True, **fields)
    return await socket.until("accepted")


async def history(client: Client, session: str) -> list[str]:
    """The texts that the agent has received, without that of the hanging turn and this one."""
    texts: list[str] = await run_step(client, session, {"history": True})
    return texts[1:-1]


async def test_steered_prompt_is_an_entry_of_the_running_turn(client: Client) -> None:
    session, socket = await running_session(client)
    accepted = await steer(socket, "to the left", id="s1")
    assert accepted == {
        "type": "accepted",
        "id": "s1",
        "turn_index": 1,
        "queued": False,
        "duplicate": False,
        "steered": True,
    }
    entry = await socket.until("turn_steer")
    assert entry["prompt"] == [{"type": "text", "text": "to the left"}]
    assert (entry["turn_index"], entry["id"]) == (1, "s1")
    state = await client.state(session)
    assert (state["turn_count"], state["queued"], state["steering"]) == (1, [], True)

    blocks = [
        {"type": "text", "text": "an image"},
        {"type": "resource_link", "uri": "u", "name": "n"},
    ]
    assert (await steer(socket, blocks))["steered"] is True
    assert (await socket.until("turn_steer"))["prompt"] == blocks
    await socket.send("cancel")
    assert (await socket.until("turn_end"))["turn_index"] == 1
    assert "steered: to the left" in socket.text(1)
    assert (await socket.turn("next"))["turn_index"] == 2, "a steered prompt takes no index"


async def test_same_id_never_runs_twice_steered_or_not(client: Client) -> None:
    session, socket = await running_session(client)
    assert (await steer(socket, "once", id="s1"))["steered"] is True
    again = await steer(socket, "once", id="s1")
    assert (again["turn_index"], again["duplicate"], again["steered"]) == (1, True, True)
    await socket.send("prompt", prompt="once", id="s1")
    again = await socket.until("accepted")
    assert (again["turn_index"], again["duplicate"], again["steered"]) == (1, True, True)
    await socket.send("prompt", prompt="queued", id="q")
    assert "steered" not in await socket.until("accepted")
    again = await steer(socket, "queued", id="q")
    assert (again["turn_index"], again["duplicate"], again["steered"]) == (2, True, False)
    await socket.send("cancel")
    await socket.until("turn_end", turn_index=2)
    again = await steer(socket, "once", id="s1")
    assert (again["turn_index"], again["duplicate"], again["steered"]) == (1, True, True)
    assert await history(client, session) == ["once", "queued"]


async def test_prompt_with_steer_is_queued_if_no_turn_runs_or_the_agent_cannot(
    client: Client,
) -> None:
    session = await client.create("mock-steers")
    socket = await client.connect(session, after=0)
    accepted = await steer(socket, "hello", id="s1")
    assert (accepted["turn_index"], accepted["steered"]) == (1, False)
    await socket.until("turn_end", turn_index=1)
    assert (await client.state(session))["steering"] is True

    session, socket = await running_session(client, "mock")
    assert (await client.state(session))["steering"] is False
    accepted = await steer(socket, "later", id="s1")
    assert (accepted["turn_index"], accepted["queued"], accepted["steered"]) == (2, True, False)
    assert [turn["id"] for turn in (await client.state(session))["queued"]] == ["s1"]


@pytest.mark.parametrize("kind", ["refuse", "failed", "late"])
async def test_prompt_that_the_agent_does_not_accept_becomes_an_ordinary_one(
    client: Client, kind: str
) -> None:
    session, socket = await running_session(client)
    accepted = await steer(socket, steer_as(kind), id="s1")
    assert (accepted["turn_index"], accepted["steered"]) == (2, False)
    if kind != "late":
        await socket.send("cancel")
    start = await socket.until("turn_start", turn_index=2)
    assert (start["id"], start["prompt"][0]["text"]) == ("s1", steer_as(kind))
    await socket.until("turn_end", turn_index=2)
    assert "turn_steer" not in {entry["type"] for entry in socket.entries}
    again = await steer(socket, steer_as(kind), id="s1")
    assert (again["turn_index"], again["duplicate"], again["steered"]) == (2, True, False)
    assert await history(client, session) == [steer_as(kind)]


@pytest.mark.parametrize("kind", ["end", "after", "starts"])
async def test_prompt_that_the_agent_accepts_at_the_end_of_the_turn_is_logged_and_runs_once(
    client: Client, kind: str
) -> None:
    session, socket = await running_session(client)
    accepted = await steer(socket, steer_as(kind), id="s1")
    assert (accepted["turn_index"], accepted["steered"]) == (1, True)
    entry = await socket.until("turn_steer")
    assert (entry["turn_index"], entry["id"]) == (1, "s1")
    await socket.turn("next")
    order = [entry["type"] for entry in socket.entries if entry["turn_index"] == 1]
    assert order.count("turn_end") == 1
    if kind == "end":
        assert order.index("turn_steer") < order.index("turn_end")
    assert (await history(client, session)).count(steer_as(kind)) == 1


async def test_prompt_of_an_agent_that_dies_before_its_response_is_not_sent_again(
    client: Client,
) -> None:
    _, socket = await running_session(client)
    accepted = await steer(socket, steer_as("exit"), id="s1")
    assert (accepted["turn_index"], accepted["steered"]) == (2, False)
    again = await steer(socket, steer_as("exit"), id="s1")
    assert (again["turn_index"], again["duplicate"], again["steered"]) == (2, True, False)
    assert (await socket.turn("alive"))["turn_index"] == 3
    ends = {end["turn_index"]: end for end in socket.entries if end["type"] == "turn_end"}
    assert {ends[index]["error"]["code"] for index in (1, 2)} == {"agent_failed"}
    assert ends[2]["error"]["retryable"] is True
    assert "echo: alive" in socket.text(3)


async def test_agent_that_does_not_respond_delays_neither_cancel_nor_later_turns(
    serve: Serve,
) -> None:
    server = await serve(cancel_grace_secs=0.2)
    client = await server.client()
    _, socket = await running_session(client)
    await socket.send("prompt", prompt=steer_as("hang"), steer=True, id="s1")
    await socket.send("prompt", prompt="after it", id="q")
    await socket.until("accepted", id="q")
    await socket.send("prompt", prompt=steer_as("hang"), id="s1", steer=True)
    await socket.send("cancel")
    assert (await socket.until("turn_end", turn_index=1))["stop_reason"] == "cancelled"
    first, second = [await socket.until("accepted", id="s1") for _ in range(2)]
    assert (first["turn_index"], first["steered"], first["duplicate"]) == (3, False, False)
    assert (second["turn_index"], second["duplicate"]) == (3, True)
    await socket.until("turn_end", turn_index=2)
    assert socket.text(2) == "echo: after it"
    end = next(e for e in socket.entries if e["type"] == "turn_end" and e["turn_index"] == 3)
    assert end["error"]["code"] == "agent_failed"
    app = server.services.tokens.rows()[0].name
    assert server.services.sessions.quotas.waiting_bytes.used(app) == 0


async def test_rest_turn_with_steer_describes_the_turn_that_it_was_added_to(
    client: Client,
) -> None:
    session, socket = await running_session(client)
    path = f"/sessions/{session}/turn"
    once = {"headers": {"Idempotency-Key": "r1"}}
    body = {"prompt": steer_as("end"), "steer": True}
    status, reply = await client.post(path, body, **once)
    assert (status, reply["turn_index"], reply["steered"]) == (200, 1, True)
    assert "hanging" in texts_of(reply["events"])
    assert f"steered: {steer_as('end')}" in texts_of(reply["events"])
    assert (await client.post(path, body, **once))[1] == reply
    status, reply = await client.post(path, {"prompt": "no turn", "steer": True})
    assert (reply["turn_index"], reply["steered"]) == (2, False)
    assert "steered" not in (await client.post(path, {"prompt": "no steer"}))[1]

    await socket.send("prompt", prompt=HANG)
    await socket.until_text("hanging")
    headers = {**client.headers(), "Accept": "text/event-stream"}
    async with client.http.post(client.url + path, json=body, headers=headers) as stream:
        lines = (await stream.text()).splitlines()
    kinds = [json.loads(line[6:])["type"] for line in lines if line.startswith("data: ")]
    assert (kinds[0], kinds.count("turn_steer"), kinds[-1]) == ("turn_start", 1, "turn_end")


async def test_closing_a_session_resolves_steered_prompts_first(client: Client) -> None:
    session, socket = await running_session(client)
    for number in range(1, MAX_STEERING + 2):
        await socket.send("prompt", prompt=steer_as("hang"), steer=True, id=f"s{number}")
    error = await socket.until("error")
    assert (error["id"], error["code"]) == (f"s{MAX_STEERING + 1}", "rate_limited")
    await client.delete(f"/sessions/{session}")
    accepted = await socket.until("accepted", id="s1")
    assert (accepted["turn_index"], accepted["steered"]) == (2, False)
    assert await socket.until_closed() == 4508
    assert socket.entries[-1]["type"] == "session_closed"
    ends = [(e["turn_index"], e["stop_reason"]) for e in socket.entries if e["type"] == "turn_end"]
    assert ends == [(index, "cancelled") for index in range(1, MAX_STEERING + 2)]


async def test_turn_that_ends_while_the_prompt_is_stored_is_not_steered(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, socket = await running_session(client)
    stored, go_on = hold_commits(server, monkeypatch)
    await socket.send("prompt", prompt="too late", steer=True, id="s1")
    await stored.wait()
    found = server.services.sessions.cached[session]
    found.cancel()
    await eventually("the turn to end", lambda: found.state_name == "idle")
    go_on.set()
    accepted = await socket.until("accepted", id="s1")
    assert (accepted["turn_index"], accepted["steered"]) == (2, False)
    await socket.until("turn_end", turn_index=2)
    assert await history(client, session) == ["too late"]
