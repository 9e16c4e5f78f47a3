"""Support for clients that continue exactly where their last connection ended.

A client requests it with ``positions`` in ``_meta.clawdforge`` of ``initialize``. Its messages of a
session then come in groups: a ``_clawdforge/entries`` notification has the number of messages that
follow it, and the position in the log that the client has reached once it has received them all.
After a reconnect the client names that position, and the prompts that it still waits for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..codec import dumps
from ..errors import bad_request
from ..sessions.session import Session
from ..sessions.turns import Turn
from . import jsonrpc
from .params import NAMESPACE

ENTRIES = f"_{NAMESPACE}/entries"


def group_start(session_id: str, seq: int, messages: int) -> bytes:
    """The notification that precedes a group of messages.

    Args:
        seq: the position after the group.
        messages: their number.
    """
    return jsonrpc.encode_notification(
        ENTRIES, {"sessionId": session_id, "seq": seq, "messages": messages}
    )


def position_fields(seq: int, pending: Sequence[str], unknown: Sequence[str]) -> dict[str, Any]:
    """The fields of ``_meta.clawdforge`` in the response that opens a session.

    Args:
        seq: the position from which the client's messages continue.
        pending: ids of the requests of the agent that wait for clients.
        unknown: ids of prompts of the client that the server has not received.
    """
    return {"seq": seq, "pendingRequests": list(pending), "unknownPrompts": list(unknown)}


def add_request_id(params: dict[str, Any], request_id: str) -> None:
    """Add the session's id of a request of the agent, which is the same on every connection."""
    meta = params.get("_meta")
    meta = meta if isinstance(meta, dict) else {}
    own = meta.get(NAMESPACE)
    own = own if isinstance(own, dict) else {}
    params["_meta"] = {**meta, NAMESPACE: {**own, "requestId": request_id}}


def check_resumed_position(session: Session, after: int | None) -> None:
    """Check that a client's position is in the log.

    Raises:
        Error: ``bad_request``.
    """
    if after is not None and after > session.log.head:
        raise bad_request("after: beyond the end of the session's log")


async def find_prompts(
    session: Session, prompts: Mapping[str, Any]
) -> tuple[list[tuple[Turn, jsonrpc.Request]], list[str]]:
    """Find the turns of prompts that a client sent on an earlier connection.

    Args:
        prompts: from their ids to the ids of their JSON-RPC requests.

    Returns:
        The turns, each with its request, and the ids of prompts that the server has not received.
    """
    turns, unknown = [], []
    for prompt_id, request_id in prompts.items():
        accepted = await session.turns.find(prompt_id)
        if accepted is None:
            unknown.append(prompt_id)
            continue
        key = jsonrpc.key_of(request_id)
        request = jsonrpc.Request(dumps(request_id), key, "session/prompt", None)
        turns.append((accepted.turn, request))
    return turns, unknown
