"""Parsers of the values of settings.

Each function raises :class:`ValueError` with the accepted form.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit


def parse_database_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        has_host = bool(parts.hostname or "host=" in parts.query)
    except ValueError:
        pass
    else:
        if has_host and parts.path.strip("/") and parts.scheme in ("postgresql", "postgres"):
            return value
    # The value is not shown: it may contain a password.
    raise ValueError("must be a URL such as postgresql://user@host/database")


def parse_node_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", value):
        raise ValueError("must be a name of letters, digits, '.', '_' and '-'")
    return value


def existing_folder(name: str) -> Path:
    try:
        folder = Path(name).expanduser()
        if folder.is_absolute() and folder.is_dir():
            return folder.resolve()
    except (OSError, RuntimeError):
        pass  # the name is too long, or the user of `~user` does not exist
    raise ValueError(f"{name!r} is not an existing folder with an absolute path")
