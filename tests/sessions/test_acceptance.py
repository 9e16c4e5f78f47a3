"""Acceptance: a prompt reaches its agent only if it is stored, and runs once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.agents.host.agent import HostAgent
from server.codec import dumps
from server.errors import Error, not_stored
from server.sessions.content import check_content
from server.sessions.turn_queue import TurnQueue
from server.storage.writer import DatabaseWriter

from ..conftest import Serve
from ..support.harness import (
    TIMEOUT_SECS,
    Client,
    LocalServer,
    eventually,
    hold_commits,
    script,
)
from .test_turns import kinds, prompt_at_the_proxy, warm_session, workspace

HISTORY = script({"history": True})


class Commits:
    """Holds the next awaited commit until :meth:`release` or :meth:`refuse`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        commit = DatabaseWriter.commit

        async def commit_when_decided(writer: DatabaseWriter, statements: Any) -> None:
            await self._decided
            await commit(writer, statements)

        monkeypatch.setattr(DatabaseWriter, "commit", commit_when_decided)

    def release(self) -> None:
        self._decided.set_result(None)

    def refuse(self) -> None:
        self._decided.set_exception(not_stored())


async def test_prompt_does_not_reach_agent_before_it_is_stored(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, socket = await warm_session(client)
    commits = Commits(monkeypatch)
    await socket.send("prompt", prompt=script({"touch": "seen"}, {"say": "done"}))
    await prompt_at_the_proxy(server, session)
    assert not (workspace(server, session) / "seen").exists()
    state = await client.state(session)
    assert (state["state"], state["turn_index"], state["queued"]) == ("idle", None, [])
    commits.release()
    assert (await socket.until("accepted"))["queued"] is False
    await socket.until("turn_end")
    assert (socket.text(2), (workspace(server, session) / "seen").exists()) == ("done", True)


async def test_prompt_that_cannot_be_stored_never_reaches_agent(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, socket = await warm_session(client)
    for number in range(3):
        with monkeypatch.context() as patch:
            commits = Commits(patch)
            await socket.send("prompt", prompt=f"refused {number}", id="again")
            if number:  # held by the proxy; else on its way there
                await prompt_at_the_proxy(server, session)
            commits.refuse()
            assert (await socket.until("error"))["code"] == "internal"
    await socket.send("prompt", prompt=HISTORY, id="again")
    accepted = await socket.until("accepted")
    assert (accepted["turn_index"], accepted["duplicate"]) == (2, False)
    await socket.until("turn_end")
    assert "warm" in socket.text(2)
    assert "refused" not in socket.text(2)


async def test_duplicate_prompt_does_not_reach_agent(client: Client) -> None:
    _, socket = await warm_session(client)
    await socket.turn("sent once", id="once")
    for _ in range(3):
        await socket.send("prompt", prompt="sent again", id="once")
        accepted = await socket.until("accepted")
        assert (accepted["turn_index"], accepted["duplicate"]) == (2, True)
    end = await socket.turn(HISTORY)
    assert end["turn_index"] == 3
    assert ("sent once" in socket.text(3), "sent again" in socket.text(3)) == (True, False)


async def test_rate_limited_prompt_does_not_reach_agent(serve: Serve) -> None:
    server = await serve(max_prompts_per_min=2)
    client = await server.client()
    session, socket = await warm_session(client)
    await socket.turn("the second")
    await socket.send("prompt", prompt=script({"touch": "seen"}))
    error = await socket.until("error")
    assert (error["code"], error["retry_after_ms"]) == ("rate_limited", 30_000)
    await client.delete(f"/sessions/{session}")  # it waits for prompts on their way
    assert not (workspace(server, session) / "seen").exists()


async def test_close_while_a_prompt_is_stored_cancels_it(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, socket = await warm_session(client)
    commits = Commits(monkeypatch)
    await socket.send("prompt", prompt=script({"touch": "seen"}))
    await prompt_at_the_proxy(server, session)
    closing = asyncio.create_task(client.delete(f"/sessions/{session}"))
    held = server.services.sessions.cached[session]
    await eventually("the session to be closed", lambda: held.is_closed)
    commits.release()
    assert (await closing)[0] == 200
    await socket.until_closed()
    assert kinds(socket.entries)[2:] == [("turn_start", 2), ("turn_end", 2), ("session_closed", 2)]
    assert socket.entries[-2]["stop_reason"] == "cancelled"
    assert not (workspace(server, session) / "seen").exists()


async def test_agent_that_dies_before_its_prompt_is_stored_is_started_again(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, socket = await warm_session(client)
    commits = Commits(monkeypatch)
    await socket.send("prompt", prompt=HISTORY)
    await prompt_at_the_proxy(server, session)
    agent = server.services.sessions.cached[session].agent.backend_agent
    assert isinstance(agent, HostAgent)
    await agent.kill()
    commits.release()
    end = await socket.until("turn_end")
    assert (end["stop_reason"], end["error"]) == ("end_turn", None)
    assert "warm" in socket.text(2)


def note_arrival(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Return an event that is set when a prompt next arrives at its session."""
    arrived = asyncio.Event()
    for name in ("accept", "find"):
        method = getattr(TurnQueue, name)

        async def note(*args: Any, method: Any = method, **kwargs: Any) -> Any:
            arrived.set()
            return await method(*args, **kwargs)

        monkeypatch.setattr(TurnQueue, name, note)
    return arrived


@pytest.mark.parametrize("files", [[], ["gone meanwhile"]])
async def test_duplicate_of_a_prompt_that_is_being_accepted_gets_its_turn(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch, files: list[str]
) -> None:
    session = await client.create()
    stored, asked = hold_commits(server, monkeypatch)
    path, headers = f"/sessions/{session}/turn", {"Idempotency-Key": "once"}
    first = asyncio.create_task(client.post(path, {"prompt": "hi"}, headers=headers))
    await stored.wait()  # the database has it; the session does not know yet
    arrived = note_arrival(monkeypatch)
    body = {"prompt": "hi", "files": files}
    second = asyncio.create_task(client.post(path, body, headers=headers))
    await arrived.wait()
    asked.set()
    async with asyncio.timeout(TIMEOUT_SECS):
        for status, reply in await asyncio.gather(first, second):
            assert (status, reply["turn_index"]) == (200, 1)


async def test_prompt_that_is_stored_after_its_request_was_cancelled_runs(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id, socket = await warm_session(client)
    session = await server.services.sessions.get(session_id, server.services.tokens.rows()[0].name)
    blocks = dumps(check_content("stored"))
    stored, go_on = hold_commits(server, monkeypatch)
    asking = asyncio.create_task(session.prompt(blocks, client_id="once"))
    await stored.wait()
    asking.cancel()
    go_on.set()
    await asyncio.wait({asking})
    assert (await socket.until("turn_end", turn_index=2))["stop_reason"] == "end_turn"
    again = await session.prompt(blocks, client_id="once")
    assert (again.turn.index, again.is_duplicate) == (2, True)
    assert (await session.prompt(blocks))[0].index == 3
    await socket.until("turn_end", turn_index=3)


async def test_prompt_that_is_not_stored_frees_its_index_if_its_request_was_cancelled(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id, socket = await warm_session(client)
    session = await server.services.sessions.get(session_id, server.services.tokens.rows()[0].name)
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def fail(writer: DatabaseWriter, statements: Any) -> None:
        asked.set()
        await go_on.wait()
        raise not_stored()

    with monkeypatch.context() as patch:
        patch.setattr(DatabaseWriter, "commit", fail)
        asking = asyncio.create_task(session.prompt(dumps(check_content("not stored"))))
        await asked.wait()
        asking.cancel()
        go_on.set()
        await asyncio.wait({asking})
    assert (await socket.turn("next"))["turn_index"] == 2
    assert "not stored" not in socket.text()


async def test_session_continues_after_its_agent_could_not_be_given_a_prompt(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, socket = await warm_session(client)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no way to the agent")

    with monkeypatch.context() as patch:
        patch.setattr(HostAgent, "prompt", fail)
        assert (await client.turn(session, "hello"))[0] == 500
    assert (await client.state(session))["state"] == "idle"
    assert (await socket.turn("again"))["turn_index"] == 2


@pytest.mark.parametrize("why", ["duplicate", "rate_limited", "session_closed"])
async def test_refused_prompt_is_not_passed_to_acpx(
    client: Client, server: LocalServer, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    session_id = await client.create()
    path, once = f"/sessions/{session_id}/turn", {"headers": {"Idempotency-Key": "once"}}
    assert (await client.post(path, {"prompt": "hello"}, **once))[0] == 200
    passed = []
    prompt = HostAgent.prompt

    def note(agent: HostAgent, blocks: bytes, *, is_held: bool = False) -> Any:
        passed.append(blocks)
        return prompt(agent, blocks, is_held=is_held)

    def refuse(app_name: str) -> None:
        raise Error("rate_limited", "too many")

    monkeypatch.setattr(HostAgent, "prompt", note)
    if why == "duplicate":
        status, reply = await client.post(path, {"prompt": "hello"}, **once)
        assert (status, reply["turn_index"]) == (200, 1)
    else:
        if why == "rate_limited":
            monkeypatch.setattr(server.services.sessions.quotas, "check_prompt_rate", refuse)
        else:
            await client.delete(f"/sessions/{session_id}")
        assert (await client.turn(session_id, "hello"))[1]["code"] == why
    assert passed == []
