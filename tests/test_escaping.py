"""Text of agents and clients, escaped for where it is shown."""

from __future__ import annotations

import json
import logging

import pytest

from server.escaping import json_text, one_line, visible
from server.logs import JsonFormatter, TextFormatter

UNSAFE = "\x00\x07\x1b\x7f\x85\x9b\u061c\u200b\u200e\u2028\u2029\u202e\u2066\ufeff\U000e0041"
FINE = "Übung 报告 العربية हिन्दी 👨\u200d👩 می\u200cخواهم ~\\"


@pytest.mark.parametrize("character", UNSAFE + "\r")
def test_what_a_terminal_obeys_is_shown_as_its_escape(character: str) -> None:
    for escape in (one_line, visible):
        assert escape(f"a{character}b") == f"a{ascii(character)[1:-1]}b"


def test_text_of_every_script_stays() -> None:
    assert one_line(FINE) == visible(FINE) == json_text(FINE) == FINE


def test_lines_and_tabs_stay_where_text_has_several() -> None:
    assert visible("a\n\tb") == "a\n\tb"
    assert one_line("a\n\tb") == "a\\n\\tb"


def test_json_means_the_same() -> None:
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
def test_no_log_line_passes_on_what_a_terminal_obeys(formatter: logging.Formatter) -> None:
    line = formatter.format(record(FORGED, ValueError(FORGED), session=FORGED))
    assert not set(UNSAFE) & set(line)
    # A line break is shown as an escape, or what follows it is indented.
    assert not [one for one in line.split("\n")[1:] if one and not one.startswith("    ")]


def test_a_field_with_blanks_forges_no_other_field() -> None:
    line = TextFormatter().format(record("said", session="a app=admin"))
    assert line.endswith(' session="a app=admin"')
