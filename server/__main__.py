"""The command line: ``python -m server``."""

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
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiohttp import web

from . import __version__, logs
from .agents.process import process_tree
from .agents.process.environ import forget
from .app import FIRST_TOKENS, build_app
from .commands import backup, doctor, sessions, tokens
from .commands.admin import CommandError, drop_stdout, say, sentence
from .config import SettingError, Settings, load, with_env_file
from .data_dir import DataDir
from .errors import StartError
from .origins import address_of
from .tasks import CriticalTaskError, Supervisor
from .web import control_socket
from .web.context import CONTEXT
from .web.listener import Listener
from .web.middleware import ServerRunner

logger = logging.getLogger(__name__)

ENV_FILE = Path(".env")
HANDLERS_SECS = 2.0
M_MMAP_THRESHOLD = -3
"""Of glibc's ``mallopt``."""
FAILED_STOP_SECS = 60.0
"""What a server has to stop in, after the failure of a critical task; then it is ended."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    process_tree.isolate()
    environ: Mapping[str, str] = os.environ
    try:
        environ = with_env_file(os.environ, ENV_FILE)
        forget("CLAWDFORGE_ADMIN_TOKEN")  # the settings have it
        settings = load(environ)
    except SettingError as error:
        log_format = environ.get("CLAWDFORGE_LOG_FORMAT", "").strip()
        if log_format == "json":
            logs.set_up(Settings(log_format=log_format))
        _tell_failure(error, log_format, arguments)
        return 2
    logs.set_up(settings)
    try:
        return int(arguments.run(arguments, settings, environ))
    except (StartError, CommandError, CriticalTaskError) as error:
        _tell_failure(error, settings.log_format, arguments)
        return 1
    except KeyboardInterrupt:
        return 130


def _tell_failure(error: Exception, log_format: str, arguments: argparse.Namespace) -> None:
    """Say on stderr why the program ends; a server with a JSON log says it in a line of that."""
    if log_format == "json" and arguments.run is _serve:
        logger.critical("%s", error)
    else:
        say(f"clawdforge: {error}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description=f"clawdforge {__version__}. Without a command it serves.",
        epilog="Settings come from the environment and from .env: see docs/reference/settings.md.",
    )
    parser.add_argument("--version", action="version", version=f"clawdforge {__version__}")
    parser.set_defaults(run=_serve)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    text = "serve until SIGTERM or Ctrl-C (the default)"
    commands.add_parser("serve", help=text, description=sentence(text))
    for module in (tokens, sessions, doctor, backup):
        module.add_to(commands)
    return parser


def _serve(arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]) -> int:
    asyncio.run(serve(settings, environ))
    return 0


async def serve(
    settings: Settings, environ: Mapping[str, str], supervisor: Supervisor | None = None
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        StartError: the server cannot start.
        CriticalTaskError: the server had to stop, because one of its tasks cannot continue.
    """
    supervisor = supervisor or Supervisor()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    app = await build_app(settings, environ=environ, supervisor=supervisor)
    runner = ServerRunner(app, handle_signals=False, shutdown_timeout=HANDLERS_SECS)
    timer = threading.Timer(FAILED_STOP_SECS, os._exit, (1,))
    timer.daemon = True
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(timer.cancel)
        stack.push_async_callback(runner.cleanup)
        # They are made once: a first start that fails after that shows them, too.
        stack.callback(_show_tokens, app)
        await runner.setup()
        door = Listener(
            app[CONTEXT].sockets.waiting,
            settings.auth_timeout_secs,
            settings.stall_timeout_secs,
            supervisor,
        )
        try:
            port = await stack.enter_async_context(door.open(runner, settings.host, settings.port))
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise StartError(f"cannot listen on {where}: {error.strerror or error}") from None
        async with control_socket.listening(runner, DataDir(settings.data_dir)):
            _return_large_blocks()
            _spare_collector()
            _greet(app, settings, port)
            failing = asyncio.create_task(_stop_at_failure(supervisor, stop, timer), name="failure")
            stack.callback(failing.cancel)
            await stop.wait()
            if supervisor.failure is None:
                _say("clawdforge is stopping; running turns have a moment to finish")
            await app.shutdown()  # still listening: who asks meanwhile is told 503, draining
    if supervisor.failure is not None:
        raise CriticalTaskError(supervisor.failure)


async def _stop_at_failure(
    supervisor: Supervisor, stop: asyncio.Event, timer: threading.Timer
) -> None:
    """Have the server stop when a critical task has failed; *timer* ends it if it does not."""
    await supervisor.wait_for_failure()
    timer.start()
    stop.set()


def _return_large_blocks() -> None:
    """Have memory of 1 MiB and more go back to the system when it is freed.

    glibc raises this threshold by itself to 32 MiB at the first large block that is freed, and then
    keeps what bodies and prompts of megabytes have used.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _spare_collector() -> None:
    """Let garbage be collected in slices that nobody feels.

    What is there now stays. A look at all that came since takes a tenth of a second with
    thousands of sockets, so it comes a hundred times more seldom than by default. Nearly
    everything is freed without it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2000, 5, 1000)


def _greet(app: web.Application, settings: Settings, port: int) -> None:
    address = f"http://{reachable(settings.host)}:{port}/"
    _say(f"clawdforge {__version__} is ready on {address}")
    _show_tokens(app, address)


def reachable(host: str) -> str:
    """The host of an address that can be opened here, if *host* is listened on."""
    address = address_of(host)
    if address is None:
        return host
    if address.is_unspecified:  # every address, of IPv6 without those of IPv4
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return host if ":" not in host else f"[{host.replace('%', '%25')}]"


def _show_tokens(app: web.Application, address: str | None = None) -> None:
    """Show the tokens that a first start has made, this once."""
    while app[FIRST_TOKENS]:
        first = app[FIRST_TOKENS].pop()
        lines = [""]
        if first.admin is not None:
            lines.append(f"  admin token  {first.admin}")
        if first.app is not None:
            lines.append(f"  app token    {first.app}")
            if address is not None:
                lines.append(f"  open         {address}#token={first.app}")
        lines += ["", "  These are shown this once; only their hashes are kept."]
        _say("\n".join(lines))


def _say(text: str) -> None:
    """Say it on stdout; where nobody can be told any more, the server goes on all the same."""
    try:
        print(text, flush=True)
    except OSError:
        drop_stdout()


if __name__ == "__main__":
    sys.exit(main())
