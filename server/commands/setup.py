"""The command ``setup``: installs now what the first start would install."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from .. import installation
from ..config import Settings
from .admin import print_escaped, sentence


def add_setup_command(commands: Any) -> None:
    """Add the command of this module to the parser."""
    text = "install acpx and the page's libraries now, as the first start does"
    parser = commands.add_parser("setup", help=text, description=sentence(text))
    parser.set_defaults(execute=_install_packages)


def _install_packages(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> int:
    if not installation.IS_INSTALLED:
        print_escaped("this is a clone: `make setup` installs what is missing")
    elif installation.is_complete():
        print_escaped(f"acpx is installed in {installation.ROOT}")
    else:
        installation.ensure_packages(environ, print_escaped)
    return 0
