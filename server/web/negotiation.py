"""What a client accepts: the headers ``Accept`` and ``Accept-Encoding``, as RFC 9110 has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

# One element of a list, or one parameter: a comma or a semicolon in quotes separates nothing.
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_ELEMENT = re.compile(rf"(?:[^,\"]|{_QUOTED})+")
_PARAMETER = re.compile(rf"(?:[^;\"]|{_QUOTED})+")
_QUALITY = re.compile(r"(?:0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\Z")


def weight_of(lines: Sequence[str], media_type: str) -> tuple[float, bool]:
    """How much a client wants a media type, from 0 (not at all) to 1.

    Args:
        lines: the values of all the request's ``Accept`` headers; none accepts anything.
        media_type: in lower case.

    Returns:
        The weight, and whether the client has named the type itself instead of a wildcard.
    """
    ranges = _qualities(lines) or {"*/*": 1.0}
    kind = media_type.partition("/")[0]
    for name in (media_type, f"{kind}/*", "*/*"):
        if name in ranges:
            return ranges[name], name == media_type
    return 0.0, False


def accepts_coding(lines: Sequence[str], coding: str) -> bool:
    """Whether a body may be sent in that content coding, ``gzip`` say."""
    codings = _qualities(lines)
    return codings.get(coding, codings.get("*", 0.0)) > 0


def _qualities(lines: Sequence[str]) -> Mapping[str, float]:
    """Each element's name in lower case with its weight; of one that comes twice, the highest."""
    found: dict[str, float] = {}
    for line in lines:
        for element in _ELEMENT.findall(line):
            name, *parameters = (part.strip() for part in _PARAMETER.findall(element) or [""])
            if name:
                weight = max(_weight(parameters), found.get(name.lower(), 0.0))
                found[name.lower()] = weight
    return found


def _weight(parameters: Sequence[str]) -> float:
    """The parameter ``q``; 1 if there is none, 0 if it is no weight."""
    for name, value in _pairs(parameters):
        if name == "q":
            return float(value) if _QUALITY.match(value) else 0.0
    return 1.0


def _pairs(parameters: Sequence[str]) -> Iterator[tuple[str, str]]:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        yield name.strip().lower(), value.strip()
