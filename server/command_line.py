"""The command line: ``python -m server``, or ``clawdforge`` if the package is installed."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from . import COMMAND, __version__, installation, logs
from .agents.process import process_tree
from .agents.process.environ import forget
from .app import CONNECTIONS, FIRST_TOKENS, RELOADER, SANDBOX, build_app
from .commands.admin import CommandError, discard_stdout, print_escaped, sentence
from .commands.backup import add_backup_commands
from .commands.cluster import add_cluster_commands
from .commands.doctor import add_doctor_command
from .commands.reload import add_reload_command
from .commands.sessions import add_session_commands
from .commands.setup import add_setup_command
from .commands.tokens import add_token_commands
from .commands.unit import add_unit_command
from .commands.webhooks import add_webhook_command
from .config import SettingError, Settings, load, with_env_file
from .connect.command import connect_with
from .connect.target import SUMMARY, add_connect_arguments
from .data_dir import DataDir
from .errors import StartError
from .origins import address_of
from .reload.program import STOP_SIGNALS, StartedProgram, accept_stop_signals
from .reload.reloader import Reloader
from .reload.state import Inherited, read_state
from .service_manager import ServiceManager
from .tasks import CriticalTaskError, Supervisor
from .web import control_socket
from .web.context import CONTEXT
from .web.listener import Listener
from .web.middleware import ServerRunner
from .web.node_link import LINK
from .web.waits import continue_waits
from .wiring.reloads import inherited_listeners

logger = logging.getLogger(__name__)

ENV_FILE = Path(".env")
HANDLERS_SECS = 2.0
"""The time that requests get to finish after the listener was closed."""
M_MMAP_THRESHOLD = -3
"""The parameter of glibc's ``mallopt``."""
FAILED_STOP_SECS = 60.0
"""The process exits this long after the failure of a critical task, even if it hangs."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    arguments.program = StartedProgram.of_this_process()
    process_tree.isolate()
    environ: Mapping[str, str] = os.environ
    try:
        environ = with_env_file(os.environ, ENV_FILE)
        forget("CLAWDFORGE_ADMIN_TOKEN")  # only the settings keep it
        settings = load(environ)
    except SettingError as error:
        log_format = environ.get("CLAWDFORGE_LOG_FORMAT", "").strip()
        if log_format == "json":
            logs.set_up(Settings(log_format=log_format))
        _report_failure(error, log_format, arguments)
        return 2
    logs.set_up(settings)
    try:
        return int(arguments.execute(arguments, settings, environ))
    except SettingError as error:  # only a trial shows that a value does not work here
        _report_failure(error, settings.log_format, arguments)
        return 2
    except (StartError, CommandError, CriticalTaskError) as error:
        _report_failure(error, settings.log_format, arguments)
        return 1
    except KeyboardInterrupt:
        return 130


def _report_failure(error: Exception, log_format: str, arguments: argparse.Namespace) -> None:
    """Print the error to stderr. A server with a JSON log writes it as a log line instead."""
    if log_format == "json" and arguments.execute is _serve:
        logger.critical("%s", error)
    else:
        print_escaped(f"clawdforge: {error}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description=f"clawdforge {__version__}. Without a command, starts the server.",
        epilog="Settings are read from the environment and .env: see docs/reference/settings.md.",
    )
    parser.add_argument("--version", action="version", version=f"clawdforge {__version__}")
    parser.set_defaults(execute=_serve)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    text = "run the server until SIGTERM or Ctrl-C (the default)"
    commands.add_parser("serve", aliases=["run"], help=text, description=sentence(text))
    add_setup_command(commands)
    add_token_commands(commands)
    add_session_commands(commands)
    add_doctor_command(commands)
    add_backup_commands(commands)
    add_cluster_commands(commands)
    add_unit_command(commands)
    add_webhook_command(commands)
    add_reload_command(commands)
    # `__main__` runs this command without the others. Here it is for `--help`.
    connecting = commands.add_parser("connect", help=SUMMARY, description=sentence(SUMMARY))
    add_connect_arguments(connecting)
    connecting.set_defaults(execute=lambda arguments, *_: connect_with(arguments))
    return parser


def _serve(arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]) -> int:
    inherited = read_state(os.environ)
    installation.ensure_packages(environ, _print_status)
    asyncio.run(serve(settings, environ, program=arguments.program, inherited=inherited))
    return 0


async def serve(
    settings: Settings,
    environ: Mapping[str, str],
    supervisor: Supervisor | None = None,
    *,
    program: StartedProgram | None = None,
    inherited: Inherited | None = None,
) -> None:
    """Run the server until SIGTERM or Ctrl-C; SIGHUP reloads it.

    Args:
        program: what this process was started with.
        inherited: the state of an earlier version of the server, which is continued.

    Raises:
        StartError: the server cannot start.
        CriticalTaskError: the server stopped because a critical task failed.
    """
    supervisor = supervisor or Supervisor()
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    accept_stop_signals()
    about: dict[str, Any] = {"program": program, "inherited": inherited}
    app = await build_app(settings, environ=environ, supervisor=supervisor, **about)
    reloader = app[RELOADER]
    reloader.is_stopping = stop.is_set
    loop.add_signal_handler(signal.SIGHUP, reloader.on_signal)
    runner = ServerRunner(app, handle_signals=False, shutdown_timeout=HANDLERS_SECS)
    timer = threading.Timer(FAILED_STOP_SECS, os._exit, (1,))
    timer.daemon = True
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(timer.cancel)
        stack.push_async_callback(runner.cleanup)
        # The first tokens are shown even if the start fails after they were created.
        stack.callback(_show_tokens, app)
        sockets = inherited_listeners(inherited)
        await runner.setup()
        times = settings.auth_timeout_secs, settings.stall_timeout_secs
        listener = Listener(app[CONTEXT].sockets.unauthenticated, *times, supervisor)
        opened = listener.open(runner, settings.host, settings.port, sockets.listening)
        port = await stack.enter_async_context(_open_listener(opened, settings))
        if LINK in app:
            await stack.enter_async_context(app[LINK].listening(runner))
        data_dir, connections = DataDir.of(settings), app[CONNECTIONS]
        async with control_socket.listening(runner, data_dir, sockets.control) as control:
            connections.listener, connections.control = listener, control
            await continue_waits(app, listener, sockets.waits)
            reloader.note_ready(inherited)
            _return_large_blocks_to_system()
            _tune_gc()
            _print_greeting(app, settings, port)
            failing = asyncio.create_task(_stop_at_failure(supervisor, stop, timer), name="failure")
            stack.callback(failing.cancel)
            manager = _manager_of(reloader, f"listening on port {port}")
            feeding = asyncio.create_task(manager.feed_watchdog(), name="watchdog")
            stack.callback(feeding.cancel)
            await stop.wait()
            manager.is_stopping()
            if supervisor.failure is None:
                _print_status("clawdforge is stopping; running turns may finish")
            await app.shutdown()  # still listening: new requests get 503 `draining`
    if supervisor.failure is not None:
        raise CriticalTaskError(supervisor.failure)


def _manager_of(reloader: Reloader, status: str) -> ServiceManager:
    """Report to the service manager that the server is ready, and when it is reloaded."""
    manager = ServiceManager()
    manager.is_ready(status)
    reloader.on_begin = manager.is_reloading
    reloader.on_given_up = lambda: manager.is_ready(status)
    return manager


@contextlib.asynccontextmanager
async def _open_listener(
    opened: contextlib.AbstractAsyncContextManager[int], settings: Settings
) -> AsyncIterator[int]:
    async with contextlib.AsyncExitStack() as stack:
        try:
            port = await stack.enter_async_context(opened)
        except OSError as error:
            address = f"{settings.host}:{settings.port}"
            raise StartError(f"cannot listen on {address}: {error.strerror or error}") from None
        yield port


async def _stop_at_failure(
    supervisor: Supervisor, stop: asyncio.Event, timer: threading.Timer
) -> None:
    """Stop the server after a critical task has failed. *timer* exits if the stop hangs."""
    await supervisor.wait_for_failure()
    timer.start()
    stop.set()


def _return_large_blocks_to_system() -> None:
    """Return freed blocks of 1 MiB and more to the system.

    By default, glibc raises this threshold to 32 MiB when the first large block is freed, and then
    keeps the memory of large bodies and prompts.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _tune_gc() -> None:
    """Make garbage collections short and rare.

    Objects that exist now are excluded. A full collection takes 0.1 s with thousands of sockets,
    so it runs a hundred times less often than by default. Reference counting frees nearly all.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2000, 5, 1000)


def _print_greeting(app: web.Application, settings: Settings, port: int) -> None:
    _print_status(app[SANDBOX].describe())
    address = f"http://{reachable(settings.host)}:{port}/"
    _print_status(f"clawdforge {__version__} is ready on {address}")
    _show_tokens(app, address)


def reachable(host: str) -> str:
    """The host part of a URL that reaches a server which listens on *host*."""
    address = address_of(host)
    if address is None:
        return host
    if address.is_unspecified:  # all addresses; of IPv6 they exclude IPv4
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if ":" not in host else f"[{host.replace('%', '%25')}]"


def _show_tokens(app: web.Application, address: str | None = None) -> None:
    """Print the tokens that the first start has created. They are not shown again."""
    while app[FIRST_TOKENS]:
        first = app[FIRST_TOKENS].pop()
        lines = [""]
        if first.admin is not None:
            lines.append(f"  admin token  {first.admin}")
        if first.app is not None:
            lines.append(f"  app token    {first.app}")
            if address is not None:
                lines.append(f"  open         {address}#token={first.app}")
        lines += ["", "  These are not shown again; only their hashes are stored."]
        _print_status("\n".join(lines))


def _print_status(text: str) -> None:
    """Print to stdout. If it is closed, the server continues without output."""
    try:
        print(text, flush=True)
    except OSError:
        discard_stdout()
