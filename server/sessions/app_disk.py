"""The disk space of the apps that have a limit of their own: folders, logs and uploads."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from ..accounts.accounts import Accounts
from ..data_dir import DataDir
from ..errors import Error, payload_too_large
from ..limits import DiskReserve
from ..sandbox.disk_usage import bytes_in, size_text
from ..sandbox.homes import SandboxFolders
from ..storage.space_queries import SpaceQueries

FREE_BYTES = 256 << 10
"""The part of each session that is not counted: its first entries, and its agent's settings."""
FRESH_SECS = 5.0
REST_SHARE = 50
"""An app is measured again after this many times the duration of its last measurement."""


@dataclasses.dataclass(slots=True)
class Measurement:
    """The space of an app's sessions, in bytes, and how long it took to measure it."""

    size: int
    at: float
    took: float


async def _count_nothing(app_name: str) -> None:
    """Do nothing: this server knows of all uploads."""


class AppDisk:
    """Measures the apps that have ``disk_bytes``. The others cost nothing.

    Attributes:
        uploads: returns the bytes of an app's uploads.
        recount: counts them again, if other nodes of a cluster may have changed them.
    """

    def __init__(
        self,
        data_dir: DataDir,
        accounts: Accounts,
        queries: SpaceQueries,
        folders: SandboxFolders,
    ) -> None:
        self.uploads: Callable[[str], int] = lambda app_name: 0
        self.recount: Callable[[str], Awaitable[None]] = _count_nothing
        self._data_dir = data_dir
        self._accounts = accounts
        self._queries = queries
        self._folders = folders
        self._measured: dict[str, Measurement] = {}
        self._measuring: dict[str, asyncio.Task[Measurement]] = {}

    def connect(self, disk: DiskReserve) -> None:
        """Let the checks of free space check the apps' own limits, too."""
        disk.app_limit, disk.check_app, disk.note_app = self.limit_of, self.check, self.add

    def limit_of(self, app_name: str) -> int | None:
        return self._accounts.limits_of(app_name).disk_bytes

    def room_for_uploads(self, app_name: str) -> int | None:
        """The bytes that the app's uploads may have, as far as is known; None without a limit."""
        limit = self.limit_of(app_name)
        known = self._measured.get(app_name)
        return limit if limit is None or known is None else max(0, limit - known.size)

    def add(self, app_name: str, size: int) -> None:
        """Count bytes that a client has written, until the next measurement."""
        if (known := self._measured.get(app_name)) is not None:
            known.size += size

    async def check(self, app_name: str, more: int = 0) -> None:
        """Check that an app may use *more* bytes.

        Raises:
            Error: ``payload_too_large``.
        """
        if (refusal := await self.refusal(app_name, more)) is not None:
            raise refusal

    async def refusal(self, app_name: str, more: int = 0) -> Error | None:
        """The error with which an app that needs *more* bytes is refused; None if it is not."""
        limit = self.limit_of(app_name)
        if limit is None or await self._used(app_name, more, limit) + more <= limit:
            return None
        return payload_too_large(
            f"the app is over its {size_text(limit)} of disk space: undo a turn, or delete files"
            " or sessions"
        )

    async def _used(self, app_name: str, more: int, limit: int) -> int:
        known = self._measured.get(app_name)
        if known is not None:
            is_over = known.size + self.uploads(app_name) + more > limit
            pause = max(0 if is_over else FRESH_SECS, REST_SHARE * known.took)
            if time.monotonic() - known.at < pause:
                return known.size + self.uploads(app_name)
        if app_name not in self._measuring:
            task = asyncio.create_task(self._measure(app_name), name=f"disk-of-{app_name}")
            self._measuring[app_name] = task
            task.add_done_callback(lambda _: self._measuring.pop(app_name))
        measurement = await asyncio.shield(self._measuring[app_name])
        return measurement.size + self.uploads(app_name)

    async def _measure(self, app_name: str) -> Measurement:
        began = time.monotonic()
        await self.recount(app_name)
        sessions = await self._queries.session_sizes(app_name)
        size = await asyncio.to_thread(self._bytes_of, sessions)
        now = time.monotonic()
        self._measured[app_name] = measurement = Measurement(size, now, now - began)
        return measurement

    def _bytes_of(self, sessions: list[tuple[str, str, int]]) -> int:
        """The bytes of sessions beyond those that are not counted. Blocking."""
        total = 0
        folders = self._folders
        seen: set[Path] = set()
        for session_id, cwd, log_bytes in sessions:
            own = [folders.home(session_id), folders.tmp(session_id), folders.files(session_id)]
            own.append(self._data_dir.snapshots / session_id)
            # A `cwd` that a client chose does not belong to the session.
            if (folder := Path(cwd)).is_relative_to(self._data_dir.path) and folder not in seen:
                seen.add(folder)
                own.append(folder)
            total += max(0, bytes_in(own, 1 << 60) + log_bytes - FREE_BYTES)
        return total
