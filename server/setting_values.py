"""Parsers of the values of settings.

Each parser raises :class:`ValueError` with the accepted form. :func:`int_between`,
:func:`seconds_between` and :func:`choice_from` make parsers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from .hosts import HostRule, host_rule
from .origins import Network, host_of, network_of, origin_of


def parse_text(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return value


def parse_path(value: str) -> Path:
    try:
        return Path(parse_text(value)).expanduser().absolute()
    except RuntimeError:  # the user of `~user` does not exist
        raise ValueError(f"{value!r} names a user who does not exist") from None


def int_between(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError(f"must be a whole number from {low} to {high}") from None
        if not low <= number <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return number

    return parse


def seconds_between(low: float, high: float = 31_536_000) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:.15g}") from None
        if not low <= number <= high:
            raise ValueError(f"must be a number of seconds from {low:g} to {high:.15g}")
        return number

    return parse


def choice_from(*names: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value

    return parse


def parse_names(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def parse_origins(value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(origin_of, parse_names(value))))


def parse_hosts(value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(host_of, parse_names(value))))


def parse_host_rules(value: str) -> tuple[HostRule, ...]:
    return tuple(dict.fromkeys(map(host_rule, parse_names(value))))


def parse_contact(value: str) -> str:
    if not re.fullmatch(r"(mailto:[^\s@]+@[^\s@]+|https://[!-~]+)", value):
        raise ValueError("must be mailto: with an address, or an address with https://")
    return value


def parse_domains(value: str) -> tuple[str, ...]:
    names = tuple(name.lower() for name in parse_names(value))
    for name in names:
        if not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*(:[0-9]{1,5})?", name):
            raise ValueError(f"{name!r} is not a domain such as crates.io or *.github.com:443")
    return names


def parse_folders(value: str) -> tuple[Path, ...]:
    return tuple(existing_folder(part) for part in parse_names(value.replace(os.pathsep, ",")))


def parse_networks(value: str) -> tuple[Network, ...]:
    try:
        return tuple(map(network_of, parse_names(value)))
    except ValueError as error:
        raise ValueError(f"must be networks such as 127.0.0.1/32, 10.0.0.0/8: {error}") from None


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
