"""Parses the headers ``Accept`` and ``Accept-Encoding`` (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

# An element of a list, or a parameter. Commas and semicolons within quotes do not separate.
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_ELEMENT = re.compile(rf"(?:[^,\"]|{_QUOTED})+")
_PARAMETER = re.compile(rf"(?:[^;\"]|{_QUOTED})+")
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z")


def weight_of(lines: Sequence[str], media_type: str) -> tuple[float, bool]:
    """Return the weight that a client gives to a media type.

    Args:
        lines: the values of all ``Accept`` headers; without any, every type is accepted.
        media_type: in lower case.

    Returns:
        The weight from 0 (not accepted) to 1, and whether the client named the type itself rather
        than a wildcard.
    """
    ranges = _qualities(lines) or {"*/*": 1.0}
    kind = media_type.partition("/")[0]
    for name in (media_type, f"{kind}/*", "*/*"):
        if name in ranges:
            return ranges[name], name == media_type
    return 0.0, False


def accepts_coding(lines: Sequence[str], coding: str) -> bool:
    """Return whether the client accepts a content coding, for example ``gzip``."""
    codings = _qualities(lines)
    return codings.get(coding, codings.get("*", 0.0)) > 0


def _qualities(lines: Sequence[str]) -> Mapping[str, float]:
    """Return the weight of each element by its name in lower case; of repeated ones the highest."""
    qualities: dict[str, float] = {}
    for line in lines:
        for element in _ELEMENT.findall(line):
            name, *parameters = (part.strip() for part in _PARAMETER.findall(element) or [""])
            if name:
                weight = max(_weight(parameters), qualities.get(name.lower(), 0.0))
                qualities[name.lower()] = weight
    return qualities


def _weight(parameters: Sequence[str]) -> float:
    """Return the parameter ``q``: 1 if it is missing, 0 if it is invalid."""
    for name, value in _pairs(parameters):
        if name == "q":
            return float(value) if _QUALITY.match(value) else 0.0
    return 1.0


def _pairs(parameters: Sequence[str]) -> Iterator[tuple[str, str]]:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        yield name.strip().lower(), value.strip()
