"""The scope that each REST call needs; those of the operator, and those without a token, need none.

WebSocket commands have theirs in ``ws/session_commands.py``, ACP methods in ``acp/methods.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..auth.scopes import Scope

SCOPE_OF_CALL: Mapping[tuple[str, str], Scope] = {
    ("GET", "/acp"): "read",
    ("GET", "/agents"): "read",
    ("POST", "/files"): "prompt",
    ("GET", "/folders"): "manage",
    ("POST", "/run"): "prompt",
    ("GET", "/run/{run_id}"): "prompt",
    ("DELETE", "/run/{run_id}"): "prompt",
    ("GET", "/push/key"): "prompt",
    ("GET", "/push/subscriptions"): "prompt",
    ("POST", "/push/subscriptions"): "prompt",
    ("DELETE", "/push/subscriptions/{subscription_id}"): "prompt",
    ("GET", "/search"): "read",
    ("GET", "/sessions"): "read",
    ("POST", "/sessions"): "manage",
    ("POST", "/sessions/import"): "manage",
    ("GET", "/sessions/stream"): "read",
    ("GET", "/sessions/{session_id}"): "read",
    ("PATCH", "/sessions/{session_id}"): "manage",
    ("DELETE", "/sessions/{session_id}"): "manage",
    ("GET", "/sessions/{session_id}/archive"): "read",
    ("POST", "/sessions/{session_id}/cancel"): "prompt",
    ("GET", "/sessions/{session_id}/changes"): "read",
    ("POST", "/sessions/{session_id}/elicitations/{request_id}"): "approve",
    ("GET", "/sessions/{session_id}/events"): "read",
    ("GET", "/sessions/{session_id}/export"): "read",
    ("GET", "/sessions/{session_id}/files"): "read",
    ("GET", "/sessions/{session_id}/files/{path}"): "read",
    ("PUT", "/sessions/{session_id}/files/{path}"): "prompt",
    ("POST", "/sessions/{session_id}/fork"): "manage",
    ("POST", "/sessions/{session_id}/permissions/{request_id}"): "approve",
    ("PATCH", "/sessions/{session_id}/queue/{turn_index}"): "prompt",
    ("DELETE", "/sessions/{session_id}/queue/{turn_index}"): "prompt",
    ("POST", "/sessions/{session_id}/read"): "read",
    ("POST", "/sessions/{session_id}/reopen"): "manage",
    ("GET", "/sessions/{session_id}/shares"): "manage",
    ("POST", "/sessions/{session_id}/shares"): "manage",
    ("DELETE", "/sessions/{session_id}/shares/{share_id}"): "manage",
    ("GET", "/sessions/{session_id}/snapshots"): "read",
    ("POST", "/sessions/{session_id}/ticket"): "manage",
    ("POST", "/sessions/{session_id}/turn"): "prompt",
    ("POST", "/sessions/{session_id}/undo"): "manage",
    ("GET", "/sessions/{session_id}/ws"): "read",
    ("GET", "/usage"): "read",
    ("POST", "/v1/chat/completions"): "prompt",
    ("GET", "/v1/models"): "prompt",
    ("GET", "/webhook"): "manage",
    ("PUT", "/webhook"): "manage",
    ("DELETE", "/webhook"): "manage",
    ("GET", "/ws"): "read",
}
