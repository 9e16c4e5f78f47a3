"""Limits on the bytes that one app uses in the server's memory; they are exact also in a race."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from server.agents.agent_settings import NO_SETTINGS, bounded
from server.agents.reported_settings import with_update
from server.codec import dumps
from server.sessions.permissions import HELD_BYTES, MAX_PENDING, shortened

from ..support.harness import (
    Client,
    Json,
    LocalServer,
    Socket,
    blocking,
    busy_socket,
    eventually,
    local_server,
    script,
)
from ..support.raw_socket import open_connection

PAGE_BYTES = 20_000
REPLY_BYTES = 600_000
WAITING_BYTES = 100_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    async with local_server(
        tmp_path_factory.mktemp("limited") / "data",
        max_events_bytes=PAGE_BYTES,
        max_reply_bytes=REPLY_BYTES,
        max_waiting_prompt_bytes_per_app=WAITING_BYTES,
        stall_timeout_secs=0.2,
    ) as server:
        blocking.deactivate()
        yield server


async def busy_session(client: Client) -> tuple[str, Socket]:
    session = await client.create()
    return session, await busy_socket(client, session)


# The app's own notes.


def notes_of(size: int) -> Json:
    """A `meta` of so many bytes as JSON."""
    return {"é": "x" * (size - len(dumps({"é": ""})))}


async def test_meta_is_limited_in_bytes_at_creation(client: Client) -> None:
    limit = 64 << 10
    assert (await client.post("/sessions", {"meta": notes_of(limit)}))[0] == 200
    status, reply = await client.post("/sessions", {"meta": notes_of(limit + 1)})
    assert (status, reply["code"]) == (413, "payload_too_large")


async def test_meta_is_limited_after_the_merge_also_in_a_race(client: Client) -> None:
    session = await client.create(meta={"kept": "yes"})
    path, half = f"/sessions/{session}", "x" * (40 << 10)
    answers = await asyncio.gather(
        *(client.call("PATCH", path, {"meta": {name: half}}) for name in "abc")
    )
    assert sorted(status for status, _ in answers) == [200, 413, 413]
    meta = (await client.state(session))["meta"]
    assert meta["kept"] == "yes"
    assert len(meta) == 2


async def test_system_prompt_is_limited_in_bytes(client: Client) -> None:
    status, reply = await client.post("/sessions", {"system": "é" * (128 << 10)})
    assert status == 200
    status, reply = await client.post("/sessions", {"system": "é" * (128 << 10) + "x"})
    assert (status, reply["code"]) == (413, "payload_too_large")


# Pages and replies.


async def test_page_of_events_is_limited_and_says_that_there_is_more(client: Client) -> None:
    session = await client.create()
    await client.turn(session, script({"burst": {"count": 60, "text": "x" * 1000}}))
    after, found, pages = 0, [], 0
    while True:
        status, reply = await client.get(f"/sessions/{session}/events?after={after}")
        assert status == 200
        assert int(client.last_headers["Content-Length"]) <= PAGE_BYTES
        found += [entry["seq"] for entry in reply["entries"]]
        pages += 1
        if not reply["has_more"]:
            break
        after = found[-1]
    assert found == list(range(1, reply["head"] + 1))
    assert pages > 3


async def test_page_has_at_least_one_entry(client: Client) -> None:
    session = await client.create()
    await client.turn(session, script({"chunk": 5 * PAGE_BYTES}, {"say": "after it"}))
    _, first = await client.get(f"/sessions/{session}/events?after=1")
    assert ([e["seq"] for e in first["entries"]], first["has_more"]) == ([2], True)
    _, rest = await client.get(f"/sessions/{session}/events?after=2")
    assert rest["has_more"] is False
    _, none = await client.get(f"/sessions/{session}/events?after={rest['head']}")
    assert (none["entries"], none["has_more"]) == ([], False)


async def test_page_of_limited_number_says_that_there_is_more(client: Client) -> None:
    session = await client.create()
    await client.turn(session, "hello")
    head = (await client.state(session))["head"]
    _, page = await client.get(f"/sessions/{session}/events?limit={head - 1}")
    assert (len(page["entries"]), page["has_more"]) == (head - 1, True)
    _, page = await client.get(f"/sessions/{session}/events?limit={head}")
    assert (len(page["entries"]), page["has_more"]) == (head, False)


async def test_too_long_turn_reply_names_the_position_of_its_events(client: Client) -> None:
    session = await client.create()
    status, reply = await client.turn(
        session, script({"burst": {"count": 7, "text": "x" * 99_000}})
    )
    assert (status, reply["events"], reply["events_omitted"]) == (200, [], True)
    assert (reply["stop_reason"], reply["turn_index"]) == ("end_turn", 1)
    entries = await client.events(session, after=reply["first_seq"] - 1)
    assert (entries[0]["type"], entries[-1]["type"]) == ("turn_start", "turn_end")
    assert entries[-1]["seq"] == reply["last_seq"]


async def test_long_turns_reply_has_all_its_events(client: Client) -> None:
    session = await client.create()
    status, reply = await client.turn(
        session, script({"burst": {"count": 5, "text": "x" * 99_000}})
    )
    assert status == 200
    assert "events_omitted" not in reply
    events = [e["event"] for e in await client.events(session) if e["type"] == "event"]
    assert reply["events"] == events


# Prompts that wait.


async def test_queue_shows_the_first_characters_of_a_prompt(client: Client) -> None:
    session, socket = await busy_session(client)
    picture = {"type": "image", "mimeType": "image/png", "data": "A" * 4000}
    blocks = [picture, {"type": "text", "text": "é" * 5000}, {"type": "text", "text": "unseen"}]
    await socket.send("prompt", prompt=blocks)
    await socket.until("accepted", queued=True)
    shown = (await client.state(session))["queued"][0]["prompt"]
    assert shown[0] == {"type": "text", "text": "[image]"}
    assert sum(len(block["text"]) for block in shown) == 1000
    ready = (await client.connect(session)).frames[0]
    assert ready["queued"][0]["prompt"] == shown
    await socket.send("cancel", turn_index=2)
    start = await socket.until("turn_start", turn_index=2)
    assert start["prompt"] == blocks


async def test_bytes_of_an_apps_waiting_prompts_are_limited_also_in_a_race(
    server: LocalServer, client: Client
) -> None:
    budget = server.services.sessions.quotas.waiting_bytes
    (app,) = {row.name for row in server.services.tokens.rows()}
    sessions = [await busy_session(client) for _ in range(2)]
    assert budget.used(app) == 0
    text = "x" * (WAITING_BYTES // 10 - len(dumps([{"type": "text", "text": ""}])))
    for number in range(8):
        for _, socket in sessions:
            await socket.send("prompt", prompt=text, id=str(number))
    answers = []
    for _, socket in sessions:
        while len([f for f in socket.frames if f["type"] in ("accepted", "error")]) < 9:
            await socket.next()
        answers += [f for f in socket.frames if f["type"] in ("accepted", "error")][1:]
    refused = [frame for frame in answers if frame["type"] == "error"]
    assert len(answers) - len(refused) == 10
    assert {frame["code"] for frame in refused} == {"queue_full"}
    assert budget.used(app) == WAITING_BYTES
    status, reply = await client.post("/run", {"prompt": "x"})
    assert (status, reply["code"]) == (429, "queue_full")
    other = await server.client("another-app")
    assert (await other.turn(await other.create(), text))[0] == 200
    for session, _ in sessions:
        await client.delete(f"/sessions/{session}")
    assert budget.used(app) == 0


async def test_refused_prompt_holds_no_bytes(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    (app,) = {row.name for row in server.services.tokens.rows()}
    session = await client.create()
    assert (await client.turn(session, "x" * 2 * WAITING_BYTES))[1]["code"] == "queue_full"
    assert server.services.sessions.quotas.waiting_bytes.used(app) == 0
    assert (await client.turn(session, "fits"))[0] == 200


# Settings that agents report, and their permission requests.


@pytest.mark.parametrize("value", [None, "x", [1, {"a": []}], {"a": {"b": "c"}}])
def test_short_agent_report_is_unchanged(value: Any) -> None:
    assert bounded(value) == value


@pytest.mark.parametrize(
    "value",
    [
        "x" * 1000,
        ["x" * 10] * 1000,
        {"available": [{"id": "x" * 10, "about": "y" * 5}] * 100, "current": "a"},
        {str(n): "x" for n in range(1000)},
        [[[["x" * 1000]]]],
    ],
)
def test_long_agent_report_keeps_its_first_items(value: Any) -> None:
    kept = bounded(value, 500)
    assert len(dumps(kept)) <= 500
    if isinstance(value, list):
        assert kept == value[: len(kept)]


def test_deeply_nested_agent_report_is_dropped() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert bounded(value) is None


def test_settings_that_an_agent_reports_are_limited() -> None:
    offered = [{"name": f"c{n}", "description": "d" * 99} for n in range(9999)]
    update = {"availableCommands": offered}
    commands = with_update(NO_SETTINGS, NO_SETTINGS, "available_commands_update", update).commands
    assert commands[0]["name"] == "c0"
    assert len(dumps(commands)) <= 64 << 10


async def test_permission_requests_that_wait_are_limited(client: Client) -> None:
    session = await client.create(permission="ask")
    socket = await client.connect(session)
    call = {"toolCall": {"toolCallId": "t", "title": "y" * 2000, "kind": "edit"}}
    await socket.send("prompt", prompt=script({"permission": [call] * (MAX_PENDING + 2)}))
    resolved = [await socket.until("permission_resolved") for _ in range(2)]
    assert {frame["by"] for frame in resolved} == {"policy"}
    requests = [frame for frame in socket.frames if frame["type"] == "permission_request"]
    assert all(frame["request"]["toolCall"]["title"] == "y" * 2000 for frame in requests)
    pending = (await client.state(session))["pending_permissions"]
    assert len(pending) == MAX_PENDING
    assert all(one["request"]["options"] for one in pending)
    for one in pending:
        await socket.send("permission", request_id=one["request_id"], option_id="allow_once")
    await socket.until("turn_end")


def test_long_permission_request_keeps_its_options() -> None:
    offered = [{"optionId": "a", "name": "Allow", "kind": "allow_once"}]
    call = {"title": "t", "content": [{"type": "diff", "newText": "y" * HELD_BYTES}]}
    request = {"toolCall": call, "options": offered, "_meta": {"theirs": 1}}
    held = shortened(request, HELD_BYTES)
    assert len(dumps(held)) <= HELD_BYTES + 1000
    assert held["options"] == offered
    assert held["_meta"] == {"theirs": 1, "clawdforge": {"shortened": True}}
    assert held["toolCall"]["title"] == "t"
    short = {"toolCall": {"title": "t"}, "options": offered}
    assert shortened(short, HELD_BYTES) == short


# Readers that do not read.


async def test_client_that_reads_nothing_of_a_long_reply_is_dropped(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "server.access")
    session = await client.create()
    once = {"headers": {"Idempotency-Key": "once"}}
    body = {"prompt": script({"burst": {"count": 5, "text": "x" * 99_000}})}
    _, reply = await client.post(f"/sessions/{session}/turn", body, **once)
    connection = await open_connection(client.url, receive_buffer=4096)
    loop = asyncio.get_running_loop()
    with connection:
        data = json.dumps(body).encode()
        head = (
            f"POST /sessions/{session}/turn HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {client.token}\r\nIdempotency-Key: once\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        await loop.sock_sendall(connection, head.encode() + data)
        path = f"/sessions/{session}/turn 200"
        await eventually(
            "the server to give up", lambda: len([m for m in caplog.messages if path in m]) == 2
        )
        taken = 0
        while data := await loop.sock_recv(connection, 1 << 16):
            taken += len(data)
    assert taken < len(json.dumps(reply))
    assert (await client.turn(session, "still here"))[0] == 200
