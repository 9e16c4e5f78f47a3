"""Sessions whose folders become too large: their turn ends with an error that says why."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from server.sandbox import disk_usage
from server.sandbox.disk_usage import bytes_in, size_text
from server.sessions.disk_watch import DiskWatch

from ..conftest import Serve
from ..support.harness import Deadline, script
from ..support.sandboxes import as_user
from ..support.waiting import eventually


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


async def test_log_of_a_session_counts_as_its_disk_space(serve: Serve) -> None:
    server = await serve(sandbox_disk_mb=1, sweep_interval_secs=3600)
    client = await server.client()
    session = await client.create()
    watch = DiskWatch(server.services.sessions)
    assert (await client.turn(session, script({"say": "x" * 1000})))[0] == 200
    await watch.measure_all()
    for _ in range(3):
        assert (await client.turn(session, script({"say": random_text(500_000)})))[0] == 200
    await server.services.sessions.writer.flush()

    async def is_refused() -> bool:
        await watch.measure_all()  # of the sessions that are due, which depends on the last time
        return server.services.sessions.cached[session].turns.disk_refusal is not None

    await eventually("the session to be measured again", is_refused)
    status, reply = await client.turn(session, "again")
    assert (status, reply["code"]) == (413, "payload_too_large")
    assert "log" in reply["error"]


def random_text(size: int) -> str:
    return base64.b64encode(os.urandom(size)).decode()[:size]


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


def test_files_in_folders_that_resist_a_measurement_are_counted(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(0o755)

    def measure() -> int:
        locked = tmp_path / "own" / "locked"
        (locked / "inner").mkdir(parents=True)
        (locked / "inner" / "file").write_bytes(bytes(1 << 20))
        (locked / "inner").chmod(0o600)
        locked.chmod(0)
        parent = os.open(tmp_path / "own", os.O_RDONLY)
        for _ in range(30):  # a longer path than the kernel takes
            os.mkdir("x" * 200, dir_fd=parent)
            below = os.open("x" * 200, os.O_RDONLY, dir_fd=parent)
            os.close(parent)
            parent = below
        os.write(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=parent), bytes(1 << 20))
        return bytes_in([tmp_path / "own"], 1 << 40)

    assert 2 << 20 <= as_user(measure) < 3 << 20


def test_folders_that_cannot_be_measured_count_as_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / "empty" / name).mkdir(parents=True)
        (tmp_path / "empty" / name / "file").touch()
    assert bytes_in([tmp_path / "empty"], 1 << 40) >= 6 * disk_usage.ENTRY_BYTES
    monkeypatch.setattr(disk_usage, "MAX_MEASURED", 5)
    assert bytes_in([tmp_path / "empty"], 1 << 40) == disk_usage.UNMEASURED
    monkeypatch.setattr(disk_usage, "LONG_PATH", 1)
    monkeypatch.setattr(disk_usage, "MAX_OPEN_BASES", 1)
    assert bytes_in([tmp_path / "empty" / "a"], 1 << 40) < disk_usage.UNMEASURED
    (tmp_path / "empty" / "a" / "b" / "c").mkdir(parents=True)
    assert bytes_in([tmp_path / "empty" / "a"], 1 << 40) == disk_usage.UNMEASURED


def test_sizes_are_written_for_people() -> None:
    assert [size_text(n << 20) for n in (1, 1536, 2048)] == ["1 MiB", "1.5 GiB", "2 GiB"]
