"""The command ``reload``: the running server becomes the version that is installed now."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from ..agents.process.environ import agent_environ
from ..app import build_app
from ..backends import make_backend
from ..config import Settings
from ..data_dir import DataDir, DataDirInUseError
from ..reload.state import READABLE, cannot_read
from ..sandbox.setup import Machine, make_sandbox
from ..storage.database import Database
from ..wiring.running import agreed_settings
from . import admin

NEXT_SECS = 60.0
"""The longest wait for the next version's first answer."""
STATUS_POLL_SECS = 0.05


def add_reload_command(commands: Any) -> None:
    """Add the command of this module to the parser."""
    text = "become the installed version without ending a turn; .env is read again"
    command = commands.add_parser("reload", help=text, description=admin.sentence(text))
    command.add_argument(
        "--check",
        action="store_true",
        help="only try whether the installed version can start, without a running server",
    )
    command.add_argument("--running", type=json.loads, default={}, help=argparse.SUPPRESS)
    command.set_defaults(execute=_choose_command)


def _choose_command(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> int:
    command = check_start if arguments.check else reload_running_server
    return admin.execute_command(command, arguments, settings, environ)


async def reload_running_server(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    """Reload the running server, and wait until its next version answers.

    Raises:
        CommandError: it runs on as before, or its next version has failed.
    """
    data_dir = DataDir.of(settings)
    if not await admin.is_serving(data_dir):
        raise admin.CommandError(f"no server runs on the data folder {data_dir.path}")
    began = time.monotonic()
    async with admin.connect_to_server(data_dir) as server:
        before = await server.reload()
    while time.monotonic() - began < NEXT_SECS:
        await asyncio.sleep(STATUS_POLL_SECS)
        status = await _server_status(data_dir)
        if status is None:
            continue
        if status["failure"] is not None:
            raise admin.CommandError(f"not reloaded: {status['failure']}")
        if status["reloads"] > before["reloads"] and not status["reloading"]:
            took = time.monotonic() - began
            admin.print_escaped(f"version {status['version']} took over after {took:.1f} s")
            return
    raise admin.CommandError("the next version does not answer: the server's log says why")


async def _server_status(data_dir: DataDir) -> dict[str, Any] | None:
    """The status of the server; None while it does not answer.

    Raises:
        CommandError: the server has ended.
    """
    try:
        async with admin.connect_to_server(data_dir) as server:
            return await server.reload_status()
    except admin.CommandError:
        pass
    try:
        with data_dir.locked():  # the lock is held during a reload
            pass
    except DataDirInUseError:
        return None
    raise admin.CommandError("the next version has ended: the server's log says why")


async def check_start(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    """Check that this version can start with these settings, and take over from a running one.

    For a running server it prints what it has found: the version that takes over knows it then.

    Raises:
        CommandError: it cannot.
        SettingError: a level of the sandbox does not work.
    """
    running = arguments.running
    if (version := running.get("state")) is not None and version not in READABLE:
        raise admin.CommandError(cannot_read(version))
    for name, value in agreed_settings(settings).items():
        if name in running and running[name] != value:
            raise admin.CommandError(
                f"{name} has changed from {running[name]} to {value}, which needs a restart"
            )
    agents = agent_environ(environ, settings.agent_env)
    machine = await asyncio.to_thread(Machine.examine, settings.sandbox, environ)
    sandbox = await asyncio.to_thread(make_sandbox, settings, environ, agents, machine)
    await build_app(settings, environ=environ)
    make_backend(settings, environ, _NoLog(), sandbox=sandbox)
    path = DataDir.of(settings).database
    if await asyncio.to_thread(path.is_file):
        await (await Database.open_readonly(path)).close()
    if running:
        admin.print_escaped(msgspec.json.encode(machine).decode())


class _NoLog:
    """The log of a backend that is not started."""

    has_capacity = True

    async def wait_for_capacity(self) -> None: ...
