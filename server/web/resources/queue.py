"""The queued prompts of a session: change, move or withdraw one."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from ...codec import dumps
from ...errors import bad_request, not_found
from ...sessions.content import check_content
from ...sessions.session import Session
from ..endpoint import Endpoint, Tag
from ..field_types import TurnIndex, doc

QUEUE_EXAMPLE = [{"turn_index": 4, "id": "c4", "prompt": [{"type": "text", "text": "and run it"}]}]


class EditQueuedTurn(msgspec.Struct, frozen=True):
    """The changes; at least one."""

    prompt: Annotated[
        str | list[Any] | None, doc("Text, or ACP content blocks, instead of the prompt.")
    ] = None
    before: Annotated[TurnIndex | None, doc("A queued turn, before which it is moved.")] = None


class QueueState(msgspec.Struct, kw_only=True):
    """The queued prompts, in the order in which they will run."""

    queued: list[dict[str, Any]]


def _turn_index(request: web.Request) -> int:
    text = request.match_info["turn_index"]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise not_found("queued turn")
    return int(text)


@Endpoint(
    "PATCH",
    "/sessions/{session_id}/queue/{turn_index}",
    tag=Tag.TURNS,
    scope="prompt",
    summary="Change or move a queued prompt",
    description="409 if the turn is running by now. Its `id` and its `turn_index` stay.",
    waits=("body",),
    request_example={"prompt": "and run it", "before": 3},
    example={"ok": True, "queued": QUEUE_EXAMPLE},
    failures=("conflict", "queue_full", "session_closed"),
)
async def edit_queued_turn(
    request: web.Request, session: Session, body: EditQueuedTurn
) -> QueueState:
    if body.prompt is None and body.before is None:
        raise bad_request("prompt or before is needed")
    blocks = None if body.prompt is None else dumps(check_content(body.prompt))
    await session.turns.waiting.edit(_turn_index(request), blocks=blocks, before=body.before)
    return QueueState(queued=session.turns.waiting.view())


@Endpoint(
    "DELETE",
    "/sessions/{session_id}/queue/{turn_index}",
    tag=Tag.TURNS,
    scope="prompt",
    summary="Withdraw a queued prompt",
    description="The turn ends as `cancelled`, with `withdrawn` in its `turn_end`; the agent never"
    " receives the prompt. 409 if the turn is running by now.",
    example={"ok": True, "queued": []},
    failures=("conflict",),
)
async def withdraw_queued_turn(request: web.Request, session: Session) -> QueueState:
    session.turns.withdraw(_turn_index(request))
    return QueueState(queued=session.turns.waiting.view())
