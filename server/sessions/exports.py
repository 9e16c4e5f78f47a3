"""Exports of a session: its log as NDJSON, or the conversation as Markdown or HTML."""

from __future__ import annotations

import html
from collections.abc import AsyncIterator
from typing import Literal

from ..codec import dumps, parse_message
from . import entries
from .history import chat_messages_in
from .session import Session

Format = Literal["ndjson", "markdown", "html"]
SUFFIXES = {"ndjson": "ndjson", "markdown": "md", "html": "html"}
MEDIA_TYPES = {
    "ndjson": "application/x-ndjson",
    "markdown": "text/markdown; charset=utf-8",
    "html": "text/html; charset=utf-8",
}
CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The policy of the HTML, in the file itself: no content of an agent is executed."""
SESSION_FIELDS = (
    *("session_id", "agent", "model", "system", "permission", "created_at", "last_turn_at"),
    *("turn_count", "closed_at", "head", "forked_from"),
)
_HTML_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{csp}">
<title>{title}</title>
<style>body{{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}}
pre{{white-space:pre-wrap;overflow-wrap:anywhere;font:inherit;margin:0}}
section{{margin:1em 0;padding:.5em 1em;border-left:4px solid #999}}
.user{{border-color:#06c}}.tool{{border-color:#c80;font-family:monospace}}</style>
</head><body><h1>{title}</h1>
"""


async def export(session: Session, kind: Format) -> AsyncIterator[bytes]:
    """The pieces of an export, up to the head at its beginning."""
    title = session.details.title or session.id
    if kind == "ndjson":
        view = session.view()
        about = {name: view[name] for name in SESSION_FIELDS}
        header = {"session": about, "meta": view["meta"], "title": view["title"]}
        yield dumps(header) + b"\n"
        async for line in _entry_lines(session):
            yield line + b"\n"
        return
    if kind == "markdown":
        yield _encoded(f"# {' '.join(title.split())}\n")
        async for role, text in _exported_messages(session):
            section = f"\n*{text}*\n" if role == "Tool" else f"\n## {role}\n\n{text}\n"
            yield _encoded(section)
        return
    yield _encoded(_HTML_HEAD.format(csp=html.escape(CSP), title=html.escape(title)))
    async for role, text in _exported_messages(session):
        body = html.escape(text)
        name = "" if role == "Tool" else f"<h2>{role}</h2>"
        yield _encoded(f'<section class="{role.lower()}">{name}<pre>{body}</pre></section>\n')
    yield b"</body></html>\n"


def _encoded(text: str) -> bytes:
    return text.encode(errors="replace")  # agents write unpaired surrogates


async def _entry_lines(session: Session) -> AsyncIterator[bytes]:
    head, position = session.log.head, 0
    while position < head:
        for batch in await session.log.read(position):
            for seq, line in enumerate(batch.lines(), batch.first):
                if seq <= head:
                    yield line
            position = batch.last


async def _exported_messages(session: Session) -> AsyncIterator[tuple[str, str]]:
    """The messages, one after the other, with the titles of the agent's own tool calls."""
    role, parts = "", [""]
    async for line in _entry_lines(session):
        for who, text in [*chat_messages_in(line), *_tool_calls(line)]:
            if who == role == "Assistant":
                parts.append(text)
                continue
            if message := "".join(parts).strip():
                yield role, message
            role, parts = who, [text]
    if message := "".join(parts).strip():
        yield role, message


def _tool_calls(line: bytes) -> list[tuple[str, str]]:
    event = entries.event_of(line)
    if event is None or b'"tool_call"' not in event or entries.is_of_subagent(line):
        return []
    params = (parse_message(event) or {}).get("params")
    update = params.get("update") if isinstance(params, dict) else None
    if not isinstance(update, dict) or update.get("sessionUpdate") != "tool_call":
        return []
    title = update.get("title")
    return [("Tool", " ".join(title.split()))] if isinstance(title, str) else []
