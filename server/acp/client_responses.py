"""The client's responses to requests of agents: for permission, and for input."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import Error, bad_request
from ..sessions.session import Session
from . import jsonrpc
from .subscription import SessionSubscription

logger = logging.getLogger(__name__)


def handle_response(
    subscriptions: Iterable[SessionSubscription], response: jsonrpc.Response, client: str
) -> None:
    """Pass the client's response on to the agent; any client's first one counts.

    Args:
        client: its name in the server's log.
    """
    for subscription in subscriptions:
        for requests, resolve, cancel in (
            (subscription.permission_requests, _apply_permission, _cancel_permission),
            (subscription.elicitation_requests, _apply_elicitation, _cancel_elicitation),
        ):
            pending_id = next((key for key, own in requests.items() if own == response.id), None)
            if pending_id is None:
                continue
            del requests[pending_id]
            try:
                resolve(subscription.session, pending_id, response.result)
            except Error as error:
                logger.info("%s: invalid response to a request: %s", client, error)
                _cancel_unless_shared(subscription.session, pending_id, cancel)
            return


def _cancel_unless_shared(
    session: Session, pending_id: str, cancel: Callable[[Session, str], None]
) -> None:
    """Cancel a request if no other client may still respond to it."""
    if session.subscribers == 1:
        try:
            cancel(session, pending_id)
        except Error:
            return  # it has an outcome already


def _apply_permission(session: Session, pending_id: str, result: Any) -> None:
    outcome = result.get("outcome") if isinstance(result, dict) else None
    choice = outcome if isinstance(outcome, dict) else {}
    match choice.get("outcome"), choice.get("optionId"):
        case "selected", str(option_id):
            session.permissions.resolve(pending_id, option_id=option_id)
        case "cancelled", _:
            session.permissions.resolve(pending_id)
        case _:
            raise bad_request("no outcome")


def _cancel_permission(session: Session, pending_id: str) -> None:
    session.permissions.resolve(pending_id)


def _apply_elicitation(session: Session, pending_id: str, result: Any) -> None:
    outcome = result if isinstance(result, dict) else {}
    action, content = outcome.get("action"), outcome.get("content")
    if action not in ("accept", "decline", "cancel") or not isinstance(content, (dict, type(None))):
        raise bad_request("no action")
    session.elicitations.resolve(pending_id, action, content if action == "accept" else None)


def _cancel_elicitation(session: Session, pending_id: str) -> None:
    session.elicitations.resolve(pending_id, "cancel")
