"""A session in use: its connection, its readers, and the answers to the agent's requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from .connection import Connection
from .errors import ClawdforgeError
from .feed import Feed
from .frames import frame_error
from .rest import Rest, segment
from .shapes import Entry, Handlers, Json, PermissionRequest, Question
from .turn import Turn

logger = logging.getLogger("clawdforge_client")

POLICY_SECS = 0.5
"""The server answers a request by the session's policy in less time."""
MAX_ANSWERS = 3
"""Calls of the handler for one question, if the server refuses its answers."""


@dataclass(slots=True)
class ClientState:
    """The state of a client, which its sessions share.

    Attributes:
        live_sessions: those that have a connection.
    """

    rest: Rest
    give_up_secs: float
    linger_secs: float
    live_sessions: set[LiveSession] = field(default_factory=set)


class LiveSession:
    """The connection of a session's handle, and everything that uses it.

    The connection is opened when it is needed, and closed after it has had no reader for a while.

    Attributes:
        permission: the session's policy; None until it is known.
    """

    def __init__(self, client: ClientState, session_id: str, handlers: Handlers) -> None:
        self.client = client
        self._rest = client.rest
        self._session_id = session_id
        self.handlers = handlers
        self._connection: Connection | None = None
        self._feeds: set[Feed] = set()
        self._turns: dict[Turn, Feed] = {}
        self._answers: dict[str, asyncio.Task[None]] = {}
        self._lingering: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.permission: str | None = None

    # Readers.

    def connection(self) -> Connection:
        """The connection, which is opened if there is none."""
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        if self._connection is None:
            self._connection = Connection(
                self._rest, self._session_id, self, give_up_secs=self.client.give_up_secs
            )
            self.client.live_sessions.add(self)
        return self._connection

    @property
    def last(self) -> int | None:
        return None if self._connection is None else self._connection.last

    async def ready(self) -> int:
        return await self.connection().ready()

    def open_feed(self, cursor: int | None) -> Feed:
        self.connection()
        feed = Feed(self._rest, self._session_id, self, cursor)
        self._feeds.add(feed)
        return feed

    def close_feed(self, feed: Feed) -> None:
        self._feeds.discard(feed)
        if not self._feeds and not self.handlers and self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(
                self.client.linger_secs, self._close_idle
            )

    def add_turn(self, turn: Turn, feed: Feed) -> None:
        self._turns[turn] = feed
        self.connection().send_prompt(turn)

    def remove_turn(self, turn: Turn) -> None:
        if (feed := self._turns.pop(turn, None)) is not None:
            self.close_feed(feed)

    def _close_idle(self) -> None:
        self._lingering = None
        if self._feeds or self._connection is None:
            return
        task = asyncio.ensure_future(self.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close the connection. Readers end with an error."""
        connection, self._connection = self._connection, None
        self.client.live_sessions.discard(self)
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        for task in self._answers.values():
            task.cancel()
        if connection is not None:
            failure = ClawdforgeError("closed", "the client was closed")
            await connection.close(failure)

    # The connection's reports.

    def connected(self, ready: Json) -> None:
        self.permission = ready.get("permission", self.permission)
        for pending in ready.get("pending_permissions") or ():
            self._ask_permission(pending)
        for pending in ready.get("pending_elicitations") or ():
            self._ask_question(pending)

    def received(self, entry: Entry, size: int) -> None:
        for feed in list(self._feeds):
            feed.push(entry, size)
        kind = entry["type"]
        if kind == "turn_end":
            for turn, feed in list(self._turns.items()):
                if turn.index == entry["turn_index"]:
                    feed.finish()
                    self.remove_turn(turn)
        elif kind == "permission_request":
            self._ask_permission(entry)
        elif kind == "elicitation_request":
            self._ask_question(entry)
        elif kind in ("permission_resolved", "elicitation_resolved"):
            self._drop_answer(entry["request_id"])

    def _drop_answer(self, request_id: str) -> None:
        if (task := self._answers.pop(request_id, None)) is not None:
            task.cancel()

    def refused(self, frame: Json) -> None:
        logger.warning("session %s: %s", self._session_id, frame_error(frame))

    def ended(self, failure: ClawdforgeError | None) -> None:
        """Handle the end of the connection: an error, or the end of the log of a closed session."""
        self._connection = None
        self.client.live_sessions.discard(self)
        feeds, self._feeds = self._feeds, set()
        self._turns.clear()
        for feed in feeds:
            if failure is None:
                feed.finish()
            else:
                feed.fail(failure)

    # Answers.

    def _ask_permission(self, entry: Any) -> None:
        if self.handlers.permission is None:
            return
        fields = entry["request"]
        request = PermissionRequest(
            tool_call=fields.get("toolCall") or {},
            options=fields.get("options") or [],
            **_fields_of_both(entry),
        )
        self._answer(request.request_id, self._answer_permission(request))

    def _ask_question(self, entry: Any) -> None:
        if self.handlers.question is None:
            return
        fields = entry["request"]
        question = Question(
            message=str(fields.get("message", "")),
            mode=str(fields.get("mode", "form")),
            schema=fields.get("requestedSchema") or {},
            url=fields.get("url"),
            **_fields_of_both(entry),
        )
        self._answer(question.request_id, self._answer_question(question))

    def _answer(self, request_id: str, answering: Coroutine[Any, Any, None]) -> None:
        if request_id in self._answers:  # reported again after a reconnect
            answering.close()
            return
        task = asyncio.create_task(answering, name=f"answer-{request_id}")
        self._answers[request_id] = task
        task.add_done_callback(lambda task: self._answered(request_id, task))

    def _answered(self, request_id: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("request %s was not answered", request_id, exc_info=error)

    async def _answer_permission(self, request: PermissionRequest) -> None:
        handler = self.handlers.permission
        assert handler is not None
        if self.permission != "ask":  # the server answers by its policy, unless it has changed
            await asyncio.sleep(POLICY_SECS)
        try:
            answer = await handler(request)
        except Exception:
            logger.exception("the permission handler failed; the request is cancelled")
            answer = None
        if answer is True:
            answer = request.allow()
        elif answer is False:
            answer = request.reject()
        body = {"outcome": "cancelled"} if answer is None else {"option_id": answer}
        await self._send(f"permissions/{segment(request.request_id)}", body)

    async def _answer_question(self, question: Question) -> None:
        handler = self.handlers.question
        assert handler is not None
        path = f"elicitations/{segment(question.request_id)}"
        for _ in range(MAX_ANSWERS):
            try:
                answer = await handler(question)
            except Exception:
                logger.exception("the question handler failed; the question is cancelled")
                answer = None
            if answer is None or answer is False:
                body: Json = {"action": "cancel" if answer is None else "decline"}
            else:
                body = {"action": "accept"}
                if answer is not True:
                    body["content"] = answer
            refusal = await self._send(path, body)
            if refusal is None:
                return
            question = Question(
                *(question.request_id, question.turn_index, question.message, question.mode),
                *(question.schema, question.url, question.expires_at),
                problem=refusal.message,
                field=refusal.body.get("field"),
            )
        await self._send(path, {"action": "cancel"})

    async def _send(self, path: str, body: Json) -> ClawdforgeError | None:
        """Send an answer. Return the error if the server refuses the answer and accepts another."""
        try:
            await self._rest.call("POST", f"/sessions/{self._session_id}/{path}", body, repeat=True)
        except ClawdforgeError as error:
            if error.code == "bad_request":
                return error
            if error.code != "not_found":  # another client has answered, or the request has expired
                raise
        return None


def _fields_of_both(entry: Any) -> dict[str, Any]:
    """The fields that permission requests and questions have in common."""
    return {
        "request_id": entry["request_id"],
        "turn_index": entry.get("turn_index", 0),
        "expires_at": entry["expires_at"],
    }
