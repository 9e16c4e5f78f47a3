"""One host process and its supervisor: how they are started, or restored after a reload."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from ...reload.state import Inherited, PassedDescriptors
from ..pipes import LinePipe, as_file, unsent_bytes
from ..process import process_tree
from ..process.beats import Beats
from ..process.child import AdoptedChild, Child

logger = logging.getLogger(__name__)

SUPERVISOR = Path(__file__).parents[1] / "process" / "supervise.py"
MAX_LINE_BYTES = 17 << 20
"""A longer line of the host is skipped."""

LAST_STDERR_SECS = 1.0
SUPERVISOR_END_SECS = 5

OnLine = Callable[[bytes], None]


class RunningHostState(msgspec.Struct, kw_only=True):
    """A running host for the next version of the server; the pipes are descriptors."""

    supervisor: int
    stdin: int
    stdout: int
    stderr: int
    lifeline: int
    unsent: bytes
    stdout_rest: bytes
    stderr_rest: bytes


class RunningHost:
    """The pipes and the lifeline of one host.

    Args:
        on_line, on_log_line: called with each line of its stdout, and of its stderr.
        beats: the lifelines of all supervisors.

    Attributes:
        supervisor: the process of ``supervise.py``.
        stdout, stderr: its output.
    """

    supervisor: Child
    stdout: LinePipe
    stderr: LinePipe

    def __init__(self, on_line: OnLine, on_log_line: OnLine, beats: Beats) -> None:
        self._beats = beats
        self._on_line = on_line
        self._on_log_line = on_log_line
        self._stdin: asyncio.WriteTransport
        self._stdin_fd = self._lifeline = -1

    async def start(self, command: Sequence[str], *, environ: Mapping[str, str], cwd: Path) -> None:
        """Start a host below a supervisor.

        Raises:
            OSError: it cannot be started.
        """
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:

            def pipe(*, is_read: bool) -> tuple[int, int]:
                """Make a pipe. Return our end and theirs."""
                read_end, write_end = os.pipe()
                own, other = (read_end, write_end) if is_read else (write_end, read_end)
                ours.callback(os.close, own)
                theirs.callback(os.close, other)
                return own, other

            lifeline, other_lifeline = pipe(is_read=False)
            stdin, other_stdin = pipe(is_read=False)
            stdout, other_stdout = pipe(is_read=True)
            stderr, other_stderr = pipe(is_read=True)
            self.supervisor = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", str(SUPERVISOR), str(other_lifeline), self._beats.argument),
                *command,
                stdin=other_stdin,
                stdout=other_stdout,
                stderr=other_stderr,
                env=dict(environ),
                cwd=cwd,
                pass_fds=(other_lifeline,),
                # The server handles Ctrl-C.
                start_new_session=True,
            )
            ours.pop_all()
        self._lifeline = lifeline
        self._beats.add(lifeline)
        await self._open(stdin, stdout, stderr)

    async def restore(self, state: RunningHostState, inherited: Inherited) -> None:
        """Take over a host that an earlier version of the server has started.

        Raises:
            OSError: the supervisor is not a child of this process.
        """
        self.supervisor = AdoptedChild(state.supervisor)
        self._lifeline = inherited.claim(state.lifeline)
        self._beats.add(self._lifeline)
        await self._open(
            inherited.claim(state.stdin),
            inherited.claim(state.stdout),
            inherited.claim(state.stderr),
            rests=(state.stdout_rest, state.stderr_rest),
        )
        if state.unsent:
            self._stdin.write(state.unsent)

    async def _open(
        self, stdin: int, stdout: int, stderr: int, *, rests: tuple[bytes, bytes] = (b"", b"")
    ) -> None:
        self._stdin_fd = stdin
        loop = asyncio.get_running_loop()
        self._stdin, _ = await loop.connect_write_pipe(asyncio.Protocol, as_file(stdin, "wb"))
        self.stdout = LinePipe(MAX_LINE_BYTES, self._on_line, rests[0])
        self.stderr = LinePipe(MAX_LINE_BYTES, self._on_log_line, rests[1])
        await self.stderr.open(stderr)
        await self.stdout.open(stdout)

    def write(self, line: bytes) -> None:
        self._stdin.write(line + b"\n")

    def pause(self) -> None:
        """Leave further output in the pipes."""
        self.stdout.pause()
        self.stderr.pause()

    def resume(self) -> None:
        self.stdout.resume()
        self.stderr.resume()

    def pack(self, passed: PassedDescriptors) -> RunningHostState:
        return RunningHostState(
            supervisor=self.supervisor.pid,
            stdin=passed.add(self._stdin_fd),
            stdout=passed.add(self.stdout.descriptor),
            stderr=passed.add(self.stderr.descriptor),
            lifeline=passed.add(self._lifeline),
            unsent=unsent_bytes(self._stdin),
            stdout_rest=self.stdout.rest,
            stderr_rest=self.stderr.rest,
        )

    def close(self) -> None:
        """Close the host's stdin and the lifeline, which ends the host and its descendants."""
        self._stdin.close()
        if self._lifeline >= 0:
            self._beats.close(self._lifeline)
            self._lifeline = -1

    async def wait_ended(self, env_value: str) -> None:
        """Wait for the end of the supervisor, which first kills all descendants.

        Args:
            env_value: of ``HOST_VARIABLE`` in the environment of the host and its descendants.
        """
        process = self.supervisor
        try:
            async with asyncio.timeout(SUPERVISOR_END_SECS):
                await process.wait()
        except TimeoutError:
            logger.error("the host's supervisor does not end; killing it")
            await asyncio.to_thread(process_tree.end_all_below, process.pid)
            process.kill()
            await process.wait()
        if process.returncode != 0:
            tag = process_tree.env_tag(process_tree.HOST_VARIABLE, env_value)
            await asyncio.to_thread(process_tree.end_tagged, tag)
            await asyncio.to_thread(process_tree.end_orphans)
        await self._close_outputs()

    async def _close_outputs(self) -> None:
        """Close stdout and stderr, after the rest of stderr was read."""
        await asyncio.wait({self.stderr.ended}, timeout=LAST_STDERR_SECS)
        self.stdout.close()
        self.stderr.close()
