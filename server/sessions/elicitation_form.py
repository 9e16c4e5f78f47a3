"""Checks the content of an answer against the form that an agent requested.

A form is ACP's restricted JSON Schema: an object whose properties are texts, numbers, booleans and
selections. The agent wrote it, so it is untrusted: a keyword with an invalid value is ignored, and
patterns are matched by RE2, whose time is proportional to the length of the text.
"""

from __future__ import annotations

import datetime
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import re2

from ..errors import Error, ErrorCode
from ..validation import MAX_SHOWN

MAX_PATTERN_LENGTH = 1000
"""Characters of a pattern. A longer one is not checked, like one that RE2 does not support."""
_PATTERN_MEMORY = 1 << 20
_ESCAPE = re.compile(r"\\(?:u(?P<code>[0-9a-fA-F]{4})|.)", re.DOTALL)
_EMAIL = re.compile(r"[^@\s]{1,256}@[^@\s.]+(?:\.[^@\s.]+)*")
_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*):[^\s<>\"{}|\\^`]+")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIME = re.compile(
    r"(?P<start>[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]+)?"
    r"(?P<zone>[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def is_form(schema: Any) -> bool:
    """Whether *schema* describes a form: an object with properties."""
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return False
    properties = schema.get("properties", {})
    return isinstance(properties, dict) and all(
        isinstance(field, dict) for field in properties.values()
    )


def check_form_content(schema: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Check the content of an answer.

    Args:
        schema: a form; see :func:`is_form`.

    Raises:
        Error: ``bad_request``; its message and its ``field`` name the field.
    """
    required = schema.get("required")
    for name in required if isinstance(required, list) else ():
        if isinstance(name, str) and name not in content:
            raise _mismatch(name, "the field is missing")
    properties = schema.get("properties", {})
    for name, value in content.items():
        if name in properties:
            problem = _problem(properties[name], value)
        elif schema.get("additionalProperties") is False:
            problem = "the form has no such field"
        else:
            problem = _problem_of_other(value)
        if problem is not None:
            raise _mismatch(name, problem)


def _mismatch(name: str, problem: str) -> Error:
    message = f"content: {name[:MAX_SHOWN]!r}: {problem}"
    return Error(ErrorCode.BAD_REQUEST, message, fields={"field": name})


def _problem(field: Mapping[str, Any], value: Any) -> str | None:
    """Describe what is wrong with the value of a field; None if nothing is."""
    kind = field.get("type")
    check = _CHECKS.get(kind) if isinstance(kind, str) else None
    # The agent itself checks a type that a later ACP has.
    return _problem_of_other(value) if check is None else check(field, value)


def _problem_of_text(field: Mapping[str, Any], value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be a text"
    low, high = _limit_in(field, "minLength"), _limit_in(field, "maxLength")
    if low is not None and len(value) < low:
        return f"must have at least {low:g} characters"
    if high is not None and len(value) > high:
        return f"must have at most {high:g} characters"
    if (choices := _offered(field)) is not None:
        return _problem_of_choices(choices, [value])
    if (pattern := field.get("pattern")) is not None and not _matches_pattern(pattern, value):
        return "must match the pattern of the form"
    format_ = field.get("format")
    is_valid = _FORMATS.get(format_) if isinstance(format_, str) else None
    if is_valid is not None and not is_valid(value):
        return f"must have the format {format_}"
    return None


def _problem_of_number(field: Mapping[str, Any], value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "must be a number"
    if field["type"] == "integer" and value % 1:
        return "must be a whole number"
    low, high = _limit_in(field, "minimum"), _limit_in(field, "maximum")
    if low is not None and value < low:
        return f"must be at least {low:.15g}"
    if high is not None and value > high:
        return f"must be at most {high:.15g}"
    return None


def _problem_of_boolean(_: Mapping[str, Any], value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _problem_of_selection(field: Mapping[str, Any], value: Any) -> str | None:
    if not _is_text_list(value):
        return "must be a list of texts"
    low, high = _limit_in(field, "minItems"), _limit_in(field, "maxItems")
    if low is not None and len(value) < low:
        return f"must have at least {low:g} elements"
    if high is not None and len(value) > high:
        return f"must have at most {high:g} elements"
    if field.get("uniqueItems") is True and len(set(value)) < len(value):
        return "must not have an element twice"
    items = field.get("items")
    choices = _offered(items) if isinstance(items, dict) else None
    return None if choices is None else _problem_of_choices(choices, value)


def _problem_of_other(value: Any) -> str | None:
    if isinstance(value, (str, int, float)) or _is_text_list(value):
        return None
    return "must be a text, a number, true or false, or a list of texts"


def _is_text_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(element, str) for element in value)


def _offered(field: Mapping[str, Any]) -> set[str] | None:
    """The values that a selection offers; None if the field is not a selection."""
    for name in ("oneOf", "anyOf"):
        if isinstance(options := field.get(name), list):
            values = (option.get("const") for option in options if isinstance(option, dict))
            return {value for value in values if isinstance(value, str)}
    if isinstance(options := field.get("enum"), list):
        return {value for value in options if isinstance(value, str)}
    return None


def _problem_of_choices(choices: set[str], values: Sequence[str]) -> str | None:
    wrong = next((value for value in values if value not in choices), None)
    return None if wrong is None else f"{wrong[:MAX_SHOWN]!r} is not one of the choices"


def _limit_in(field: Mapping[str, Any], name: str) -> float | None:
    value = field.get(name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number else None


# Patterns and formats.


def _matches_pattern(pattern: Any, value: str) -> bool:
    """Whether the pattern occurs in *value*, or cannot be checked. The agent may check it again."""
    if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_LENGTH:
        return True
    options = re2.Options()
    options.max_mem = _PATTERN_MEMORY
    options.log_errors = False
    try:
        compiled = re2.compile(_ESCAPE.sub(_in_re2, pattern), options)
        return compiled.search(value) is not None
    except (re2.error, UnicodeError):  # not in RE2's syntax, or an unpaired surrogate
        return True


def _in_re2(escape: re.Match[str]) -> str:
    code = escape["code"]
    return escape[0] if code is None else rf"\x{{{code}}}"


def _is_uri(value: str) -> bool:
    match = _URI.fullmatch(value)
    if match is None:
        return False
    try:
        parts = urllib.parse.urlsplit(value)
        _ = parts.port
    except ValueError:
        return False
    return match["scheme"].lower() not in ("http", "https") or bool(parts.hostname)


def _is_date(value: str) -> bool:
    return _DATE.fullmatch(value) is not None and _is_iso(datetime.date.fromisoformat, value)


def _is_date_time(value: str) -> bool:
    match = _TIME.fullmatch(value)
    if match is None:
        return False
    zone = match["zone"].upper().replace("Z", "+00:00")
    return _is_iso(datetime.datetime.fromisoformat, match["start"].upper() + zone)


def _is_iso(parse: Callable[[str], object], value: str) -> bool:
    try:
        parse(value)
    except ValueError:
        return False
    return True


_FORMATS: Mapping[str, Callable[[str], bool]] = {
    "email": lambda value: _EMAIL.fullmatch(value) is not None,
    "uri": _is_uri,
    "date": _is_date,
    "date-time": _is_date_time,
}
_CHECKS: Mapping[str, Callable[[Mapping[str, Any], Any], str | None]] = {
    "string": _problem_of_text,
    "integer": _problem_of_number,
    "number": _problem_of_number,
    "boolean": _problem_of_boolean,
    "array": _problem_of_selection,
}
