"""Concurrent requests: each id, ticket and permission is used once, and limits are exact."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import aiohttp
import pytest

from ..conftest import Spawn
from ..support.harness import Client, Json, Socket, eventually, new_client, script
from .conftest import Scenario


@pytest.mark.slow
async def test_concurrent_prompts_with_one_id(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """A prompt id runs one turn, sent by many clients at once and again after a kill."""
    rounds = chaos.size(5, 100)
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    sockets = [await client.connect(session) for _ in range(4)]

    async def by_socket(socket: Socket, key: str) -> tuple[int, bool]:
        await socket.send("prompt", id=key, prompt=key)
        accepted = await socket.until("accepted", id=key)
        return accepted["turn_index"], accepted["duplicate"]

    async def by_rest(key: str) -> int:
        status, reply = await client.post(
            f"/sessions/{session}/turn", {"prompt": key}, headers={"Idempotency-Key": key}
        )
        assert status == 200
        return int(reply["turn_index"])

    for n in range(rounds):
        accepted, answered = await asyncio.gather(
            asyncio.gather(*(by_socket(socket, f"k{n}") for socket in sockets)),
            asyncio.gather(by_rest(f"k{n}"), by_rest(f"k{n}")),
        )
        assert {*answered, *(index for index, _ in accepted)} == {n + 1}
        assert sum(not duplicate for _, duplicate in accepted) <= 1
    await server.kill()
    client = Client((await spawn(DRAIN_SECS="0")).url, client.token, http)
    socket = await client.connect(session)
    for n in range(rounds):
        assert await by_socket(socket, f"k{n}") == (n + 1, True)
    entries = await client.events(session)
    starts = Counter(entry["id"] for entry in entries if entry["type"] == "turn_start")
    chaos.record(ids=rounds, asked=7 * rounds, turns=starts.total())
    assert starts == {f"k{n}": 1 for n in range(rounds)}


@pytest.mark.slow
async def test_concurrent_permission_responses(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """A permission request has one outcome, however many clients answer; late ones get an error."""
    rounds = chaos.size(3, 100)
    server = await spawn(PERMISSION_TIMEOUT_SECS="2", DRAIN_SECS="0")
    client, other = await new_client(server.url, http), await new_client(server.url, http, "other")
    session = await client.create(permission="ask")
    sockets = [await client.connect(session) for _ in range(3)]
    watcher = await client.connect(session, after=0)
    path = f"/sessions/{session}/permissions"

    async def by_socket(socket: Socket, request_id: str, option: str) -> None:
        await socket.send("permission", request_id=request_id, option_id=option)
        await socket.send("ping", id=request_id)
        await socket.until("pong", id=request_id)

    outcomes: Counter[str] = Counter()
    for _ in range(rounds):
        await sockets[0].send("prompt", prompt=script({"permission": True}))
        asked = await watcher.until("permission_request")
        request_id = asked["request_id"]
        status, reply = await other.post(f"{path}/{request_id}", {"option_id": "allow_once"})
        assert (status, reply["code"]) == (404, "not_found")
        (by_rest, _), _ = await asyncio.gather(
            client.post(f"{path}/{request_id}", {"option_id": "reject_once"}),
            asyncio.gather(*(by_socket(s, request_id, "allow_once") for s in sockets)),
        )
        assert by_rest in (200, 404)
        resolved = await watcher.until("permission_resolved", request_id=request_id)
        outcomes[resolved["outcome"]["optionId"]] += 1
        assert (resolved["outcome"]["optionId"] == "reject_once") == (by_rest == 200)
        await watcher.until("turn_end")
        assert (await client.post(f"{path}/{request_id}", {"option_id": "allow_once"}))[0] == 404
    # A request without a response.
    await sockets[0].send("prompt", prompt=script({"permission": True}))
    resolved = await watcher.until("permission_resolved")
    assert resolved["by"] == "timeout"
    await watcher.until("turn_end")
    counts = Counter(e["request_id"] for e in watcher.entries if e["type"] == "permission_resolved")
    chaos.record(requests=rounds + 1, answers=4 * rounds, resolutions=counts.total())
    assert set(counts.values()) == {1}
    assert counts.total() == rounds + 1


@pytest.mark.slow
async def test_limits_are_exact(chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession) -> None:
    """Of many concurrent requests exactly as many succeed as a limit allows."""
    at_once = chaos.size(12, 100)
    server = await spawn(
        MAX_SOCKETS_PER_SESSION="3",
        MAX_SOCKETS_PER_APP="5",
        MAX_SESSIONS_PER_APP="4",
        MAX_QUEUED_TURNS="2",
        MAX_PROMPTS_PER_MIN="6",
        MAX_UPLOAD_BYTES_PER_APP="1000",
        DRAIN_SECS="0",
    )
    client = await new_client(server.url, http)

    async def create() -> Any:
        return await client.post("/sessions", {"agent": "mock"})

    made = await asyncio.gather(*(create() for _ in range(at_once)))
    assert Counter(status for status, _ in made) == {200: 4, 503: at_once - 4}
    sessions = [reply["session_id"] for status, reply in made if status == 200]
    other = await new_client(server.url, http, "other")
    await other.create()  # the limit applies to each app

    async def connect(session: str) -> int | None:
        """The close code of a refused socket; None for an accepted one."""
        socket = await client.connect(session, ready=False)
        frame: Json = await socket.next() or {}
        if frame["type"] == "ready":
            return None
        return await socket.until_closed()

    first = await asyncio.gather(*(connect(sessions[0]) for _ in range(at_once)))
    assert Counter(first) == {None: 3, 4504: at_once - 3}
    second = await asyncio.gather(*(connect(sessions[1]) for _ in range(at_once)))
    assert Counter(second) == {None: 2, 4504: at_once - 2}

    async def prompt() -> Any:
        steps = script({"hang": True})
        return await client.post(
            f"/sessions/{sessions[2]}/turn", {"prompt": steps, "timeout_secs": 1.5}
        )

    turns = await asyncio.gather(*(prompt() for _ in range(at_once)))
    codes = Counter(reply["code"] for _, reply in turns)
    # One runs and two wait. Prompts refused by the queue count for the rate, too.
    assert codes["agent_timeout"] == 3
    assert codes["queue_full"] + codes["rate_limited"] == at_once - 3
    assert codes["rate_limited"] >= at_once - 7

    async def upload() -> int:
        form = aiohttp.FormData()
        form.add_field("file", b"x" * 300, filename="a")
        async with http.post(f"{client.url}/files", data=form, headers=client.headers()) as reply:
            return reply.status

    uploads = Counter(await asyncio.gather(*(upload() for _ in range(at_once))))
    assert uploads == {200: 3, 413: at_once - 3}
    chaos.record(at_once=at_once, over_a_limit=0)


async def test_concurrent_use_of_one_ticket(
    chaos: Scenario, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    """A ticket admits one of many concurrent sockets, and a revocation closes all of them."""
    rounds = chaos.size(3, 100)
    server = await spawn(DRAIN_SECS="0")
    client = await new_client(server.url, http)
    session = await client.create()
    anonymous = Client(server.url, None, http)

    async def enter(ticket: str) -> bool:
        socket = await anonymous.connect(session, ready=False)
        await socket.send("auth", ticket=ticket)
        frame: Json = await socket.next() or {}
        admitted = bool(frame["type"] == "ready")
        if not admitted:
            assert await socket.until_closed() == 4500
        await socket.close()
        return admitted

    admissions = []
    for _ in range(rounds):
        _, reply = await client.post(f"/sessions/{session}/ticket")
        entered = await asyncio.gather(*(enter(reply["ticket"]) for _ in range(4)))
        admissions.append(sum(entered))
    sockets = [await client.connect(session) for _ in range(10)]
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    await Client(server.url, "admin-token-of-the-tests", http).delete("/admin/tokens/app")
    codes = await asyncio.gather(*(socket.until_closed() for socket in sockets))
    revoked = loop.time() - started_at
    chaos.record(tickets=rounds, admitted=sum(admissions), revoked_in_s=revoked)
    assert set(admissions) == {1}
    assert set(codes) == {4503}
    await eventually("the token to be refused", lambda: _refused(client))


async def _refused(client: Client) -> bool:
    return (await client.get("/sessions"))[0] == 401
