"""``connect`` over restarts of the server, each a kill -9: the program, as an editor starts it."""

from __future__ import annotations

import json

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.acp_client import INITIALIZE, ResponseError
from ..support.editors import editor_process
from ..support.harness import new_client, script
from ..support.proxies import free_port

pytestmark = pytest.mark.slow


async def test_editor_does_not_notice_a_killed_server(
    spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    port = str(free_port())
    server = await spawn(PORT=port)
    client = await new_client(server.url, http)
    variables = {"CLAWDFORGE_TOKEN": str(client.token), "CLAWDFORGE_URL": server.url}
    async with editor_process(**variables) as me:
        await me.call("initialize", **INITIALIZE)
        session = await me.new_session()
        other = await me.new_session()
        assert await me.prompt(session, "one") == {"stopReason": "end_turn"}

        # Between two turns.
        await server.kill()
        server = await spawn(PORT=port)
        assert await me.prompt(session, "two") == {"stopReason": "end_turn"}
        assert me.text(session) == "echo: oneecho: two"

        # While the server is away: the prompt waits, and runs once.
        await server.kill()
        waiting = await me.start_prompt(session, "three")
        also_waiting = await me.start_prompt(other, "other")
        server = await spawn(PORT=port)
        assert await me.response_to(waiting) == {"stopReason": "end_turn"}
        assert await me.response_to(also_waiting) == {"stopReason": "end_turn"}

        # In the middle of a turn, with a pending permission request.
        running = await me.start_prompt(session, script({"say": "begun"}, {"permission": True}))
        asked = await me.until(method="session/request_permission")
        await server.kill()
        server = await spawn(PORT=port)
        withdrawn = await me.until(method="$/cancel_request")
        assert withdrawn["params"] == {"requestId": asked["id"]}
        with pytest.raises(ResponseError) as failure:
            await me.response_to(running)
        assert failure.value.data["code"] == "server_restarted"
        assert failure.value.data["retryable"] is True

        text = me.text(session)
        assert await me.prompt(session, script({"history": True})) == {"stopReason": "end_turn"}
        history = json.loads(me.text(session).removeprefix(text))
        assert history[:3] == ["one", "two", "three"]
        assert me.text(session).startswith("echo: oneecho: twoecho: threebegun")
        assert me.text(other) == "echo: other"
        assert (await client.state(session))["turn_count"] == 5
        assert await me.close_stdin() == (0, "")
