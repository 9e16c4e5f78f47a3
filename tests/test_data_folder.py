"""Links that agents put into the data folder lead no command and no server out of it."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from server.commands.admin import CommandError
from server.commands.backup import create_backup, restore_backup
from server.config import Settings
from server.data_dir import DataDir
from server.errors import StartError
from server.storage.database import Database
from server.web import control_socket

from .conftest import Serve
from .support.harness import Clock, run_program
from .uploads.test_files import upload

SECRET = b"precious, and none of clawdforge's business\n"
LINKED = (
    *("lock", "clawdforge.db", "clawdforge.db-wal", "control.sock"),
    *("stderr/", "uploads/", "workspaces/", "acpx/", "runs/"),
)
COMMANDS: dict[str, Sequence[str]] = {
    "doctor": ("doctor",),
    "token add": ("token", "add", "mine"),
    "backup": ("backup", "{archive}"),
}


async def run_command(data: Path, *argv: str) -> int | None:
    status, _, _ = await run_program(
        *(sys.executable, "-m", "server", *argv),
        CLAWDFORGE_DATA_DIR=str(data),
        CLAWDFORGE_PORT="0",
    )
    return status


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=name, marks=[pytest.mark.slow] * (name != "backup"))
        for name, command in COMMANDS.items()
    ],
)
async def test_commands_follow_no_link_in_the_data_folder(
    tmp_path: Path, command: Sequence[str]
) -> None:
    """Links in place of all entries, and of the files only, so that commands get further."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(SECRET)
    (outside / "empty").mkdir()
    for names in (LINKED, LINKED[:4]):
        data = tmp_path / f"data-{len(names)}-{names[0].rstrip('/')}"
        data.mkdir()
        for name in names:
            path = data / name.rstrip("/")
            path.symlink_to(outside / ("empty" if name.endswith("/") else "file"))
        archive = tmp_path / "archive.tar.gz"
        argv = [part.format(archive=archive) for part in command]
        await run_command(data, *argv)
        assert (outside / "file").read_bytes() == SECRET
        assert not list((outside / "empty").iterdir())
        assert sorted(path.name for path in outside.iterdir()) == ["empty", "file"]
        if archive.exists():
            with tarfile.open(archive) as tar:
                assert not [member for member in tar if SECRET in (_content(tar, member))]
            archive.unlink()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.isreg() else None
    return file.read() if file is not None else b""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users' folders")
@pytest.mark.parametrize("command", [*COMMANDS.values(), ()], ids=[*COMMANDS, "serve"])
async def test_root_refuses_the_data_folder_of_another_user(
    tmp_path: Path, command: Sequence[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "clawdforge.db").touch()
    os.chown(data, 65534, 65534)
    before = sorted(path.name for path in data.iterdir())
    argv = [part.format(archive=tmp_path / "a") for part in command]
    assert await run_command(data, *argv) == 1
    assert sorted(path.name for path in data.iterdir()) == before


MEMBERS: dict[str, list[tuple[str, bytes, str]]] = {
    "a link at the top": [("workspaces", tarfile.SYMTYPE, "{outside}")],
    "a link instead of the database": [("clawdforge.db", tarfile.SYMTYPE, "{outside}/file")],
    "a hard link at the top": [("uploads", tarfile.LNKTYPE, "{outside}/file")],
    "a way up": [("workspaces", tarfile.DIRTYPE, ""), ("workspaces/../../x", tarfile.REGTYPE, "")],
    "an absolute name": [("/x", tarfile.REGTYPE, "")],
    "a file through a link": [
        ("workspaces", tarfile.DIRTYPE, ""),
        ("workspaces/link", tarfile.SYMTYPE, "{outside}"),
        ("workspaces/link/new", tarfile.REGTYPE, ""),
    ],
    "a device": [("workspaces", tarfile.CHRTYPE, "")],
}


@pytest.mark.parametrize("members", MEMBERS.values(), ids=MEMBERS.keys())
def test_restore_writes_nothing_outside_the_data_folder(
    tmp_path: Path, members: list[tuple[str, bytes, str]]
) -> None:
    outside, data = tmp_path / "outside", tmp_path / "data"
    outside.mkdir()
    (outside / "file").write_bytes(SECRET)
    archive = tmp_path / "archive.tar"
    with tarfile.open(archive, "w") as tar:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target.format(outside=outside)
            tar.addfile(member, BytesIO(b"") if kind == tarfile.REGTYPE else None)
    arguments = argparse.Namespace(archive=archive, replace=False)
    with pytest.raises(CommandError):
        restore_backup(arguments, Settings(data_dir=data), {})
    assert [path.name for path in outside.iterdir()] == ["file"]
    assert (outside / "file").read_bytes() == SECRET
    assert {path.name for path in data.iterdir()} == {"lock"}


async def test_running_server_follows_no_link_that_replaced_a_folder(
    serve: Serve, tmp_path: Path
) -> None:
    """The folders' former contents lie outside under the same names and stay untouched."""
    clock = Clock()
    server = await serve(clock=clock, data_dir=tmp_path / "data")
    client = await server.client()
    session = await client.create()
    await client.delete(f"/sessions/{session}")
    assert (await upload(client, b"content"))[0] == 200
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("uploads", "workspaces", "stderr", "runs"):
        (tmp_path / "data" / name).mkdir(exist_ok=True)
        (tmp_path / "data" / name).rename(outside / name)
        (tmp_path / "data" / name).symlink_to(outside / name)
    before = sorted(outside.rglob("*"))
    assert (await upload(client, b"more"))[0] == 500
    assert (await client.post("/sessions", {}))[0] == 500
    assert (await client.post("/run", {"prompt": "hello", "agent": "mock"}))[0] == 502
    clock.advance(200_000)
    await server.services.sessions.sweeper.sweep()
    await server.services.files.sweep()
    assert sorted(outside.rglob("*")) == before


def test_lock_that_is_a_fifo_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(StartError), DataDir(tmp_path).locked():
        pass


LISTENER = """
import resource, socket, sys
if sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_RSS, (1 << 30, 1 << 30))
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("limits", [[], ["lowered"]], ids=["a server", "an agent"])
def test_commands_distinguish_the_servers_socket_from_an_agents(
    tmp_path: Path, limits: list[str]
) -> None:
    path = str(tmp_path / "control.sock")
    argv = [sys.executable, "-ISc", LISTENER, path, *limits]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == b"listening\n"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            assert control_socket.is_server_socket(connection, DataDir(tmp_path)) is not bool(
                limits
            )
        listener.communicate()


async def test_backup_follows_no_folder_that_is_replaced_by_a_link_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    (data / "workspaces" / "mine").mkdir(parents=True)
    outside.mkdir()
    (outside / "file").write_bytes(SECRET)
    await (await Database.open(data / "clawdforge.db")).close()
    deep = data / "workspaces" / "deep"
    deep.mkdir()
    for _ in range(300):
        deep /= "d"
        deep.mkdir()
    works = os.stat

    def exchange(path: str, **options: Any) -> os.stat_result:
        found = works(path, **options)
        if path == "mine":
            (data / "workspaces" / "mine").rename(tmp_path / "mine")
            (data / "workspaces" / "mine").symlink_to(outside)
        return found

    monkeypatch.setattr(os, "stat", exchange)
    archive = tmp_path / "archive.tar.gz"
    arguments = argparse.Namespace(archive=archive, without_files=False)
    assert create_backup(arguments, Settings(data_dir=data), {}) == 0
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert "workspaces" in names
    assert not [name for name in names if name.endswith("file")]
