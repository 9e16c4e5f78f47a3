"""Many sessions share a few agents, with random prompts of many clients."""

from __future__ import annotations

import asyncio
import json
import random
import time

import pytest

from ..conftest import Serve
from ..support.harness import script, texts_of
from .conftest import Scenario

AGENTS = 4


@pytest.mark.slow
async def test_sessions_on_few_agents_keep_their_conversations(
    serve: Serve, chaos: Scenario
) -> None:
    """Many sessions on four agents keep their own conversations."""
    session_count, prompts = chaos.size((40, 60), (500, 1000))
    clients = chaos.size(20, 50)
    server = await serve(
        max_live_agents=AGENTS,
        prewarmed_agents=1,
        max_queued_turns=prompts,
        max_sessions_per_app=session_count,
    )
    slots = server.services.sessions.slots
    apps = [await server.client(f"app-{n}") for n in range(2)]
    sessions = [(apps[n % 2], await apps[n % 2].create()) for n in range(session_count)]
    dice = random.Random(20)
    answers: dict[str, dict[int, tuple[str, list[str]]]] = {one: {} for _, one in sessions}
    left = iter(range(prompts))
    started_at = time.monotonic()
    most = 0

    async def run_client() -> None:
        """Send prompts to random sessions until all prompts are used."""
        nonlocal most
        for number in left:
            app, session = dice.choice(sessions)
            text = script({"say": f"{session} {number}"}, {"history": True})
            status, reply = await app.turn(session, text)
            assert status == 200, reply
            most = max(most, len(slots))
            answer, _, remembered = texts_of(reply["events"]).partition("[")
            assert answer == f"{session} {number}"
            answers[session][reply["turn_index"]] = text, json.loads("[" + remembered)

    await asyncio.gather(*(run_client() for _ in range(clients)))
    seconds = time.monotonic() - started_at
    assert 0 < most <= AGENTS
    assert sum(map(len, answers.values())) == prompts
    for turns in answers.values():
        said: list[str] = []
        for _, (text, remembered) in sorted(turns.items()):
            said.append(text)
            assert remembered == said
    contexts = [
        entry["context"]
        for app, session in sessions
        for entry in await app.events(session)
        if entry["type"] == "turn_start"
    ]
    assert set(contexts) == {"new", "kept"}
    chaos.record(sessions=session_count, prompts=prompts, most_agents=most, seconds=seconds)
