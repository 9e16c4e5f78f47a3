"""Budgets: an app that has used up its own gets no further turn or run, on any surface."""

from __future__ import annotations

import asyncio
import datetime
import time
from pathlib import Path
from typing import Any

import pytest

from server.sessions.alerts import Alert, AlertKind

from ..conftest import Serve
from ..sessions.test_usage import reporting
from ..support.acp_client import ResponseError
from ..support.acp_client import connect as connect_acp
from ..support.harness import (
    MOCKS,
    Client,
    Clock,
    Json,
    LocalServer,
    eventually,
    failure,
    mock_agent,
    script,
)
from ..support.runs import make_fake_claude, steps

DAY = 86400


def next_day() -> int:
    return (int(time.time()) // DAY + 1) * DAY


def next_month(now: float) -> int:
    today = datetime.datetime.fromtimestamp(now, datetime.UTC).date()
    later = today.replace(day=1) + datetime.timedelta(days=31)
    first = datetime.datetime.combine(later.replace(day=1), datetime.time(), datetime.UTC)
    return int(first.timestamp())


async def change(server: LocalServer, name: str, **body: Any) -> Json:
    status, reply = await server.admin().call("PATCH", f"/admin/tokens/{name}", body)
    assert status == 200, reply
    return reply


async def test_used_up_budget_refuses_every_way_to_prompt(server: LocalServer) -> None:
    client = await server.client("shop", budget={"tokens_per_day": 150})
    session = await client.create("mock-steers")
    socket = await client.connect(session)
    acp = await connect_acp(client, query="?agent=mock")
    acp_session = await acp.new_session()
    running = await client.create("mock-steers")
    watching = await client.connect(running)
    await watching.send("prompt", prompt=script({"say": "waits"}, {"wait_for": "cancel"}))
    await watching.until_text("waits")
    assert (await client.turn(session, "nothing reported"))[0] == 200
    assert (await client.turn(session, reporting(100)))[0] == 200
    refused = {"ok": False, "code": "budget_exceeded", "resets_at": next_day()}

    # REST, with and without a stream
    for options in ({}, {"headers": {"Accept": "text/event-stream"}}):
        status, reply = await client.post(
            f"/sessions/{session}/turn", {"prompt": "more"}, **options
        )
        assert status == 402
        assert refused.items() <= reply.items()
    # the session's socket, and steering
    await socket.send("prompt", id="p1", prompt="more")
    error = await socket.until("error")
    assert (error["id"], error["code"], error["resets_at"]) == (
        "p1",
        "budget_exceeded",
        next_day(),
    )
    await watching.send("prompt", id="p2", prompt="more", steer=True)
    assert (await watching.until("error"))["code"] == "budget_exceeded"
    # ACP
    with pytest.raises(ResponseError) as refusal:
        await acp.prompt(acp_session, "more")
    assert refusal.value.data["code"] == "budget_exceeded"
    assert refusal.value.data["resetsAt"] == next_day()
    # runs, and OpenAI's clients
    for body in ({"prompt": "more", "agent": "mock"}, {"prompt": "more", "background": True}):
        status, reply = await client.post("/run", body)
        assert status == 402
        assert refused.items() <= reply.items()
    messages = [{"role": "user", "content": "more"}]
    for stream in (False, True):
        status, reply = await client.post(
            "/v1/chat/completions", {"model": "mock", "messages": messages, "stream": stream}
        )
        assert status == 402
        assert reply["error"]["code"] == "budget_exceeded"
        assert reply["error"]["type"] == "insufficient_quota"
        assert reply["error"]["resets_at"] == next_day()
    # The running turn goes on, and everything else can still be used.
    await watching.send("cancel")
    assert (await watching.until("turn_end"))["stop_reason"] == "cancelled"
    await client.create()
    assert (await client.state(session))["turn_count"] == 2


async def test_queued_and_waiting_prompts_are_refused_when_their_time_comes(
    server: LocalServer,
) -> None:
    client = await server.client("queued", budget={"tokens_per_day": 10})
    session = await client.create()
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt=reporting(100))
    await socket.send("prompt", id="q1", prompt="never sent")
    queued = asyncio.create_task(client.turn(session, "never sent"))
    end = await socket.until("turn_end", turn_index=1)
    assert end["stop_reason"] == "end_turn"
    for index in (2, 3):
        end = await socket.until("turn_end", turn_index=index)
        assert end["stop_reason"] == "error"
        error = end["error"]
        assert (error["code"], error["resets_at"]) == ("budget_exceeded", next_day())
        assert "usage" not in end
    status, reply = await queued
    assert status == 402
    assert (reply["code"], reply["resets_at"]) == ("budget_exceeded", next_day())
    assert reply["turn_index"] in (2, 3)
    # A repeated prompt is answered as before: it was accepted.
    await socket.send("prompt", id="q1", prompt="never sent")
    assert (await socket.until("accepted"))["duplicate"] is True


async def test_prompt_whose_agent_is_starting_is_refused(serve: Serve) -> None:
    server = await serve(agents={**MOCKS, "slow": mock_agent("--slow-start=3000")})
    client = await server.client("starting", budget={"tokens_per_day": 10})
    slow = await client.create("slow")
    waiting = asyncio.create_task(client.turn(slow, "never sent"))

    async def is_accepted() -> bool:
        return bool((await client.state(slow))["state"] == "running")

    await eventually("the prompt to wait for its agent", is_accepted)
    assert (await client.turn(await client.create(), reporting(100)))[0] == 200
    failure(await waiting, 402, "budget_exceeded")
    assert (await client.state(slow))["head"] == 2  # turn_start and turn_end


async def test_no_turn_begins_after_the_turn_that_exceeded_the_budget(server: LocalServer) -> None:
    client = await server.client("race", budget={"usd_per_day": 1})
    sessions = [await client.create() for _ in range(4)]
    for session in sessions:
        await client.until_live(session)
    sockets = [await client.connect(session, after=0) for session in sessions]
    for socket in sockets:
        for number in range(5):
            await socket.send("prompt", prompt=reporting(1, cost=0.25), id=str(number))
    order: list[tuple[int, int]] = []
    for session, socket in zip(sessions, sockets, strict=True):
        while (frame := await socket.next()) is not None:
            if frame["type"] in {"accepted", "error"} and frame["id"] == "4":
                break

        async def is_idle(session: str = session) -> bool:
            return bool((await client.state(session))["state"] == "idle")

        await eventually("all turns to end", is_idle)
        entries = await client.events(session)
        started = {e["turn_index"]: e for e in entries if e["type"] == "event"}
        ends = [e for e in entries if e["type"] == "turn_end"]
        order += [(e["ts"], len(e.get("usage", ()))) for e in ends if e["turn_index"] in started]
    # ACP's cost is that of the conversation, so each session costs 0.25 once, with its first turn.
    assert len(order) >= 4
    _, reply = await client.get("/usage")
    assert reply["budget"]["usd_per_day"]["used"] == 1.0


async def test_budget_counts_every_token_and_resets_with_its_period(
    serve: Serve, tmp_path: Path
) -> None:
    clock = Clock()
    server = await serve(clock=clock, claude_bin=make_fake_claude(tmp_path))
    budget = {"usd_per_day": 0.3, "usd_per_month": 0.8, "tokens_per_day": 1000}
    client = await server.client("shop", budget=budget)
    # Runs count as well, also those that fail; other currencies and unknown ones do not.
    usage = {"input_tokens": 7, "output_tokens": 3, "cache_read_input_tokens": 90}
    prompt = steps({"result": "x", "usage": usage, "total_cost_usd": 0.1})
    assert (await client.post("/run", {"prompt": prompt}))[0] == 200
    broken = steps({"result": "x", "is_error": True, "usage": usage, "total_cost_usd": 0.1})
    assert (await client.post("/run", {"prompt": broken}))[0] == 502
    parts = (await client.get("/usage"))[1]["budget"]
    assert parts["tokens_per_day"]["used"] == 200
    assert parts["usd_per_day"] == {
        "limit": 0.3,
        "used": 0.2,
        "remaining": 0.1,
        "resets_at": parts["tokens_per_day"]["resets_at"],
    }
    assert (await client.post("/run", {"prompt": prompt}))[0] == 200
    assert (await client.get("/usage"))[1]["budget"]["usd_per_day"]["remaining"] == 0
    _, reply = await client.post("/run", {"prompt": prompt})
    assert reply["resets_at"] == parts["usd_per_day"]["resets_at"]
    # A change is effective at once, in both directions.
    await change(server, "shop", budget={"usd_per_day": 1})
    assert (await client.post("/run", {"prompt": prompt}))[0] == 200
    await change(server, "shop", budget={"usd_per_month": 0.4})
    _, reply = await client.post("/run", {"prompt": prompt})
    assert reply["resets_at"] == next_month(clock.now)
    await change(server, "shop", budget=None)
    assert "budget" not in (await client.get("/usage"))[1]
    assert (await client.post("/run", {"prompt": prompt}))[0] == 200
    await change(server, "shop", budget={"usd_per_day": 0.5})
    _, reply = await client.post("/run", {"prompt": prompt})
    assert reply["code"] == "budget_exceeded"
    clock.now = reply["resets_at"]
    assert (await client.post("/run", {"prompt": prompt}))[0] == 200


async def test_spending_survives_a_restart_and_a_new_token_of_the_app(serve: Serve) -> None:
    server = await serve()
    client = await server.client("shop", budget={"tokens_per_day": 100})
    session = await client.create()
    assert (await client.turn(session, reporting(100)))[0] == 200
    failure(await client.turn(session, "more"), 402, "budget_exceeded")
    await server.stop()
    server = await serve()
    client = Client(server.url, client.token, client.http)
    failure(await client.turn(session, "more"), 402, "budget_exceeded")
    _, tokens = await server.admin().get("/admin/tokens")
    shown = {token["name"]: token.get("budget") for token in tokens["tokens"]}
    assert shown["shop"] == {"tokens_per_day": 100}
    await server.admin().delete("/admin/tokens/shop")
    client = await server.client("shop", budget={"tokens_per_day": 151})
    assert (await client.turn(await client.create(), reporting(1)))[0] == 200
    failure(await client.turn(await client.create(), "more"), 402, "budget_exceeded")
    other = await server.client("other", budget={"tokens_per_day": 1})
    assert (await other.turn(await other.create(), "hello"))[0] == 200


@pytest.mark.parametrize(
    "budget",
    [{"usd_per_year": 1}, {"usd_per_day": -1}, {"usd_per_day": "1"}, {"tokens_per_day": 1.5}, 7],
)
async def test_invalid_budgets_are_refused(server: LocalServer, budget: Any) -> None:
    body = {"name": "odd", "budget": budget}
    failure(await server.admin().post("/admin/tokens", body), 400, "bad_request")


async def test_budget_of_zero_allows_nothing(server: LocalServer) -> None:
    client = await server.client("zero", budget={"usd_per_month": 0})
    reply = (await client.turn(await client.create(), "hello"))[1]
    assert (reply["code"], reply["resets_at"]) == ("budget_exceeded", next_month(time.time()))


async def test_used_up_budget_raises_one_alert_for_each_period(server: LocalServer) -> None:
    received: list[Alert] = []

    class Receiver:
        def wants(self, app_name: str, kind: AlertKind) -> bool:
            return kind == "budget_exceeded"

        def receive(self, alert: Alert) -> None:
            received.append(alert)

    receivers = server.services.sessions.alerts.receivers
    receivers.append(Receiver())
    try:
        client = await server.client("alerted", budget={"tokens_per_day": 150})
        session = await client.create()
        await client.turn(session, reporting(50))
        assert received == []
        await client.turn(session, reporting(50))
        failure(await client.turn(session, "more"), 402, "budget_exceeded")
        (alert,) = received
        spent = {"limit": 150, "used": 150, "remaining": 0, "resets_at": next_day()}
        assert alert.app_name == "alerted"
        assert alert.fields == {"resets_at": next_day(), "budget": {"tokens_per_day": spent}}
        await change(server, "alerted", budget={"tokens_per_day": 1000})
        await change(server, "alerted", budget={"tokens_per_day": 1})
        assert len(received) == 2
    finally:
        receivers.pop()
