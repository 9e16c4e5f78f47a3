"""The functions of ours that SQL statements call. Each engine has them."""

from __future__ import annotations

import unicodedata


def casefold(value: object) -> str | None:
    """A text in the form in which texts are compared without regard to case; otherwise None."""
    return unicodedata.normalize("NFKC", value).casefold() if isinstance(value, str) else None


def head_lines(body: bytes, count: int) -> bytes:
    """The first *count* lines of a row's body."""
    return b"\n".join(body.split(b"\n", count)[:count])
