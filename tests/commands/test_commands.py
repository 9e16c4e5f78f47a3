"""The operator's commands, as the operator types them: beside a running server, and without one."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import random
import re
import socket
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from server import __main__ as command_line
from server import logs
from server.agents.catalog import AcpxError
from server.commands.doctor import _here
from server.config import Settings
from server.storage.database import copy_database

from ..conftest import Spawn
from ..storage.test_import_v02 import make
from ..support.harness import ROOT, Client, new_client, run_program, script


def exit_status(argv: Sequence[str]) -> int:
    try:
        return command_line.main(argv)
    except SystemExit as ended:  # argparse's, of --help say
        return int(ended.code or 0)


class Operator:
    """Runs commands on the data folder that ``spawn`` uses: here, which saves their start."""

    def __init__(self, data_dir: Path, patch: pytest.MonkeyPatch) -> None:
        self.data_dir = data_dir
        self._patch = patch

    async def run(self, *argv: str, status: int = 0, **variables: str) -> tuple[str, str]:
        """A command's stdout and stderr; it must end with *status*."""
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
        with (
            self._patch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(logs, "set_up", lambda settings: None)
            patch.chdir(self.data_dir.parent)  # no .env of a developer's
            for name, value in {"DATA_DIR": str(self.data_dir), **variables}.items():
                patch.setenv(f"CLAWDFORGE_{name}", value)
            ended = await asyncio.to_thread(exit_status, argv)
        out.seek(0)
        said = out.read()
        assert ended == status, (argv, said, err.getvalue())
        return said, err.getvalue()


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    return Operator(tmp_path / "data", monkeypatch)


def commands(parser: argparse.ArgumentParser, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command there is, read from the parser's own tree."""
    yield path
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from commands(child, *path, name)


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    found = set(commands(command_line._parser()))
    assert {
        ("serve",),
        ("token", "add"),
        ("doctor",),
        ("sessions", "export"),
        ("restore",),
    } <= found
    for path in found:
        with pytest.raises(SystemExit) as ended:
            command_line._parser().parse_args([*path, "--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert f"usage: python -m server {' '.join(path)}".rstrip() in said
        assert not re.search(r"sigterm|look at node", said), "names keep their capitals"


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    environ = {**os.environ, "CLAWDFORGE_DATA_DIR": str(tmp_path)}
    argv = [sys.executable, "-W", "error", "-m", "server", "token", "add", "app"]
    done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cf_")
    again = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "clawdforge: the name 'app' is taken\n"
    read, write = os.pipe()
    os.close(read)  # as `head` does once it has its lines
    shown = [*argv[:-2], "list"]
    done = subprocess.run(
        shown, cwd=ROOT, env=environ, stdout=write, stderr=subprocess.PIPE, text=True, check=True
    )
    os.close(write)
    assert done.stderr == ""


async def test_no_command_on_a_stopped_server_needs_node(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_node() -> str:
        raise AcpxError("Node is missing")

    monkeypatch.setattr("server.app.find_node", no_node)
    await operator.run("token", "add", "app")
    await operator.run("token", "list")
    await operator.run("sessions", "list")
    for action in ("close", "stderr", "export"):
        said = await operator.run("sessions", action, "nonesuch", status=1)
        assert "no such session" in said[1]
    await operator.run("backup", str(tmp_path / "kept.tar.gz"))
    await operator.run("restore", "--replace", str(tmp_path / "kept.tar.gz"))
    await operator.run("token", "revoke", "app")


async def test_tokens_of_a_stopped_server(
    operator: Operator, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    for command in (("token", "list"), ("token", "revoke", "x"), ("sessions", "close", "x")):
        assert "there is no database" in (await operator.run(*command, status=1))[1]
    token = (await operator.run("token", "add", "early", "--network", "127.0.0.0/8"))[0].strip()
    await operator.run("token", "add", "gone")
    assert "is taken" in (await operator.run("token", "add", "gone", status=1))[1]
    assert (
        "not a network" in (await operator.run("token", "add", "x", "--network", "a", status=1))[1]
    )
    for name in ("", "my bot", "a\nb", "x" * 65):
        assert "name" in (await operator.run("token", "add", name, status=1))[1]
    await operator.run("token", "revoke", "gone")
    assert "no such token" in (await operator.run("token", "revoke", "gone", status=1))[1]
    listed, _ = await operator.run("token", "list")
    assert listed.splitlines()[1].split()[:2] == ["early", "127.0.0.0/8"]
    assert token not in listed
    server = await spawn()
    assert (await Client(server.url, token, http).get("/agents"))[0] == 200


async def test_a_running_server_obeys_at_once(
    operator: Operator, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn()
    token = (await operator.run("token", "add", "bot"))[0].strip()
    bot = Client(server.url, token, http)
    session = await bot.create()
    driving = await bot.connect(session)
    other = await bot.create()
    watching = await bot.connect(other)

    listed = (await operator.run("sessions", "list", "--json"))[0].splitlines()
    assert [json.loads(line)["session_id"] for line in listed] == [other, session]
    assert session in (await operator.run("sessions", "list"))[0]
    assert session not in (await operator.run("sessions", "list", "--app", "nobody"))[0]

    await operator.run("sessions", "close", other)
    assert (await watching.until("session_closed"))["reason"] == "admin"
    assert await watching.until_closed() == 4508
    assert "already" in (await operator.run("sessions", "close", other))[0]
    assert "no such session" in (await operator.run("sessions", "close", "x", status=1))[1]
    assert other not in (await operator.run("sessions", "list"))[0]
    assert "closed (admin)" in (await operator.run("sessions", "list", "--all"))[0]

    await operator.run("token", "revoke", "bot")
    assert await driving.until_closed() == 4503
    assert (await bot.get("/sessions"))[0] == 401

    assert await server.stop() == 0
    assert not (operator.data_dir / "control.sock").exists()


async def test_a_folder_that_holds_no_socket_is_served_all_the_same(
    operator: Operator, spawn: Spawn, tmp_path: Path
) -> None:
    (operator.data_dir / "control.sock" / "a folder in its place").mkdir(parents=True)
    server = await spawn()
    assert await server.stop() == 0
    assert "no operator's socket" in (tmp_path / "server.log").read_text("utf-8")


async def test_a_session_is_closed_without_a_server(
    operator: Operator, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn()
    client = await new_client(server.url, http)
    session = await client.create()
    running = asyncio.create_task(client.turn(session, script({"hang": True})))
    watching = await client.connect(session, after=0)
    await watching.until("turn_start")
    await server.kill()
    running.cancel()
    await operator.run("sessions", "close", session)
    server = await spawn()
    entries = await Client(server.url, client.token, http).events(session)
    assert [entry["type"] for entry in entries][-2:] == ["turn_end", "session_closed"]
    assert entries[-2]["error"]["code"] == "server_restarted"


async def test_a_log_is_exported(
    operator: Operator, spawn: Spawn, http: aiohttp.ClientSession
) -> None:
    server = await spawn()
    client = await new_client(server.url, http)
    session = await client.create()
    await client.turn(session, script({"stderr": "not \x1b[2Jlogged\u202e \x9bin"}))
    tool = {"sessionUpdate": "tool_call", "toolCallId": "1", "title": "Look"}
    odd = {"method": "session/update", "params": []}
    await client.turn(
        session, script({"say": "hello \x1b[2J\x9b\u202e"}, {"update": tool}, {"notify": odd})
    )
    said, _ = await operator.run("sessions", "stderr", session)
    assert re.fullmatch(r"-- \S+ process \d+\nnot \\x1b\[2Jlogged\\u202e \\x9bin\n", said)
    said, _ = await operator.run("sessions", "stderr", "--raw", session)
    assert said.endswith("\nnot \x1b[2Jlogged\u202e \x9bin\n")
    lines = (await operator.run("sessions", "export", session))[0].split("\n")[:-1]
    assert not re.search("[\x00-\x1f\x7f-\x9f\u202e]", "".join(lines))
    assert [json.loads(line) for line in lines] == await client.events(session)
    page, _ = await operator.run("sessions", "export", session, "--format", "markdown")
    assert page.startswith(f"# Session {session}\n")
    assert "## Turn 2\n\n> {" in page
    assert "\nhello \\x1b[2J\\x9b\\u202e\n" in page
    assert "*Tool: Look.*\n\n*end_turn, " in page
    assert "no such session" in (await operator.run("sessions", "export", "x", status=1))[1]


async def test_a_backup_of_a_running_server_brings_all_back(
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


async def test_what_agents_do_to_their_files_spoils_no_backup(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await operator.run("token", "add", "app")
    folder = operator.data_dir / "workspaces" / "session"
    folder.mkdir(parents=True)
    locked, shrinks, hard, plain = (folder / name for name in ("locked", "log", "other", "plain"))
    for path in (locked, shrinks, plain):
        path.write_bytes(b"x" * 100_000)
    hard.hardlink_to(locked)  # for which it must not stand
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
    assert err == f"clawdforge: left out: {locked}: Permission denied\n"
    await operator.run("restore", "--replace", str(archive))
    assert sorted(folder.iterdir()) == [shrinks, hard, plain]
    assert shrinks.read_bytes() == b"x" + bytes(99_999)
    assert hard.read_bytes() == plain.read_bytes() == b"x" * 100_000


async def test_two_backups_to_one_name_at_once_are_whole_each(
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


async def test_a_volume_in_the_data_folder_stays_where_it_is(
    operator: Operator, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("kind", ["text", "foreign", "outside", "damaged", "cut", "rotten"])
async def test_what_is_no_backup_is_refused_and_changes_nothing(
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


async def test_the_doctor_finds_what_is_wrong(operator: Operator, tmp_path: Path) -> None:
    out, _ = await operator.run("doctor", CLAUDE_BIN="no-such-program", PORT="0")
    found = [line.split(maxsplit=2) for line in out.splitlines() if not line.startswith(" ")]
    marks = {what: mark for mark, what, _ in found if what != "agent"}
    assert marks == {
        **dict.fromkeys(["python", "data", "disk", "database", "port", "node", "acpx"], "ok"),
        "claude": "note",
    }
    assert ["ok", "agent", "demo"] in found

    operator.data_dir.mkdir()
    (operator.data_dir / "clawdforge.db").write_bytes(b"x" * 5000)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        out, err = await operator.run(
            *("doctor", "--json"), status=1, PORT=str(port), DEFAULT_AGENT="nobody"
        )
    findings = [json.loads(line) for line in out.splitlines()]
    bad = {one["what"]: one for one in findings if one["mark"] == "BAD"}
    assert bad.keys() == {"database", "port", "agent"}
    assert all(one["advice"] for one in bad.values())
    assert "3 things are not well" in err


async def test_the_database_of_a_newer_version_is_left_alone(operator: Operator) -> None:
    await operator.run("token", "add", "app")
    with sqlite3.connect(operator.data_dir / "clawdforge.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    assert "schema 99" in (await operator.run("token", "list", status=1))[1]
    assert "schema 99" in (await operator.run("token", "add", "x", status=1))[1]


async def test_a_data_folder_that_cannot_be_used_is_not_taken_for_a_servers(
    operator: Operator, tmp_path: Path
) -> None:
    operator.data_dir.touch()
    for argv in (["token", "add", "app"], ["sessions", "close", "x"], ["restore", "all.tar.gz"]):
        _, err = await operator.run(*argv, status=1)
        assert err.startswith("clawdforge: ")
        assert str(operator.data_dir) in err
        assert err.count("\n") == 1
    found = {one.what: one for one in _here(Settings(data_dir=operator.data_dir, port=0))}
    assert found["data"].mark == "BAD"
    assert "database" not in found
    assert found["port"].found.endswith("is free"), "no server runs"


async def test_a_database_that_cannot_be_read_is_told_in_one_line(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    await operator.run("token", "add", "app")
    database = operator.data_dir / "clawdforge.db"
    database.write_bytes(b"x" * 5000)
    for argv in (["token", "list"], ["sessions", "list"], ["token", "add", "x"]):
        _, err = await operator.run(*argv, status=1)
        assert err.startswith(f"clawdforge: {database}")
        assert err.count("\n") == 1

    def refuse(path: Path) -> bool:  # as another user's folder does
        if path == database:
            raise PermissionError(13, "Permission denied", str(path))
        return False

    monkeypatch.setattr(Path, "is_file", refuse)
    _, err = await operator.run("sessions", "list", status=1)
    assert err.count("\n") == 1
    assert "Permission denied" in err


def test_the_doctor_does_not_complain_of_what_a_start_brings_up_to_date(tmp_path: Path) -> None:
    def mark() -> str:
        [found] = [one for one in _here(Settings(data_dir=tmp_path)) if one.what == "database"]
        return found.mark

    database = tmp_path / "clawdforge.db"
    database.touch()  # of a first start that was interrupted
    assert mark() == "ok"
    make(database)
    assert mark() == "note"
