"""The commands ``sessions close``, ``stderr`` and ``export``."""

from __future__ import annotations

import asyncio
import json
import re

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.engine import only_sqlite
from ..support.harness import Client, new_client, script
from ..support.operator import Operator


@pytest.mark.slow
@only_sqlite
async def test_session_of_stopped_server_is_closed(
    operator: Operator, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn()
    client = await new_client(server.url, http)
    session = await client.create()
    running = asyncio.create_task(client.turn(session, script({"hang": True})))
    watching = await client.connect(session, after=0)
    await watching.until("turn_start")
    await server.kill()
    running.cancel()
    await operator.run("sessions", "close", session)
    server = await spawn()
    entries = await Client(server.url, client.token, http).events(session)
    assert [entry["type"] for entry in entries][-2:] == ["turn_end", "session_closed"]
    assert entries[-2]["error"]["code"] == "server_restarted"


async def test_log_and_stderr_are_printed_escaped(
    operator: Operator, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn()
    client = await new_client(server.url, http)
    session = await client.create()
    await client.turn(session, script({"stderr": "not \x1b[2Jlogged\u202e \x9bin"}))
    tool = {"sessionUpdate": "tool_call", "toolCallId": "1", "title": "Look"}
    odd = {"method": "session/update", "params": []}
    await client.turn(
        session, script({"say": "hello \x1b[2J\x9b\u202e"}, {"update": tool}, {"notify": odd})
    )
    said, _ = await operator.run("sessions", "stderr", session)
    assert re.fullmatch(r"-- \S+ process \d+\nnot \\x1b\[2Jlogged\\u202e \\x9bin\n", said)
    said, _ = await operator.run("sessions", "stderr", "--raw", session)
    assert said.endswith("\nnot \x1b[2Jlogged\u202e \x9bin\n")
    lines = (await operator.run("sessions", "export", session))[0].split("\n")[:-1]
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", "".join(lines))
    assert [json.loads(line) for line in lines] == await client.events(session)
    page, _ = await operator.run("sessions", "export", session, "--format", "markdown")
    assert page.startswith(f"# Session {session}\n")
    assert "## Turn 2\n\n> {" in page
    assert "\nhello \\x1b[2J\\x9b\\u202e\n" in page
    assert "*Tool: Look.*\n\n*end_turn, " in page
    assert "no such session" in (await operator.run("sessions", "export", "x", status=1))[1]
