"""The storage's statements in the form in which PostgreSQL takes them, as few as possible.

Parameters ``?`` and ``?1`` become ``$1``. A group of statements becomes one statement with common
table expressions as far as its parts change different tables, because each statement costs a round
trip.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from .base import Statement

_QUESTION_MARK = re.compile(r"'[^']*'|\?(\d*)")
_CHANGED = re.compile(r"\s*(?:INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)", re.IGNORECASE)
_NAMED = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE)\s+(\w+)", re.IGNORECASE)
MAX_MERGED = 12
"""Statements that are merged into one. More would take the engine long to plan."""
LOG_INSERT = "INSERT INTO log (session, first_seq, last_seq, body) VALUES "
_LOG_COLUMNS = (
    "INSERT INTO log (session, first_seq, last_seq, body) SELECT * FROM"
    " unnest(?1::bigint[], ?2::bigint[], ?3::bigint[], ?4::bytea[])"
)
_NUL_ESCAPE = "\U0010ffff"
"""PostgreSQL's texts have no NUL. It is written as this character, which means nothing, and 0."""


class EngineStatement(msgspec.Struct, frozen=True):
    """One statement in PostgreSQL's form.

    Attributes:
        rows: its parameters; the statement is executed once for each.
    """

    sql: str
    rows: list[list[Any]]


@functools.lru_cache(4096)
def numbered(sql: str, offset: int = 0) -> tuple[str, tuple[int, ...]]:
    """The statement with numbered parameters.

    Args:
        offset: the number of the parameters before its own.

    Returns:
        The statement, and the position of each parameter in the sequence that the caller gives.
    """
    count = 0

    def number(match: re.Match[str]) -> str:
        nonlocal count
        if match[1] is None:  # a literal
            return match[0]
        if match[1]:
            count = max(count, int(match[1]))
            return f"${offset + int(match[1])}"
        count += 1
        return f"${offset + count}"

    translated = _QUESTION_MARK.sub(number, sql)
    return translated, tuple(range(count))


def to_engine(parameters: Iterable[Any]) -> list[Any]:
    """The parameters, with texts that PostgreSQL can store."""
    return [
        value.replace(_NUL_ESCAPE, f"{_NUL_ESCAPE}1").replace("\0", f"{_NUL_ESCAPE}0")
        if type(value) is str and ("\0" in value or _NUL_ESCAPE in value)
        else value
        for value in parameters
    ]


def from_engine(row: Iterable[Any]) -> tuple[Any, ...]:
    """The row, with the original texts."""
    return tuple(
        [
            value.replace(f"{_NUL_ESCAPE}0", "\0").replace(f"{_NUL_ESCAPE}1", _NUL_ESCAPE)
            if type(value) is str and _NUL_ESCAPE in value
            else value
            for value in row
        ]
    )


@functools.lru_cache(4096)
def _tables(sql: str) -> tuple[str, frozenset[str]]:
    """The table that a statement changes, and all tables that it names."""
    match = _CHANGED.match(sql)
    changed = match[1] if match is not None else ""
    return changed, frozenset({*_NAMED.findall(sql), changed})


def engine_statements(
    transaction: Sequence[Statement], fence: Statement | None
) -> list[EngineStatement]:
    """The statements of a transaction, merged.

    Args:
        fence: a statement in the storage's form that is executed with the first ones, and whose
            common table expressions come first.
    """
    merged: list[EngineStatement] = []
    wave: list[Statement] = []
    changed: set[str] = set()
    named: set[str] = set()
    log_rows = _log_rows(transaction)
    if log_rows is not None:
        wave.append((_LOG_COLUMNS, log_rows))
        changed.add("log")

    def finish() -> None:
        nonlocal fence
        if wave or fence is not None:
            merged.append(_merged(wave, fence))
        fence = None
        wave.clear()
        changed.clear()
        named.clear()

    others = (statement for statement in transaction if not statement[0].startswith(LOG_INSERT))
    for sql, group in itertools.groupby(others, key=lambda statement: statement[0]):
        same = [parameters for _, parameters in group]
        if len(same) > 1:
            finish()
            merged.append(
                EngineStatement(numbered(sql)[0], [to_engine(parameters) for parameters in same])
            )
            continue
        target, tables = _tables(sql)
        if tables & changed or target in named or len(wave) >= MAX_MERGED:
            finish()
        wave.append((sql, same[0]))
        changed.add(target)
        named |= tables
    finish()
    return merged


def _log_rows(transaction: Sequence[Statement]) -> list[list[Any]] | None:
    """The columns of all rows that the transaction inserts into the log."""
    columns: list[list[Any]] = [[], [], [], []]
    for sql, parameters in transaction:
        if sql.startswith(LOG_INSERT):
            for position, column in enumerate(columns):
                column += parameters[position::4]
    return columns if columns[0] else None


def _merged(wave: Sequence[Statement], fence: Statement | None) -> EngineStatement:
    last = fence if fence is not None else wave[-1]
    first = list(wave) if fence is not None else list(wave[:-1])
    parameters: list[Any] = []
    for _, values in (*first, last):
        parameters += to_engine(values)
    return EngineStatement(_merged_sql(tuple(sql for sql, _ in first), last[0]), [parameters])


@functools.lru_cache(1024)
def _merged_sql(first: tuple[str, ...], last: str) -> str:
    offset = 0
    parts = []
    for number, sql in enumerate(first):
        text, parameters = numbered(sql, offset)
        offset += len(parameters)
        parts.append(f"s{number} AS ({text})")
    text, _ = numbered(last, offset)
    if not parts:
        return text
    with_, has_with, rest = text.partition("WITH ")
    if has_with and not with_:
        return f"WITH {', '.join(parts)}, {rest}"
    return f"WITH {', '.join(parts)} {text}"
