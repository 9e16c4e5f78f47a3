"""The commands ``backup`` and ``restore``."""

from __future__ import annotations

import os
import random
import sys
import tarfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server.storage.drivers.sqlite_files import copy_database

from ..conftest import Spawn
from ..support.engine import only_sqlite
from ..support.harness import ROOT, Client, new_client, run_program
from ..support.operator import Operator, exit_status


@pytest.mark.slow
@only_sqlite
async def test_backup_of_running_server_is_restored(
    operator: Operator, spawn: Spawn, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    server = await spawn()
    client = await new_client(server.url, http)
    session = await client.create()
    await client.turn(session, "one")
    cwd = Path((await client.state(session))["cwd"])
    (cwd / "note").write_text("kept", "utf-8")
    (cwd / "link").symlink_to("note")
    archive = tmp_path / "all.tar.gz"
    await operator.run("backup", str(archive))
    assert archive.stat().st_mode & 0o777 == 0o600
    small = tmp_path / "small.tar.gz"
    await operator.run("backup", "--without-files", str(small))
    with tarfile.open(small) as tar:
        assert not [name for name in tar.getnames() if name.startswith("workspaces")]
    before = await client.events(session)
    await client.turn(session, "two")  # after the backup: it will be gone

    _, err = await operator.run("restore", str(archive), status=1)
    assert "stop it first" in err
    await server.stop()
    _, err = await operator.run("restore", str(archive), status=1)
    assert "--replace" in err
    out, _ = await operator.run("restore", "--replace", str(archive))
    [aside] = operator.data_dir.glob("before-restore-*")
    assert str(aside) in out
    assert (aside / "clawdforge.db").is_file()

    server = await spawn()
    client = Client(server.url, client.token, http)
    assert await client.events(session) == before
    assert (cwd / "link").read_text("utf-8") == "kept"
    await client.turn(session, "again")
    starts = [e for e in await client.events(session) if e["type"] == "turn_start"]
    assert [start["context"] for start in starts] == ["new", "kept"]


@only_sqlite
async def test_backup_tolerates_files_that_change_or_cannot_be_read(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await operator.run("token", "add", "app")
    folder = operator.data_dir / "workspaces" / "session"
    folder.mkdir(parents=True)
    locked, shrinks, hard, plain = (folder / name for name in ("locked", "log", "other", "plain"))
    for path in (locked, shrinks, plain):
        path.write_bytes(b"x" * 100_000)
    hard.hardlink_to(locked)  # for which it must not stand
    again, sparse = folder / "again", folder / "sparse"
    again.hardlink_to(plain)
    with sparse.open("wb") as file:  # an agent could make a file that takes days to read
        file.write(b"x")
        file.truncate(1 << 40)
    opened, added = os.open, tarfile.TarFile.addfile

    def open_file(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).name == locked.name:  # root, too, is to be refused
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    def add(tar: tarfile.TarFile, info: tarfile.TarInfo, file: Any = None) -> None:
        if info.name.endswith("/log"):
            os.truncate(shrinks, 1)
        added(tar, info, file)

    archive = tmp_path / "all.tar.gz"
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_file)
        patch.setattr(tarfile.TarFile, "addfile", add)
        _, err = await operator.run("backup", str(archive))
    assert err.splitlines() == [
        f"clawdforge: omitted: {locked}: Permission denied",
        f"clawdforge: omitted: {sparse}: has holes of over 1 GiB",
    ]
    await operator.run("restore", "--replace", str(archive))
    assert sorted(folder.iterdir()) == [again, shrinks, hard, plain]
    assert again.samefile(plain)
    assert shrinks.read_bytes() == b"x" + bytes(99_999)
    assert hard.read_bytes() == plain.read_bytes() == b"x" * 100_000


@only_sqlite
async def test_concurrent_backups_to_one_path_are_both_complete(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await operator.run("token", "add", "app")
    archive, meanwhile = tmp_path / "all.tar.gz", tmp_path / "meanwhile.tar.gz"
    name = "server.commands.backup.copy_database"

    def copy(source: Path, target: Path) -> None:
        monkeypatch.setattr(name, copy_database)
        assert exit_status(["backup", str(archive)]) == 0
        archive.rename(meanwhile)
        copy_database(source, target)

    monkeypatch.setattr(name, copy)
    await operator.run("backup", str(archive))
    for whole in (meanwhile, archive):
        await operator.run("restore", "--replace", str(whole))
        assert "app" in (await operator.run("token", "list"))[0]
    assert sorted(tmp_path.iterdir()) == [archive, operator.data_dir, meanwhile]


@only_sqlite
async def test_restore_does_not_move_volumes(operator: Operator, tmp_path: Path) -> None:
    # As in a container: acpx's sessions are a volume of their own, on the same disk.
    sessions, volume = operator.data_dir / "acpx" / "sessions", tmp_path / "a volume"
    sessions.mkdir(parents=True)
    volume.mkdir()
    await operator.run("token", "add", "app")
    (sessions / "kept").touch()
    archive = tmp_path / "all.tar.gz"
    await operator.run("backup", str(archive))
    (sessions / "kept").rename(volume / "newer")
    command = f"mount --bind '{volume}' '{sessions}' && exec '{sys.executable}' -m server"
    command += f" restore --replace '{archive}'"
    status, _, err = await run_program(
        *(
            "unshare",
            "--mount",
            *(["--map-root-user"] if os.geteuid() else []),
            "sh",
            "-c",
            command,
        ),
        PYTHONPATH=str(ROOT),
        CLAWDFORGE_DATA_DIR=str(operator.data_dir),
    )
    if err.startswith("unshare:") and not os.environ.get("CLAWDFORGE_TEST_REQUIRE_ALL"):
        pytest.skip("nobody may mount anything here")
    assert (status, err) == (0, "")
    assert [path.name for path in volume.iterdir()] == ["kept"]
    [aside] = operator.data_dir.glob("before-restore-*")
    assert [path.name for path in (aside / "acpx" / "sessions").iterdir()] == ["newer"]


@only_sqlite
@pytest.mark.parametrize("kind", ["text", "foreign", "outside", "damaged", "cut", "rotten"])
async def test_invalid_archive_is_refused_and_changes_nothing(
    operator: Operator, tmp_path: Path, kind: str
) -> None:
    await operator.run("token", "add", "kept")
    archive = tmp_path / "odd.tar.gz"
    odd = tmp_path / "odd"
    odd.write_bytes(random.Random(0).randbytes(50_000).hex().encode())  # no database
    if kind == "text":
        archive.write_bytes(b"no archive")
    else:
        with tarfile.open(archive, "w:gz") as tar:
            if kind == "outside":
                link = tarfile.TarInfo("workspaces")
                link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
                tar.addfile(link)
            if kind == "rotten":
                tar.add(operator.data_dir / "clawdforge.db", "clawdforge.db")
            names = {"foreign": "etc/passwd", "outside": "workspaces/evil", "rotten": "uploads"}
            tar.add(odd, names.get(kind, "clawdforge.db"))
    content = archive.read_bytes()
    middle = len(content) // 2
    if kind == "cut":
        archive.write_bytes(content[:middle])
    elif kind == "rotten":
        archive.write_bytes(content[:middle] + bytes(100) + content[middle + 100 :])
    _, err = await operator.run("restore", "--replace", str(archive), status=1)
    assert err.count("\n") == 1
    assert not (tmp_path / "evil").exists()
    assert "kept" in (await operator.run("token", "list"))[0]
    assert not [p for p in operator.data_dir.iterdir() if p.name.startswith(".restore")]
