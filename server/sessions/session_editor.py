"""Changes what a client may change of a session: its times, policy, options and ``meta``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import session_closed
from ..storage import statements
from ..tasks import to_completion
from .agent_spec import agent_spec
from .core import SessionCore
from .details import SessionDetails
from .lifetime import changed_times
from .observer import SessionObserver
from .option_checks import check_can_reload, check_elicitation
from .options import SessionOptions
from .permissions import check_permission
from .session_agent import SessionAgent
from .session_settings import SessionSettings


class SessionEditor:
    """Changes a session's row and its options, and lets the agent learn of it."""

    def __init__(
        self,
        core: SessionCore,
        details: SessionDetails,
        agent: SessionAgent,
        settings: SessionSettings,
        *,
        observer: SessionObserver,
    ) -> None:
        self._core = core
        self._context = core.context
        self._details = details
        self._agent = agent
        self._settings = settings
        self._observer = observer

    async def change(
        self,
        *,
        meta: Mapping[str, Any] | None = None,
        permission: str | None = None,
        options: Mapping[str, Any] | None = None,
        ttl_secs: float | msgspec.UnsetType | None = msgspec.UNSET,
        retention_secs: float | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> None:
        """Change what is given, all of it or nothing.

        Args:
            meta: merged into the stored ``meta``; None removes a key.
            permission: the new policy, for the agent's next requests.
            options: new values of :class:`SessionOptions`, by the names of its fields.
            ttl_secs, retention_secs: the times of the session; None for never.

        Raises:
            Error: ``payload_too_large``, ``bad_request``, ``not_supported``, or
                ``session_closed`` if the session is closed and its permission or an option
                changes.
        """
        row, core = self._core.row, self._core
        if not core.is_open and (permission is not None or options):
            raise session_closed()
        if permission is not None:
            check_permission(permission, self._context.backend, row.agent)
        async with self._details.lock:
            columns: dict[str, Any] = {
                **self._details.meta_columns(meta or {}),
                **changed_times(row, ttl_secs, retention_secs),
            }
            if permission not in (None, row.permission):
                columns["permission"] = permission
            changed = self._changed_options(options or {})
            if changed != core.options:
                columns["options"] = changed.encode()
            if columns:
                await to_completion(self._store(columns, changed))

    def _changed_options(self, changes: Mapping[str, Any]) -> SessionOptions:
        """Return the session's options with *changes*, which the agent can learn."""
        core = self._core
        changed = msgspec.structs.replace(core.options, **changes)
        if changed.announced_modes != core.options.announced_modes:
            check_elicitation(changed, self._context.backend)
            if self._agent.is_live and core.row.has_context:
                check_can_reload(self._agent.reported.capabilities)
        return changed

    async def _store(self, columns: Mapping[str, Any], options: SessionOptions) -> None:
        row, core = self._core.row, self._core
        transaction = [statements.change_session(row.n, **columns)]
        if "permission" in columns:
            now = self._context.clock()
            transaction.append(core.audit("change", now, permission=columns["permission"]))
        await self._context.writer.commit(transaction)
        for name, value in columns.items():
            setattr(row, name, value)
        core.options = options
        if columns.keys() & {"permission", "options"} and core.is_open:
            self._agent.backend_agent.rebind(agent_spec(core), self._observer)
            self._settings.log_asks()
        core.notify_changed()
