"""Imports of exported sessions: every line is checked, and encoded as this server would."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import msgspec

from ..codec import MAX_NESTING, dumps, has_too_many_values, loads_bounded, parse_message
from ..errors import Error, ErrorCode, bad_request
from ..storage import statements
from ..storage.schema import LogRow, SessionRow, Statement, TurnRow
from . import entries

ROW_BYTES = 256 << 10
ROW_ENTRIES = 1024
MAX_TIME_MS = 1 << 53
_KIND = re.compile(r"[a-z][a-z_]{0,63}\Z")
_OWN_EVENT = re.compile(
    rb'\{"type":"event","seq":\d+,"ts":\d+,"turn_index":\d+,(?:"subagent":\{[^{}]*\},)?"event":'
)


class ImportedLog(msgspec.Struct):
    """A checked log, with which a new session begins.

    Attributes:
        header: the first line of the export.
        lines: the entries, from position 1.
        turns: the turns by their index.
        last_ts: unix milliseconds of the last entry.
    """

    header: dict[str, Any]
    lines: list[bytes] = msgspec.field(default_factory=list)
    turns: dict[int, TurnRow] = msgspec.field(default_factory=dict)
    last_ts: int = 0

    copy_files = None

    @property
    def position(self) -> int:
        return len(self.lines)

    @property
    def last_turn_index(self) -> int:
        return max(self.turns, default=0)

    def apply_to(self, row: SessionRow) -> None:
        """Set the columns of the session's row."""
        row.turn_count = len(self.turns)
        row.last_turn_at = self.last_ts / 1000 if self.turns else None
        row.closed_at, row.close_reason = row.created_at, "client"
        row.needs_history = int(bool(self.turns))

    def statements(self, number: int) -> list[Statement]:
        """The statements that insert the log for the session of that number."""
        rows: list[LogRow] = []
        start = size = 0
        for index, line in enumerate(self.lines):
            size += len(line)
            is_last = index == len(self.lines) - 1
            if size >= ROW_BYTES or index - start + 1 == ROW_ENTRIES or is_last:
                body = b"\n".join(self.lines[start : index + 1])
                rows.append(LogRow(number, start + 1, index + 1, body))
                start, size = index + 1, 0
        turns = [dataclasses.replace(turn, session=number) for turn in self.turns.values()]
        return [*statements.insert_log(rows), *map(statements.insert_turn, turns)]


def parse_export(data: bytes) -> ImportedLog:
    """Check an NDJSON export.

    Raises:
        Error: ``bad_request`` or ``payload_too_large``; the message names the line.
    """
    first, *rest = [line for line in data.split(b"\n") if line.strip()] or [b""]
    header = _parsed_object(first, 1)
    if "seq" in header:
        raise bad_request("line 1: the header of an export has no seq")
    if "session" not in header:
        raise bad_request("line 1: not the header of an export: session is missing")
    log = ImportedLog(header)
    for number, line in enumerate(rest, 2):
        _add_line(log, line, number)
    _close_log(log)
    return log


def _parsed_object(line: bytes, number: int) -> dict[str, Any]:
    if has_too_many_values(line):
        raise Error(ErrorCode.PAYLOAD_TOO_LARGE, f"line {number}: too many values")
    try:
        value = loads_bounded(line)
    except ValueError:
        # Agents cut texts inside an emoji, and send numbers beyond a double. Both are JSON.
        is_shallow = line.count(b"[") + line.count(b"{") <= MAX_NESTING
        value = parse_message(line) if is_shallow else None
    if not isinstance(value, dict):
        raise bad_request(f"line {number}: not a JSON object, or nested too deeply")
    return value


def _add_line(log: ImportedLog, line: bytes, number: int) -> None:
    value = _parsed_object(line, number)
    kind, seq = value.pop("type", None), value.pop("seq", None)
    ts, turn_index = value.pop("ts", None), value.pop("turn_index", None)
    if not isinstance(kind, str) or not _KIND.match(kind):
        raise bad_request(f"line {number}: type: not the type of an entry")
    if seq != log.position + 1 or isinstance(seq, bool):
        raise bad_request(f"line {number}: seq: must be {log.position + 1}")
    if type(ts) is not int or not 0 <= ts < MAX_TIME_MS:
        raise bad_request(f"line {number}: ts: must be unix milliseconds")
    if type(turn_index) is not int or not 0 <= turn_index < 1 << 31:
        raise bad_request(f"line {number}: turn_index: must be a number from 0")
    if kind == "event":
        fields = _checked_event(line, value, number)
    else:
        if kind == "turn_start":
            _begin_turn(log, seq, turn_index, value, number)
        elif kind == "turn_end":
            _finish_turn(log, seq, turn_index, value, number)
        fields = dumps(value)[1:-1] or b'"imported":true'
    log.lines.append(entries.entry(kind, seq, ts, turn_index, fields))
    log.last_ts = ts


def _checked_event(line: bytes, value: dict[str, Any], number: int) -> bytes:
    """The fields of an event, byte for byte if it is encoded as this server does."""
    event, subagent = value.pop("event", None), value.pop("subagent", None)
    if not isinstance(event, dict) or value:
        raise bad_request(f"line {number}: event: must be an object, and the only other field")
    if subagent is not None and not _is_subagent(subagent):
        raise bad_request(f"line {number}: subagent: must be an object of ids")
    if (head := _OWN_EVENT.match(line)) is not None:
        raw = line.rstrip(b"\r")[head.end() : -1]
        if parse_message(raw) == event:
            return entries.event_fields(raw, subagent)
    return entries.event_fields(dumps(event), subagent)


def _is_subagent(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name in ("session_id", "tool_call_id") and isinstance(part, str)
        for name, part in value.items()
    )


def _begin_turn(
    log: ImportedLog, seq: int, turn_index: int, value: dict[str, Any], number: int
) -> None:
    prompt = value.get("prompt")
    if not isinstance(prompt, list) or not all(isinstance(block, dict) for block in prompt):
        raise bad_request(f"line {number}: prompt: must be an array of content blocks")
    if turn_index in log.turns or not turn_index:
        raise bad_request(f"line {number}: turn_index: the turn has begun already")
    log.turns[turn_index] = TurnRow(0, turn_index, None, b"", None, first_seq=seq)


def _finish_turn(
    log: ImportedLog, seq: int, turn_index: int, value: dict[str, Any], number: int
) -> None:
    turn = log.turns.get(turn_index)
    if turn is None or turn.last_seq is not None:
        raise bad_request(f"line {number}: turn_index: no such turn is running")
    reason, error, duration = (value.get(n) for n in ("stop_reason", "error", "duration_ms"))
    if not isinstance(reason, str) or not (error is None or isinstance(error, dict)):
        raise bad_request(f"line {number}: stop_reason, error: invalid")
    turn.last_seq, turn.stop_reason = seq, reason
    turn.error = None if error is None else dumps(error)
    turn.duration_ms = duration if type(duration) is int and 0 <= duration < MAX_TIME_MS else 0


def _close_log(log: ImportedLog) -> None:
    """End the turns that were running when the session was exported, and close the session."""
    message = "the session was exported during the turn"
    failure = entries.error_fields(Error(ErrorCode.SERVER_RESTARTED, message))
    ts = log.last_ts or time.time_ns() // 1_000_000
    for turn in log.turns.values():
        if turn.last_seq is None:
            turn.error, turn.stop_reason, turn.duration_ms = dumps(failure), "error", 0
            turn.last_seq = log.position + 1
            fields = entries.turn_end_fields("error", 0, turn.error)
            log.lines.append(entries.entry("turn_end", turn.last_seq, ts, turn.turn_index, fields))
    if not log.lines or not log.lines[-1].startswith(b'{"type":"session_closed"'):
        fields = entries.encode_fields(reason="client")
        line = entries.entry("session_closed", log.position + 1, ts, log.last_turn_index, fields)
        log.lines.append(line)


def meta_of(header: dict[str, Any]) -> dict[str, Any]:
    """The ``meta`` of an imported session, with the title."""
    meta, title = header.get("meta"), header.get("title")
    fields = dict(meta) if isinstance(meta, dict) else {}
    if isinstance(title, str):
        fields.setdefault("title", title)
    return {key: value for key, value in fields.items() if value is not None}


def header_text(header: dict[str, Any], name: str) -> str | None:
    """A text in the header's ``session``."""
    about = header.get("session")
    value = about.get(name) if isinstance(about, dict) else None
    return value if isinstance(value, str) else None
