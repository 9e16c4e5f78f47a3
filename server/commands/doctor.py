"""The command ``doctor``: checks the requirements of the server, and suggests remedies."""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import dataclasses
import functools
import json
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..agents.base import AgentInfo
from ..agents.catalog import AcpxError
from ..agents.process.environ import agent_environ
from ..backends import make_backend
from ..config import SettingError, Settings
from ..data_dir import DataDir, DataDirInUseError
from ..errors import DatabaseError, StartError
from ..gateways.withheld import withheld_names
from ..sandbox.logins import hidden_login
from ..sandbox.setup import make_sandbox
from ..sandbox.trial import try_escapes
from ..storage.drivers.sqlite_files import check_file
from ..storage.engine import describe_engine, examine_shared_folder
from ..storage.import_v02 import statements_of
from ..storage.schema import MIGRATIONS, SchemaError
from . import admin

Described = TypeVar("Described")
LOW_DISK_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        mark: ``ok``, ``BAD`` (the server cannot work), ``note`` (useful information) or ``-`` (an
            agent that is not installed).
        what: the checked requirement.
    """

    mark: str
    what: str
    found: str
    advice: str | None = None


def add_doctor_command(commands: Any) -> None:
    """Add the command of this module to the parser."""
    text = "check Node, acpx, agents, disk, database and port, and suggest remedies"
    parser = commands.add_parser(
        "doctor",
        help=text,
        description=f"{admin.sentence(text)} Exits with status 1 if a requirement is not met.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.set_defaults(execute=functools.partial(admin.execute_command, run_doctor))


async def run_doctor(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    bad = 0
    async for finding in _check_all(settings, environ):
        bad += finding.mark == "BAD"
        if arguments.json:
            print(json.dumps(dataclasses.asdict(finding)), flush=True)
        else:
            admin.print_escaped(f"{finding.mark:4}  {finding.what:10}  {finding.found}")
            if finding.advice is not None:
                admin.print_escaped(f"{'':17} -> {finding.advice}")
    if bad:
        raise admin.CommandError(f"{bad} {'check' if bad == 1 else 'checks'} failed")


async def _check_all(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    for finding in check_machine(settings):
        yield finding
    yield await asyncio.to_thread(_check_sandbox, settings, environ)
    if (keys := _check_keys(settings, environ)) is not None:
        yield keys
    async for finding in _check_agents(settings, environ):
        yield finding


def check_machine(settings: Settings) -> Iterator[Finding]:
    """The checks that start no process."""
    yield Finding("ok", "python", ".".join(map(str, sys.version_info[:3])))
    data, running = _check_data_dir(DataDir.of(settings))
    yield data
    yield _check_disk(settings)
    if data.mark != "BAD":
        yield (database := _check_database(settings))
        if settings.cluster_url is not None and database.mark != "BAD":
            yield _check_sharing(settings)
    yield _check_port(settings, running)
    env_file = Path(".env")
    if env_file.is_file() and stat.S_IMODE(env_file.stat().st_mode) & 0o077:
        yield Finding(
            "note", ".env", "other users can read it", "it contains secrets: chmod 600 .env"
        )


def _check_data_dir(data_dir: DataDir) -> tuple[Finding, bool]:
    """Check the data folder. Also returns whether a server uses it."""
    folder = data_dir.path
    if not folder.exists():
        return Finding("ok", "data", f"{folder} does not exist; the first start creates it"), False
    try:
        with data_dir.locked():
            return Finding("ok", "data", f"{folder}; no server uses it"), False
    except DataDirInUseError:
        pass
    except StartError as error:
        advice = f"run as its owner, or change the owner: chown -R {os.getuid()} {folder}"
        return Finding("BAD", "data", str(error), advice), False
    if not data_dir.control_socket.is_socket():
        advice = "it is starting or stopping, or the folder cannot contain a socket: run this again"
        return Finding("note", "data", f"{folder}; a server without a socket uses it", advice), True
    return Finding("ok", "data", f"{folder}; a server uses it"), True


def _check_disk(settings: Settings) -> Finding:
    folder = settings.data_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    state = f"{free / 2**30:.1f} GiB free for {settings.data_dir}"
    if free >= LOW_DISK_BYTES:
        return Finding("ok", "disk", state)
    advice = "a full disk refuses prompts: free space, or stop the server and move the folder"
    return Finding("BAD", "disk", state, advice)


def _in_own_loop(work: Coroutine[Any, Any, Described]) -> Described:
    """Await *work* in a thread of its own, because an event loop may run in this one."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _check_sharing(settings: Settings) -> Finding:
    try:
        report = _in_own_loop(examine_shared_folder(settings))
    except (SchemaError, DatabaseError, StartError) as error:
        return Finding("BAD", "shared", str(error), "see docs/howto/cluster.md")
    mark = "BAD" if report.is_bad else "ok" if report.advice is None else "note"
    return Finding(mark, "shared", report.state, report.advice)


def _check_database(settings: Settings) -> Finding:
    if settings.cluster_url is not None:
        try:
            state = _in_own_loop(describe_engine(settings))
        except (SchemaError, DatabaseError, StartError) as error:
            return Finding("BAD", "database", str(error), "see docs/howto/cluster.md")
        return Finding("ok", "database", state)
    path = DataDir.of(settings).database
    if not path.is_symlink() and (not path.is_file() or path.stat().st_size == 0):
        return Finding("ok", "database", "none yet; the first start creates it")
    try:
        if statements_of(path) is not None:
            state = f"{path} is of version 0.2; the first start upgrades it"
            return Finding("note", "database", state)
        version = check_file(path, len(MIGRATIONS))
    except (OSError, SchemaError, DatabaseError) as error:
        reason = str(error).removeprefix(f"{path} ")
        return Finding("BAD", "database", f"{path}: {reason}", "restore a backup")
    size = path.stat().st_size / 2**20
    return Finding("ok", "database", f"{size:.1f} MiB, schema {version}, intact")


def _check_port(settings: Settings, running: bool) -> Finding:
    address = f"{settings.host}:{settings.port}"
    if running:
        return Finding("ok", "port", f"{address}, in use by the running server")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        advice = "set another port in CLAWDFORGE_PORT, or stop the program that uses this one"
        return Finding("BAD", "port", f"{address}: {error.strerror or error}", advice)
    return Finding("ok", "port", f"{address} is free")


class _NoBackpressure:
    """A backpressure that is never used, because no agent is started."""

    has_capacity = True

    async def wait_for_capacity(self) -> None: ...


def _check_sandbox(settings: Settings, environ: Mapping[str, str]) -> Finding:
    """Check the level of the sandbox, and try to escape from it."""
    try:
        sandbox = make_sandbox(settings, environ, agent_environ(environ, settings.agent_env))
    except SettingError as error:
        advice = "choose another level, or `auto`: see docs/explanation/security.md"
        return Finding("BAD", "sandbox", str(error), advice)
    state = sandbox.describe().removeprefix("sandbox: ")
    if not sandbox.is_on:
        advice = "give each app a server of its own: see docs/explanation/security.md"
        if not sandbox.mechanism.is_chosen:
            advice = f"install bubblewrap, or use Linux 5.13 or newer; until then {advice}"
        return Finding("note", "sandbox", state, advice)
    try:
        results = try_escapes(sandbox.mechanism, sandbox.environ)
    except OSError as error:
        return Finding("BAD", "sandbox", f"{state}; it cannot be tried: {error}")
    escapes = [name for name, reason in results.items() if reason is None]
    if escapes:
        state = f"{state}; {len(escapes)} of {len(results)} attempts to escape succeeded"
        return Finding("BAD", "sandbox", f"{state}: {', '.join(escapes)}", "report this as a bug")
    return Finding("ok", "sandbox", f"{state}; all {len(results)} attempts to escape failed")


def _check_keys(settings: Settings, environ: Mapping[str, str]) -> Finding | None:
    """Name the keys in the environment that sandboxed agents do not get."""
    names = withheld_names(agent_environ(environ, settings.agent_env), settings.agent_env)
    if not names or settings.sandbox == "off":
        return None
    advice = "if an agent needs one, list it in CLAWDFORGE_AGENT_ENV: see docs/howto/agents.md"
    return Finding("note", "keys", f"withheld from agents: {', '.join(sorted(names))}", advice)


async def _check_agents(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Check Node, acpx and the agents, with a host that starts no agent."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            backend = make_backend(
                dataclasses.replace(settings, data_dir=Path(folder)), environ, _NoBackpressure()
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
    yield _check_claude(settings)
    yield _check_git()
    for finding in _agent_findings(infos, settings):
        yield finding
    for info in infos:
        if info.installed and (hint := _login_advice(info.name, settings, environ)) is not None:
            yield Finding("note", "login", f"{info.name}: the sandbox hides its login", hint)


def _login_advice(agent: str, settings: Settings, environ: Mapping[str, str]) -> str | None:
    """Advice about a login of the server's user that the agent cannot use."""
    if settings.sandbox == "off":
        return None
    home = environ.get("HOME")
    return hidden_login(
        agent, Path(home) if home else None, agent_environ(environ, settings.agent_env)
    )


def _check_claude(settings: Settings) -> Finding:
    program = shutil.which(settings.claude_bin)
    if program is not None:
        return Finding("ok", "claude", f"{program}, for POST /run")
    advice = "POST /run uses the default agent; docs/reference/run.md says how to install claude"
    return Finding("note", "claude", f"{settings.claude_bin} is not installed", advice)


def _check_git() -> Finding:
    program = shutil.which("git")
    if program is not None:
        return Finding("ok", "git", f"{program}, for changes and undo")
    return Finding(
        "note", "git", "git is not installed", "without it sessions have no changes and no undo"
    )


def _agent_findings(infos: list[AgentInfo], settings: Settings) -> Iterator[Finding]:
    default = settings.default_agent
    for info in infos:
        if info.installed:
            yield Finding("ok", "agent", info.name)
    for info in infos:
        if not info.installed and info.name == default:
            advice = f"{info.install}, or set another in CLAWDFORGE_DEFAULT_AGENT"
            yield Finding("BAD", "agent", f"the default, {default}, is not installed", advice)
        elif not info.installed:
            yield Finding(
                "-", "agent", f"{info.name}: {info.install or 'see docs/howto/agents.md'}"
            )
    if default is not None and default not in {info.name for info in infos}:
        advice = "set CLAWDFORGE_DEFAULT_AGENT to one of the agents above"
        yield Finding("BAD", "agent", f"the default, {default}, is unknown", advice)
