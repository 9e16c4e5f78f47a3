"""Server-sent events: a session's log and a turn over plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from server.agents.catalog import find_node

from ..conftest import Serve
from ..support.engine import stored_rows
from ..support.harness import (
    ROOT,
    TIMEOUT_SECS,
    Client,
    Deadline,
    Json,
    LocalServer,
    blocking,
    eventually,
    local_server,
    script,
    texts_of,
)
from ..support.raw_socket import open_event_stream

NODE = str(find_node())


class Stream:
    """An event stream, read as a browser's EventSource does.

    Attributes:
        comments: the comment lines so far.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments: list[str] = []

    async def next(self) -> tuple[int, Json] | None:
        """The next event's id and data; None at the stream's end."""
        position, data = 0, ""
        while line := await self._line():
            field, _, value = line.decode().rstrip("\n").partition(": ")
            assert "\r" not in line.decode(), "an EventSource takes it for the line's end"
            if field == "id":
                position = int(value)
            elif field == "data":
                data += value
            elif field == "":
                if value:
                    self.comments.append(value)
                elif data:
                    return position, json.loads(data)
            else:
                raise AssertionError(f"a field of another name: {line!r}")
        return None

    async def _line(self) -> bytes:
        async with asyncio.timeout(TIMEOUT_SECS):
            return await self.response.content.readline()

    async def take(self, count: int) -> list[tuple[int, Json]]:
        events = [await self.next() for _ in range(count)]
        return [event for event in events if event is not None]

    async def rest(self) -> list[tuple[int, Json]]:
        events = []
        while (event := await self.next()) is not None:
            events.append(event)
        return events

    async def until(self, kind: str) -> list[tuple[int, Json]]:
        """All events up to the first of that type, which is the last."""
        events = []
        while (event := await self.next()) is not None:
            events.append(event)
            if event[1]["type"] == kind:
                return events
        raise AssertionError(f"the stream ended before {kind}: {events}")


@contextlib.asynccontextmanager
async def stream(
    client: Client, path: str, body: Any = None, **headers: str
) -> AsyncIterator[Stream]:
    headers = {**client.headers(), "Accept": "text/event-stream", **headers}
    method, data = ("GET", None) if body is None else ("POST", json.dumps(body))
    async with client.http.request(
        method, client.url + path, headers=headers, data=data
    ) as response:
        assert response.status == 200, await response.text()
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-store"
        yield Stream(response)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    """A server with frequent comments: a failed one ends the stream of a disconnected client."""
    folder = tmp_path_factory.mktemp("shared") / "data"
    async with local_server(folder, stream_keep_alive_secs=0.05) as server:
        blocking.deactivate()
        yield server


async def session_with_turns(client: Client, count: int) -> str:
    session = await client.create()
    for _ in range(count):
        await client.turn(session, "hello")
    return session


# A session's log.


async def test_stream_uses_positions_as_event_ids(client: Client) -> None:
    session = await session_with_turns(client, 2)
    entries = await client.events(session)
    async with stream(client, f"/sessions/{session}/events?after=0") as events:
        seen = await events.take(len(entries))
    assert [data for _, data in seen] == entries
    assert [position for position, _ in seen] == [entry["seq"] for entry in entries]


async def test_stream_continues_live_after_stored_entries(client: Client) -> None:
    session = await session_with_turns(client, 1)
    async with stream(client, f"/sessions/{session}/events?after=0") as events:
        first = await events.until("turn_end")
        await client.turn(session, script({"say": "live"}))
        second = await events.until("turn_end")
    positions = [position for position, _ in first + second]
    assert positions == list(range(1, len(positions) + 1))
    assert "live" in json.dumps(second)


async def test_stream_without_position_starts_at_first_entry(
    client: Client,
) -> None:
    session = await session_with_turns(client, 1)
    head = (await client.state(session))["head"]
    async with stream(client, f"/sessions/{session}/events") as events:
        seen = await events.take(head)
        await client.turn(session, "hello")
        seen += await events.take(1)
    assert [position for position, _ in seen] == list(range(1, head + 2))
    assert seen[-1][1]["type"] == "turn_start"


async def test_last_event_id_resumes_without_gap_or_repeat(client: Client) -> None:
    session = await session_with_turns(client, 1)
    path = f"/sessions/{session}/events?after=0"
    async with stream(client, path) as events:
        last = (await events.take(2))[-1][0]
    await client.turn(session, "hello")
    async with stream(client, path, **{"Last-Event-ID": str(last)}) as events:
        seen = await events.until("turn_end") + await events.until("turn_end")
    head = (await client.state(session))["head"]
    assert [position for position, _ in seen] == list(range(last + 1, head + 1))


async def test_invalid_last_event_id_is_ignored(client: Client) -> None:
    session = await session_with_turns(client, 1)
    for nonsense in ("x", "-1", "1.5", "9" * 5000):
        path = f"/sessions/{session}/events?after=1"
        async with stream(client, path, **{"Last-Event-ID": nonsense}) as events:
            assert (await events.take(1))[0][0] == 2


async def test_position_beyond_head_is_refused_before_stream(client: Client) -> None:
    session = await session_with_turns(client, 1)
    for path, last in (("?after=999", {}), ("?after=0", {"Last-Event-ID": "999"})):
        headers = {"Accept": "text/event-stream", **last}
        status, reply = await client.get(f"/sessions/{session}/events{path}", headers=headers)
        assert (status, reply["code"]) == (400, "bad_request")


async def test_comments_keep_quiet_stream_alive(
    client: Client,
) -> None:
    session = await session_with_turns(client, 1)  # its agent has no more to say by itself
    head = (await client.state(session))["head"]
    async with stream(client, f"/sessions/{session}/events?after={head}") as events:
        lines = [(await events.response.content.readline()).decode() for _ in range(6)]
        await client.turn(session, "hello")
        assert (await events.until("turn_end"))[0][1]["type"] == "turn_start"
    assert lines == [": ok\n", "\n", ": keep-alive\n", "\n", ": keep-alive\n", "\n"]


async def test_stream_ends_with_session(client: Client) -> None:
    session = await session_with_turns(client, 1)
    async with stream(client, f"/sessions/{session}/events?after=0") as events:
        await events.until("turn_end")
        await client.delete(f"/sessions/{session}")
        assert [entry["type"] for _, entry in await events.rest()] == ["session_closed"]


async def test_stream_of_closed_session_ends_after_last_entry(client: Client) -> None:
    session = await session_with_turns(client, 1)
    await client.delete(f"/sessions/{session}")
    head = (await client.state(session))["head"]
    for after in (0, head - 1):
        async with stream(client, f"/sessions/{session}/events?after={after}") as events:
            positions = [position for position, _ in await events.rest()]
            assert positions == list(range(after + 1, head + 1))


async def test_client_with_whole_log_of_closed_session_gets_204(
    client: Client,
) -> None:
    session = await session_with_turns(client, 1)
    await client.delete(f"/sessions/{session}")
    path, head = f"/sessions/{session}/events", (await client.state(session))["head"]
    for query, last in ((f"?after={head}", {}), ("?after=0", {"Last-Event-ID": str(head)})):
        headers = {"Accept": "text/event-stream", **last}
        assert await client.get(path + query, headers=headers) == (204, {})
    headers = {"Accept": "text/event-stream;q=0, application/json"}
    status, reply = await client.get(f"{path}?after={head}", headers=headers)
    assert (status, reply["entries"]) == (200, [])


async def test_agent_output_cannot_break_event_line(client: Client) -> None:
    session = await client.create()
    message = '{"jsonrpc":"2.0",\r"method":"_x/y",\r\r"params":{"text":"a\\r\\n\\ndata: b"}}\r'
    async with stream(client, f"/sessions/{session}/events?after=0") as events:
        await client.turn(session, script({"raw": message}, {"say": "data: c\n\nid: 7\n"}))
        seen = await events.until("turn_end")
    told = [entry["event"] for _, entry in seen if entry["type"] == "event"]
    assert {"jsonrpc": "2.0", "method": "_x/y", "params": {"text": "a\r\n\ndata: b"}} in told
    assert texts_of(told) == "data: c\n\nid: 7\n"


async def test_stream_has_common_headers(client: Client) -> None:
    async with stream(client, f"/sessions/{await client.create()}/events") as events:
        assert events.response.headers["X-Request-Id"]
        assert events.response.headers["X-Content-Type-Options"] == "nosniff"


async def test_head_of_stream_has_no_body(server: LocalServer, client: Client) -> None:
    path = f"/sessions/{await client.create()}/events"
    headers = {**client.headers(), "Accept": "Text/Event-Stream"}
    # The second one comes on the same connection.
    for _ in range(2):
        async with client.http.head(server.url + path, headers=headers) as response:
            assert (response.status, await response.read()) == (200, b"")
    headers["Connection"] = "close"
    async with client.http.get(server.url + path, headers=headers) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")


async def test_stream_of_deleted_log_is_aborted(server: LocalServer, client: Client) -> None:
    session = await session_with_turns(client, 1)
    await client.delete(f"/sessions/{session}")
    stored_rows(server.services.settings.data_dir, "DELETE FROM log")
    async with stream(client, f"/sessions/{session}/events") as events:
        with pytest.raises(aiohttp.ClientPayloadError):
            await events.rest()
    socket = await client.connect(session, after=0)
    assert await socket.until_closed() == 4000


async def test_disconnecting_reader_affects_no_other(
    server: LocalServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    session = await client.create()
    path = f"/sessions/{session}/events?after=0"
    async with stream(client, path) as stays:
        async with stream(client, path) as leaves:
            leaves.response.close()
        await client.turn(session, script({"burst": {"count": 300}}))
        seen = await stays.until("turn_end")
    assert seen[-1][0] == (await client.state(session))["head"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_stream_needs_token_of_its_session(server: LocalServer, client: Client) -> None:
    session = await client.create()
    headers = {"Accept": "text/event-stream"}
    path = f"/sessions/{session}/events"
    other = await server.client("other")
    assert (await server.anonymous().get(path, headers=headers))[0] == 401
    assert (await other.get(path, headers=headers))[0] == 404


async def test_event_source_resumes_after_broken_connection(
    client: Client,
) -> None:
    session = await client.create()
    await client.turn(session, script({"burst": {"count": 50}}))
    head = (await client.state(session))["head"]
    assert client.token is not None
    process = await asyncio.create_subprocess_exec(
        *(NODE, str(ROOT / "tests" / "web" / "event_source.mjs")),
        *(f"{client.url}/sessions/{session}/events?after=0", client.token, "5000"),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(TIMEOUT_SECS):
        output, _ = await process.communicate()
    told = [json.loads(line) for line in output.splitlines()]
    connects = [one["connects"] for one in told if "connects" in one]
    entries = [one for one in told if "seq" in one]
    assert [entry["seq"] for entry in entries] == list(range(1, head + 1))
    assert all(entry["id"] == str(entry["seq"]) for entry in entries)
    # Cut in the middle of an event, it asked for what followed the last whole one.
    assert len(connects) == 2
    assert connects[0] is None
    assert 1 < int(connects[1]) < head


# A turn.


async def test_turn_streams_its_entries_to_its_end(client: Client) -> None:
    session = await session_with_turns(client, 1)
    before = (await client.state(session))["head"]
    body = {"prompt": script({"say": "one "}, {"say": "two"})}
    async with stream(client, f"/sessions/{session}/turn", body) as events:
        seen = await events.rest()
    assert [entry["type"] for _, entry in seen] == [
        *("turn_start", "event", "event", "event", "turn_end")
    ]
    assert seen[-1][1]["stop_reason"] == "end_turn"
    assert [entry for _, entry in seen] == await client.events(session, before)
    assert all(position == entry["seq"] for position, entry in seen)


async def test_turn_streams_while_it_runs(client: Client) -> None:
    session = await client.create()
    body = {"prompt": script({"say": "early"}, {"gate": "go"}, {"say": "late"})}
    async with stream(client, f"/sessions/{session}/turn", body) as events:
        seen = await events.take(2)
        assert "early" in json.dumps(seen[-1][1])
        (Path((await client.state(session))["cwd"]) / "go").touch()
        assert "late" in json.dumps(await events.rest())


async def test_queued_turn_streams_only_its_own_entries(client: Client) -> None:
    session = await client.create()
    path = f"/sessions/{session}/turn"
    held = {"prompt": script({"gate": "go"}, {"say": "mine"})}
    async with stream(client, path, held) as first, asyncio.TaskGroup() as group:
        await first.take(1)

        async def run_second() -> list[tuple[int, Json]]:
            async with stream(client, path, {"prompt": "hello"}) as second:
                return await second.rest()

        second = group.create_task(run_second())

        async def queued() -> Any:
            return (await client.state(session))["queued"]

        await eventually("the second prompt to queue", queued)
        (Path((await client.state(session))["cwd"]) / "go").touch()
        assert {entry["turn_index"] for _, entry in await first.rest()} == {1}
    assert {entry["turn_index"] for _, entry in second.result()} == {2}
    assert [entry["type"] for _, entry in second.result()][-1] == "turn_end"


async def test_stream_of_queued_turn_starts_before_turn(client: Client) -> None:
    session = await client.create()
    path = f"/sessions/{session}/turn"
    held = {"prompt": script({"gate": "go"})}
    async with stream(client, path, held) as first:
        await first.take(1)
        key = {"Idempotency-Key": "k"}
        async with (
            stream(client, path, {"prompt": "hello"}, **key) as second,
            stream(client, path, {"prompt": "hello"}, **key) as repeated,
        ):
            for waiting in (second, repeated):
                lines = [(await waiting.response.content.readline()).decode() for _ in range(4)]
                assert lines == [": ok\n", "\n", ": keep-alive\n", "\n"]
            (Path((await client.state(session))["cwd"]) / "go").touch()
            told = await second.rest()
            assert [entry["type"] for _, entry in told][:: len(told) - 1] == [
                *("turn_start", "turn_end")
            ]
            assert await repeated.rest() == told


async def test_stream_of_cancelled_queued_turn_has_turn_end(
    client: Client,
) -> None:
    session = await client.create()
    path = f"/sessions/{session}/turn"
    async with stream(client, path, {"prompt": script({"gate": "go"})}) as first:
        await first.take(1)
        async with stream(client, path, {"prompt": "hello"}) as second:
            await client.delete(f"/sessions/{session}")
            kinds = [entry["type"] for _, entry in await second.rest()]
    assert kinds == ["turn_start", "turn_end"]


async def test_prompt_that_imitates_entry_of_another_turn_is_not_streamed_as_one(
    client: Client,
) -> None:
    session = await client.create()
    held = {"prompt": script({"gate": "go"}, {"say": "mine"})}
    async with stream(client, f"/sessions/{session}/turn", held) as events:
        await events.take(1)
        socket = await client.connect(session)
        await socket.send("prompt", prompt=[{"type": "text", "turn_index": 1, "text": "x"}])
        await socket.until("accepted")
        await socket.send("cancel", turn_index=2)
        await socket.until("turn_end", turn_index=2)
        (Path((await client.state(session))["cwd"]) / "go").touch()
        assert {entry["turn_index"] for _, entry in await events.rest()} == {1}


async def test_failed_turn_streams_its_error_last(client: Client) -> None:
    session = await client.create()
    body = {"prompt": script({"say": "half"}, {"exit": 1})}
    async with stream(client, f"/sessions/{session}/turn", body) as events:
        end = (await events.rest())[-1][1]
    assert (end["type"], end["stop_reason"]) == ("turn_end", "error")
    assert end["error"]["code"] == "agent_failed"


async def test_turn_continues_after_its_reader_disconnects(client: Client) -> None:
    session = await client.create()
    body = {"prompt": script({"say": "early"}, {"gate": "go"}, {"say": "late"})}
    async with stream(client, f"/sessions/{session}/turn", body) as events:
        await events.take(2)
    (Path((await client.state(session))["cwd"]) / "go").touch()

    async def ended() -> bool:
        return bool((await client.events(session))[-1]["type"] == "turn_end")

    await eventually("the turn's end", ended)
    end = (await client.events(session))[-1]
    assert end["stop_reason"] == "end_turn"


async def test_repeated_idempotency_key_streams_stored_turn(client: Client) -> None:
    session = await client.create()
    path, key = f"/sessions/{session}/turn", {"Idempotency-Key": "k"}
    async with stream(client, path, {"prompt": "hello"}, **key) as events:
        first = await events.rest()
    async with stream(client, path, {"prompt": "hello"}, **key) as events:
        assert await events.rest() == first
    assert (await client.state(session))["turn_count"] == 1


async def test_invalid_prompt_is_refused_before_stream(client: Client) -> None:
    session = await client.create()
    headers = {"Accept": "text/event-stream"}
    answer = await client.post(f"/sessions/{session}/turn", {"prompt": ""}, headers=headers)
    assert (answer[0], answer[1]["code"]) == (400, "bad_request")


async def test_stalled_stream_is_aborted(serve: Serve) -> None:
    server = await serve(stall_timeout_secs=0.3, stream_keep_alive_secs=0.05)
    client = await server.client()
    session = await client.create()
    await client.turn(session, script({"burst": {"count": 6000, "text": "x" * 100}}))
    streams = server.services.sockets.count_streams
    with await open_event_stream(client, session):
        await eventually("the stream to begin", streams)
        await eventually("the stream to be dropped", lambda: not streams())


async def test_streams_count_as_sockets_and_end_with_token(serve: Serve) -> None:
    server = await serve(max_sockets_per_app=1, stream_keep_alive_secs=0.05)
    client = await server.client()
    session = await client.create()
    path = f"/sessions/{session}/events"
    async with stream(client, path) as quiet:
        await eventually("it to be counted", server.services.sockets.count_streams)
        headers = {"Accept": "text/event-stream"}
        status, reply = await client.get(path, headers=headers)
        assert (status, reply["code"]) == (429, "rate_limited")
        refused = await client.connect(session, ready=False)
        assert await refused.until_closed() == 4504
        async with Deadline("the end of the stream"):
            await server.admin().delete("/admin/tokens/app")
            assert await quiet.rest() == []
