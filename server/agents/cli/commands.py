"""acpx's command line for one session, with a home and a starter process of its own."""

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
from ...codec import dumps, parse_message
from ...data_dir import DataDir
from ..base import AgentSpec, misplaced, real_folder
from ..failures import details_of
from ..process import process_tree
from ..process.programs import Program, Programs
from ..program_output import KEPT_BYTES, MIN_SECRET, last_output, redact, secrets_in, single_line

FOREVER_SECS = 2**31 // 1000
"""acpx's longest timeout. The server ends turns; acpx must not."""
ALL_MCP_SERVERS = {"mcpCapabilities": {"http": True, "sse": True}}
"""The cli backend does not know the agent's capabilities: the agent refuses what it cannot do."""
ENDED = ("AGENT_DISCONNECTED", "AGENT_STARTUP_FAILED")
"""acpx's codes for an agent that has ended; the reason may be on its stderr."""

POLICIES = {
    "approve-all": "--approve-all",
    "approve-reads": "--approve-reads",
    "deny-all": "--deny-all",
    # A session of the host may have this policy; acpx's commands cannot ask a client.
    "ask": "--deny-all",
}


class AcpxCommandError(Exception):
    """A command failed.

    Attributes:
        code: acpx's code, or the number that the agent reported.
        failure: the JSON-RPC error that acpx wrote, if it wrote one.
    """

    def __init__(self, message: str, code: str, failure: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.failure = failure

    def __str__(self) -> str:
        return f"{super().__str__().strip()[:1500]} ({self.code})"


@dataclasses.dataclass(frozen=True, slots=True)
class Acpx:
    """The installed acpx and the parameters of every command.

    Attributes:
        node, script: the program.
        environ: its environment, without HOME.
        no_mcp: an MCP configuration without servers.
    """

    node: str
    script: str
    environ: Mapping[str, str]
    no_mcp: Path


class AcpxCommands:
    """Runs one session's commands and ends all their processes.

    Args:
        home: acpx's home for this session alone, with its record and its queue.
        agent_argv: the agent's command.
        agent_environ: the agent's variables, which precede those of acpx.
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
        # The agent uses the logins in the home of the server's user.
        user_home = [f"HOME={environ['HOME']}"] if "HOME" in environ else ["-u", "HOME"]
        self._agent = shlex.join(["/usr/bin/env", *user_home, *agent_argv])
        self._env_value = f"{spec.key}:{secrets.token_hex(4)}"
        self._environ = {**environ, "HOME": str(home), process_tree.AGENT_VARIABLE: self._env_value}
        self._programs = Programs(acpx.environ)
        self._mcp_config = home / "mcp.json" if spec.parameters.mcp_servers else acpx.no_mcp

    def rebind(self, spec: AgentSpec) -> None:
        """Use *spec*, which may have another permission policy, for later commands."""
        self._spec = spec

    @property
    def running(self) -> bool:
        return self._programs.running

    @property
    def secrets(self) -> Collection[str]:
        """The values that must not be shown if acpx or its agent writes them."""
        own = {value for value in self._spec.parameters.secrets() if len(value) >= MIN_SECRET}
        return secrets_in(self._environ) | own

    async def start(
        self, *command: str, stdin: bytes = b"", options: Sequence[str] = ()
    ) -> Program:
        """Start a command; close it when it is no longer needed."""
        argv = [
            *(self._acpx.node, self._acpx.script, "--format", "json", "--json-strict"),
            *("--cwd", self._spec.cwd, "--agent", self._agent),
            # The options also override a workspace's `.acpxrc.json`.
            *(POLICIES[self._spec.permission], "--non-interactive-permissions", "deny"),
            *("--mcp-config", str(self._mcp_config), "--auth-policy", "skip"),
            *("--timeout", str(FOREVER_SECS), "--ttl", "0"),
            # As with the host: agents use tools of their own.
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
        """Create the home, and return a file in memory, with *stdin* as its content."""
        # acpx resolves the path again: it must not have been replaced by a link since.
        if os.path.realpath(self._spec.cwd) != real_folder(self._spec.cwd, self._data_dir.path):
            raise misplaced()
        with safe_files.folder(*self._data_dir.split(self._home), make=True):
            pass
        if self._mcp_config != self._acpx.no_mcp:
            self._store_mcp_config()
        descriptor = os.memfd_create("stdin")
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(stdin)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def _store_mcp_config(self) -> None:
        """Store the session's MCP servers for acpx, in a file that only the server's user reads."""
        servers = self._spec.parameters.request_fields(ALL_MCP_SERVERS)["mcpServers"]
        path = self._data_dir.split(self._mcp_config)
        safe_files.remove(*path)
        with safe_files.new_file(*path) as file:
            file.write(dumps({"mcpServers": servers}))

    async def run(self, *command: str, options: Sequence[str] = ()) -> dict[str, Any]:
        """Run a command to its end, and return the object that it wrote.

        Raises:
            AcpxCommandError: the command failed.
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
        """End all processes of the session, and kill those that are left after *grace* seconds."""
        if not await self._programs.stop(grace):
            tag = process_tree.env_tag(process_tree.AGENT_VARIABLE, self._env_value)
            await asyncio.to_thread(process_tree.end_tagged, tag)
        await asyncio.to_thread(shutil.rmtree, socket_folder(self._home), ignore_errors=True)


def socket_folder(home: Path) -> Path:
    """The temporary folder in which acpx creates the sockets of a home."""
    return Path("/tmp") / f"acpx-{hashlib.sha256(str(home).encode()).hexdigest()[:10]}"  # noqa: S108


async def read_end(stream: asyncio.StreamReader) -> bytes:
    """Read *stream* to its end, and return its last :data:`KEPT_BYTES` bytes."""
    end = b""
    while piece := await stream.read(1 << 16):
        end = (end + piece)[-KEPT_BYTES:]
    return end


def error_in(
    failure: Mapping[str, Any] | None, stderr: bytes, secrets: Collection[str] = ()
) -> AcpxCommandError:
    """Make an exception of acpx's own error and the last lines of its stderr."""
    output = last_output([stderr], secrets)
    if failure is None:
        return AcpxCommandError(output or "acpx ended without output", "RUNTIME")
    data = failure.get("data")
    codes = data if isinstance(data, dict) else {}
    code = codes.get("detailCode") or codes.get("acpxCode") or failure.get("code")
    message, details = str(failure.get("message")), details_of(failure)
    text = redact(single_line(f"{message}: {details}" if details else message), secrets)
    if code in ENDED and output and output not in text:
        text = f"{text}: {output}"
    return AcpxCommandError(text, str(code), failure)
