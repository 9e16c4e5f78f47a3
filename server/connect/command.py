"""The command ``connect``: its arguments, its signals and its exit status."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence

from .. import COMMAND
from .failure import ConnectError, ExitStatus
from .stdio import EditorInput, EditorOutput
from .target import SUMMARY, add_connect_arguments, target_of

EPILOG = """\
Exit status: 0 the editor ended it, 1 the server cannot be reached, 2 the arguments or the token's
source are invalid, 3 the server refused the token."""


def run_connect(argv: Sequence[str]) -> int:
    """Run the command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False,  # `--token` must not be taken for `--token-file`
        prog=f"{COMMAND} connect",
        description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}.",
        epilog=EPILOG,
    )
    add_connect_arguments(parser)
    return connect_with(parser.parse_args(argv))


def connect_with(arguments: argparse.Namespace) -> int:
    """Run the command with parsed arguments. Returns its exit status."""
    return asyncio.run(_run(arguments, os.environ))


async def _run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> int:
    editor_in, editor_out = EditorInput(), EditorOutput()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        return await _serve_editor(arguments, environ, editor_in, editor_out)
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


async def _serve_editor(
    arguments: argparse.Namespace,
    environ: Mapping[str, str],
    editor_in: EditorInput,
    editor_out: EditorOutput,
) -> int:
    """Serve the editor until it ends; a failure is its response, and a line on stderr."""
    from .bridge import FIRST_REQUEST_SECS, Bridge, drain_output, report, respond_with_failure

    status = ExitStatus.ENDED
    try:
        await Bridge(target_of(arguments, environ), editor_in, editor_out).run()
    except ConnectError as error:
        report(error.message)
        status = error.status
        wait_secs = 0.0 if sys.stdin.isatty() else FIRST_REQUEST_SECS
        await respond_with_failure(error, editor_in, editor_out, wait_secs)
    await drain_output(editor_out)
    return status
