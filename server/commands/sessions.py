"""``sessions list|close|export``: every app's sessions, and their logs."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from ..agents.host import stderr
from ..codec import parse_message
from ..config import Settings
from ..data_dir import DataDir
from ..escaping import json_text, visible
from ..storage.queries import Queries
from ..storage.schema import SessionRow
from . import admin

PAGE_BYTES = 512 << 10


def add_to(commands: Any) -> None:
    """Add this module's commands to a parser's."""
    about = "the sessions of all apps"
    parser = commands.add_parser("sessions", help=about, description=f"Look after {about}.")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    text = "list the open sessions, the newest first"
    one = actions.add_parser("list", help=text, description=admin.sentence(text))
    one.add_argument("--app", metavar="NAME", help="only this app's")
    one.add_argument("--all", action="store_true", help="the closed ones, too")
    one.add_argument("--json", action="store_true", help="an object a line")
    one.set_defaults(run=functools.partial(admin.run, show))

    text = "close a session; what runs is cancelled, its sockets close"
    one = actions.add_parser("close", help=text, description=admin.sentence(text))
    one.add_argument("session_id")
    one.set_defaults(run=functools.partial(admin.run, close))

    text = "show the end of what a session's agent wrote on stderr: why it does not work, say"
    one = actions.add_parser("stderr", help=text, description=admin.sentence(text))
    one.add_argument("session_id")
    one.add_argument(
        "--raw",
        action="store_true",
        help="every byte as it is, for a pipe or a file: a terminal would obey some of them",
    )
    one.set_defaults(run=functools.partial(admin.run, show_stderr))

    text = "write a session's log to stdout"
    one = actions.add_parser("export", help=text, description=admin.sentence(text))
    one.add_argument("session_id")
    one.add_argument(
        "--format",
        choices=["ndjson", "markdown"],
        default="ndjson",
        help="ndjson: every entry as it is, one a line (default); markdown: to be read",
    )
    one.set_defaults(run=functools.partial(admin.run, export))


async def show(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.reading(settings) as queries:
        rows = await queries.sessions(include_closed=arguments.all)
    rows = [row for row in rows if arguments.app in (None, row.app_name)]
    if arguments.json:
        for row in rows:
            print(json.dumps(_view(row)))
        return
    cells = [("SESSION", "APP", "AGENT", "STATE", "TURNS", "LAST USED")]
    for row in rows:
        used = _moment(row.last_turn_at or row.created_at)
        state = "open" if row.closed_at is None else f"closed ({row.close_reason})"
        cells.append((row.id, row.app_name, row.agent, state, str(row.turn_count), used))
    admin.say(admin.table(cells))


def _view(row: SessionRow) -> dict[str, Any]:
    return {
        "session_id": row.id,
        "app": row.app_name,
        "agent": row.agent,
        "model": row.model,
        "cwd": row.cwd,
        "permission": row.permission,
        "meta": json.loads(row.meta),
        "created_at": row.created_at,
        "last_turn_at": row.last_turn_at,
        "turn_count": row.turn_count,
        "closed_at": row.closed_at,
        "close_reason": row.close_reason,
    }


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


async def close(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_house(settings, environ) as opened:
        first = await opened.close_session(arguments.session_id)
    admin.say(
        f"The session {arguments.session_id} is closed." if first else "It was closed already."
    )


async def show_stderr(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.reading(settings) as queries:
        row = await queries.session(arguments.session_id)
    if row is None:
        raise admin.CommandError("no such session")
    try:
        text = stderr.read(DataDir(settings.data_dir).stderr, row.id)
    except FileNotFoundError:
        text = b""
    if not arguments.raw:
        text = visible(text.decode(errors="backslashreplace")).encode()
    sys.stdout.buffer.write(text)


async def export(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.reading(settings) as queries:
        row = await queries.session(arguments.session_id)
        if row is None:
            raise admin.CommandError("no such session")
        if arguments.format == "ndjson":
            async for line in _lines(queries, row):
                # The same JSON, in which a terminal finds nothing to obey.
                text = json_text(line.decode())
                sys.stdout.buffer.write(text.encode() + b"\n")
        else:
            page = Page()
            page.say(f"# Session {row.id}")
            page.say(f"{row.agent}, {row.app_name}, {_moment(row.created_at)}")
            async for line in _lines(queries, row):
                page.add(parse_message(line) or {})
            page.flush()


async def _lines(queries: Queries, row: SessionRow) -> AsyncIterator[bytes]:
    position = 0
    while rows := await queries.read_log(row.n, position, PAGE_BYTES):
        for part in rows:
            for line in part.body.split(b"\n"):
                yield line
            position = part.last_seq


class Page:
    """A log as Markdown on stdout: prompts, answers, tools, and how turns ended."""

    def __init__(self) -> None:
        self._text = ""

    def say(self, text: str) -> None:
        """Write a paragraph, in which a terminal finds nothing to obey."""
        sys.stdout.buffer.write(visible(text).encode() + b"\n\n")

    def flush(self) -> None:
        """Write the answer's text that has gathered."""
        if self._text.strip():
            self.say(self._text.strip())
        self._text = ""

    def add(self, entry: Mapping[str, Any]) -> None:
        kind = entry.get("type")
        if kind == "event":
            self._update(_object(_object(entry["event"].get("params")).get("update")))
            return
        self.flush()
        if kind == "turn_start":
            self.say(f"## Turn {entry['turn_index']}")
            self.say("\n".join(f"> {line}" for line in _prompt(entry).splitlines()))
        elif kind == "permission_resolved":
            outcome = entry["outcome"]
            chosen = outcome.get("optionId", outcome.get("outcome"))
            self.say(f"*Permission: {chosen}, by {entry['by']}.*")
        elif kind == "turn_end":
            error = entry["error"]
            words = entry["stop_reason"] if error is None else error["message"]
            self.say(f"*{words}, {entry['duration_ms']} ms.*")
        elif kind == "session_closed":
            self.say(f"*Closed: {entry['reason']}.*")

    def _update(self, update: Mapping[str, Any]) -> None:
        kind = update.get("sessionUpdate")
        if kind == "agent_message_chunk":
            self._text += _words(_object(update.get("content")))
        elif kind == "tool_call":
            self.flush()
            self.say(f"*Tool: {update.get('title') or update.get('toolCallId')}.*")


def _object(value: Any) -> Mapping[str, Any]:
    """*value*, which an agent may have made of anything."""
    return value if isinstance(value, dict) else {}


def _words(block: Mapping[str, Any]) -> str:
    text = block.get("text")
    return text if isinstance(text, str) else f"[{block.get('type')}]"


def _prompt(entry: Mapping[str, Any]) -> str:
    return "\n".join(_words(block) for block in entry["prompt"])
