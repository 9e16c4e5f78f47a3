"""Log lines: one an event, as text for people or as JSON for machines."""

from __future__ import annotations

import logging
import re
import sys
import textwrap
from datetime import UTC, datetime

from .codec import dumps
from .config import Settings
from .escapes import json_text, one_line, visible

FIELDS = ("request_id", "app", "session", "turn", "duration_ms")

# A token or a ticket that somebody put where it does not belong: into a path, say.
_SECRET = re.compile(r"\b(cft?_)[A-Za-z0-9_-]{20,}")
_PLAIN_VALUE = re.compile(r"[^\s\"=]+")


class Formatter(logging.Formatter):
    """Lines without the secrets that a client put into its request."""

    def format(self, record: logging.LogRecord) -> str:
        return _SECRET.sub(r"\1…", self.line(record))

    def line(self, record: logging.LogRecord) -> str:
        raise NotImplementedError


class TextFormatter(Formatter):
    def line(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        line = f"{when} {record.levelname.lower():7} {record.getMessage()}{_suffix(record)}"
        line = one_line(line)
        if record.exc_info:
            # Indented: no line of an exception's message looks like the log's own.
            line += textwrap.indent(f"\n{visible(self.formatException(record.exc_info))}", "    ")
        return line


class JsonFormatter(Formatter):
    def line(self, record: logging.LogRecord) -> str:
        entry = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json_text(dumps(entry).decode())


def _fields(record: logging.LogRecord) -> dict[str, object]:
    values = {name: getattr(record, name, None) for name in FIELDS}
    return {name: value for name, value in values.items() if value is not None}


def _suffix(record: logging.LogRecord) -> str:
    """The fields; a value that could be taken for several is quoted."""
    return "".join(f" {name}={_quoted(str(value))}" for name, value in _fields(record).items())


def _quoted(value: str) -> str:
    return value if _PLAIN_VALUE.fullmatch(value) else dumps(value).decode()


def set_up(settings: Settings) -> None:
    """Send the log to stderr, as the settings have it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # aiohttp's and asyncio's own are for debugging; ours say what matters.
    for name in ("aiohttp.access", "asyncio", "aiosqlite"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns of subprotocols that it does not know, word by word: a token may be one.
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)
