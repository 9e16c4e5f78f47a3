"""acpx's command line for one session, with a home and a starter process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ... import installation, safe_files
from ...codec import dumps, parse_message
from ...data_dir import DataDir
from ...sandbox.folder_locator import FolderError
from ...sandbox.levels import RESTRICT
from ...sandbox.sandbox import Sandbox
from ..base import AgentSpec, unusable_folder
from ..failures import details_of
from ..process import process_tree
from ..process.programs import Program, Programs
from ..program_output import KEPT_BYTES, MIN_SECRET, last_output, redact, secrets_in, single_line
from .relayed_settings import RelaySettings
from .settings_relay import RELAY_COMMAND

WITHOUT_PROJECT_CONFIG = (
    installation.NODE_PROGRAMS / "agents" / "cli" / "without_project_config.mjs"
)
FOREVER_SECS = 2**31 // 1000
"""acpx's longest timeout. The server ends turns; acpx must not."""
ALL_MCP_SERVERS = {"mcpCapabilities": {"http": True, "sse": True}}
"""The cli backend does not know the agent's capabilities: the agent refuses what it cannot do."""
PLAN, PID = "sandbox.json", "agent.pid"
"""The plan of the agent's sandbox, and the id of its process, in acpx's home of the session."""
ENDED = ("AGENT_DISCONNECTED", "AGENT_STARTUP_FAILED")
"""acpx's codes for an agent that has ended; the reason may be on its stderr."""

JOURNAL_CORRUPT = "WATCH_JOURNAL_CORRUPT"
"""acpx's code for a message of an agent in its files that acpx itself does not accept."""

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


class Acpx(msgspec.Struct, frozen=True):
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
        sandbox: restricts the agent, which acpx starts. acpx itself is not restricted.
        agent_argv: the agent's command.
        agent_environ: further variables of the agent.

    Attributes:
        settings: those in which the agent must be before it gets a prompt; None for any. They hold
            for processes that were started with some.
        agent_sandbox: the sandbox in which the next process of the agent starts.
    """

    def __init__(
        self,
        acpx: Acpx,
        spec: AgentSpec,
        data_dir: DataDir,
        home: Path,
        sandbox: Sandbox,
        *,
        agent_argv: Sequence[str],
        agent_environ: Mapping[str, str],
    ) -> None:
        self._acpx = acpx
        self._spec = spec
        self._data_dir = data_dir
        self._home = home
        self._sandbox = sandbox
        self.settings: RelaySettings | None = None
        self._plan = home / PLAN
        launcher = [sys.executable, "-I", "-S", str(RESTRICT), str(self._plan)]
        self._agent = shlex.join([*launcher, *agent_argv])
        self._own_environ = agent_environ
        self._env_value = f"{spec.key}:{secrets.token_hex(4)}"
        # acpx is not in the sandbox: a client's variables must not reach it, only the agent.
        tag = {process_tree.AGENT_VARIABLE: self._env_value}
        self._environ = {**acpx.environ, "HOME": str(home), **tag}
        self._programs = Programs(acpx.environ)
        self._mcp_config = home / "mcp.json" if spec.parameters.mcp_servers else acpx.no_mcp

    def rebind(self, spec: AgentSpec) -> None:
        """Use *spec*, which may have another permission policy, for later commands."""
        self._spec = spec

    @property
    def agent_sandbox(self) -> Sandbox:
        return self._sandbox.of(self._spec.owner)

    @property
    def running(self) -> bool:
        return self._programs.running

    @property
    def secrets(self) -> Collection[str]:
        """The values that must not be shown if acpx or its agent writes them."""
        own = {value for value in self._spec.parameters.secrets() if len(value) >= MIN_SECRET}
        return secrets_in({**self._environ, **self._own_environ}) | own

    async def start(
        self, *command: str, stdin: bytes = b"", options: Sequence[str] = ()
    ) -> Program:
        """Start a command; close it when it is no longer needed."""
        argv = [
            *(self._acpx.node, "--import", WITHOUT_PROJECT_CONFIG.as_uri(), self._acpx.script),
            *("--format", "json", "--json-strict"),
            *("--cwd", self._spec.cwd, "--agent", self._agent),
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
        with safe_files.folder(*self._data_dir.split(self._home), make=True):
            pass
        if self._mcp_config != self._acpx.no_mcp:
            self._store_mcp_config()
        self._store_plan()
        descriptor = os.memfd_create("stdin")
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(stdin)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def _store_mcp_config(self) -> None:
        """Store the session's MCP servers for acpx, in a file that only the server's user reads."""
        spec = self._spec
        servers = spec.parameters.request_fields(ALL_MCP_SERVERS, spec.agent)["mcpServers"]
        path = self._data_dir.split(self._mcp_config)
        safe_files.remove(*path)
        with safe_files.new_file(*path) as file:
            file.write(dumps({"mcpServers": servers}))

    def _store_plan(self) -> None:
        """Store the plan for the launcher of the agent. acpx decides when to start it."""
        sandbox = self.agent_sandbox
        try:
            plan = sandbox.plan(self._spec, self._own_environ)
        except FolderError as error:
            raise unusable_folder(str(error)) from None
        if not sandbox.is_on:
            # The agent uses the logins in the home of the server's user, not acpx's home.
            home = self._acpx.environ.get("HOME")
            plan["environ"] = {**({"HOME": home} if home is not None else {}), **plan["environ"]}
            plan["unset"] = ["HOME"]
        if self.settings is not None:
            plan["relay"], plan["settings"] = RELAY_COMMAND, msgspec.to_builtins(self.settings)
        plan["pid_file"] = str(self._home / PID)
        names, part = self._data_dir.split(self._home), f"{PLAN}.part"
        safe_files.remove(*names, part)
        with safe_files.new_file(*names, part) as file:
            file.write(dumps(plan))
        with safe_files.folder(*names) as folder:
            os.replace(part, PLAN, src_dir_fd=folder, dst_dir_fd=folder)

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

    def open_agent(self) -> int | None:
        """Open a descriptor of the agent's process; None if it has ended. Blocking."""
        names = self._data_dir.split(self._home)
        try:
            with safe_files.folder(*names) as folder, safe_files.open_file(PID, folder) as file:
                return os.pidfd_open(int(file.read(20)))
        except (OSError, ValueError):
            return None

    def delete_journal(self) -> None:
        """Delete acpx's copy of the messages, which nothing needs. Blocking; nothing may run."""
        names = self._data_dir.split(self._home)
        for file in (self._home / ".acpx" / "sessions").glob("*.stream*.ndjson"):
            safe_files.remove(*names, ".acpx", "sessions", file.name)

    async def end(self, grace: float = 0) -> None:
        """End all processes of the session, and kill those that are left after *grace* seconds."""
        if not await self._programs.stop(grace):
            tag = process_tree.env_tag(process_tree.AGENT_VARIABLE, self._env_value)
            await asyncio.to_thread(process_tree.end_tagged, tag)
        await asyncio.to_thread(shutil.rmtree, socket_folder(self._home), ignore_errors=True)


def socket_folder(home: Path) -> Path:
    """The temporary folder in which acpx creates the sockets of a home."""
    return Path("/tmp") / f"acpx-{hashlib.sha256(str(home).encode()).hexdigest()[:10]}"  # noqa: S108


def has_sockets(home: Path) -> bool:
    """Whether a process of this machine has sockets of a home, another node's too. Blocking."""
    with contextlib.suppress(OSError):
        return f" {socket_folder(home)}/" in Path("/proc/net/unix").read_text()
    return False


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
