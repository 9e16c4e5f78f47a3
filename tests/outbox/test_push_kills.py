"""Push over a kill of the server."""

from __future__ import annotations

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.harness import Client, eventually, new_client, script
from ..support.push_service import push_service

WATCHED = {"PUSH_HOSTS": "127.0.0.1", "DRAIN_SECS": "0.1"}


@pytest.mark.slow
async def test_messages_that_a_killed_server_has_left_are_sent_by_the_next_one(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    async with push_service() as service:
        server = await spawn(**WATCHED)
        client = await new_client(server.url, http)
        browser, ended = service.browser("one"), service.browser("two")
        events = ["turn_ended", "permission_requested"]
        await browser.subscribe(client, events=events)
        deleted = await ended.subscribe(client, events=events)
        service.status = 503
        session_id = await client.create(permission="ask")
        for _ in range(3):
            assert (await client.turn(session_id, "hello"))[0] == 200
        purged = await client.create(permission="ask")
        socket = await client.connect(purged)
        await socket.send("prompt", prompt=script({"permission": True}))
        await socket.until("permission_request")
        assert (await client.delete(f"/sessions/{purged}?purge=true"))[0] == 200
        await eventually("both to be tried", lambda: service.requests >= 2)
        assert (await client.delete(f"/push/subscriptions/{deleted}"))[0] == 200
        await server.kill()
        service.status = 201
        server = await spawn(**WATCHED)
        client = Client(server.url, client.token, http)

        def turns() -> list[int]:
            return [
                one["turn_index"] for one in browser.messages if one["session_id"] == session_id
            ]

        await eventually("the messages to be sent", lambda: turns() == [1, 2, 3])
        await client.turn(session_id, "hello")
        await eventually("the next message to be sent", lambda: turns() == [1, 2, 3, 4])
        assert not ended.messages
        assert {one["type"] for one in browser.messages} == {"turn_ended"}
        await server.stop()
        await spawn(**WATCHED)
        assert turns() == [1, 2, 3, 4]  # nothing is left
