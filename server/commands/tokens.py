"""The commands ``token add``, ``change``, ``list`` and ``revoke``: the apps' tokens."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ..auth.token_options import TokenOptions
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
    _add_options(command)
    command.set_defaults(execute=functools.partial(admin.execute_command, add_token))

    text = "change what a token allows, at once"
    command = actions.add_parser(
        "change",
        help=text,
        description=f"{admin.sentence(text)} An option replaces the whole field.",
    )
    command.add_argument("name", help="the app's name")
    _add_options(command)
    for name in OPTIONS:
        command.add_argument(f"--no-{name}", action="store_true", help=f"remove every {name}")
    command.set_defaults(execute=functools.partial(admin.execute_command, change_token_options))

    text = "list all tokens with what they allow, never the tokens themselves"
    command = actions.add_parser("list", help=text, description=admin.sentence(text))
    command.add_argument("--json", action="store_true", help="print one JSON object per line")
    command.set_defaults(execute=functools.partial(admin.execute_command, print_tokens))

    text = "revoke a token: it is invalid at once, and its sockets close"
    command = actions.add_parser("revoke", help=text, description=admin.sentence(text))
    command.add_argument("name", help="the app's name")
    command.add_argument("--close-sessions", action="store_true", help="close its sessions, too")
    command.set_defaults(execute=functools.partial(admin.execute_command, revoke_app_token))


OPTIONS = {"scope": "scopes", "limit": "limits", "budget": "budget", "sandbox": "sandbox"}
"""The fields of a token's options, by the names of their arguments."""


def _add_options(command: argparse.ArgumentParser) -> None:
    for name, metavar, text in (
        ("scope", "SCOPE", "allow only this: read, prompt, approve or manage"),
        ("limit", "NAME=N", "a limit of the app's own, such as sessions=20"),
        ("budget", "NAME=N", "what the app may spend, such as usd_per_day=5"),
        ("sandbox", "NAME=VALUE", "a stricter sandbox, such as level=bwrap or network=web"),
    ):
        help_text = f"{text}; may be repeated"
        command.add_argument(f"--{name}", action="append", metavar=metavar, help=help_text)


def _chosen_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request that the arguments stand for.

    Raises:
        CommandError: an argument is malformed.
    """
    chosen: dict[str, Any] = {}
    for name, field in OPTIONS.items():
        values = getattr(arguments, name)
        if getattr(arguments, f"no_{name}", False):
            chosen[field] = None
        elif values and name == "scope":
            chosen[field] = values
        elif values:
            chosen[field] = dict(_named_value(name, value) for value in values)
    return chosen


def _named_value(name: str, text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise admin.CommandError(f"--{name} {text}: must be NAME=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


async def add_token(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_admin_api(settings, environ, must_exist=False) as api:
        options = _chosen_options(arguments)
        token = await api.add_token(arguments.name, arguments.network, options)
    print(token)
    print("The token is not shown again; only its hash is stored.", file=sys.stderr)


async def change_token_options(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    options = _chosen_options(arguments)
    if not options:
        raise admin.CommandError("nothing to change: see `token change --help`")
    async with admin.open_admin_api(settings, environ) as api:
        await api.change_token(arguments.name, options)
    admin.print_escaped(f"The token of {arguments.name} was changed.")


async def print_tokens(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_for_reading(settings) as queries:
        rows = await queries.tokens()
    if arguments.json:
        for row in rows:
            token = {"name": row.name, "ip_cidrs": json.loads(row.ip_cidrs)}
            options = TokenOptions.decode(row.options).view()
            print(json.dumps(token | {"created_at": int(row.created_at)} | options))
        return
    cells = [("NAME", "NETWORKS", "CREATED", "OPTIONS")]
    for row in rows:
        created = datetime.fromtimestamp(row.created_at, UTC)
        networks = ", ".join(json.loads(row.ip_cidrs)) or "any"
        described = _described(TokenOptions.decode(row.options).view())
        cells.append((row.name, networks, f"{created:%Y-%m-%d %H:%M}", described))
    admin.print_escaped(admin.format_table(cells))


def _described(options: Mapping[str, Any]) -> str:
    """A token's options in one line, in the form of the arguments."""
    parts = [f"env={','.join(options['env'])}"] if "env" in options else []
    parts += [f"scope={scope}" for scope in options.get("scopes", ())]
    for name in ("limits", "budget", "sandbox"):
        parts += [f"{key}={value}" for key, value in options.get(name, {}).items()]
    return " ".join(parts) or "-"


async def revoke_app_token(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> None:
    async with admin.open_admin_api(settings, environ) as api:
        closed = await api.revoke_token(arguments.name, close_sessions=arguments.close_sessions)
    sessions = f" {closed} sessions were closed." if arguments.close_sessions else ""
    admin.print_escaped(f"The token of {arguments.name} was revoked.{sessions}")
