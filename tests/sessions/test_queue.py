"""Queued prompts: changed, moved and withdrawn, over the socket and over REST."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from server.codec import dumps
from server.errors import not_stored
from server.storage.writer import DatabaseWriter

from ..support.harness import (
    Client,
    Json,
    LocalServer,
    Socket,
    blocking,
    failure,
    local_server,
    script,
)

HANG = script({"say": "hanging"}, {"hang": True})
WAITING_BYTES = 20_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalServer]:
    path = tmp_path_factory.mktemp("queue") / "data"
    async with local_server(path, max_waiting_prompt_bytes_per_app=WAITING_BYTES) as server:
        blocking.deactivate()
        yield server


def texts(queued: list[Json]) -> list[tuple[int, str]]:
    return [(turn["turn_index"], turn["prompt"][0]["text"]) for turn in queued]


async def queue_of(client: Client, session: str) -> list[tuple[int, str]]:
    return texts((await client.state(session))["queued"])


async def busy_session(client: Client, *prompts: str) -> tuple[str, Socket]:
    """A session whose first turn hangs while *prompts* wait, and a socket with its whole log."""
    session = await client.create()
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt=HANG)
    await socket.until_text("hanging")
    for number, prompt in enumerate(prompts, 2):
        await socket.send("prompt", prompt=prompt, id=f"c{number}")
        await socket.until("accepted", turn_index=number)
    return session, socket


async def settle(socket: Socket) -> None:
    """Wait until the server has handled the socket's frames."""
    await socket.send("ping", id="settled")
    await socket.until("pong", id="settled")


async def test_queue_frame_replaces_and_moves_prompts_that_then_run_in_the_new_order(
    client: Client,
) -> None:
    session, socket = await busy_session(client, "two", "three", "four")
    await socket.send("queue", turn_index=4, before=2)
    await socket.send("queue", turn_index=3, prompt=[{"type": "text", "text": "THREE"}], before=2)
    await socket.send("queue", turn_index=2, prompt="TWO")
    await settle(socket)
    expected = [(4, "four"), (3, "THREE"), (2, "TWO")]
    assert await queue_of(client, session) == expected
    ready = (await client.connect(session)).frames[0]
    assert texts(ready["queued"]) == expected

    await socket.send("cancel")
    starts = [await socket.until("turn_start") for _ in range(3)]
    assert [(start["turn_index"], start["id"]) for start in starts] == [
        (4, "c4"),
        (3, "c3"),
        (2, "c2"),
    ]
    assert starts[1]["prompt"] == [{"type": "text", "text": "THREE"}]
    await socket.until("turn_end", turn_index=2)
    assert [socket.text(n) for n in (4, 3, 2)] == ["echo: four", "echo: THREE", "echo: TWO"]
    # The id belongs to the turn, whatever its prompt was changed to.
    await socket.send("prompt", prompt="three", id="c3")
    assert (await socket.until("accepted", id="c3"))["turn_index"] == 3


async def test_queue_frame_for_running_unknown_or_foreign_turn_fails(
    client: Client, server: LocalServer
) -> None:
    session, socket = await busy_session(client, "two")
    for fields, code in (
        ({"turn_index": 1, "prompt": "x"}, "conflict"),
        ({"turn_index": 2, "before": 1}, "conflict"),
        ({"turn_index": 9, "prompt": "x"}, "not_found"),
        ({"turn_index": 2, "before": 9}, "not_found"),
        ({"turn_index": 2, "prompt": ""}, "bad_request"),
        ({"turn_index": 2, "prompt": [{"type": "nothing"}]}, "bad_request"),
        ({"turn_index": 2}, "bad_request"),
    ):
        await socket.send("queue", id="q", **fields)
        error = await socket.until("error")
        assert (error["code"], error["id"]) == (code, "q"), fields
    assert await queue_of(client, session) == [(2, "two")]

    other = await server.client("another-app")
    path = f"/sessions/{session}/queue/2"
    assert (await other.call("PATCH", path, {"prompt": "x"}))[1]["code"] == "not_found"
    assert (await other.call("DELETE", path))[1]["code"] == "not_found"
    await client.delete(f"/sessions/{session}")
    failure(await client.call("PATCH", path, {"prompt": "x"}), 410, "session_closed")


async def test_queued_prompts_are_edited_and_withdrawn_over_rest(client: Client) -> None:
    session, socket = await busy_session(client, "two", "three", "four")
    path = f"/sessions/{session}/queue"
    status, reply = await client.call("PATCH", f"{path}/3", {"prompt": "THREE", "before": 2})
    assert (status, texts(reply["queued"])) == (200, [(3, "THREE"), (2, "two"), (4, "four")])
    failure(await client.call("PATCH", f"{path}/1", {"prompt": "x"}), 409, "conflict")
    failure(await client.call("PATCH", f"{path}/7", {"prompt": "x"}), 404, "not_found")
    failure(await client.call("PATCH", f"{path}/x", {"prompt": "x"}), 404, "not_found")
    failure(await client.call("PATCH", f"{path}/3", {}), 400, "bad_request")
    failure(await client.call("DELETE", f"{path}/1"), 409, "conflict")

    status, reply = await client.call("DELETE", f"{path}/2")
    assert (status, texts(reply["queued"])) == (200, [(3, "THREE"), (4, "four")])
    end = await socket.until("turn_end")
    assert (end["turn_index"], end["stop_reason"], end["withdrawn"]) == (2, "cancelled", True)
    failure(await client.call("DELETE", f"{path}/2"), 404, "not_found")

    await socket.send("cancel", turn_index=4)
    assert (await socket.until("turn_end", turn_index=4))["withdrawn"] is True
    await socket.send("cancel")
    end = await socket.until("turn_end", turn_index=1)
    assert end["stop_reason"] == "cancelled"
    assert "withdrawn" not in end
    assert "withdrawn" not in await socket.until("turn_end", turn_index=3)


async def test_bytes_of_waiting_prompts_stay_exact_when_a_prompt_is_edited(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (app,) = {row.name for row in server.services.tokens.rows()}
    quota = server.services.sessions.quotas.waiting_bytes
    overhead = len(dumps([{"type": "text", "text": ""}]))
    session, socket = await busy_session(client, "two", "three")
    path = f"/sessions/{session}/queue"
    rest = len("three") + overhead
    for size in (WAITING_BYTES - rest - overhead, 1, WAITING_BYTES - rest - overhead, 1000):
        status, _ = await client.call("PATCH", f"{path}/2", {"prompt": "x" * size})
        assert (status, quota.used(app)) == (200, size + overhead + rest)
    before = quota.used(app)
    too_much = {"prompt": "x" * (WAITING_BYTES - rest - overhead + 1), "before": 3}
    failure(await client.call("PATCH", f"{path}/3", too_much | {"before": 2}), 429, "queue_full")
    assert quota.used(app) == before
    assert [index for index, _ in await queue_of(client, session)] == [2, 3]

    with monkeypatch.context() as patch:

        async def fail(*_: object) -> None:
            raise not_stored()

        patch.setattr(DatabaseWriter, "commit", fail)
        edit = await client.call("PATCH", f"{path}/3", {"prompt": "y" * 5000, "before": 2})
    failure(edit, 500, "internal")
    assert quota.used(app) == before
    assert [index for index, _ in await queue_of(client, session)] == [2, 3]

    edits = (client.call("PATCH", f"{path}/2", {"prompt": "x" * n}) for n in (10, 5000, 20, 3000))
    await asyncio.gather(*edits, socket.send("cancel"))
    await socket.until("turn_end", turn_index=3)
    assert quota.used(app) == 0
