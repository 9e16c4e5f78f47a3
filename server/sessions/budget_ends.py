"""The end of an app's budget: turns that have not begun end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..accounts.accounts import Accounts

if TYPE_CHECKING:
    from .loaded_sessions import LoadedSessions


def refuse_unsent(sessions: LoadedSessions, accounts: Accounts, app_name: str) -> None:
    """End the turns that have not begun of an app that has used up its budget."""
    refusal = accounts.refusal(app_name)
    for session in sessions.all():
        if session.row.app_name == app_name and refusal is not None:
            session.turns.current.refuse_unsent(refusal)
