"""The stored responses of runs, which clients fetch later: by id, or by an idempotency key."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ..codec import dumps
from ..errors import ErrorCode
from ..storage.database import Database
from ..storage.drivers.base import OF_ENDED_SERVERS
from ..storage.rows import RunResultRow
from ..storage.schema import Statement, columns
from ..storage.writer import DatabaseWriter
from ..tasks import to_completion

_SELECT = (
    f"SELECT {columns(RunResultRow)} FROM run_results"  # noqa: S608 - our own columns
    " WHERE app_name = ? AND (status IS NULL OR expires_at > ?) AND "
)
KEPT_SECS = 3600
"""The time for which a response is stored after the end of its run."""


class StoredResponse(msgspec.Struct, frozen=True):
    """The response of a run.

    Attributes:
        body: encoded JSON.
        run_id: of a response that was read from the database.
    """

    status: int
    body: bytes
    run_id: str = ""


class RunResults:
    """The table ``run_results``. Other apps' runs do not exist for an app.

    Every method raises :class:`DatabaseError` if the database cannot be read, and an ``internal``
    error if it cannot be written.

    Args:
        max_bytes_per_app: of stored responses. Above it an app's oldest ones are deleted.
        clock: returns unix seconds.
    """

    def __init__(
        self,
        database: Database,
        writer: DatabaseWriter,
        *,
        max_bytes_per_app: int,
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._writer = writer
        self._max_bytes_per_app = max_bytes_per_app
        self._clock = clock

    async def start(self) -> None:
        """Store a response for the runs of servers that have ended."""
        interrupted = _interrupted()
        await self._commit(
            "UPDATE run_results SET status = ?, body = ?, expires_at = ? WHERE status IS NULL"  # noqa: S608
            f" AND {OF_ENDED_SERVERS[self._database.engine]}",
            interrupted.status,
            interrupted.body,
            self._clock() + KEPT_SECS,
        )

    async def add(self, run_id: str, app_name: str, client_id: str | None) -> None:
        """Store that a run has begun."""
        await self._commit(
            "INSERT INTO run_results (id, app_name, client_id, expires_at) VALUES (?, ?, ?, ?)",
            run_id,
            app_name,
            client_id,
            self._clock() + KEPT_SECS,
        )

    async def finish(self, run_id: str, app_name: str, response: StoredResponse) -> None:
        """Store the response of a run, unless the run was deleted."""
        await self._commit(
            "UPDATE run_results SET status = ?, body = ?, expires_at = ? WHERE id = ?",
            response.status,
            response.body,
            self._clock() + KEPT_SECS,
            run_id,
        )
        await self._commit(
            "DELETE FROM run_results WHERE id IN (SELECT id FROM ("
            " SELECT id, sum(length(body)) OVER (ORDER BY expires_at DESC, id) AS total"
            " FROM run_results WHERE app_name = ? AND body IS NOT NULL) AS kept WHERE total > ?"
            " AND id <> ?)",
            app_name,
            self._max_bytes_per_app,
            run_id,
        )

    async def get(self, app_name: str, run_id: str) -> RunResultRow | None:
        return await self._fetch(_SELECT + "id = ?", app_name, run_id)

    async def find(self, app_name: str, client_id: str) -> RunResultRow | None:
        """The run that has the client's key."""
        return await self._fetch(_SELECT + "client_id = ?", app_name, client_id)

    async def delete(self, run_id: str) -> None:
        await self._commit("DELETE FROM run_results WHERE id = ?", run_id)

    async def sweep(self) -> None:
        """Delete the expired responses. Runs in progress stay."""
        await self._commit(
            "DELETE FROM run_results WHERE expires_at <= ? AND status IS NOT NULL", self._clock()
        )

    async def _fetch(self, sql: str, app_name: str, value: str) -> RunResultRow | None:
        rows = await self._database.fetch(sql, app_name, self._clock(), value)
        return RunResultRow(*rows[0]) if rows else None

    async def _commit(self, sql: str, *values: object) -> None:
        statement: Statement = (sql, values)
        await to_completion(self._writer.commit([statement]))


def _interrupted() -> StoredResponse:
    """The response of a run that ended with its server."""
    body = {
        "ok": False,
        "error": "the server restarted during the run",
        "code": ErrorCode.SERVER_RESTARTED,
        "retryable": True,
        "stderr": "",
        "duration_ms": 0,
        "stop_reason": "cancelled",
        "request_id": "",
    }
    return StoredResponse(502, dumps(body))
