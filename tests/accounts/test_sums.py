"""The sums of usage are correct to the token, whatever happens between the turns."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest

from ..conftest import Serve, Spawn
from ..sessions.test_usage import reporting
from ..support.client import Client, Json
from ..support.harness import ADMIN, script

CENT = Fraction(1, 64)
"""A cost that a float adds exactly."""


class Model:
    """The expected sums."""

    def __init__(self) -> None:
        self.tokens: Counter[str] = Counter()
        self.costs: Counter[str] = Counter()
        self.cumulative: dict[str, int] = {}  # the agent's own sum in its conversation, in CENTs

    def next_turn(self, session: str, chance: random.Random) -> str:
        """Count a turn, and return its prompt."""
        tokens, cost = 2 * chance.randrange(1, 500), chance.randrange(0, 9)
        self.tokens[session] += tokens + tokens // 2
        self.costs[session] += cost
        self.cumulative[session] = self.cumulative.get(session, 0) + cost
        return reporting(tokens, float(self.cumulative[session] * CENT))


async def check(client: Client, model: Model) -> None:
    status, reply = await client.get("/usage?by=session")
    assert status == 200
    rows: dict[str, Json] = {row["session_id"]: row for row in reply["rows"]}
    for session, tokens in model.tokens.items():
        row = rows.pop(session)
        assert row["input_tokens"] + row["output_tokens"] == tokens
        assert row["cost"]["amount"] == float(model.costs[session] * CENT)
    assert not rows
    budget = reply["budget"]
    assert budget["tokens_per_day"]["used"] == model.tokens.total()
    assert budget["usd_per_day"]["used"] == float(model.costs.total() * CENT)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_sums_equal_the_reports_of_agents_over_restarts_and_forks(
    serve: Serve, seed: int
) -> None:
    chance, model = random.Random(seed), Model()
    server = await serve()
    budget = {"tokens_per_day": 10**9, "usd_per_day": 10**6}
    client = await server.client("sums", budget=budget)
    sessions = [await client.create("mock-fork")]
    for _ in range(24):
        step = chance.choice(["turn", "turn", "turn", "failure", "fork", "restart", "purge"])
        session = chance.choice(sessions)
        if step == "turn" or session not in model.tokens:
            prompt = model.next_turn(session, chance)
            assert (await client.turn(session, prompt))[0] == 200
        elif step == "failure":
            assert (await client.turn(session, script({"exit": 1})))[0] == 502
        elif step == "fork" and len(sessions) < 4:
            _, reply = await client.post(f"/sessions/{session}/fork", {})
            assert reply["usage"] == {}
            sessions.append(reply["session_id"])
            # The agent has forked its conversation, and goes on with its sum.
            if reply["forked_from"] is not None and not await needs_history(server, sessions[-1]):
                model.cumulative[sessions[-1]] = model.cumulative[session]
        elif step == "restart":
            await server.stop()
            server = await serve()
            client = Client(server.url, client.token, client.http)
        elif step == "purge" and len(sessions) > 1:
            sessions.remove(session)
            await client.delete(f"/sessions/{session}?purge=true")
        await check(client, model)


async def needs_history(server: Any, session_id: str) -> bool:
    session = await server.services.sessions.find(session_id)
    return bool(session.row.needs_history)


@pytest.mark.slow
async def test_sums_survive_kills(spawn: Spawn, http: Any) -> None:
    chance, model = random.Random(3), Model()
    server = await spawn()
    admin = Client(server.url, ADMIN, http)
    budget = {"tokens_per_day": 10**9, "usd_per_day": 10**6}
    _, reply = await admin.post("/admin/tokens", {"name": "sums", "budget": budget})
    token = reply["token"]
    client = Client(server.url, token, http)
    sessions = [await client.create() for _ in range(2)]
    for _ in range(4):
        for session in sessions:
            assert (await client.turn(session, model.next_turn(session, chance)))[0] == 200
        await check(client, model)
        await server.kill()
        server = await spawn()
        client = Client(server.url, token, http)
        await check(client, model)
