"""What commands work on: a running server by its socket, or the data folder of a stopped one.

Reading needs neither: the database can be read beside whoever writes it.
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

from ..agents.catalog import AcpxError
from ..app import make_backend
from ..auth.tokens import TokenRegistry
from ..config import Settings
from ..data_dir import DataDir, DataDirInUseError
from ..errors import DatabaseError, Error
from ..escaping import visible
from ..metrics import Metrics
from ..sessions.registry import SessionRegistry
from ..storage.database import Database
from ..storage.import_v02 import upgrade
from ..storage.queries import Queries
from ..storage.schema import SchemaError
from ..storage.writer import DatabaseWriter
from ..web import control_socket
from ..web.request_values import from_texts
from ..web.resources.tokens import CreateToken

WAIT_SECS = 15
"""For a server that is starting or stopping: it has the folder, and no socket."""
REPLY_SECS = 60

Command = Callable[[argparse.Namespace, Settings, Mapping[str, str]], Awaitable[None]]


class CommandError(Exception):
    """A command cannot be carried out; the message is one line for the operator."""


class House(Protocol):
    """What can be changed."""

    async def add_token(self, name: str, ip_cidrs: Sequence[str]) -> str:
        """Make an app's token; the token itself, which is not kept."""

    async def revoke_token(self, name: str) -> None: ...

    async def close_session(self, session_id: str) -> bool:
        """Close a session; False where it was closed already."""


class RunningHouse:
    """A running server: what it is told takes effect at once."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def add_token(self, name: str, ip_cidrs: Sequence[str]) -> str:
        body = {"name": name, "ip_cidrs": list(ip_cidrs)}
        return str((await self._call("POST", "/admin/tokens", json=body))["token"])

    async def revoke_token(self, name: str) -> None:
        await self._call("DELETE", f"/admin/tokens/{quote(name, safe='')}")

    async def close_session(self, session_id: str) -> bool:
        reply = await self._call("DELETE", f"/admin/sessions/{quote(session_id, safe='')}")
        return "already_closed" not in reply

    async def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            async with self._http.request(method, path, **options) as response:
                reply: dict[str, Any] = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise CommandError(f"the running server does not answer: {error!r}") from None
        if not reply["ok"]:
            raise CommandError(reply["error"])
        return reply


class StoppedHouse:
    """The data folder of a stopped server, which no server can start on meanwhile."""

    def __init__(self, tokens: TokenRegistry, sessions: SessionRegistry) -> None:
        self._tokens = tokens
        self._sessions = sessions

    async def add_token(self, name: str, ip_cidrs: Sequence[str]) -> str:
        body = from_texts({"name": name}, CreateToken)  # the rule of the REST call
        return (await self._tokens.create(body.name, ip_cidrs))[1]

    async def revoke_token(self, name: str) -> None:
        await self._tokens.revoke(name)

    async def close_session(self, session_id: str) -> bool:
        return await self._sessions.close_by_id(session_id, "admin")


@contextlib.asynccontextmanager
async def open_house(
    settings: Settings, environ: Mapping[str, str], *, must_exist: bool = True
) -> AsyncIterator[House]:
    """The running server where there is one, else the data folder itself.

    Args:
        must_exist: whether a data folder without a database is refused, or gets one.
    """
    if must_exist:
        await _check_database(settings)
    data_dir = DataDir(settings.data_dir)
    async with contextlib.AsyncExitStack() as stack:
        deadline = time.monotonic() + WAIT_SECS
        while True:
            try:
                stack.enter_context(data_dir.locked())
            except DataDirInUseError as error:
                if await _answers(data_dir):
                    yield await stack.enter_async_context(_running(data_dir))
                    return
                if time.monotonic() > deadline:
                    raise CommandError(
                        f"{error}, without {data_dir.control_socket.name}: stop it first"
                    ) from None
                await asyncio.sleep(0.1)
            else:
                yield await stack.enter_async_context(_stopped(settings, environ))
                return


async def _answers(data_dir: DataDir) -> bool:
    try:
        with control_socket.address(data_dir) as path:
            _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    connection = writer.get_extra_info("socket")
    is_servers = await asyncio.to_thread(control_socket.is_servers, connection, data_dir)
    writer.close()
    if not is_servers:
        raise CommandError(
            f"it is not the server that listens at {data_dir.control_socket}:"
            " restart the server, which makes the socket anew"
        )
    return True


@contextlib.asynccontextmanager
async def _running(data_dir: DataDir) -> AsyncIterator[House]:
    with control_socket.address(data_dir) as path:
        async with aiohttp.ClientSession(
            "http://localhost",
            connector=aiohttp.UnixConnector(path),
            timeout=aiohttp.ClientTimeout(total=REPLY_SECS),
        ) as http:
            yield RunningHouse(http)


@contextlib.asynccontextmanager
async def _stopped(settings: Settings, environ: Mapping[str, str]) -> AsyncIterator[House]:
    async with contextlib.AsyncExitStack() as stack:
        path = DataDir(settings.data_dir).database
        await upgrade(path)
        database = await Database.open(path, sync=settings.sync)
        stack.push_async_callback(database.close)
        queries = Queries(database)
        metrics = Metrics()
        writer = DatabaseWriter(database, metrics)
        writer.start()
        stack.push_async_callback(writer.stop)
        tokens = TokenRegistry(queries, writer)
        await tokens.load_app_tokens()
        # Agents are described by it and never started, so no Node is needed.
        backend = make_backend(settings, environ, writer, node="node")
        sessions = SessionRegistry(settings, queries, writer, metrics, backend)
        await sessions.start()
        stack.push_async_callback(sessions.stop)
        yield StoppedHouse(tokens, sessions)


@contextlib.asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Queries]:
    """The database, to read it."""
    data_dir = DataDir(settings.data_dir)
    if await asyncio.to_thread(settings.data_dir.is_dir):
        data_dir.check()
    await _check_database(settings)
    database = await Database.open_readonly(data_dir.database)
    try:
        yield Queries(database)
    finally:
        await database.close()


async def _check_database(settings: Settings) -> None:
    path = DataDir(settings.data_dir).database
    if not await asyncio.to_thread(path.is_file):
        raise CommandError(
            f"there is no database at {path}; CLAWDFORGE_DATA_DIR says where to look"
        )


def run(
    command: Command, arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> int:
    """Carry out a command.

    Raises:
        CommandError: it cannot be.
    """
    try:
        asyncio.run(_awaited(command(arguments, settings, environ)))
        sys.stdout.flush()
    except BrokenPipeError:
        drop_stdout()  # whoever reads has seen enough, `head` say
    except (AcpxError, Error, OSError, SchemaError) as error:
        raise CommandError(str(error)) from None
    except DatabaseError as error:
        where = DataDir(settings.data_dir).database
        raise CommandError(f"{where}: {error}: `doctor` says what to do") from None
    return 0


def drop_stdout() -> None:
    """Let what is still to be said go nowhere, also at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def _awaited(work: Awaitable[None]) -> None:
    await work


def sentence(text: str) -> str:
    """A command's help, as the sentence that describes it."""
    return f"{text[0].upper()}{text[1:]}."


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print *text*, in which a terminal finds nothing to obey."""
    print(visible(text), file=file, flush=True)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
