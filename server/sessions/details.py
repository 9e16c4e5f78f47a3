"""The data that an app notes about a session: ``meta`` with the title, times, and a read mark."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from ..codec import dumps, loads
from ..errors import Error, ErrorCode, bad_request
from ..storage import statements
from ..tasks import to_completion
from .core import SessionCore
from .lifetime import lifetime_view
from .undo_notices import log_undo

logger = logging.getLogger(__name__)

MAX_TITLE = 256
"""Characters of an agent's title. A longer one is cut."""


def encode_meta(meta: Mapping[str, Any], limit: int) -> str:
    """Return a session's ``meta``, which the app defines, as JSON.

    Raises:
        Error: ``payload_too_large``; it has more than *limit* bytes.
    """
    encoded = dumps(meta)
    if len(encoded) > limit:
        raise Error(ErrorCode.PAYLOAD_TOO_LARGE, f"meta: at most {limit} bytes of JSON")
    return encoded.decode()


class SessionDetails:
    """The ``meta``, the title, the times and the read mark of one session.

    Attributes:
        lock: held by each change of the ``meta``.
    """

    def __init__(self, core: SessionCore) -> None:
        self._core = core
        self.lock = asyncio.Lock()
        origin = core.row.forked_from
        self._forked_from = None if origin is None else loads(origin)

    @property
    def title(self) -> str | None:
        """``meta.title``, or None if it is not a text."""
        title = loads(self._core.row.meta).get("title")
        return title if isinstance(title, str) else None

    @property
    def unread(self) -> int:
        """The number of entries after the read mark."""
        return max(0, self._core.log.head - self._core.row.read_seq)

    def view(self) -> dict[str, Any]:
        """The fields of the state."""
        meta = loads(self._core.row.meta)
        title = meta.get("title")
        return {
            "meta": meta,
            "title": title if isinstance(title, str) else None,
            "unread": self.unread,
            "forked_from": self._forked_from,
            **lifetime_view(self._core.row, self._core.context.settings),
        }

    def meta_columns(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of the row that change if a client merges *changes* into ``meta``.

        Raises:
            Error: ``payload_too_large``.
        """
        is_agents = self._core.row.has_agent_title and "title" not in changes
        return self._meta_columns(changes, has_agent_title=int(is_agents)) if changes else {}

    def _meta_columns(self, changes: Mapping[str, Any], *, has_agent_title: int) -> dict[str, Any]:
        merged = {**loads(self._core.row.meta), **changes}
        kept = {key: value for key, value in merged.items() if value is not None}
        limit = self._core.context.settings.max_meta_bytes
        return {"meta": encode_meta(kept, limit), "has_agent_title": has_agent_title}

    def note_agent_title(self, title: Any) -> None:
        """Store the agent's title in the background, unless the client has set one."""
        if title is None or isinstance(title, str):
            work = self._set_agent_title(title)
            self._core.context.tasks.spawn(work, f"title-{self._core.id}")

    async def _set_agent_title(self, title: str | None) -> None:
        shown = None if title is None else " ".join(title.split())[:MAX_TITLE] or None
        async with self.lock:
            row = self._core.row
            if row.has_agent_title:
                is_free = shown != self.title
            else:
                is_free = shown is not None and loads(row.meta).get("title") is None
            if not is_free or row.removed_at is not None:
                return
            try:
                has_title = int(shown is not None)
                columns = self._meta_columns({"title": shown}, has_agent_title=has_title)
                await self._store(**columns)
            except Error as error:  # ``meta`` is full, or the database takes no writes
                extra = self._core.log_extra()
                logger.info("the agent's title is not stored: %s", error.code, extra=extra)

    async def _store(self, **columns: Any) -> None:
        row = self._core.row
        statement = statements.change_session(row.n, **columns)
        await to_completion(self._core.context.writer.commit([statement]))
        for name, value in columns.items():
            setattr(row, name, value)
        self._core.notify_changed()

    def log_undo(self, entry_index: int, replaced: str, **about: Any) -> None:
        """Log that the folder was restored; see :func:`undo_notices.log_undo`."""
        log_undo(self._core, entry_index, replaced, **about)

    async def mark_read(self, seq: int) -> None:
        """Note that the app has read the entries up to *seq*.

        Raises:
            Error: ``bad_request``; the log does not have that entry yet.
        """
        head = self._core.log.head
        if seq > head:
            raise bad_request(f"seq: the newest entry is {head}")
        await self._store(read_seq=seq)
