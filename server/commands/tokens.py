"""``token add|list|revoke``: the apps' tokens."""

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


def add_to(commands: Any) -> None:
    """Add this module's commands to a parser's."""
    about = "the apps' tokens"
    parser = commands.add_parser("token", help=about, description=f"Manage {about}.")
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    text = "make a token for an app; it is shown this once"
    one = actions.add_parser("add", help=text, description=admin.sentence(f"{text}, on stdout"))
    one.add_argument("name", help="the app's name: letters, digits, dots, dashes, underscores")
    one.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="CIDR",
        help="take the token only from this network, 10.0.0.0/8 say; may be repeated",
    )
    one.set_defaults(run=functools.partial(admin.run, add))

    text = "list the tokens: names and networks, never the tokens themselves"
    one = actions.add_parser("list", help=text, description=admin.sentence(text))
    one.add_argument("--json", action="store_true", help="an object a line")
    one.set_defaults(run=functools.partial(admin.run, show))

    text = "take a token back; it is worth nothing from now on, and its sockets close"
    one = actions.add_parser("revoke", help=text, description=admin.sentence(text))
    one.add_argument("name", help="the app's name")
    one.set_defaults(run=functools.partial(admin.run, revoke))


async def add(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_house(settings, environ, must_exist=False) as opened:
        token = await opened.add_token(arguments.name, arguments.network)
    print(token)
    print("It is shown this once; only its hash is kept.", file=sys.stderr)


async def show(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.reading(settings) as queries:
        rows = await queries.tokens()
    if arguments.json:
        for row in rows:
            view = {"name": row.name, "ip_cidrs": json.loads(row.ip_cidrs)}
            print(json.dumps(view | {"created_at": int(row.created_at)}))
        return
    cells = [("NAME", "NETWORKS", "CREATED")]
    for row in rows:
        made = datetime.fromtimestamp(row.created_at, UTC)
        networks = ", ".join(json.loads(row.ip_cidrs)) or "any"
        cells.append((row.name, networks, f"{made:%Y-%m-%d %H:%M}"))
    admin.say(admin.table(cells))


async def revoke(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_house(settings, environ) as opened:
        await opened.revoke_token(arguments.name)
    admin.say(f"The token of {arguments.name} is revoked.")
