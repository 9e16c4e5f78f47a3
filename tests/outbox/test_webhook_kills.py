"""Webhooks over a kill of the server."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.harness import Client, new_client
from ..support.receiver import Receiver, webhook_receiver

ROUNDS = 4
SESSIONS = 3


@pytest.mark.slow
async def test_every_turn_is_reported_in_order_over_kills(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    async with webhook_receiver() as receiver:
        server = await spawn(WEBHOOK_HOSTS="127.0.0.1", DRAIN_SECS="0.1")
        client = await new_client(server.url, http)
        await receiver.register(client, events=["turn_ended"])
        sessions = [await client.create() for _ in range(SESSIONS)]
        ended: dict[str, list[int]] = {session: [] for session in sessions}
        for round_number in range(ROUNDS):
            if round_number % 2:  # the receiver is down when the server is killed
                await receiver.stop()
            for session in sessions:
                status, reply = await client.turn(session, "hello")
                assert status == 200
                ended[session].append(reply["turn_index"])
            running = [asyncio.ensure_future(client.turn(one, "more")) for one in sessions]
            await asyncio.sleep(0)
            await server.kill()
            await asyncio.gather(*running, return_exceptions=True)
            if round_number % 2:
                await receiver.start()
            server = await spawn(WEBHOOK_HOSTS="127.0.0.1", DRAIN_SECS="0.1")
            client = Client(server.url, client.token, http)
            for session in sessions:
                await check_reported(client, receiver, session)


async def check_reported(client: Client, receiver: Receiver, session: str) -> None:
    """Check that the receiver gets each ``turn_end`` of the log, in the order of the log."""
    ends = [entry["seq"] for entry in await client.events(session) if entry["type"] == "turn_end"]
    await receiver.next("turn_ended", session_id=session, seq=ends[-1])
    reported = [
        event["data"]["seq"]
        for event in receiver.accepted
        if event["data"]["session_id"] == session
    ]
    assert list(dict.fromkeys(reported)) == ends  # repetitions are allowed, gaps are not
    assert sorted(reported) == reported
