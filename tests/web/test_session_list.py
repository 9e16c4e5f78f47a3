"""``GET /sessions``: pages, filters, fields, ETag and compression."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from ..support.client import failure
from ..support.harness import Client, LocalServer, script


async def listed(client: Client, query: str = "") -> list[str]:
    status, body = await client.get(f"/sessions{query}")
    assert (status, body["count"]) == (200, len(body["sessions"])), body
    return [state["session_id"] for state in body["sessions"]]


async def test_pages_have_every_session_once(client: Client) -> None:
    ids = [await client.create() for _ in range(7)]
    for session in ids[::2]:
        await client.delete(f"/sessions/{session}")
    for query, wanted in (
        ("", ids[1::2]),
        ("include_closed=true", ids),
        ("state=closed", ids[::2]),
    ):
        for limit in (1, 2, 3, 7, 1000):
            found: list[str] = []
            cursor = ""
            while True:
                status, body = await client.get(f"/sessions?limit={limit}&{query}{cursor}")
                assert status == 200
                assert len(body["sessions"]) <= limit
                found += [state["session_id"] for state in body["sessions"]]
                if "next_cursor" not in body:
                    break
                cursor = f"&cursor={body['next_cursor']}"
            assert found == wanted[::-1]


async def test_list_without_parameters_is_that_of_version_0_2(client: Client) -> None:
    opened, closed = await client.create(), await client.create()
    await client.delete(f"/sessions/{closed}")
    body = (await client.get("/sessions"))[1]
    assert body.keys() == {"ok", "count", "sessions"}
    assert body["sessions"] == [
        {key: value for key, value in (await client.state(opened)).items() if key != "ok"}
    ]


async def test_list_of_a_state(client: Client) -> None:
    idle, busy, closed = [await client.create() for _ in range(3)]
    socket = await client.connect(busy)
    await socket.send("prompt", prompt=script({"hang": True}))
    await socket.until("turn_start")
    await client.delete(f"/sessions/{closed}")
    assert await listed(client, "?state=idle") == [idle]
    assert await listed(client, "?state=running") == [busy]
    assert await listed(client, "?state=closed") == [closed]
    assert await listed(client, "?state=closed,running") == [closed, busy]


async def test_title_is_found_in_any_case(client: Client) -> None:
    names = ["Straße nach Köln", "日本語の題", "100% _done_", None, 5]
    ids = [await client.create(meta={"title": name}) for name in names]
    for query, wanted in (
        ("strasse", [ids[0]]),
        ("KÖLN", [ids[0]]),
        ("本語", [ids[1]]),
        ("%25 _", [ids[2]]),
        ("'", []),
        ("5", []),
        ("", ids[::-1]),
    ):
        assert await listed(client, f"?q={query}") == wanted, query


async def test_fields_select_a_part_of_each_state(client: Client) -> None:
    session = await client.create(meta={"title": "Mine"})
    body = (await client.get("/sessions?fields=title,state,unknown"))[1]
    assert body["sessions"] == [{"session_id": session, "title": "Mine", "state": "idle"}]


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=x",
        "limit=1001",
        "cursor=x",
        "cursor=",
        "state=open",
        "state=",
        "state=idle,x",
    ],
)
async def test_invalid_parameter_is_refused(client: Client, query: str) -> None:
    failure(await client.get(f"/sessions?{query}"), 400, "bad_request")


async def test_unchanged_list_is_not_sent_again(client: Client) -> None:
    await client.until_live(await client.create())
    await client.get("/sessions")
    tag = client.last_headers["ETag"]
    for known in (tag, f'"other", {tag}', tag.removeprefix("W/"), "*"):
        assert await client.get("/sessions", headers={"If-None-Match": known}) == (304, {})
        assert client.last_headers["ETag"] == tag
    await client.create()
    status, body = await client.get("/sessions", headers={"If-None-Match": tag})
    assert (status, body["count"]) == (200, 2)
    assert client.last_headers["ETag"] != tag


@pytest.mark.parametrize("count", [1, 8])  # the second list is streamed
async def test_list_is_compressed_for_clients_that_accept_it(client: Client, count: int) -> None:
    for _ in range(count):
        await client.until_live(await client.create(meta={"note": "x" * 60_000}))
    bodies: list[Any] = []
    for coding, wanted in (("gzip", "gzip"), ("identity", None), ("gzip;q=0", None)):
        async with client.http.get(
            client.url + "/sessions",
            headers={**client.headers(), "Accept-Encoding": coding},
            auto_decompress=False,
        ) as response:
            data = await response.read()
            assert response.headers.get("Content-Encoding") == wanted
            assert response.headers["Vary"] == "Accept-Encoding"
            bodies.append(json.loads(gzip.decompress(data) if wanted else data))
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["count"] == count


async def test_list_has_no_session_of_another_app(server: LocalServer, client: Client) -> None:
    await (await server.client("another")).create(meta={"title": "theirs"})
    for query in ("", "?include_closed=true", "?q=theirs", "?state=idle&limit=5"):
        assert await listed(client, query) == []
