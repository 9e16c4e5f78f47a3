"""The JavaScript client against a real server: ``javascript.mjs`` has the tests."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from server.agents.catalog import find_node

from ..conftest import Spawn
from ..support.harness import (
    TIMEOUT_SECS,
    Client,
    http_session,
    new_client,
    run_program,
)

HERE = Path(__file__).parent
NODE = find_node()


async def test_client_keeps_its_promises(client: Client) -> None:
    assert client.token is not None
    status, out, err = await run_program(
        NODE,
        *("--test", "--test-reporter=tap", str(HERE / "javascript.mjs")),
        URL=client.url,
        TOKEN=client.token,
    )
    assert status == 0, out + err


@pytest.mark.slow
async def test_turn_survives_a_killed_server(spawn: Spawn) -> None:
    server = await spawn()
    port = server.url.rpartition(":")[2]
    async with http_session() as http:
        token = (await new_client(server.url, http)).token
    assert token is not None
    process = await asyncio.create_subprocess_exec(
        *(NODE, str(HERE / "killed.mjs")),
        env={**os.environ, "URL": server.url, "TOKEN": token},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(2 * TIMEOUT_SECS):
        assert await process.stdout.readline() == b"started\n"
        await server.kill()
        await spawn(PORT=port)
        found = json.loads(await process.stdout.readline())
        assert await process.wait() == 0
    assert found["code"] == "server_restarted"
    assert found["again"] == "echo: again"
    assert found["seqs"] == list(range(found["seqs"][0], found["seqs"][0] + len(found["seqs"])))
