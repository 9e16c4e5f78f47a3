"""Validation errors as sentences for people; msgspec's messages are for programmers."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Final

import msgspec

from .errors import payload_too_large

ClientId = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
"""The id that a client gives to a prompt."""
MAX_NAME = 1024
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
"""The name of an agent, a model, a mode, an option or an option's value."""
OptionValue = Name | bool
"""The value of an agent's option."""
ConfigOptions = Annotated[dict[Name, OptionValue], msgspec.Meta(max_length=64)]
"""Values of the agent's own options, by the options' ids."""
MAX_SHOWN = 100
"""Characters of a client's value that its own error repeats."""

_KINDS: Final[Mapping[str, str]] = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
}
_UNITS: Final[Mapping[str, str]] = {"str": "characters", "array": "elements", "object": "fields"}
_BOUNDS: Final[Mapping[str, str]] = {
    ">=": "at least",
    "<=": "at most",
    ">": "more than",
    "<": "less than",
}
_PLACE = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`)?\Z", re.DOTALL)
_FORMS: dict[str, str] = {}


def form(pattern: str, words: str) -> str:
    """Register the description of a pattern, such as ``an absolute path``, for error messages."""
    _FORMS[pattern] = words
    return pattern


MAX_ENVIRON_BYTES = 32 << 10
"""The limit of all variables together: the kernel limits the environment of a program, too."""
_VARIABLE = form(
    r"^(?!CLAWDFORGE_|LD_|ACPX_|AGENT_SESSION$)[A-Za-z_][A-Za-z0-9_]*$(?!\n)",
    "the name of a variable, which is not one of CLAWDFORGE_*, LD_*, ACPX_* and AGENT_SESSION",
)
_VALUE = form(r"^[^\x00]*$", "text without the character NUL")
Environ = Annotated[
    dict[
        Annotated[str, msgspec.Meta(max_length=256, pattern=_VARIABLE)],
        Annotated[str, msgspec.Meta(pattern=_VALUE)],
    ],
    msgspec.Meta(
        max_length=256,
        description="Variables for the environment of agents. Their values are never shown.",
    ),
]


def check_environ(environ: Mapping[str, str]) -> None:
    """Check the size of an :data:`Environ`.

    Raises:
        Error: ``payload_too_large``.
    """
    size = sum(len(name) + len(value.encode()) for name, value in environ.items())
    if size > MAX_ENVIRON_BYTES:
        raise payload_too_large(f"env: at most {MAX_ENVIRON_BYTES} bytes")


def in_words(error: Exception) -> str:
    """Describe a validation error of msgspec in one sentence that names the field.

    The messages of other errors are unchanged, because they are sentences already.
    """
    match = _PLACE.match(str(error))
    assert match is not None  # it matches everything
    descriptions = (describe(match["what"]) for describe in _DESCRIBERS)
    what = next((text for text in descriptions if text is not None), None)
    place = (match["path"] or "").removeprefix(".").replace("[...]", "[…]")
    if what is None:
        what = match["what"]
    if match["key"]:
        what = f"a key {what}"
    missing = re.match(r"(\w+): the field", what)
    if missing and place:
        return f"{place}.{what}"
    return f"{place}: {what}" if place else what


def _describe_missing(what: str) -> str | None:
    match = re.fullmatch(r"Object missing required field `(.*)`", what, re.DOTALL)
    return f"{match[1]}: the field is missing" if match else None


def _describe_unknown(what: str) -> str | None:
    match = re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL)
    return f"{match[1][:MAX_SHOWN]}: the field is not known" if match else None


def _describe_value(what: str) -> str | None:
    match = re.fullmatch(r"Invalid (?:enum )?value (.*)", what, re.DOTALL)
    return f"{match[1][:MAX_SHOWN]} is not one of the values that are known" if match else None


def _describe_form(what: str) -> str | None:
    match = re.fullmatch(r"Expected `str` matching regex (.*)", what, re.DOTALL)
    if match is None:
        return None
    try:
        words = _FORMS.get(ast.literal_eval(match[1]))
    except (SyntaxError, ValueError):
        words = None
    return f"must be {words or 'text of another form'}"


def _describe_bound(what: str) -> str | None:
    match = re.fullmatch(r"Expected `(\w+)`( of length)? ([<>]=?) (-?[\d.e+]+)", what)
    if match is None:
        return None
    kind, is_length, bound, number = match.groups()
    shown = f"{float(number):.15g}" if "." in number else number
    if not is_length:
        return f"must be {_BOUNDS[bound]} {shown}"
    if (bound, number) == (">=", "1"):
        return "must not be empty"
    return f"must have {_BOUNDS[bound]} {shown} {_UNITS.get(kind, 'elements')}"


def _describe_kind(what: str) -> str | None:
    match = re.fullmatch(r"Expected `([^`]*)`(?:, got `([^`]*)`)?", what)
    if match is None:
        return None
    wanted = [_KINDS.get(kind, kind) for kind in match[1].split(" | ")]
    if match[2] is None:
        return f"must be {' or '.join(wanted)}"
    return f"must be {' or '.join(wanted)}, not {_KINDS.get(match[2], match[2])}"


_DESCRIBERS: Final[tuple[Callable[[str], str | None], ...]] = (
    _describe_missing,
    _describe_unknown,
    _describe_value,
    _describe_form,
    _describe_bound,
    _describe_kind,
)
