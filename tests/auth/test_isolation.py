"""What is another app's looks in everything like what is not there."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from server.storage.database import Database

from ..support.harness import Json, LocalServer, script


async def test_another_apps_session_is_looked_for_as_one_that_is_not_there(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, other = await server.client("owner"), await server.client("other")
    session = await owner.create()
    queries: list[str] = []
    fetch = Database._fetch

    async def counted(store: Database, sql: str, *parameters: Any) -> Any:
        queries.append(sql)
        return await fetch(store, sql, *parameters)

    monkeypatch.setattr(Database, "_fetch", counted)
    told: list[tuple[int, Json, list[str]]] = []
    for session_id in (session, str(uuid.uuid4())):
        queries.clear()
        status, reply = await other.get(f"/sessions/{session_id}")
        del reply["request_id"]
        told.append((status, reply, list(queries)))
    assert told[0] == told[1]
    assert told[0][0] == 404
    assert len(told[0][2]) == 1


async def test_a_permissions_id_is_worth_nothing_in_another_session(server: LocalServer) -> None:
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


async def test_an_idempotency_key_is_its_sessions_alone(server: LocalServer) -> None:
    for name in ("owner", "other"):
        client = await server.client(name)
        for _ in range(2):
            session = await client.create()
            socket = await client.connect(session)
            await socket.send("prompt", id="the same", prompt="hello")
            accepted = await socket.until("accepted")
            assert (accepted["turn_index"], accepted["duplicate"]) == (1, False)
