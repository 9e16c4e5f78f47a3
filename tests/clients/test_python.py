"""The Python client against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from clawdforge_client import (
    Clawdforge,
    ClawdforgeError,
    Entry,
    PermissionRequest,
    Question,
    TurnError,
    Watch,
    WatchEvent,
    connection,
    feed,
    frames,
    rest,
    text_of,
    watch,
)

from ..conftest import Spawn
from ..repository.test_guides import program_of
from ..support.client import ADMIN
from ..support.harness import (
    Client,
    Deadline,
    Json,
    LocalServer,
    eventually,
    http_session,
    new_client,
    script,
)
from .cutting_proxy import cutting_proxy
from .refusing_server import REFUSED_MS, refusing_server, scripted_server


@pytest.fixture
async def forge(client: Client) -> AsyncIterator[Clawdforge]:
    assert client.token is not None
    async with Clawdforge(client.url, client.token, retry_secs=5) as forge:
        yield forge


@pytest.fixture
def without_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients connect again at once."""
    for module in (connection, watch):
        monkeypatch.setattr(module, "backoff", lambda _: 0)


def seqs(entries: list[Entry]) -> list[int]:
    return [entry["seq"] for entry in entries]


def without_gaps(entries: list[Entry]) -> bool:
    return bool(entries) and seqs(entries) == list(
        range(entries[0]["seq"], entries[0]["seq"] + len(entries))
    )


async def test_turn_yields_the_text_of_the_answer(forge: Clawdforge) -> None:
    session = await forge.create_session(agent="mock")
    turn = session.prompt(script({"say": "one "}, {"say": "two"}))
    assert [text async for text in turn.text()] == ["one ", "two"]
    result = await turn.result()
    assert (result.text, result.stop_reason, result.turn_index) == ("one two", "end_turn", 1)
    assert not turn.duplicate
    assert not result.withdrawn


async def test_turns_of_one_session_do_not_mix(forge: Clawdforge) -> None:
    session = await forge.create_session(agent="mock")
    turns = [session.prompt(f"prompt {number}") for number in range(5)]
    texts = [(await turn.result()).text for turn in reversed(turns)]
    assert texts == [f"echo: prompt {number}" for number in reversed(range(5))]


async def test_failed_turn_raises_its_code_and_keeps_its_text(forge: Clawdforge) -> None:
    session = await forge.create_session(agent="mock")
    turn = session.prompt(script({"say": "so far"}, {"exit": 3}))
    with pytest.raises(TurnError) as caught:
        async for _ in turn.text():
            pass
    assert (caught.value.code, caught.value.retryable) == ("agent_failed", True)
    assert caught.value.text == "so far"
    assert [entry async for entry in turn] == []


async def test_errors_have_the_code_of_the_server(forge: Clawdforge, client: Client) -> None:
    with pytest.raises(ClawdforgeError) as caught:
        await forge.create_session(agent="no-such-agent")
    assert (caught.value.code, caught.value.status) == ("bad_request", 400)
    assert caught.value.request_id
    unknown = forge.session("00000000-0000-4000-8000-000000000000")
    with pytest.raises(ClawdforgeError) as caught:
        await unknown.ask("hello")
    assert caught.value.code == "not_found"
    async with Clawdforge(client.url, "cf_wrong") as stranger:
        with pytest.raises(ClawdforgeError) as caught:
            await anext(stranger.sessions())
        assert caught.value.code == "unauthorized"
        with pytest.raises(ClawdforgeError) as caught:
            await stranger.session(unknown.id).ask("hello")
        assert caught.value.code == "unauthorized"
    session = await forge.create_session(agent="mock")
    with pytest.raises(ClawdforgeError) as caught:
        await session.ask([{"type": "no-such-block"}])
    assert caught.value.code == "bad_request"
    with pytest.raises(ClawdforgeError) as caught:
        await session.ask("x" * (5 << 20))
    assert caught.value.code == "payload_too_large"
    await session.close()
    with pytest.raises(ClawdforgeError) as caught:
        await session.ask("hello")
    assert caught.value.code == "session_closed"


async def test_unreachable_server_raises_connection_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    async with Clawdforge(url, "cf_any", retry_secs=0.2, give_up_secs=0.2) as forge:
        with pytest.raises(ClawdforgeError) as caught:
            await forge.create_session()
        assert (caught.value.code, caught.value.retryable) == ("connection_lost", True)
        with pytest.raises(ClawdforgeError) as caught:
            await forge.session("some-id").ask("hello")
        assert caught.value.code == "connection_lost"
        with pytest.raises(ClawdforgeError) as caught:
            await forge.session("some-id").export()
        assert caught.value.code == "connection_lost"


async def test_silent_server_raises_connection_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "SILENT_SECS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it accepts connections, and no more
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with Clawdforge(url, "cf_any", retry_secs=0) as forge:
            with pytest.raises(ClawdforgeError) as caught:
                async with Deadline("the call to give up"):
                    await forge.session("some-id").state()
    assert (caught.value.code, caught.value.retryable) == ("connection_lost", True)


async def test_prompt_with_a_known_id_returns_the_earlier_turn(
    forge: Clawdforge, client: Client
) -> None:
    session = await forge.create_session(agent="mock")
    first = await session.prompt("hello", id="monday").result()
    await session.ask("another")
    assert client.token is not None
    async with Clawdforge(client.url, client.token) as restarted:
        turn = restarted.session(session.id).prompt("hello", id="monday")
        assert await turn.result() == first
        assert turn.duplicate
    assert (await session.state())["turn_count"] == 2


async def test_entries_are_delivered_once_over_cut_connections(
    server: LocalServer, client: Client, tmp_path: Path
) -> None:
    assert client.token is not None
    async with cutting_proxy(server.url) as proxy:
        async with Clawdforge(proxy.url, client.token) as forge:
            session = await forge.create_session(agent="mock")
            followed: list[Entry] = []

            async def follow() -> None:
                async for entry in session.entries():
                    followed.append(entry)
                    if entry["type"] == "turn_end" and entry["turn_index"] == 2:
                        return

            following = asyncio.create_task(follow())
            proxy.cut_after = 20_000  # each connection carries a small part
            gate = tmp_path / "gate"
            turn = session.prompt(
                script(
                    {"burst": {"count": 400, "text": "x" * 40}},
                    {"gate": str(gate)},
                    {"burst": {"count": 400, "text": "y" * 40}},
                )
            )
            entries: list[Entry] = []
            async for entry in turn:
                entries.append(entry)
                if len(entries) == 300:
                    proxy.cut()
                    gate.touch()
            proxy.cut_after = None
            await session.ask("done")
            await following
        assert proxy.connections > 5
    assert without_gaps(entries)
    texts = [text for entry in entries if (text := text_of(entry))]
    assert len(texts) == 800
    assert [text.partition(":")[0] for text in texts] == [str(n) for n in [*range(400)] * 2]
    assert without_gaps(followed)
    assert followed == await client.events(session.id)


@pytest.mark.usefixtures("without_backoff")
async def test_prompt_that_was_lost_on_its_way_is_sent_again(
    server: LocalServer, client: Client
) -> None:
    assert client.token is not None
    async with cutting_proxy(server.url) as proxy, Clawdforge(proxy.url, client.token) as forge:
        session = await forge.create_session(agent="mock")
        await session.ask("warm")
        for number in range(10):
            turn = session.prompt(f"prompt {number}")
            if number % 2:
                await asyncio.sleep(0)
            proxy.cut()
            assert (await turn.result()).text == f"echo: prompt {number}"
    assert (await client.state(session.id))["turn_count"] == 11


@pytest.mark.slow
async def test_turn_and_log_survive_a_killed_server(spawn: Spawn) -> None:
    server = await spawn()
    port = server.url.rpartition(":")[2]
    token = await _token(server.url)
    async with cutting_proxy(server.url) as proxy, Clawdforge(proxy.url, token) as forge:
        session = await forge.create_session(agent="mock")
        followed: list[Entry] = []

        async def follow() -> None:
            async for entry in session.entries():
                followed.append(entry)
                if entry["type"] == "turn_end" and entry["turn_index"] == 2:
                    return

        following = asyncio.create_task(follow())
        turn = session.prompt(script({"burst": {"count": 50, "text": "x"}}, {"hang": True}))
        entries: list[Entry] = []
        async for entry in turn:
            entries.append(entry)
            if len(entries) == 51:
                await server.kill()
                assert await _again(spawn, port) == server.url
        with pytest.raises(TurnError) as caught:
            await turn.result()
        assert (caught.value.code, caught.value.retryable) == ("server_restarted", True)
        assert without_gaps(entries)
        assert len([entry for entry in entries if text_of(entry)]) == 50
        assert (await session.ask("again")).text == "echo: again"
        await following
        assert without_gaps(followed)
        assert seqs(followed) == seqs(await session.log())


async def _again(spawn: Spawn, port: str) -> str:
    return (await spawn(PORT=port)).url


async def _token(url: str) -> str:
    async with http_session() as http:
        token = (await new_client(url, http)).token
    assert token is not None
    return token


@pytest.mark.slow
async def test_retry_runs_a_turn_that_a_restart_has_ended(spawn: Spawn, tmp_path: Path) -> None:
    server = await spawn(DRAIN_SECS="0.1")
    port = server.url.rpartition(":")[2]
    async with Clawdforge(server.url, await _token(server.url)) as forge:
        session = await forge.create_session(agent="mock")
        gate = tmp_path / "gate"
        asking = asyncio.create_task(session.ask(script({"gate": str(gate)}), retries=1))
        await eventually_running(session.id, forge)
        await server.stop()
        gate.touch()
        await spawn(PORT=port)
        assert (await asking).turn_index == 2


@pytest.mark.slow
async def test_bot_keeps_its_conversations_over_everything_that_happens(spawn: Spawn) -> None:
    """The bot of the docs, and in a minute what happens to it in weeks."""
    server = await spawn()
    port = server.url.rpartition(":")[2]
    async with http_session() as http:
        admin = Client(server.url, ADMIN, http)
        app = await new_client(server.url, http)

        async def new_token() -> str:
            status, reply = await admin.post("/admin/tokens", {"name": "app"})
            assert status == 200, reply
            app.token = reply["token"]
            return str(reply["token"])

        names: dict[str, Any] = {"asyncio": asyncio, "ClawdforgeError": ClawdforgeError}
        names["new_token"] = new_token
        exec(program_of("howto/python-client.md", "keeper.py"), names)
        said: list[str] = []
        async with (
            cutting_proxy(server.url) as proxy,
            Clawdforge(proxy.url, app.token or "") as forge,
        ):
            sessions: dict[str, Any] = {}

            async def say(text: str, message_id: str) -> str:
                said.append(text)
                return str(await names["answer"](forge, sessions, "42", text, message_id))

            assert await say("one", "m1") == "echo: one"
            first = sessions["42"].id
            await server.kill()
            await _again(spawn, port)
            assert await say("two", "m2") == "echo: two"
            proxy.cut()
            assert await say("three", "m3") == "echo: three"
            # Another client closes the session, as its idle time would.
            assert (await app.delete(f"/sessions/{first}"))[0] == 200
            assert await say("four", "m4") == "echo: four"
            assert (await admin.call("DELETE", "/admin/tokens/app"))[0] == 200
            assert await say("five", "m5") == "echo: five"
            # The bot was restarted, and does not know whether it has answered.
            sessions["42"] = forge.session(first)
            assert await say("five", "m5") == "echo: five"
            entries = await sessions["42"].log()
            starts = [one for one in entries if one["type"] == "turn_start"]
            assert [one["context"] for one in starts] == ["new", *["kept"] * 4]
            assert (await app.delete(f"/sessions/{first}?purge=true"))[0] == 200
            assert await say("six", "m6") == "echo: six"
            assert sessions["42"].id != first
            for session in sessions.values():
                await session.detach()


@pytest.mark.slow
async def test_repeated_message_returns_the_try_that_succeeded(
    spawn: Spawn, tmp_path: Path
) -> None:
    server = await spawn()
    port = server.url.rpartition(":")[2]
    async with Clawdforge(server.url, await _token(server.url)) as forge:
        session = await forge.create_session(agent="mock")
        gate = tmp_path / "gate"
        text = script({"gate": str(gate)}, {"say": "done"})
        asking = asyncio.create_task(session.ask(text, id="message", retries=1))
        await eventually_running(session.id, forge)
        await server.kill()
        gate.touch()
        await _again(spawn, port)
        assert (await asking).turn_index == 2
        again = await forge.session(session.id).ask(text, id="message", retries=1)
        assert again.turn_index == 2
        assert (await session.state())["turn_count"] == 2


async def test_tries_of_a_message_are_made_once(forge: Clawdforge) -> None:
    session = await forge.create_session(agent="mock")
    for _ in range(2):  # the second time as after a restart of the program
        with pytest.raises(TurnError) as caught:
            await forge.session(session.id).ask(script({"exit": 1}), id="message", retries=1)
        assert caught.value.turn_index == 2
    assert (await session.state())["turn_count"] == 2


async def eventually_running(session_id: str, forge: Clawdforge) -> None:
    async def is_running() -> bool:
        return (await forge.session(session_id).state())["state"] == "running"

    await eventually("the turn to run", is_running)


async def test_slow_reader_gets_the_rest_from_the_log(
    forge: Clawdforge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MAX_BUFFERED", 20)
    monkeypatch.setattr(feed, "PAGE", 30)
    session = await forge.create_session(agent="mock")
    turn = session.prompt(script({"burst": {"count": 300, "text": "x"}}))
    first = [await anext(aiter(turn)) for _ in range(3)]
    await session.ask("later")  # the first turn has ended meanwhile
    rest = [entry async for entry in turn]
    assert without_gaps([*first, *rest])
    assert (await turn.result()).text.count("x") == 300


async def test_follower_can_begin_anywhere(forge: Clawdforge) -> None:
    session = await forge.create_session(agent="mock")
    await session.ask("one")
    head = (await session.state())["head"]
    live = aiter(session.entries(after=None))
    waiting = asyncio.ensure_future(anext(live))
    await session.ask("two")
    assert (await waiting)["seq"] > head
    log = await session.log()
    some = [entry["seq"] for entry in await session.log(after=head)]
    assert some == [seq for seq in seqs(log) if seq > head]
    await session.close()
    assert [entry async for entry in session.entries(after=head)] == (await session.log(after=head))
    with pytest.raises(ClawdforgeError) as caught:
        await anext(session.entries(after=10**6))
    assert caught.value.code == "bad_request"


async def test_permission_handler_answers_the_agent(forge: Clawdforge) -> None:
    asked: list[PermissionRequest] = []

    async def decide(request: PermissionRequest) -> bool:
        asked.append(request)
        return len(asked) == 1

    session = await forge.create_session(agent="mock", on_permission=decide)
    assert (await session.state())["permission"] == "ask"
    step = {"permission": {"title": "Delete it", "kind": "delete"}}
    assert "allow" in (await session.ask(script(step))).text
    assert "reject" in (await session.ask(script(step))).text
    assert [request.title for request in asked] == ["Delete it", "Delete it"]


async def test_failing_handler_cancels_the_request(forge: Clawdforge) -> None:
    async def decide(request: PermissionRequest) -> bool:
        raise RuntimeError

    session = await forge.create_session(agent="mock", on_permission=decide)
    assert (await session.ask(script({"permission": True}))).stop_reason == "cancelled"


async def test_handler_is_not_called_if_the_policy_answers(forge: Clawdforge) -> None:
    async def decide(request: PermissionRequest) -> bool:
        raise AssertionError

    session = await forge.create_session(
        agent="mock", on_permission=decide, permission="approve-all"
    )
    assert "allow" in (await session.ask(script({"permission": True}))).text


FORM = {
    "mode": "form",
    "message": "Where?",
    "requestedSchema": {
        "type": "object",
        "required": ["copies"],
        "properties": {"copies": {"type": "integer", "minimum": 1}},
    },
}


async def test_question_handler_answers_and_corrects_itself(forge: Clawdforge) -> None:
    asked: list[Question] = []

    async def reply(question: Question) -> Json:
        asked.append(question)
        return {"copies": 0 if question.problem is None else 2}

    session = await forge.create_session(agent="mock", on_question=reply)
    assert '"copies":2' in (await session.ask(script({"elicit": FORM}))).text.replace(" ", "")
    assert [question.field for question in asked] == [None, "copies"]
    assert asked[0].message == "Where?"


async def test_steered_prompt_joins_the_running_turn(forge: Clawdforge, tmp_path: Path) -> None:
    session = await forge.create_session(agent="mock-steers")
    gate = tmp_path / "gate"
    turn = session.prompt(script({"say": "started"}, {"gate": str(gate)}))
    entries = aiter(turn)
    while text_of(await anext(entries)) != "started":
        pass
    steered = session.prompt("and this", steer=True)
    assert await steered.accepted() == await turn.accepted()
    assert steered.steered
    gate.touch()
    assert (await steered.result()).turn_index == (await turn.result()).turn_index == 1


async def test_queue_is_edited_withdrawn_and_cancelled(forge: Clawdforge, tmp_path: Path) -> None:
    session = await forge.create_session(agent="mock")
    gate = tmp_path / "gate"
    running = session.prompt(script({"gate": str(gate)}))
    edited, withdrawn, cancelled = (session.prompt(text) for text in ("one", "two", "three"))
    for turn in (running, edited, withdrawn, cancelled):
        await turn.accepted()
    assert edited.index is not None
    assert withdrawn.index is not None
    await session.edit_queued(edited.index, prompt="changed")
    await session.withdraw(withdrawn.index)
    assert await cancelled.cancel()
    assert (await withdrawn.result()).withdrawn
    assert (await cancelled.result()).withdrawn
    gate.touch()
    assert (await edited.result()).text == "echo: changed"
    assert not await edited.cancel()
    hanging = session.prompt(script({"hang": True}))
    await hanging.accepted()
    await eventually_running(session.id, forge)
    assert await hanging.cancel()
    assert (await hanging.result()).stop_reason == "cancelled"
    assert not await session.cancel()


async def test_files_are_written_read_compared_and_restored(
    forge: Clawdforge, tmp_path: Path
) -> None:
    session = await forge.create_session(agent="mock")
    await session.files.write("a folder/ü #1.txt", "hello\n")
    assert await session.files.read_text("a folder/ü #1.txt") == "hello\n"
    folders = [file["path"] for file in await session.files.list() if file["type"] == "directory"]
    assert folders == ["a folder"]
    await session.ask("prepare")
    await session.ask(script({"write": "made.txt"}))
    assert {"path": "made.txt", "status": "added"}.items() <= (await session.files.changes())[
        0
    ].items()
    assert "b/made.txt" in await session.files.diff("made.txt")
    undone = await session.files.undo(turn_index=2)
    with pytest.raises(ClawdforgeError) as caught:
        await session.files.read("made.txt")
    assert caught.value.code == "not_found"
    await session.files.undo(snapshot_id=undone["snapshot_id"])
    await session.files.download("made.txt", tmp_path / "made.txt")
    assert (tmp_path / "made.txt").exists()
    await session.files.archive(tmp_path / "all.zip")
    assert (tmp_path / "all.zip").read_bytes().startswith(b"PK")
    assert await session.files.snapshots()


async def test_uploaded_file_reaches_the_agent(forge: Clawdforge, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("content")
    session = await forge.create_session(agent="mock")
    tokens = [await forge.upload(note), await forge.upload(b"bytes", name="other.txt")]
    text = (await session.ask("read", files=tokens)).text
    assert "note.txt" in text
    assert "other.txt" in text


async def test_sessions_are_listed_searched_and_moved_on(forge: Clawdforge) -> None:
    session = await forge.create_session(agent="mock", meta={"title": "Weather in Oslo"})
    for _ in range(3):
        await forge.create_session(agent="mock")
    ids = [state["session_id"] async for state in forge.sessions(page=2, fields=["title"])]
    assert len(set(ids)) == 4
    found = [state["session_id"] async for state in forge.sessions(q="oslo")]
    assert found == [session.id]
    await session.ask("remarkable")

    async def is_found() -> bool:
        return bool(await forge.search("remarkable"))

    await eventually("the text to be found", is_found)
    state = await session.update(meta={"title": "Rain"})
    assert state["title"] == "Rain"
    assert await session.mark_read(state["head"]) == 0
    fork = await session.fork()
    assert (await fork.ask("more")).turn_index == 2
    copy = await forge.import_session(await session.export())
    assert (await copy.state())["state"] == "closed"
    assert (await copy.reopen())["state"] == "idle"
    share = await session.share(label="team")
    assert [one["share_id"] for one in await session.shares()] == [share["share_id"]]
    await session.revoke_share(share["share_id"])
    assert await session.ticket()
    assert "mock" in [agent["name"] for agent in await forge.agents()]
    assert isinstance(await forge.usage(by="agent"), list)
    await session.close(purge=True)
    with pytest.raises(ClawdforgeError) as caught:
        await session.state()
    assert caught.value.code == "not_found"


async def test_runs_are_made_streamed_and_found_again(forge: Clawdforge) -> None:
    prompt = script({"say": "[1, "}, {"say": "2]"})
    assert (await forge.run(prompt, agent="mock", key="k")).result == [1, 2]
    assert (await forge.run(prompt, agent="mock", key="k")).result == [1, 2]
    stream = forge.run_stream(prompt, agent="mock", include=["usage", "session_id"])
    assert [update async for update in stream]
    result = await stream.result()
    assert result.result == [1, 2]
    assert result.session_id
    run = await forge.run_in_background(prompt, agent="mock")
    assert (await forge.background_run(run.id).result()).result == [1, 2]
    await run.end()
    with pytest.raises(ClawdforgeError) as caught:
        await run.poll()
    assert caught.value.code == "not_found"
    with pytest.raises(ClawdforgeError) as caught:
        await forge.run(script({"exit": 1}), agent="mock")
    assert caught.value.code == "agent_failed"


async def test_closed_client_ends_its_readers(forge: Clawdforge) -> None:
    session = await forge.create_session(agent="mock")
    turn = session.prompt(script({"hang": True}))
    await turn.accepted()
    waiting = asyncio.create_task(turn.result())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await asyncio.shield(waiting)
    await forge.close()
    with pytest.raises(ClawdforgeError) as caught:
        await waiting
    assert caught.value.code == "closed"


async def test_idle_socket_is_closed_and_opened_again(client: Client) -> None:
    assert client.token is not None
    async with Clawdforge(client.url, client.token, linger_secs=0.01) as forge:
        session = await forge.create_session(agent="mock")
        await session.ask("one")

        async def is_detached() -> bool:
            return (await session.state()).get("sockets") == 0

        await eventually("the socket to be closed", is_detached)
        assert (await session.ask("two")).text == "echo: two"


# Refusals for now.


def test_refused_prompt_waits_as_long_as_the_server_says() -> None:
    refused = {"type": "error", "code": "rate_limited", "retry_after_ms": 60_000}
    error = frames.frame_error(refused)
    assert error.retry_after == 60
    assert frames.resend_secs(error) >= 60


@pytest.fixture
async def refused(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once the client knows that a prompt was refused. It adds no time of its own."""
    event = asyncio.Event()

    def backoff(attempt: int) -> float:
        event.set()
        return 0

    monkeypatch.setattr(frames, "backoff", backoff)
    return event


async def test_refused_prompts_follow_after_the_time_of_the_server_in_order(
    refused: asyncio.Event,
) -> None:
    async with refusing_server() as server, Clawdforge(server.url, "cf_any") as forge:
        session = forge.session("some-id")
        turns = [session.prompt("one")]
        await refused.wait()
        turns.append(session.prompt("two"))
        for turn in turns:
            await turn.accepted()
    assert server.accepted == ["one", "two"]
    assert server.waited_secs >= REFUSED_MS / 1000


async def test_prompts_refused_in_a_watch_follow_after_the_time_of_the_server(
    refused: asyncio.Event,
) -> None:
    async with (
        refusing_server() as server,
        Clawdforge(server.url, "cf_any") as forge,
        forge.watch() as watch,
    ):
        await watch.prompt("some-id", "one")
        following = asyncio.create_task(until_accepted(watch, 2))
        await refused.wait()
        await watch.prompt("some-id", "two")
        await following
    assert server.accepted == ["one", "two"]
    assert server.waited_secs >= REFUSED_MS / 1000


async def until_accepted(watch: Watch, count: int) -> None:
    async for event in watch:
        count -= event.kind == "accepted"
        if not count:
            return


async def test_calls_are_repeated_if_the_server_has_refused_them_for_now() -> None:
    refused = {"ok": False, "code": "rate_limited", "error": "slow down"}
    later = {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}
    async with scripted_server() as (url, replies), Clawdforge(url, "cf_any") as forge:
        state = web.json_response({"session_id": "some-id"})
        replies += [web.json_response(refused, status=429, headers=later), state]
        assert (await forge.create_session()).id == "some-id"
        # A proxy, while its server restarts: the call may have been carried out.
        state = web.json_response({"session_id": "some-id"})
        replies += [web.Response(status=502, text="<h1>Bad Gateway</h1>"), state]
        assert await forge.session("some-id").state() == {"session_id": "some-id"}
        replies.append(web.Response(status=502, text="<h1>Bad Gateway</h1>"))
        with pytest.raises(ClawdforgeError) as caught:
            await forge.create_session()
        assert (caught.value.status, caught.value.retryable) == (502, True)
        # The client does not wait for longer than it would for a server that is away.
        replies.append(web.json_response(refused, status=429, headers={"Retry-After": "60"}))
        with pytest.raises(ClawdforgeError) as caught:
            await forge.agents()
        assert (caught.value.code, caught.value.retry_after) == ("rate_limited", 60)
        assert not replies


async def test_changed_token_is_used_for_what_was_refused_with_the_former_one(
    client: Client,
) -> None:
    assert client.token is not None
    session_id = await client.create()
    async with Clawdforge(client.url, "cf_wrong") as forge, forge.watch() as watch:
        session = forge.session(session_id)
        turn = session.prompt("hello")
        first = asyncio.create_task(anext(watch))
        state = asyncio.create_task(session.state())
        await asyncio.sleep(0)  # all three have begun
        forge.set_token(client.token)
        assert (await turn.result()).text == "echo: hello"
        assert (await first).session_id == session_id
        assert (await state)["session_id"] == session_id


async def test_webhook_push_and_budget_are_managed(forge: Clawdforge) -> None:
    with pytest.raises(ClawdforgeError) as caught:
        await forge.webhook.state()
    assert caught.value.code == "not_found"
    with pytest.raises(ClawdforgeError) as caught:
        await forge.webhook.set("https://hooks.example.org/", events=["turn_ended"])
    assert caught.value.code == "bad_request"  # the operator has named no host
    with pytest.raises(ClawdforgeError) as caught:
        await forge.webhook.delete()
    assert caught.value.code == "not_found"
    assert await forge.push.key()
    keys = {
        "p256dh": "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcx"
        "aOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
        "auth": "BTBZMqHH6r4Tts7J_aSIgg",
    }
    endpoint = "https://updates.push.services.mozilla.com/wpush/v2/any"
    subscription = {"endpoint": endpoint, "expirationTime": None, "keys": keys}
    found = await forge.push.subscribe(subscription, events=["turn_ended"])
    assert [one["id"] for one in await forge.push.subscriptions()] == [found]
    await forge.push.unsubscribe(found)
    assert await forge.push.subscriptions() == []
    assert await forge.budget() == {}
    assert isinstance(await forge.folders(), list)


# Many sessions over one socket.


async def until(watch: Watch, count: int, kind: str = "turn_end") -> list[WatchEvent]:
    """The events of a watch up to *count* entries of a kind."""
    found: list[WatchEvent] = []
    async for event in watch:
        found.append(event)
        is_end = event.entry is not None and event.entry["type"] == kind
        count -= is_end
        if not count:
            return found
    raise AssertionError("the watch has ended")


def entries_by_session(events: list[WatchEvent]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for event in events:
        if event.entry is not None:
            found.setdefault(event.session_id, []).append(event.entry)
    return found


async def test_watch_follows_the_list_and_many_sessions(forge: Clawdforge) -> None:
    known = await forge.create_session(agent="mock", meta={"title": "known"})
    async with forge.watch(fields=["title", "state"]) as watch:
        first = await anext(watch)
        assert (first.kind, first.session_id) == ("session", known.id)
        assert watch.sessions[known.id]["title"] == "known"
        others = [(await forge.create_session(agent="mock")).id for _ in range(3)]
        for session in others:
            await watch.subscribe(session, after=0)
            prompt = await watch.prompt(session, "hello")
            assert await watch.prompt(session, "hello", id=prompt) == prompt  # runs once
        found = await until(watch, 3)
        assert {event.session_id for event in found if event.kind == "accepted"} == {*others}
        for entries in entries_by_session(found).values():
            assert without_gaps(entries)
            assert [entry["type"] for entry in entries].count("turn_start") == 1
        with pytest.raises(TimeoutError):  # a reader that gives up for now loses nothing
            async with asyncio.timeout(0.01):
                await until(watch, 1, "no such kind")
        await watch.unsubscribe(others[0])
        await watch.prompt(known.id, [{"type": "no-such-block"}])
        await watch.subscribe(known.id, after=10_000)
        await watch.subscribe("00000000-0000-4000-8000-000000000000")
        errors = []
        async for event in watch:
            if event.kind == "refused":
                assert event.error is not None
                errors.append((event.error.code, event.id is None))
            if len(errors) == 2:
                break
        assert sorted(errors) == [("bad_request", False), ("bad_request", True)]
        await forge.session(others[1]).close()
        async for event in watch:
            if (event.kind, event.session_id) == ("gone", others[1]):
                break
        assert watch.sessions.keys() == {known.id, others[0], others[2]}


@pytest.mark.usefixtures("without_backoff")
async def test_watch_delivers_each_entry_once_over_cut_connections(client: Client) -> None:
    assert client.token is not None
    async with cutting_proxy(client.url) as proxy:
        async with Clawdforge(proxy.url, client.token) as forge, forge.watch() as watch:
            ids = [await client.create() for _ in range(3)]
            for session in ids:
                await watch.subscribe(session, after=0)
                await watch.prompt(session, script({"burst": {"count": 200, "text": "w"}}))
            proxy.cut_after = 20_000
            found = await until(watch, 3)
        assert proxy.connections > 2
    for session, entries in entries_by_session(found).items():
        assert entries == await client.events(session)
    accepted = [event.session_id for event in found if event.kind == "accepted"]
    assert sorted(accepted) == sorted(ids)


async def test_watch_with_an_unknown_token_is_refused(client: Client) -> None:
    async with Clawdforge(client.url, "cf_wrong") as stranger, stranger.watch() as watch:
        with pytest.raises(ClawdforgeError) as caught:
            await anext(watch)
    assert caught.value.code == "unauthorized"
