"""The command ``unit``: prints a unit for systemd that starts this server."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import COMMAND
from ..config import Settings
from .admin import CommandError, sentence

TEMPLATE = Path(__file__).parent / "clawdforge.service"


def add_unit_command(commands: Any) -> None:
    """Add the command of this module to the parser."""
    text = "print a unit for systemd, which starts this server in this folder"
    parser = commands.add_parser("unit", help=text, description=sentence(text))
    parser.add_argument("--user", help="the user who runs it (default: you)")
    parser.add_argument("--folder", type=Path, help="its working directory (default: this folder)")
    parser.set_defaults(execute=_print_unit)


def unit(user: str, folder: Path, command: str) -> str:
    """The text of the unit.

    Raises:
        ValueError: a value cannot be part of a unit.
    """
    for value in (user, str(folder), command):
        if not value.isprintable() or "%" in value or '"' in value:
            raise ValueError(f"a unit of systemd cannot contain {value!r}")
    return TEMPLATE.read_text("utf-8").format(user=user, folder=folder, command=command)


def _print_unit(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> int:
    python = sys.executable if " " not in sys.executable else f'"{sys.executable}"'
    module = COMMAND.removeprefix("python -m ")
    folder = (arguments.folder or Path()).absolute()
    user = arguments.user or getpass.getuser()
    try:
        text = unit(user, folder, "PYTHON -m " + module)
    except ValueError as error:
        raise CommandError(str(error)) from None
    print(text.replace("PYTHON", python), end="", flush=True)
    return 0
