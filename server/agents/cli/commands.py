"""acpx's command line, for one session: in a home of the session's own, below one starter."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import secrets
import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import safe_files
from ...codec import parse_message
from ...data_dir import DataDir
from ..base import AgentSpec, misplaced, real_folder
from ..failures import details_of
from ..process import process_tree
from ..process.programs import Program, Programs
from ..program_output import KEPT_BYTES, last_output, plain, redact, secrets_in

FOREVER_SECS = 2**31 // 1000
"""acpx's longest timeout. The server ends turns; acpx is not to."""
ENDED = ("AGENT_DISCONNECTED", "AGENT_STARTUP_FAILED")
"""acpx's codes for an agent that has ended; the reason may be on its stderr."""

POLICIES = {
    "approve-all": "--approve-all",
    "approve-reads": "--approve-reads",
    "deny-all": "--deny-all",
    # Of a session that was opened under the host: here there is nobody to ask.
    "ask": "--deny-all",
}


class AcpxCommandError(Exception):
    """A command failed.

    Attributes:
        code: acpx's, or the agent's own number.
        failure: the JSON-RPC error that acpx has told, if it has.
    """

    def __init__(self, message: str, code: str, failure: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.failure = failure

    def __str__(self) -> str:
        return f"{super().__str__().strip()[:1500]} ({self.code})"


@dataclasses.dataclass(frozen=True, slots=True)
class Acpx:
    """Where acpx is, and with what it is run.

    Attributes:
        node, script: the program.
        environ: its environment, but for HOME.
        no_mcp: a file that names no MCP servers.
    """

    node: str
    script: str
    environ: Mapping[str, str]
    no_mcp: Path


class AcpxCommands:
    """One session's commands, and all processes that come of them.

    Args:
        home: acpx's, for this session alone: its record, its queue, its sockets.
        agent_argv: the agent's command.
        agent_environ: what the agent has over acpx's environment.
    """

    def __init__(
        self,
        acpx: Acpx,
        spec: AgentSpec,
        data_dir: DataDir,
        home: Path,
        *,
        agent_argv: Sequence[str],
        agent_environ: Mapping[str, str],
    ) -> None:
        self._acpx = acpx
        self._spec = spec
        self._data_dir = data_dir
        self._home = home
        environ = {**acpx.environ, **agent_environ}
        # The agent's home is the user's, with the user's logins.
        user_home = [f"HOME={environ['HOME']}"] if "HOME" in environ else ["-u", "HOME"]
        self._agent = shlex.join(["/usr/bin/env", *user_home, *agent_argv])
        self._env_value = f"{spec.key}:{secrets.token_hex(4)}"
        self._environ = {**environ, "HOME": str(home), process_tree.AGENT_VARIABLE: self._env_value}
        self._programs = Programs(acpx.environ)

    @property
    def running(self) -> bool:
        return self._programs.running

    @property
    def secrets(self) -> Collection[str]:
        """What must not be shown of the words of acpx and its agent."""
        return secrets_in(self._environ)

    async def start(
        self, *command: str, stdin: bytes = b"", options: Sequence[str] = ()
    ) -> Program:
        """Start a command; close it when it is no longer needed."""
        argv = [
            *(self._acpx.node, self._acpx.script, "--format", "json", "--json-strict"),
            *("--cwd", self._spec.cwd, "--agent", self._agent),
            # What follows also overrules what a workspace's `.acpxrc.json` says.
            *(POLICIES[self._spec.permission], "--non-interactive-permissions", "deny"),
            *("--mcp-config", str(self._acpx.no_mcp), "--auth-policy", "skip"),
            *("--timeout", str(FOREVER_SECS), "--ttl", "0"),
            # As under the host: agents use tools of their own.
            *("--no-fs", "--no-terminal"),
            *options,
            *command,
        ]
        descriptor = await asyncio.to_thread(self._prepare, stdin)
        try:
            return await self._programs.start(
                argv, environ=self._environ, cwd=self._home, stdin=descriptor, keep=True
            )
        finally:
            os.close(descriptor)

    def _prepare(self, stdin: bytes) -> int:
        """Make the home; a file in memory that can be a program's stdin."""
        # acpx follows the path again: nothing may have been put in its way since it was resolved.
        if os.path.realpath(self._spec.cwd) != real_folder(self._spec.cwd, self._data_dir.path):
            raise misplaced()
        with safe_files.folder(*self._data_dir.split(self._home), make=True):
            pass
        descriptor = os.memfd_create("stdin")
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(stdin)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    async def run(self, *command: str, options: Sequence[str] = ()) -> dict[str, Any]:
        """Run a command to its end; what it tells.

        Raises:
            CommandError: it failed.
        """
        program = await self.start(*command, options=options)
        try:
            output, stderr = await asyncio.gather(program.stdout.read(), read_end(program.stderr))
        finally:
            await program.close()
        for line in output.splitlines():
            message = parse_message(line) or {}
            if "action" in message:
                return message
            if isinstance(message.get("error"), dict):
                raise error_in(message["error"], stderr, self.secrets)
        raise error_in(None, stderr, self.secrets)

    async def end(self, grace: float = 0) -> None:
        """End all processes of the session; what is left after *grace* seconds is killed."""
        if not await self._programs.stop(grace):
            tag = process_tree.env_tag(process_tree.AGENT_VARIABLE, self._env_value)
            await asyncio.to_thread(process_tree.end_tagged, tag)
        await asyncio.to_thread(shutil.rmtree, socket_folder(self._home), ignore_errors=True)


def socket_folder(home: Path) -> Path:
    """Where acpx has a home's sockets: in the system's folder for what is temporary."""
    return Path("/tmp") / f"acpx-{hashlib.sha256(str(home).encode()).hexdigest()[:10]}"  # noqa: S108


async def read_end(stream: asyncio.StreamReader) -> bytes:
    """Read *stream* to its end; the end of it."""
    end = b""
    while piece := await stream.read(1 << 16):
        end = (end + piece)[-KEPT_BYTES:]
    return end


def error_in(
    failure: Mapping[str, Any] | None, stderr: bytes, secrets: Collection[str] = ()
) -> AcpxCommandError:
    """What acpx has told of a failure."""
    said = last_output([stderr], secrets)
    if failure is None:
        return AcpxCommandError(said or "acpx ended without a word", "RUNTIME")
    data = failure.get("data")
    codes = data if isinstance(data, dict) else {}
    code = codes.get("detailCode") or codes.get("acpxCode") or failure.get("code")
    message, details = str(failure.get("message")), details_of(failure)
    told = redact(plain(f"{message}: {details}" if details else message), secrets)
    if code in ENDED and said and said not in told:
        told = f"{told}: {said}"
    return AcpxCommandError(told, str(code), failure)
