"""Text of agents and clients, escaped for where it is shown.

A terminal obeys control characters, and bidi characters make a line look like another one: both are
written as what they are. Joiners stay, because scripts and emoji need them.
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
    """*text* on one line, with visible escapes: ``\\n``, ``\\x1b``, ``\\u202e``."""
    return _CHARACTER.sub(_visible, text)


def visible(text: str) -> str:
    """The same, but lines and tabs stay."""
    return _CHARACTER_OF_TEXT.sub(_visible, text)


def _visible(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def json_text(document: str) -> str:
    """A JSON document that means the same, and has none of these characters in its strings."""
    return _CHARACTER.sub(_unicode_escape, document)


def _unicode_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
