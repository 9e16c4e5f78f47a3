"""The limits on open sessions: of the whole server, and of each app."""

from __future__ import annotations

import asyncio

import pytest

from ..conftest import Serve
from ..support.harness import Client, Json, eventually


def refused(answer: tuple[int, Json]) -> None:
    assert answer[0] == 503, answer
    assert (answer[1]["ok"], answer[1]["code"]) == (False, "pool_full")


async def create_many(client: Client, count: int) -> list[int]:
    async with asyncio.TaskGroup() as group:
        asked = [
            group.create_task(client.post("/sessions", {"agent": "mock"})) for _ in range(count)
        ]
    return sorted(task.result()[0] for task in asked)


async def test_session_over_the_limit_is_refused_with_retry_after(share: Serve) -> None:
    client = await (await share(max_sessions=1)).client()
    await client.create()
    refused(await client.post("/sessions", {"agent": "mock"}))
    assert int(client.last_headers["Retry-After"]) > 0


async def test_limit_is_exact_for_concurrent_requests(serve: Serve) -> None:
    server = await serve(max_sessions=5, max_live_agents=1)
    client = await server.client()
    assert await create_many(client, 20) == [200] * 5 + [503] * 15
    assert (await client.get("/sessions"))[1]["count"] == 5
    quotas = server.services.sessions.quotas  # of a cluster: every few seconds
    await eventually("5 open sessions", lambda: quotas.open_sessions == 5)


async def test_server_limit_counts_the_sessions_of_all_apps(serve: Serve) -> None:
    server = await serve(max_sessions=2)
    one, two = await server.client("one"), await server.client("two")
    await one.create()
    await two.create()
    for client in (one, two):
        refused(await client.post("/sessions", {"agent": "mock"}))


async def test_app_limit_is_exact_and_affects_no_other_app(serve: Serve) -> None:
    server = await serve(max_sessions_per_app=3, max_live_agents=1)
    greedy, other = await server.client("greedy"), await server.client("other")
    assert await create_many(greedy, 20) == [200] * 3 + [503] * 17
    refused(await greedy.post("/sessions", {"agent": "mock"}))
    assert int(greedy.last_headers["Retry-After"]) > 0
    await other.create()


async def test_closed_session_allows_exactly_one_more(share: Serve) -> None:
    client = await (await share(max_sessions=1)).client()
    for _ in range(2):
        session = await client.create()
        refused(await client.post("/sessions", {"agent": "mock"}))
        for _ in range(2):  # the second says already_closed, and frees nothing
            await client.delete(f"/sessions/{session}")


async def test_refused_request_does_not_count(share: Serve) -> None:
    client = await (await share(max_sessions=1)).client()
    for body in ({"agent": "nope"}, {"agent": "missing"}, {"cwd": "/"}, {"meta": 1}):
        assert (await client.post("/sessions", body))[0] in (400, 502)
    await client.create()


async def test_session_that_cannot_be_stored_does_not_count(serve: Serve) -> None:
    server = await serve(max_sessions=1)
    client = await server.client()
    workspaces = server.services.settings.data_dir / "workspaces"
    workspaces.touch()  # so that no folder can be made in it
    status, reply = await client.post("/sessions", {"agent": "mock"})
    assert (status, reply["code"]) == (500, "internal")
    workspaces.unlink()
    await client.create()


@pytest.mark.slow
async def test_open_sessions_count_after_a_restart(serve: Serve) -> None:
    server = await serve(max_sessions=2)
    client = await server.client()
    await client.create()
    closed = await client.create()
    await client.delete(f"/sessions/{closed}")
    await server.stop()
    again = await serve(max_sessions=2)
    client = Client(again.url, client.token, client.http)
    quotas = again.services.sessions.quotas  # of a cluster: every few seconds
    await eventually("1 open sessions", lambda: quotas.open_sessions == 1)
    await client.create()
    refused(await client.post("/sessions", {"agent": "mock"}))


@pytest.mark.slow
async def test_more_sessions_are_open_than_agents_run(serve: Serve) -> None:
    server = await serve(max_live_agents=1)
    client = await server.client()
    sessions = [await client.create() for _ in range(3)]
    for session in sessions * 2:
        status, reply = await client.turn(session, "hello")
        assert (status, reply["stop_reason"]) == (200, "end_turn")
        assert len(server.services.sessions.slots) <= 1
