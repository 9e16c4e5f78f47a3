"""``GET /admin/audit``: what has happened to the sessions."""

from __future__ import annotations

from ..support.client import Client, Json, failure
from ..support.harness import LocalServer


async def audit(server: LocalServer, query: str = "") -> Json:
    status, reply = await server.admin().get(f"/admin/audit{query}")
    assert status == 200, reply
    return reply


async def test_records_are_read_page_by_page(server: LocalServer, client: Client) -> None:
    start = max((row["id"] for row in (await audit(server, "?limit=10000"))["rows"]), default=0)
    session = await client.create()
    await client.turn(session, "hello")
    await client.delete(f"/sessions/{session}?purge=true")
    rows: list[Json] = []
    after: int | None = start
    while after is not None:
        page = await audit(server, f"?after={after}&limit=2")
        assert len(page["rows"]) <= 2
        rows += page["rows"]
        after = page["next"]
    assert [row["event"] for row in rows] == ["create", "turn", "close", "hard_delete"]
    assert {row["session_id"] for row in rows} == {session}
    assert rows[1]["detail"]["stop_reason"] == "end_turn"
    assert rows == (await audit(server, f"?after={start}"))["rows"]


async def test_records_are_filtered_by_app_and_event(server: LocalServer, client: Client) -> None:
    mine = await client.create()
    other = await server.client("audited")
    theirs = await other.create()
    rows = (await audit(server, "?app=audited&limit=10000"))["rows"]
    assert [(row["app"], row["session_id"]) for row in rows] == [("audited", theirs)]
    created = (await audit(server, "?event=create&limit=10000"))["rows"]
    assert {mine, theirs} <= {row["session_id"] for row in created}
    assert {row["event"] for row in created} == {"create"}
    assert (await audit(server, "?app=nobody"))["rows"] == []


async def test_audit_needs_the_admin_token(client: Client, server: LocalServer) -> None:
    failure(await client.get("/admin/audit"), 403, "forbidden")
    failure(await server.anonymous().get("/admin/audit"), 401, "unauthorized")
    for query in ("?after=x", "?limit=0", "?limit=10001"):
        failure(await server.admin().get(f"/admin/audit{query}"), 400, "bad_request")
