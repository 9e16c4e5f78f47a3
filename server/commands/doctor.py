"""``doctor``: looks at what the server needs, and says what to do where it is not well."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..agents.base import AgentInfo
from ..agents.catalog import AcpxError
from ..app import make_backend
from ..config import Settings
from ..data_dir import DataDir, DataDirInUseError
from ..errors import DatabaseError, StartError
from ..storage.database import check_file
from ..storage.import_v02 import statements_of
from ..storage.schema import SchemaError
from . import admin

LOW_DISK_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was found, and what to do about it.

    ``mark``: ``ok``, ``BAD`` (the server will not do), ``note`` (it will, and yet) or ``-``
    (an agent that nobody has installed).
    """

    mark: str
    what: str
    found: str
    advice: str | None = None


def add_to(commands: Any) -> None:
    """Add this module's command to a parser's."""
    text = "look at Node, acpx, agents, disk, database and port, and say what to do"
    one = commands.add_parser(
        "doctor",
        help=text,
        description=f"{admin.sentence(text)} Exits with 1 where it is not well.",
    )
    one.add_argument("--json", action="store_true", help="an object a line")
    one.set_defaults(run=functools.partial(admin.run, doctor))


async def doctor(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    bad = 0
    async for one in _findings(settings, environ):
        bad += one.mark == "BAD"
        if arguments.json:
            print(json.dumps(dataclasses.asdict(one)), flush=True)
        else:
            admin.say(f"{one.mark:4}  {one.what:10}  {one.found}")
            if one.advice is not None:
                admin.say(f"{'':17} -> {one.advice}")
    if bad:
        raise admin.CommandError(f"{bad} {'thing is' if bad == 1 else 'things are'} not well")


async def _findings(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    for one in _here(settings):
        yield one
    async for one in _agents(settings, environ):
        yield one


def _here(settings: Settings) -> Iterator[Finding]:
    """What can be seen without starting anything."""
    yield Finding("ok", "python", ".".join(map(str, sys.version_info[:3])))
    data, running = _data(DataDir(settings.data_dir))
    yield data
    yield _disk(settings)
    if data.mark != "BAD":
        yield _database(settings)
    yield _port(settings, running)
    env_file = Path(".env")
    if env_file.is_file() and stat.S_IMODE(env_file.stat().st_mode) & 0o077:
        yield Finding("note", ".env", "others may read it", "chmod 600 .env: it holds secrets")


def _data(data_dir: DataDir) -> tuple[Finding, bool]:
    """The data folder, and whether a server runs on it."""
    folder = data_dir.path
    if not folder.exists():
        return Finding("ok", "data", f"{folder} is not there yet; the first start makes it"), False
    try:
        with data_dir.locked():
            return Finding("ok", "data", f"{folder}, and no server runs on it"), False
    except DataDirInUseError:
        pass
    except StartError as error:
        advice = f"run as its user, or let this one own it: chown -R {os.getuid()} {folder}"
        return Finding("BAD", "data", str(error), advice), False
    if not data_dir.control_socket.is_socket():
        advice = "it is starting or stopping, or the folder can hold no socket: look again"
        return Finding("note", "data", f"{folder}: a server has it, without a socket", advice), True
    return Finding("ok", "data", f"{folder}, and a server runs on it"), True


def _disk(settings: Settings) -> Finding:
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / 2**30:.1f} GiB free for {settings.data_dir}"
    if free >= LOW_DISK_BYTES:
        return Finding("ok", "disk", found)
    advice = "prompts are refused when it is full: make room, or stop it and move the folder"
    return Finding("BAD", "disk", found, advice)


def _database(settings: Settings) -> Finding:
    path = DataDir(settings.data_dir).database
    if not path.is_symlink() and (not path.is_file() or path.stat().st_size == 0):
        return Finding("ok", "database", "none yet; the first start makes it")
    try:
        if statements_of(path) is not None:
            found = f"{path} was made by 0.2; the first start brings it up to date"
            return Finding("note", "database", found)
        version = check_file(path)
    except (OSError, SchemaError, DatabaseError) as error:
        why = str(error).removeprefix(f"{path} ")
        return Finding("BAD", "database", f"{path}: {why}", "restore a backup")
    size = path.stat().st_size / 2**20
    return Finding("ok", "database", f"{size:.1f} MiB, schema {version}, sound")


def _port(settings: Settings, running: bool) -> Finding:
    where = f"{settings.host}:{settings.port}"
    if running:
        return Finding("ok", "port", f"{where}, in use by the running server")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        advice = "choose another with CLAWDFORGE_PORT, or stop what listens there"
        return Finding("BAD", "port", f"{where}: {error.strerror or error}", advice)
    return Finding("ok", "port", f"{where} is free")


class _Room:
    """No agent is started, so there is always room for what it says."""

    has_room = True

    async def room(self) -> None: ...


async def _agents(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Node, acpx and the agents, asked of a host of our own that starts none of them."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            backend = make_backend(
                dataclasses.replace(settings, data_dir=Path(folder)), environ, _Room()
            )
            await backend.start()
        except (AcpxError, StartError) as error:
            advice = "run `make setup`, which installs Node and acpx"
            yield Finding("BAD", "acpx", str(error), advice)
            return
        try:
            infos = await backend.agents()
            yield Finding("ok", "node", backend.versions["node"])
            yield Finding("ok", "acpx", backend.versions["acpx"])
        finally:
            await backend.stop()
    yield _claude(settings)
    for one in _known(infos, settings):
        yield one


def _claude(settings: Settings) -> Finding:
    program = shutil.which(settings.claude_bin)
    if program is not None:
        return Finding("ok", "claude", f"{program}, for POST /run")
    advice = (
        "POST /run answers with the default agent; docs/reference/run.md says how to install it"
    )
    return Finding("note", "claude", f"{settings.claude_bin} is not there", advice)


def _known(infos: list[AgentInfo], settings: Settings) -> Iterator[Finding]:
    wanted = settings.default_agent
    for info in infos:
        if info.installed:
            yield Finding("ok", "agent", info.name)
    for info in infos:
        if not info.installed and info.name == wanted:
            advice = f"{info.install}, or name another in CLAWDFORGE_DEFAULT_AGENT"
            yield Finding("BAD", "agent", f"the default, {wanted}, is not installed", advice)
        elif not info.installed:
            yield Finding(
                "-", "agent", f"{info.name}: {info.install or 'see docs/howto/agents.md'}"
            )
    if wanted is not None and wanted not in {info.name for info in infos}:
        advice = "name one of these in CLAWDFORGE_DEFAULT_AGENT"
        yield Finding("BAD", "agent", f"the default, {wanted}, is not known", advice)
