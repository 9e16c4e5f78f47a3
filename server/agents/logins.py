"""Logs agents in and out, as far as a server without a screen can, and checks their logins.

A login belongs to the server's user, so all apps share it. The agent carries it out itself: the
server starts it, calls ACP's ``authenticate`` or ``logout``, and ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from .. import safe_files
from ..codec import dumps, parse_message
from ..data_dir import DataDir
from ..errors import Error, ErrorCode, bad_request, not_supported
from .base import AgentObserver, AgentSpec, Backend, agent_failed, agent_unavailable
from .failures import LOGINS, OTHER_LOGIN, error_text, login_required, needs_login
from .login_states import LoginStates
from .process.programs import Program, Programs
from .program_output import KEPT_BYTES, last_output, redact, secrets_in, single_line

LOGIN_SECS = 60.0
"""The time for an agent to log in or out. One that waits for a person does not end before it."""
TERMINAL = "terminal"
INITIALIZE: Mapping[str, Any] = {
    "protocolVersion": 1,
    "clientCapabilities": {"fs": {"readTextFile": False, "writeTextFile": False}},
    "clientInfo": {"name": "clawdforge", "title": "clawdforge", "version": "1"},
}


class LoginBackend(Backend, Protocol):
    """A backend that can name the command of an agent."""

    logins: LoginStates

    async def command(self, name: str) -> tuple[list[str], Mapping[str, str]]:
        """Return an agent's arguments, the first a path, and its environment without an app's.

        Raises:
            Error: ``agent_unavailable``.
        """


class AgentLogins:
    """The logins of all agents.

    Args:
        data_dir: contains the folders in which agents are started.

    Attributes:
        timeout: seconds for an agent to log in or out.
    """

    def __init__(self, backend: LoginBackend, data_dir: DataDir) -> None:
        self.timeout = LOGIN_SECS
        self.states = backend.logins
        self._backend = backend
        self._data_dir = data_dir
        self._programs = Programs({"PATH": os.environ.get("PATH", "")})
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def stop(self) -> None:
        await self._programs.stop()

    async def authenticate(self, agent: str, method_id: str) -> None:
        """Log an agent in with one of its methods, and check that it works then.

        Raises:
            Error: ``bad_request`` for an unknown method, ``not_supported`` for one that needs a
                person at the server, ``login_required`` if the agent refuses, ``agent_timeout``.
        """
        async with self._locks[agent]:
            async with self._running(agent) as process:
                method = process.method(method_id)
                if method.get("type") == TERMINAL:
                    raise not_supported(
                        f"the method {method_id!r} needs a terminal on the server:"
                        f" {LOGINS.get(agent, OTHER_LOGIN)}"
                    )
                await process.call("authenticate", {"methodId": method_id})
            self.states.forget_requirements(agent)
            await self._check(agent, "")

    async def log_out(self, agent: str) -> bool:
        """Log an agent out. Return whether it needs a login now; a key may still be set.

        Raises:
            Error: ``not_supported`` if the agent cannot, ``agent_failed``, ``agent_timeout``.
        """
        async with self._locks[agent]:
            async with self._running(agent) as process:
                if not process.can_log_out:
                    raise not_supported(f"the agent {agent!r} cannot log out over ACP")
                await process.call("logout", {})
            self.states.forget_requirements(agent)
            try:
                await self._check(agent, "")
            except Error as error:
                if error.code is not ErrorCode.LOGIN_REQUIRED:
                    raise
                return True
            return False

    async def check(self, agent: str, owner: str, method_id: str) -> None:
        """Check that an agent of an app has a login; the app cannot change it.

        Raises:
            Error: ``login_required``, or ``bad_request`` for an unknown method.
        """
        async with self._locks[agent]:
            if self.states.is_required(agent, owner) is not False:
                await self._check(agent, owner)
        known = _method_ids(self.states.methods(agent) or [])
        if method_id not in known:
            raise _unknown_method(agent, method_id, known)

    async def _check(self, agent: str, owner: str) -> None:
        """Start the agent as a session of the app would, and end it."""
        async with self._folder() as folder:
            spec = AgentSpec(
                key=folder.name, agent=agent, cwd=str(folder), permission="ask", owner=owner
            )
            started = self._backend.agent(spec, AgentObserver())
            try:
                await started.start()
            finally:
                await started.hibernate()
                await self._backend.forget(spec.key)

    @contextlib.asynccontextmanager
    async def _folder(self) -> AsyncIterator[Path]:
        folder = self._data_dir.acpx / f"probe-{secrets.token_hex(8)}"
        parts = self._data_dir.split(folder)
        try:
            await asyncio.to_thread(safe_files.make_folder, *parts)
        except OSError as error:
            raise agent_unavailable(f"no folder for the agent: {error.strerror}") from None
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(safe_files.remove, *parts)

    @contextlib.asynccontextmanager
    async def _running(self, agent: str) -> AsyncIterator[_LoginProcess]:
        """The agent, started and initialized. It is ended afterwards."""
        argv, own = await self._backend.command(agent)
        environ = {**self._backend.sandbox.environ, **own}  # with the keys of providers
        async with self._folder() as folder, contextlib.AsyncExitStack() as stack:
            read_end, write_end = os.pipe()
            try:
                program = await self._programs.start(
                    argv, environ=environ, cwd=folder, stdin=read_end
                )
            except BaseException:
                os.close(write_end)
                raise
            finally:
                os.close(read_end)
            stack.push_async_callback(program.close)
            process = _LoginProcess(agent, program, environ)
            stack.push_async_callback(process.close)
            await process.open(write_end)
            try:
                async with asyncio.timeout(self.timeout):
                    initialized = await process.call("initialize", INITIALIZE)
                    process.initialized = initialized
                    self.states.note_methods(agent, initialized)
                    yield process
            except TimeoutError:
                raise Error(
                    ErrorCode.AGENT_TIMEOUT,
                    f"the agent {agent!r} did not finish in time; it may be waiting for a person:"
                    f" {LOGINS.get(agent, OTHER_LOGIN)}",
                    retryable=False,
                ) from None


class _LoginProcess:
    """A running agent that is only initialized, logged in or logged out.

    Attributes:
        initialized: its result of ``initialize``.
    """

    def __init__(self, agent: str, program: Program, environ: Mapping[str, str]) -> None:
        self.initialized: Mapping[str, Any] = {}
        self._agent = agent
        self._program = program
        self._secrets = secrets_in(environ)
        self._last_id = 0
        self._stderr = b""
        self._stdin: asyncio.WriteTransport
        self._reader = asyncio.create_task(self._read_stderr(), name="stderr of a login")

    async def open(self, stdin: int) -> None:
        pipe = os.fdopen(stdin, "wb", 0)
        loop = asyncio.get_running_loop()
        self._stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, pipe)

    async def close(self) -> None:
        self._stdin.close()
        self._program.kill()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    @property
    def can_log_out(self) -> bool:
        capabilities = self.initialized.get("agentCapabilities")
        auth = capabilities.get("auth") if isinstance(capabilities, dict) else None
        return isinstance(auth, dict) and isinstance(auth.get("logout"), dict)

    def method(self, method_id: str) -> Mapping[str, Any]:
        """The agent's method of that id.

        Raises:
            Error: ``bad_request``.
        """
        methods = self.initialized.get("authMethods")
        for method in methods if isinstance(methods, list) else []:
            if isinstance(method, dict) and method.get("id") == method_id:
                return method
        raise _unknown_method(self._agent, method_id, _method_ids(methods))

    async def call(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a request, and return its result.

        Raises:
            Error: the agent refuses, or ends.
        """
        self._last_id += 1
        self._send(id=self._last_id, method=method, params=params)
        while (message := await self._next_message()).get(
            "id"
        ) != self._last_id or "method" in message:
            if "method" in message and "id" in message:  # the server offers agents no methods here
                refused = {"code": -32601, "message": "not offered"}
                self._send(id=message["id"], error=refused)
        if (error := message.get("error")) is not None:
            text = redact(single_line(error_text(error)), self._secrets)
            if method == "authenticate" or needs_login(error):
                raise login_required(self._agent, text, self.initialized.get("authMethods"))
            raise agent_failed(f"{method}: {text or 'the agent answered with an error'}")
        result = message.get("result")
        return result if isinstance(result, dict) else {}

    def _send(self, **message: Any) -> None:
        self._stdin.write(dumps({"jsonrpc": "2.0", **message}) + b"\n")

    async def _next_message(self) -> dict[str, Any]:
        try:
            while line := await self._program.stdout.readline():
                if (message := parse_message(line)) is not None:
                    return message
        except ValueError:  # a line is too long
            raise agent_failed("the agent wrote a message that is too large") from None
        output = last_output([self._stderr], self._secrets)
        message_text = f"the agent {self._agent!r} ended"
        raise agent_unavailable(f"{message_text}: {output}" if output else message_text)

    async def _read_stderr(self) -> None:
        while piece := await self._program.stderr.read(1 << 16):
            self._stderr = (self._stderr + piece)[-KEPT_BYTES:]


def _method_ids(methods: Any) -> list[str]:
    if not isinstance(methods, list):
        return []
    return [str(method["id"]) for method in methods if isinstance(method, dict) and "id" in method]


def _unknown_method(agent: str, method_id: str, known: list[str]) -> Error:
    listed = ", ".join(known) or "none"
    return bad_request(
        f"method_id: the agent {agent!r} has no method {method_id!r}; it has {listed}"
    )
