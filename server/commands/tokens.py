"""The commands ``token add``, ``token list`` and ``token revoke``: the apps' tokens."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ..config import Settings
from . import admin


def add_token_commands(commands: Any) -> None:
    """Add the commands of this module to the parser."""
    text = "manage the apps' tokens"
    parser = commands.add_parser("token", help=text, description=admin.sentence(text))
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    text = "create a token for an app, and print it once"
    command = actions.add_parser("add", help=text, description=admin.sentence(f"{text}, to stdout"))
    command.add_argument("name", help="the app's name: letters, digits, dots, dashes, underscores")
    command.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="CIDR",
        help="accept the token only from this network, such as 10.0.0.0/8; may be repeated",
    )
    command.set_defaults(execute=functools.partial(admin.execute_command, add_token))

    text = "list the names and networks of all tokens, never the tokens themselves"
    command = actions.add_parser("list", help=text, description=admin.sentence(text))
    command.add_argument("--json", action="store_true", help="print one JSON object per line")
    command.set_defaults(execute=functools.partial(admin.execute_command, print_tokens))

    text = "revoke a token: it is invalid at once, and its sockets close"
    command = actions.add_parser("revoke", help=text, description=admin.sentence(text))
    command.add_argument("name", help="the app's name")
    command.set_defaults(execute=functools.partial(admin.execute_command, revoke_app_token))


async def add_token(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_admin_api(settings, environ, must_exist=False) as api:
        token = await api.add_token(arguments.name, arguments.network)
    print(token)
    print("The token is not shown again; only its hash is stored.", file=sys.stderr)


async def print_tokens(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_for_reading(settings) as queries:
        rows = await queries.tokens()
    if arguments.json:
        for row in rows:
            token = {"name": row.name, "ip_cidrs": json.loads(row.ip_cidrs)}
            print(json.dumps(token | {"created_at": int(row.created_at)}))
        return
    cells = [("NAME", "NETWORKS", "CREATED")]
    for row in rows:
        created = datetime.fromtimestamp(row.created_at, UTC)
        networks = ", ".join(json.loads(row.ip_cidrs)) or "any"
        cells.append((row.name, networks, f"{created:%Y-%m-%d %H:%M}"))
    admin.print_escaped(admin.format_table(cells))


async def revoke_app_token(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_admin_api(settings, environ) as api:
        await api.revoke_token(arguments.name)
    admin.print_escaped(f"The token of {arguments.name} was revoked.")
