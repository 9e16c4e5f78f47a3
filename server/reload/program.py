"""The command with which this process was started, to try its next version and to become it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

import msgspec

from ..codec import dumps
from .state import STATE_VARIABLE, PassedDescriptors

TRY_NEXT_SECS = 60.0
"""The time for the next version to show that it can start."""
REASON_LENGTH = 500
STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM})
"""Signals that wait from the exec until the next version handles them."""


class ReloadError(Exception):
    """The server did not become its next version, and continues. The message is the reason."""


class StartedProgram(msgspec.Struct, frozen=True):
    """The command and the environment with which this process was started.

    Attributes:
        command: the interpreter and the arguments before the server's own.
        arguments: the server's own arguments.
        environ: without the variables of ``.env``, which the next version reads again.
    """

    command: Sequence[str]
    arguments: Sequence[str]
    environ: Mapping[str, str]

    @classmethod
    def of_this_process(cls) -> StartedProgram:
        """Must be called before a variable is removed from the environment."""
        given = len(sys.argv) - 1
        command = [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - given]]
        return cls(command, sys.argv[1:], dict(os.environ))

    async def try_next(self, running: Mapping[str, object]) -> bytes:
        """Run the code that is installed now as a child, which only checks that it can start.

        Args:
            running: what the next version must agree with.

        Returns:
            What the trial has reported, in JSON, for the next version when it starts.

        Raises:
            ReloadError: it cannot start; the message is the one that it printed.
        """
        arguments = ["reload", "--check", "--running", dumps(running).decode()]
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command,
                *arguments,
                env=dict(self.environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise ReloadError(f"the new version cannot be started: {error.strerror}") from None
        stdout = stderr = b""
        try:
            async with asyncio.timeout(TRY_NEXT_SECS):
                stdout, stderr = await process.communicate()
        except TimeoutError:
            raise ReloadError(f"the new version was not ready in {TRY_NEXT_SECS:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            raise ReloadError(_trial_failure(stderr, process.returncode))
        return stdout.splitlines()[-1] if stdout.strip() else b""

    def become_next(self, state: int, passed: PassedDescriptors) -> NoReturn:
        """Replace this process by the code that is installed now.

        Args:
            state: the descriptor of the state.
            passed: the descriptors that the next version inherits.

        Raises:
            OSError: the interpreter cannot be executed. Nothing has changed.
        """
        former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited; a handler is not
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            passed.make_inheritable()
            sys.stdout.flush()
            sys.stderr.flush()
            environ = {**self.environ, STATE_VARIABLE: str(state)}
            os.execve(self.command[0], [*self.command, *self.arguments], environ)  # noqa: S606
        except BaseException:
            passed.make_inheritable(inheritable=False)
            signal.signal(signal.SIGHUP, former)
            accept_stop_signals()
            raise


def accept_stop_signals() -> None:
    """Receive the stop signals that were sent since the exec."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _trial_failure(stderr: bytes, status: int | None) -> str:
    """The reason that a failed trial has printed: its own message, or a traceback's last line."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    own = [line.removeprefix("clawdforge: ") for line in lines if line.startswith("clawdforge: ")]
    reason = own[-1] if own else lines[-1] if lines else f"it ended with status {status}"
    return f"the new version cannot start: {reason[:REASON_LENGTH]}"
