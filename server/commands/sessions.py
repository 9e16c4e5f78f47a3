"""The commands ``sessions list``, ``close``, ``stderr`` and ``export``: all apps' sessions."""

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

EXPORT_PAGE_BYTES = 512 << 10


def add_session_commands(commands: Any) -> None:
    """Add the commands of this module to the parser."""
    text = "manage the sessions of all apps"
    parser = commands.add_parser("sessions", help=text, description=admin.sentence(text))
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    text = "list the open sessions, newest first"
    command = actions.add_parser("list", help=text, description=admin.sentence(text))
    command.add_argument("--app", metavar="NAME", help="only sessions of this app")
    command.add_argument("--all", action="store_true", help="also list closed sessions")
    command.add_argument("--json", action="store_true", help="print one JSON object per line")
    command.set_defaults(execute=functools.partial(admin.execute_command, print_sessions))

    text = "close a session: its turns are cancelled, and its sockets close"
    command = actions.add_parser("close", help=text, description=admin.sentence(text))
    command.add_argument("session_id", help="the session's id")
    command.set_defaults(execute=functools.partial(admin.execute_command, close_one))

    text = "print the end of the stderr of a session's agent, to see why it does not work"
    command = actions.add_parser("stderr", help=text, description=admin.sentence(text))
    command.add_argument("session_id", help="the session's id")
    command.add_argument(
        "--raw",
        action="store_true",
        help="print every byte unchanged, for a pipe or a file; a terminal would interpret some",
    )
    command.set_defaults(execute=functools.partial(admin.execute_command, print_stderr))

    text = "write a session's log to stdout"
    command = actions.add_parser("export", help=text, description=admin.sentence(text))
    command.add_argument("session_id", help="the session's id")
    command.add_argument(
        "--format",
        choices=["ndjson", "markdown"],
        default="ndjson",
        help="ndjson: all entries, one per line (default); markdown: for people",
    )
    command.set_defaults(execute=functools.partial(admin.execute_command, export_log))


async def print_sessions(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_for_reading(settings) as queries:
        rows = await queries.sessions(include_closed=arguments.all)
    rows = [row for row in rows if arguments.app in (None, row.app_name)]
    if arguments.json:
        for row in rows:
            print(json.dumps(_session_dict(row)))
        return
    cells = [("SESSION", "APP", "AGENT", "STATE", "TURNS", "LAST USED")]
    for row in rows:
        used = _format_time(row.last_turn_at or row.created_at)
        state = "open" if row.closed_at is None else f"closed ({row.close_reason})"
        cells.append((row.id, row.app_name, row.agent, state, str(row.turn_count), used))
    admin.print_escaped(admin.format_table(cells))


def _session_dict(row: SessionRow) -> dict[str, Any]:
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


def _format_time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"


async def close_one(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_admin_api(settings, environ) as api:
        is_first = await api.close_session(arguments.session_id)
    admin.print_escaped(
        f"The session {arguments.session_id} was {'closed' if is_first else 'closed already'}."
    )


async def print_stderr(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_for_reading(settings) as queries:
        row = await _find_session(queries, arguments.session_id)
    try:
        text = stderr.read(DataDir.of(settings).stderr, row.id)
    except FileNotFoundError:
        text = b""
    if not arguments.raw:
        text = visible(text.decode(errors="backslashreplace")).encode()
    sys.stdout.buffer.write(text)


async def export_log(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_for_reading(settings) as queries:
        row = await _find_session(queries, arguments.session_id)
        if arguments.format == "ndjson":
            async for line in _exported_lines(queries, row):
                # Characters that control a terminal become JSON escapes.
                text = json_text(line.decode())
                sys.stdout.buffer.write(text.encode() + b"\n")
        else:
            page = MarkdownPage()
            page.write(f"# Session {row.id}")
            page.write(f"{row.agent}, {row.app_name}, {_format_time(row.created_at)}")
            async for line in _exported_lines(queries, row):
                page.add(parse_message(line) or {})
            page.flush()


async def _find_session(queries: Queries, session_id: str) -> SessionRow:
    row = await queries.session(session_id)
    if row is None:
        raise admin.CommandError("no such session")
    return row


async def _exported_lines(queries: Queries, row: SessionRow) -> AsyncIterator[bytes]:
    position = 0
    while rows := await queries.read_log(row.n, position, EXPORT_PAGE_BYTES):
        for part in rows:
            for line in part.body.split(b"\n"):
                yield line
            position = part.last_seq


class MarkdownPage:
    """Writes a log to stdout as Markdown: prompts, messages, tools, and the ends of turns."""

    def __init__(self) -> None:
        self._text = ""

    def write(self, text: str) -> None:
        """Write a paragraph. Characters that control a terminal are escaped."""
        sys.stdout.buffer.write(visible(text).encode() + b"\n\n")

    def flush(self) -> None:
        """Write the message that was collected so far."""
        if self._text.strip():
            self.write(self._text.strip())
        self._text = ""

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write a log entry, or collect the message that it continues."""
        kind = entry.get("type")
        if kind == "event":
            if "subagent" in entry:  # the conversation has its result
                return
            self._update(_as_object(_as_object(entry["event"].get("params")).get("update")))
            return
        self.flush()
        if kind == "turn_start":
            self.write(f"## Turn {entry['turn_index']}")
            self.write("\n".join(f"> {line}" for line in _prompt_text(entry).splitlines()))
        elif kind == "turn_steer":
            self.write("\n".join(f"> {line}" for line in _prompt_text(entry).splitlines()))
        elif kind == "permission_resolved":
            outcome = entry["outcome"]
            chosen = outcome.get("optionId", outcome.get("outcome"))
            self.write(f"*Permission: {chosen}, by {entry['by']}.*")
        elif kind == "turn_end":
            error = entry["error"]
            result = entry["stop_reason"] if error is None else error["message"]
            self.write(f"*{result}, {entry['duration_ms']} ms.*")
        elif kind == "session_closed":
            self.write(f"*Closed: {entry['reason']}.*")

    def _update(self, update: Mapping[str, Any]) -> None:
        kind = update.get("sessionUpdate")
        if kind == "agent_message_chunk":
            self._text += _block_text(_as_object(update.get("content")))
        elif kind == "tool_call":
            self.flush()
            self.write(f"*Tool: {update.get('title') or update.get('toolCallId')}.*")


def _as_object(value: Any) -> Mapping[str, Any]:
    """*value* if it is an object, otherwise an empty one; it comes from an agent."""
    return value if isinstance(value, dict) else {}


def _block_text(block: Mapping[str, Any]) -> str:
    text = block.get("text")
    return text if isinstance(text, str) else f"[{block.get('type')}]"


def _prompt_text(entry: Mapping[str, Any]) -> str:
    return "\n".join(_block_text(block) for block in entry["prompt"])
