"""Sessions whose folders become too large: their turn ends with an error that says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.sandbox.disk_usage import bytes_in, size_text
from server.sessions.disk_watch import DiskWatch

from ..conftest import Serve
from ..support.harness import Deadline, script


@pytest.mark.slow
async def test_turn_ends_if_the_workspace_is_too_large(serve: Serve) -> None:
    server = await serve(sandbox_disk_mb=2, sweep_interval_secs=3600)
    client, other = await server.client(), await server.client("other")
    watch = DiskWatch(server.services.sessions)
    session, unaffected = await client.create(), await other.create()
    folder = Path((await client.state(session))["cwd"])
    socket = await client.connect(session, after=0)
    await socket.send("prompt", prompt=script({"say": "hi"}, {"hang": True}))
    await socket.until_text("hi")
    await watch.measure_all()
    assert (await client.state(session))["state"] == "running"

    (folder / "large").write_bytes(bytes(3 << 20))
    await watch.measure_all()
    end = await socket.until("turn_end")
    assert (end["stop_reason"], end["error"]["code"]) == ("error", "payload_too_large")
    assert "the workspace is over its 2 MiB" in end["error"]["message"]
    status, reply = await client.turn(session, "again")
    assert (status, reply["code"]) == (413, "payload_too_large")
    assert (await other.turn(unaffected, "hello"))[0] == 200

    # A client can free space with an undo, or by writing files.
    (folder / "large").write_bytes(b"")
    async with Deadline("room in the workspace"):
        while (await client.turn(session, "again"))[0] != 200:
            await watch.measure_all()


async def test_temporary_files_and_caches_are_deleted_first(serve: Serve) -> None:
    server = await serve(sandbox_disk_mb=2, sweep_interval_secs=3600)
    client = await server.client()
    session = await client.create()
    assert (await client.turn(session, "hello"))[0] == 200
    folders = server.services.sessions.backend.sandbox.folders
    (folders.home(session) / ".cache").mkdir(exist_ok=True)
    for folder in (folders.home(session) / ".cache", folders.tmp(session)):
        (folder / "large").write_bytes(bytes(2 << 20))
    watch = DiskWatch(server.services.sessions)
    await watch.measure_all()
    async with Deadline("room in the workspace"):
        while (await client.turn(session, "again"))[0] != 200:
            await watch.measure_all()
    assert not (folders.tmp(session) / "large").exists()


def test_links_are_neither_followed_nor_counted_twice(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(bytes(1 << 20))
    (tmp_path / "own" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "own" / "loop").symlink_to(tmp_path)
    (tmp_path / "own" / "file").write_bytes(bytes(1 << 20))
    (tmp_path / "own" / "hard").hardlink_to(tmp_path / "own" / "file")
    with (tmp_path / "own" / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    size = bytes_in([tmp_path / "own", tmp_path / "missing"], 1 << 40)
    assert 1 << 20 <= size < 2 << 20
    assert bytes_in([tmp_path / "own" / "link"], 1 << 40) == 0


def test_sizes_are_written_for_people() -> None:
    assert [size_text(n << 20) for n in (1, 1536, 2048)] == ["1 MiB", "1.5 GiB", "2 GiB"]
