"""Forks: their logs, what their agents know, and the rows that they share."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from server.storage import segments, statements
from server.storage.database import Database
from server.storage.queries import Queries
from server.storage.schema import LogRow

from ..conftest import Serve
from ..support.client import failure
from ..support.harness import Client, LocalServer, mock_agent, script
from ..support.rows import session_row
from .test_sweeper import rows, traces


async def fork(client: Client, session: str, **body: Any) -> str:
    status, state = await client.post(f"/sessions/{session}/fork", body)
    assert status == 200, state
    return str(state["session_id"])


async def contexts(client: Client, session: str) -> list[str]:
    entries = await client.events(session)
    return [entry["context"] for entry in entries if entry["type"] == "turn_start"]


async def test_fork_begins_with_the_entries_up_to_the_turn(client: Client) -> None:
    session = await client.create(meta={"title": "Mine"})
    for text in ("one", "two", "three"):
        await client.turn(session, text)
    entries = await client.events(session)
    for turn_index, wanted in ((None, 3), (1, 1), (2, 2), (3, 3)):
        body = {} if turn_index is None else {"turn_index": turn_index}
        other = await fork(client, session, **body)
        state = await client.state(other)
        assert state["forked_from"] == {"session_id": session, "turn_index": wanted}
        assert (state["turn_count"], state["title"]) == (wanted, "Mine")
        end = next(
            e["seq"] for e in entries if e["type"] == "turn_end" and e["turn_index"] == wanted
        )
        assert await client.events(other) == entries[:end]
        _, reply = await client.turn(other, "further")
        assert reply["turn_index"] == wanted + 1
        own = (await client.events(other))[end:]
        assert [entry["seq"] for entry in own] == list(range(end + 1, end + 1 + len(own)))
        assert own[0]["prompt"] == [{"type": "text", "text": "further"}]
    assert await client.events(session) == entries


async def test_agent_that_does_not_offer_forks_gets_the_conversation_as_text(
    client: Client,
) -> None:
    session = await client.create()
    await client.turn(session, "my name is Ada")
    other = await fork(client, session)
    status, reply = await client.turn(other, script({"echo": True}))
    assert status == 200
    told = str(reply["events"])
    assert "User: my name is Ada" in told
    assert "Assistant: echo: my name is Ada" in told
    await client.turn(other, "hello")
    assert await contexts(client, other) == ["new", "told", "kept"]
    # The source does not know of it.
    await client.turn(session, "hello")
    assert await contexts(client, session) == ["new", "kept"]


@pytest.mark.parametrize("agent", ["mock-fork", "demo"])
async def test_agent_forks_its_conversation_at_the_head(client: Client, agent: str) -> None:
    session = await client.create(agent)
    await client.turn(session, "one")
    await client.turn(session, "two")
    head, earlier = await fork(client, session), await fork(client, session, turn_index=1)
    other = await fork(client, session, agent="mock")
    for one in (head, earlier, other):
        assert (await client.turn(one, "three"))[0] == 200
    assert await contexts(client, head) == ["new", "kept", "kept"]
    assert await contexts(client, earlier) == ["new", "told"]
    assert await contexts(client, other) == ["new", "kept", "told"]
    if agent == "mock-fork":
        _, reply = await client.turn(head, script({"history": True}))
        assert "one" in str(reply["events"])
        _, reply = await client.turn(session, script({"history": True}))
        assert "three" not in str(reply["events"])


async def test_agent_that_fails_to_fork_gets_the_conversation_as_text(client: Client) -> None:
    refusing = await client.create("mock-fail-fork")
    closed = await client.create("mock-fork")  # its folder has its conversation
    for session in (refusing, closed):
        await client.turn(session, "one")
    await client.delete(f"/sessions/{closed}")
    for session in (refusing, closed):
        other = await fork(client, session)
        await client.turn(other, "two")
        assert await contexts(client, other) == ["new", "told"]


async def test_fork_keeps_no_conversation_that_began_with_another_system_prompt(
    client: Client,
) -> None:
    session = await client.create("mock-fork", system="Be brief.")
    await client.turn(session, "one")
    same, other = await fork(client, session), await fork(client, session, system="Be long.")
    await client.turn(same, "two")
    _, reply = await client.turn(other, script({"echo": True}))
    assert await contexts(client, same) == ["new", "kept"]
    assert await contexts(client, other) == ["new", "told"]
    assert "Be long." in str(reply["events"])


async def test_agent_that_cannot_load_its_fork_is_told_the_conversation(serve: Serve) -> None:
    server = await serve(agents={"mock": mock_agent("--fork", "--no-load")})
    client = await server.client()
    session = await client.create("mock")
    await client.turn(session, "one")
    other = await fork(client, session)
    await client.turn(other, "two")
    assert await contexts(client, other) == ["new", "told"]


async def test_agent_is_told_the_conversation_after_turns_that_did_not_reach_it(
    serve: Serve, tmp_path: Path
) -> None:
    login = tmp_path / "login"
    login.touch()
    server = await serve(agents={"mock": mock_agent(f"--login-file={login}")}, sandbox="off")
    client = await server.client()
    session = await client.create("mock")
    await client.turn(session, "my name is Ada")
    login.unlink()
    other = await fork(client, session)
    failure(await client.turn(other, "who am I?"), 502, "login_required")
    login.touch()
    _, reply = await client.turn(other, script({"echo": True}))
    assert "User: my name is Ada" in str(reply["events"])
    await client.turn(other, "hello")
    assert await contexts(client, other) == ["new", "told", "told", "kept"]


async def test_long_conversation_is_told_in_part(serve: Serve) -> None:
    server = await serve(max_told_bytes=2000)
    client = await server.client()
    session = await client.create()
    for n in range(5):
        await client.turn(session, f"{n}:" + "x" * 400)
    other = await fork(client, session)
    _, reply = await client.turn(other, script({"echo": True}))
    text = str(reply["events"])
    assert "4:xxx" in text
    assert "0:xxx" not in text
    assert len(text) < 4000


async def test_turn_that_has_not_ended_is_not_forked(client: Client) -> None:
    session = await client.create()
    failure(await client.post(f"/sessions/{session}/fork"), 409, "conflict")
    await client.turn(session, "one")
    socket = await client.connect(session)
    await socket.send("prompt", prompt=script({"hang": True}))
    await socket.until("turn_start")
    await socket.send("prompt", prompt="queued")
    await socket.until("accepted", turn_index=3)
    for turn_index in (2, 3):
        body = {"turn_index": turn_index}
        failure(await client.post(f"/sessions/{session}/fork", body), 409, "conflict")
    failure(await client.post(f"/sessions/{session}/fork", {"turn_index": 4}), 404, "not_found")
    for index in (0, 2**63, 2**64 - 1):  # the database has no number above 2**63 - 1
        refused = await client.post(f"/sessions/{session}/fork", {"turn_index": index})
        failure(refused, 400, "bad_request")
    state = await client.state(await fork(client, session))
    assert state["forked_from"]["turn_index"] == 1
    await socket.send("cancel", turn_index=3)
    await socket.until("turn_end", turn_index=3)  # in the middle of the second turn
    failure(await client.post(f"/sessions/{session}/fork", {"turn_index": 3}), 409, "conflict")
    await socket.send("cancel")
    end = await socket.until("turn_end", turn_index=2)
    other = await fork(client, session, turn_index=3)
    assert (await client.state(other))["head"] == end["seq"]
    _, reply = await client.turn(other, "next")
    assert reply["turn_index"] == 4


async def test_client_ids_of_the_source_are_free_in_the_fork(client: Client) -> None:
    session = await client.create()
    headers = {"Idempotency-Key": "once"}
    await client.post(f"/sessions/{session}/turn", {"prompt": "one"}, headers=headers)
    other = await fork(client, session)
    _, reply = await client.post(f"/sessions/{other}/turn", {"prompt": "two"}, headers=headers)
    assert reply["turn_index"] == 2


async def test_fork_of_another_apps_session_is_missing(server: LocalServer, client: Client) -> None:
    session = await client.create()
    await client.turn(session, "one")
    other = await server.client("another")
    failure(await other.post(f"/sessions/{session}/fork"), 404, "not_found")


async def test_fork_is_refused_at_the_session_limit(serve: Serve) -> None:
    server = await serve(max_sessions=1)
    client = await server.client()
    session = await client.create()
    await client.turn(session, "one")
    failure(await client.post(f"/sessions/{session}/fork"), 503, "pool_full")
    await client.delete(f"/sessions/{session}")
    await fork(client, session)


@pytest.mark.slow
async def test_chain_of_forks_survives_purges_and_restarts(serve: Serve) -> None:
    server = await serve()
    client = await server.client()
    chain = [await client.create()]
    await client.turn(chain[0], "turn 1")
    for n in range(2, 6):
        chain.append(await fork(client, chain[-1]))
        await client.turn(chain[-1], f"turn {n}")
        await client.turn(chain[-1], "not forked, and so secret")
        await client.delete(f"/sessions/{chain[-1]}")
        if n < 5:
            chain.append(await fork(client, chain[-1], turn_index=n))
    last = chain[-1]
    wanted = await client.events(last)
    for session in chain[:-1]:
        status, _ = await client.delete(f"/sessions/{session}?purge=true")
        assert status == 200
        assert await client.events(last) == wanted
        assert traces(server, session) == []
    await server.stop()
    again = await serve()
    client = Client(again.url, client.token, client.http)
    assert await client.events(last) == wanted
    secret = {(n,) for n, body in rows(again, "SELECT session, body FROM log") if b"secret" in body}
    assert [*secret] == rows(again, "SELECT n FROM sessions WHERE id = ?", last)
    new = await client.create()  # its number is not that of a deleted session
    assert await client.events(new) == []
    await client.delete(f"/sessions/{last}?purge=true")
    await client.delete(f"/sessions/{new}?purge=true")
    assert rows(again, "SELECT count(*) FROM log") == [(0,)]
    assert rows(again, "SELECT count(*) FROM log_segments") == [(0,)]


async def test_source_purged_during_a_fork_leaves_a_whole_fork_or_none(client: Client) -> None:
    for _ in range(5):
        session = await client.create()
        await client.turn(session, "one")
        entries = await client.events(session)
        forked, purged = await asyncio.gather(
            client.post(f"/sessions/{session}/fork"),
            client.delete(f"/sessions/{session}?purge=true"),
        )
        assert purged[0] == 200
        assert forked[0] in (200, 404)
        if forked[0] == 200:
            found = await client.events(forked[1]["session_id"])
            assert found == entries[: len(found)]


# Storage.


def line(session: int, seq: int) -> bytes:
    return b'{"type":"x","seq":%d,"ts":1,"turn_index":1,"by":%d}' % (seq, session)


async def test_logs_of_random_forks_equal_their_reference(tmp_path: Path) -> None:
    """Appends, forks and deletes at random, against lists in memory; every read is compared."""
    dice = random.Random(7)
    database = await Database.open(tmp_path / "logs.db")
    try:
        queries = Queries(database)
        logs: dict[int, list[bytes]] = {}
        number = 0
        for _ in range(400):
            action = dice.random()
            if not logs or action < 0.15:
                number += 1
                logs[number] = []
                await database.write([statements.insert_session(session_row(number))])
            elif action < 0.55:
                session = dice.choice(list(logs))
                log = logs[session]
                first = len(log) + 1
                count = dice.randint(1, 5)
                log += [line(session, seq) for seq in range(first, first + count)]
                body = b"\n".join(log[first - 1 :])
                row = LogRow(session, first, first + count - 1, body)
                await database.write(statements.insert_log([row]))
            elif action < 0.85:
                source = dice.choice(list(logs))
                position = dice.randint(0, len(logs[source]))
                number += 1
                logs[number] = logs[source][:position]
                await database.write(
                    [
                        statements.insert_session(session_row(number)),
                        *segments.copy_log(source, position, number),
                    ]
                )
            else:
                session = dice.choice(list(logs))
                del logs[session]
                owners = await queries.log_owners(session)
                await database.write(statements.delete_session(session, owners))
            session = dice.choice(list(logs)) if logs else 0
            after = dice.randint(0, len(logs.get(session, [])))
            found: list[bytes] = []
            position = after
            while page := await queries.read_log(session, position, dice.choice([1, 100, 10_000])):
                lines = [one for row in page for one in row.body.split(b"\n")]
                found += lines[position + 1 - page[0].first_seq :]
                position = page[-1].last_seq
            assert found == logs.get(session, [])[after:]
            assert await queries.log_head(session) == len(logs.get(session, []))
        for session in list(logs):
            owners = await queries.log_owners(session)
            await database.write(statements.delete_session(session, owners))
        assert await database.fetch("SELECT count(*) FROM log") == [(0,)]
    finally:
        await database.close()


@pytest.mark.slow
async def test_fork_of_100_000_entries_copies_no_row(server: LocalServer, client: Client) -> None:
    session = await client.create()
    for _ in range(2):
        await client.turn(session, script({"burst": {"count": 50_000, "text": "hello"}}))
    assert (await client.state(session))["head"] > 100_000
    before = rows(server, "SELECT count(*), sum(length(body)) FROM log")
    other = await fork(client, session)
    assert rows(server, "SELECT count(*), sum(length(body)) FROM log") == before
    assert (await client.state(other))["head"] == (await client.state(session))["head"]
