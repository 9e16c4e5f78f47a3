"""Snapshots and undos that a kill interrupts."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from server.sessions.details import SessionDetails
from server.workspace.session_snapshots import SessionSnapshots
from server.workspace.workers import SnapshotError

from ..conftest import Serve, Spawn
from ..support.harness import (
    Client,
    Json,
    LocalServer,
    eventually,
    failure,
    http_session,
    new_client,
    run_program,
)
from .test_snapshots import changes, folder_of, tree, turn_that, undo, write


@pytest.mark.slow
async def test_undo_interrupted_by_a_kill_is_finished_at_the_next_start(
    spawn: Spawn, tmp_path: Path
) -> None:
    process = await spawn()
    async with http_session() as http:
        client = await new_client(process.url, http)
        session = await client.create()
        folder = await folder_of(client, session)

        def fill(folder: Path) -> None:
            for number in range(3000):
                (folder / f"{number}").write_text("old")

        def replace(folder: Path) -> None:
            for path in folder.glob("[0-9]*"):
                path.write_text("new content")

        await turn_that(client, session, fill)
        await turn_that(client, session, replace)
        await changes(client, session)
        asking = asyncio.create_task(client.post(f"/sessions/{session}/undo", {"turn_index": 2}))
        await eventually(
            "the undo to begin", lambda: any(p.read_text() == "old" for p in folder.glob("[0-9]*"))
        )
        await process.kill()
        await asyncio.gather(asking, return_exceptions=True)
        assert any(path.read_text() != "old" for path in folder.glob("[0-9]*"))
        process = await spawn()
        assert set(tree(folder).values()) == {"old"}
        assert len(tree(folder)) == 3000
        client = Client(process.url, client.token, http)
        journal = tmp_path / "data" / "snapshots" / session / "restoring"
        await eventually("the undo to be settled", lambda: not journal.exists())
        _, listed = await client.get(f"/sessions/{session}/snapshots")
        snapshots = listed["snapshots"]
        assert [one["kind"] for one in snapshots[-2:]] == ["undo", "restored"]
        [notice] = await notices_of(client, session)
        assert notice["snapshot_id"] == snapshots[-2]["snapshot_id"]
        assert (notice["restored_turn"], notice["turn_index"]) == (2, 2)
        await undo(client, session, snapshot_id=snapshots[-2]["snapshot_id"])
        assert set(tree(folder).values()) == {"new content"}
        await process.stop()


async def notices_of(client: Client, session: str) -> list[Json]:
    return [one for one in await client.events(session) if one.get("notice") == "undone"]


@pytest.mark.slow
@pytest.mark.parametrize("is_logged", [True, False])
async def test_undo_without_its_entry_is_logged_once_by_the_next_server(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, *, is_logged: bool
) -> None:
    server = await serve()
    client = await server.client()
    session = await client.create()
    await turn_that(client, session, write("a", "x"))

    async def not_settled(*_: Any) -> None:
        """The server is killed before this."""

    with monkeypatch.context() as patch:
        patch.setattr(SessionSnapshots, "settle_undo", not_settled)
        if not is_logged:
            patch.setattr(SessionDetails, "log_undo", lambda *_, **__: None)
        await client.post(f"/sessions/{session}/undo", {"turn_index": 1})
    assert len(await notices_of(client, session)) == is_logged
    write("b", "y")(await folder_of(client, session))  # the undo is done, and is not done again
    await server.stop()
    server = await serve()
    client = Client(server.url, client.token, client.http)
    [notice] = await notices_of(client, session)
    _, listed = await client.get(f"/sessions/{session}/snapshots")
    [undone] = [one for one in listed["snapshots"] if one["kind"] == "undo"]
    assert notice["snapshot_id"] == undone["snapshot_id"]
    assert tree(await folder_of(client, session)) == {"b": "y"}
    journal = server.services.settings.data_dir / "snapshots" / session / "restoring"
    await eventually("the undo to be settled", lambda: not journal.exists())


async def test_undo_whose_worker_ends_is_finished_by_another_or_logged_as_incomplete(
    own_server: LocalServer, own_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, session = own_client, await own_client.create()
    await turn_that(client, session, write("a", "x"))
    snapshots = own_server.services.sessions.cached[session].snapshots
    folder = await folder_of(client, session)
    journal = own_server.services.settings.data_dir / "snapshots" / session / "restoring"
    call, texts, killed = snapshots.call, list[str](), {"undo"}

    async def killed_worker(operation: str, **fields: Any) -> Any:
        if operation not in killed:
            return await call(operation, **fields)
        response = await call(operation, **fields)
        # As if the worker had ended before it was done.
        text = await asyncio.to_thread(journal.read_text)
        texts.append(text.replace("is_done", "was_done"))
        await asyncio.to_thread(journal.write_text, texts[-1])
        await asyncio.to_thread((folder / "half").write_text, "restored")
        raise SnapshotError(f"killed here after {response}")

    monkeypatch.setattr(snapshots, "call", killed_worker)
    reply = await undo(client, session, turn_index=1)
    assert tree(folder) == {}
    assert not journal.exists()
    [notice] = await notices_of(client, session)
    assert notice["snapshot_id"] == reply["snapshot_id"]
    assert "incomplete" not in notice

    # The other worker ends, too.
    killed.add("recover")
    refused = await client.post(f"/sessions/{session}/undo", {"snapshot_id": reply["snapshot_id"]})
    failure(refused, 503, "pool_full")
    assert not journal.exists()
    [_, notice] = await notices_of(client, session)
    assert (notice["incomplete"], notice["snapshot_id"]) == (True, refused[1]["snapshot_id"])
    assert tree(folder) == {"a": "x", "half": "restored"}
    killed.clear()
    await undo(client, session, snapshot_id=notice["snapshot_id"])
    assert tree(folder) == {}

    # It is not finished after other turns, as if its journal could not be removed.
    await turn_that(client, session, write("b", "y"))
    journal.write_text(texts[-1])
    assert await snapshots.recover_undo() is None
    assert tree(folder) == {"b": "y"}


async def test_undo_that_does_not_begin_leaves_an_earlier_one_alone(
    own_server: LocalServer, own_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, session = own_client, await own_client.create()
    await turn_that(client, session, write("a", "x"))

    async def not_settled(*_: Any) -> None:
        """The journal of the first undo stays."""

    monkeypatch.setattr(SessionSnapshots, "settle_undo", not_settled)
    await undo(client, session, turn_index=1)
    missing = {"snapshot_id": "0" * 16}
    failure(await client.post(f"/sessions/{session}/undo", missing), 404, "not_found")
    assert len(await notices_of(client, session)) == 1
    journal = own_server.services.settings.data_dir / "snapshots" / session / "restoring"
    assert journal.exists()


@pytest.mark.slow
async def test_killed_snapshot_leaves_a_sound_repository(spawn: Spawn, tmp_path: Path) -> None:
    stored = tmp_path / "data" / "snapshots"
    async with http_session() as http:
        process = await spawn()
        client = await new_client(process.url, http)
        session = await client.create()
        folder = await folder_of(client, session)
        for round_number in range(4):
            await client.turn(session, "hello")
            for number in range(1500):
                write(f"{number % 30}/{number}", f"{round_number} {number}")(folder)
            asking = asyncio.create_task(client.turn(session, "hello"))
            objects = count_files(stored)

            def has_begun(before: int = objects) -> bool:
                return count_files(stored) > before + 50

            await eventually("the snapshot to begin", has_begun)
            await process.kill()
            await asyncio.gather(asking, return_exceptions=True)
            process = await spawn()
            client = Client(process.url, client.token, http)
        before = tree(folder)
        await client.turn(session, "hello")
        turn_count = (await client.state(session))["turn_count"]
        shutil.rmtree(folder / "3")
        await undo(client, session, turn_index=turn_count)
        assert tree(folder) == before
        repository = str(stored / session)
        status, _, err = await run_program("git", "--git-dir", repository, "fsck", "--full")
        assert status == 0, err
        await process.stop()


def count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))
