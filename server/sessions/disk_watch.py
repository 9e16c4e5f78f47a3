"""Watches the limits of sandboxes: stops the agents of sessions whose folders are too large."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .. import safe_files
from ..data_dir import DataDir
from ..errors import Error, payload_too_large
from ..sandbox.disk_usage import UNMEASURED, bytes_in, size_text
from ..sandbox.limit_signs import full_file_text
from .limit_watch import LimitNotices, LimitWatch
from .turns import CancelCause

if TYPE_CHECKING:
    from .registry import SessionRegistry
    from .session import Session

logger = logging.getLogger(__name__)

SHARE = 50
"""A session is measured again after this many times the duration of its last measurement."""
MEASURE_PAUSE_SECS = 5.0
ANY_SIZE = 1 << 60
"""More bytes than any folder has."""
CACHE_FOLDERS = (".cache", ".npm")


class DiskWatch:
    """Measures the folders of the sessions that have an agent, or that were too large.

    Attributes:
        pause: seconds between two measurements of a session, at least.
        limits: looks whether other limits have taken effect.
    """

    def __init__(self, sessions: SessionRegistry) -> None:
        self._notices = LimitNotices()
        self.limits = LimitWatch(sessions, self._notices)
        self.pause = min(MEASURE_PAUSE_SECS, sessions.settings.sweep_interval_secs)
        self._sessions = sessions
        self._limit = sessions.settings.sandbox_disk_mb << 20
        self._file_bytes = sessions.settings.sandbox_file_mb << 20
        self._data_dir = DataDir(sessions.settings.data_dir)
        self._due: dict[str, float] = {}
        self._logs: dict[str, tuple[int, int]] = {}

    async def run(self) -> None:
        """Measure and look forever."""
        while True:
            await asyncio.sleep(self.pause)
            await self.measure_all()
            await self.limits.examine()

    async def measure_all(self) -> None:
        """Measure each session that is due, and each app that has a limit of its own."""
        await self._measure_apps()
        if not (self._limit or self._file_bytes):
            return
        sessions = [
            session
            for session in tuple(self._sessions.cached.values())
            if session.agent.is_live or session.turns.disk_refusal is not None
        ]
        self._due = {session.id: self._due.get(session.id, 0) for session in sessions}
        self._logs = {key: known for key, known in self._logs.items() if key in self._due}
        for session in sessions:
            if time.monotonic() >= self._due[session.id]:
                began = time.monotonic()
                await self._measure(session)
                took = time.monotonic() - began
                self._due[session.id] = time.monotonic() + SHARE * took

    async def _measure_apps(self) -> None:
        """End the agents of apps that exceed their own limit. Their prompts are refused."""
        live = [
            session for session in tuple(self._sessions.cached.values()) if session.agent.is_live
        ]
        disk = self._sessions.app_disk
        for app_name in {session.row.app_name for session in live}:
            if disk.limit_of(app_name) is None or not (error := await disk.refusal(app_name)):
                continue
            about = {"app": app_name}
            logger.warning("the app exceeds its disk limit; its agents end", extra=about)
            for session in live:
                if session.row.app_name == app_name and session.agent.is_live:
                    _refuse_running(session, error)
                    await session.agent.hibernate(0)

    def _folders(self, session: Session) -> list[Path]:
        """The folders that belong to the session. A `cwd` that a client chose does not."""
        folders = self._sessions.backend.sandbox.folders
        own = [folders.home(session.id), folders.tmp(session.id), folders.files(session.id)]
        cwd = Path(session.row.cwd)
        return [cwd, *own] if cwd.is_relative_to(self._data_dir.path) else own

    async def _measure(self, session: Session) -> None:
        folders = self._folders(session)
        full: list[str] = []
        enough = self._limit or ANY_SIZE
        wanted = full if self._file_bytes else None
        size = await asyncio.to_thread(bytes_in, folders, enough, self._file_bytes, wanted)
        for path in full[:1]:
            if await asyncio.to_thread(self._is_file_within, Path(path)):
                self._add_full_notice(session, path)
        log_bytes = await self._log_bytes(session) if self._limit else 0
        if size + log_bytes <= enough or not self._limit:
            session.turns.disk_refusal = None
            return
        is_new = session.turns.disk_refusal is None
        error = payload_too_large(_too_large_text(size, log_bytes, self._limit))
        session.turns.disk_refusal = error
        if is_new:
            about = {"session": session.id, "app": session.row.app_name}
            logger.warning("the session's folders are too large; its agent ends", extra=about)
        _refuse_running(session, error)
        if session.agent.is_live:
            await session.agent.hibernate(0)
        else:
            await asyncio.to_thread(self._free, session.id)

    async def _log_bytes(self, session: Session) -> int:
        """The bytes of the session's log. Only what is new is counted."""
        size, last = self._logs.get(session.id, (0, 0))
        if session.log.last > last:
            queries, number = self._sessions.queries, session.row.n
            more, last = await queries.log_growth(number, last)
            size += more
            if size > self._limit:  # entries that were counted may have been packed since
                size, last = await queries.log_growth(number, 0)
            self._logs[session.id] = size, last
        return size

    def _is_file_within(self, path: Path) -> bool:
        """Whether no part of a path is a link by now, so that the name is the session's."""
        try:
            with safe_files.folder(*self._data_dir.split(path.parent)) as folder:
                mode = os.stat(path.name, dir_fd=folder, follow_symlinks=False).st_mode
        except OSError:
            return False
        return stat.S_ISREG(mode)

    def _add_full_notice(self, session: Session, path: str) -> None:
        """Log that a file has reached the size limit, so that its writer has failed."""
        sandbox = self._sessions.backend.sandbox.of(session.row.app_name)
        if sandbox.is_on:
            name = path.removeprefix(f"{session.row.cwd}/")
            self._notices.add(session, "file", full_file_text(name, sandbox.policy.limits))

    def _free(self, key: str) -> None:
        """Delete the temporary files and the caches of a session without an agent. Blocking."""
        folders = self._sessions.backend.sandbox.folders
        with contextlib.suppress(OSError):
            safe_files.empty(*self._data_dir.split(folders.tmp(key)))
        for name in CACHE_FOLDERS:
            with contextlib.suppress(OSError):
                safe_files.remove(*self._data_dir.split(folders.home(key)), name)


def _refuse_running(session: Session, error: Error) -> None:
    """End the running turn with *error*, if there is one."""
    turn = session.turns.current.running
    if turn is not None and not turn.has_ended:
        turn.refusal = error
        session.turns.interrupt(turn, CancelCause.REFUSED, 0)


def _too_large_text(size: int, log_bytes: int, limit: int) -> str:
    """The message for the users of a session that needs too much space."""
    if log_bytes > limit:
        return f"the session's log is over its {size_text(limit)}: continue in a new session"
    reason = f"is over its {size_text(limit)}"
    if size == UNMEASURED:
        reason = "has too many files, or too deeply nested ones"
    return f"the workspace {reason}: undo the turn, or delete files, and send the prompt again"
