"""The runner of all runs: their slots, the choice of their agent, and their rows.

Each run is a task. It waits for a slot, runs its agent and ends. Its deadline, a client that
disconnects and the server's stop can end it earlier. A run leaves only its row in the table
``runs``: no process, no folder and no acpx record.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from .. import safe_files
from ..accounts.accounts import Accounts
from ..agents.base import Backend
from ..agents.usage import Usage
from ..config import Settings
from ..data_dir import DataDir
from ..errors import Error, ErrorCode, bad_request, draining, failure_of, not_stored
from ..limits import ByteQuota, DiskReserve
from ..sandbox.homes import SandboxFolders
from ..storage import statements
from ..storage.queries import Queries
from ..storage.rows import RunRow, UsageRow
from ..storage.schema import Statement
from ..storage.writer import DatabaseWriter
from ..tasks import to_completion
from ..tracing import Tracer
from .acp_agent import run_acp_agent
from .claude import NOT_INSTALLED, ClaudeProgram, check_prompt_size
from .claude_output import CLAUDE
from .queue import RunQueue
from .run import Run, RunError, RunFolder, RunRequest, RunResult

logger = logging.getLogger(__name__)


class Runner:
    """The runs of all apps.

    Args:
        environ: the environment of the claude program.
        choose_agent: returns the name of an installed agent for a requested name, or for None;
            raises :class:`Error` if there is none.
        waiting_bytes: the quota for the prompts of each app.
        disk: the free space that new runs must leave.
        accounts: the budgets of the apps.

    Attributes:
        tracer: gets each run that has ended; None without one.
    """

    def __init__(
        self,
        settings: Settings,
        queries: Queries,
        writer: DatabaseWriter,
        backend: Backend,
        *,
        environ: Mapping[str, str],
        choose_agent: Callable[[str | None], Awaitable[str]],
        waiting_bytes: ByteQuota,
        disk: DiskReserve,
        accounts: Accounts,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._queries = queries
        self._writer = writer
        self._backend = backend
        self._choose_agent = choose_agent
        self._waiting_bytes = waiting_bytes
        self._disk = disk
        self._accounts = accounts
        self._clock = clock
        self._data_dir = DataDir.of(settings)
        self._grace = settings.cancel_grace_secs
        self._claude = ClaudeProgram(
            settings.claude_bin,
            environ,
            self._data_dir,
            self._grace,
            backend.environ_of,
            backend.sandbox,
        )
        self._queue = RunQueue(
            settings.max_runs,
            settings.run_queue,
            settings.run_queue_secs,
            reserved=settings.reserved_runs,
            max_per_app=settings.max_runs_per_app,
            own_limit=lambda app_name: accounts.limits_of(app_name).runs,
        )
        accounts.on_limits_changed.append(lambda _: self._queue.reconsider())
        self.tracer: Tracer | None = None
        self._runs: set[Run] = set()
        self._is_draining = False

    @property
    def queued(self) -> int:
        """The number of runs that wait for a slot."""
        return self._queue.waiting

    @property
    def running(self) -> int:
        """The number of runs that have a slot."""
        return self._queue.held

    @property
    def is_idle(self) -> bool:
        """Whether no run waits or has a slot."""
        return not self._runs

    def owner_of(self, run_id: str) -> str | None:
        """The app of a run that has not ended; None if there is no such run."""
        return next((run.request.app_name for run in self._runs if run.id == run_id), None)

    async def start(self) -> None:
        """Clean up after an earlier server process: acpx records, rows and folders of its runs."""
        await self.end_interrupted()
        await asyncio.to_thread(_remove_folders, self._data_dir)

    async def end_interrupted(self) -> None:
        """End the runs of servers that have ended, in a cluster those that were taken over."""
        for run_id in await self._queries.unfinished_runs():
            await self._backend.forget(run_id)
        await self._writer.commit([statements.end_interrupted_runs(self._queries.engine)])

    def refuse_new(self) -> None:
        """Begin no more runs, because the server stops."""
        self._is_draining = True

    async def stop(self) -> None:
        """Refuse waiting runs, give the others ``drain_secs`` to finish, then stop them."""
        self._is_draining = True
        self._queue.refuse_all(draining())
        tasks = [run.task for run in self._runs]
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.drain_secs)
        for run in self._runs:
            run.stop("shutdown")
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._claude.stop()

    def begin(self, request: RunRequest) -> Run:
        """Begin a run. The caller stops it if the result is no longer needed.

        Raises:
            Error: ``draining``, ``budget_exceeded``, or ``queue_full`` if the app's prompts exceed
                their quota.
        """
        if self._is_draining:
            raise draining()
        self._accounts.check(request.app_name)
        size = len(request.prompt.encode())
        self._waiting_bytes.acquire(request.app_name, size)
        limit = self._settings.run_timeout_secs
        run = Run(request, min(request.timeout_secs or limit, limit))
        run.task = asyncio.create_task(self._execute(run), name=f"run-{run.id}")
        self._runs.add(run)
        run.task.add_done_callback(lambda _: self._on_done(run))
        run.task.add_done_callback(lambda _: self._waiting_bytes.release(request.app_name, size))
        return run

    def _on_done(self, run: Run) -> None:
        self._runs.discard(run)
        if not run.task.cancelled() and (error := run.task.exception()) is not None:
            # The caller of begin() gets the error from the task.
            if not isinstance(error, Error) or error.code is ErrorCode.INTERNAL:
                logger.error("run %s failed unexpectedly", run.id, exc_info=error)
            elif isinstance(error, RunError):
                logger.info("run %s failed: %s: %s", run.id, error.code, error.message[:300])

    async def _execute(self, run: Run) -> RunResult:
        await self._disk.check(run.request.app_name)
        async with self._queue.slot(run.stopped, run.request.app_name):
            await self._accounts.update(run.request.app_name)
            self._accounts.check(run.request.app_name)  # others may have used it up meanwhile
            started_at = time.monotonic()
            agent, execute = await self._choose(run)
            await self._store_start(run, agent)
            failure: RunError | None = None
            try:
                result = await self._execute_in_sandbox(run, execute)
            except Exception as error:  # any failure ends the run
                failure = _as_run_error(error)
                failure.duration_ms = _ms_since(started_at)
                await self._store_end(
                    run,
                    failure.duration_ms,
                    failure.stop_reason,
                    error=failure.code,
                    counted=self._count_usage(run, agent),
                )
                raise failure from error
            finally:
                if (tracer := self.tracer) is not None:
                    self._trace_end(tracer, run, agent, time.monotonic() - started_at, failure)
            result = msgspec.structs.replace(result, duration_ms=_ms_since(started_at))
            await self._store_end(
                run,
                result.duration_ms,
                result.stop_reason,
                result_bytes=len(result.result),
                counted=self._count_usage(run, agent),
            )
            return result

    async def _execute_in_sandbox(
        self, run: Run, execute: Callable[[], Awaitable[RunResult]]
    ) -> RunResult:
        """Execute the run with copies of its files, and delete what its sandbox leaves."""
        folders = self._backend.sandbox.folders
        if not self._backend.sandbox.of(run.request.app_name).is_on:
            return await execute()
        try:
            await asyncio.to_thread(folders.create, run.id)
            files = await asyncio.to_thread(folders.add_files, run.id, run.request.files)
            run.request = msgspec.structs.replace(run.request, files=files)
            return await execute()
        except OSError as error:
            logger.error("run %s: its sandbox cannot be made: %s", run.id, error)
            raise not_stored() from None
        finally:
            await asyncio.to_thread(_remove_sandbox, folders, run.id)

    async def _choose(self, run: Run) -> tuple[str, Callable[[], Awaitable[RunResult]]]:
        """Choose the agent.

        Returns:
            The agent's name, and the function that runs it.

        Raises:
            Error: the request names an unknown agent, or has options that the agent lacks.
        """
        request = run.request
        if request.agent in (None, CLAUDE):
            program = await self._claude.find()
            if program is not None:
                check_prompt_size(request)
                return CLAUDE, functools.partial(self._claude.execute, run, program)
            # If the operator has not named a program, an acpx agent may replace it.
            if self._settings.claude_bin != CLAUDE:
                return CLAUDE, _raise_unavailable(NOT_INSTALLED)
        elif request.effort is not None:
            raise bad_request("effort: only claude supports it")
        try:
            name = await self._choose_agent(request.agent)
        except Error as error:
            if error.code is not ErrorCode.AGENT_UNAVAILABLE:
                raise
            message = NOT_INSTALLED if request.agent == CLAUDE else error.message
            return request.agent or CLAUDE, _raise_unavailable(message)
        folder = RunFolder(self._data_dir, run.id)
        return name, functools.partial(run_acp_agent, self._backend, run, name, folder, self._grace)

    async def _store_start(self, run: Run, agent: str) -> None:
        request = run.request
        row = RunRow(
            id=run.id,
            app_name=request.app_name,
            agent=agent,
            model=request.model,
            prompt_bytes=len(request.prompt.encode()),
            started_at=self._clock(),
        )
        await to_completion(self._writer.commit([statements.insert_run(row)]))

    def _trace_end(
        self, tracer: Tracer, run: Run, agent: str, elapsed: float, failure: RunError | None
    ) -> None:
        tracer.end_work(
            request_id=None,
            session_id=None,
            elapsed=elapsed,
            attributes={
                "gen_ai.agent.name": agent,
                "gen_ai.request.model": run.request.model,
                "clawdforge.app": run.request.app_name,
                "clawdforge.run_id": run.id,
            },
            usage=msgspec.to_builtins(run.usage),
            error=str(failure.code) if failure is not None else None,
        )

    def _count_usage(self, run: Run, agent: str) -> list[Statement]:
        """Count what the agent has used. Returns the statement that stores it, if it is known."""
        proxied = self._accounts.proxied.take(run.id)
        if proxied is not None:  # the agent may report less, or nothing
            run.usage = run.usage.at_least(proxied)
        if run.usage == Usage():
            return []
        now = self._clock()
        self._accounts.spend(run.request.app_name, run.usage, now)
        row = UsageRow.of(
            msgspec.to_builtins(run.usage),
            at=now,
            app_name=run.request.app_name,
            session_id=None,
            turn_index=None,
            agent=agent,
            model=run.request.model,
        )
        return [statements.insert_usage(row)]

    async def _store_end(
        self,
        run: Run,
        duration_ms: int,
        stop_reason: str,
        *,
        result_bytes: int | None = None,
        error: str | None = None,
        counted: Sequence[Statement] = (),
    ) -> None:
        try:
            await self._writer.commit(
                [
                    *counted,
                    statements.end_run(
                        run.id,
                        result_bytes=result_bytes,
                        duration_ms=duration_ms,
                        stop_reason=stop_reason,
                        error=error,
                    ),
                ]
            )
        except Error:
            # The client still gets the result. The next start of the server ends the row.
            logger.exception("run %s: cannot store its end", run.id)


def _remove_sandbox(folders: SandboxFolders, run_id: str) -> None:
    try:
        folders.remove(run_id)
    except OSError as error:
        logger.error("cannot remove the sandbox of a run: %s", error)


def _remove_folders(data_dir: DataDir) -> None:
    try:
        safe_files.empty(*data_dir.split(data_dir.runs))
    except OSError as error:
        logger.error("cannot remove the folders of earlier runs: %s", error)


def _raise_unavailable(message: str) -> Callable[[], Awaitable[RunResult]]:
    async def raise_unavailable() -> RunResult:
        raise RunError(ErrorCode.AGENT_UNAVAILABLE, message)

    return raise_unavailable


def _as_run_error(error: Exception) -> RunError:
    """Convert *error*. The message of an unexpected exception is only logged."""
    if isinstance(error, RunError):
        return error
    failure = failure_of(error, "a run")
    return RunError(
        failure.code, failure.message, retryable=failure.retryable, fields=failure.fields
    )


def _ms_since(started_at: float) -> int:
    return int((time.monotonic() - started_at) * 1000)
