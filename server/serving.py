"""The start and the stop of a server process."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Mapping

from aiohttp import web

from . import __version__
from .app import CONNECTIONS, FIRST_TOKENS, RELOADER, SANDBOX, build_app
from .commands.admin import discard_stdout
from .config import Settings
from .data_dir import DataDir
from .errors import StartError
from .origins import address_of
from .reload.program import STOP_SIGNALS, StartedProgram, accept_stop_signals
from .reload.reloader import Reloader
from .reload.state import Inherited
from .service_manager import ServiceManager
from .tasks import CriticalTaskError, Supervisor
from .web import control_socket
from .web.context import CONTEXT
from .web.listener import Listener
from .web.middleware import ServerRunner
from .web.node_link import LINK
from .web.waits import continue_waits
from .wiring.reloads import inherited_listeners

HANDLERS_SECS = 2.0
"""The time that requests get to finish after the listener was closed."""
M_MMAP_THRESHOLD = -3
"""The parameter of glibc's ``mallopt``."""
FAILED_STOP_SECS = 60.0
"""The process exits this long after the failure of a critical task, even if it hangs."""


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
    app = await build_app(
        settings, environ=environ, supervisor=supervisor, program=program, inherited=inherited
    )
    reloader = app[RELOADER]
    reloader.is_stopping = stop.is_set
    loop.add_signal_handler(signal.SIGHUP, reloader.on_signal)
    timer = threading.Timer(FAILED_STOP_SECS, os._exit, (1,))
    timer.daemon = True
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(timer.cancel)
        port = await stack.enter_async_context(
            _open_listeners(app, settings, supervisor, inherited)
        )
        reloader.note_ready(inherited)
        _return_large_blocks_to_system()
        tune_gc()
        _print_greeting(app, settings, port)
        failing = asyncio.create_task(_stop_at_failure(supervisor, stop, timer), name="failure")
        stack.callback(failing.cancel)
        manager = _manager_of(reloader, f"listening on port {port}")
        feeding = asyncio.create_task(manager.feed_watchdog(), name="watchdog")
        stack.callback(feeding.cancel)
        await stop.wait()
        manager.is_stopping()
        if supervisor.failure is None:
            print_status("clawdforge is stopping; running turns may finish")
        await app.shutdown()  # still listening: new requests get 503 `draining`
    if supervisor.failure is not None:
        raise CriticalTaskError(supervisor.failure, supervisor.exit_status)


@contextlib.asynccontextmanager
async def _open_listeners(
    app: web.Application, settings: Settings, supervisor: Supervisor, inherited: Inherited | None
) -> AsyncIterator[int]:
    """Start the parts of the server, and listen for clients, other nodes and the operator.

    Yields:
        The port for clients.
    """
    runner = ServerRunner(app, handle_signals=False, shutdown_timeout=HANDLERS_SECS)
    async with contextlib.AsyncExitStack() as stack:
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
        control = await stack.enter_async_context(
            control_socket.listening(runner, DataDir.of(settings), sockets.control)
        )
        connections = app[CONNECTIONS]
        connections.listener, connections.control = listener, control
        await continue_waits(app, listener, sockets.waits)
        for descriptor in sockets.idle:
            await listener.adopt(descriptor)
        yield port


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


def tune_gc() -> None:
    """Make garbage collections short and rare.

    Objects that exist now are excluded. A full collection takes 0.1 s with thousands of sockets,
    so it runs a hundred times less often than by default. Reference counting frees nearly all.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2000, 5, 1000)


def _print_greeting(app: web.Application, settings: Settings, port: int) -> None:
    print_status(app[SANDBOX].describe())
    address = f"http://{reachable(settings.host)}:{port}/"
    print_status(f"clawdforge {__version__} is ready on {address}")
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
        print_status("\n".join(lines))


def print_status(text: str) -> None:
    """Print to stdout. If it is closed, the server continues without output."""
    try:
        print(text, flush=True)
    except OSError:
        discard_stdout()
