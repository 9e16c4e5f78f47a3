"""All runs: their places, which of the two ways each takes, and a row of each.

A run is a task of its own. It waits for a place, works, ends in time (or is
ended: by its deadline, a client that hung up, the server's stop), and leaves
nothing but a row in ``runs``: no process, no folder, no record at acpx.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from .. import safe_files
from ..agents.base import Backend
from ..config import Settings
from ..errors import Error, bad_request, draining
from ..limits import ByteQuota, DiskReserve
from ..sessions.event_log import DatabaseWriter
from ..storage import database as store
from ..storage.database import Database
from ..storage.failures import failure_of
from ..storage.schema import RunRow
from ..tasks import to_completion
from .acp_agent import run_turn
from .answers import Answer, RunFailed
from .claude import CLAUDE, NOT_INSTALLED, Claude, check_size
from .queue import Queue
from .run import Run, RunRequest

logger = logging.getLogger(__name__)


class Runner:
    """The runs of all apps.

    Args:
        environ: of the program: an allow-list.
        choose_agent: an agent's name, or None, to the name of one that is installed; it
            raises :class:`Error` where there is none.
        waiting_bytes: what an app's prompts may hold.
        disk: what must be free of it.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        writer: DatabaseWriter,
        backend: Backend,
        *,
        environ: Mapping[str, str],
        choose_agent: Callable[[str | None], Awaitable[str]],
        waiting_bytes: ByteQuota,
        disk: DiskReserve,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._store = database
        self._writer = writer
        self._backend = backend
        self._choose_agent = choose_agent
        self._waiting_bytes = waiting_bytes
        self._disk = disk
        self._clock = clock
        self._folder = settings.data_dir / "runs"
        self._grace = settings.cancel_grace_secs
        self._claude = Claude(settings.claude_bin, environ, self._folder, self._grace)
        self._queue = Queue(
            settings.max_runs,
            settings.run_queue,
            settings.run_queue_secs,
            reserve=settings.reserved_runs,
            each=settings.max_runs_per_app,
        )
        self._runs: set[Run] = set()
        self._is_draining = False

    @property
    def queued(self) -> int:
        return self._queue.waiting

    @property
    def running(self) -> int:
        return self._queue.held

    async def start(self) -> None:
        """Take up what an earlier server left."""
        for run_id in await self._store.unfinished_runs():
            await self._backend.forget(run_id)
        await self._writer.commit([store.end_lost_runs()])
        await asyncio.to_thread(_make_empty, self._folder)

    async def stop(self) -> None:
        """Let what runs finish, for ``drain_secs``, and end the rest."""
        self._is_draining = True
        self._queue.refuse_all(draining())
        tasks = [run.outcome for run in self._runs]
        if tasks:
            await asyncio.wait(tasks, timeout=self._settings.drain_secs)
        for run in self._runs:
            run.stop("stop")
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._claude.stop()

    def begin(self, request: RunRequest) -> Run:
        """Begin a run; whoever asked for it stops it when the answer is no longer wanted.

        Raises:
            Error: ``draining``, or ``queue_full`` if the app's prompts have too many bytes.
        """
        if self._is_draining:
            raise draining()
        size = len(request.prompt.encode())
        self._waiting_bytes.take(request.app_name, size)
        longest = self._settings.run_timeout_secs
        run = Run(request, min(request.timeout_secs or longest, longest))
        run.outcome = asyncio.create_task(self._run(run), name=f"run-{run.id}")
        self._runs.add(run)
        run.outcome.add_done_callback(lambda _: self._done(run))
        run.outcome.add_done_callback(lambda _: self._waiting_bytes.give(request.app_name, size))
        return run

    def _done(self, run: Run) -> None:
        self._runs.discard(run)
        if not run.outcome.cancelled() and (error := run.outcome.exception()) is not None:
            # For the log alone: whoever asked has it from the task.
            if not isinstance(error, Error) or error.code == "internal":
                logger.error("run %s broke", run.id, exc_info=error)
            elif isinstance(error, RunFailed):
                logger.info("run %s: %s: %s", run.id, error.code, error.message[:300])

    # The way of a run.

    async def _run(self, run: Run) -> Answer:
        await self._disk.check()
        async with self._queue.hold(run.stopped, run.request.app_name):
            began = time.monotonic()
            agent, work = await self._choose(run)
            await self._note_start(run, agent)
            try:
                answer = await work()
            except Exception as error:  # whatever it is, it is this run's end
                failure = _failed(error)
                failure.duration_ms = _ms_since(began)
                await self._note_failure(run, failure)
                raise failure from error
            answer = dataclasses.replace(answer, duration_ms=_ms_since(began))
            await self._note_end(
                run, answer.duration_ms, answer.stop_reason, result_bytes=len(answer.result)
            )
            return answer

    async def _choose(self, run: Run) -> tuple[str, Callable[[], Awaitable[Answer]]]:
        """The agent's name, and what runs it.

        Raises:
            Error: the client has asked for what cannot be.
        """
        request = run.request
        if request.agent in (None, CLAUDE):
            program = await self._claude.find()
            if program is not None:
                check_size(request)
                return CLAUDE, functools.partial(self._claude.run, run, program)
            # If the operator named no program, an agent of acpx's may answer in its place.
            if self._settings.claude_bin != CLAUDE:
                return CLAUDE, _fail(NOT_INSTALLED)
        elif request.effort is not None:
            raise bad_request("effort: only claude takes one")
        try:
            name = await self._choose_agent(request.agent)
        except Error as error:
            if error.code != "agent_unavailable":
                raise
            why = NOT_INSTALLED if request.agent == CLAUDE else error.message
            return request.agent or CLAUDE, _fail(why)
        folder = self._folder / run.id
        return name, functools.partial(run_turn, self._backend, run, name, folder, self._grace)

    async def _note_start(self, run: Run, agent: str) -> None:
        request = run.request
        row = RunRow(
            id=run.id,
            app_name=request.app_name,
            agent=agent,
            model=request.model,
            prompt_bytes=len(request.prompt.encode()),
            started_at=self._clock(),
        )
        await to_completion(self._writer.commit([store.insert_run(row)]))

    async def _note_failure(self, run: Run, failure: RunFailed) -> None:
        await self._note_end(run, failure.duration_ms, failure.stop_reason, error=failure.code)

    async def _note_end(
        self,
        run: Run,
        duration_ms: int,
        stop_reason: str,
        *,
        result_bytes: int | None = None,
        error: str | None = None,
    ) -> None:
        try:
            await self._writer.commit(
                [
                    store.end_run(
                        run.id,
                        result_bytes=result_bytes,
                        duration_ms=duration_ms,
                        stop_reason=stop_reason,
                        error=error,
                    )
                ]
            )
        except Error:
            # The answer is worth more than its row; the next start ends the row.
            logger.exception("run %s: its end could not be stored", run.id)


def _make_empty(folder: Path) -> None:
    try:
        safe_files.empty(folder.parent, folder.name)
    except OSError as error:
        logger.error("what earlier runs left cannot be removed: %s", error)


def _fail(message: str) -> Callable[[], Awaitable[Answer]]:
    async def fail() -> Answer:
        raise RunFailed("agent_unavailable", message)

    return fail


def _failed(error: Exception) -> RunFailed:
    """*error* as a run's own failure; a defect's words are for the log alone."""
    if isinstance(error, RunFailed):
        return error
    failure = failure_of(error, "a run")
    return RunFailed(
        failure.code, failure.message, retryable=failure.retryable, fields=failure.fields
    )


def _ms_since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)
