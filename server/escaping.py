"""Escaping of text from agents and clients for terminals and logs.

Terminals execute control characters, and bidi characters make a line look like another one. Both
are shown as escapes. Joiners are unchanged, because scripts and emoji need them.
"""

from __future__ import annotations

import re

_UNSAFE = (
    "\x00-\x1f\x7f-\x9f"  # C0, DEL and C1: 0x9b begins a terminal's command as ESC does
    "\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_CHARACTER = re.compile(f"[{_UNSAFE}]")
_CHARACTER_OF_TEXT = re.compile(f"(?![\n\t])[{_UNSAFE}]")


def one_line(text: str) -> str:
    """Escape *text* on one line: ``\\n``, ``\\x1b``, ``\\u202e``."""
    return _CHARACTER.sub(_visible, text)


def visible(text: str) -> str:
    """Escape *text* except for its line breaks and tabs."""
    return _CHARACTER_OF_TEXT.sub(_visible, text)


def _visible(match: re.Match[str]) -> str:
    return ascii(match[0])[1:-1]


def json_text(document: str) -> str:
    """An equal JSON document whose strings have these characters as escapes."""
    return _CHARACTER.sub(_unicode_escape, document)


def _unicode_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
