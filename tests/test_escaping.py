"""Escaping of text from agents and clients."""

from __future__ import annotations

import json
import logging

import pytest

from server.escaping import json_text, one_line, visible
from server.logs import JsonFormatter, TextFormatter

UNSAFE = "\x00\x07\x1b\x7f\x85\x9b\u061c\u200b\u200e\u2028\u2029\u202e\u2066\ufeff\U000e0041"
FINE = "Übung 报告 العربية हिन्दी 👨\u200d👩 می\u200cخواهم ~\\"


@pytest.mark.parametrize("character", UNSAFE + "\r")
def test_control_characters_are_shown_as_escapes(character: str) -> None:
    for escape in (one_line, visible):
        assert escape(f"a{character}b") == f"a{ascii(character)[1:-1]}b"


def test_text_of_every_script_is_unchanged() -> None:
    assert one_line(FINE) == visible(FINE) == json_text(FINE) == FINE


def test_line_breaks_and_tabs_of_long_text_are_unchanged() -> None:
    assert visible("a\n\tb") == "a\n\tb"
    assert one_line("a\n\tb") == "a\\n\\tb"


def test_escaped_json_is_equal() -> None:
    document = json.dumps({"text": UNSAFE + FINE}, ensure_ascii=False)
    escaped = json_text(document)
    assert json.loads(escaped) == json.loads(document)
    assert not set(UNSAFE) & set(escaped)


def record(message: str, error: Exception | None = None, **extra: str) -> logging.LogRecord:
    info = (type(error), error, None) if error is not None else None
    made = logging.LogRecord("server", logging.INFO, "", 0, message, (), info)
    made.__dict__.update(extra)
    return made


FORGED = "x\n2026-01-01 00:00:00 info    forged \x9b\u202e"


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()], ids=type)
def test_log_lines_contain_no_control_characters(formatter: logging.Formatter) -> None:
    line = formatter.format(record(FORGED, ValueError(FORGED), session=FORGED))
    assert not set(UNSAFE) & set(line)
    # A line break is shown as an escape, or what follows it is indented.
    assert not [one for one in line.split("\n")[1:] if one and not one.startswith("    ")]


def test_field_with_spaces_is_quoted() -> None:
    line = TextFormatter().format(record("said", session="a app=admin"))
    assert line.endswith(' session="a app=admin"')
