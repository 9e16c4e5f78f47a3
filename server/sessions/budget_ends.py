"""The end of an app's budget: turns that have not begun end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..accounts.accounts import Accounts

if TYPE_CHECKING:
    from .session import Session


def refuse_unsent(sessions: Mapping[str, Session], accounts: Accounts, app_name: str) -> None:
    """End the turns that have not begun of an app that has used up its budget."""
    refusal = accounts.refusal(app_name)
    for session in tuple(sessions.values()):
        if session.row.app_name == app_name and refusal is not None:
            session.turns.current.refuse_unsent(refusal)
