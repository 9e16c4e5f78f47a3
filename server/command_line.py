"""The command line: ``python -m server``, or ``clawdforge`` if the package is installed."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import COMMAND, __version__, installation, logs
from .agents.process import process_tree
from .agents.process.environ import forget
from .commands.admin import CommandError, print_escaped, sentence
from .commands.backup import add_backup_commands
from .commands.cluster import add_cluster_commands
from .commands.doctor import add_doctor_command
from .commands.reload import add_reload_command
from .commands.sessions import add_session_commands
from .commands.setup import add_setup_command
from .commands.tokens import add_token_commands
from .commands.unit import add_unit_command
from .commands.webhooks import add_webhook_command
from .config import SettingError, Settings, load, with_env_file
from .connect.command import connect_with
from .connect.target import SUMMARY, add_connect_arguments
from .errors import StartError
from .reload.program import StartedProgram
from .reload.state import read_state
from .serving import print_status, serve
from .tasks import EXIT_FAILED, EXIT_MISCONFIGURED, CriticalTaskError

logger = logging.getLogger(__name__)

ENV_FILE = Path(".env")
SWITCH_INTERVAL_SECS = 0.0002
"""The longest time that a thread waits for Python's lock. A commit needs the lock about eight
times, so with Python's 5 ms a turn waited for each commit 20 ms beside an agent that writes at full
speed."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    arguments.program = StartedProgram.of_this_process()
    process_tree.isolate()
    environ: Mapping[str, str] = os.environ
    try:
        environ = with_env_file(os.environ, ENV_FILE)
        forget("CLAWDFORGE_ADMIN_TOKEN")  # only the settings keep it
        settings = load(environ)
    except SettingError as error:
        log_format = environ.get("CLAWDFORGE_LOG_FORMAT", "").strip()
        if log_format == "json":
            logs.set_up(Settings(log_format=log_format))
        _report_failure(error, log_format, arguments)
        return EXIT_MISCONFIGURED
    logs.set_up(settings)
    try:
        return int(arguments.execute(arguments, settings, environ))
    except SettingError as error:  # only a trial shows that a value does not work here
        _report_failure(error, settings.log_format, arguments)
        return EXIT_MISCONFIGURED
    except (StartError, CommandError, CriticalTaskError) as error:
        _report_failure(error, settings.log_format, arguments)
        return error.exit_status if isinstance(error, CriticalTaskError) else EXIT_FAILED
    except KeyboardInterrupt:
        return 130


def _report_failure(error: Exception, log_format: str, arguments: argparse.Namespace) -> None:
    """Print the error to stderr. A server with a JSON log writes it as a log line instead."""
    if log_format == "json" and arguments.execute is _run_server:
        logger.critical("%s", error)
    else:
        print_escaped(f"clawdforge: {error}", file=sys.stderr)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description=f"clawdforge {__version__}. Without a command, starts the server.",
        epilog="Settings are read from the environment and .env: see docs/reference/settings.md.",
    )
    parser.add_argument("--version", action="version", version=f"clawdforge {__version__}")
    parser.set_defaults(execute=_run_server)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    text = "run the server until SIGTERM or Ctrl-C (the default)"
    commands.add_parser("serve", aliases=["run"], help=text, description=sentence(text))
    add_setup_command(commands)
    add_token_commands(commands)
    add_session_commands(commands)
    add_doctor_command(commands)
    add_backup_commands(commands)
    add_cluster_commands(commands)
    add_unit_command(commands)
    add_webhook_command(commands)
    add_reload_command(commands)
    # `__main__` runs this command without the others. Here it is for `--help`.
    connecting = commands.add_parser("connect", help=SUMMARY, description=sentence(SUMMARY))
    add_connect_arguments(connecting)
    connecting.set_defaults(execute=lambda arguments, *_: connect_with(arguments))
    return parser


def _run_server(
    arguments: argparse.Namespace, settings: Settings, environ: Mapping[str, str]
) -> int:
    inherited = read_state(os.environ)
    installation.ensure_packages(environ, print_status)
    sys.setswitchinterval(SWITCH_INTERVAL_SECS)
    asyncio.run(serve(settings, environ, program=arguments.program, inherited=inherited))
    return 0
