"""The scope that each method of ACP needs."""

from __future__ import annotations

from collections.abc import Mapping

from ..auth.scopes import Scope

SCOPE_OF_METHOD: Mapping[str, Scope] = {
    "initialize": "read",
    "authenticate": "read",
    "session/load": "read",
    "session/resume": "read",
    "session/list": "read",
    "session/prompt": "prompt",
    "_session/steering": "prompt",
}
"""The scope that each method needs. All others change sessions, and need ``manage``."""
