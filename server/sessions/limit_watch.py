"""Logs a notice for the users of a session when a limit of its sandbox has taken effect."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, BinaryIO

from .. import safe_files
from ..agents.process.process_tree import AGENT_VARIABLE
from ..data_dir import DataDir
from ..sandbox.limit_signs import (
    NEAR,
    LimitKind,
    ProcessUse,
    limits_named_in,
    reached_limits,
    use_by_session,
)
from . import entries
from .tenure import TenureState

if TYPE_CHECKING:
    from ..sandbox.sandbox import Sandbox
    from .registry import SessionRegistry
    from .session import Session

STDERR_TAIL_BYTES = 4096


class LimitNotices:
    """Logs a notice when a limit takes effect, and another one only after it had no effect."""

    def __init__(self) -> None:
        self._logged: defaultdict[str, dict[LimitKind, str]] = defaultdict(dict)

    def add(self, session: Session, kind: LimitKind, text: str) -> None:
        """Log that a limit has taken effect, unless it is logged already."""
        logged = self._logged[session.id]
        if logged.get(kind) == text or session.is_log_complete or not session.log.last:
            return
        if session.tenure.current is not TenureState.OWNED:
            return
        logged[kind] = text
        fields = entries.encode_fields(notice="limit", limit=kind, text=text)
        session.log.append("notice", session.turns.current.entry_turn_index(), fields)

    def forget(self, session: Session, kinds: Iterable[LimitKind]) -> None:
        """Note that limits are not reached any more."""
        if (logged := self._logged.get(session.id)) is not None:
            for kind in kinds:
                logged.pop(kind, None)

    def forget_all_but(self, keys: Iterable[str]) -> None:
        for key in self._logged.keys() - set(keys):
            del self._logged[key]


class LimitWatch:
    """Examines the processes and the stderr of the sandboxed agents."""

    def __init__(self, sessions: SessionRegistry, notices: LimitNotices) -> None:
        self._sessions = sessions
        self._notices = notices
        data_dir = DataDir.of(sessions.settings)
        self._folder = data_dir.split(data_dir.stderr)
        self._live: set[str] = set()
        self._sizes: dict[str, int] = {}

    async def examine(self) -> None:
        """Examine the processes and the new output once."""
        limits = self._sessions.backend.sandbox.policy.limits
        cached = tuple(self._sessions.cached.values())
        self._notices.forget_all_but(session.id for session in cached)
        watched = self._watched(cached)
        self._live = {session.id for session in cached if session.agent.is_live}
        self._sizes = {
            session.id: self._sizes[session.id] for session in cached if session.id in self._sizes
        }
        if not watched or not (limits.processes or limits.memory_bytes or limits.file_bytes):
            return
        at_least = 0 if limits.memory_bytes else NEAR * limits.processes
        use, total = await asyncio.to_thread(use_by_session, AGENT_VARIABLE, at_least)
        words = await asyncio.to_thread(
            self._read_new_output, [session.id for session, _ in watched]
        )
        for session, sandboxed in watched:
            self._note_reached(session, sandboxed, use.get(session.id, ProcessUse()), total)
            for kind, text in limits_named_in(
                words.get(session.id, b""), limits, counts_processes=self._counts_processes
            ):
                self._notices.add(session, kind, text)

    @property
    def _has_groups(self) -> bool:
        """Whether the processes of each session are limited at every level."""
        groups = self._sessions.backend.sandbox.groups
        return groups is not None and groups.limits_processes

    @property
    def _counts_processes(self) -> bool:
        """Whether the kernel limits processes: those of root only in control groups."""
        return self._has_groups or os.geteuid() != 0

    def _watched(self, sessions: Iterable[Session]) -> list[tuple[Session, Sandbox]]:
        """The sessions whose agents run in a sandbox, each with its sandbox.

        Also those whose agent has ended since the last examination: its last output may be new.
        """
        sandbox = self._sessions.backend.sandbox
        pairs = [
            (session, sandbox.of(session.row.app_name))
            for session in sessions
            if session.agent.is_live or session.id in self._live
        ]
        return [(session, sandboxed) for session, sandboxed in pairs if sandboxed.is_on]

    def _note_reached(
        self, session: Session, sandbox: Sandbox, use: ProcessUse, total: int
    ) -> None:
        reached = {
            kind: text
            for kind, text in reached_limits(
                use,
                total,
                sandbox.policy.limits,
                per_session=sandbox.level == "bwrap" or self._has_groups,
            )
            if kind != "processes" or self._counts_processes
        }
        for kind, text in reached.items():
            self._notices.add(session, kind, text)
        kinds: tuple[LimitKind, ...] = ("processes", "memory")
        self._notices.forget(session, [kind for kind in kinds if kind not in reached])

    def _read_new_output(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Read what agents have written to stderr since the last look. Blocking."""
        output = {}
        with contextlib.suppress(OSError), safe_files.folder(*self._folder) as folder:
            for key in keys:
                with (
                    contextlib.suppress(OSError),
                    safe_files.open_file(f"{key}.log", folder) as file,
                ):
                    output[key] = self._read_tail(key, file)
        return output

    def _read_tail(self, key: str, file: BinaryIO) -> bytes:
        size, before = os.fstat(file.fileno()).st_size, self._sizes.get(key, 0)
        is_known = key in self._sizes
        self._sizes[key] = size
        if size == before:
            return b""
        file.seek(max(size - STDERR_TAIL_BYTES, before if before < size else 0))
        text = file.read(STDERR_TAIL_BYTES)
        # The file begins with the words of earlier processes.
        return text if is_known else text.rpartition(b"\n-- ")[2]
