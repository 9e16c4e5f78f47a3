"""A session on an ACP connection: a cursor in its log, and the requests that log entries answer.

Some responses belong at a place in the log, so that they follow all the updates that precede them:
the response to a prompt comes at the end of its turn, to a load at the end of the replay, to a
close at the last entry.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..codec import parse_message
from ..errors import Error, ErrorCode, session_closed
from ..sessions import entries
from ..sessions.elicitations import mode_of
from ..sessions.log_pages import Batch
from ..sessions.session import Session
from ..sessions.turns import Turn
from . import jsonrpc, resumption, translate
from .jsonrpc import JsonRpcError
from .params import NAMESPACE
from .subagent_sessions import SubagentSessions
from .truncate import truncate_message
from .update_filter import UpdateFilter

MAX_ERROR_LENGTH = 10_000
"""Characters of an error message, which an agent may have written."""


class SessionSubscription:
    """One client's subscription to one session.

    Args:
        cursor: the position of the last entry that the client has.
        on_response: called with each request that has got its response here.
        next_id: returns ids for requests to the client.
        limit: bytes of the largest message that the client accepts.
        has_positions: the client continues at positions of the log (``resumption.py``).
        elicitation: the modes of ``elicitation/create`` that the client can show.
        updates: withholds what the client does not understand.

    Attributes:
        unknown_prompts: ids of the client's earlier prompts that the server has never received.
        prompts: the client's own prompts that have no response yet, by turn index.
        own_prompt_ids: ids of the client's own prompts for a running turn.
        permission_requests: ids of requests to the client, by the ids of the session's permission
            requests.
        elicitation_requests: the same for the session's questions.
        subagents: the sessions of subagents that the client knows.
    """

    def __init__(
        self,
        session: Session,
        cursor: int,
        *,
        on_response: Callable[[jsonrpc.Request], None],
        next_id: Callable[[], int],
        limit: int,
        has_positions: bool = False,
        elicitation: Collection[str],
        updates: UpdateFilter,
    ) -> None:
        self.session = session
        self.cursor = cursor
        self.prompts: dict[int, jsonrpc.Request] = {}
        self.own_prompt_ids: set[str] = set()
        self.permission_requests: dict[str, int] = {}
        self.elicitation_requests: dict[str, int] = {}
        self._on_response = on_response
        self._next_id = next_id
        self._limit = limit
        self._has_positions = has_positions
        self.unknown_prompts: list[str] = []
        self._unrendered: list[Batch] = []
        self._elicitation = elicitation
        self._updates = updates
        self._replay_until = 0
        self._loads: list[jsonrpc.Request] = []
        self._closes: list[jsonrpc.Request] = []
        self._agent_responses: dict[int, translate.AgentMessage] = {}
        self._rewriter = translate.SessionIdRewriter(session.id)
        self.subagents = SubagentSessions(session.id)

    @property
    def has_more(self) -> bool:
        return self.cursor < self.session.log.head

    @property
    def is_over(self) -> bool:
        """The session is closed, and the client has been sent its last entry."""
        return self.session.is_log_complete and self.cursor >= self.session.log.last

    # Requests of the client

    def replay(self, request: jsonrpc.Request, *, after: int = 0) -> list[bytes]:
        """Send the entries after a position again; the response follows the newest one at present.

        Returns:
            Messages to send at once.
        """
        self.cursor = after
        self._replay_until = self.session.log.head
        self._loads.append(request)
        return [] if self._replay_until > after else self._end_replay()

    def request_pending(self) -> list[bytes]:
        """The requests for permissions and input that the client has not been sent yet."""
        requests: list[bytes] = []
        for pending in self.session.permissions.pending():
            if pending["request_id"] not in self.permission_requests:
                requests += self._request_permission(pending)
        for pending in self.session.elicitations.pending() if self._elicitation else ():
            if pending["request_id"] not in self.elicitation_requests:
                requests += self._request_input(pending)
        return requests

    def respond_at_end(self, request: jsonrpc.Request) -> None:
        """Send the response to a ``session/close`` after the session's last entry."""
        self._closes.append(request)

    def settings(self) -> dict[str, Any]:
        """The settings that the agent has reported, as fields of a result."""
        view = self.session.agent_view()
        offered = {
            "modes": view["modes"],
            "models": view["models"],
            "configOptions": self._updates.without_switches(view["config_options"]),
        }
        return {key: value for key, value in offered.items() if value is not None}

    def opened(self) -> dict[str, Any]:
        """The result of a request that opened the session on this connection."""
        if not self._has_positions:
            return self.settings()
        waiting = (self.session.permissions.pending(), self.session.elicitations.pending())
        pending = [request["request_id"] for requests in waiting for request in requests]
        position = resumption.position_fields(self.cursor, pending, self.unknown_prompts)
        return {**self.settings(), "_meta": {NAMESPACE: position}}

    def respond_to_prompt(self, request: jsonrpc.Request, turn: Turn) -> bytes | None:
        """Respond to a prompt at the end of its turn.

        Returns:
            The response, if the client has been sent the end of the turn before.

        Raises:
            JsonRpcError: the prompt has another request.
        """
        if turn.index in self.prompts:
            raise JsonRpcError(jsonrpc.INVALID_REQUEST, "promptId: this prompt is pending")
        if turn.last_seq is None or turn.last_seq > self.cursor:
            self.prompts[turn.index] = request
            return None
        end = {"stop_reason": turn.stop_reason, "error": turn.error}
        return _prompt_response(request, end, None)

    # Log entries

    def take_unrendered(self) -> list[Batch]:
        """The batches that were read and not rendered yet, unless the cursor was moved."""
        rest, self._unrendered = self._unrendered, []
        return rest if rest and rest[0].first == self.cursor + 1 else []

    def render(self, batches: Sequence[Batch], budget: int) -> list[bytes]:
        """Render the entries of *batches*, up to *budget* bytes, and move the cursor.

        Returns:
            The messages. If the client has positions, the first one is the group's ``entries``
            notification (``resumption.py``).
        """
        rendered: list[bytes] = []
        size = 0
        for number, batch in enumerate(batches):
            for seq, line in enumerate(batch.lines(), batch.first):
                messages = self._render_at(seq, line)
                rendered += messages
                size += sum(map(len, messages))
                if size >= budget:
                    break
            if size >= budget:
                # Not read again: that would take longer with each round.
                rest = [batch.after(self.cursor)] if self.cursor < batch.last else []
                self._unrendered = [*rest, *batches[number + 1 :]]
                break
        if self._has_positions and rendered:
            rendered.insert(0, resumption.group_start(self.session.id, self.cursor, len(rendered)))
        return rendered

    def _render_at(self, seq: int, line: bytes) -> list[bytes]:
        messages: list[bytes] = []
        for message in self._render_entry(line, replaying=seq <= self._replay_until):
            messages += self._truncated(message, seq)
        self.cursor = seq
        if seq == self._replay_until:
            messages += self._end_replay()
        return messages

    def _truncated(self, message: bytes, seq: int) -> list[bytes]:
        if len(message) <= self._limit:
            return [message]
        left_out = {"leftOut": {"seq": seq, "bytes": len(message)}}
        return truncate_message(message, self._limit, seq) or [
            translate.info_update(self.session.id, **left_out)
        ]

    def _render_entry(self, line: bytes, *, replaying: bool) -> list[bytes]:
        event = entries.event_of(line)
        if event is not None:
            shown = self._updates.apply(event)
            if shown and (child := entries.subagent_session_of(line)) is not None:
                return self._render_of_subagent(child, shown)
            return self._render_event(line, shown, replaying=replaying) if shown else []
        entry = parse_message(line)
        assert entry is not None
        match entry["type"]:
            case "turn_start" | "turn_steer" if replaying or not self._is_own(entry):
                return translate.user_chunks(self.session.id, entry["prompt"])
            case "turn_end":
                return self._render_turn_end(entry, replaying=replaying)
            case "permission_request" | "elicitation_request" if not replaying:
                return self.request_pending()
            case "permission_resolved":
                return _cancel_request(self.permission_requests, entry["request_id"])
            case "elicitation_resolved":
                return _cancel_request(self.elicitation_requests, entry["request_id"])
            case "session_closed":
                return self._render_closed(entry)
        return []

    def _is_own(self, entry: dict[str, Any]) -> bool:
        """Whether the client itself sent the prompt of a ``turn_start`` or ``turn_steer``."""
        if entry["type"] == "turn_start" and entry["turn_index"] in self.prompts:
            return True
        is_own = entry["id"] in self.own_prompt_ids
        self.own_prompt_ids.discard(entry["id"])
        return is_own

    def _render_of_subagent(self, child: str, event: bytes) -> list[bytes]:
        if not self._updates.knows_subagents:
            return []
        self.subagents.note(child)
        return [self.subagents.render(event)]

    def _render_event(self, line: bytes, event: bytes, *, replaying: bool) -> list[bytes]:
        if self._updates.knows_subagents:
            event = self.subagents.render(event)
        if (rewritten := self._rewriter.rewrite(event)) is not None:
            return [rewritten]
        message = translate.AgentMessage(event)
        if message.method is None:
            self._agent_responses[entries.turn_index_of(line)] = message
            return []
        if message.method == translate.UPDATE:
            self._rewriter.learn(message)
            self.subagents.parent_id = self._rewriter.agent_id
        elif replaying:  # only the conversation is replayed
            return []
        return [message.with_session_id(self.session.id)]

    def _render_turn_end(self, entry: dict[str, Any], *, replaying: bool) -> list[bytes]:
        index = entry["turn_index"]
        agent_response = self._agent_responses.pop(index, None)
        request = self.prompts.pop(index, None)
        if request is not None:
            self._on_response(request)
            response = _prompt_response(request, entry, agent_response)
            if len(response) > self._limit:
                response = _prompt_response(request, entry, None)
            return [response]
        if replaying:
            return []
        ended = {"turnIndex": index, "stopReason": entry["stop_reason"]}
        return [translate.info_update(self.session.id, turnEnd=ended)]

    def _render_closed(self, entry: dict[str, Any]) -> list[bytes]:
        messages = [translate.info_update(self.session.id, closed=entry["reason"])]
        for request in (*self._loads, *self._closes):
            self._on_response(request)
        error = JsonRpcError.from_error(session_closed())
        messages += [jsonrpc.encode_error(load.id, error) for load in self._loads]
        messages += [jsonrpc.encode_result(close.id, {}) for close in self._closes]
        self._loads.clear()
        self._closes.clear()
        return messages

    def _end_replay(self) -> list[bytes]:
        self._replay_until = 0
        opened = self.opened()
        responses = [jsonrpc.encode_result(request.id, opened) for request in self._loads]
        for request in self._loads:
            self._on_response(request)
        self._loads.clear()
        return responses + self.request_pending()

    def _request_permission(self, pending: dict[str, Any]) -> list[bytes]:
        """The request for a permission; none if it cannot be shortened enough for the client."""
        request_id = self._next_id()
        params = {**pending["request"], "sessionId": self.subagents.session_of(pending["request"])}
        if self._has_positions:
            resumption.add_request_id(params, pending["request_id"])
        message = jsonrpc.encode_request(request_id, "session/request_permission", params)
        if requests := truncate_message(message, self._limit):
            self.permission_requests[pending["request_id"]] = request_id
        return requests

    def _request_input(self, pending: dict[str, Any]) -> list[bytes]:
        """The request for a question's answer; none if the client cannot show the question."""
        request = pending["request"]
        if mode_of(request) not in self._elicitation:
            return []
        request_id = self._next_id()
        # `requestId` is an id between acpx and the agent.
        params = {name: value for name, value in request.items() if name != "requestId"}
        params["sessionId"] = self.subagents.session_of(request)
        if self._has_positions:
            resumption.add_request_id(params, pending["request_id"])
        message = jsonrpc.encode_request(request_id, "elicitation/create", params)
        if len(message) > self._limit:
            return []
        self.elicitation_requests[pending["request_id"]] = request_id
        return [message]


def _cancel_request(requests: dict[str, int], pending_id: str) -> list[bytes]:
    """The cancellation of a request to the client; none if the client did not get the request."""
    request_id = requests.pop(pending_id, None)
    if request_id is None:
        return []
    return [jsonrpc.encode_notification("$/cancel_request", {"requestId": request_id})]


def _prompt_response(
    request: jsonrpc.Request, end: dict[str, Any], agent_response: translate.AgentMessage | None
) -> bytes:
    """The response to a prompt: the agent's own if it decided the turn, otherwise the server's.

    Args:
        end: the turn's ``turn_end``.
        agent_response: the agent's response to the prompt, if it sent one.
    """
    result = agent_response.part("result") if agent_response is not None else None
    agent_error = agent_response.part("error") if agent_response is not None else None
    stop_reason = end["stop_reason"]
    if stop_reason != "error":
        if result is not None and (parse_message(result) or {}).get("stopReason") == stop_reason:
            return jsonrpc.encode_raw_result(request.id, result)
        return jsonrpc.encode_result(request.id, {"stopReason": stop_reason})
    described = end["error"]
    value = parse_message(agent_error) if agent_error is not None else None
    if (
        agent_error is not None
        and described["code"] == ErrorCode.AGENT_FAILED
        and _is_valid_error(value)
    ):
        return jsonrpc.encode_raw_error(request.id, agent_error)
    passed = ("auth_methods", "resets_at")
    fields = {name: part for name, part in described.items() if name in passed}
    error = JsonRpcError.from_error(
        Error(
            described["code"],
            described["message"][:MAX_ERROR_LENGTH],
            retryable=described["retryable"],
            fields=fields,
        )
    )
    data = (value or {}).get("data")
    if isinstance(data, dict):  # the agent's own additions
        error.data = {**data, **error.data}
    return jsonrpc.encode_error(request.id, error)


def _is_valid_error(value: dict[str, Any] | None) -> bool:
    return (
        value is not None
        and isinstance(value.get("code"), int)
        and isinstance(value.get("message"), str)
    )
