"""Prepares the last output of a program for clients: on one line, without secrets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping

KEPT_BYTES = 2000
"""The part of each stream that is kept while a program runs."""
SHOWN_BYTES = 500
"""The part of each stream that is shown."""
SECRET = "[secret]"  # noqa: S105
MIN_SECRET = 6

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x9b[0-?]*[ -/]*[@-~]"  # colours, cursor moves
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles
    r"|\x1b[ -/]*[0-~]"
)
_SECRET_NAMES = re.compile(r"key|token|secret|passw|credential|auth|cookie", re.IGNORECASE)
_SECRETS = re.compile(
    r"""
    \b(?:sk|pk|rk|cf|ff|ghp|gho|ghu|ghs|ghr|github_pat|glpat|xox[abprs]|hf|gsk|nvapi|pplx|r8|npm|key)
        [-_][A-Za-z0-9_\-.]{8,}
    | \bAIza[A-Za-z0-9_\-]{20,} | \b(?:AKIA|ASIA)[A-Z0-9]{12,}
    | \beyJ[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]+){1,2}  # a JSON web token
    | -----BEGIN[^-]*PRIVATE\ KEY-----.*?(?:-----END[^-]*-----|\Z)
    """,
    re.VERBOSE | re.DOTALL,
)
_NAMED_SECRETS = re.compile(
    r"""
    ((?:api[\s_-]?key|(?:access|auth|refresh|session|bearer|id)?[_-]?token|secret|passw(?:or)?d
        |authorization|cookie)["']?\s*[:=]\s*["']?(?:(?:bearer|basic)\s+)?|\bbearer\s+|\bbasic\s+)
    ([^\s"',;&]{6,})
    | (?<=://)([^/\s:@]*:[^/\s@]+)(?=@)
    """,
    re.IGNORECASE | re.VERBOSE,
)


def secrets_in(*environs: Mapping[str, str]) -> frozenset[str]:
    """The values in *environs* with a name that marks them as secret."""
    return frozenset(
        value
        for environ in environs
        for name, value in environ.items()
        if len(value) >= MIN_SECRET and _SECRET_NAMES.search(name)
    )


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """*text* without *secrets*, and without strings that look like keys or passwords."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, SECRET)
    text = _SECRETS.sub(SECRET, text)
    return _NAMED_SECRETS.sub(lambda match: f"{match[1] or ''}{SECRET}", text)


def single_line(text: str) -> str:
    """*text* on one line, without control characters and escape sequences of terminals."""
    text = _ESCAPES.sub("", text)
    return " ".join(
        "".join(
            c if unicodedata.category(c)[0] != "C" else " " * (c in "\n\r\t") for c in text
        ).split()
    )


def last_output(streams: Iterable[bytes], secrets: Collection[str] = ()) -> str:
    """The end of each of a program's *streams*, at most :data:`SHOWN_BYTES` of each."""
    ends = dict.fromkeys(_end_of(stream, secrets) for stream in streams)
    return " / ".join(filter(None, ends))


def _end_of(stream: bytes, secrets: Collection[str]) -> str:
    is_cut = len(stream) >= KEPT_BYTES
    text = stream[-KEPT_BYTES:].decode(errors="replace")
    if is_cut:  # the first word may be the rest of a secret
        text = _without_first_word(text)
    shown = redact(single_line(text), secrets).encode()
    if len(shown) <= SHOWN_BYTES:
        return shown.decode()
    return "… " + _without_first_word(shown[-SHOWN_BYTES:].decode(errors="ignore"))


def _without_first_word(text: str) -> str:
    return "".join(text.split(maxsplit=1)[1:])
