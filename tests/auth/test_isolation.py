"""Isolation: a resource of another app looks exactly like one that does not exist."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from server.storage.database import Database

from ..support.harness import Json, LocalServer, script


async def test_session_of_another_app_is_indistinguishable_from_unknown_session(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, other = await server.client("owner"), await server.client("other")
    session = await owner.create()
    queries: list[str] = []
    fetch = Database.fetch

    async def record(database: Database, sql: str, *parameters: Any) -> Any:
        task = asyncio.current_task()
        if task is None or task.get_name() != "search-index":
            queries.append(sql)
        return await fetch(database, sql, *parameters)

    monkeypatch.setattr(Database, "fetch", record)
    responses: list[tuple[int, Json, list[str]]] = []
    for session_id in (session, str(uuid.uuid4())):
        queries.clear()
        status, reply = await other.get(f"/sessions/{session_id}")
        del reply["request_id"]
        responses.append((status, reply, list(queries)))
    assert responses[0] == responses[1]
    assert responses[0][0] == 404
    assert len(responses[0][2]) == 1


async def test_permission_id_is_valid_in_its_session_only(server: LocalServer) -> None:
    owner = await server.client("owner")
    socket = await owner.connect(await owner.create(permission="ask"))
    await socket.send("prompt", prompt=script({"permission": True}))
    asked = await socket.until("permission_request")
    for client in (owner, await server.client("other")):
        elsewhere = await client.connect(await client.create(permission="ask"))
        await elsewhere.send("permission", request_id=asked["request_id"], option_id="allow_once")
        assert (await elsewhere.until("error"))["code"] == "not_found"
    await socket.send("permission", request_id=asked["request_id"], option_id="allow_once")
    assert (await socket.until("permission_resolved"))["by"] == "client"


async def test_idempotency_key_is_valid_in_its_session_only(server: LocalServer) -> None:
    for name in ("owner", "other"):
        client = await server.client(name)
        for _ in range(2):
            session = await client.create()
            socket = await client.connect(session)
            await socket.send("prompt", id="the same", prompt="hello")
            accepted = await socket.until("accepted")
            assert (accepted["turn_index"], accepted["duplicate"]) == (1, False)
