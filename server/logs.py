"""Log lines, one per event, as text for people or as JSON for machines."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import textwrap
import threading
import warnings
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from .codec import dumps
from .config import Settings
from .escaping import json_text, one_line, visible

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

logger = logging.getLogger(__name__)

FIELDS = ("request_id", "app", "session", "turn", "duration_ms")

# A token or a ticket in the wrong place, for example in a path.
_TOKEN_PATTERN = re.compile(r"(?<![A-Za-z0-9])(cft?_|ff_)[A-Za-z0-9_-]{20,}")
_PLAIN_VALUE = re.compile(r"[^\s\"=]+")


class Formatter(logging.Formatter):
    """Formats a record as one line, and redacts tokens in it.

    Args:
        secret: the admin token, which is redacted, too.
    """

    def __init__(self, secret: str | None = None) -> None:
        super().__init__()
        self._secret = secret

    def format(self, record: logging.LogRecord) -> str:
        line = _TOKEN_PATTERN.sub(r"\1…", self.line(record))
        return line.replace(self._secret, "…") if self._secret else line

    def line(self, record: logging.LogRecord) -> str:
        raise NotImplementedError


class TextFormatter(Formatter):
    def line(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        line = f"{when} {record.levelname.lower():7} {record.getMessage()}{_suffix(record)}"
        line = one_line(line)
        if record.exc_info:
            # Indented, so that no line of an exception's message looks like a log line.
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
    """The fields. A value with spaces, quotes or equals signs is quoted."""
    return "".join(f" {name}={_quoted(str(value))}" for name, value in _fields(record).items())


def _quoted(value: str) -> str:
    return value if _PLAIN_VALUE.fullmatch(value) else dumps(value).decode()


class Handler(logging.StreamHandler[TextIO]):
    """Writes log lines. A record that cannot be formatted is reported by a line of its own."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            return  # stderr is closed
        about = ("a log record of %s cannot be written: %s", record.name, type(error).__name__)
        made = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, about[0], about[1:], None)
        with contextlib.suppress(OSError):
            self.stream.write(self.format(made) + self.terminator)


def set_up(settings: Settings) -> None:
    """Send the log, warnings and uncaught exceptions to stderr in the format of the settings."""
    handler = Handler(sys.stderr)
    formatter = JsonFormatter if settings.log_format == "json" else TextFormatter
    handler.setFormatter(formatter(settings.admin_token))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # The lower levels of these libraries are for debugging.
    for name in ("aiohttp.access", "asyncio", "aiosqlite"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs unknown subprotocols, and a client may have sent a token as one.
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)
    warnings.showwarning = _log_warning
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_thread
    sys.unraisablehook = _log_unraisable


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log a warning without its line of source, which would be a second line of the log."""
    where = Path(filename).name
    logging.getLogger("py.warnings").warning(
        "%s: %s (%s:%d)", category.__name__, message, where, lineno
    )


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logger.critical("uncaught exception; the program exits", exc_info=(kind, error, trace))


def _log_thread(arguments: threading.ExceptHookArgs) -> None:
    error = arguments.exc_value
    if error is not None:
        name = arguments.thread.name if arguments.thread else "a thread"
        logger.error(
            "%s failed", name, exc_info=(arguments.exc_type, error, arguments.exc_traceback)
        )


def _log_unraisable(arguments: UnraisableHookArgs) -> None:
    error = arguments.exc_value
    if error is not None:
        about = arguments.err_msg or "an exception was ignored"
        trace = (arguments.exc_type, error, arguments.exc_traceback)
        logger.error("%s: %s", about, type(arguments.object).__name__, exc_info=trace)
