"""The common part of the commands: access to the server's data, execution and output.

A command that changes something uses an :class:`AdminApi`: a running server through its control
socket or, if no server runs, the data folder itself. A command that only reads opens the database
directly, which does not disturb a running server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TextIO
from urllib.parse import quote

import aiohttp
import msgspec

from .. import COMMAND
from ..agents.catalog import AcpxError
from ..agents.process.environ import agent_environ
from ..auth.token_options import TokenOptions
from ..auth.tokens import TokenRegistry
from ..backends import make_backend
from ..config import Settings
from ..data_dir import DataDir, DataDirInUseError
from ..errors import DatabaseError, Error
from ..escaping import visible
from ..metrics import Metrics
from ..sandbox.setup import make_sandbox
from ..sessions.registry import SessionRegistry
from ..storage.database import Database
from ..storage.engine import open_database
from ..storage.queries import Queries
from ..storage.schema import SchemaError
from ..storage.writer import DatabaseWriter
from ..validation import in_words
from ..web import control_socket
from ..web.request_values import from_texts
from ..web.resources.tokens import CreateToken

WAIT_SECS = 15
"""The longest wait for a server that starts or stops, and therefore has no socket."""
RESPONSE_SECS = 60

CommandFunction = Callable[[argparse.Namespace, Settings, Mapping[str, str]], Awaitable[None]]


class CommandError(Exception):
    """A command failed. The message is one line for the operator."""


class AdminApi(Protocol):
    """The changes that commands can make. Each raises ``Error`` or :class:`CommandError`."""

    async def add_token(
        self, name: str, ip_cidrs: Sequence[str], options: Mapping[str, Any]
    ) -> str:
        """Create an app's token, and return it. Only its hash is stored.

        Args:
            options: fields of the request, such as ``limits``.
        """

    async def change_token(self, name: str, options: Mapping[str, Any]) -> None:
        """Replace the fields of a token that *options* has; None removes one."""

    async def revoke_token(self, name: str, *, close_sessions: bool) -> int:
        """Revoke a token. Returns the number of sessions that were closed."""

    async def close_session(self, session_id: str) -> bool:
        """Close a session. Returns False if it was closed already."""


class RunningServer:
    """A running server, which applies changes at once."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def add_token(
        self, name: str, ip_cidrs: Sequence[str], options: Mapping[str, Any]
    ) -> str:
        body = {"name": name, "ip_cidrs": list(ip_cidrs), **options}
        return str((await self._call("POST", "/admin/tokens", json=body))["token"])

    async def change_token(self, name: str, options: Mapping[str, Any]) -> None:
        await self._call("PATCH", f"/admin/tokens/{quote(name, safe='')}", json=dict(options))

    async def revoke_token(self, name: str, *, close_sessions: bool) -> int:
        query = {"close_sessions": "true"} if close_sessions else {}
        path = f"/admin/tokens/{quote(name, safe='')}"
        return int((await self._call("DELETE", path, params=query)).get("closed_sessions", 0))

    async def close_session(self, session_id: str) -> bool:
        reply = await self._call("DELETE", f"/admin/sessions/{quote(session_id, safe='')}")
        return "already_closed" not in reply

    async def reload(self) -> dict[str, Any]:
        """Have the server try its next version and become it."""
        return await self._call("POST", "/admin/reload")

    async def reload_status(self) -> dict[str, Any]:
        return await self._call("GET", "/admin/reload")

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            async with self._http.request(method, path, **options) as response:
                reply: dict[str, Any] = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise CommandError(f"the running server does not respond: {error!r}") from None
        if not reply["ok"]:
            raise CommandError(reply["error"])
        return reply


class StoppedServer:
    """The data folder of a stopped server. It is locked, so that no server can start.

    Args:
        sessions: None in a cluster, in which other nodes may run them.
    """

    def __init__(self, tokens: TokenRegistry, sessions: SessionRegistry | None) -> None:
        self._tokens = tokens
        self._sessions = sessions

    async def add_token(
        self, name: str, ip_cidrs: Sequence[str], options: Mapping[str, Any]
    ) -> str:
        name = from_texts({"name": name}, CreateToken).name  # the same checks as in the REST call
        return (await self._tokens.create(name, ip_cidrs, _token_options(options)))[1]

    async def change_token(self, name: str, options: Mapping[str, Any]) -> None:
        await self._tokens.change(name, _token_options(options))

    async def revoke_token(self, name: str, *, close_sessions: bool) -> int:
        await self._tokens.revoke(name)
        if not close_sessions:
            return 0
        return await self._known_sessions().listing.close_all(name, "admin")

    async def close_session(self, session_id: str) -> bool:
        return await self._known_sessions().close_by_id(session_id, "admin")

    def _known_sessions(self) -> SessionRegistry:
        if self._sessions is None:
            raise CommandError("start this node first: another node may run the session")
        return self._sessions


def _token_options(options: Mapping[str, Any]) -> TokenOptions:
    """Check options as the REST call does.

    Raises:
        CommandError: an option is invalid.
    """
    try:
        return msgspec.convert(options, TokenOptions)
    except msgspec.ValidationError as error:
        raise CommandError(in_words(error)) from None


@contextlib.asynccontextmanager
async def open_admin_api(
    settings: Settings, environ: Mapping[str, str], *, must_exist: bool = True
) -> AsyncIterator[AdminApi]:
    """Connect to the running server or, if there is none, open the data folder.

    Args:
        must_exist: fail if there is no database; otherwise one is created.

    Raises:
        CommandError: neither is possible.
    """
    if must_exist:
        await _require_database(settings)
    data_dir = DataDir.of(settings)
    async with contextlib.AsyncExitStack() as stack:
        deadline = time.monotonic() + WAIT_SECS
        while True:
            try:
                stack.enter_context(data_dir.locked())
            except DataDirInUseError as error:
                if await is_serving(data_dir):
                    yield await stack.enter_async_context(connect_to_server(data_dir))
                    return
                if time.monotonic() > deadline:
                    raise CommandError(
                        f"{error}, and has no {data_dir.control_socket.name}: stop it first"
                    ) from None
                await asyncio.sleep(0.1)
            else:
                yield await stack.enter_async_context(_open_stopped(settings, environ))
                return


async def is_serving(data_dir: DataDir) -> bool:
    """Whether a server answers at the operator's socket.

    Raises:
        CommandError: another program does.
    """
    try:
        with control_socket.address(data_dir) as path:
            _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    connection = writer.get_extra_info("socket")
    is_servers = await asyncio.to_thread(control_socket.is_server_socket, connection, data_dir)
    writer.close()
    if not is_servers:
        raise CommandError(
            f"another program listens on {data_dir.control_socket}:"
            " restart the server, which creates the socket again"
        )
    return True


@contextlib.asynccontextmanager
async def connect_to_server(data_dir: DataDir) -> AsyncIterator[RunningServer]:
    """Connect to the operator's socket of a running server."""
    with control_socket.address(data_dir) as path:
        async with aiohttp.ClientSession(
            "http://localhost",
            connector=aiohttp.UnixConnector(path),
            timeout=aiohttp.ClientTimeout(total=RESPONSE_SECS),
        ) as http:
            yield RunningServer(http)


@contextlib.asynccontextmanager
async def _open_stopped(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[AdminApi]:
    async with contextlib.AsyncExitStack() as stack:
        database = await open_database(settings, DataDir.of(settings).database, stack)
        queries = Queries(database)
        metrics = Metrics()
        writer = DatabaseWriter(database, metrics)
        writer.start()
        stack.push_async_callback(writer.stop)
        tokens = TokenRegistry(queries, writer)
        await tokens.load_app_tokens()
        sandbox = await asyncio.to_thread(
            make_sandbox, settings, environ, agent_environ(environ, settings.agent_env)
        )
        await tokens.connect_sandbox(sandbox)
        if settings.cluster_url is not None:
            yield StoppedServer(tokens, None)
            return
        # No agent is started, so Node need not be installed.
        backend = make_backend(settings, environ, writer, sandbox=sandbox, node="node")
        sessions = SessionRegistry(settings, queries, writer, metrics, backend)
        await sessions.start()
        stack.push_async_callback(sessions.stop)
        yield StoppedServer(tokens, sessions)


@contextlib.asynccontextmanager
async def open_for_reading(settings: Settings) -> AsyncIterator[Queries]:
    """Open the database for reading, also while a server runs."""
    data_dir = DataDir.of(settings)
    if await asyncio.to_thread(settings.data_dir.is_dir):
        data_dir.check()
    await _require_database(settings)
    async with contextlib.AsyncExitStack() as stack:
        if settings.cluster_url is not None:
            database = await open_database(settings, data_dir.database, stack)
        else:
            database = await Database.open_readonly(data_dir.database)
            stack.push_async_callback(database.close)
        yield Queries(database)


async def _require_database(settings: Settings) -> None:
    if settings.cluster_url is not None:
        return
    path = DataDir.of(settings).database
    if not await asyncio.to_thread(path.is_file):
        raise CommandError(
            f"there is no database at {path}; CLAWDFORGE_DATA_DIR sets the data folder"
        )


def execute_command(
    command: CommandFunction,
    arguments: argparse.Namespace,
    settings: Settings,
    environ: Mapping[str, str],
) -> int:
    """Run an asynchronous command.

    Returns:
        The exit status.

    Raises:
        CommandError: the command failed.
    """
    try:
        asyncio.run(_awaited(command(arguments, settings, environ)))
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()  # the reader has ended, as `head` does
    except (AcpxError, Error, OSError, SchemaError) as error:
        raise CommandError(str(error)) from None
    except DatabaseError as error:
        path = DataDir.of(settings).database
        raise CommandError(f"{path}: {error}: run `{COMMAND} doctor`") from None
    return 0


def discard_stdout() -> None:
    """Discard all further output, including what Python flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _awaited(work: Awaitable[None]) -> None:
    await work


def sentence(text: str) -> str:
    """Convert a command's help text into a sentence, for its description."""
    return f"{text[0].upper()}{text[1:]}."


def print_escaped(text: str, *, file: TextIO | None = None) -> None:
    """Print *text*. Characters that control a terminal are escaped."""
    print(visible(text), file=file, flush=True)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
