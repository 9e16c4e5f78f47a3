"""Usage: tokens and costs of turns, sessions and apps, from what agents report."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ..conftest import Serve
from ..support.client import Client, Json, failure
from ..support.harness import LocalServer, script
from ..support.runs import make_fake_claude, steps


def reporting(tokens: int, cost: float | None = None, **more: int) -> str:
    """A script whose turn uses *tokens* of input, and half as many of output."""
    usage = {"inputTokens": tokens, "outputTokens": tokens // 2, **more}
    update: list[Json] = []
    if cost is not None:
        amount = {"amount": cost, "currency": "USD"}
        fields = {"used": tokens, "size": 200_000, "cost": amount}
        update = [{"update": {"sessionUpdate": "usage_update", **fields}}]
    return script(*update, {"result": {"stopReason": "end_turn", "usage": usage}})


async def usage_of_turns(client: Client, session: str) -> list[Any]:
    entries = await client.events(session)
    return [entry.get("usage") for entry in entries if entry["type"] == "turn_end"]


async def rows(client: Client, query: str = "") -> list[Json]:
    status, reply = await client.get(f"/usage{query}")
    assert status == 200, reply
    found: list[Json] = reply["rows"]
    return found


async def test_turn_end_and_state_have_what_the_agent_reports(client: Client) -> None:
    session = await client.create()
    assert (await client.state(session))["usage"] == {}
    await client.turn(session, "no report")
    await client.turn(session, reporting(100, 0.5, cachedReadTokens=7, thoughtTokens=3))
    await client.turn(session, reporting(50, 0.75))
    await client.turn(session, "no report")
    one = {"cached_read_tokens": 7, "thought_tokens": 3}
    assert await usage_of_turns(client, session) == [
        None,
        {
            "input_tokens": 100,
            "output_tokens": 50,
            **one,
            "cost": {"amount": 0.5, "currency": "USD"},
        },
        # ACP's cost is that of the whole conversation; the turn has the difference.
        {"input_tokens": 50, "output_tokens": 25, "cost": {"amount": 0.25, "currency": "USD"}},
        None,
    ]
    assert (await client.state(session))["usage"] == {
        "input_tokens": 150,
        "output_tokens": 75,
        **one,
        "cost": {"amount": 0.75, "currency": "USD"},
        "context": {"used": 50, "size": 200_000},
    }


@pytest.mark.parametrize(
    "odd", [None, [], "many", {"inputTokens": -1}, {"inputTokens": True}, {"inputTokens": "7"}]
)
async def test_odd_reports_are_ignored(client: Client, odd: Any) -> None:
    session = await client.create()
    update = {"sessionUpdate": "usage_update", "used": odd, "size": odd, "cost": odd}
    result = {"stopReason": "end_turn", "usage": odd}
    status, _ = await client.turn(session, script({"update": update}, {"result": result}))
    assert status == 200
    assert await usage_of_turns(client, session) == [None]
    assert (await client.state(session))["usage"] == {}


@pytest.mark.slow
async def test_sums_survive_a_restart_and_a_deletion(serve: Serve) -> None:
    server = await serve()
    client = await server.client()
    session = await client.create()
    await client.turn(session, reporting(100, 0.5))
    await server.stop()
    server = await serve()
    client = Client(server.url, client.token, client.http)
    await client.turn(session, reporting(10, 0.625))
    assert (await client.state(session))["usage"]["cost"]["amount"] == 0.625
    await client.delete(f"/sessions/{session}?purge=true")
    [row] = await rows(client)
    assert row == {
        "day": time.strftime("%Y-%m-%d", time.gmtime()),
        "input_tokens": 110,
        "output_tokens": 55,
        "cost": {"amount": 0.625, "currency": "USD"},
    }


async def test_usage_of_a_fork_excludes_the_turns_of_its_source(client: Client) -> None:
    session = await client.create()
    await client.turn(session, reporting(100))
    _, fork = await client.post(f"/sessions/{session}/fork", {})
    assert fork["usage"] == {}
    await client.turn(fork["session_id"], reporting(10))
    assert [row["input_tokens"] for row in await rows(client)] == [110]
    by_session = {
        row["session_id"]: row["input_tokens"] for row in await rows(client, "?by=session")
    }
    assert by_session == {session: 100, fork["session_id"]: 10}


async def test_usage_is_grouped_and_limited_to_a_period(
    server: LocalServer, client: Client
) -> None:
    other = await server.client("another")
    await client.turn(await client.create(), reporting(100))
    await client.turn(await client.create(), reporting(10))
    await other.turn(await other.create(), reporting(1))
    assert [row["input_tokens"] for row in await rows(client)] == [110]
    assert [(row["model"], row["input_tokens"]) for row in await rows(client, "?by=model")] == [
        (None, 110)
    ]
    [agent] = await rows(client, "?by=agent")
    assert (agent["agent"], agent["input_tokens"]) == ("mock", 110)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert len(await rows(client, f"?from={today}&to={today}")) == 1
    assert await rows(client, "?from=2020-01-01&to=2020-12-31") == []
    assert await rows(client, f"?to={int(time.time()) - 3600}") == []
    for bad in ("?from=yesterday", "?to=2020-13-01", "?by=app"):
        failure(await client.get(f"/usage{bad}"), 400, "bad_request")
    _, reply = await server.admin().get("/admin/usage")
    by_app = {row["app"]: row["input_tokens"] for row in reply["rows"]}
    assert by_app["another"] == 1
    failure(await client.get("/admin/usage"), 403, "forbidden")


async def test_runs_are_counted(serve: Serve, tmp_path: Any) -> None:
    server = await serve(claude_bin=make_fake_claude(tmp_path))
    client = await server.client()
    usage = {"input_tokens": 7, "output_tokens": 3}
    prompt = steps({"result": "x", "usage": usage, "total_cost_usd": 0.25})
    assert (await client.post("/run", {"prompt": prompt}))[0] == 200
    [row] = await rows(client, "?by=agent")
    cost = {"amount": 0.25, "currency": "USD"}
    assert row == {"agent": "claude", "input_tokens": 7, "output_tokens": 3, "cost": cost}
