"""Export of sessions in each format, and import of the NDJSON."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from server.errors import Error
from server.sessions.imports import parse_export

from ..conftest import Serve
from ..support.client import failure
from ..support.harness import Client, LocalServer, eventually, script

HOSTILE = '<script>alert(1)</script><img src=x onerror=alert(2)> & "quoted" 日本語'


async def exported(client: Client, session: str, query: str = "") -> tuple[bytes, Any]:
    async with client.http.get(
        f"{client.url}/sessions/{session}/export{query}", headers=client.headers()
    ) as response:
        assert response.status == 200
        return await response.read(), response.headers


async def test_import_of_an_export_has_the_same_entries(client: Client) -> None:
    session = await client.create(meta={"title": "Mine", "channel": 5})
    await client.turn(session, "my name is Ada")
    await client.turn(
        session, script({"raw": '{"jsonrpc":"2.0", "method":"_x/y", "params":{"half":"\\ud83d"}}'})
    )
    await client.turn(session, script({"exit": 1}))
    await client.delete(f"/sessions/{session}")
    data, headers = await exported(client, session)
    assert headers["Content-Disposition"].startswith("attachment")
    header, *lines = data.splitlines()
    about = json.loads(header)
    assert (about["title"], about["meta"]["channel"]) == ("Mine", 5)
    assert "seq" not in about
    assert [json.loads(line) for line in lines] == await client.events(session)
    status, state = await client.post("/sessions/import", data)
    assert status == 200, state
    copy = state["session_id"]
    assert (state["state"], state["title"], state["turn_count"]) == ("closed", "Mine", 3)
    again, _ = await exported(client, copy)
    assert again.splitlines()[1:] == lines
    assert (await client.turn(copy, "hello"))[0] == 410
    assert (await client.post(f"/sessions/{copy}/reopen"))[0] == 200
    _, reply = await client.turn(copy, script({"echo": True}))
    assert "my name is Ada" in str(reply["events"])
    assert reply["turn_index"] == 4
    starts = [e for e in await client.events(copy) if e["type"] == "turn_start"]
    assert [start["context"] for start in starts][-1] == "told"


async def test_running_turn_of_an_export_ends_in_the_import(client: Client) -> None:
    session = await client.create()
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"hang": True}))
    await socket.until("turn_start")
    data, _ = await exported(client, session)
    _, state = await client.post("/sessions/import", data)
    entries = await client.events(state["session_id"])
    assert [entry["type"] for entry in entries[-2:]] == ["turn_end", "session_closed"]
    assert entries[-2]["error"]["code"] == "server_restarted"


async def test_imported_sessions_do_not_count_as_open(serve: Serve) -> None:
    server = await serve(max_sessions=2)
    client = await server.client()
    session = await client.create()
    data, _ = await exported(client, session)
    for _ in range(3):
        assert (await client.post("/sessions/import", data))[0] == 200
    quotas = server.services.sessions.quotas  # of a cluster: every few seconds
    await eventually("1 open sessions", lambda: quotas.open_sessions == 1)


@pytest.mark.parametrize("kind", ["markdown", "html"])
async def test_conversation_is_exported_for_people(client: Client, kind: str) -> None:
    session = await client.create(meta={"title": HOSTILE})
    await client.turn(session, HOSTILE)
    data, headers = await exported(client, session, f"?format={kind}")
    text = data.decode()
    assert "日本語" in text
    assert headers["Content-Disposition"].startswith("attachment")
    assert headers["X-Content-Type-Options"] == "nosniff"
    if kind == "html":
        assert not re.search(r"<(script|img)", text)
        assert text.count("&lt;script&gt;") >= 3
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "sandbox" in headers["Content-Security-Policy"]
        assert "default-src &#x27;none&#x27;" in text
    else:
        assert f"## Assistant\n\necho: {HOSTILE}" in text


async def test_unknown_format_is_refused(client: Client) -> None:
    session = await client.create()
    failure(await client.get(f"/sessions/{session}/export?format=pdf"), 400, "bad_request")


HEADER = b'{"session":{"agent":"mock"},"meta":{},"title":null}\n'


def entry(seq: int, kind: str = "notice", **fields: Any) -> bytes:
    values = {"type": kind, "seq": seq, "ts": 1, "turn_index": 1, **fields}
    return json.dumps(values).encode() + b"\n"


START = entry(1, "turn_start", prompt=[], id=None, context="new")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"[]",
        b"not json",
        b"{}",
        b'{"ok":false,"error":"the server is stopping","code":"draining"}',
        entry(1),
        HEADER + entry(2),
        HEADER + entry(1) + entry(3),
        HEADER + entry(1) + entry(1),
        HEADER + b'{"type":"x","seq":1}\n',
        HEADER + entry(1, ts=-1),
        HEADER + entry(1, ts=1.5),
        HEADER + entry(1, turn_index="1"),
        HEADER + entry(True),
        HEADER + entry(1, "a b"),
        HEADER + entry(1, '","event":{},"x":"'),
        HEADER + entry(1, "event"),
        HEADER + entry(1, "event", event=5),
        HEADER + entry(1, "event", event={}, more=1),
        HEADER + entry(1, "turn_start", prompt="text"),
        HEADER + entry(1, "turn_end", stop_reason="end_turn"),
        HEADER + START + START.replace(b'"seq": 1', b'"seq": 2'),
        HEADER + b'{"a":' * 500 + b"1" + b"}" * 500,
    ],
)
def test_invalid_export_is_refused(data: bytes) -> None:
    with pytest.raises(Error) as raised:
        parse_export(data)
    assert raised.value.code == "bad_request"


def test_json_that_only_some_parsers_read_is_imported_unchanged() -> None:
    events = [b'{"n":1e999}', b'{"s":"\\ud83d"}', b'{"n":-1e999,"s":"\\ud83d"}']
    lines = [
        b'{"type":"event","seq":%d,"ts":5,"turn_index":0,"event":%b}' % (seq, event)
        for seq, event in enumerate(events, 1)
    ]
    assert parse_export(HEADER + b"\n".join(lines)).lines[:3] == lines


def test_imported_line_is_encoded_as_this_server_does() -> None:
    odd = b'{"seq":1,"event":{"a" : 1},"turn_index":0,"ts":5,"type":"event"}'
    twice = b'{"type":"event","seq":2,"ts":5,"turn_index":0,"event":{},"event":{"b":1}}'
    bare = b'{"type":"session_reopened","seq":3,"ts":5,"turn_index":0}'
    log = parse_export(HEADER + b"\n".join([odd, twice, bare]))
    assert log.lines[:3] == [
        b'{"type":"event","seq":1,"ts":5,"turn_index":0,"event":{"a":1}}',
        b'{"type":"event","seq":2,"ts":5,"turn_index":0,"event":{"b":1}}',
        b'{"type":"session_reopened","seq":3,"ts":5,"turn_index":0,"imported":true}',
    ]


async def test_model_of_any_request_is_limited(client: Client) -> None:
    model = "x" * 1025
    header = {"session": {"agent": "mock", "model": model}}
    failure(await client.post("/sessions/import", header), 400, "bad_request")
    failure(await client.post("/sessions", {"agent": "mock", "model": model}), 400, "bad_request")
    chat = {"model": f"mock/{model}", "messages": [{"role": "user", "content": "hello"}]}
    status, reply = await client.post("/v1/chat/completions", chat)
    assert (status, reply["error"]["code"]) == (400, "bad_request")
    assert (await client.get("/sessions"))[1]["count"] == 0


async def test_import_that_is_too_large_is_refused(serve: Serve) -> None:
    server = await serve(max_import_bytes=1000)
    client = await server.client()
    failure(await client.post("/sessions/import", b"x" * 1001), 413, "payload_too_large")


async def test_export_of_another_apps_session_is_missing(
    server: LocalServer, client: Client
) -> None:
    session = await client.create()
    other = await server.client("another")
    failure(await other.get(f"/sessions/{session}/export"), 404, "not_found")
