"""Problems that users of similar systems often report, if no other scenario covers them."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from ..conftest import Connect, Spawn
from ..support.harness import ADMIN, Client, descendants, eventually, new_client, script
from .conftest import Scenario

CANARY = "a-confidential-prompt"


@pytest.mark.slow
async def test_phone_that_sleeps(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, connect: Connect
) -> None:
    """A phone that sleeps during a turn gets all entries, and can answer a pending permission."""
    server = await spawn(STALL_TIMEOUT_SECS="0.5", HEARTBEAT_SECS="0.2", DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create(permission="ask")
    phone = await connect(client, session, after=0)
    long = {"burst": {"count": 6000, "text": "x" * 100}}
    await phone.send("prompt", prompt=script(long, {"permission": True}, {"say": "done"}))
    await eventually("the phone to be dropped", lambda: _has_no_sockets(client, session))
    while await phone.receive(65536):  # the bytes in the kernel's buffer
        pass

    reconnected = await connect(client, session, after=phone.last, receive_buffer=1 << 20)
    asked = await reconnected.until("permission_request")
    await reconnected.send("permission", request_id=asked["request_id"], option_id="allow_once")
    end = await reconnected.until("turn_end")
    assert end["stop_reason"] == "end_turn"
    chaos.record(entries=end["seq"], before_it_slept=phone.last, missed=0)
    assert phone.seqs + reconnected.seqs == list(range(1, end["seq"] + 1))


async def _has_no_sockets(client: Client, session: str) -> bool:
    return bool((await client.state(session))["sockets"] == 0)


async def test_conversation_that_cannot_be_loaded(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """If the agent cannot load a conversation, its context is lost, and its log is complete."""
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create("mock-fail-load")
    socket = await client.connect(session, after=0)
    await socket.turn("before")
    await socket.turn(script({"crash": "SIGKILL"}))
    end = await socket.turn("after")
    assert end["stop_reason"] == "end_turn"
    entries = await client.events(session)
    assert entries == socket.entries
    contexts = [entry["context"] for entry in entries if entry["type"] == "turn_start"]
    chaos.record(turns=len(contexts), entries=len(entries))
    assert contexts == ["new", "kept", "lost"]


async def test_secrets_do_not_leak(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """No token, ticket or prompt appears in a log, a metric, an error or a command line."""
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    _, ticket = await client.post(f"/sessions/{session}/ticket")
    socket = await client.connect(session)
    garbage = {"raw": f"{CANARY} is not a message"}
    await socket.turn(script({"say": CANARY}, garbage, {"crash": "SIGKILL"}))
    status, _ = await client.turn(session, CANARY)
    errors = [
        await client.post(f"/sessions/{session}/turn", {"prompt": [{"type": CANARY}]}),
        await client.post("/sessions", {"agent": "mock", "permission": CANARY}),
        await client.post(f"/sessions/{session}/turn?token={client.token}", b"{" + CANARY.encode()),
        await Client(server.url, f"{client.token}x", http).get("/sessions"),
    ]
    assert status == 200
    assert {status for status, _ in errors} == {400, 401}
    async with http.get(
        f"{server.url}/metrics", headers={"Authorization": f"Bearer {ADMIN}"}
    ) as reply:
        metrics = await reply.text()
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in descendants(server.pid)]
    outputs = {
        "log": (tmp_path / "server.log").read_text(),
        "metrics": metrics,
        "errors": repr([reply for _, reply in errors[2:]]),
        "command lines": "\n".join(lines),
    }
    secrets = [str(client.token), ticket["ticket"], ADMIN, CANARY]
    found = [where for where, text in outputs.items() for secret in secrets if secret in text]
    chaos.record(outputs=len(outputs), secrets=len(secrets), found=len(found))
    assert not found
