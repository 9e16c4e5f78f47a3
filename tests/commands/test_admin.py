"""Commands in general: with a running server, without one, and with an unusable data folder."""

from __future__ import annotations

import argparse
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from server import command_line
from server.agents.catalog import AcpxError
from server.commands.doctor import check_machine
from server.config import Settings

from ..conftest import Spawn
from ..support.engine import only_sqlite
from ..support.harness import ROOT, Client
from ..support.operator import Operator


def commands(parser: argparse.ArgumentParser, *path: str) -> Iterator[tuple[str, ...]]:
    """All commands, from the parser's own tree."""
    yield path
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from commands(child, *path, name)


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    found = set(commands(command_line.build_parser()))
    assert {
        ("serve",),
        ("token", "add"),
        ("doctor",),
        ("sessions", "export"),
        ("restore",),
    } <= found
    for path in found:
        with pytest.raises(SystemExit) as ended:
            command_line.build_parser().parse_args([*path, "--help"])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        name = "serve" if path == ("run",) else " ".join(path)
        assert f"usage: python -m server {name}".rstrip() in said
        assert not re.search(r"sigterm|look at node", said), "names keep their capitals"


def test_command_runs_as_module(tmp_path: Path) -> None:
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


@only_sqlite
async def test_commands_on_stopped_server_do_not_require_node(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_node() -> str:
        raise AcpxError("Node is missing")

    monkeypatch.setattr("server.backends.find_node", no_node)
    await operator.run("token", "add", "app")
    await operator.run("token", "list")
    await operator.run("sessions", "list")
    for action in ("close", "stderr", "export"):
        said = await operator.run("sessions", action, "nonesuch", status=1)
        assert "no such session" in said[1]
    await operator.run("backup", str(tmp_path / "kept.tar.gz"))
    await operator.run("restore", "--replace", str(tmp_path / "kept.tar.gz"))
    await operator.run("token", "revoke", "app")


async def test_running_server_applies_commands_at_once(
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


async def test_server_starts_without_control_socket(
    operator: Operator, spawn: Spawn, tmp_path: Path
) -> None:
    (operator.data_dir / "control.sock" / "a folder in its place").mkdir(parents=True)
    server = await spawn()
    assert await server.stop() == 0
    assert "no operator's socket" in (tmp_path / "server.log").read_text("utf-8")


@only_sqlite
async def test_database_of_newer_version_is_refused(operator: Operator) -> None:
    await operator.run("token", "add", "app")
    with sqlite3.connect(operator.data_dir / "clawdforge.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    assert "schema 99" in (await operator.run("token", "list", status=1))[1]
    assert "schema 99" in (await operator.run("token", "add", "x", status=1))[1]


async def test_unusable_data_folder_is_reported_in_one_line(
    operator: Operator, tmp_path: Path
) -> None:
    operator.data_dir.touch()
    for argv in (["token", "add", "app"], ["sessions", "close", "x"], ["restore", "all.tar.gz"]):
        _, err = await operator.run(*argv, status=1)
        assert err.startswith("clawdforge: ")
        assert str(operator.data_dir) in err
        assert err.count("\n") == 1
    found = {one.what: one for one in check_machine(Settings(data_dir=operator.data_dir, port=0))}
    assert found["data"].mark == "BAD"
    assert "database" not in found
    assert found["port"].found.endswith("is free"), "no server runs"


@only_sqlite
async def test_unreadable_database_is_reported_in_one_line(
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
