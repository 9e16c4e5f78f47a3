"""The version of a database's schema, and the way to the newest one."""

from __future__ import annotations

from collections.abc import Sequence

from .base import SchemaError


def check_version(version: int, newest: int) -> None:
    """Check that a database has the newest schema.

    Raises:
        SchemaError: it has an older or a newer one.
    """
    if version != newest:
        raise SchemaError(
            f"the database has schema {version}, this program {newest}:"
            " start the server once, which brings an older one up to date"
        )


def pending_scripts(version: int, scripts: Sequence[str]) -> list[tuple[int, str]]:
    """The scripts that bring a database up to date, each with the version that it makes.

    Args:
        version: of the database's schema; 0 for an empty database.
        scripts: one for each version, from 1.

    Raises:
        SchemaError: a newer version of clawdforge created the database.
    """
    if version > len(scripts):
        raise SchemaError(
            f"the database has schema {version}, newer than this program's {len(scripts)}:"
            " start the version that made it"
        )
    return list(enumerate(scripts[version:], version + 1))
