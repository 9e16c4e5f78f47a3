"""Runs that continue without their client: in the background, or under an idempotency key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ..errors import failure_of, not_found
from ..tasks import Tasks
from .results import RunResults, StoredResponse
from .run import Run, RunResult

logger = logging.getLogger(__name__)

Render = Callable[[RunResult | Exception], StoredResponse]
"""Makes the response of a run from its result or its failure."""


class RunJob:
    """A run in progress whose response is stored.

    Attributes:
        done: the response.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.done: asyncio.Future[StoredResponse] = asyncio.get_running_loop().create_future()
        self.is_deleted = False


class RunJobs:
    """The runs of all apps whose responses are stored."""

    def __init__(self, results: RunResults) -> None:
        self._results = results
        self._jobs: dict[str, RunJob] = {}
        self._by_key: dict[tuple[str, str], RunJob] = {}
        self._beginning = asyncio.Lock()
        self._tasks = Tasks()

    @property
    def is_idle(self) -> bool:
        """Whether every response is stored."""
        return not self._jobs

    async def stop(self) -> None:
        """Wait until the responses of the runs, which have been stopped, are stored."""
        await self._tasks.finish(5)

    def stop_app(self, app_name: str) -> None:
        """Stop the runs of an app whose token is revoked."""
        for job in self._jobs.values():
            if job.run.request.app_name == app_name:
                job.run.stop("disconnect")

    async def begin(
        self, app_name: str, client_id: str | None, start: Callable[[], Run], render: Render
    ) -> RunJob | StoredResponse:
        """Begin a run, unless the app has one with that key: then return that one.

        Raises:
            Error: the errors of *start*, or ``internal`` if nothing can be stored.
        """
        if client_id is None:
            return await self._begin(app_name, None, start, render)
        async with self._beginning:  # for the time of two statements of the database
            if (job := self._by_key.get((app_name, client_id))) is not None:
                return job
            row = await self._results.find(app_name, client_id)
            if row is not None and row.status is not None and row.body is not None:
                return StoredResponse(row.status, row.body, row.id)
            return await self._begin(app_name, client_id, start, render)

    async def _begin(
        self, app_name: str, client_id: str | None, start: Callable[[], Run], render: Render
    ) -> RunJob:
        run = start()
        try:
            await self._results.add(run.id, app_name, client_id)
        except BaseException:
            run.stop("disconnect")
            raise
        job = self._jobs[run.id] = RunJob(run)
        if client_id is not None:
            self._by_key[app_name, client_id] = job
        self._tasks.spawn(self._finish(job, client_id, render), f"run-job-{run.id}")
        return job

    async def _finish(self, job: RunJob, client_id: str | None, render: Render) -> None:
        run, app_name = job.run, job.run.request.app_name
        try:
            await asyncio.wait({run.task})
            error = run.task.exception()
            outcome = error if isinstance(error, Exception) else run.task.result()
            response = render(outcome)
            if not job.is_deleted:
                await self._results.finish(run.id, app_name, response)
        except Exception as error:  # noqa: BLE001 - failure_of logs it
            response = render(failure_of(error, "storing the result of a run"))
        finally:
            self._jobs.pop(run.id, None)
            if client_id is not None:
                self._by_key.pop((app_name, client_id), None)
        job.done.set_result(response)

    async def get(self, app_name: str, run_id: str) -> StoredResponse | None:
        """The response of a run; None while it is in progress.

        Raises:
            Error: ``not_found``.
        """
        job = self._jobs.get(run_id)
        if job is not None and job.run.request.app_name == app_name and not job.is_deleted:
            return None
        row = await self._results.get(app_name, run_id)
        if row is None:
            raise not_found()
        if row.status is None or row.body is None:
            return None
        return StoredResponse(row.status, row.body, row.id)

    async def delete(self, app_name: str, run_id: str) -> None:
        """End a run, and delete its response.

        Raises:
            Error: ``not_found``.
        """
        await self.get(app_name, run_id)
        job = self._jobs.get(run_id)
        if job is not None:
            job.is_deleted = True
            job.run.stop("disconnect")
        await self._results.delete(run_id)

    async def end_interrupted(self) -> None:
        """Store a response for the runs of servers that have ended."""
        await self._results.start()

    async def sweep(self) -> None:
        await self._results.sweep()
