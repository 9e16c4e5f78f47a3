"""Runs the acpx host: starts it, calls it, checks it, and restarts it when it ends.

Calls are lines of JSON to ``host.mjs``; results come back with the id of their call. The host runs
under a supervisor (``supervise.py``), which kills all descendants when the host or the server ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ... import installation
from ...codec import dumps, parse_message
from ...reload.state import Inherited, PassedDescriptors
from ...tasks import Supervisor, Tasks
from ..base import agent_unavailable
from ..catalog import AcpxError, check_versions
from ..process import process_tree
from ..process.beats import Beats
from ..process.child import Child
from .calls import CallError, CallsState, HostCalls, HostGoneError
from .running_host import RunningHost, RunningHostState

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
HOST = installation.NODE_PROGRAMS / "agents" / "host" / "host.mjs"
COMPILED = installation.NODE_MODULES / ".cache" / "compiled"
"""Node's cache of compiled code, which makes the host start a fifth faster."""

BOOT_SECS = 20
STOP_SECS = 4
BACKOFF_SECS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
STABLE_SECS = 30
WATCH_SECS = 10
FROZEN_SECS = 20


class HostState(msgspec.Struct, kw_only=True):
    """The host for the next version of the server.

    Attributes:
        pid: of the host.
    """

    running: RunningHostState
    pid: int
    versions: dict[str, str]
    generation: int
    restarts: int
    env_value: str
    calls: CallsState


class _Predecessor(NamedTuple):
    state: HostState
    inherited: Inherited


class HostProcess:
    """The Node process that embeds acpx and serves all sessions.

    Args:
        node: Node's executable.
        state_dir: acpx's own folder.
        config: the configuration of ``host.mjs``; see its ``init``.
        environ: the environment of the host and of every agent.
        handover_socket: the abstract socket at which agents hand over their stdio.
        spawned: called with the pid and the session's key of each agent process before it runs.
        ended: called when a host and all its descendants have ended.
        supervisor: runs the tasks that must not fail silently.
    """

    def __init__(
        self,
        *,
        node: str,
        state_dir: Path,
        config: Mapping[str, Any],
        environ: Mapping[str, str],
        handover_socket: str,
        spawned: Callable[[int, str], None],
        ended: Callable[[], None],
        supervisor: Supervisor,
    ) -> None:
        self.beats = Beats()
        self._node = node
        self._state_dir = state_dir
        self._config = config
        self._environ = environ
        self._handover_socket = handover_socket
        self._spawned = spawned
        self._ended = ended
        self.generation = 0
        """The number of hosts that have started. A session must be opened in each of them."""
        self.restarts = 0
        self.versions: dict[str, str] = {}
        self.pids: tuple[int, int] | None = None
        """The pids of the running host's supervisor and of the host."""
        self._env_value = secrets.token_hex(8)
        self._ready = asyncio.Event()
        self._first_boot: asyncio.Future[None] | None = None
        self._running: RunningHost | None = None
        self.calls = HostCalls()
        self._predecessor: _Predecessor | None = None
        self._supervisor = supervisor
        self._tasks = Tasks()
        self._main: asyncio.Task[None] | None = None

    def restore(self, state: HostState, inherited: Inherited) -> None:
        """Let :meth:`start` restore the host of an earlier version of the server."""
        self._predecessor = _Predecessor(state, inherited)
        self._env_value = state.env_value
        self.generation, self.restarts = state.generation, state.restarts
        self.calls.restore(state.calls)

    async def start(self) -> None:
        """Start the host and wait until it is ready.

        Raises:
            AcpxError: the host does not start, or acpx or Node has an unsupported version.
        """
        self._first_boot = asyncio.get_running_loop().create_future()
        self._main = self._supervisor.spawn(self._tasks, "acpx-host", self._run)
        try:
            async with asyncio.timeout(BOOT_SECS):
                await asyncio.shield(self._first_boot)
        except TimeoutError:
            self._first_boot.cancel()
            await self.stop()
            raise AcpxError(f"the acpx host was not ready within {BOOT_SECS} s") from None
        except AcpxError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End all agents, which have a moment to end by themselves, and then the host."""
        if self.is_ready:
            with contextlib.suppress(TimeoutError, HostGoneError, CallError):
                async with asyncio.timeout(STOP_SECS):
                    await self.send("shutdown")
        self._ready.clear()
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        await self._tasks.finish(0)

    # Calls to the host.

    async def call(
        self,
        op: str,
        *,
        generation: int | None = None,
        raw: Mapping[str, bytes] | None = None,
        **fields: Any,
    ) -> Any:
        """Call the host, and return the result.

        Args:
            generation: the host that must receive the call, since no other knows the session.
            raw: further fields, as JSON.

        Raises:
            CallError: acpx rejected or failed the call.
            HostGoneError: the host ended meanwhile; the call may have been carried out.
            Error: ``agent_unavailable`` if no host runs.
        """
        await self.wait_ready()
        return await self.send(op, generation=generation, raw=raw, **fields)

    def send(
        self,
        op: str,
        *,
        generation: int | None = None,
        raw: Mapping[str, bytes] | None = None,
        **fields: Any,
    ) -> asyncio.Future[Any]:
        """Send a call, and return its future result. The arguments are those of :meth:`call`.

        Raises:
            HostGoneError: the host does not run; the call was not sent.
        """
        if self._running is None or generation not in (None, self.generation):
            raise HostGoneError
        call_id, result = self.calls.add(fields.get("key"))
        line = dumps({"id": call_id, "op": op, **fields})
        if raw:
            line = line[:-1] + b"".join(b",%b:%b" % (dumps(k), v) for k, v in raw.items()) + b"}"
        self._running.write(line)
        return result

    # A reload of the server.

    def pause(self) -> None:
        """Leave the host's further output in its pipes."""
        if self._running is not None:
            self._running.pause()

    def resume(self) -> None:
        if self._running is not None:
            self._running.resume()

    def pack(self, passed: PassedDescriptors) -> HostState | None:
        """Return the state for the next version of the server; None if no host is ready."""
        if self._running is None or self.pids is None or not self.is_ready:
            return None
        return HostState(
            running=self._running.pack(passed),
            pid=self.pids[1],
            versions=self.versions,
            generation=self.generation,
            restarts=self.restarts,
            env_value=self._env_value,
            calls=self.calls.pack(),
        )

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    async def wait_ready(self) -> None:
        """Wait for a host that is ready.

        Raises:
            Error: ``agent_unavailable`` if no host gets ready in time.
        """
        if self.is_ready:
            return
        try:
            async with asyncio.timeout(BOOT_SECS):
                await self._ready.wait()
        except TimeoutError:
            raise agent_unavailable("the acpx host is not running") from None

    # Running the host.

    async def _run(self) -> None:
        failures = 0
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await self._run_once()
            except OSError as error:  # for example, no memory is left
                logger.error("the acpx host cannot be started: %s", error)
            except Exception:
                logger.exception("ended the acpx host after an unexpected error")
            if self.generation == 0:  # the first host did not start; `start` raises the error
                return
            lived = asyncio.get_running_loop().time() - began
            failures = 0 if lived > STABLE_SECS else failures + 1
            delay = BACKOFF_SECS[min(failures - 1, len(BACKOFF_SECS) - 1)] if failures else 0
            self.restarts += 1
            logger.error("the acpx host has ended; starting it again in %g s", delay)
            await asyncio.sleep(delay)

    async def _run_once(self) -> None:
        """Run one host from its start until all its descendants have ended."""
        host = RunningHost(self._read_line, _log_line, self.beats)
        predecessor, self._predecessor = self._predecessor, None
        if predecessor is None:
            await host.start(
                (self._node, str(HOST)),
                environ={**self._environ, **self._variables()},
                cwd=self._state_dir,
            )
        else:
            await host.restore(predecessor.state.running, predecessor.inherited)
        self._running = host
        process = host.supervisor
        if predecessor is None:
            starting = self._boot(process)
        else:
            starting = self._continue_with(predecessor.state)
        boot = self._tasks.spawn(starting, "acpx-host-boot")
        watch = self._supervisor.spawn(
            self._tasks, "acpx-host-watch", partial(self._watch, process)
        )
        try:
            await host.stdout.ended
        finally:
            self._ready.clear()
            self._running = self.pids = None
            host.close()
            self.calls.fail_all()
            watch.cancel()
            cleanup = asyncio.ensure_future(host.wait_ended(self._env_value))
            try:
                await asyncio.shield(cleanup)
            except asyncio.CancelledError:  # the cleanup must complete nevertheless
                await cleanup
                raise
            await asyncio.gather(boot, watch, return_exceptions=True)
            self._ended()

    def _variables(self) -> dict[str, str]:
        return {
            "CLAWDFORGE_HANDOVER": self._handover_socket,
            "NODE_COMPILE_CACHE": str(COMPILED),
            process_tree.HOST_VARIABLE: self._env_value,
        }

    async def _watch(self, process: Child) -> None:
        """Kill a host that does not respond any more, so that its callers get an error."""
        while True:
            await asyncio.sleep(WATCH_SECS)
            try:
                async with asyncio.timeout(FROZEN_SECS):
                    await self.send("ping")
            except TimeoutError:
                logger.error("the acpx host does not respond; killing it")
                process.kill()  # the supervisor: the host dies with it
                return
            except HostGoneError:
                return

    async def _boot(self, process: Child) -> None:
        """Initialize the host. If that fails, kill it; another one is started."""
        try:
            await self._initialize(process)
        except Exception as error:
            process.kill()  # the supervisor: the host dies with it
            assert self._first_boot is not None
            if not self._first_boot.done():
                self._first_boot.set_exception(AcpxError(f"the acpx host does not start: {error}"))
            raise

    async def _continue_with(self, state: HostState) -> None:
        """Serve with the host of an earlier version of the server, which may have other agents."""
        assert self._first_boot is not None
        assert self._running is not None
        self.versions = state.versions
        self.pids = self._running.supervisor.pid, state.pid
        self._ready.set()
        if not self._first_boot.done():
            self._first_boot.set_result(None)
        with contextlib.suppress(HostGoneError, CallError):
            await self.send("configure", config=self._config)

    async def _initialize(self, process: Child) -> None:
        assert self._first_boot is not None
        try:
            result = await self.send("init", config=self._config)
            host = int(result.pop("pid"))
            self.versions = result
            check_versions(self.versions)
            self.pids = process.pid, host
        except (HostGoneError, CallError, AcpxError) as error:
            if not self._first_boot.done():
                reason = str(error) or f"is acpx installed? `{installation.REMEDY}` does it"
                self._first_boot.set_exception(AcpxError(f"the acpx host does not start: {reason}"))
            return
        self.generation += 1
        self._ready.set()
        if not self._first_boot.done():
            self._first_boot.set_result(None)

    def _read_line(self, line: bytes) -> None:
        try:
            self._handle_line(line)
        except Exception:
            logger.exception("skipped a line of the acpx host")

    def _handle_line(self, line: bytes) -> None:
        message = parse_message(line)
        if message is not None and message.get("event") == "spawned":
            if message["key"] is not None:
                self._spawned(message["pid"], message["key"])
        elif message is None or not self.calls.complete(message):
            logger.warning("the acpx host wrote: %s", line[:500].decode(errors="replace"))


def _log_line(line: bytes) -> None:
    logger.info("acpx: %s", line[:1000].decode(errors="replace"))
