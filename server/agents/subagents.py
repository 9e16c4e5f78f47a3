"""The attribution of an agent's updates to its subagents, in whichever form the agent reports them.

With ACP's own form, which only a client gets that announces ``subagents``, a subagent has a session
of its own. Without it, agents report the work of a subagent in the session itself, and name the
tool call that began it in ``_meta``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Subagent = Mapping[str, str]
"""The part of these that an update names: ``session_id``, of the subagent's own session, and
``tool_call_id``, of the tool call of its parent."""


def subagent_of(params: Any, own_id: str | None) -> Subagent | None:
    """Return the subagent that an update belongs to; None for one of the agent itself.

    Args:
        params: those of a notification, as the agent wrote them.
        own_id: the agent's own id of the session; None if it is unknown.
    """
    if not isinstance(params, dict):
        return None
    child = params.get("sessionId")
    is_child = own_id is not None and child != own_id and isinstance(child, str)
    update = params.get("update")
    meta = update.get("_meta") if isinstance(update, dict) else None
    call = _parent_call(meta) if isinstance(meta, dict) else None
    if not is_child and call is None:
        return None
    subagent: dict[str, str] = {"session_id": str(child)} if is_child else {}
    if call is not None:
        subagent["tool_call_id"] = call
    return subagent


def _parent_call(meta: Mapping[str, Any]) -> str | None:
    """The tool call that *meta* names: as claude does, or as qwen does."""
    own = meta.get("claudeCode")
    call = own.get("parentToolUseId") if isinstance(own, dict) else meta.get("parentToolCallId")
    return call if isinstance(call, str) and call else None
