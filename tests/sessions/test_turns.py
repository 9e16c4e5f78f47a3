"""Turns: the queue, cancels, time limits, and the one end of each turn."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pytest

from server.agents.host.agent import HostAgent
from server.agents.host.prompts import PromptQueue

from ..conftest import Serve
from ..support.harness import (
    MOCKS,
    Client,
    Json,
    LocalServer,
    Socket,
    eventually,
    mock_agent,
    script,
    texts_of,
)

GATED = script({"say": "in"}, {"gate": "go"}, {"say": "out"})
HANG = script({"say": "hanging"}, {"hang": True})
DEAF = script({"ignore_cancel": True}, {"say": "hanging"}, {"hang": True})
HISTORY = script({"history": True})


def workspace(server: LocalServer, session: str) -> Path:
    return server.services.settings.data_dir / "workspaces" / session


def kinds(entries: Iterable[Json]) -> list[tuple[str, int]]:
    """The type and turn index of each entry except events."""
    return [(entry["type"], entry["turn_index"]) for entry in entries if entry["type"] != "event"]


async def warm_session(client: Client) -> tuple[str, Socket]:
    """Return a session that has had its first turn, and a socket that has its whole log."""
    session = await client.create()
    socket = await client.connect(session, after=0)
    await socket.turn("warm")
    return session, socket


async def start_turn(socket: Socket, prompt: str = HANG, text: str = "hanging") -> int:
    """Send a prompt, wait for *text* and return the turn's index."""
    await socket.send("prompt", prompt=prompt)
    return int((await socket.until_text(text))["turn_index"])


async def prompt_at_the_proxy(server: LocalServer, session: str) -> None:
    """Wait until the proxy holds the prompt."""
    agent = server.services.sessions.cached[session].agent.backend_agent
    assert isinstance(agent, HostAgent)
    await eventually("the proxy to hold the prompt", lambda: agent.is_prompt_held)


# Queue


async def test_queued_prompts_run_one_at_a_time_in_order(
    client: Client, server: LocalServer
) -> None:
    session = await client.create()
    socket = await client.connect(session, after=0)
    await start_turn(socket, GATED, "in")
    for number in range(2, 6):
        await socket.send("prompt", prompt=f"number {number}", id=f"c{number}")
    accepted = [await socket.until("accepted") for _ in range(4)]
    assert [(a["turn_index"], a["id"]) for a in accepted] == [(n, f"c{n}") for n in range(2, 6)]

    (workspace(server, session) / "go").touch()
    await socket.until("turn_end", turn_index=5)
    expected = [(kind, n) for n in range(1, 6) for kind in ("turn_start", "turn_end")]
    assert kinds(socket.entries) == expected
    assert [socket.text(n) for n in range(2, 6)] == [f"echo: number {n}" for n in range(2, 6)]


async def test_accepted_and_state_report_queued_prompts(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=HANG, id="first")
    assert (await socket.until("accepted", id="first"))["queued"] is False
    await socket.until_text("hanging")
    await socket.send("prompt", prompt="next", id="n")
    assert (await socket.until("accepted", id="n"))["queued"] is True

    queued = [{"turn_index": 2, "id": "n", "prompt": [{"type": "text", "text": "next"}]}]
    state = await client.state(session)
    assert (state["state"], state["turn_index"], state["queued"]) == ("running", 1, queued)
    late = await client.connect(session)
    assert (late.frames[0]["state"], late.frames[0]["queued"]) == ("running", queued)


async def test_thirty_prompts_at_once_fill_the_queue_with_nine(
    client: Client, server: LocalServer
) -> None:
    session = await client.create()
    turns = [asyncio.create_task(client.turn(session, GATED)) for _ in range(30)]
    refused = [await done for done in islice(asyncio.as_completed(turns), 21)]
    assert {(status, reply["code"]) for status, reply in refused} == {(429, "queue_full")}

    (workspace(server, session) / "go").touch()
    ran = [reply for status, reply in await asyncio.gather(*turns) if status == 200]
    assert sorted(reply["turn_index"] for reply in ran) == list(range(1, 10))
    status, reply = await client.turn(session, "the queue is free again")
    assert (status, reply["turn_index"]) == (200, 10)


async def test_queue_full_prompt_is_an_error_with_its_id_and_socket_stays_open(
    serve: Serve,
) -> None:
    server = await serve(max_queued_turns=0)
    client = await server.client()
    session = await client.create()
    socket = await client.connect(session)
    await start_turn(socket)
    await socket.send("prompt", prompt="too much", id="c2")
    error = await socket.until("error")
    assert (error["code"], error["id"], error["retryable"]) == ("queue_full", "c2", True)

    await socket.send("cancel")
    await socket.until("turn_end")
    assert (await socket.turn("now", id="c2"))[
        "turn_index"
    ] == 2  # a refused prompt does not use up its id


async def test_turn_outlives_its_socket(client: Client, server: LocalServer) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await start_turn(socket, GATED, "in")
    socket.ws._response.connection.transport.abort()  # type: ignore[union-attr]
    (workspace(server, session) / "go").touch()

    other = await client.connect(session, after=0)
    assert (await other.until("turn_end"))["stop_reason"] == "end_turn"
    assert other.text() == "inout"


# Cancel


@pytest.mark.parametrize("way", ["socket", "another socket", "rest", "by index"])
async def test_cancel_ends_running_turn_promptly(client: Client, way: str) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await start_turn(socket)
    match way:
        case "socket":
            await socket.send("cancel")
        case "another socket":
            await (await client.connect(session)).send("cancel")
        case "rest":
            reply = await client.post(f"/sessions/{session}/cancel")
            assert reply == (200, {"ok": True, "cancelled": True})
        case "by index":
            await socket.send("cancel", turn_index=1)
    end = await socket.until("turn_end")
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)
    assert (await socket.turn("again"))["stop_reason"] == "end_turn"


async def test_cancel_without_a_turn_is_not_found(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.turn("done")
    for which in ({}, {"turn_index": 1}, {"turn_index": 7}):
        await socket.send("cancel", **which)
        assert (await socket.until("error"))["code"] == "not_found"
    reply = await client.post(f"/sessions/{session}/cancel")
    assert reply == (200, {"ok": True, "cancelled": False})


async def test_cancelled_queued_turn_starts_and_ends_as_cancelled(
    client: Client,
) -> None:
    session = await client.create()
    socket = await client.connect(session, after=0)
    await start_turn(socket)
    for prompt in ("second", "third"):
        await socket.send("prompt", prompt=prompt, id=prompt)
    await socket.until("accepted", id="third")
    await socket.send("cancel", turn_index=2)
    end = await socket.until("turn_end")
    assert (end["turn_index"], end["stop_reason"], end["duration_ms"]) == (2, "cancelled", 0)
    start = socket.entries[-2]
    assert (start["type"], start["turn_index"], start["id"]) == ("turn_start", 2, "second")

    await socket.send("cancel", turn_index=2)
    assert (await socket.until("error"))["code"] == "not_found"
    await socket.send("cancel")
    await socket.until("turn_end", turn_index=3)
    assert socket.text() == "hangingecho: third"  # and the second never reached the agent


async def test_late_update_belongs_to_its_turn_after_a_later_one_was_cancelled(
    client: Client, server: LocalServer
) -> None:
    session = await client.create()
    socket = await client.connect(session)
    late = {"late": [{"gate": "go"}, {"say": "by the way"}]}
    await start_turn(socket, script({"say": "in"}, {"gate": "end"}, late), "in")
    await socket.send("prompt", prompt="second")
    await socket.until("accepted")
    await socket.send("cancel", turn_index=2)
    await socket.until("turn_end", turn_index=2)
    (workspace(server, session) / "end").touch()
    await socket.until("turn_end", turn_index=1)
    (workspace(server, session) / "go").touch()
    assert (await socket.until_text("by the way"))["turn_index"] == 1


async def test_agent_that_ignores_cancel_is_killed_and_session_continues(
    share: Serve,
) -> None:
    server = await share(cancel_grace_secs=0.2)
    client = await server.client()
    session = await client.create()
    socket = await client.connect(session)
    await start_turn(socket, DEAF)
    began = time.monotonic()
    await socket.send("cancel")
    end = await socket.until("turn_end")
    assert time.monotonic() - began >= 0.2
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)

    await socket.turn(HISTORY)
    start = [e for e in socket.entries if e["type"] == "turn_start"][-1]
    assert start["context"] == "kept"
    assert "ignore_cancel" in socket.text(2)


@pytest.mark.parametrize("response", ["end_turn", "refusal", "error"])
async def test_cancelled_turn_ends_as_cancelled_whatever_the_agent_responds(
    client: Client, response: str
) -> None:
    socket = await client.connect(await client.create())
    await start_turn(
        socket,
        script({"say": "hanging"}, {"wait_for": "cancel"}, {"say": "bye"}, {"stop": response}),
    )
    await socket.send("cancel")
    end = await socket.until("turn_end")
    assert socket.text(1) == "hangingbye"  # later output is kept
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)


async def test_prompt_with_unsupported_content_is_a_bad_request(
    serve: Serve,
) -> None:
    server = await serve(agents={**MOCKS, "text": mock_agent("--text-only")})
    client = await server.client()
    socket = await client.connect(await client.create("text"))
    await socket.turn("hello")
    end = await socket.turn([{"type": "image", "data": "aGk=", "mimeType": "image/png"}])
    assert (end["error"]["code"], end["error"]["retryable"]) == ("bad_request", False)
    assert "image" in end["error"]["message"]
    assert (await socket.turn("hello again"))["stop_reason"] == "end_turn"


@pytest.mark.parametrize("response", ["error", ""])
async def test_invalid_stop_reason_is_agent_failed(client: Client, response: str) -> None:
    socket = await client.connect(await client.create())
    end = await socket.turn(script({"say": "hi"}, {"stop": response}))
    assert (end["stop_reason"], end["error"]["code"]) == ("error", "agent_failed")


async def test_agent_error_after_a_cancel_is_a_cancelled_turn(client: Client) -> None:
    socket = await client.connect(await client.create())
    failure = {"error": {"code": -32603, "message": "interrupted"}}
    await start_turn(socket, script({"say": "hanging"}, {"wait_for": "cancel"}, failure))
    await socket.send("cancel")
    end = await socket.until("turn_end")
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)


@pytest.mark.parametrize("agent", ["mock-silent", "slow"])
async def test_turn_is_cancelled_at_once_while_agent_starts(share: Serve, agent: str) -> None:
    server = await share(agents={**MOCKS, "slow": mock_agent("--slow-start=400")})
    client = await server.client()
    session = await client.create(agent)
    socket = await client.connect(session)
    await socket.send("prompt", prompt="never seen", id="c1")
    await socket.until("accepted")
    await socket.send("cancel")
    end = await socket.until("turn_end")  # `mock-silent` never gets ready
    assert (end["stop_reason"], end["error"]) == ("cancelled", None)
    if agent == "slow":
        await socket.turn(HISTORY)
        assert "never seen" not in socket.text(2)


async def test_cancel_directly_after_a_prompt_cancels_its_turn(client: Client) -> None:
    _, socket = await warm_session(client)
    for number in range(20):
        await socket.send("prompt", prompt=script({"sleep": 60_000}))
        await socket.send("cancel")
        end = await socket.until("turn_end")
        assert end["stop_reason"] == "cancelled", number
    await socket.turn("on it goes")
    assert socket.text(22) == "echo: on it goes"


async def test_prompt_cancelled_before_the_proxy_never_reaches_agent(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, socket = await warm_session(client)
    for number in range(3):
        arrived = asyncio.get_running_loop().create_future()
        with monkeypatch.context() as patch:
            patch.setattr(PromptQueue, "blocker", lambda _, until=arrived: until)
            await socket.send("prompt", prompt=f"unwanted {number}")
            await prompt_at_the_proxy(server, session)
            await socket.send("cancel")
            end = await socket.until("turn_end")
            assert end["stop_reason"] == "cancelled"
        arrived.set_result(True)
    await socket.turn(HISTORY)
    last = socket.text(5)
    assert "warm" in last
    assert "unwanted" not in last


async def test_turn_that_waits_for_a_slot_is_cancelled_at_once(serve: Serve) -> None:
    server = await serve(max_live_agents=1)
    client = await server.client()
    busy = await client.connect(await client.create())
    await start_turn(busy)
    waiting = await client.connect(await client.create())
    await waiting.send("prompt", prompt="patient", id="p")
    assert (await waiting.until("accepted"))["queued"] is True
    await waiting.send("cancel")
    end = await waiting.until("turn_end")
    assert (end["stop_reason"], end["turn_index"]) == ("cancelled", 1)

    await busy.send("cancel")
    await busy.until("turn_end")
    await waiting.turn(HISTORY)
    assert "patient" not in waiting.text()


# Time limits


async def test_turn_over_its_time_limit_ends_as_agent_timeout(serve: Serve) -> None:
    server = await serve(turn_timeout_secs=3)
    client = await server.client()
    session = await client.create()
    await client.until_live(session)
    socket = await client.connect(session)
    end = await socket.turn(script({"wait_for": "cancel"}, {"say": "was cancelled"}))
    assert (end["stop_reason"], end["error"]["code"]) == ("error", "agent_timeout")
    assert socket.text(1) == "was cancelled"


async def test_agent_that_ignores_cancel_is_killed_after_the_time_limit(share: Serve) -> None:
    server = await share(cancel_grace_secs=0.2)
    client = await server.client()
    session = await client.create()
    await client.until_live(session)
    status, reply = await client.turn(session, DEAF, timeout_secs=2)
    assert (status, reply["code"], reply["stop_reason"]) == (504, "agent_timeout", "error")
    assert texts_of(reply["events"]) == "hanging"
    status, reply = await client.turn(session, HISTORY)
    assert status == 200, reply
    assert "ignore_cancel" in texts_of(reply["events"])


async def test_rest_turn_can_have_a_shorter_time_limit(client: Client) -> None:
    session = await client.create()
    status, reply = await client.turn(session, HANG, timeout_secs=0.2)
    assert (status, reply["code"]) == (504, "agent_timeout")
    assert reply["duration_ms"] >= 200


# End


@pytest.mark.parametrize("reason", ["max_tokens", "max_turn_requests", "refusal", "novel_reason"])
async def test_stop_reason_of_agent_is_unchanged(client: Client, reason: str) -> None:
    session = await client.create()
    status, reply = await client.turn(session, script({"say": "x"}, {"stop": reason}))
    assert (status, reply["ok"], reply["stop_reason"]) == (200, True, reason)
    assert reply["events"][-1]["result"] == {"stopReason": reason}


async def test_agent_error_ends_turn_with_its_message(client: Client) -> None:
    session = await client.create()
    failure = {"code": -32603, "message": "the model is overloaded", "data": {"n": 1}}
    status, reply = await client.turn(session, script({"say": "x"}, {"error": failure}))
    assert (status, reply["code"], reply["error"]) == (502, "agent_failed", failure["message"])
    assert reply["retryable"] is True
    assert reply["events"][-1]["error"] == failure

    failure = {"code": -32602, "message": "no such thing"}
    _, reply = await client.turn(session, script({"error": failure}))
    assert (reply["code"], reply["retryable"]) == ("agent_failed", False)


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"stopReason": 7},
        {"stopReason": None},
        {"stopReason": "x" * 65},
        {"stopReason": "\0"},
        [],
    ],
)
async def test_response_without_a_stop_reason_is_agent_failed(
    client: Client, result: object
) -> None:
    session = await client.create()
    status, reply = await client.turn(session, script({"result": result}))
    assert (status, reply["code"], reply["stop_reason"]) == (502, "agent_failed", "error")
    assert (await client.turn(session, "again"))[0] == 200


async def test_late_updates_follow_turn_end_with_its_index(
    client: Client, server: LocalServer
) -> None:
    session = await client.create()
    socket = await client.connect(session)
    prompt = script({"say": "done"}, {"late": [{"gate": "go"}, {"say": "by the way"}]})
    end = await socket.turn(prompt)
    (workspace(server, session) / "go").touch()
    late = await socket.until_text("by the way")
    assert (late["turn_index"], late["seq"] > end["seq"]) == (1, True)

    end = await socket.turn("next")
    assert end["turn_index"] == 2
    assert socket.text(2) == "echo: next"


async def test_rest_turn_has_no_late_updates_of_the_previous_turn(
    client: Client, server: LocalServer
) -> None:
    session = await client.create()
    late = {"late": [{"gate": "go"}, {"say": "late"}]}
    assert (await client.turn(session, script(late)))[0] == 200
    head = (await client.state(session))["head"]
    (workspace(server, session) / "go").touch()

    async def is_said() -> bool:
        return bool((await client.state(session))["head"] > head)

    await eventually("the late update", is_said)
    _, reply = await client.turn(session, script({"say": "mine"}))
    assert texts_of(reply["events"]) == "mine"


async def test_each_turn_has_one_start_and_one_end(share: Serve) -> None:
    server = await share(cancel_grace_secs=0.2)
    client = await server.client()
    session = await client.create()
    socket = await client.connect(session, after=0)
    prompts = ["fine", script({"exit": 1}), script({"error": {"code": -1, "message": "no"}}), HANG]
    for prompt in [*prompts, script({"crash": "SIGKILL"}), "queued and cancelled", "last"]:
        await socket.send("prompt", prompt=prompt)
    await socket.until("accepted", turn_index=7)
    await socket.send("cancel", turn_index=6)
    await socket.until_text("hanging")
    await socket.send("cancel")
    await socket.until("turn_end", turn_index=7)
    for kind in ("turn_start", "turn_end"):
        assert sorted(n for k, n in kinds(socket.entries) if k == kind) == list(range(1, 8))
    assert [e["seq"] for e in socket.entries] == list(range(1, len(socket.entries) + 1))


async def test_context_is_new_in_the_first_turn_and_kept_afterwards(client: Client) -> None:
    socket = await client.connect(await client.create(), after=0)
    for prompt in ("one", "two"):
        await socket.turn(prompt)
    starts = [e for e in socket.entries if e["type"] == "turn_start"]
    assert [start["context"] for start in starts] == ["new", "kept"]
